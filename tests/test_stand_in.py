"""Accelerated modules pass for `nn.GRU`, and their pickles and exports load without this package."""

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


class Sequence(nn.Module):
    """A model of one GRU that returns the GRU's output."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(4, 6, 2, bidirectional=True)

    def forward(self, x):
        return self.gru(x)[0]


class OneStep(nn.Module):
    """A model of one cell that returns the state after the first frame."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(4, 6)

    def forward(self, x):
        return self.cell(x[0])


MODELS = pytest.mark.parametrize("make", [Sequence, OneStep])


def make_accelerated(make):
    """Return an accelerated model, an input, and the output before acceleration."""
    model, x = make().eval(), torch.randn(5, 2, 4)
    with torch.no_grad():
        expected = model(x)
    return triton_gru.accelerate(model), x, expected


# ---- classes


@KINDS
def test_isinstance_of_both_classes(theirs, ours):
    module = theirs(4, 6)
    for gru in (triton_gru.accelerate(module), ours(4, 6)):
        assert isinstance(gru, theirs)
        assert isinstance(gru, ours)
        assert not isinstance(gru, nn.LSTM)
        assert type(gru) is ours
        assert issubclass(gru.__class__, theirs)
        assert gru.__class__.__name__ == theirs.__name__
    assert type(triton_gru.restore(module)) is theirs
    assert not isinstance(module, ours)


@pytest.mark.parametrize(
    "module", [triton_gru.GRU(4, 6, reset_after=False), triton_gru.GRU(4, 6, reverse=True)], ids=["before", "reverse"]
)
def test_module_with_options_that_nn_gru_lacks_is_no_instance_of_nn_gru(module):
    assert not isinstance(module, nn.GRU)
    assert module.__class__ is triton_gru.GRU


@KINDS
def test_module_of_a_users_subclass_is_an_instance_of_nn_gru(theirs, ours):
    """Our modules report nn.GRU's class as ``__class__``, but a subclass must still find itself there."""

    class UserClass(ours):
        pass

    assert isinstance(UserClass(4, 6), theirs)
    assert issubclass(UserClass(4, 6).__class__, UserClass)


def test_init_functions_find_accelerated_modules():
    def init(module):
        if isinstance(module, nn.GRU | nn.GRUCell):
            for parameter in module.parameters():
                nn.init.constant_(parameter, 0.5)

    model = triton_gru.accelerate(nn.ModuleList([nn.GRU(4, 6), nn.GRUCell(4, 6)])).apply(init)
    assert all((parameter == 0.5).all() for parameter in model.parameters())


class ChecksClass(nn.Module):
    """A module that checks the class of its GRU in its forward, as TorchRL's GRUModule does."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(4, 6)

    def forward(self, x):
        return self.gru(x)[0] if isinstance(self.gru, nn.GRU) else 2 * x


@pytest.mark.parametrize("gpu", [T4, None])
def test_isinstance_in_a_compiled_forward(gpu, monkeypatch):
    """Check that isinstance is False in a graph with our operator (triton_gru/SUPPORT.md), and True otherwise.

    Without a GPU `nn.GRU` serves the call, so the graph breaks at the module.
    """
    monkeypatch.setattr(devices, "emulated_device", gpu)
    model, x, expected = make_accelerated(ChecksClass)
    torch._dynamo.reset()
    with torch.no_grad():
        run = torch.compile(model, backend="eager")
        for _ in range(2):
            torch.testing.assert_close(run(x), 2 * x if gpu else expected)
            torch.testing.assert_close(model(x), expected)


def test_isinstance_between_compiled_frames():
    """Here eager code calls `isinstance`, between two frames that torch.compile compiles."""
    model, _, _ = make_accelerated(ChecksClass)

    @torch.compile(backend="eager")
    def check_classes(x):
        x = x + 1
        torch._dynamo.graph_break()
        return x, [isinstance(module, nn.GRU) for module in list_checked_modules()]

    @torch._dynamo.disable(recursive=False)
    def list_checked_modules():
        return [model.gru] if isinstance(model.gru, nn.GRU) else []

    for _ in range(3):
        torch._dynamo.reset()
        assert len(list_checked_modules()) == len(check_classes(torch.zeros(2))[1]) == 1


def test_tables_of_types_skip_an_accelerated_module():
    model = nn.Sequential(triton_gru.accelerate(nn.GRU(4, 6)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own code
        assert type(torch.ao.quantization.quantize_dynamic(model, {nn.GRU})[0]) is triton_gru.GRU
        restored = triton_gru.restore(model)
        assert "quantized" in type(torch.ao.quantization.quantize_dynamic(restored, {nn.GRU})[0]).__module__


@pytest.mark.parametrize("options", [{}, {"reset_after": False}], ids=["after", "before"])
def test_parametrizations_are_added_and_removed(options, device, launched):
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
def test_copies_keep_class_and_options(theirs, ours, options):
    module = ours(4, 6, **options).eval()
    for copied, shares_parameters in ((copy.copy(module), True), (copy.deepcopy(module), False)):
        assert type(copied) is ours
        assert (copied.reset_after, copied.backend, copied.training) == (module.reset_after, module.backend, False)
        for copied_parameter, original in zip(copied.parameters(), module.parameters(), strict=True):
            assert (copied_parameter is original) is shares_parameters
            assert torch.equal(copied_parameter, original)
        x = torch.randn(3, 4)
        torch.testing.assert_close(copied(x), module(x), rtol=0, atol=0)
    tied = copy.deepcopy(nn.ModuleList([module, module]))
    assert tied[0] is tied[1]


def reload(module):
    """Return the module after pickle, and after torch.load with ``weights_only=True`` and our classes allowed."""
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    random_state = torch.get_rng_state()
    with torch.serialization.safe_globals([nn.GRU, nn.GRUCell, triton_gru.GRU, triton_gru.GRUCell]):
        loaded = torch.load(buffer, weights_only=True)
    assert torch.equal(torch.get_rng_state(), random_state)
    return [pickle.loads(pickle.dumps(module)), loaded]


@KINDS
def test_accelerated_module_is_pickled_as_nn_gru(theirs, ours):
    module = triton_gru.accelerate(theirs(4, 6).eval())
    x = torch.randn(3, 4)
    for loaded in reload(module):
        assert type(loaded) is theirs
        torch.testing.assert_close(loaded(x), module(x))
        assert type(triton_gru.accelerate(loaded)) is ours
    module.backend = "reference"
    assert [(type(loaded), loaded.backend) for loaded in reload(module)] == [(ours, "reference")] * 2


@KINDS
def test_module_made_as_ours_is_pickled_as_ours(theirs, ours):
    module = ours(4, 6, reset_after=False)
    assert [(type(loaded), loaded.reset_after) for loaded in reload(module)] == [(ours, False)] * 2
    assert [type(loaded) for loaded in reload(ours(4, 6))] == [ours] * 2


def test_receiver_needs_only_torch(tmp_path):
    """The test loads a pickle, an exported program and TorchScript where `triton_gru` cannot be imported."""
    for make in (Sequence, OneStep):
        model, x, expected = make_accelerated(make)
        folder = tmp_path / make.__name__
        folder.mkdir()
        torch.save((x, expected), folder / "call.pt")
        torch.save(next(model.children()), folder / "pickled.pt")
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of its own code
            torch.export.save(torch.export.export(model, (x,), strict=False), folder / "exported.pt2")
            torch.jit.script(model).save(folder / "scripted.pt")
    receiver = """
        import pathlib, sys, warnings
        sys.modules["triton_gru"] = None  # to import it would raise
        warnings.simplefilter("ignore")
        import torch
        for folder in map(pathlib.Path, ("Sequence", "OneStep")):
            x, expected = torch.load(folder / "call.pt")
            pickled = torch.load(folder / "pickled.pt", weights_only=False)
            with torch.no_grad():
                results = [
                    pickled(x)[0] if folder.name == "Sequence" else pickled(x[0]),
                    torch.export.load(folder / "exported.pt2").module()(x),
                    torch.jit.load(folder / "scripted.pt")(x),
                ]
            for result in results:
                torch.testing.assert_close(result, expected)
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

    model, x, expected = make_accelerated(make)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own code
        torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=dynamo, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    actual = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(actual), expected)


@MODELS
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning", "ignore:.*assigned during export")  # as with nn.GRU
def test_exported_program_has_the_operator_of_torch(make, strict):
    """Exception: after ``backend`` is set, it has the operator of this package."""
    model, x, expected = make_accelerated(make)
    with torch.no_grad():
        program = torch.export.export(model, (x,), strict=strict)
        assert "gru" in str(program.graph)
        assert "triton_gru" not in str(program.graph)
        torch.testing.assert_close(program.module()(x), expected)
        next(model.children()).backend = "reference"
        assert "triton_gru" in str(torch.export.export(model, (x,), strict=strict).graph)


@MODELS
def test_torchscript(make):
    model, x, expected = make_accelerated(make)
    parameters = list(model.parameters())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.testing.assert_close(torch.jit.script(model)(x), expected)
    # torch.jit.script leaves `nn.GRU` in the model, with the same Parameters: `accelerate` swaps it again.
    assert all(
        parameter is original
        for parameter, original in zip(triton_gru.accelerate(model).parameters(), parameters, strict=True)
    )
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("option", [{"reset_after": False}, {"reverse": True}], ids=str)
def test_torchscript_refuses_options_that_nn_gru_lacks(option):
    name, value = next(iter(option.items()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with pytest.raises(RuntimeError, match=f"which has no {name}={value}: leave the module out"):
            torch.jit.script(nn.Sequential(triton_gru.GRU(4, 6, **option)))


@pytest.mark.parametrize("backend", ["auto", "block"])
def test_fx_traces_a_call_as_one_node(backend, device, launched):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleDict({"gru": nn.GRU(4, 6, batch_first=True), "cell": nn.GRUCell(6, 6)})

        def forward(self, x, lengths=None):
            # "auto" is called as nn.GRU is, "block" also with an argument that nn.GRU lacks.
            options = {} if backend == "auto" else {"lengths": lengths}
            output, h_n = self.layers["gru"](x, **options)
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


# ---- costs on a CPU


def count_python_calls(function, *arguments) -> int:
    """Return how many functions written in Python a call runs."""
    calls = []
    sys.setprofile(lambda frame, event, _: calls.append(frame) if event == "call" else None)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return len(calls)


@pytest.mark.parametrize("training", [False, True])
def test_accelerated_cell_without_kernels_costs_two_more_calls(training, monkeypatch):
    monkeypatch.setattr(devices, "emulated_device", None)
    theirs = nn.GRUCell(4, 6).train(training)
    ours = triton_gru.accelerate(copy.deepcopy(theirs))
    call = torch.randn(2, 4), torch.randn(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(ours(*call), theirs(*call), rtol=0, atol=0)
        assert count_python_calls(ours, *call) == count_python_calls(theirs, *call) + 2
