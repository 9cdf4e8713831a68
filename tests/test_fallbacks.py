"""Calls that no kernel serves go to nn.GRU or the reference. Plans give the reason, and kernels by name raise it."""

import copy
import importlib.util
import sys
import warnings

import pytest
import torch
import torch.utils.checkpoint
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import triton_gru
from triton_gru.call.bind import bind_cell, bind_gru
from triton_gru.plan.device import KNOWN_DEVICES
from triton_gru.plan.planner import choose

from .calls import make_gru
from .oracle import compute_exact
from .twins import make_twins


def find_rejection(plan):
    """Return the plan's reason against ``block``, or ''."""
    return dict(plan.rejection_reasons).get("block", "")


@pytest.mark.parametrize("packed", [False, True])
def test_device_without_kernels_needs_no_plan(packed, monkeypatch):
    theirs, ours = (module.eval() for module in make_twins(4, 5))
    cell = triton_gru.GRUCell(4, 5).eval()
    x = torch.randn(3, 2, 4)
    call = pack_padded_sequence(x, torch.tensor([3, 1])) if packed else x
    monkeypatch.setattr(triton_gru.launch.route, "find_device", lambda device: None)
    assert ours.plan(call).kernel == cell.plan(x[0]).kernel == "torch"
    expected = cell(x[0])
    monkeypatch.delattr(triton_gru.launch.route, "choose")
    assert torch.equal(ours(call)[1], theirs(call)[1])
    assert torch.equal(cell(x[0]), expected)


def test_packed_input_of_wrong_width_raises_the_error_of_nn_gru():
    theirs, ours = make_twins(4, 5)
    packed = pack_sequence([torch.randn(3, 7)])
    with pytest.raises(RuntimeError) as expected:
        theirs(packed)
    with pytest.raises(RuntimeError) as raised:
        ours(packed)
    assert str(raised.value) == str(expected.value)


def test_training_goes_to_nn_gru(device, launched):
    theirs, ours = (module.to(device) for module in make_twins(4, 5, 2))
    x = torch.randn(3, 2, 4, device=device)
    assert find_rejection(ours.plan(x)).startswith("the module is in training mode with grad enabled")
    for module in (theirs, ours):
        module(x)[0].square().sum().backward()
    for parameter, expected in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(parameter.grad, expected.grad)
    assert not launched
    ours.backend = "block"
    with pytest.raises(RuntimeError, match="training mode with grad enabled"):
        ours(x)


def test_training_mode_without_grad_runs_the_kernel(device, launched):
    gru = make_gru(4, 5, "fp32", device).train()
    with torch.no_grad():
        gru(torch.randn(3, 2, 4, device=device))
    assert launched.scan_count == 1


def test_dropout_in_training_goes_to_nn_gru(device):
    gru = triton_gru.GRU(4, 5, 2, dropout=0.5, device=device)
    x = torch.randn(3, 2, 4, device=device)
    with torch.no_grad():
        assert "dropout" in find_rejection(gru.plan(x))
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
    assert launched.scan_count == 2
    for parameter in gru.parameters():
        parameter.requires_grad_(False)
    assert not gru(torch.randn(3, 2, 4, device=device))[0].requires_grad
    assert gru(torch.randn(3, 2, 4, device=device, requires_grad=True))[0].requires_grad


GRAD_MODES = {"enable": torch.enable_grad, "no": torch.no_grad, "inference": torch.inference_mode}


@pytest.mark.parametrize("requires_grad_of", ["nothing", "input", "hx", "weight"])
@pytest.mark.parametrize("mode", GRAD_MODES)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "kind, dtype", [("gru", "float32"), ("gru", "float16"), ("gru", "bfloat16"), ("cell", "float32")]
)
def test_auto_leaves_calls_to_nn_gru_that_only_nn_gru_differentiates(kind, dtype, training, mode, requires_grad_of):
    """In eval() on a GPU these are cells and bfloat16 GRUs. They do not use cuDNN, which has no backward in eval()."""
    dtype = getattr(torch, dtype)
    if kind == "gru":
        module, x, hx, bind = triton_gru.GRU(4, 16, dtype=dtype), torch.randn(3, 2, 4), torch.randn(1, 2, 16), bind_gru
    else:
        module, x, hx, bind = triton_gru.GRUCell(4, 16, dtype=dtype), torch.randn(2, 4), torch.randn(2, 16), bind_cell
    module.requires_grad_(False).train(training)
    x, hx = x.to(dtype), hx.to(dtype)
    differentiated = {"input": x, "hx": hx, "weight": next(module.parameters())}.get(requires_grad_of)
    if differentiated is not None:
        differentiated.requires_grad_()
    with GRAD_MODES[mode]():
        problem = bind(module, x, hx).problem
    is_recorded = mode == "enable" and requires_grad_of != "nothing"
    with GRAD_MODES[mode]():
        # nn.GRU computes an empty batch without cuDNN too. Calls that nn.GRU does not serve go to kernels.
        empty_problem = bind(module, x[..., :0, :], hx[..., :0, :]).problem
        module.reset_after = False
        reset_before_problem = bind(module, x, hx).problem
    assert bool(empty_problem.unsupported_reason) == ((mode == "enable" and training) or is_recorded)
    assert bool(reset_before_problem.unsupported_reason) == (mode == "enable" and training)
    is_without_cudnn = kind == "cell" or dtype == torch.bfloat16
    is_unsupported = (mode == "enable" and training) or (is_recorded and is_without_cudnn)
    assert bool(problem.unsupported_reason) == is_unsupported
    assert not is_unsupported or choose(problem, KNOWN_DEVICES["H200"]).kernel == "torch"


def test_cell_in_eval_has_the_gradients_of_nn_gru_cell(device, launched):
    theirs = torch.nn.GRUCell(4, 5, device=device).eval()
    ours = triton_gru.convert.from_torch(theirs)
    x, hx = torch.randn(2, 4, device=device), torch.randn(2, 5, device=device, requires_grad=True)

    def compute_gradients(module, call):
        """Return the gradients of hx and of the module's parameters for a ``call`` of the module."""
        module.zero_grad()
        hx.grad = None
        call(x, hx).square().sum().backward()
        return [hx.grad, *(parameter.grad for parameter in module.parameters())]

    def call_checkpointed(x, hx):
        return torch.utils.checkpoint.checkpoint(ours, x, hx, use_reentrant=False)

    expected = compute_gradients(theirs, theirs)
    # Three calls, because a kernel would serve the third one as a prepared call.
    for call in (ours, ours, ours, call_checkpointed):
        torch.testing.assert_close(compute_gradients(ours, call), expected)
    assert not launched
    with torch.no_grad():
        ours.backend = "step"
        torch.testing.assert_close(ours(x, hx), theirs(x, hx), rtol=0, atol=2e-3)
    assert launched


def test_inference_mode(device, launched):
    gru = make_gru(4, 5, "fp32", device)
    with torch.inference_mode():
        output, h_n = gru(torch.randn(3, 2, 4, device=device))
    assert output.is_inference()
    assert h_n.is_inference()
    assert launched.scan_count == 1


def test_float64_goes_to_nn_gru(device):
    theirs, ours = (module.to(device).eval() for module in make_twins(4, 5, dtype=torch.float64))
    x = torch.randn(3, 2, 4, dtype=torch.float64, device=device)
    assert torch.equal(ours(x)[0], theirs(x)[0])
    ours.backend = "block"
    with pytest.raises(RuntimeError, match="no kernel for float64"):
        ours(x)


@pytest.mark.parametrize("value, expected", [(None, "tf32"), ("0", "ieee"), ("1", "tf32")])
def test_nvidia_tf32_override_is_obeyed(value, expected, monkeypatch):
    """NVIDIA's libraries obey this variable too, and read it once a process. So the test loads the module again."""
    if value is None:
        monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    else:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", value)
    spec = importlib.util.spec_from_file_location(
        "triton_gru.call.torch_state_read_again", triton_gru.call.torch_state.__file__
    )
    reloaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, reloaded)
    spec.loader.exec_module(reloaded)
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32")
    assert reloaded.fp32_precision() == expected


def test_disabled_cudnn_goes_to_nn_gru(device):
    gru = triton_gru.GRU(4, 5, device=device).eval()
    x = torch.randn(3, 2, 4, device=device)
    with torch.backends.cudnn.flags(enabled=False):
        assert find_rejection(gru.plan(x)) == "torch.backends.cudnn.enabled is False"
        assert gru.plan(x).kernel == "torch"


@pytest.mark.parametrize("cell", [False, True])
def test_autocast_computes_in_its_dtype(cell, device, launched):
    if cell:
        module = triton_gru.GRUCell(4, 5, backend="step", device=device).eval()
        x, hx = torch.randn(2, 4, device=device), torch.randn(2, 5, device=device)
    else:
        module = make_gru(4, 5, "fp32", device)
        x, hx = torch.randn(3, 2, 4, device=device), torch.randn(1, 2, 5, device=device)
    with torch.autocast(device, torch.bfloat16), torch.no_grad():
        actual = module(x, hx)
        mixed = module(x.bfloat16(), hx)
    expected = copy.deepcopy(module).bfloat16()(x.bfloat16(), hx.bfloat16())
    for results in (actual, mixed):
        for result, expected_result in zip((results,) if cell else results, (expected,) if cell else expected):
            assert result.dtype == torch.bfloat16
            assert torch.equal(result, expected_result)
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
    assert launched.has_only(module.backend)


def test_autocast_leaves_float64_to_nn_gru(device):
    theirs, ours = (module.to(device).eval() for module in make_twins(4, 5, dtype=torch.float64))
    x = torch.randn(3, 2, 4, dtype=torch.float64, device=device)
    with torch.autocast(device, torch.bfloat16):
        assert ours(x)[0].dtype == theirs(x)[0].dtype
        ours.backend = "block"
        with pytest.raises(RuntimeError, match="no kernel for float64"):
            ours(x)


def test_autocast_on_the_cpu_equals_nn_gru():
    theirs, ours = (module.eval() for module in make_twins(4, 5))
    x = torch.randn(3, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = theirs(x)[0], ours(x)[0]
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)


def test_functional_call_uses_the_weights_given(device, launched):
    gru = make_gru(4, 5, "fp32", device)
    other_gru = make_gru(4, 5, "fp32", device)
    x = torch.randn(3, 2, 4, device=device)
    with torch.no_grad():
        swapped = torch.func.functional_call(gru, dict(other_gru.named_parameters()), (x,))
        assert torch.equal(swapped[0], other_gru(x)[0])
        assert not torch.equal(swapped[0], gru(x)[0])
    assert launched.scan_count == 3


def call_functionally(module, x, weights):
    """Call ``module`` with ``weights`` in place of its parameters, through torch.func.functional_call."""
    return torch.func.functional_call(module, weights, (x,))


def register_and_call(module, x, weights):
    """Register ``weights`` as the module's parameters. Call it with ``x``."""
    for name, weight in weights.items():
        delattr(module, name)
        module.register_parameter(name, torch.nn.Parameter(weight))
    return module(x)


@pytest.mark.parametrize("backend", ["auto", "reference", "block"])
@pytest.mark.parametrize("call", [call_functionally, register_and_call])
def test_replaced_weights_accept_input_of_their_dtype(call, backend, device):
    """`check_input` takes the dtype from torch's list of weights, which still has the old weights."""
    theirs, ours = (module.to(device).eval() for module in make_twins(4, 16))
    ours.backend = backend
    x = torch.randn(3, 2, 4, device=device).half()
    weights = {name: weight.detach().half() for name, weight in theirs.named_parameters()}
    with torch.no_grad():
        actual, expected = call(ours, x, weights), call(theirs, x, weights)
    torch.testing.assert_close(actual, expected, rtol=0, atol=4e-3)


def test_transforms_and_tracing_go_to_nn_gru(old_gpu_on_cpu):
    theirs, ours = (module.eval() for module in make_twins(4, 5))
    x = torch.randn(3, 2, 4)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing an nn.GRU warns the same
        traced = torch.jit.trace(ours, (x,))
        assert torch.equal(traced(x)[0], theirs(x)[0])
    rejections = []

    def forward(x):
        rejections.append(find_rejection(ours.plan(x)))
        return ours(x)[0].sum()

    ours.requires_grad_(False)
    gradient = torch.func.grad(forward)(x)
    assert "transform" in rejections[0]
    expected = torch.func.grad(lambda x: theirs(x)[0].sum())(x)
    torch.testing.assert_close(gradient, expected)


def test_compiles_without_graph_breaks():
    theirs, ours = (module.eval() for module in make_twins(4, 5))
    x = torch.randn(3, 2, 4)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(ours, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x)[0], theirs(x)[0])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_reset_before_runs_on_the_reference(bidirectional, batch_first):
    gru = triton_gru.GRU(
        4, 5, 2, bidirectional=bidirectional, batch_first=batch_first, reset_after=False, dtype=torch.float64
    )
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    plan = gru.plan(x)
    assert plan.kernel == "reference"
    assert "always" in dict(plan.rejection_reasons)["torch"]
    output, h_n = gru(x)
    expected_output, expected_h_n = compute_exact(gru, x, None)
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
def test_packed_input_runs_on_the_reference(enforce_sorted, batch_first):
    theirs, ours = make_twins(4, 5, 2, bidirectional=True, batch_first=batch_first)
    ours.backend = "reference"
    lengths = [5, 3, 3, 1] if enforce_sorted else [3, 1, 5, 3]
    packed = pack_padded_sequence(torch.randn(5, 4, 4), torch.tensor(lengths), enforce_sorted=enforce_sorted)
    hx = torch.randn(4, 4, 5)
    (expected, expected_h_n), (actual, h_n) = theirs(packed, hx), ours(packed, hx)
    torch.testing.assert_close(actual.data, expected.data)
    torch.testing.assert_close(h_n, expected_h_n)
    assert torch.equal(actual.batch_sizes, expected.batch_sizes)
    torch.testing.assert_close(pad_packed_sequence(actual)[0], pad_packed_sequence(expected)[0])


def test_reset_before_cell_runs_on_the_reference():
    cell = triton_gru.GRUCell(4, 5, reset_after=False)
    x, h = torch.randn(3, 4), torch.randn(3, 5)
    weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    assert torch.equal(cell(x, h), triton_gru.reference.compute_step(x, h, weights, reset_after=False))
    assert not torch.equal(cell(x, h), triton_gru.reference.compute_step(x, h, weights))
