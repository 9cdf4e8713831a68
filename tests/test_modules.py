"""GRU and GRUCell behave as torch.nn's: construction, state, shapes, errors, modes."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import triton_gru

from .oracle import check, exact, set_precision, torchs_own
from .test_block import make_gru

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


def twins(*args, **kwargs):
    """torch's module and ours with the same parameters."""
    theirs, ours = nn.GRU(*args, **kwargs), triton_gru.GRU(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


# ---- construction and state


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_construction(options):
    torch.manual_seed(1)
    theirs = nn.GRU(4, 6, **options)
    torch.manual_seed(1)
    ours = triton_gru.GRU(4, 6, **options)
    assert repr(ours) == repr(theirs)
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
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))


def test_repr_shows_what_torch_does_not_have():
    assert repr(triton_gru.GRU(2, 3, reset_after=False)) == "GRU(2, 3, reset_after=False)"
    assert repr(triton_gru.GRUCell(2, 3, backend="block")) == "GRUCell(2, 3, backend='block')"


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
def test_copies(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert type(copied) is type(module)
        assert repr(copied) == repr(module)
        x = torch.randn(5, 3)
        expected, actual = module(x), copied(x)
        for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (expected, actual))):
            assert torch.equal(a, b)
        with torch.no_grad():
            next(copied.parameters()).add_(1)
        assert not torch.equal(next(copied.parameters()), next(module.parameters()))


def test_state_dicts_go_both_ways():
    theirs, ours = twins(4, 6, 2, bidirectional=True)
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
        assert launched.scans == 1
        precision = {"half": "fp16", "bfloat16": "bf16", "float": "fp32"}[cast]
        check(output, torchs_own(gru, x, None, precision)[0], exact(gru, x, None)[0], precision)


def test_reset_parameters_draws_anew():
    gru = triton_gru.GRU(4, 16)
    before = gru.weight_hh_l0.clone()
    gru.reset_parameters()
    assert not torch.equal(before, gru.weight_hh_l0)
    assert gru.weight_hh_l0.abs().max() <= 0.25


# ---- calls: every shape, on the kernel and on torch


@pytest.mark.parametrize("backend", ["auto", "torch", "block", "reference"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("with_hx", [True, False])
def test_shapes_and_values(backend, batch_first, batched, with_hx, device, launched):
    set_precision("fp32")
    theirs, ours = (m.to(device).eval() for m in twins(4, 10, 2, batch_first=batch_first))
    ours.backend = backend
    x = torch.randn(3, 5, 4, device=device) if batched else torch.randn(5, 4, device=device)
    hx = None
    if with_hx:
        hx = (
            torch.randn(2, 3 if batch_first else 5, 10, device=device) if batched else torch.randn(2, 10, device=device)
        )
    with torch.no_grad():
        expected, actual = theirs(x, hx), ours(x, hx)
    for a, b in zip(actual, expected):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)
    assert bool(launched) == (backend == "block" or (backend == "auto" and device == "cuda"))


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
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)
    assert bool(launched) == (backend == "block" or (backend == "auto" and device == "cuda"))


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


def test_shapes_on_the_meta_device():
    gru = triton_gru.GRU(4, 6, 2, device="meta").eval()
    output, h_n = gru(torch.empty(3, 2, 4, device="meta"))
    assert (output.shape, h_n.shape) == ((3, 2, 6), (2, 2, 6))
    assert triton_gru.GRUCell(4, 6, device="meta").eval()(torch.empty(2, 4, device="meta")).shape == (2, 6)


def test_hx_is_not_returned_nor_written(device):
    gru = make_gru(4, 6, "fp32", device)
    hx = torch.randn(1, 2, 6, device=device)
    kept = hx.clone()
    output, h_n = gru(torch.randn(3, 2, 4, device=device), hx)
    assert torch.equal(hx, kept)
    assert len({hx.data_ptr(), h_n.data_ptr(), output.data_ptr()}) == 3


# ---- errors: torch's own, from either side, before anything is launched

x3, x2 = torch.randn(3, 2, 4), torch.randn(3, 4)
WRONG_CALLS = {
    "1D input": (torch.randn(4), None),
    "4D input": (torch.randn(1, 3, 2, 4), None),
    "width": (torch.randn(3, 2, 5), None),
    "dtype": (x3.half(), None),
    "integers": (torch.ones(3, 2, 4, dtype=torch.long), None),
    "no steps": (torch.randn(0, 2, 4), None),
    "hx batch": (x3, torch.randn(2, 3, 5)),
    "hx layers": (x3, torch.randn(1, 2, 5)),
    "hx width": (x3, torch.randn(2, 2, 6)),
    "hx 2D, input 3D": (x3, torch.randn(2, 5)),
    "hx 3D, input 2D": (x2, torch.randn(2, 1, 5)),
    "unbatched hx layers": (x2, torch.randn(1, 5)),
    "input elsewhere": (torch.empty(3, 2, 4, device="meta"), None),
}
CLEARER = {
    "hx dtype": (x3, torch.randn(2, 2, 5).half()),
    "hx elsewhere": (x3, torch.empty(2, 2, 5, device="meta")),
}


@pytest.mark.parametrize("backend", ["auto", "torch", "block", "reference"])
@pytest.mark.parametrize("name", [*WRONG_CALLS, *CLEARER])
def test_errors(name, backend, launched):
    theirs, ours = twins(4, 5, 2)
    ours.eval().backend = backend
    call = (WRONG_CALLS | CLEARER)[name]
    with pytest.raises(Exception) as expected:
        theirs(*call)
    with pytest.raises(type(expected.value)) as raised:
        ours(*call)
    if name in WRONG_CALLS:
        assert str(raised.value) == str(expected.value)
    else:
        assert name.split()[1].replace("elsewhere", "device") in str(raised.value)
    with pytest.raises(type(expected.value)):
        ours.plan(*call)
    assert not launched


WRONG_CELL_CALLS = {
    "3D input": (x3, None),
    "3D hx": (x2, torch.randn(1, 3, 5)),
    "width": (torch.randn(3, 5), None),
    "hx batch": (x2, torch.randn(2, 5)),
    "hx width": (x2, torch.randn(3, 6)),
}
CLEARER_CELL = {
    "hx dimensions": (torch.randn(4), torch.randn(1, 5)),
    "hx dtype": (x2, torch.randn(3, 5).half()),
    "input dtype": (x2.half(), None),
}


@pytest.mark.parametrize("backend", ["auto", "torch", "block", "reference"])
@pytest.mark.parametrize("name", [*WRONG_CELL_CALLS, *CLEARER_CELL])
def test_cell_errors(name, backend, launched):
    theirs, ours = nn.GRUCell(4, 5), triton_gru.GRUCell(4, 5, backend=backend).eval()
    call = (WRONG_CELL_CALLS | CLEARER_CELL)[name]
    with pytest.raises(Exception) as expected:
        theirs(*call)
    with pytest.raises(type(expected.value)) as raised:
        ours(*call)
    if name in WRONG_CELL_CALLS:
        assert str(raised.value) == str(expected.value)
    else:
        assert name.split()[1] in str(raised.value)
    assert not launched


# ---- what goes to torch, and says so


def rejection(plan):
    return dict(plan.rejected).get("block", "")


def test_bidirectional_goes_to_torch(device):
    theirs, ours = (m.to(device).eval() for m in twins(4, 5, bidirectional=True))
    x = torch.randn(3, 2, 4, device=device)
    plan = ours.plan(x)
    assert plan.kernel == "torch"
    if device == "cuda":
        assert "bidirectional" in rejection(plan)
    assert torch.equal(ours(x)[0], theirs(x)[0])
    ours.backend = "block"
    with pytest.raises(RuntimeError, match="backend='block' cannot serve this call: bidirectional"):
        ours(x)


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("with_hx", [True, False])
def test_packed_goes_to_torch(enforce_sorted, with_hx, device):
    theirs, ours = (m.to(device).eval() for m in twins(4, 5, 2))
    lengths = [5, 3, 3, 1] if enforce_sorted else [3, 1, 5, 3]
    packed = pack_padded_sequence(torch.randn(5, 4, 4), torch.tensor(lengths), enforce_sorted=enforce_sorted).to(device)
    hx = torch.randn(2, 4, 5, device=device) if with_hx else None
    plan = ours.plan(packed, hx)
    assert plan.kernel == "torch"
    assert rejection(plan) == "packed input is not supported yet"
    expected, actual = theirs(packed, hx), ours(packed, hx)
    assert torch.equal(actual[0].data, expected[0].data)
    assert torch.equal(actual[1], expected[1])
    ours.backend = "block"
    with pytest.raises(RuntimeError, match="packed input is not supported yet"):
        ours(packed, hx)


def test_packed_with_the_wrong_width():
    theirs, ours = twins(4, 5)
    packed = pack_sequence([torch.randn(3, 7)])
    with pytest.raises(RuntimeError) as expected:
        theirs(packed)
    with pytest.raises(RuntimeError) as raised:
        ours(packed)
    assert str(raised.value) == str(expected.value)


def test_training_goes_to_torch_and_trains(device, launched):
    theirs, ours = (m.to(device) for m in twins(4, 5, 2))
    x = torch.randn(3, 2, 4, device=device)
    assert rejection(ours.plan(x)).startswith("the module is in training mode with grad enabled")
    for module in (theirs, ours):
        module(x)[0].square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a.grad, b.grad)
    assert not launched
    ours.backend = "block"
    with pytest.raises(RuntimeError, match="training mode with grad enabled"):
        ours(x)


def test_training_mode_without_grad_runs_the_kernel(device, launched):
    gru = make_gru(4, 5, "fp32", device).train()
    with torch.no_grad():
        gru(torch.randn(3, 2, 4, device=device))
    assert launched.scans == 1


def test_dropout_in_training_goes_to_torch(device):
    gru = triton_gru.GRU(4, 5, 2, dropout=0.5, device=device)
    x = torch.randn(3, 2, 4, device=device)
    with torch.no_grad():
        assert "dropout" in rejection(gru.plan(x))
        assert not torch.equal(gru(x)[0], gru(x)[0])
        gru.eval().backend = "block"
        assert torch.equal(gru(x)[0], gru(x)[0])


def test_eval_with_grad_runs_the_kernel_and_refuses_backward(device, launched):
    gru = make_gru(4, 5, "fp32", device)
    cell = triton_gru.GRUCell(4, 5, backend="block", device=device).eval()
    for result in (gru(torch.randn(3, 2, 4, device=device))[0], cell(torch.randn(2, 4, device=device))):
        assert result.requires_grad
        with pytest.raises(RuntimeError, match="cudnn RNN backward can only be called in training mode"):
            result.sum().backward()
    assert launched.scans == 2
    for parameter in gru.parameters():
        parameter.requires_grad_(False)
    assert not gru(torch.randn(3, 2, 4, device=device))[0].requires_grad
    assert gru(torch.randn(3, 2, 4, device=device, requires_grad=True))[0].requires_grad


def test_inference_mode(device, launched):
    gru = make_gru(4, 5, "fp32", device)
    with torch.inference_mode():
        output, h_n = gru(torch.randn(3, 2, 4, device=device))
    assert output.is_inference()
    assert h_n.is_inference()
    assert launched.scans == 1


def test_float64_goes_to_torch(device):
    theirs, ours = (m.to(device).eval() for m in twins(4, 5, dtype=torch.float64))
    x = torch.randn(3, 2, 4, dtype=torch.float64, device=device)
    assert torch.equal(ours(x)[0], theirs(x)[0])
    ours.backend = "block"
    with pytest.raises(RuntimeError, match="no kernel for float64"):
        ours(x)


def test_disabled_cudnn_keeps_torch(device):
    gru = triton_gru.GRU(4, 5, device=device).eval()
    x = torch.randn(3, 2, 4, device=device)
    with torch.backends.cudnn.flags(enabled=False):
        assert rejection(gru.plan(x)) == "torch.backends.cudnn.enabled is False"
        assert gru.plan(x).kernel == "torch"


def test_autocast_goes_to_torch(device):
    theirs, ours = (m.to(device).eval() for m in twins(4, 5))
    x = torch.randn(3, 2, 4, device=device)
    with torch.autocast(device, torch.bfloat16):
        assert "autocast" in rejection(ours.plan(x))
        expected, actual = theirs(x)[0], ours(x)[0]
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)


def test_functional_call_uses_the_weights_given(device, launched):
    gru = make_gru(4, 5, "fp32", device)
    other = make_gru(4, 5, "fp32", device)
    x = torch.randn(3, 2, 4, device=device)
    with torch.no_grad():
        swapped = torch.func.functional_call(gru, dict(other.named_parameters()), (x,))
        assert torch.equal(swapped[0], other(x)[0])
        assert not torch.equal(swapped[0], gru(x)[0])
    assert launched.scans == 3


def test_transforms_and_tracing_go_to_torch():
    theirs, ours = (m.eval() for m in twins(4, 5))
    x = torch.randn(3, 2, 4)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing torch's own GRU warns as much
        traced = torch.jit.trace(ours, (x,))
        assert torch.equal(traced(x)[0], theirs(x)[0])
    seen = []

    def forward(x):
        seen.append(rejection(ours.plan(x)))
        return ours(x)[0].sum()

    ours.requires_grad_(False)
    gradient = torch.func.grad(forward)(x)
    assert "transform" in seen[0]
    expected = torch.func.grad(lambda x: theirs(x)[0].sum())(x)
    torch.testing.assert_close(gradient, expected)


def test_a_tensor_subclass_is_not_taken_for_its_memory():
    class Wrapped(torch.Tensor):
        pass

    gru = triton_gru.GRU(4, 5, backend="block").eval()
    with pytest.raises(RuntimeError, match="Wrapped is a tensor subclass"):
        gru(torch.randn(3, 2, 4).as_subclass(Wrapped))


def test_compiles_whole():
    theirs, ours = (m.eval() for m in twins(4, 5))
    x = torch.randn(3, 2, 4)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(ours, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x)[0], theirs(x)[0])


# ---- reset before: plain torch for now


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_reset_before_runs_on_the_reference(bidirectional, batch_first):
    gru = triton_gru.GRU(
        4, 5, 2, bidirectional=bidirectional, batch_first=batch_first, reset_after=False, dtype=torch.float64
    )
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    plan = gru.plan(x)
    assert plan.kernel == "reference"
    assert "always" in dict(plan.rejected)["torch"]
    output, h_n = gru(x)
    expected_output, expected_h_n = exact(gru, x, None)
    torch.testing.assert_close(output, expected_output)
    torch.testing.assert_close(h_n, expected_h_n)
    output.sum().backward()
    assert gru.weight_hh_l0.grad.abs().sum() > 0
    for backend in ("torch", "block"):
        gru.backend = backend
        with pytest.raises(RuntimeError, match=f"backend='{backend}' cannot serve"):
            gru.eval()(x)


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("batch_first", [False, True])
def test_packed_on_the_reference(enforce_sorted, batch_first):
    theirs, ours = twins(4, 5, 2, bidirectional=True, batch_first=batch_first)
    ours.backend = "reference"
    lengths = [5, 3, 3, 1] if enforce_sorted else [3, 1, 5, 3]
    packed = pack_padded_sequence(torch.randn(5, 4, 4), torch.tensor(lengths), enforce_sorted=enforce_sorted)
    hx = torch.randn(4, 4, 5)
    (expected, expected_h_n), (actual, h_n) = theirs(packed, hx), ours(packed, hx)
    torch.testing.assert_close(actual.data, expected.data)
    torch.testing.assert_close(h_n, expected_h_n)
    assert torch.equal(actual.batch_sizes, expected.batch_sizes)
    torch.testing.assert_close(pad_packed_sequence(actual)[0], pad_packed_sequence(expected)[0])


def test_reset_before_cell():
    cell = triton_gru.GRUCell(4, 5, reset_after=False)
    x, h = torch.randn(3, 4), torch.randn(3, 5)
    weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    assert torch.equal(cell(x, h), triton_gru.reference.step(x, h, weights, reset_after=False))
    assert not torch.equal(cell(x, h), triton_gru.reference.step(x, h, weights))
