"""Tests of each kernel with the options of PyTorch's test of RNNs (test_nn.py, cuDNN against the CPU)."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import triton_gru
from triton_gru.plan.planner import KERNELS

from ..conftest import poison_memory
from ..oracle import assert_accurate, set_precision
from ..pairwise import pairwise

LENGTHS = (None, "a tensor, sorted", "a tensor", "a list")
DIRECTIONS = ("forward", "reverse", "both")
FACTORS = ((True, False), DIRECTIONS, (False, True), (1, 2), LENGTHS, (True, False))
each_case = pytest.mark.parametrize(
    "bias, directions, batch_first, layers, lengths, contiguous", list(itertools.product(*FACTORS))
)
each_pair = pytest.mark.parametrize("bias, directions, batch_first, layers, lengths, contiguous", pairwise(*FACTORS))
each_kernel = pytest.mark.parametrize("kernel", KERNELS)
each_variant = pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
# steps, batch, inputs, hidden. On a GPU the sizes are realistic. On the CPU they suffice to run every part of a kernel.
SIZES = {
    "cuda": {"block": (60, 17, 40, 100), "grid": (60, 17, 40, 300), "step": (60, 17, 40, 300)},
    "cpu": {"block": (3, 4, 5, 6), "grid": (2, 3, 5, 20), "step": (3, 4, 5, 6)},
}


def spread(tensor):
    """Return the elements of a tensor with a stride of two, and NaNs between them."""
    return torch.stack([tensor, torch.full_like(tensor, float("nan"))], dim=-1)[..., 0]


def check_kernel(kernel, device, launched, reset_after, bias, directions, batch_first, layers, lengths, contiguous):
    """Compare a call of a kernel with float64, as closely as `nn.GRU` or the reference in fp32 agrees with it.

    ``lengths`` is None, or one of `LENGTHS` for packed input. Unless ``contiguous``, all tensors are `spread`.
    """
    set_precision("fp32")
    steps, batch, inputs, hidden = SIZES[device][kernel]
    bidirectional = directions == "both"
    options = {"num_layers": layers, "bias": bias, "batch_first": batch_first, "bidirectional": bidirectional}
    variant = {"reset_after": reset_after, "reverse": directions == "reverse"}
    if reset_after and directions != "reverse":
        baseline = nn.GRU(inputs, hidden, **options).eval()
    else:  # nn.GRU lacks these variants
        baseline = triton_gru.GRU(inputs, hidden, **options, **variant, backend="reference").eval()
    gru = triton_gru.GRU(inputs, hidden, **options, **variant, backend=kernel).eval()
    gru.load_state_dict(baseline.state_dict())
    gru = gru.to(device)
    x = torch.randn(*((batch, steps) if batch_first else (steps, batch)), inputs)
    hx = torch.randn(layers * (1 + bidirectional), batch, hidden)
    if lengths is not None:
        ends = torch.randint(1, steps + 1, (batch,))
        ends[batch // 2] = steps
        if "sorted" in lengths:
            ends = ends.sort(descending=True).values
        ends = ends if "tensor" in lengths else ends.tolist()
        x = pack_padded_sequence(x, ends, batch_first=batch_first, enforce_sorted="sorted" in lengths)
    gru_x, gru_hx = x.to(device), hx.to(device)
    if not contiguous:
        gru_hx = spread(gru_hx)
        gru_x = spread(gru_x) if lengths is None else PackedSequence(spread(gru_x.data), *gru_x[1:])
        for name, parameter in list(gru.named_parameters()):
            setattr(gru, name, nn.Parameter(spread(parameter.detach())))
    with torch.no_grad():
        exact = copy.deepcopy(baseline).double()(x.to(torch.float64), hx.double())
        expected = baseline(x, hx)
        with poison_memory():
            actual = gru(gru_x, gru_hx)
    assert launched.has_only(kernel)
    if lengths is not None:
        (output, _), (expected_output, _) = actual, expected
        assert isinstance(output, PackedSequence)
        # The fields after the data: batch sizes and indices, which may be None.
        for field, expected_field in zip(output[1:], expected_output[1:]):
            assert (field is None) == (expected_field is None)
            assert field is None or torch.equal(field.cpu(), expected_field)
        actual, expected, exact = ((output.data, h_n) for output, h_n in (actual, expected, exact))
    for actual_result, expected_result, exact_result in zip(actual, expected, exact):
        assert_accurate(actual_result, expected_result, exact_result, "fp32")
        assert actual_result.is_contiguous()


@pytest.mark.usefixtures("kernels_on_cpu")
@each_kernel
@each_variant
@each_pair
def test_matrix_pairwise(
    kernel, reset_after, bias, directions, batch_first, layers, lengths, contiguous, launched
):  # fmt: skip
    check_kernel(kernel, "cpu", launched, reset_after, bias, directions, batch_first, layers, lengths, contiguous)


@pytest.mark.gpu
@each_kernel
@each_variant
@each_case
def test_matrix(kernel, reset_after, bias, directions, batch_first, layers, lengths, contiguous, launched):
    check_kernel(kernel, "cuda", launched, reset_after, bias, directions, batch_first, layers, lengths, contiguous)
