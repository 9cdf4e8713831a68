"""GRU nodes of ONNX models convert to GRUs that compute the same as onnxruntime, or onnx's reference, does."""

import ast
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnx", reason="onnx is not installed; scripts/test installs it")
import onnx
from onnx.reference import ReferenceEvaluator

from triton_gru import convert

from .convert_models import SHAPES, assert_agree, make_draw, tensor, use_one_thread
from .convert_onnx_models import add_functions, make_model, make_weights, parse_nodes, run_onnxruntime, to_onnx_layout


@pytest.fixture(autouse=True)
def _one_thread():
    """Run torch with one thread in each test."""
    with use_one_thread():
        yield


# Number of directions.
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


@pytest.mark.parametrize("T, B, I, H", SHAPES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("linear_before_reset", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lengths", [True, False])
def test_node_agrees_with_onnxruntime(T, B, I, H, direction, linear_before_reset, bias, lengths):
    draw, D = make_draw(1), DIRECTIONS[direction]
    feed = {"X": draw(T, B, I), "initial_h": draw(D, B, H)}
    if lengths:
        feed["sequence_lens"] = np.array([T, max(1, T // 2), 1][:B], np.int32)
    proto = make_model(
        make_weights(I, H, D, bias),
        tuple(feed),
        hidden_size=H,
        direction=direction,
        linear_before_reset=linear_before_reset,
    )
    ours = convert.from_onnx(proto)
    assert not ours.batch_first and not ours.training
    output, h_n = ours(tensor(feed["X"]), tensor(feed["initial_h"]), lengths=tensor(feed.get("sequence_lens")))
    for actual, expected in zip(to_onnx_layout(output, h_n), run_onnxruntime(proto, feed)):
        assert_agree(actual, tensor(expected))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("linear_before_reset", [0, 1])
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_node_agrees_with_the_onnx_reference(direction, linear_before_reset, layout, dtype):
    """onnxruntime lacks layout=1 (batch first) and float64. The reference of the package onnx has them."""
    T, B, I, H, D = 5, 2, 3, 4, DIRECTIONS[direction]
    draw = make_draw(1)
    X, h = draw(T, B, I).astype(dtype), draw(D, B, H).astype(dtype)
    weights = {name: array.astype(dtype) for name, array in make_weights(I, H, D).items()}
    options = {"direction": direction, "linear_before_reset": linear_before_reset, "layout": layout}
    proto = make_model(weights, ("X", "initial_h"), **options)
    feed = {"X": X.swapaxes(0, 1), "initial_h": h.swapaxes(0, 1)} if layout else {"X": X, "initial_h": h}
    ours = convert.from_onnx(proto)
    assert ours.batch_first == bool(layout)
    assert ours.weight_hh_l0.dtype == tensor(X).dtype
    for actual, expected in zip(
        to_onnx_layout(*ours(tensor(feed["X"]), tensor(h)), layout), ReferenceEvaluator(proto).run(None, feed)
    ):
        assert_agree(actual, tensor(expected))


def test_float16_is_kept():
    weights = {name: array.astype(np.float16) for name, array in make_weights().items()}
    ours = convert.from_onnx(make_model(weights))
    assert torch.equal(ours.weight_ih_l0[4:8], tensor(weights["W"][0, :4]))  # the gate z


@pytest.mark.parametrize("opset", [7, 14, 22])
@pytest.mark.parametrize("activations", [["Sigmoid", "Tanh"], ["sigmoid", "TANH"]])
def test_explicit_defaults_change_nothing(opset, activations):
    plain = convert.from_onnx(make_model(make_weights()))
    explicit = convert.from_onnx(make_model(make_weights(), opset=opset, activations=activations, direction="forward"))
    assert repr(explicit) == repr(plain) == "triton_gru.GRU(3, 4, reset_after=False)"
    assert torch.equal(explicit.weight_ih_l0, plain.weight_ih_l0)
    # The attribute hidden_size may be absent: the shapes of the weights give it.
    without_hidden_size = make_model(make_weights())
    del without_hidden_size.graph.node[0].attribute[:]
    assert repr(convert.from_onnx(without_hidden_size)) == repr(plain)


# ---- computed weights


W = make_weights()["W"]
# Nodes that compute W, and the constants that they compute it from.
CHAINS = {
    "Identity": parse_nodes("W = Identity(a)", a=W),
    "Constant, Cast": parse_nodes("W = Cast<to=1>(a)", a=W.astype(np.float64)),
    "Transpose": parse_nodes("W = Transpose<perm=[2, 1, 0]>(a)", a=W.T.copy()),
    "Slice, Concat": parse_nodes(
        "n = Constant<value_ints=[4]>()", "two = Constant<value_ints=[2]>()", "m = Mul(n, two)",
        "o = Constant<value_ints=[0]>()", "one = Constant<value_ints=[1]>()", "end = Constant<value_ints=[99]>()",
        "r = Slice(a, o, n, one)", "z = Slice(a, n, m, one)", "h = Slice(a, m, end, one)",
        "W = Concat<axis=1>(z, r, h)",
        a=np.concatenate([W[:, 4:8], W[:, :4], W[:, 8:]], 1),
    ),
    "Split, Unsqueeze, Squeeze": parse_nodes(
        "z, r, h = Split<axis=0, num_outputs=3>(a)", "i = Concat<axis=0>(r, z, h)",
        "axis = Constant<value_ints=[0]>()", "u = Unsqueeze(i, axis)", "v = Unsqueeze(u, axis)", "W = Squeeze(v, axis)",
        a=np.concatenate([W[0, 4:8], W[0, :4], W[0, 8:]]),
    ),
    "Reshape, Gather": parse_nodes(
        "shape = Constant<value_ints=[1, 12, 3]>()", "g = Gather<axis=0>(a, b)", "W = Reshape(g, shape)",
        a=W[0, ::-1].copy(), b=np.arange(12)[::-1].copy(),
    ),
    "Shape": parse_nodes("s = Shape(a)", "W = Reshape(b, s)", a=W, b=W.ravel()),
    "Expand, Tile": parse_nodes(
        "tall = Expand(zero, s)", "wide = Tile(tall, n)", "t = Shape(wide)", "W = Reshape(b, t)",
        b=W.ravel(), zero=np.zeros((1, 1, 1), np.float32), s=np.array([1, 12, 1]), n=np.array([1, 1, 3]),
    ),
    "DequantizeLinear": parse_nodes(
        "W = DequantizeLinear(a, s)", a=np.round(W * 64).astype(np.int8), s=np.float32(1 / 64)
    ),
    "weight norm": parse_nodes("n = ReduceL2(a, axes)", "d = Div(a, n)", "W = Mul(d, g)",
                           a=W, axes=np.array([2]), g=W[:, :, :1]),
    "low rank": parse_nodes("d = MatMul(a, b)", "t = Tanh(d)", "n = Neg(t)", "z = Relu(d)", "W = Where(c, n, z)",
                        a=W[:, :, :2], b=W[:, :2], c=W > 0),
    "Pad": parse_nodes("W = Pad(a, p)", a=W[:, :, 1:], p=np.array([0, 0, 1, 0, 0, 0])),
    "If": parse_nodes(
        "W = If(c) <then_branch = t () => (float[1,12,3] p) { b = Identity(a) p = Exp(b) }, "
        "else_branch = e () => (float[1,12,3] q) { q = Neg(a) }>",
        a=W, c=np.array(True),
    ),
    "sequence": parse_nodes("s = SequenceConstruct(a, b)", "W = ConcatFromSequence<axis=1>(s)", a=W[:, :5], b=W[:, 5:]),
    "deep": parse_nodes(
        "n0 = Identity(a)", *(f"n{i + 1} = Neg(n{i})" for i in range(1500)), "W = Identity(n1500)", a=W
    ),
    # The evaluator has to keep results of nodes. Otherwise it would run 2^40 nodes.
    "shared": parse_nodes(
        "n0 = Identity(a)", *(f"n{i + 1} = Mean(n{i}, n{i})" for i in range(40)), "W = Neg(n40)", a=W
    ),
}  # fmt: skip


def assert_agrees_with_onnxruntime(proto: onnx.ModelProto) -> None:
    """Assert that the output Y of the model's GRU node agrees with onnxruntime's."""
    X = make_draw(1)(5, 2, 3)
    assert_agree(to_onnx_layout(*convert.from_onnx(proto)(tensor(X)))[0], tensor(run_onnxruntime(proto, {"X": X})[0]))


@pytest.mark.parametrize("chain", CHAINS)
def test_weights_computed_from_constants(chain):
    nodes, weights = CHAINS[chain]
    other_weights = {name: array for name, array in make_weights().items() if name != "W"}
    assert_agrees_with_onnxruntime(make_model({**other_weights, **weights}, nodes=nodes))


@pytest.mark.parametrize("opset", [12, 13])
def test_evaluates_operators_of_the_models_opset(opset):
    """The axes of Squeeze were an attribute before opset 13."""
    node = "W = Squeeze<axes=[0]>(a)" if opset == 12 else "W = Squeeze(a, axes)"
    nodes, weights = parse_nodes(node, a=W[None], axes=np.array([0]))
    assert_agrees_with_onnxruntime(make_model({**weights, "R": make_weights()["R"]}, nodes=nodes, opset=opset))


def test_weights_as_inputs_with_defaults():
    proto = make_model(make_weights())
    for weight in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    assert_agrees_with_onnxruntime(proto)


@pytest.mark.parametrize("as_constant_node", [True, False])
@pytest.mark.parametrize("flat_indices", [True, False])
def test_sparse_weights(as_constant_node, flat_indices):
    indices = np.array([[0, 0, 1], [0, 7, 2], [0, 11, 0]])
    if flat_indices:
        indices = np.ravel_multi_index(tuple(indices.T), W.shape)
    values = onnx.numpy_helper.from_array(np.array([3.0, -2.0, 5.0], np.float32), "W")
    sparse = onnx.helper.make_sparse_tensor(values, onnx.numpy_helper.from_array(indices), W.shape)
    nodes = [onnx.helper.make_node("Constant", [], ["W"], sparse_value=sparse)] if as_constant_node else []
    proto = make_model({"R": make_weights()["R"]}, nodes=nodes)
    if not as_constant_node:
        proto.graph.sparse_initializer.append(sparse)
    assert_agrees_with_onnxruntime(proto)


# Nodes that compute W, and the functions that they call.
FUNCTIONS = {
    "with an attribute": (
        ["W = own.half(a)"],
        ["half <by: float = 2.0>(w) => (o) { c = Constant<value_float: float = @by>() o = Div(w, c) }"],
    ),
    "that calls a function": (
        ["W = own.half(a)"],
        ["inner(w) => (o) { o = Tanh(w) }", "half(w) => (o) { i = own.inner(w) o = Neg(i) }"],
    ),
    "named as an operator": (["W = own.Neg(a)"], ["Neg(w) => (o) { o = Exp(w) }"]),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_weights_computed_by_functions(case):
    nodes, texts = FUNCTIONS[case]
    nodes, weights = parse_nodes(*nodes, a=W)
    assert_agrees_with_onnxruntime(
        add_functions(make_model({**weights, "R": make_weights()["R"]}, nodes=nodes), *texts)
    )


def test_function_with_the_name_of_an_operator():
    """The function is in the domain of the operator too, so it replaces the operator."""
    nodes, weights = parse_nodes("W = Neg(a)", a=W)
    proto = make_model({**weights, "R": make_weights()["R"]}, nodes=nodes)
    proto.functions.append(onnx.parser.parse_function('<opset_import: ["": 22]> Neg(w) => (o) { o = Exp(w) }'))
    assert_agree(convert.from_onnx(proto).weight_ih_l0[4:8], np.exp(W[0, :4]))


def test_node_in_a_function():
    proto = make_model(make_weights(bias=False))
    proto.graph.node[0].domain = "own"
    del proto.graph.node[0].input[3:]
    body = "V = Neg(W) Y, H = GRU<hidden_size: int = @hidden_size>(X, V, R)"
    assert_agrees_with_onnxruntime(add_functions(proto, f"GRU <hidden_size>(X, W, R) => (Y, H) {{ {body} }}"))


# The exporter warns itself. It is deprecated, but most existing models were exported by it, and it needs only onnx.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("fold_constants", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_models_exported_by_torch(fold_constants, bidirectional, bias):
    theirs = nn.GRU(3, 4, 2, bidirectional=bidirectional, bias=bias).eval()
    x, file = torch.randn(5, 2, 3), io.BytesIO()
    torch.onnx.export(
        theirs,
        (x,),
        file,
        dynamo=False,
        do_constant_folding=fold_constants,
        input_names=["x"],
        dynamic_axes={"x": [0, 1]},
    )
    proto = onnx.load_from_string(file.getvalue())
    names = [node.name for node in proto.graph.node if node.op_type == "GRU"]
    first_layer, second_layer = (convert.from_onnx(proto, name) for name in names)
    expected, h_n = theirs(x)
    output, h_first = first_layer(x)
    output, h_second = second_layer(output)
    assert_agree(output, expected)
    assert_agree(torch.cat([h_first, h_second]), h_n)


def test_paths_and_external_data(tmp_path):
    proto = make_model(make_weights(I=96, H=25), hidden_size=25)
    expected = convert.from_onnx(proto).state_dict()
    onnx.save(proto, tmp_path / "inside.onnx")
    onnx.save(proto, tmp_path / "outside.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    assert (tmp_path / "weights").stat().st_size > 4 * 25 * 3 * (96 + 25)  # W and R in float32
    for path in (tmp_path / "inside.onnx", str(tmp_path / "outside.onnx")):
        state = convert.from_onnx(path).state_dict()
        assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_results_share_no_memory_with_the_model():
    proto = make_model(make_weights())
    ours = convert.from_onnx(proto)
    ours.weight_ih_l0.data.zero_()
    assert convert.from_onnx(proto).weight_ih_l0.any()


# ---- imports


def test_converters_import_only_torch_and_the_standard_library_at_their_top():
    imported = set()
    for file in Path(convert.__file__).parent.glob("*.py"):
        for statement in ast.parse(file.read_text()).body:
            if isinstance(statement, ast.Import):
                imported |= {alias.name for alias in statement.names}
            elif isinstance(statement, ast.ImportFrom) and not statement.level:
                imported.add(statement.module)
    assert imported == {"os", "torch", "itertools", "typing", "collections", "collections.abc", "dataclasses", "sys"}


def test_error_without_onnx_tells_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match="from_onnx needs the package onnx: pip install onnx"):
        convert.from_onnx("model.onnx")
