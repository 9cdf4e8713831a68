"""Providers of `perf`: the arguments they pass, their results, errors, and compilation ahead of the timing."""

import dataclasses
import sys
import types
from unittest import mock

import pytest
import torch
from torch import nn

from perf import precompile
from perf.case import Case
from perf.providers import compiled, ours, torchrl
from perf.providers.interface import Unavailable
from triton_gru.launch.kernel_launch import Launch
from triton_gru.plan.device import KNOWN_DEVICES
from triton_gru.tuning.compile_pool import compile_candidate

TORCHRL_MODULES = [
    "torchrl", "torchrl.modules", "torchrl.modules.tensordict_module", "torchrl.modules.tensordict_module._rnn_triton",
]  # fmt: skip
pytestmark = pytest.mark.usefixtures("inference_mode")
# Inductor imports a module that torch 2.13 deprecates.
inductor = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")


@inductor
@pytest.mark.parametrize("precision, layers", [("ieee", 2), ("tf32", 1)])
def test_compiled_equals_the_module_and_restores_dynamos_config(plain_inductor, matmul, precision, layers):
    matmul.allow_tf32 = precision == "tf32"
    gru = nn.GRU(3, 5, layers).eval()
    x = torch.randn(2, 3, 3)
    ready = compiled.PROVIDERS["torch.compile"](gru, x)
    assert (ready.kernel, ready.config) == ("inductor", f"{2 * layers} steps unrolled")
    assert not torch._dynamo.config.allow_rnn
    for _ in range(2):
        x = torch.randn(2, 3, 3)
        torch.testing.assert_close(ready.call(x), gru(x))


def test_compiled_refuses_cases_that_compile_for_long():
    with pytest.raises(Unavailable, match=r"at most 64 here .* got 66"):
        compiled.PROVIDERS["torch.compile"](nn.GRU(4, 4, 2), torch.zeros(33, 1, 4))


@inductor
def test_compiled_without_a_cpp_compiler_is_unavailable():
    from torch._inductor import config

    # Not by monkeypatch: its undo removes the option from the config.
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}), pytest.raises(Unavailable, match="C\\+\\+ compiler"):
        compiled.PROVIDERS["torch.compile"](nn.GRU(4, 4), torch.zeros(1, 1, 4))


def test_torchrl_not_installed_is_unavailable(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchrl", None)
    with pytest.raises(Unavailable, match="pip install torchrl"):
        torchrl.PROVIDERS["torchrl"](nn.GRU(4, 4), torch.zeros(1, 1, 4))


def test_torchrl_without_a_gpu_is_unavailable(monkeypatch):
    for name in TORCHRL_MODULES:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    with pytest.raises(Unavailable, match="needs a CUDA device"):
        torchrl.PROVIDERS["torchrl"](nn.GRU(4, 4), torch.zeros(1, 1, 4))


class GruTritonStub:
    """A stand-in for `gru_triton` of TorchRL, which has its arguments and computes by torch.

    ``precisions`` has for each call the requested precision, and whether torch allowed TF32.
    """

    def __init__(self):
        self.precisions = []

    def __call__(self, x, hidden, w_ih, w_hh, b_ih, b_hh, is_init, compute_dtype, *, input_precision):
        padded = hidden.size(-1)
        assert padded.bit_count() == 1 and padded >= 16
        assert (hidden.shape[:2], is_init.shape) == (x.shape[:2], x.shape[:2])
        assert not is_init.any() and is_init.dtype == torch.bool and hidden.dtype == torch.float32
        assert (w_ih.shape, w_hh.shape) == ((3 * padded, x.size(-1)), (3 * padded, padded))
        assert b_ih.shape == b_hh.shape == (3 * padded,)
        assert {w.dtype for w in (w_ih, w_hh, b_ih, b_hh)} == {x.dtype} == {compute_dtype}
        self.precisions.append((input_precision, torch.backends.cuda.matmul.allow_tf32))
        weights = [w_ih, w_hh, b_ih, b_hh]
        initial = hidden[:, 0].unsqueeze(0).to(x.dtype)
        output, last = torch.gru(x, initial, weights, True, 1, 0.0, False, False, batch_first=True)
        return output, last[0].float()


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
@pytest.mark.parametrize(
    "hidden, layers, bias, dtype",
    [(20, 2, True, torch.float32), (16, 1, True, torch.float32), (5, 3, False, torch.bfloat16)],
)
def test_torchrl_gets_the_weights(hidden, layers, bias, dtype, precision, matmul):
    matmul.allow_tf32 = precision == "tf32"
    gru = nn.GRU(7, hidden, layers, bias=bias, dtype=dtype).eval()
    x = torch.randn(4, 3, 7, dtype=dtype)
    stub = GruTritonStub()
    results = torchrl.bind(stub, gru, x)(x)
    assert stub.precisions == [(precision, precision == "tf32")] * layers
    torch.testing.assert_close(results, gru(x))


@pytest.fixture
def cases_on_cpu(kernels_on_cpu, monkeypatch):
    """Let cases that `perf` compiles for a GPU run on CPU tensors."""
    for name in ("make_gru", "draw_inputs"):
        method = getattr(Case, name)
        monkeypatch.setattr(Case, name, lambda self, device, method=method: method(self, "cpu"))


def test_kernels_are_compiled_once_for_shapes_with_equal_launches(monkeypatch):
    compiled_launches = []
    compiled = mock.Mock(asm={})
    monkeypatch.setattr(ours, "find_device", lambda device: KNOWN_DEVICES["H200"])
    monkeypatch.setattr(
        Launch, "compile", lambda self: compiled_launches.append((self.kernel.__name__, self.constants)) or compiled
    )
    case = Case("fp16", hidden=20, batch=3, steps=9)
    bidirectional, packed = dataclasses.replace(case, directions=2), dataclasses.replace(case, layout="packed")
    same = [dataclasses.replace(case, **fields) for fields in ({"batch": 2}, {"steps": 50})]
    cases = [
        case,
        bidirectional,
        packed,
        *same,
        dataclasses.replace(bidirectional, layers=2),
        dataclasses.replace(case, steps=1),
    ]
    kernels, compiled_for = ours.find_kernels([(case, ["triton_gru.block"]) for case in cases]), []
    for candidate in kernels:
        compiled_launches.clear()
        assert compile_candidate(*candidate) == ""
        compiled_for.append([*compiled_launches])
        assert {kernel for kernel, _ in compiled_launches} == {"input_projection", "block_scan"}
    shapes = [(problem.layout, problem.directions, problem.num_layers, problem.steps) for problem, *_ in kernels]
    assert shapes == [
        ("dense", 1, 1, 2),
        ("dense", 2, 1, 2),
        ("packed", 1, 1, 2),
        ("dense", 2, 2, 2),
        ("dense", 1, 1, 1),
    ]
    inputs = [constants["cut"].I.value for kernel, constants in compiled_for[3] if kernel == "input_projection"]
    assert inputs == [20, 40]
    assert compiled_for[2] != compiled_for[0]
    assert ours.find_kernels([(dataclasses.replace(case, hidden=4096), ["triton_gru.block"])]) == []


def test_providers_without_a_plan_are_compiled_by_a_call(cases_on_cpu, monkeypatch, launched):
    """Planned kernels are compiled from their plans. Streams of ours and other providers are called once in a process.

    Exception: the modules of torch, which compile nothing.
    """
    calls, planned = [], []
    monkeypatch.setattr(precompile, "run_in_parallel", calls.extend)
    monkeypatch.setattr(precompile, "find_kernels", lambda wanted: planned.extend(wanted) or [])
    frame = Case("fp32", hidden=16, batch=2, steps=1, is_streaming=True)
    sequence = Case("fp32", hidden=16, batch=2, steps=3)
    names = ["torch.nn.GRUCell", "triton_gru.block", "torchrl", "perf.experiments.stages:block-without-output"]
    precompile.compile_ahead([(frame, names), (sequence, names)])
    assert planned == [(sequence, names)]
    assert [call.args for call in calls] == [(frame, name) for name in names[1:]] + [
        (sequence, name) for name in names[2:]
    ]
    for call in (calls[0], calls[-1]):
        launched.clear()
        call()
        assert launched == ["input_projection", "block_scan"]


@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["torch.compile", "torch.compile.cells", "torchrl"])
@pytest.mark.parametrize("hidden, layers", [(64, 2), (400, 1)])
@pytest.mark.parametrize(
    "dtype, precision, atol",
    [
        (torch.float32, "ieee", 1e-5), (torch.float32, "tf32", 2e-3), (torch.float16, "ieee", 4e-3),
        (torch.bfloat16, "ieee", 3e-2),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("default")  # warnings of other packages
def test_peers_agree_with_nn_gru_on_a_gpu(provider, hidden, layers, dtype, precision, atol, matmul):
    if provider == "torchrl":
        pytest.importorskip("torchrl")
    matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.rnn.fp32_precision = precision
    gru = nn.GRU(32, hidden, layers, device="cuda", dtype=dtype).eval()
    inputs = [torch.randn(5, 3, 32, device="cuda", dtype=dtype) for _ in range(2)]
    call = {**compiled.PROVIDERS, **torchrl.PROVIDERS}[provider](gru, inputs[0]).call
    for x in inputs:
        torch.testing.assert_close(call(x), gru(x), atol=atol, rtol=0)


@pytest.mark.parametrize("kernel, steps", [("block", 3), ("grid", 3), ("step", 1)])
def test_launches_without_the_module_compute_the_same(kernel, steps, device, launched):
    gru = nn.GRU(4, 20, device=device).eval()
    ready = ours.prepare_launches(gru, torch.randn(steps, 3, 4, device=device), kernel)
    inputs = torch.randn(2, steps, 3, 4, device=device)
    expected = [ours.BackendProvider(kernel).make_gru(gru)(x) for x in inputs]
    for _ in range(2):
        launched.clear()
        for x, (output, h_n) in zip(inputs, expected):
            actual = ready.call(x)
            assert torch.equal(actual[0], output) and torch.equal(actual[1], h_n)
        assert launched.has_only(kernel)
    assert ready.call(inputs[0])[0] is ready.call(inputs[0])[0], "a call allocates no results"
    with pytest.raises(Unavailable, match="nn.GRU serves the call"):
        ours.prepare_launches(gru, inputs[0], "torch")
