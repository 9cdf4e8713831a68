"""Selection of one of a model's GRU nodes, and errors for models that cannot be converted."""

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="onnx is not installed; scripts/test installs it")
import onnx
from onnx import TensorProto, helper, numpy_helper

from triton_gru import convert

from .convert_onnx_models import arrays, functions, model, parse_nodes

W = arrays()["W"]


def make_two_nodes(names: tuple[str, str]) -> onnx.ModelProto:
    """Return a model of two GRU nodes. The second is in an If within an If, with weights of the outer graphs."""
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
def test_finds_a_node_by_its_name_or_an_output(names, asked):
    first, second = (convert.from_onnx(make_two_nodes(names), name) for name in asked)
    assert torch.equal(2 * first.weight_ih_l0, second.weight_ih_l0)
    assert first.bias and not second.bias


@pytest.mark.parametrize(
    "proto, name, text",
    [
        (make_two_nodes(("first", "second")), None, "several GRU nodes: pass node_name, one of 'first', 'second'"),
        (make_two_nodes(("", "")), None, "one of 'Y', 'Y2'"),
        (make_two_nodes(("same", "same")), "same", "2 GRU nodes of the name 'same'"),
        (
            make_two_nodes(("first", "second")),
            "third",
            "0 GRU nodes of .* 'third': pass node_name, one of 'first', 'second'",
        ),
        (helper.make_model(helper.make_graph([], "g", [], [])), None, "no GRU node"),
    ],
)
def test_refuses_names(proto, name, text):
    with pytest.raises(ValueError, match=text):
        convert.from_onnx(proto, name)


# ---- errors


def make_other_domain(*nodes: onnx.NodeProto, **weights: np.ndarray) -> onnx.ModelProto:
    proto = model(weights, nodes=nodes)
    proto.graph.node[0].domain = "com.microsoft"
    return proto


def make_model_without_r() -> onnx.ModelProto:
    proto = model(arrays())
    del proto.graph.node[0].input[2:]
    return proto


def make_mixed_dtypes(name: str, dtype) -> onnx.ModelProto:
    return model({**arrays(), name: arrays()[name].astype(dtype)})


NO_W = {"R": arrays()["R"]}


def make_computed_w(*nodes: str, inputs: tuple[str, ...] = ("X",), opset: int = 22, **constants) -> onnx.ModelProto:
    """Return a model whose nodes compute W from the constant ``a`` and others."""
    node_protos, weights = parse_nodes(*nodes, a=W, **NO_W, **constants)
    return model(weights, inputs, node_protos, opset)


def make_gru_in_a_loop() -> onnx.ModelProto:
    """Return a GRU in the body of a Loop. Its W changes in each iteration, and is named as an initializer."""
    body = """W = Loop(n, , a) <body = b (int64 i, bool go, float[1] W) => (bool more, float[1] o, float[1] Y) {
        more = Identity(go) o = Neg(W) [gru] Y = GRU<hidden_size = 4>(X, W, R) }>"""
    proto = model(arrays(), nodes=parse_nodes(body)[0])
    del proto.graph.node[1]
    return proto


ACTIVATION_PARAMETERS = {"activation_alpha": [1.0], "activation_beta": [1.0]}


@pytest.mark.parametrize(
    "proto, text",
    [
        (model(arrays(), clip=3.0), "GRU node 'gru': clip cannot"),
        (model(arrays(), **ACTIVATION_PARAMETERS), "activation_alpha, activation_beta cannot"),
        (model(arrays(), activations=["HardSigmoid", "Tanh"]), "activations are HardSigmoid, Tanh"),
        (model(arrays(), activations=["Sigmoid", "Relu"]), "activations are Sigmoid, Relu"),
        (model(arrays(D=2), direction="bidirectional", activations=["Sigmoid", "Tanh", "Sigmoid", "Affine"]), "Affine"),
        (model(arrays(D=2), direction="bidirectional", activations=["Sigmoid", "Tanh"]), "in each direction"),
        (model(arrays(), direction="backward"), "direction is 'backward'"),
        (model(arrays(), output_sequence=1, more=2), "unknown attributes more, output_sequence"),
        (model(arrays(), hidden_size=5), "hidden_size is 5, but R has the shape for 4"),
        (model(arrays(), opset=3), "opset 3 is too old"),
        (make_other_domain(**arrays()), "domain is 'com.microsoft'"),
        (model(arrays(D=2)), r"R has the shape \(2, 12, 4\), expected \(1, 3 \* hidden, hidden\)"),
        (model(arrays(), direction="bidirectional"), r"R has the shape \(1, 12, 4\), expected \(2, "),
        (model({**arrays(), "R": arrays(H=5)["R"][:, :, :4]}), r"R has the shape \(1, 15, 4\), expected \(1, 12, 4\)"),
        (model({**arrays(), "W": W[:, :9]}), r"W has the shape \(1, 9, 3\), expected \(1, 12, input\)"),
        (model({**arrays(), "B": arrays()["B"][:, :12]}), r"B has the shape \(1, 12\), expected \(1, 24\)"),
        (make_model_without_r(), "it has no input R"),
        (model(NO_W), "W is not constant: nothing in the model computes 'W'"),
        (model(arrays(bias=False), ("X", "B")), "B is not constant: it comes from the input 'B'"),
        (make_computed_w("b = Identity(a)", "W = Add(b, X)"), "W is not constant: it comes from the input 'X'"),
        (make_computed_w("W = Identity(c)"), "W is not constant: nothing in the model computes 'c'"),
        (make_computed_w("W = Identity(V)", "V = Identity(W)"), "W is not constant: a cycle"),
        (make_computed_w("W = RandomNormalLike(a)"), "W is not constant: RandomNormalLike 'W' draws random"),
        (make_computed_w("t = Constant<value_int=1>()", "W, m = Dropout(a, , t)"), "Dropout 'W' draws random"),
        (make_computed_w("W = If(c) <then_branch = t () => (float[1] p) { p = Neg(a) }, "
                  "else_branch = e () => (float[1] q) { q = Neg(X) }>", inputs=("X", "c")), "the input 'c'"),
        (make_computed_w("c = Constant<value_int=1>()", "W = If(c) <then_branch = t () => (float[1] p) { p = Neg(a) }, "
                  "else_branch = e () => (float[1] q) { q = Neg(X) }>"), "it comes from the input 'X'"),
        (make_computed_w("c = Constant<value_int=1>()", "W = If(c) <then_branch = t () => (float[1] p) { p = Neg(a) }, "
                  "else_branch = e () => (float[1] q) { q = Bernoulli(a) }>"), "Bernoulli 'q' draws random"),
        (make_gru_in_a_loop(), "W is not constant: it comes from the input 'W'"),
        (make_other_domain(*parse_nodes("W = Identity(a)")[0], a=W, **NO_W),
         "W cannot be computed: onnx's .* Identity 'W'"),
        (make_computed_w("W = NoSuchOperator(a)"), "W cannot be computed: onnx's evaluator refuses NoSuchOperator 'W'"),
        (make_computed_w("W = MatMul(a, a)"), "W cannot be computed: onnx's evaluator refuses MatMul 'W'"),
        (make_computed_w("W = Loop(n, , a) <body = b (int64 i, bool go, float[1] v) => (bool m, float[1] o) "
                  "{ m = Identity(go) o = Neg(v) }>", n=np.array(2)), "computes Loop 'W' wrongly"),
        (make_computed_w("W = Softmax(a)", opset=12), "computes Softmax 'W' wrongly in opset 12"),
        (functions(model(arrays()), "f(w) => (o) { o = own.f(w) }"), "cannot inline the functions .* own.f"),
    ],
)  # fmt: skip
def test_refuses_models(proto, text):
    with pytest.raises(ValueError, match=text):
        convert.from_onnx(proto)


@pytest.mark.parametrize(
    "proto, text",
    [
        (b"bytes", "expected an onnx.ModelProto or a path, got bytes"),
        (model(arrays()).graph, "got GraphProto"),
        (make_mixed_dtypes("R", np.float64), "R is torch.float64 on cpu, but W is torch.float32"),
        (make_mixed_dtypes("W", np.int32), "W is torch.int32"),
    ],
)
def test_refuses_types(proto, text):
    with pytest.raises(TypeError, match=text):
        convert.from_onnx(proto)
