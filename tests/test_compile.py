"""torch.compile, torch.export, AOTInductor and dispatch modes see one operator, which computes as an eager call."""

import warnings

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import triton_gru
from triton_gru.plan import device as devices

from .calls import make_gru
from .pairwise import pairwise
from .test_errors import WRONG_CALLS
from .twins import make_twins

# Tests of a kernel use the fixture `kernels_on_cpu` too. It runs later than `old_gpu_on_cpu`, and overrides it.
pytestmark = pytest.mark.usefixtures("old_gpu_on_cpu")
EXACTLY = {"rtol": 0, "atol": 0}
# torch.export triggers this warning itself.
quiet = pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning")


@pytest.fixture(autouse=True)
def _nothing_compiled():
    """Clear torch.compile's caches before each test."""
    torch._dynamo.reset()


def compile_whole(module, backend="aot_eager"):
    """Return the module compiled without graph breaks, and the backend that collects its graphs."""
    graphs = CompileCounterWithBackend(backend)
    return torch.compile(module, fullgraph=True, backend=graphs), graphs


def list_grus(graph) -> list[str]:
    """Return the targets of a graph's nodes that compute a GRU or a cell, of torch or ours."""
    return [str(node.target) for node in graph.nodes if node.op == "call_function" and "gru" in str(node.target)]


def assert_one_operator(graphs, compilations=1):
    """Assert that torch.compile made ``compilations`` graphs, each with one operator of ours and no other GRU."""
    assert [list_grus(traced.graph) for traced in graphs.graphs] == [["triton_gru.gru"]] * compilations


# Options of the module, and the names of its arguments besides the input.
CALLS = {
    "dense": ({}, ()),
    "hx": ({"num_layers": 2, "bidirectional": True, "batch_first": True}, ("hx",)),
    "lengths": ({"num_layers": 2, "bidirectional": True, "bias": False}, ("lengths",)),
    "hx, lengths, resets": ({"num_layers": 2, "batch_first": True}, ("hx", "lengths", "resets")),
    "reset before": ({"bidirectional": True, "reset_after": False}, ("hx", "lengths")),
    "reverse": ({"reverse": True, "num_layers": 2}, ("hx", "lengths")),
}


def make_arguments(gru, given, steps=3, batch=2):
    """Return the input and the arguments named in ``given``, by their names, for a GRU of 4 features and 5 units."""
    outer, inner = (batch, steps) if gru.batch_first else (steps, batch)
    states = gru.num_layers * (2 if gru.bidirectional else 1)
    arguments = {
        "input": torch.randn(outer, inner, 4),
        "hx": torch.randn(states, batch, 5),
        "lengths": torch.arange(steps, steps - batch, -1),
        "resets": torch.arange(outer * inner).view(outer, inner) % 3 == 1,
    }
    return {name: arguments[name] for name in ("input", *given)}


# ---- torch.compile


@pytest.mark.parametrize(
    "backend, name",
    [
        *(("auto", name) for name in CALLS),
        *(("block", name) for name in CALLS),
        ("grid", "dense"),
        ("step", "lengths"),
    ],
)
def test_compiles_to_one_operator(backend, name, gpu_of_backend, launched):
    options, given = CALLS[name]
    gru = triton_gru.GRU(4, 5, **options, backend=backend).eval()
    call = make_arguments(gru, given)
    run, graphs = compile_whole(gru)
    with torch.no_grad():
        actual = run(**call)
        assert launched.has_only(backend) if backend != "auto" else not launched
        torch.testing.assert_close(actual, gru(**call), **({} if backend == "auto" else EXACTLY))
    assert_one_operator(graphs)


@pytest.mark.parametrize("backend", ["auto", "step"])
def test_unbatched_input_and_cells_compile_to_one_operator(backend, gpu_of_backend, launched):
    gru = triton_gru.GRU(4, 5, 2, batch_first=True, backend=backend).eval()
    cell = triton_gru.GRUCell(4, 5, bias=False, backend=backend).eval()
    for module, call in (
        (gru, (torch.randn(3, 4), torch.randn(2, 5), None, torch.tensor([False, True, False]))),
        (cell, (torch.randn(4),)),
        (cell, (torch.randn(3, 4), torch.randn(3, 5))),
    ):
        launched.clear()
        torch._dynamo.reset()
        run, graphs = compile_whole(module)
        with torch.no_grad():
            actual = run(*call)
            assert launched.has_only(backend) if backend != "auto" else not launched
            torch.testing.assert_close(actual, module(*call), **EXACTLY)
        assert_one_operator(graphs)


class Model(nn.Module):
    """A linear layer, then an nn.GRU and an nn.GRUCell."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.gru = nn.GRU(4, 5, batch_first=True)
        self.cell = nn.GRUCell(5, 5)

    def forward(self, x):
        output, h_n = self.gru(self.first(x))
        return self.cell(output[:, 0].relu(), h_n[0])


def test_inductor_compiles_an_accelerated_model(plain_inductor):
    model, x = Model().eval(), torch.randn(2, 3, 3)
    expected = model(x)
    run, graphs = compile_whole(triton_gru.accelerate(model), "inductor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Inductor warns itself
        actual = run(x)
        actual.sum().backward()
    torch.testing.assert_close(actual, expected)
    # Autograd records the cell, so the graph has the operator of nn.GRUCell.
    assert [list_grus(traced.graph) for traced in graphs.graphs] == [["triton_gru.gru", str(torch.gru_cell)]]
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    expected.sum().backward()
    torch.testing.assert_close(gradients, [parameter.grad for parameter in model.parameters()])


def test_other_sizes_and_weights_reuse_graphs():
    gru = triton_gru.GRU(4, 5, 2, bidirectional=True).eval()
    run, graphs = compile_whole(gru)
    with torch.no_grad():
        for steps in (3, 7, 5):
            for batch in (2, 4, 3):
                call = make_arguments(gru, ("lengths",), steps, batch)
                torch.testing.assert_close(run(**call), gru(**call), **EXACTLY)
        assert graphs.frame_count <= 3  # torch.compile makes a size dynamic once it has changed
        assert_one_operator(graphs, graphs.frame_count)
        output_before, compilations = run(**call)[0], graphs.frame_count
        gru.weight_hh_l0.mul_(2)
        torch.testing.assert_close(run(**call), gru(**call), **EXACTLY)
        assert not torch.equal(run(**call)[0], output_before)
        assert graphs.frame_count == compilations


def test_packed_input_breaks_the_graph(kernels_on_cpu, launched):
    gru = make_gru(4, 5, "fp32", "cpu")

    def forward(x, lengths):
        packed = pack_padded_sequence(2 * x, lengths, enforce_sorted=False)
        return pad_packed_sequence(gru(packed)[0])[0] + 1

    call = torch.randn(3, 2, 4), torch.tensor([1, 3])
    graphs = CompileCounterWithBackend("eager")
    with torch.no_grad():
        actual = torch.compile(forward, backend=graphs)(*call)
        assert launched.has_only("block") and graphs.frame_count > 1
        torch.testing.assert_close(actual, forward(*call), **EXACTLY)


def test_transforms_see_nn_gru():
    gru = triton_gru.GRU(4, 5).eval().requires_grad_(False)
    gradient = torch.func.grad(lambda x: gru(x)[0].square().sum())
    run, graphs = compile_whole(gradient, "eager")
    x = torch.randn(3, 2, 4)
    torch.testing.assert_close(run(x), gradient(x))
    assert "triton_gru" not in str(graphs.graphs[0].graph)


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_wrong_calls_raise_the_eager_error(name, launched):
    gru = triton_gru.GRU(4, 5, 2, backend="block").eval()
    assert_raises_eager_error(gru, WRONG_CALLS[name])
    assert not launched


@pytest.mark.parametrize(
    "arguments",
    [(None, torch.ones(2)), (None, torch.ones(3, dtype=torch.int)), (None, None, torch.ones(2, 2, dtype=torch.bool))],
)
def test_wrong_lengths_and_resets_raise_the_eager_error(arguments):
    assert_raises_eager_error(triton_gru.GRU(4, 5).eval(), (torch.randn(3, 2, 4), *arguments))


def test_wrong_cell_calls_raise_the_eager_error():
    with torch.no_grad():  # if autograd recorded, nn.GRUCell would serve the call
        assert_raises_eager_error(triton_gru.GRUCell(4, 5).eval(), (torch.randn(3, 5),))


def assert_raises_eager_error(module, call):
    """Assert that a compiled call raises the eager error. With ``fullgraph=True`` torch wraps it."""
    with pytest.raises(Exception) as expected:
        module(*call)
    with pytest.raises(type(expected.value)) as raised:
        torch.compile(module, backend="eager")(*call)
    assert str(raised.value) == str(expected.value)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported) as raised:
        torch.compile(module, backend="eager", fullgraph=True)(*call)
    assert str(expected.value) in str(raised.value)


# ---- training and gradients


def compute_gradients(results, module, call):
    """Compute the gradients of the sum of all squared results, and reset them to None in the tensors.

    Return the gradients of those arguments that require them, then of all parameters.
    """
    sum(result.square().sum() for result in results).backward()
    variables = [*(t for t in call.values() if t.is_leaf and t.requires_grad), *module.parameters()]
    grads = [variable.grad for variable in variables]
    for variable in variables:
        variable.grad = None
    return grads


@pytest.mark.parametrize("name", CALLS)
def test_gradients_of_calls_that_no_kernel_serves(name):
    options, given = CALLS[name]
    gru = triton_gru.GRU(4, 5, **options).eval()
    call = {key: t.requires_grad_() if t.is_floating_point() else t for key, t in make_arguments(gru, given).items()}
    run, graphs = compile_whole(gru)
    actual = compute_gradients(run(**call), gru, call)
    assert all(gradient.abs().sum() > 0 for gradient in actual)
    torch.testing.assert_close(actual, compute_gradients(gru(**call), gru, call))
    assert_one_operator(graphs)


@pytest.mark.parametrize("index", [0, 1])
def test_gradients_of_one_result(index):
    gru = triton_gru.GRU(4, 5).eval()
    call = make_arguments(gru, ())
    run, _ = compile_whole(gru)
    actual = compute_gradients(run(**call)[index : index + 1], gru, call)
    torch.testing.assert_close(actual, compute_gradients(gru(**call)[index : index + 1], gru, call))


def test_backward_through_a_kernel_raises(kernels_on_cpu, launched):
    gru = make_gru(4, 5, "fp32", "cpu")
    run, graphs = compile_whole(gru)
    x = torch.randn(3, 2, 4)
    output, _ = run(x)
    assert launched.has_only("block")
    assert_one_operator(graphs)
    torch.testing.assert_close(output, gru(x)[0], **EXACTLY)
    with pytest.raises(RuntimeError, match="cudnn RNN backward can only be called in training mode"):
        output.sum().backward()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_bfloat16_goes_to_kernels_unless_autograd_records_it(mode, kernels_on_cpu, launched):
    """nn.GRU has a backward in eval() for bfloat16, and kernels have none. An eager call is served alike."""
    gru = triton_gru.GRU(4, 16, dtype=torch.bfloat16).eval()
    call = {"input": torch.randn(40, 2, 4).bfloat16()}
    run, graphs = compile_whole(gru)
    with mode():
        actual, expected = run(**call), gru(**call)
    torch.testing.assert_close(actual, expected, **EXACTLY)
    assert launched.has_only("block") and launched.scan_count == 2
    launched.clear()
    call["input"].requires_grad_()
    actual = compute_gradients(run(**call), gru, call)
    torch.testing.assert_close(actual, compute_gradients(gru(**call), gru, call))
    assert not launched
    assert_one_operator(graphs, compilations=2)


@pytest.mark.parametrize("given", [(), ("lengths",), ("resets",)])
def test_training_compiles_to_one_operator(given, launched):
    gru = triton_gru.GRU(4, 5, 2)
    call = make_arguments(gru, given)
    run, graphs = compile_whole(gru)
    actual = compute_gradients(run(**call), gru, call)
    torch.testing.assert_close(actual, compute_gradients(gru(**call), gru, call))
    assert_one_operator(graphs)
    gru.backend = "block"
    with pytest.raises(RuntimeError, match="backend='block' cannot serve this call: the module is in training mode"):
        run(**call)
    assert not launched


class Tagger(nn.Module):
    """A model that maps each frame to one value, with a GRU of two layers."""

    def __init__(self):
        super().__init__()
        self.gru, self.out = nn.GRU(4, 5, 2, batch_first=True), nn.Linear(5, 1)

    def forward(self, x):
        return self.out(self.gru(x)[0])


def count_traced_nodes(model, steps, fullgraph):
    """Return the number of nodes of each graph that torch.compile and autograd make of a call and its backward.

    Assert that the gradients are those of an eager call.
    """
    node_counts = []

    def note_node_count(graph, _):
        node_counts.append(len(graph.graph.nodes))
        return make_boxed_func(graph)

    torch._dynamo.reset()
    run = torch.compile(
        model, backend=aot_autograd(fw_compiler=note_node_count, bw_compiler=note_node_count), fullgraph=fullgraph
    )
    x = torch.randn(2, steps, 4)
    run(x).square().sum().backward()
    actual = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model(x).square().sum().backward()
    torch.testing.assert_close(actual, [parameter.grad for parameter in model.parameters()])
    model.zero_grad()
    return node_counts


@pytest.mark.parametrize("training", [True, False])
def test_graphs_without_kernels_are_those_of_nn_gru(training, monkeypatch):
    """Graphs have as many nodes as those of nn.GRU, for any number of steps.

    Exception: with ``fullgraph=True`` the graph has the operator.
    """
    monkeypatch.setattr(devices, "emulated_device", None)
    model = Tagger().train(training)
    expected = count_traced_nodes(model, 3, fullgraph=False)
    triton_gru.accelerate(model)
    assert count_traced_nodes(model, 3, fullgraph=False) == count_traced_nodes(model, 60, fullgraph=False) == expected
    assert count_traced_nodes(model, 3, fullgraph=True) == count_traced_nodes(model, 60, fullgraph=True)
    with torch.no_grad():
        run, graphs = compile_whole(model)
        x = torch.randn(2, 3, 4)
        torch.testing.assert_close(run(x), model(x))
        assert_one_operator(graphs)


@pytest.mark.parametrize("training", [True, False])
def test_gru_without_kernels_stays_out_of_graphs(training, monkeypatch):
    """Check that nn.GRU serves the call outside of graphs, as torch.compile leaves nn.GRU to eager code."""
    monkeypatch.setattr(devices, "emulated_device", None)
    gru = triton_gru.accelerate(nn.GRU(4, 5).train(training))
    graphs = CompileCounterWithBackend("aot_eager")
    call = make_arguments(gru, ("hx",))
    run = torch.compile(gru, backend=graphs)
    torch.testing.assert_close(compute_gradients(run(**call), gru, call), compute_gradients(gru(**call), gru, call))
    assert graphs.frame_count == 0


def test_cell_without_kernels_compiles_to_nn_gru_cell(monkeypatch):
    monkeypatch.setattr(devices, "emulated_device", None)
    cell, x = triton_gru.accelerate(nn.GRUCell(4, 5).eval()), torch.randn(2, 4)
    run, graphs = compile_whole(cell)
    with torch.no_grad():
        torch.testing.assert_close(run(x), cell(x))
    assert [list_grus(traced.graph) for traced in graphs.graphs] == [[str(torch.gru_cell)]]


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_dropout_draws_the_numbers_of_the_eager_call(backend):
    """Dropout is drawn between layers and remembered for the backward, as in an eager call with the same seed."""
    gru = triton_gru.GRU(4, 5, 3, dropout=0.5, backend=backend)
    call = make_arguments(gru, ("hx", "resets"))
    outcomes = []
    for run in (compile_whole(gru)[0], gru):
        torch.manual_seed(0)
        results = run(**call)
        outcomes.append((results, compute_gradients(results, gru, call)))
    torch.testing.assert_close(*outcomes)
    with torch.no_grad():
        run, _ = compile_whole(gru)
        assert not torch.equal(run(**call)[0], run(**call)[0])
        gru.eval()
        torch.testing.assert_close(run(**call), gru(**call), **EXACTLY)


# ---- torch.export


class DenseThenLengths(nn.Module):
    """A GRU of dense input, then one with lengths."""

    def __init__(self):
        super().__init__()
        self.dense = triton_gru.GRU(4, 5, 2, bidirectional=True)
        self.with_lengths = triton_gru.GRU(10, 5, batch_first=True)

    def forward(self, x, lengths):
        output, h_n = self.dense(x)
        return *self.with_lengths(output.transpose(0, 1), None, lengths), h_n


# Arguments of `DenseThenLengths`: models are exported with the small call, and run with both.
SMALL_CALL = torch.randn(3, 2, 4), torch.tensor([1, 3])
LARGE_CALL = torch.randn(7, 5, 4), torch.tensor([7, 3, 0, 9, 5])


def export(model, strict=False):
    """Return the exported program of ``model`` for any number of steps and rows."""
    steps, batch = Dim("steps"), Dim("batch")
    sizes = {0: steps, 1: batch}, {0: batch}
    with torch.no_grad():
        return torch.export.export(model, SMALL_CALL, dynamic_shapes=sizes, strict=strict)


@quiet
@pytest.mark.parametrize("strict", [False, True])
def test_exports_for_every_size(strict):
    model = DenseThenLengths().eval()
    program = export(model, strict)
    for version in (program, program.run_decompositions()):
        assert list_grus(version.graph) == ["triton_gru.gru.default"] * 2
        for call in (SMALL_CALL, LARGE_CALL):
            with torch.no_grad():
                torch.testing.assert_close(version.module()(*call), model(*call), **EXACTLY)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # it was exported without autocast
        actual = program.module()(*LARGE_CALL)
    torch.testing.assert_close(actual, model(*LARGE_CALL), **EXACTLY)


@quiet
def test_exported_program_runs_on_a_kernel(kernels_on_cpu, launched):
    model = DenseThenLengths().eval()
    model.dense.backend = model.with_lengths.backend = "block"
    program = export(model)
    assert not launched
    with torch.no_grad():
        actual = program.module()(*LARGE_CALL)
        assert launched.has_only("block")
        torch.testing.assert_close(actual, model(*LARGE_CALL), **EXACTLY)


@quiet
def test_aot_inductor(plain_inductor, tmp_path):
    model = DenseThenLengths().eval()
    program = export(model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Inductor warns itself
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        run = torch._inductor.aoti_load_package(package)
        for call in (SMALL_CALL, LARGE_CALL):
            torch.testing.assert_close(tuple(run(*call)), model(*call))


@quiet
def test_export_raises_the_error_of_the_call():
    with pytest.raises(RuntimeError, match="must be equal to input_size. Expected 4, got 5"):
        torch.export.export(triton_gru.GRU(4, 5).eval(), (torch.randn(3, 2, 5),), strict=False)


# ---- the operator


def make_operands(with_hx, bias, sequence_option, directions, batch_first, reset_after, requires_grad, backend):
    """Return the operands of our operator: tensors, then the options.

    ``sequence_option`` is "", "lengths" or "resets". There are no resets with a reverse direction: it takes none.
    """
    bidirectional, reverse = directions == "both", directions == "reverse"
    gru = triton_gru.GRU(4, 5, 2, bias=bias, bidirectional=bidirectional, batch_first=batch_first).requires_grad_(
        requires_grad
    )
    given = ["hx"] * with_hx + [sequence_option] * (
        sequence_option != "" and not (sequence_option == "resets" and directions != "forward")
    )
    call = make_arguments(gru, given)
    for tensor in call.values():
        tensor.requires_grad_(requires_grad and tensor.is_floating_point())
    input, hx, lengths, resets = map(call.get, ("input", "hx", "lengths", "resets"))
    options = (bias, bidirectional, batch_first, reverse, reset_after, backend, False)
    return input, hx, list(gru.parameters()), lengths, resets, requires_grad, *options


BOOLS = True, False
SEQUENCE_OPTIONS = "", "lengths", "resets"
DIRECTIONS = "forward", "reverse", "both"


@pytest.mark.parametrize(
    "row", pairwise(BOOLS, BOOLS, SEQUENCE_OPTIONS, DIRECTIONS, BOOLS, BOOLS, BOOLS, ("auto", "reference"))
)
def test_operators_pass_opcheck(row):
    torch.library.opcheck(torch.ops.triton_gru.gru.default, make_operands(*row))
    operands = make_operands(*row[:-2], False, row[-1])
    grads = map(torch.randn_like, torch.ops.triton_gru.gru(*operands))
    torch.library.opcheck(torch.ops.triton_gru.gru_backward.default, (*grads, *operands))


@pytest.mark.parametrize("row", pairwise(BOOLS, BOOLS, SEQUENCE_OPTIONS, DIRECTIONS, BOOLS, BOOLS))
def test_operator_on_a_kernel_passes_opcheck(row, kernels_on_cpu, launched):
    torch.library.opcheck(torch.ops.triton_gru.gru.default, make_operands(*row, False, "block"))
    assert launched.has_only("block")


@pytest.mark.parametrize("row", pairwise(BOOLS, BOOLS, BOOLS, BOOLS))
def test_operator_without_kernels_equals_nn_gru(row, monkeypatch):
    monkeypatch.setattr(devices, "emulated_device", None)
    bias, bidirectional, batch_first, with_hx = row
    theirs = nn.GRU(4, 5, 2, bias, batch_first, bidirectional=bidirectional).requires_grad_(False)
    call = make_arguments(theirs, ("hx",) * with_hx)
    operands = call["input"], call.get("hx"), list(theirs.parameters()), None, None
    actual = torch.ops.triton_gru.gru(*operands, False, bias, bidirectional, batch_first, False, True, "auto", False)
    torch.testing.assert_close(actual, theirs(*call.values()), **EXACTLY)


@quiet
@pytest.mark.parametrize("batch_first", BOOLS)
@pytest.mark.parametrize("sequence_option", SEQUENCE_OPTIONS)
def test_fake_tensors_need_no_plan(batch_first, sequence_option, monkeypatch, launched):
    """Fake tensors on "cuda" need no GPU, in FakeTensorMode and in torch.export."""
    for method in ("RNNBase.reset_parameters", "RNNBase.flatten_parameters", "RNNCellBase.reset_parameters"):
        monkeypatch.setattr(f"torch.nn.{method}", lambda self: None)
    monkeypatch.delattr(triton_gru.launch.operator, "choose")
    monkeypatch.delattr(triton_gru.launch.operator, "find_device")
    monkeypatch.delattr(triton_gru.launch.route, "choose")
    options = {"device": "cuda", "dtype": torch.float16}
    with torch.no_grad(), FakeTensorMode():
        gru = triton_gru.GRU(
            4, 5, 2, batch_first=batch_first, bidirectional=sequence_option != "resets", **options
        ).eval()
        x = torch.empty((2, 3, 4) if batch_first else (3, 2, 4), **options)
        sequence_arguments = {
            "": {},
            "lengths": {"lengths": torch.empty(2, dtype=torch.int, device="cuda")},
            "resets": {"resets": torch.empty(x.shape[:2], dtype=torch.bool, device="cuda")},
        }
        call = {"input": x, **sequence_arguments[sequence_option]}
        fake_results = gru(**call)
        fake_h = triton_gru.GRUCell(4, 5, **options).eval()(torch.empty(3, 4, **options))
    with torch.no_grad():
        program = torch.export.export(gru, (), call, strict=False)
    assert list_grus(program.graph) == ["triton_gru.gru.default"]
    (node,) = (node for node in program.graph.nodes if str(node.target) == "triton_gru.gru.default")
    directions = 1 if sequence_option == "resets" else 2
    for output, h_n in (fake_results, node.meta["val"]):
        assert output.shape == (*x.shape[:2], 5 * directions)
        assert h_n.shape == (2 * directions, 2, 5)
    assert fake_h.shape == (3, 5)
    for tensor in (*fake_results, *node.meta["val"], fake_h):
        assert (tensor.device.type, tensor.dtype) == ("cuda", torch.float16)
        assert tensor.is_contiguous()
    assert not launched


@pytest.mark.parametrize("cell", BOOLS)
def test_autocast(cell, kernels_on_cpu, launched):
    module = (triton_gru.GRUCell if cell else triton_gru.GRU)(4, 5, backend="step").eval()
    x = torch.randn(2, 4) if cell else torch.randn(3, 2, 4)
    run, graphs = compile_whole(module)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        actual, expected = run(x), module(x)
    for compiled, eager in zip(*((result,) if cell else result for result in (actual, expected))):
        assert compiled.dtype == torch.bfloat16
        assert torch.equal(compiled, eager)
    assert launched.has_only("step")
    assert_one_operator(graphs)


# ---- dispatch modes


class Recorder(TorchDispatchMode):
    """A dispatch mode that notes the name of each operator that it sees."""

    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators.append(str(func))
        return func(*args, **(kwargs or {}))


def test_dispatch_modes_see_the_operator(kernels_on_cpu, launched):
    gru = make_gru(4, 5, "fp32", "cpu", batch_first=True)
    cell = triton_gru.GRUCell(4, 5, backend="step").eval()
    x = torch.randn(2, 3, 4)
    with torch.no_grad():
        expected = gru(x), cell(x[0])
        launched.clear()
        with FlopCounterMode(display=False), Recorder() as recorder:
            actual = gru(x), cell(x[0])
    torch.testing.assert_close(actual, expected, **EXACTLY)
    assert recorder.operators.count("triton_gru.gru.default") == 2
    assert launched.scan_count == 2


def test_gradients_in_a_dispatch_mode():
    gru = triton_gru.GRU(4, 5).eval()
    call = make_arguments(gru, ("lengths",))
    with Recorder() as recorder:
        actual = compute_gradients(gru(**call), gru, call)
    assert {"triton_gru.gru.default", "triton_gru.gru_backward.default"} <= set(recorder.operators)
    torch.testing.assert_close(actual, compute_gradients(gru(**call), gru, call))
    with Recorder():
        output, _ = gru(**call)
        (gradient,) = torch.autograd.grad(output.square().sum(), gru.weight_hh_l0, create_graph=True)
        with pytest.raises(RuntimeError, match="can be differentiated once"):
            gradient.sum().backward()


def test_dispatch_mode_sees_nn_gru_without_kernels(monkeypatch):
    monkeypatch.setattr(triton_gru.launch.route, "find_device", lambda device: None)
    seen_operators = []
    for module in make_twins(4, 5, 2):
        with torch.no_grad(), Recorder() as recorder:
            module.eval()(SMALL_CALL[0])
        seen_operators.append(recorder.operators)
    assert seen_operators[0] == seen_operators[1]
    assert seen_operators[0]
