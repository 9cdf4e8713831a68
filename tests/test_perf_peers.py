"""Peers from other packages: each gets `nn.GRU`'s weights in its own layout, or says why it cannot serve.

No peer is installed here. A stand-in computes a peer's documented formula in plain torch from its arguments.
"""

import contextlib
import itertools
import pathlib
import sys
import types
from functools import partial

import pytest
import torch
from torch import nn

import triton_gru
from perf import providers
from perf.case import Case
from perf.providers import compiled, flashrnn, flax_scan, gru_qat, handwritten, interface
from perf.providers.interface import Ready, Unavailable
from perf.providers.torch_modules import make_module_like

from .perf_calls import measure_rows

pytestmark = pytest.mark.usefixtures("inference_mode")
LAYERS = pytest.mark.parametrize("layers, bias", [(1, True), (2, True), (2, False)])


@pytest.fixture
def tf32():
    """Allow products of float32 in TF32."""
    with Case("tf32", 1, 1, 1).pin_precision():
        yield


@pytest.fixture
def gru_and_input(layers, bias):
    """Return a GRU and an input. All sizes differ, so that exchanged axes cause an error."""
    return nn.GRU(7, 20, layers, bias=bias).eval(), torch.randn(5, 3, 7)


def stand_for_gpu_input(dtype=torch.float32):
    """Return an object with the attributes of an input on a GPU that `import_gpu_peer` reads."""
    return types.SimpleNamespace(is_cuda=True, dtype=dtype)


# --- Shared by all peers


def test_peer_that_is_not_installed_is_unavailable(monkeypatch):
    for module in ("gru_qat", "flashrnn", "jax"):
        monkeypatch.setitem(sys.modules, module, None)
    for name in ("gru_qat.scan", "gru_qat.persistent", "flashrnn", "flashrnn.lstm", "flax.scan"):
        with pytest.raises(Unavailable, match=r"cannot be imported: pip install (gru-qat|flashrnn|jax)"):
            providers.make_ready(name, nn.GRU(4, 4), torch.zeros(1, 1, 4), is_streaming=False)


def test_import_gpu_peer_refuses_unsupported_calls():
    import_peer = partial(interface.import_gpu_peer, "json", "nothing", nn.GRU(4, 4))
    assert import_peer(stand_for_gpu_input()).__name__ == "json"
    with pytest.raises(Unavailable, match="json needs a CUDA device, the input is on cpu"):
        import_peer(torch.zeros(1, 1, 4))
    with pytest.raises(Unavailable, match=r"computes in torch.float32 here, not in torch.float16"):
        import_peer(stand_for_gpu_input(torch.float16), (torch.float32,))
    with pytest.raises(Unavailable, match="one direction"):
        interface.import_gpu_peer("json", "nothing", nn.GRU(4, 4, bidirectional=True), stand_for_gpu_input())
    with pytest.raises(Unavailable, match="of one length"):
        import_peer(nn.utils.rnn.pack_sequence([torch.zeros(2, 4)]))


@LAYERS
def test_handwritten_loop_with_and_without_biases(gru_and_input):
    gru, x = gru_and_input
    torch.testing.assert_close(handwritten.PROVIDERS["handwritten"](gru, x).call(x), gru(x))


# --- gru-qat


def scan(gi, h0, Wh_cat, bh_cat, **sizes):
    """Compute what gru-qat's two forward functions do: gates in the order r, z, n, and b_hn inside of the reset."""
    assert all(tensor.is_contiguous() for tensor in (gi, h0, Wh_cat, bh_cat))
    h, outputs = h0, []
    for gates in gi:
        (i_r, i_z, i_n), (h_r, h_z, h_n) = gates.chunk(3, 1), (h @ Wh_cat.T + bh_cat).chunk(3, 1)
        r, z = torch.sigmoid(i_r + h_r), torch.sigmoid(i_z + h_z)
        h = (1 - z) * torch.tanh(i_n + r * h_n) + z * h
        outputs.append(h)
    return torch.stack(outputs)


@LAYERS
def test_gru_qat_gets_the_weights(gru_and_input):
    gru, x = gru_and_input
    torch.testing.assert_close(gru_qat.bind(scan, gru, x)(x), gru(x))


def test_gru_qat_tunes_each_case_and_takes_the_fastest_blocks(monkeypatch, tf32):
    kernel = types.SimpleNamespace(cache={"another H": "BLOCK_B: 32"})

    def scan_with_tuning(*arguments):
        kernel.cache["this H"] = "BLOCK_B: 16"
        return scan(*arguments)

    peer = types.SimpleNamespace(
        gru_scan_forward=scan_with_tuning, gru_scan_forward_persistent=scan, gru_scan_fwd_kernel=kernel
    )  # fmt: skip
    monkeypatch.setattr(gru_qat, "import_gpu_peer", lambda *_: peer)
    chip = types.SimpleNamespace(multi_processor_count=132)  # an H200
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: chip)
    # The later block sizes are tried, the faster they seem.
    monkeypatch.setattr(gru_qat, "samples", lambda calls, **_: {name: [9.0 - i] for i, name in enumerate(calls)})
    gru, x = nn.GRU(7, 64), torch.randn(5, 3, 7)
    ready = providers.make_ready("gru_qat.scan", gru, x, is_streaming=False)
    assert (ready.kernel, ready.config, ready.config_source) == ("scan", "BLOCK_B: 16", "autotuned")
    torch.testing.assert_close(ready.call(x), gru(x))
    ready = providers.make_ready("gru_qat.persistent", gru, x, is_streaming=False)
    assert (ready.kernel, ready.config) == ("persistent", "{'block_b': 8, 'block_oh': 64, 'block_k': 32}")
    torch.testing.assert_close(ready.call(x), gru(x))
    chip.multi_processor_count = 0
    with pytest.raises(Unavailable, match="more programs than 0 processors"):
        providers.make_ready("gru_qat.persistent", gru, x, is_streaming=False)


def test_gru_qat_has_no_products_in_ieee(monkeypatch):
    monkeypatch.setattr(gru_qat, "import_gpu_peer", lambda *_: None)
    for prepare in gru_qat.PROVIDERS.values():
        with pytest.raises(Unavailable, match="in TF32, but the case has IEEE"):
            prepare(nn.GRU(4, 4), torch.zeros(1, 1, 4))


def test_blocks_of_gru_qat_fit_and_are_powers_of_two():
    assert gru_qat.list_block_sizes(16, 512, 132) == [
        {"block_b": 8, "block_oh": units, "block_k": 32} for units in (16, 32, 64, 128)
    ]
    assert gru_qat.list_block_sizes(1, 20, 132) == [{"block_b": 8, "block_oh": 16, "block_k": 16}]
    # With 16 or 32 units a program, even 64 rows a program would make more than 132 programs.
    rows_and_units = [(sizes["block_b"], sizes["block_oh"]) for sizes in gru_qat.list_block_sizes(1024, 512, 132)]
    assert rows_and_units == [(64, 64), (32, 128)]
    assert gru_qat.list_block_sizes(4096, 4096, 132) == []


# --- FlashRNN


# FlashRNN's internal layouts (flashrnn/flashrnn.py). Each call transposes arguments in other layouts.
INTERNAL = {"cuda": ("TBHGD", "HPGD", "HGD", "STBHD"), "cuda_fused": ("TBHDG", "HDGP", "HDG", "STBHD")}
SHAPES = "input_shape", "recurrent_shape", "bias_shape", "output_shape"


class FlashRNNConfig(types.SimpleNamespace):
    """A stand-in for FlashRNN's class, which turns from the fused kernel to the alternating one for a GRU."""

    def __init__(self, backend, function, **others):
        backend = "cuda" if function == "gru" else backend
        super().__init__(backend=backend, function=function, num_states=1 if function == "gru" else 2, **others)


def compute_flashrnn(Wx, R, b, states, config):
    """Compute FlashRNN's formulas (flashrnn/vanilla) with one head, from arguments in the layouts of ``config``."""
    assert tuple(getattr(config, name) for name in SHAPES) == INTERNAL[config.backend]
    assert all(tensor.is_contiguous() for tensor in (Wx, R, b, states))
    inputs, recurrent, biases = (
        tensor.permute([shape.index(axis) for axis in axes]).squeeze(axes.index("H"))
        for tensor, shape, axes in zip((Wx, R, b), INTERNAL[config.backend], ("TGHBD", "GHPD", "GHD"))
    )  # inputs [T, G, B, D], recurrent [G, P, D], biases [G, D]
    all_states, state = [], [*states[:, 0, :, 0]]
    for w in inputs:
        y = state[0] @ recurrent
        if config.function == "gru":
            r, z = torch.sigmoid(w[0] + y[1] + biases[1]), torch.sigmoid(w[1] + y[2] + biases[2])
            n = torch.tanh(w[2] + biases[3] + r * (y[0] + biases[0]))
            state = [z * state[0] + (1 - z) * n]
        else:
            input_gate, forget_gate, candidate, output_gate = w + y + biases[:, None]
            c = forget_gate.sigmoid() * state[1] + input_gate.sigmoid() * candidate.tanh()
            state = [output_gate.sigmoid() * c.tanh(), c]
        all_states.append(torch.stack(state))
    h = torch.stack(all_states, 1).unsqueeze(3)
    return h, h[:, -1:]


@LAYERS
@pytest.mark.parametrize("function", ["gru", "lstm"])
def test_flashrnn_gets_the_weights(gru_and_input, function, monkeypatch, tf32):
    peer = types.SimpleNamespace(FlashRNNConfig=FlashRNNConfig, flashrnn=compute_flashrnn)
    monkeypatch.setattr(flashrnn, "import_gpu_peer", lambda *_: peer)
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", "/cuda")
    gru, x = gru_and_input
    ready = providers.make_ready("flashrnn" if function == "gru" else "flashrnn.lstm", gru, x, is_streaming=False)
    assert ready.kernel == ("alternating" if function == "gru" else "fused")
    got = "cuda, float32 in IEEE" if function == "gru" else "cuda_fused"
    assert ready.config == f"asked for cuda_fused, got {got}"
    assert bool(ready.no_graph_reason) == (function == "gru")
    if function == "gru":
        torch.testing.assert_close(ready.call(x), gru(x))
    else:
        torch.testing.assert_close(ready.call(x), tuple(result.float() for result in ready.expected(x.double())))


@pytest.mark.parametrize("backend", flashrnn.KERNELS)
def test_both_kernels_of_flashrnn_serve_an_lstm_with_biases(backend):
    lstm, _ = make_module_like(nn.LSTM, nn.GRU(7, 20, 2))
    config = FlashRNNConfig(backend, "lstm", output_shape="STBHD", **flashrnn.KERNELS[backend][1])
    x = torch.randn(5, 3, 7)
    output, (h_n, _) = lstm(x)
    torch.testing.assert_close(flashrnn.bind(compute_flashrnn, config, lstm, x)(x), (output, h_n))


def test_flashrnn_reports_what_it_lacks(monkeypatch):
    def fail_to_compile(*_, **__):
        raise ValueError("No working solution")

    peer = types.SimpleNamespace(FlashRNNConfig=FlashRNNConfig, flashrnn=fail_to_compile)
    monkeypatch.setattr(flashrnn, "import_gpu_peer", lambda *_: peer)
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    gru, x = nn.GRU(4, 4), torch.zeros(1, 1, 4)
    with pytest.raises(Unavailable, match="no nvcc"):
        flashrnn.PROVIDERS["flashrnn"](gru, x)
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", "/cuda")
    with pytest.raises(Unavailable, match="has no alternating kernel of these sizes: No working"):
        flashrnn.PROVIDERS["flashrnn"](gru, x)
    with pytest.raises(Unavailable, match="in TF32, but the case has IEEE"):
        flashrnn.PROVIDERS["flashrnn.lstm"](gru, x)


# --- Flax


class Cell:
    """A stand-in for `nnx.GRUCell`. Its recurrent product has no bias unless the provider sets one."""

    def __init__(self, inputs, hidden, recurrent_kernel_init, rngs):
        self.dense_i, self.dense_h = Dense(use_bias=True), Dense(use_bias=False)

    def __call__(self, h, x):
        (i_r, i_z, i_n), (h_r, h_z, h_n) = (product.chunk(3, -1) for product in (self.dense_i(x), self.dense_h(h)))
        r, z = torch.sigmoid(i_r + h_r), torch.sigmoid(i_z + h_z)
        h = (1 - z) * torch.tanh(i_n + r * h_n) + z * h
        return h, h


class Dense:
    """A stand-in for `nnx.Linear`."""

    def __init__(self, use_bias):
        self.use_bias, self.bias = use_bias, None

    def __call__(self, x):
        assert self.use_bias == (self.bias is not None)
        return x @ self.kernel + (self.bias if self.use_bias else 0)


class Jax:
    """A stand-in for the module `jax`, with tensors as arrays. ``waits`` is the number of calls that waited."""

    numpy = torch

    def __init__(self):
        self.waits, self.precisions = 0, []
        self.lax = types.SimpleNamespace(scan=self.scan)

    def devices(self, platform):
        if platform != "cpu":
            raise RuntimeError(f"Unknown backend {platform}")

    def jit(self, function):
        return function

    def default_matmul_precision(self, precision):
        @contextlib.contextmanager
        def recorded():
            self.precisions.append(precision)
            yield

        return recorded()

    def scan(self, function, carry, inputs, reverse=False):
        outputs = []
        for x in inputs.flip(0) if reverse else inputs:
            carry, output = function(carry, x)
            outputs.append(output)
        return carry, torch.stack(outputs[::-1] if reverse else outputs)

    def block_until_ready(self, arrays):
        self.waits += 1
        return arrays


@pytest.fixture
def jax(monkeypatch):
    """Plant stand-ins for jax and flax.nnx as modules, and return that for jax."""
    nnx = types.ModuleType("flax.nnx")
    nnx.GRUCell, nnx.Rngs, nnx.Param = Cell, lambda seed: None, lambda array: array
    nnx.initializers = types.SimpleNamespace(zeros=None)
    nnx.split, nnx.merge = lambda cell: (None, cell), lambda graph, cell: cell
    planted = {"jax": Jax(), "flax": types.ModuleType("flax"), "flax.nnx": nnx}
    for name, module in planted.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "as set")
    return planted["jax"]


@LAYERS
@pytest.mark.parametrize("bidirectional", [False, True])
def test_flax_gets_the_weights_and_the_call_waits(layers, bias, bidirectional, jax):
    gru = nn.GRU(7, 20, layers, bias=bias, bidirectional=bidirectional)
    x = torch.randn(5, 3, 7)
    ready = providers.make_ready("flax.scan", gru, x, is_streaming=False)
    torch.testing.assert_close(ready.call(ready.lay_out(x)), gru(x))
    assert (jax.waits, jax.precisions) == (1, ["highest"])
    assert "its own stream" in ready.no_graph_reason


def test_flax_follows_the_precision_and_needs_the_device(jax, tf32):
    assert flax_scan.PROVIDERS["flax.scan"](nn.GRU(4, 4), torch.zeros(1, 1, 4)).config == "precision tensorfloat32"
    with pytest.raises(Unavailable, match=r"JAX finds no meta device: pip install jax\[cuda12\]"):
        flax_scan.PROVIDERS["flax.scan"](nn.GRU(4, 4), torch.zeros(1, 1, 4, device="meta"))


# --- torch.compile


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # Inductor imports it
def test_one_compiled_step_serves_all_lengths(plain_inductor):
    gru = nn.GRU(3, 5, 2).eval()
    ready = compiled.PROVIDERS["torch.compile.cells"](gru, torch.randn(2, 3, 3))
    assert (ready.kernel, ready.config) == ("inductor", "one step compiled")
    with torch.compiler.set_stance("fail_on_recompile"):
        for steps in (1, 2, 7):
            x = torch.randn(steps, 3, 3)
            torch.testing.assert_close(ready.call(x), gru(x))


def test_dynamo_keeps_compiled_code_of_every_case(monkeypatch):
    monkeypatch.setattr(compiled.torch, "compile", partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    cases = [nn.GRU(3, hidden).eval() for hidden in range(1, 11)]  # more than Dynamo's limit of 8
    x = torch.randn(1, 2, 3)
    ready = [(gru, prepare(gru, x).call) for gru in cases for prepare in compiled.PROVIDERS.values()]
    with torch.compiler.set_stance("fail_on_recompile"):
        for gru, call in ready:
            torch.testing.assert_close(call(x), gru(x))


# --- Providers of other modules


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """Put a user's module on the path, and return its name. It has three providers and a number.

    The providers return a plain call, a `Ready` and wrong results. A second module, "broken_peers", raises on import.
    """
    (tmp_path / "brought_peers.py").write_text(
        "from perf.providers.interface import Ready\n"
        "plain = lambda gru, x: lambda x: gru(x)\n"
        "ready = lambda gru, x: Ready(gru, kernel='mine')\n"
        "wrong = lambda gru, x: lambda x: [1 + part for part in gru(x)]\n"
        "number = 3\n"
    )
    (tmp_path / "broken_peers.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "brought_peers"
    sys.modules.pop("brought_peers", None)


@pytest.mark.usefixtures("few_calls")
def test_provider_of_another_module_is_judged_and_timed_under_its_name(user_module):
    names = [f"{user_module}:{name}" for name in ("plain", "ready", "wrong")]
    providers.require_known([*names, "triton_gru", "torchrl"])
    rows = measure_rows(names)
    assert list(rows) == ["torch.nn.GRU", *names]
    assert all(rows[name].n > 0 and rows[name].max_abs_err < 1e-5 for name in names[:2])
    assert [rows[name].kernel for name in names] == ["", "mine", ""]
    assert rows[names[2]].status == "wrong"
    with pytest.raises(Unavailable, match="called here only with sequences"):
        providers.make_ready(names[0], nn.GRU(4, 4), torch.zeros(1, 1, 4), is_streaming=True)


def test_ready_of_another_module_is_used_unchanged(monkeypatch):
    ready = Ready(lambda x: x, no_graph_reason="a reason")
    monkeypatch.setitem(sys.modules, "elsewhere", types.SimpleNamespace(peer=lambda gru, x: ready))
    assert providers.make_ready("elsewhere:peer", nn.GRU(4, 4), torch.zeros(1, 1, 4), is_streaming=False) is ready


def batch_first_gru(wx, recurrent, bias, initial, cell):
    """Compute what FlashRNN2's recurrence does, with its arguments in its layouts.

    ``wx`` is [B, T, G, H, D], ``recurrent`` [G, H, D, P], ``bias`` [G, H, D], and ``initial`` [states, B, T, H, D].
    """
    config = FlashRNNConfig("cuda", cell, **dict(zip(SHAPES, INTERNAL["cuda"])))
    arranged = wx.permute(1, 0, 3, 2, 4), recurrent.permute(1, 3, 0, 2), bias.transpose(0, 1), initial.transpose(1, 2)
    results = compute_flashrnn(*(tensor.contiguous() for tensor in arranged), config)
    return [result.transpose(1, 2) for result in results]


def xma_gru(input, weight, forget_input, forget_weight, reset_input, reset_weight):
    """Compute what XMA's function of a GRU does, which resets before the product.

    Inputs are [B, steps, heads, H], and weights [heads, H, H].
    """
    h, outputs = torch.zeros_like(input[:, 0]), []
    for x, x_f, x_r in zip(*(tensor.unbind(1) for tensor in (input, forget_input, reset_input))):
        f, r = (
            torch.sigmoid(torch.einsum("bnh,nhk->bnk", h, w) + x)
            for w, x in ((forget_weight, x_f), (reset_weight, x_r))
        )
        h = f * h + (1 - f) * torch.tanh(torch.einsum("bnh,nhk->bnk", h * r, weight) + x)
        outputs.append(h)
    return torch.stack(outputs, 1), h


def flag_gems_gru(
    input, hx, params, has_biases=True, num_layers=1, dropout=0.0, train=False, bidirectional=False, batch_first=False
):
    """Compute what the function `gru` of FlagGems does."""
    return torch.gru(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)


@LAYERS
def test_examples_of_the_readme_agree(layers, bias, monkeypatch):
    planted = {
        "flag_gems": {"gru": flag_gems_gru}, "xma.layers.gru": {"gru": xma_gru},
        "flashrnn.flashrnn2.triton_basic": {"recurrence": batch_first_gru},
    }  # fmt: skip
    for name, functions in planted.items():
        for parent in itertools.accumulate(name.split("."), "{}.{}".format):
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        vars(sys.modules[name]).update(functions)
    readme = pathlib.Path(providers.__file__).parents[1] / "README.md"
    examples = {}
    exec(readme.read_text().split("```python\n")[1].split("```")[0], examples)
    for name in ("flag_gems", "flashrnn2", "xma"):
        gru = triton_gru.GRU(7, 20, layers, bias=bias, reset_after=name != "xma", backend="reference").eval()
        x = torch.randn(5, 3, 7)
        torch.testing.assert_close(examples[name](gru, x)(x), gru(x))


@pytest.mark.parametrize(
    "name, message",
    [
        ("torch.compil", r"no provider 'torch.compil': give torch.compile or .* as module:callable"),
        ("zzzzzz", r"no provider 'zzzzzz': give one of torch.nn.GRU, triton_gru, "),
        ("no_such_module:peer", r"'no_such_module:peer' cannot be imported: ModuleNotFoundError: No module named"),
        ("brought_peers:absent", r"cannot be imported: AttributeError: .* no attribute 'absent'"),
        ("broken_peers:peer", r"cannot be imported: ZeroDivisionError: division by zero"),
        ("brought_peers:number", r"'brought_peers:number' must be callable with a GRU and an input, got 3"),
        ("brought_peers:", r"cannot be imported: AttributeError"),
    ],
)
def test_invalid_provider_names_are_refused(name, message, user_module):
    with pytest.raises(ValueError, match=message):
        providers.require_known(["triton_gru", name])
