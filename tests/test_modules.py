"""GRU and GRUCell behave as nn.GRU and nn.GRUCell: construction, state, shapes, errors, modes."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import triton_gru
from triton_gru.plan.planner import KERNELS

from .calls import make_gru
from .oracle import (
    assert_accurate,
    compute_baseline,
    compute_exact,
    compute_in_double,
    count_summed_products,
    set_precision,
)
from .twins import make_twins

OPTIONS = [
    {},
    {"num_layers": 3},
    {"bias": False},
    {"batch_first": True},
    {"num_layers": 2, "dropout": 0.5},
    {"bidirectional": True},
    {"dtype": torch.float64},
    {"device": "meta"},
]


# ---- construction and state


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_construction(options):
    torch.manual_seed(1)
    theirs = nn.GRU(4, 6, **options)
    torch.manual_seed(1)
    ours = triton_gru.GRU(4, 6, **options)
    assert repr(ours) == f"triton_gru.{theirs!r}"
    assert isinstance(ours, nn.RNNBase)
    state, expected = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(expected)
    for name in state:
        assert (state[name].shape, state[name].dtype, state[name].device) == (
            expected[name].shape, expected[name].dtype, expected[name].device,
        )  # fmt: skip
        if state[name].device.type != "meta":
            assert torch.equal(state[name], expected[name])


@pytest.mark.parametrize("bias", [True, False])
def test_cell_construction(bias):
    torch.manual_seed(1)
    theirs = nn.GRUCell(4, 6, bias)
    torch.manual_seed(1)
    ours = triton_gru.GRUCell(4, 6, bias)
    assert repr(ours) == f"triton_gru.{theirs!r}"
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(value, expected) for value, expected in zip(ours.parameters(), theirs.parameters()))


def test_repr_shows_options_that_nn_gru_lacks():
    assert repr(triton_gru.GRU(2, 3, reset_after=False)) == "triton_gru.GRU(2, 3, reset_after=False)"
    assert repr(triton_gru.GRU(2, 3, reverse=True)) == "triton_gru.GRU(2, 3, reverse=True)"
    assert repr(triton_gru.GRUCell(2, 3, backend="block")) == "triton_gru.GRUCell(2, 3, backend='block')"


@pytest.mark.parametrize(
    "args, kwargs",
    [
        ((0, 3), {}),
        ((3, 0), {}),
        ((3.0, 3), {}),
        ((3, "4"), {}),
        ((3, 4, 0), {}),
        ((3, 4), {"dropout": 2}),
        ((3, 4), {"dropout": True}),
        ((3, 4), {"bias": 1}),
        ((3, 4), {"batch_first": 1}),
    ],
)
def test_construction_errors(args, kwargs):
    with pytest.raises(Exception) as expected:
        nn.GRU(*args, **kwargs)
    with pytest.raises(type(expected.value)) as raised:
        triton_gru.GRU(*args, **kwargs)
    assert str(raised.value) == str(expected.value)


def test_construction_warning_for_dropout_on_one_layer():
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        triton_gru.GRU(3, 4, dropout=0.5)


def test_no_projection_argument():
    with pytest.raises(TypeError, match="proj_size"):
        triton_gru.GRU(3, 4, proj_size=2)


@pytest.mark.parametrize("module", [triton_gru.GRU, triton_gru.GRUCell])
def test_unknown_backend(module):
    with pytest.raises(ValueError, match="backend must be one of 'auto', .*got 'fast'"):
        module(3, 4, backend="fast")
    built = module(3, 4)
    built.backend = "fast"
    with pytest.raises(ValueError, match="backend must be one of"):
        built(torch.randn(2, 3))


@pytest.mark.parametrize(
    "module", [triton_gru.GRU(3, 4, 2, backend="torch"), triton_gru.GRUCell(3, 4, backend="torch")]
)
def test_copies_and_pickles_are_equal_and_share_no_memory(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert type(copied) is type(module)
        assert repr(copied) == repr(module)
        x = torch.randn(5, 3)
        expected, actual = module(x), copied(x)
        results = (result if isinstance(result, tuple) else (result,) for result in (expected, actual))
        for expected_result, actual_result in zip(*results):
            assert torch.equal(expected_result, actual_result)
        with torch.no_grad():
            next(copied.parameters()).add_(1)
        assert not torch.equal(next(copied.parameters()), next(module.parameters()))


def test_state_dicts_go_both_ways():
    theirs, ours = make_twins(4, 6, 2, bidirectional=True)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "float"])
def test_casts(cast, device, launched):
    set_precision("fp32")
    gru = getattr(triton_gru.GRU(4, 6, backend="auto" if cast == "double" else "block").to(device).eval(), cast)()
    x = getattr(torch.randn(3, 2, 4, device=device), cast)()
    with torch.no_grad():
        output, h_n = gru(x)
    assert output.dtype == h_n.dtype == x.dtype == next(gru.parameters()).dtype
    if cast == "double":
        assert not launched
    else:
        assert launched.scan_count == 1
        precision = {"half": "fp16", "bfloat16": "bf16", "float": "fp32"}[cast]
        assert_accurate(output, compute_baseline(gru, x, None, precision)[0], compute_exact(gru, x, None)[0], precision)


def test_reset_parameters_draws_again():
    gru = triton_gru.GRU(4, 16)
    old_weight = gru.weight_hh_l0.clone()
    gru.reset_parameters()
    assert not torch.equal(old_weight, gru.weight_hh_l0)
    assert gru.weight_hh_l0.abs().max() <= 0.25  # 1 / sqrt(16), the bound of nn.GRU


# ---- calls of every shape, on a kernel and on nn.GRU


@pytest.mark.parametrize("backend", ["auto", "torch", "block", "reference"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("with_hx", [True, False])
def test_shapes_and_values(backend, batch_first, batched, with_hx, device, launched):
    set_precision("fp32")
    theirs, ours = (module.to(device).eval() for module in make_twins(4, 10, 2, batch_first=batch_first))
    ours.backend = backend
    batch, steps = 3, 64 if device == "cuda" else 5  # "auto" leaves fewer steps to nn.GRU
    x, hx = torch.randn(steps, 4, device=device), torch.randn(2, 10, device=device)
    if batched:
        x = torch.randn(*((batch, steps) if batch_first else (steps, batch)), 4, device=device)
        hx = torch.randn(2, batch, 10, device=device)
    if not with_hx:
        hx = None
    with torch.no_grad():
        expected, actual = theirs(x, hx), ours(x, hx)
    for our_result, their_result, exact in zip(actual, expected, compute_in_double(theirs, x, hx)):
        assert_accurate(our_result, their_result, exact, "fp32", count_summed_products(theirs))
    # On a GPU "auto" may choose any kernel: see test_plan.py.
    assert bool(launched) == (ours.plan(x, hx).kernel in KERNELS)


@pytest.mark.parametrize("backend", ["auto", "torch", "block", "reference"])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("with_hx", [True, False])
def test_cell_shapes_and_values(backend, batched, with_hx, device, launched):
    set_precision("fp32")
    theirs = nn.GRUCell(4, 10).to(device).eval()
    ours = triton_gru.GRUCell(4, 10, backend=backend).to(device).eval()
    ours.load_state_dict(theirs.state_dict())
    x, hx = torch.randn(3, 4, device=device), torch.randn(3, 10, device=device) if with_hx else None
    if not batched:
        x, hx = x[0], None if hx is None else hx[0]
    with torch.no_grad():
        expected, actual = theirs(x, hx), ours(x, hx)
        assert bool(launched) == (ours.plan(x, hx).kernel in KERNELS)
    assert_accurate(actual, expected, compute_in_double(theirs, x, hx), "fp32", count_summed_products(theirs))


@pytest.mark.parametrize("backend", ["auto", "block"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_empty_batch(backend, batch_first, device):
    gru = triton_gru.GRU(4, 10, 2, batch_first=batch_first, backend=backend, device=device).eval()
    x = torch.randn((0, 3, 4) if batch_first else (3, 0, 4), device=device)
    with torch.no_grad():
        output, h_n = gru(x)
        assert output.shape == (*x.shape[:2], 10)
        assert h_n.shape == (2, 0, 10)
        cell = triton_gru.GRUCell(4, 10, backend=backend, device=device).eval()
        assert cell(torch.randn(0, 4, device=device)).shape == (0, 10)


@pytest.mark.parametrize("backend", ["auto", "torch", "reference", "block"])
def test_empty_batch_with_lengths(backend, device):
    gru = triton_gru.GRU(4, 5, backend=backend, device=device).eval()
    with torch.no_grad():
        output, h_n = gru(torch.randn(2, 0, 4, device=device), lengths=torch.zeros(0, dtype=torch.int64))
    assert output.shape == (2, 0, 5) and h_n.shape == (1, 0, 5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_lengths_dtype_too_small_for_the_number_of_steps(dtype):
    gru, x = triton_gru.GRU(1, 1).eval(), torch.randn(300, 2, 1)
    lengths = torch.tensor([100, -3 if dtype == torch.int8 else 200])
    with torch.no_grad():
        for actual, expected in zip(gru(x, lengths=lengths.to(dtype)), gru(x, lengths=lengths)):
            assert torch.equal(actual, expected)


def test_shapes_on_the_meta_device():
    gru = triton_gru.GRU(4, 6, 2, device="meta").eval()
    output, h_n = gru(torch.empty(3, 2, 4, device="meta"))
    assert (output.shape, h_n.shape) == ((3, 2, 6), (2, 2, 6))
    assert triton_gru.GRUCell(4, 6, device="meta").eval()(torch.empty(2, 4, device="meta")).shape == (2, 6)


def test_hx_is_neither_returned_nor_written(device):
    gru = make_gru(4, 6, "fp32", device)
    hx = torch.randn(1, 2, 6, device=device)
    hx_before = hx.clone()
    output, h_n = gru(torch.randn(3, 2, 4, device=device), hx)
    assert torch.equal(hx, hx_before)
    assert len({hx.data_ptr(), h_n.data_ptr(), output.data_ptr()}) == 3


# ---- reverse


@pytest.mark.parametrize("backend", ["auto", "torch", "reference", *KERNELS])
@pytest.mark.parametrize("kind", ["dense", "batch first", "packed", "unbatched"])
def test_reverse_equals_the_second_direction(kind, backend, kernels_on_cpu):
    set_precision("fp32")
    two_directions = nn.GRU(4, 6, bidirectional=True, batch_first=kind == "batch first").eval()
    ours = triton_gru.GRU(4, 6, batch_first=two_directions.batch_first, reverse=True, backend=backend).eval()
    ours.load_state_dict({name: getattr(two_directions, f"{name}_reverse") for name in ours.state_dict()})
    x, hx = torch.randn(3, 3, 4), torch.randn(2, 3, 6)
    if kind == "unbatched":
        x, hx = x[0], hx[:, 0]
    elif kind == "packed":
        x = pack_padded_sequence(x, torch.tensor([2, 3, 1]), enforce_sorted=False)
    with torch.no_grad():
        expected, expected_h_n = two_directions(x, hx)
        actual, h_n = ours(x, hx[1:])
    if kind == "packed":
        assert torch.equal(actual.batch_sizes, expected.batch_sizes)
        actual, expected = actual.data, expected.data
    torch.testing.assert_close(actual, expected[..., 6:], rtol=0, atol=2e-6)
    torch.testing.assert_close(h_n, expected_h_n[1:], rtol=0, atol=2e-6)


def test_reverse_trains_as_nn_gru():
    gru = triton_gru.GRU(4, 6, 2, reverse=True)
    theirs = nn.GRU(4, 6, 2)
    theirs.load_state_dict(gru.state_dict())
    x = torch.randn(3, 2, 4)
    assert gru.plan(x).kernel == "torch"
    gru(x)[0][0].sum().backward()
    theirs(x.flip(0))[0][2].sum().backward()
    for our_parameter, their_parameter in zip(gru.parameters(), theirs.parameters()):
        torch.testing.assert_close(our_parameter.grad, their_parameter.grad)


def test_bidirectional_and_reverse_contradict():
    with pytest.raises(ValueError, match="reverse=True needs one direction"):
        triton_gru.GRU(4, 6, bidirectional=True, reverse=True)
    for backend in ("auto", "torch", "block"):
        gru = triton_gru.GRU(4, 6, bidirectional=True, backend=backend).eval()
        gru.reverse = True
        with pytest.raises(ValueError, match="reverse=True needs one direction"):
            gru(torch.randn(3, 2, 4))
