"""Tests of lengths, packed input, resets and directions: each kernel against float64, and wrong arguments."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import triton_gru
from triton_gru.call import sequences
from triton_gru.call.bind import bind_gru
from triton_gru.launch import execute
from triton_gru.plan.planner import KERNELS

from ..calls import make_call, make_gru, run_checked
from ..conftest import poison_memory
from ..oracle import PRECISIONS, assert_accurate
from ..pairwise import pairwise

each_kernel = pytest.mark.parametrize("kernel", KERNELS)


def make_factors(hidden, batch, steps):
    """Return the factors of a pairwise cover of calls, with these choices of sizes."""
    return (
        hidden,
        batch,
        steps,
        tuple(PRECISIONS),
        ("time_first", "batch_first", "odd_offset"),
        (True, False),  # bias
        (1, 2),  # layers
        ("forward", "reverse", "both"),
        (True, False),  # initial state given
        (True, False),  # reset after
        (None, torch.int64, torch.int32, torch.uint8),  # dtype of lengths
        (True, False),  # resets
    )


def is_special(*case):
    """Return whether a case has lengths, resets, or a direction other than forward."""
    *_, directions, _with_hx, _reset_after, lengths, resets = case
    return lengths is not None or resets or directions != "forward"


CASES = [
    (kernel, *case)
    for kernel in KERNELS
    for case in pairwise(*make_factors((1, 25, 40), (1, 17), (1, 3)))
    if is_special(*case)
]


def draw_ends(x, batch_first, lengths, resets, seed=0):
    """Return keyword arguments of a call: random lengths of dtype ``lengths`` unless it is None.

    The last length is 0. A length in the middle is larger than the number of steps, if there are three rows or more.
    Random resets are among the arguments if ``resets`` is true.
    """
    steps, batch = (x.size(1), x.size(0)) if batch_first else (x.size(0), x.size(1))
    generator = torch.Generator().manual_seed(seed)
    ends = {}
    if lengths is not None:
        values = torch.randint(0, steps + 1, (batch,), generator=generator)
        values[batch // 2] = steps + 7  # too large: it is clamped
        values[batch - 1] = 0
        ends["lengths"] = values.to(x.device, lengths)
    if resets:
        ends["resets"] = (torch.rand(x.shape[:2], generator=generator) < 0.3).to(x.device)
    return ends


@pytest.mark.parametrize(
    "kernel, hidden, batch, steps, precision, layout, bias, layers, directions, with_hx, reset_after, lengths, resets",
    CASES,
)
def test_agrees_with_float64(
    kernel, hidden, batch, steps, precision, layout, bias, layers, directions, with_hx, reset_after, lengths, resets,
    device, launched,
):  # fmt: skip
    resets = resets and directions == "forward"
    gru, x, hx = make_call(
        kernel, hidden, batch, steps, precision, layout, bias, layers, with_hx, reset_after, device,
        directions=directions,
    )  # fmt: skip
    ends = draw_ends(x, gru.batch_first, lengths, resets)
    output, h_n = run_checked(gru, x, hx, precision, launched, **ends)
    if lengths is not None:
        if not gru.batch_first:
            output = output.transpose(0, 1)
        for row, end in enumerate(ends["lengths"].tolist()):
            assert (output[row, end:] == 0).all()
        initial = torch.zeros_like(h_n) if hx is None else hx
        assert torch.equal(h_n[:, -1], initial[:, -1])  # the row of length 0


@each_kernel
def test_lengths_may_be_on_the_cpu_and_are_clamped(kernel, device):
    gru = make_gru(4, 20, "fp32", device, kernel, bidirectional=True)
    x = torch.randn(3, 4, 4, device=device)
    with torch.no_grad():
        expected = gru(x, lengths=torch.tensor([2, 0, 3, 1], device=device))
        actual = gru(x, lengths=torch.tensor([2, -5, 99, 1]))
    assert all(torch.equal(a, b) for a, b in zip(expected, actual))


@each_kernel
def test_input_beyond_a_length_is_not_read(kernel, device, launched):
    gru = make_gru(4, 20, "fp32", device, kernel, num_layers=2, bidirectional=True)
    x, lengths = torch.randn(3, 4, 4, device=device), torch.tensor([2, 0, 3, 1])
    clean = run_checked(gru, x, None, "fp32", launched, lengths=lengths.to(device))
    for row, end in enumerate(lengths):
        x[end:, row] = float("nan")
    with torch.no_grad(), poison_memory():
        dirty = gru(x, lengths=lengths)
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty))


@each_kernel
def test_a_reset_clears_the_state(kernel, device, launched):
    """Check that no NaN or infinity remains after a reset, also at the first step.

    After a reset, the results are those of a sequence that starts there.
    """
    gru = make_gru(4, 20, "fp32", device, kernel, num_layers=2)
    x, hx = torch.randn(3, 3, 4, device=device), torch.randn(2, 3, 20, device=device)
    hx[:, 0] = float("nan")
    hx[1, 1, 3] = float("inf")
    x[0, 2] = float("nan")
    resets = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 0, 1]], dtype=torch.bool, device=device)
    output, h_n = run_checked(gru, x, hx, "fp32", launched, resets=resets)
    assert output[:, :2].isfinite().all()
    assert output[:2, 2].isnan().all()
    assert output[2].isfinite().all()
    with torch.no_grad():
        started = gru(x[2:, 2:])
    torch.testing.assert_close(h_n[:, 2:], started[1], rtol=0, atol=1e-6)  # ``step`` uses another kernel here


@each_kernel
@pytest.mark.parametrize("kind", ["lengths", "packed", "resets", "lengths and resets", "bidirectional"])
def test_results_do_not_depend_on_the_chunks(kernel, kind, device, launched, monkeypatch):
    steps = 5
    gru = make_gru(6, 20, "fp16", device, kernel, num_layers=2, bidirectional="resets" not in kind)
    x = torch.randn(steps, 3, 6, device=device).half()
    hx = torch.randn(2 if "resets" in kind else 4, 3, 20, device=device).half()
    lengths = torch.tensor([2, steps, 1])
    ends = draw_ends(x, False, None, "resets" in kind)
    if "lengths" in kind:
        ends["lengths"] = lengths.to(device)
    input = pack_padded_sequence(x, lengths, enforce_sorted=False) if kind == "packed" else x
    with torch.no_grad(), poison_memory():
        expected, expected_h_n = gru(input, hx, **ends)
        assert launched.count("input_projection") == 2
        for workspace in (0, 1300) if kernel == "block" else (0,):  # chunks of one step, or of at most two
            monkeypatch.setattr(execute, "WORKSPACE_BYTES", workspace)
            launched.clear()
            output, h_n = gru(input, hx, **ends)
            assert launched.count("input_projection") == 2 * (steps if workspace == 0 or gru.bidirectional else 3)
            values, expected_values = (x.data if kind == "packed" else x for x in (output, expected))
            assert expected_values.isfinite().all()
            assert torch.equal(values, expected_values)
            assert torch.equal(h_n, expected_h_n)


@each_kernel
def test_the_projection_reads_no_step_outside_a_sequence(kernel, device):
    """Check that the gate inputs of all steps are finite, although input beyond each length is NaN.

    In reverse, steps beyond a length would come before the first step, where memory belongs to other tensors.
    """
    gru = make_gru(4, 20, "fp32", device, kernel, bidirectional=True)
    x, lengths = torch.randn(3, 4, 4, device=device), torch.tensor([2, 0, 3, 1])
    for row, end in enumerate(lengths):
        x[end:, row] = float("nan")
    call = bind_gru(gru, x, None, lengths)
    plan = gru.plan(x, None, lengths)
    with poison_memory():
        projection = next(execute.launches(call, plan.config, plan.device, *execute.allocate(call)))
    assert projection.kernel.__name__ == "input_projection"
    execute.start([projection])
    gi = projection.args[projection.kernel.arg_names.index("gi")]
    assert gi.isfinite().all()


@pytest.mark.parametrize(
    "kernel, precision", [*(("block", p) for p in PRECISIONS), *(("step", p) for p in PRECISIONS), ("grid", "bf16")]
)
def test_packed_input_equals_padded_input_with_lengths(kernel, precision, device):
    """Compare bits: packed and padded input are the same sequences in different layouts."""
    layers = 1 if kernel == "grid" else 2
    gru = make_gru(6, 20, precision, device, kernel, num_layers=layers, bidirectional=True)
    x, hx = (
        torch.randn(*shape, device=device).to(gru.weight_hh_l0.dtype) for shape in ((3, 9, 6), (2 * layers, 9, 20))
    )
    lengths = torch.tensor([1, 3, 2, 2, 3, 1, 1, 2, 1])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    with torch.no_grad(), poison_memory():
        actual, h_n = gru(packed, hx)
        expected, expected_h_n = gru(x, hx, lengths)
    assert torch.equal(actual.data, pack_padded_sequence(expected, lengths, enforce_sorted=False).data)
    assert torch.equal(h_n, expected_h_n)


@pytest.mark.usefixtures("kernels_on_cpu")
@pytest.mark.parametrize("kernel", [*KERNELS, "reference", "torch"])
@pytest.mark.parametrize("directions", ["forward", "reverse", "both"])
def test_every_backend_agrees_on_lengths(kernel, directions):
    options = {"num_layers": 2, "batch_first": True}
    bidirectional, reverse = directions == "both", directions == "reverse"
    gru = make_gru(4, 20, "fp32", "cpu", kernel, **options, bidirectional=bidirectional, reverse=reverse)
    x, hx = torch.randn(4, 3, 4), torch.randn(4 if bidirectional else 2, 4, 20)
    lengths = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        actual, h_n = gru(x, hx, lengths=lengths)
        for row, end in enumerate(lengths.tolist()):
            assert (actual[row, end:] == 0).all()
            if end == 0:
                assert torch.equal(h_n[:, row], hx[:, row])
                continue
            sequence = x[row : row + 1, :end]
            sequence = sequence.flip(1) if reverse else sequence
            expected, expected_h_n = nn.GRU.forward(gru, sequence, hx[:, row : row + 1].contiguous())
            expected = expected.flip(1) if reverse else expected
            torch.testing.assert_close(actual[row, :end], expected[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(h_n[:, row], expected_h_n[:, 0], rtol=0, atol=1e-5)


def test_lengths_and_resets_train_without_a_kernel():
    gru = triton_gru.GRU(4, 5, 2)
    x = torch.randn(3, 2, 4, requires_grad=True)
    assert gru.plan(x, lengths=torch.tensor([3, 1])).kernel == "torch"
    plan = gru.plan(x, resets=torch.zeros(3, 2, dtype=torch.bool))
    assert plan.kernel == "reference"
    assert dict(plan.rejection_reasons)["torch"] == "nn.GRU cannot reset the state within a sequence"
    gru(x, lengths=torch.tensor([3, 1]))[0].sum().backward()
    assert (x.grad[1:, 1] == 0).all() and (x.grad[:, 0] != 0).any(dim=1).all()  # row 1 ends after one step
    x.grad = None
    output, _ = gru(x, resets=torch.tensor([[0, 0], [0, 1], [0, 0]]).bool())
    output[2, 1].sum().backward()  # row 1 restarts at step 1, so step 0 has no influence
    assert (x.grad[0] == 0).all() and (x.grad[1:, 1] != 0).any()


def test_unbatched_resets(kernels_on_cpu):
    gru = make_gru(4, 5, "fp32", "cpu", "block", batch_first=True)
    x, resets = torch.randn(3, 4), torch.tensor([False, True, False])
    output, h_n = gru(x, resets=resets)
    assert torch.equal(output, gru(x[None], resets=resets[None])[0][0])
    assert h_n.shape == (1, 5)


# An input of three steps of two rows, and resets.
x3, bools = torch.randn(3, 2, 4), torch.zeros(3, 2, dtype=torch.bool)
WRONG = {
    "a list of lengths": ((x3, None, [3, 1]), TypeError, "lengths must be a tensor of integers, got list"),
    "lengths of floats": ((x3, None, torch.ones(2)), TypeError, "got one of torch.float32"),
    "too many lengths": ((x3, None, torch.ones(3).int()), ValueError, r"of shape \[2\].* got \[3\]"),
    "lengths unbatched": ((x3[:, 0], None, torch.tensor(3)), ValueError, "lengths need batched input"),
    "resets of integers": ((x3, None, None, bools.int()), TypeError, "resets must be a tensor of bools"),
    "resets the other way": ((x3, None, None, bools.T), ValueError, r"\[3, 2\], got \[2, 3\]"),
    "resets elsewhere": ((x3, None, None, bools.to("meta")), RuntimeError, "must be on the same device"),
}


@pytest.mark.parametrize("backend", ["auto", "torch", "block", "reference"])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_lengths_and_resets_raise(name, backend, launched):
    call, error, message = WRONG[name]
    gru = triton_gru.GRU(4, 5, backend=backend).eval()
    for attempt in (gru, gru.plan):
        with pytest.raises(error, match=message):
            attempt(*call)
    assert not launched


@pytest.mark.parametrize("backend", ["auto", "torch", "block", "reference"])
def test_resets_and_lengths_raise_with_input_that_they_do_not_support(backend, launched):
    """Check packed input, and for resets a GRU that is bidirectional or reverse."""
    packed = pack_padded_sequence(x3, torch.tensor([3, 1]))
    with pytest.raises(ValueError, match="resets cannot go with packed input"):
        triton_gru.GRU(4, 5, backend=backend).eval()(packed, resets=bools)
    with pytest.raises(ValueError, match="resets cannot go with a bidirectional GRU"):
        triton_gru.GRU(4, 5, bidirectional=True, backend=backend).eval()(x3, resets=bools)
    with pytest.raises(ValueError, match="resets cannot go with a reverse GRU"):
        triton_gru.GRU(4, 5, reverse=True, backend=backend).eval()(x3, resets=bools)
    with pytest.raises(ValueError, match="lengths cannot go with packed input"):
        triton_gru.GRU(4, 5, backend=backend).eval()(packed, lengths=torch.tensor([3, 1]))
    assert not launched


@pytest.mark.parametrize(
    "sizes, rows", [([2, 3], 5), ([2, 0], 2), ([2, 1], 4), ([2, 1], 2), ([], 0), ([3] + [2] * 20, 3)]
)
def test_invalid_packed_sequences_raise(sizes, rows, launched):
    """Check that no kernel is launched, which could access memory outside of the tensors."""
    gru = triton_gru.GRU(4, 5, backend="block").eval()
    with pytest.raises((ValueError, RuntimeError)) as raised:
        gru(PackedSequence(torch.randn(rows, 4), torch.tensor(sizes, dtype=torch.int64)))
    assert "batch_sizes" in str(raised.value) or not sizes
    assert len(str(raised.value)) < 300
    assert not launched


def test_lengths_and_offsets_of_packed_sequences():
    packed = sequences.sequences_from_batch_sizes(torch.tensor([4, 2, 2, 1]), 9, torch.device("cpu"))
    assert packed.lengths.tolist() == [4, 3, 1, 1]
    assert packed.offsets.tolist() == [0, 4, 6, 8]
    assert (packed.steps, packed.batch_size) == (4, 4)
    assert packed.lengths.dtype == packed.offsets.dtype == torch.int32


@each_kernel
@pytest.mark.parametrize("bidirectional", [False, True])
def test_nan_stays_in_its_row_of_packed_input(kernel, bidirectional, device, launched):
    gru = make_gru(4, 20, "fp32", device, kernel, bidirectional=bidirectional)
    x, lengths = torch.randn(3, 9, 4, device=device), torch.tensor([3, 3, 3, 2, 2, 2, 1, 1, 1])
    x[1, 4] = float("nan")
    packed = pack_padded_sequence(x, lengths)
    with torch.no_grad(), poison_memory():
        output, h_n = gru(packed)
    exact = nn.GRU(4, 20, bidirectional=bidirectional, dtype=torch.float64)
    exact.load_state_dict(gru.state_dict())
    with torch.no_grad():
        expected, expected_h_n = exact(packed.cpu().to(torch.float64))
    assert_accurate(output.data, expected.data, expected.data, "fp32")
    assert_accurate(h_n, expected_h_n, expected_h_n, "fp32")
    assert launched.has_only(kernel)
