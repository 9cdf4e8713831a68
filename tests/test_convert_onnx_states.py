"""The initial_h and sequence_lens of a model: passed by the caller, without effect, or refused."""

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="onnx is not installed; scripts/test installs it")
import onnx
from onnx import TensorProto, helper

from triton_gru import convert

from .convert_models import assert_agree, make_draw, tensor
from .convert_onnx_models import make_model, make_weights, parse_nodes, run_onnxruntime, to_onnx_layout

T, B, I, H = 5, 2, 3, 4
STATE, ZERO = np.ones((1, B, H), np.float32), np.zeros((1, B, H), np.float32)
# T and B of X as arrays of one element, and the shape of a state.
SHAPE = ("s = Shape(X)", "zeroth = Constant<value_ints=[0]>()", "first = Constant<value_ints=[1]>()",
         "t = Gather<axis=0>(s, zeroth)", "b = Gather<axis=0>(s, first)", "four = Constant<value_ints=[4]>()",
         "shape = Concat<axis=0>(first, b, four)")  # fmt: skip


def make_model_with_input(
    input_name: str, *nodes: str, inputs: tuple[str, ...] = (), steps: int | None = None, **constants
) -> onnx.ModelProto:
    """Return a model whose GRU has the input ``input_name``, computed by ``nodes`` from constants, X and ``inputs``.

    Exception: the input is a constant if a constant has its name. ``inputs`` are further inputs of the model. ``steps``
    is the length of X, or None if the model does not state it.
    """
    nodes, constants = parse_nodes(*nodes, **constants)
    types = {"lengths": TensorProto.INT32}
    proto = make_model({**make_weights(), **constants}, ("X", input_name), nodes)
    del proto.graph.input[1]
    if steps:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = steps
    for name in inputs:
        rank = 1 if name in types else 3
        proto.graph.input.append(helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), [None] * rank))
    return proto


def initial_h(*nodes: str, **options) -> onnx.ModelProto:
    """Return a model whose initial_h is computed by ``nodes``. Options are those of `make_model_with_input`."""
    return make_model_with_input("initial_h", *nodes, **options)


def lengths(*nodes: str, **options) -> onnx.ModelProto:
    """Return a model whose sequence_lens are computed by ``nodes``. Options are those of `make_model_with_input`."""
    return make_model_with_input("sequence_lens", *nodes, **options)


FULL_LENGTHS = np.array([T, T], np.int32)
# Models whose initial_h is zero, or whose lengths are those of X: the converter leaves the input out.
# fmt: off
WITHOUT_EFFECT = {
    "zeros": initial_h(initial_h=ZERO),
    "constants that give zeros": initial_h("initial_h = Sub(a, a)", a=STATE),
    "zeros of a batch's size": initial_h(*SHAPE, "initial_h = ConstantOfShape(shape)"),
    "a zero of a batch's size": initial_h(*SHAPE, "initial_h = ConstantOfShape<value=float[1] {0.0}>(shape)"),
    "zeros expanded": initial_h(*SHAPE, "initial_h = Expand(a, shape)", a=ZERO[:, :1]),
    "zeros joined": initial_h(*SHAPE, "e = Expand(a, shape)", "two, rest = Split<axis=2, num_outputs=2>(e)",
                              "initial_h = Concat<axis=2>(two, rest)", a=ZERO[:, :1]),
    "zeros of one element": initial_h(*SHAPE, "z = Slice(a, zeroth, first)", "initial_h = Expand(z, shape)",
                                      a=np.array([0, 1], np.float32)),
    "whole lengths": lengths(steps=T, sequence_lens=FULL_LENGTHS),
    "whole lengths of the shape": lengths(*SHAPE, "e = Expand(t, b)", "sequence_lens = Cast<to=6>(e)"),
    "whole lengths of a slice of the shape": lengths(*SHAPE, "p = Slice(s, zeroth, two)", "q = Cast<to=6>(p)",
                                             "i = Gather<axis=0>(q, zeroth)", "sequence_lens = Tile(i, b)",
                                             two=np.array([2])),
    "whole lengths of Shape<start, end>": lengths(*SHAPE, "n = Shape<start=0, end=1>(X)", "e = Expand(n, b)",
                                          "sequence_lens = Cast<to=6>(e)"),
}
# fmt: on


@pytest.mark.parametrize("case", WITHOUT_EFFECT)
def test_zero_states_and_full_lengths_are_left_out(case):
    X = make_draw(1)(T, B, I)
    assert_agree(
        to_onnx_layout(*convert.from_onnx(WITHOUT_EFFECT[case])(tensor(X)))[0],
        tensor(run_onnxruntime(WITHOUT_EFFECT[case], {"X": X})[0]),
    )


def test_initial_state_rearranged_by_the_model():
    proto = initial_h("t = Transpose<perm=[1, 0, 2]>(state)", "initial_h = Gather<axis=0>(t, one)",
                      inputs=("state",), one=np.array([1]))  # fmt: skip
    X, state = make_draw(1)(T, B, I), make_draw(2)(B, 2, H)
    output = convert.from_onnx(proto)(tensor(X), tensor(state[None, :, 1]))
    for actual, expected in zip(to_onnx_layout(*output), run_onnxruntime(proto, {"X": X, "state": state})):
        assert_agree(actual, tensor(expected))


def test_initial_state_from_another_gru():
    """The encoder's h_n is the decoder's initial state. It goes through a state with a row for each layer."""
    proto = initial_h("E, F = GRU<hidden_size=4>(X, W, R)", "states = ScatterND(cache, at, F)",
                      "initial_h = Slice(states, at_1, at_2)", inputs=("cache",), at=np.array([[1]]),
                      at_1=np.array([1]), at_2=np.array([2]))  # fmt: skip
    encoder, decoder = (convert.from_onnx(proto, name) for name in ("E", "Y"))
    X = make_draw(1)(T, B, I)
    actual, _ = to_onnx_layout(*decoder(tensor(X), encoder(tensor(X))[1]))
    assert_agree(actual, tensor(run_onnxruntime(proto, {"X": X, "cache": np.zeros((2, B, H), np.float32)})[0]))


def test_lengths_passed_by_the_caller():
    proto, X = lengths("sequence_lens = Identity(lengths)", inputs=("lengths",)), make_draw(1)(T, B, I)
    given_lens = np.array([2, T], np.int32)
    actual = to_onnx_layout(*convert.from_onnx(proto)(tensor(X), lengths=tensor(given_lens)))[0]
    assert_agree(actual, tensor(run_onnxruntime(proto, {"X": X, "lengths": given_lens})[0]))


NOT_ZERO = "initial_h is a constant other than zero: clear this input of the node, and pass its value as hx"
# Operands of MatMul and Pad below.
M, PADS = np.eye(H, dtype=np.float32), np.array([0, 0, 1, 0, 0, 0])
SHORT_LENGTHS = np.array([T, 2], np.int32)


@pytest.mark.parametrize(
    "proto, text",
    [
        (initial_h(initial_h=STATE), NOT_ZERO),
        (initial_h(initial_h=ZERO * np.nan), NOT_ZERO),
        (initial_h("initial_h = Constant<value_floats=[0.0, 1.0]>()"), NOT_ZERO),
        *(
            (initial_h(f"initial_h = {computation}", a=STATE, z=ZERO, m=M, c=np.array(True), p=PADS), NOT_ZERO)
            for computation in ("Tanh(a)", "Add(a, a)", "MatMul(a, m)", "Where(c, a, z)", "Cos(z)", "Pad(a, p)")
        ),
        (initial_h(*SHAPE, "initial_h = Expand(a, shape)", a=STATE[:, :1]), NOT_ZERO),
        (initial_h(*SHAPE, "initial_h = ConstantOfShape<value=float[1] {1.0}>(shape)"), NOT_ZERO),
        (initial_h("initial_h = Concat<axis=0>(state, a)", inputs=("state",), a=STATE), NOT_ZERO),
        (initial_h("initial_h = RandomNormalLike(a)", a=STATE), "initial_h is computed by RandomNormalLike"),
        (initial_h("t = Tanh(context)", "initial_h = Identity(t)", inputs=("context",)),
         "initial_h is computed by Tanh 't', it comes from the input 'context': clear this input"),
        (initial_h("initial_h = Mul(state, a)", inputs=("state",), a=ZERO), "initial_h is computed by Mul"),
        (initial_h("t = Relu(c)", "initial_h = Concat<axis=2>(z, t)", inputs=("c",), z=ZERO), "computed by Relu 't'"),
        (initial_h("t = ReduceSum<keepdims=0>(c)", "initial_h = Expand(t, s)", inputs=("c",), s=np.array([1, B, H])),
         "computed by ReduceSum 't'"),
        (initial_h("initial_h = ScatterND<reduction=\"add\">(c, i, c)", inputs=("c",), i=np.array([[0]])), "ScatterND"),
        (initial_h("initial_h = Identity(missing)"), "not constant: nothing in the model computes 'missing'"),
        (initial_h("initial_h = NoSuchOperator(a)", a=STATE), "initial_h cannot be computed: .* NoSuchOperator"),
        (lengths(sequence_lens=FULL_LENGTHS), r"constants \[5, 5\], and the length of X is unknown: clear this input"),
        (lengths(steps=T, sequence_lens=SHORT_LENGTHS),
         r"sequence_lens has the constants \[5, 2\], .* X is 5: clear this"),
        (lengths("sequence_lens = Add(a, a)", steps=T, a=SHORT_LENGTHS), r"constants \[10, 4\]"),
        (lengths(*SHAPE, "e = Expand(b, b)", "sequence_lens = Cast<to=6>(e)"), "computed by Shape 's'"),
        (lengths(*SHAPE, "u = Sub(t, first)", "e = Expand(u, b)", "sequence_lens = Cast<to=6>(e)"), "by Sub 'u'"),
        (lengths("s = Shape(c)", "sequence_lens = Gather(s, i)", inputs=("c",), i=np.array([0, 0])), "by Shape 's'"),
        (lengths("s = Shape(X)", "sequence_lens = Gather(s, i)", i=np.array([0, 1])), "by Shape 's'"),
    ],
)  # fmt: skip
def test_refuses_states_and_lengths_that_would_be_lost(proto, text):
    with pytest.raises(ValueError, match=text):
        convert.from_onnx(proto)


def test_state_of_a_loop_is_left_to_the_caller():
    """The GRU is in the body of a Loop. Its state is the body's input, with the name of a computed constant outside."""
    proto = make_model(make_weights(bias=False), ("X",), parse_nodes(
        "h = Exp(W)", "L = Loop(n, , h0) <body = b (int64 i, bool go, float[1,2,4] h) => (bool more, float[1,2,4] o) "
        "{ more = Identity(go) V, o = GRU<hidden_size=4>(X, W, R, , , h) }>")[0])  # fmt: skip
    assert torch.equal(
        convert.from_onnx(proto, "V").weight_hh_l0, convert.from_onnx(make_model(make_weights())).weight_hh_l0
    )
