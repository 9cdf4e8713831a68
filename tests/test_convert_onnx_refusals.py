"""Which of a model's GRU nodes is converted, and what is refused."""

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="a machine lent for its GPU may not have it; scripts/test installs it")
import onnx
from onnx import TensorProto, helper, numpy_helper

from triton_gru import convert

from .convert_onnx_models import arrays, functions, model, parse_nodes

W = arrays()["W"]


def two(names: tuple[str, str]) -> onnx.ModelProto:
    """Two GRU nodes, the second inside the branches of an If inside a branch, with weights of the outer graph."""
    proto = model(arrays(), name=names[0])
    other = numpy_helper.from_array(2 * W, "W2")
    node = helper.make_node("GRU", ["X", "W2", "R"], ["Y2"], names[1], hidden_size=4)
    value = helper.make_tensor_value_info("Y2", TensorProto.FLOAT, None)
    inner = helper.make_graph([node], "inner", [], [value])
    empty = helper.make_graph([helper.make_node("Identity", ["X"], ["Z2"])], "empty", [], [value])
    deep = helper.make_node("If", ["c"], ["Y3"], then_branch=empty, else_branch=inner)
    middle = helper.make_graph([deep], "middle", [], [value], [other])
    proto.graph.node.append(helper.make_node("If", ["c"], ["Y4"], then_branch=middle, else_branch=empty))
    return proto


@pytest.mark.parametrize("names, asked", [(("first", "second"), ("first", "second")), (("", ""), ("Y_h", "Y2"))])
def test_one_of_several_nodes_by_its_name_or_an_output(names, asked):
    first, second = (convert.from_onnx(two(names), name) for name in asked)
    assert torch.equal(2 * first.weight_ih_l0, second.weight_ih_l0)
    assert first.bias and not second.bias


@pytest.mark.parametrize(
    "proto, name, text",
    [
        (two(("first", "second")), None, "several GRU nodes: pass node_name; there are 'first', 'second'"),
        (two(("", "")), None, "there are 'Y', 'Y2'"),
        (two(("same", "same")), "same", "2 GRU nodes of the name 'same'"),
        (two(("first", "second")), "third", "0 GRU nodes of the name 'third'; there are 'first', 'second'"),
        (helper.make_model(helper.make_graph([], "g", [], [])), None, "no GRU node"),
    ],
)
def test_refused_names(proto, name, text):
    with pytest.raises(ValueError, match=text):
        convert.from_onnx(proto, name)


# ---- refusals


def other_domain(*nodes: onnx.NodeProto, **weights: np.ndarray) -> onnx.ModelProto:
    proto = model(weights, nodes=nodes)
    proto.graph.node[0].domain = "com.microsoft"
    return proto


def cut_short() -> onnx.ModelProto:
    proto = model(arrays())
    del proto.graph.node[0].input[2:]
    return proto


def mixed(name: str, dtype) -> onnx.ModelProto:
    return model({**arrays(), name: arrays()[name].astype(dtype)})


NO_W = {"R": arrays()["R"]}


def computed(*nodes: str, inputs: tuple[str, ...] = ("X",), opset: int = 22, **constants) -> onnx.ModelProto:
    """A model whose W is made by nodes, of the constant ``a`` among others."""
    made, weights = parse_nodes(*nodes, a=W, **NO_W, **constants)
    return model(weights, inputs, made, opset)


def in_a_body() -> onnx.ModelProto:
    """A GRU in the body of a Loop, with weights that change from turn to turn and have the name of an initializer."""
    body = """W = Loop(n, , a) <body = b (int64 i, bool go, float[1] W) => (bool more, float[1] o, float[1] Y) {
        more = Identity(go) o = Neg(W) [gru] Y = GRU<hidden_size = 4>(X, W, R) }>"""
    proto = model(arrays(), nodes=parse_nodes(body)[0])
    del proto.graph.node[1]
    return proto


ALL_OF_IT = {"activation_alpha": [1.0], "activation_beta": [1.0]}


@pytest.mark.parametrize(
    "proto, text",
    [
        (model(arrays(), clip=3.0), "GRU node 'gru': clip cannot"),
        (model(arrays(), **ALL_OF_IT), "activation_alpha, activation_beta cannot"),
        (model(arrays(), activations=["HardSigmoid", "Tanh"]), "activations are HardSigmoid, Tanh"),
        (model(arrays(), activations=["Sigmoid", "Relu"]), "activations are Sigmoid, Relu"),
        (model(arrays(D=2), direction="bidirectional", activations=["Sigmoid", "Tanh", "Sigmoid", "Affine"]), "Affine"),
        (model(arrays(D=2), direction="bidirectional", activations=["Sigmoid", "Tanh"]), "in each direction"),
        (model(arrays(), direction="backward"), "direction is 'backward'"),
        (model(arrays(), output_sequence=1, more=2), "unknown attributes more, output_sequence"),
        (model(arrays(), hidden_size=5), "hidden_size is 5, but R is that of 4"),
        (model(arrays(), opset=3), "opset 3 is too old"),
        (other_domain(**arrays()), "domain 'com.microsoft'"),
        (model(arrays(D=2)), r"R has the shape \(2, 12, 4\), expected \(1, 3 \* hidden, hidden\)"),
        (model(arrays(), direction="bidirectional"), r"R has the shape \(1, 12, 4\), expected \(2, "),
        (model({**arrays(), "R": arrays(H=5)["R"][:, :, :4]}), r"R has the shape \(1, 15, 4\), expected \(1, 12, 4\)"),
        (model({**arrays(), "W": W[:, :9]}), r"W has the shape \(1, 9, 3\), expected \(1, 12, input\)"),
        (model({**arrays(), "B": arrays()["B"][:, :12]}), r"B has the shape \(1, 12\), expected \(1, 24\)"),
        (cut_short(), "it has no input R"),
        (model(NO_W), "W is not constant: nothing in the model makes 'W'"),
        (model(arrays(bias=False), ("X", "B")), "B is not constant: it comes from the input 'B'"),
        (computed("b = Identity(a)", "W = Add(b, X)"), "W is not constant: it comes from the input 'X'"),
        (computed("W = Identity(c)"), "W is not constant: nothing in the model makes 'c'"),
        (computed("W = Identity(V)", "V = Identity(W)"), "W is not constant: a cycle"),
        (computed("W = RandomNormalLike(a)"), "W is not constant: RandomNormalLike 'W' draws random"),
        (computed("t = Constant<value_int=1>()", "W, m = Dropout(a, , t)"), "Dropout 'W' draws random"),
        (computed("W = If(c) <then_branch = t () => (float[1] p) { p = Neg(a) }, "
                  "else_branch = e () => (float[1] q) { q = Neg(X) }>", inputs=("X", "c")), "the input 'c'"),
        (computed("c = Constant<value_int=1>()", "W = If(c) <then_branch = t () => (float[1] p) { p = Neg(a) }, "
                  "else_branch = e () => (float[1] q) { q = Neg(X) }>"), "it comes from the input 'X'"),
        (computed("c = Constant<value_int=1>()", "W = If(c) <then_branch = t () => (float[1] p) { p = Neg(a) }, "
                  "else_branch = e () => (float[1] q) { q = Bernoulli(a) }>"), "Bernoulli 'q' draws random"),
        (in_a_body(), "W is not constant: it comes from the input 'W'"),
        (other_domain(*parse_nodes("W = Identity(a)")[0], a=W, **NO_W), "W cannot be computed: onnx's .* Identity 'W'"),
        (computed("W = NoSuchOperator(a)"), "W cannot be computed: onnx's evaluator refuses NoSuchOperator 'W'"),
        (computed("W = MatMul(a, a)"), "W cannot be computed: onnx's evaluator refuses MatMul 'W'"),
        (computed("W = Loop(n, , a) <body = b (int64 i, bool go, float[1] v) => (bool m, float[1] o) "
                  "{ m = Identity(go) o = Neg(v) }>", n=np.array(2)), "computes Loop 'W' otherwise"),
        (computed("W = Softmax(a)", opset=12), "computes Softmax 'W' otherwise than ONNX specifies in opset 12"),
        (functions(model(arrays()), "f(w) => (o) { o = own.f(w) }"), "cannot inline the functions .* own.f"),
    ],
)  # fmt: skip
def test_refused_models(proto, text):
    with pytest.raises(ValueError, match=text):
        convert.from_onnx(proto)


@pytest.mark.parametrize(
    "proto, text",
    [
        (b"bytes", "expected an onnx.ModelProto or a path, got bytes"),
        (model(arrays()).graph, "got GraphProto"),
        (mixed("R", np.float64), "R is torch.float64 on cpu, but W torch.float32"),
        (mixed("W", np.int32), "W is torch.int32"),
    ],
)
def test_refused_types(proto, text):
    with pytest.raises(TypeError, match=text):
        convert.from_onnx(proto)
