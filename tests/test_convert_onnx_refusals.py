"""Selection of one of a model's GRU nodes, and errors for models that cannot be converted."""

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="onnx is not installed; scripts/test installs it")
import onnx
from onnx import TensorProto, helper, numpy_helper

from triton_gru import convert

from .convert_onnx_models import add_functions, make_model, make_weights, parse_nodes

W = make_weights()["W"]


def make_two_nodes(names: tuple[str, str]) -> onnx.ModelProto:
    """Return a model of two GRU nodes. The second is in an If within an If, and uses weights of the outer graphs."""
    proto = make_model(make_weights(), name=names[0])
    w2 = numpy_helper.from_array(2 * W, "W2")
    node = helper.make_node("GRU", ["X", "W2", "R"], ["Y2"], names[1], hidden_size=4)
    output_info = helper.make_tensor_value_info("Y2", TensorProto.FLOAT, None)
    inner_branch = helper.make_graph([node], "inner_branch", [], [output_info])
    empty_branch = helper.make_graph([helper.make_node("Identity", ["X"], ["Z2"])], "empty_branch", [], [output_info])
    inner_if = helper.make_node("If", ["c"], ["Y3"], then_branch=empty_branch, else_branch=inner_branch)
    outer_branch = helper.make_graph([inner_if], "outer_branch", [], [output_info], [w2])
    proto.graph.node.append(helper.make_node("If", ["c"], ["Y4"], then_branch=outer_branch, else_branch=empty_branch))
    return proto


@pytest.mark.parametrize("names, node_names", [(("first", "second"), ("first", "second")), (("", ""), ("Y_h", "Y2"))])
def test_finds_a_node_by_its_name_or_an_output(names, node_names):
    first, second = (convert.from_onnx(make_two_nodes(names), name) for name in node_names)
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
def test_refuses_names_that_select_no_or_several_nodes(proto, name, text):
    with pytest.raises(ValueError, match=text):
        convert.from_onnx(proto, name)


# ---- errors


def make_other_domain(*nodes: onnx.NodeProto, **weights: np.ndarray) -> onnx.ModelProto:
    """Return a model whose first node is of the domain "com.microsoft", whose operators are not those of ONNX."""
    proto = make_model(weights, nodes=nodes)
    proto.graph.node[0].domain = "com.microsoft"
    return proto


def make_model_without_r() -> onnx.ModelProto:
    """Return a model whose GRU node has no recurrent weights R, which ONNX requires."""
    proto = make_model(make_weights())
    del proto.graph.node[0].input[2:]
    return proto


def make_mixed_dtypes(name: str, dtype) -> onnx.ModelProto:
    """Return a model whose weight ``name`` has the dtype ``dtype``. The other weights are float32."""
    return make_model({**make_weights(), name: make_weights()[name].astype(dtype)})


# The weights of a node without W, which the model has to compute.
NO_W = {"R": make_weights()["R"]}


def make_computed_w(*nodes: str, inputs: tuple[str, ...] = ("X",), opset: int = 22, **constants) -> onnx.ModelProto:
    """Return a model whose nodes compute W, or try to, from the constant ``a``, other ``constants`` and ``inputs``."""
    node_protos, weights = parse_nodes(*nodes, a=W, **NO_W, **constants)
    return make_model(weights, inputs, node_protos, opset)


def make_gru_in_a_loop() -> onnx.ModelProto:
    """Return a model with a GRU in a Loop. The GRU's W changes in each iteration, and is named as an initializer."""
    body = """W = Loop(n, , a) <body = b (int64 i, bool go, float[1] W) => (bool more, float[1] o, float[1] Y) {
        more = Identity(go) o = Neg(W) [gru] Y = GRU<hidden_size = 4>(X, W, R) }>"""
    proto = make_model(make_weights(), nodes=parse_nodes(body)[0])
    del proto.graph.node[1]
    return proto


ACTIVATION_PARAMETERS = {"activation_alpha": [1.0], "activation_beta": [1.0]}


@pytest.mark.parametrize(
    "proto, text",
    [
        (make_model(make_weights(), clip=3.0), "GRU node 'gru': clip cannot"),
        (make_model(make_weights(), **ACTIVATION_PARAMETERS), "activation_alpha, activation_beta cannot"),
        (make_model(make_weights(), activations=["HardSigmoid", "Tanh"]), "activations are HardSigmoid, Tanh"),
        (make_model(make_weights(), activations=["Sigmoid", "Relu"]), "activations are Sigmoid, Relu"),
        (make_model(make_weights(D=2), direction="bidirectional", activations=["Sigmoid", "Tanh", "Sigmoid", "Affine"]),
         "Affine"),
        (make_model(make_weights(D=2), direction="bidirectional", activations=["Sigmoid", "Tanh"]),
         "in each direction"),
        (make_model(make_weights(), direction="backward"), "direction is 'backward'"),
        (make_model(make_weights(), output_sequence=1, more=2), "unknown attributes more, output_sequence"),
        (make_model(make_weights(), hidden_size=5), "hidden_size is 5, but R has the shape for 4"),
        (make_model(make_weights(), opset=3), "opset 3 is too old"),
        (make_other_domain(**make_weights()), "domain is 'com.microsoft'"),
        (make_model(make_weights(D=2)), r"R has the shape \(2, 12, 4\), expected \(1, 3 \* hidden, hidden\)"),
        (make_model(make_weights(), direction="bidirectional"), r"R has the shape \(1, 12, 4\), expected \(2, "),
        (make_model({**make_weights(), "R": make_weights(H=5)["R"][:, :, :4]}),
         r"R has the shape \(1, 15, 4\), expected \(1, 12, 4\)"),
        (make_model({**make_weights(), "W": W[:, :9]}), r"W has the shape \(1, 9, 3\), expected \(1, 12, input\)"),
        (make_model({**make_weights(), "B": make_weights()["B"][:, :12]}),
         r"B has the shape \(1, 12\), expected \(1, 24\)"),
        (make_model_without_r(), "it has no input R"),
        (make_model(NO_W), "W is not constant: nothing in the model computes 'W'"),
        (make_model(make_weights(bias=False), ("X", "B")), "B is not constant: it comes from the input 'B'"),
        (make_computed_w("b = Identity(a)", "W = Add(b, X)"), "W is not constant: it comes from the input 'X'"),
        (make_computed_w("W = Identity(c)"), "W is not constant: nothing in the model computes 'c'"),
        (make_computed_w("W = Identity(V)", "V = Identity(W)"), "W is not constant: it depends on itself"),
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
        (add_functions(make_model(make_weights()), "f(w) => (o) { o = own.f(w) }"),
         "cannot inline the functions .* own.f"),
    ],
)  # fmt: skip
def test_refuses_models(proto, text):
    with pytest.raises(ValueError, match=text):
        convert.from_onnx(proto)


@pytest.mark.parametrize(
    "proto, text",
    [
        (b"bytes", "expected an onnx.ModelProto or a path, got bytes"),
        (make_model(make_weights()).graph, "got GraphProto"),
        (make_mixed_dtypes("R", np.float64), "R is torch.float64 on cpu, but W is torch.float32"),
        (make_mixed_dtypes("W", np.int32), "W is torch.int32"),
    ],
)
def test_refuses_wrong_types_and_mixed_dtypes(proto, text):
    with pytest.raises(TypeError, match=text):
        convert.from_onnx(proto)
