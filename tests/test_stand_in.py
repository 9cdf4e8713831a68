"""An accelerated module is torch's to whoever asks, and what leaves the process needs this package nowhere."""

import copy
import io
import pickle
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import triton_gru
from triton_gru.plan import device as devices

from .planted import T4

KINDS = pytest.mark.parametrize("theirs, ours", [(nn.GRU, triton_gru.GRU), (nn.GRUCell, triton_gru.GRUCell)])


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(4, 6, 2, bidirectional=True)

    def forward(self, x):
        return self.gru(x)[0]


class OneStep(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(4, 6)

    def forward(self, x):
        return self.cell(x[0])


MODELS = pytest.mark.parametrize("make", [Whole, OneStep])


def accelerated(make):
    """Return a model, an input, and what the model has given before it was accelerated."""
    model, x = make().eval(), torch.randn(5, 2, 4)
    with torch.no_grad():
        expected = model(x)
    return triton_gru.accelerate(model), x, expected


# ---- whose class it is


@KINDS
def test_isinstance(theirs, ours):
    module = theirs(4, 6)
    for each in (triton_gru.accelerate(module), ours(4, 6)):
        assert isinstance(each, theirs)
        assert isinstance(each, ours)
        assert not isinstance(each, nn.LSTM)
        assert type(each) is ours
        assert issubclass(each.__class__, theirs)
        assert each.__class__.__name__ == theirs.__name__
    assert type(triton_gru.restore(module)) is theirs
    assert not isinstance(module, ours)


@pytest.mark.parametrize(
    "module", [triton_gru.GRU(4, 6, reset_after=False), triton_gru.GRU(4, 6, reverse=True)], ids=["before", "reverse"]
)
def test_what_torch_does_not_compute_is_no_gru_of_torchs(module):
    assert not isinstance(module, nn.GRU)
    assert module.__class__ is triton_gru.GRU


@KINDS
def test_a_subclass_is_torchs_too(theirs, ours):
    class Own(ours):
        pass

    assert isinstance(Own(4, 6), theirs)
    assert issubclass(Own(4, 6).__class__, Own)


def test_init_functions_find_their_modules():
    def init(module):
        if isinstance(module, nn.GRU | nn.GRUCell):
            for parameter in module.parameters():
                nn.init.constant_(parameter, 0.5)

    model = triton_gru.accelerate(nn.ModuleList([nn.GRU(4, 6), nn.GRUCell(4, 6)])).apply(init)
    assert all((parameter == 0.5).all() for parameter in model.parameters())


class Asks(nn.Module):
    """As TorchRL's GRUModule does in its forward."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(4, 6)

    def forward(self, x):
        return self.gru(x)[0] if isinstance(self.gru, nn.GRU) else 2 * x


@pytest.mark.parametrize("gpu", [T4, None])
def test_isinstance_in_a_compiled_forward(gpu, monkeypatch):
    """False in a graph with the operator, as triton_gru/SUPPORT.md says: torch.compile looks into no `nn.GRU`."""
    monkeypatch.setattr(devices, "emulated_device", gpu)
    model, x, expected = accelerated(Asks)
    torch._dynamo.reset()
    with torch.no_grad():
        run = torch.compile(model, backend="eager")
        for _ in range(2):
            torch.testing.assert_close(run(x), 2 * x if gpu else expected)
            torch.testing.assert_close(model(x), expected)


def test_isinstance_between_compiled_frames():
    """Where it is eager code that asks, but one that torch.compile watches."""
    model, _, _ = accelerated(Asks)

    @torch.compile(backend="eager")
    def ask(x):
        x = x + 1
        torch._dynamo.graph_break()
        return x, [isinstance(module, nn.GRU) for module in asked()]

    @torch._dynamo.disable(recursive=False)
    def asked():
        return [model.gru] if isinstance(model.gru, nn.GRU) else []

    for _ in range(3):
        torch._dynamo.reset()
        assert len(asked()) == len(ask(torch.zeros(2))[1]) == 1


def test_tables_of_types_pass_over_an_accelerated_module():
    model = nn.Sequential(triton_gru.accelerate(nn.GRU(4, 6)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's of itself
        assert type(torch.ao.quantization.quantize_dynamic(model, {nn.GRU})[0]) is triton_gru.GRU
        restored = triton_gru.restore(model)
        assert "quantized" in type(torch.ao.quantization.quantize_dynamic(restored, {nn.GRU})[0]).__module__


@pytest.mark.parametrize("options", [{}, {"reset_after": False}], ids=["after", "before"])
def test_parametrizations_come_and_go(options, device, launched):
    gru = triton_gru.GRU(4, 6, backend="block", device=device, **options).eval()
    x = torch.randn(3, 2, 4, device=device)
    with torch.no_grad():
        expected = gru(x)[0]
        parametrizations.weight_norm(gru, "weight_hh_l0")
        launched.clear()
        actual = gru(x)[0]
        assert launched.has_only("block")
        torch.testing.assert_close(actual, expected)
        assert type(copy.deepcopy(gru)) is type(gru)
        parametrize.remove_parametrizations(gru, "weight_hh_l0")
        assert type(gru) is triton_gru.GRU
        torch.testing.assert_close(gru(x)[0], expected)


# ---- copies and pickles


@KINDS
@pytest.mark.parametrize("options", [{}, {"reset_after": False, "backend": "reference"}], ids=["torch's", "own"])
def test_copies_are_of_the_same_kind(theirs, ours, options):
    module = ours(4, 6, **options).eval()
    for copied, shares in ((copy.copy(module), True), (copy.deepcopy(module), False)):
        assert type(copied) is ours
        assert (copied.reset_after, copied.backend, copied.training) == (module.reset_after, module.backend, False)
        for a, b in zip(copied.parameters(), module.parameters(), strict=True):
            assert (a is b) is shares
            assert torch.equal(a, b)
        x = torch.randn(3, 4)
        torch.testing.assert_close(copied(x), module(x), rtol=0, atol=0)
    tied = copy.deepcopy(nn.ModuleList([module, module]))
    assert tied[0] is tied[1]


def reloaded(module):
    """Return what receivers get by pickle, and by torch.load as it is by default, which trusts the classes alone."""
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    before = torch.get_rng_state()
    with torch.serialization.safe_globals([nn.GRU, nn.GRUCell, triton_gru.GRU, triton_gru.GRUCell]):
        loaded = torch.load(buffer, weights_only=True)
    assert torch.equal(torch.get_rng_state(), before)
    return [pickle.loads(pickle.dumps(module)), loaded]


@KINDS
def test_what_accelerate_has_changed_is_pickled_as_torchs(theirs, ours):
    module = triton_gru.accelerate(theirs(4, 6).eval())
    x = torch.randn(3, 4)
    for each in reloaded(module):
        assert type(each) is theirs
        torch.testing.assert_close(each(x), module(x))
        assert type(triton_gru.accelerate(each)) is ours
    module.backend = "reference"
    assert [(type(each), each.backend) for each in reloaded(module)] == [(ours, "reference")] * 2


@KINDS
def test_what_is_of_this_package_is_pickled_so(theirs, ours):
    module = ours(4, 6, reset_after=False)
    assert [(type(each), each.reset_after) for each in reloaded(module)] == [(ours, False)] * 2
    assert [type(each) for each in reloaded(ours(4, 6))] == [ours] * 2


def test_a_receiver_needs_nothing_but_torch(tmp_path):
    """Of a pickle, of an exported program and of TorchScript."""
    for make in (Whole, OneStep):
        model, x, expected = accelerated(make)
        folder = tmp_path / make.__name__
        folder.mkdir()
        torch.save((x, expected), folder / "call.pt")
        torch.save(next(model.children()), folder / "pickled.pt")
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's of itself
            torch.export.save(torch.export.export(model, (x,), strict=False), folder / "exported.pt2")
            torch.jit.script(model).save(folder / "scripted.pt")
    receiver = """
        import pathlib, sys, warnings
        sys.modules["triton_gru"] = None  # to import it would raise
        warnings.simplefilter("ignore")
        import torch
        for folder in map(pathlib.Path, ("Whole", "OneStep")):
            x, expected = torch.load(folder / "call.pt")
            pickled = torch.load(folder / "pickled.pt", weights_only=False)
            with torch.no_grad():
                results = [
                    pickled(x)[0] if folder.name == "Whole" else pickled(x[0]),
                    torch.export.load(folder / "exported.pt2").module()(x),
                    torch.jit.load(folder / "scripted.pt")(x),
                ]
            for each in results:
                torch.testing.assert_close(each, expected)
            print(len(results), "right")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(receiver)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "3 right\n" * 2, done.stderr


# ---- exports


@MODELS
@pytest.mark.parametrize("dynamo", [False, True], ids=["trace", "dynamo"])
def test_onnx(make, dynamo, tmp_path):
    import onnxruntime

    model, x, expected = accelerated(make)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's of itself
        torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=dynamo, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    actual = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(actual), expected)


@MODELS
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning", "ignore:.*assigned during export")  # of nn.GRU as well
def test_an_exported_program_has_torchs_operator(make, strict):
    model, x, expected = accelerated(make)
    with torch.no_grad():
        program = torch.export.export(model, (x,), strict=strict)
        assert "gru" in str(program.graph)
        assert "triton_gru" not in str(program.graph)
        torch.testing.assert_close(program.module()(x), expected)
        next(model.children()).backend = "reference"
        assert "triton_gru" in str(torch.export.export(model, (x,), strict=strict).graph)


@MODELS
def test_torchscript(make):
    model, x, expected = accelerated(make)
    parameters = list(model.parameters())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.testing.assert_close(torch.jit.script(model)(x), expected)
    # Which has left torch's module in the model, with the same Parameters: the same call accelerates it again.
    assert all(a is b for a, b in zip(triton_gru.accelerate(model).parameters(), parameters, strict=True))
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("own", [{"reset_after": False}, {"reverse": True}], ids=str)
def test_torchscript_of_what_torch_does_not_compute(own):
    name, value = next(iter(own.items()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with pytest.raises(RuntimeError, match=f"which has no {name}={value}: leave the module out"):
            torch.jit.script(nn.Sequential(triton_gru.GRU(4, 6, **own)))


@pytest.mark.parametrize("backend", ["auto", "block"])
def test_fx_takes_a_call_whole(backend, device, launched):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleDict({"gru": nn.GRU(4, 6, batch_first=True), "cell": nn.GRUCell(6, 6)})

        def forward(self, x, lengths=None):
            more = {} if backend == "auto" else {"lengths": lengths}
            output, h_n = self.layers["gru"](x, **more)
            return self.layers["cell"](output[:, -1], h_n[-1])

    model = triton_gru.accelerate(Model().to(device).eval())
    for module in model.layers.values():
        module.backend = backend
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["layers.gru", "layers.cell"]
    call = torch.randn(2, 5, 4, device=device), torch.tensor([5, 3], device=device)
    with torch.no_grad():
        expected = model(*call)
        launched.clear()
        torch.testing.assert_close(traced(*call), expected, rtol=0, atol=0)
    if backend == "block":
        assert launched.has_only("block")


# ---- what it costs on a CPU


def python_calls(function, *arguments) -> int:
    """Return how many functions written in Python a call runs."""
    calls = []
    sys.setprofile(lambda frame, event, _: calls.append(frame) if event == "call" else None)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return len(calls)


@pytest.mark.parametrize("training", [False, True])
def test_an_accelerated_cell_is_two_calls_more_where_there_are_no_kernels(training, monkeypatch):
    monkeypatch.setattr(devices, "emulated_device", None)
    theirs = nn.GRUCell(4, 6).train(training)
    ours = triton_gru.accelerate(copy.deepcopy(theirs))
    call = torch.randn(2, 4), torch.randn(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(ours(*call), theirs(*call), rtol=0, atol=0)
        assert python_calls(ours, *call) == python_calls(theirs, *call) + 2
