"""Layers of Keras, and their weights, convert to GRUs that compute the same as Keras 3 does."""

import os
import sys
import types

os.environ["KERAS_BACKEND"] = "torch"  # before keras is imported

import numpy as np
import pytest
import torch

pytest.importorskip("keras", reason="keras is not installed; scripts/test installs it")
import keras

import triton_gru
from triton_gru import convert

from .convert_models import SHAPES, assert_agree, make_draw, tensor, use_one_thread

# Keras 3.15's get_weights() warns on torch with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
layers = keras.layers


def tanh(x):
    """Return twice tanh(x). The converter must refuse this activation, although its name is that of Keras's tanh."""
    return 2 * keras.activations.tanh(x)


def hard_sigmoid(x):
    """Return a hard sigmoid. The converter must refuse this activation, although its name is set to "sigmoid" below."""
    return keras.activations.hard_sigmoid(x)


hard_sigmoid.__name__ = hard_sigmoid.__qualname__ = "sigmoid"


def keras_2_tanh(x):
    """Return tanh(x). The fixture `keras_2` makes this function the activation "tanh" of tf_keras, for a conversion."""
    return keras.ops.tanh(x)


def keras_2_sigmoid(x):
    """Return sigmoid(x). The fixture `keras_2` makes this function the activation "sigmoid" of tf_keras."""
    return keras.ops.sigmoid(x)


@pytest.fixture(autouse=True)
def _on_the_cpu():
    """Run Keras on the CPU in one thread: on a machine with a GPU its layers would go there."""
    with keras.device("cpu"), use_one_thread():
        yield


def build(layer, I: int, B: int | None = None):
    """Build ``layer`` for I features. Give it random weights, none of them zero. Return it."""
    layer.build((B, None, I))
    draw = make_draw()
    H = layer.get_weights()[1].shape[0]
    layer.set_weights([draw(*weight.shape, scale=H**-0.5) for weight in layer.get_weights()])
    return layer


def make_gru(H: int, **options):
    """Return a Keras GRU of H units that returns all outputs and its last state."""
    return layers.GRU(H, return_sequences=True, return_state=True, **options)


def call(layer, x, **arguments) -> list[torch.Tensor]:
    """Return the results of a Keras layer as tensors without autograd."""
    return [keras.ops.convert_to_tensor(result).detach() for result in layer(x, **arguments)]


def make_case(layer, T, B, I, H, directions: int = 1):
    """Return the layer, built, a random input [B, T, I], and a random initial state [directions, B, H]."""
    draw = make_draw(1)
    return build(layer, I), draw(B, T, I), draw(directions, B, H)


@pytest.mark.parametrize("T, B, I, H", SHAPES)
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("go_backwards", [True, False])
def test_layer_agrees_with_keras(T, B, I, H, reset_after, use_bias, go_backwards):
    layer, x, h = make_case(
        make_gru(H, reset_after=reset_after, use_bias=use_bias, go_backwards=go_backwards), T, B, I, H
    )
    ours = convert.from_keras(layer)
    assert isinstance(ours, triton_gru.GRU) and ours.batch_first and not ours.training
    sequence, state = call(layer, x, initial_state=tensor(h[0]))
    output, h_n = ours(tensor(x), tensor(h))
    assert_agree(output.flip(1) if go_backwards else output, sequence)
    assert_agree(h_n[0], state)
    from_arrays = convert.from_keras(layer.get_weights(), reset_after=reset_after, go_backwards=go_backwards)
    assert torch.equal(from_arrays(tensor(x), tensor(h))[0], output)


@pytest.mark.parametrize("T, B, I, H", SHAPES)
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("merge_mode", ["concat", None])
def test_bidirectional_layer_agrees_with_keras(T, B, I, H, reset_after, use_bias, merge_mode):
    layer = layers.Bidirectional(make_gru(H, reset_after=reset_after, use_bias=use_bias), merge_mode=merge_mode)
    layer, x, h = make_case(layer, T, B, I, H, directions=2)
    ours = convert.from_keras(layer)
    *sequences, forward, backward = call(layer, x, initial_state=list(map(tensor, h)))
    output, h_n = ours(tensor(x), tensor(h))
    assert_agree(output, torch.cat(sequences, 2))
    assert_agree(h_n, torch.stack([forward, backward]))
    from_arrays = convert.from_keras(layer.get_weights(), reset_after=reset_after)
    assert torch.equal(from_arrays(tensor(x), tensor(h))[0], output)


@pytest.mark.parametrize("go_backwards", [True, False])
def test_last_output_is_h_n(go_backwards):
    """With return_sequences=False Keras returns h_n, as the docstring of from_keras says."""
    layer, x, _ = make_case(layers.GRU(5, go_backwards=go_backwards), 4, 2, 3, 5)
    assert_agree(convert.from_keras(layer)(tensor(x))[1][0], layer(x))
    bidirectional, x, _ = make_case(layers.Bidirectional(layers.GRU(5)), 4, 2, 3, 5, directions=2)
    assert_agree(torch.cat([*convert.from_keras(bidirectional)(tensor(x))[1]], 1), bidirectional(x))


@pytest.mark.parametrize("go_backwards", [True, False])
@pytest.mark.parametrize("zero_output_for_mask", [True, False])
def test_lengths_replace_a_mask(go_backwards, zero_output_for_mask):
    T, B = 6, 4
    layer = make_gru(5, go_backwards=go_backwards, zero_output_for_mask=zero_output_for_mask)
    layer, x, h = make_case(layer, T, B, 3, 5)
    mask = np.arange(T) < np.array([[6], [1], [4], [3]])
    sequence, state = call(layer, x, initial_state=tensor(h[0]), mask=tensor(mask))
    output, h_n = convert.from_keras(layer)(tensor(x), tensor(h), lengths=tensor(mask).sum(1))
    assert_agree(h_n[0], state)
    sequence = sequence.flip(1) if go_backwards else sequence
    assert_agree(output[mask], sequence[mask])
    assert not output[~mask].any()
    if zero_output_for_mask:
        assert_agree(output, sequence)


def test_lengths_replace_a_mask_in_both_directions():
    T, B = 6, 4
    layer, x, h = make_case(layers.Bidirectional(make_gru(5)), T, B, 3, 5, directions=2)
    mask = np.arange(T) < np.array([[6], [1], [4], [3]])
    sequence, *states = call(layer, x, initial_state=list(map(tensor, h)), mask=tensor(mask))
    output, h_n = convert.from_keras(layer)(tensor(x), tensor(h), lengths=tensor(mask).sum(1))
    assert_agree(output, sequence)
    assert_agree(h_n, torch.stack(states))


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
def test_cell_agrees_with_keras_alone_and_in_an_rnn(reset_after, use_bias):
    cell = layers.GRUCell(5, reset_after=reset_after, use_bias=use_bias)
    rnn, x, h = make_case(layers.RNN(cell, return_sequences=True, go_backwards=True), 4, 2, 3, 5)
    assert_agree(convert.from_keras(rnn)(tensor(x))[0].flip(1), rnn(x))
    ours = convert.from_keras(cell)
    assert isinstance(ours, triton_gru.GRUCell) and not ours.training
    assert_agree(ours(tensor(x[:, 0]), tensor(h[0])), cell(x[:, 0], [tensor(h[0])])[0])


def test_dropout_and_stateful_are_not_converted():
    """Inference needs no dropout, and callers pass the state. The seeds of dropout are variables of the layer, too."""
    layer = build(layers.GRU(5, dropout=0.5, recurrent_dropout=0.5, stateful=True), 3, B=2)
    x = make_draw(1)(2, 4, 3)
    first_result, second_result = layer(x), layer(x)
    ours = convert.from_keras(layer)
    _, h_n = ours(tensor(x))
    assert_agree(h_n[0], first_result)
    assert_agree(ours(tensor(x), h_n)[1][0], second_result)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtype_is_kept(dtype):
    layer = build(layers.GRU(5, dtype=dtype, recurrent_initializer="zeros"), 3)
    parameter = convert.from_keras(layer).weight_hh_l0
    assert parameter.dtype == getattr(torch, dtype)
    assert_agree(parameter[5:10].T.double(), tensor(layer.get_weights()[1][:, :5].astype(np.float64)))


@pytest.fixture
def keras_2(monkeypatch):
    """Give Keras's GRU and GRUCell the module name of tf_keras, and tf_keras the activations of this file."""
    for kind in (layers.GRU, layers.GRUCell):
        monkeypatch.setattr(kind, "__module__", "tf_keras.src.layers.rnn.gru")
    monkeypatch.setitem(sys.modules, "tf_keras.src.layers.rnn.gru", sys.modules["keras.src.layers.rnn.gru"])
    monkeypatch.setitem(
        sys.modules, "tf_keras.src.activations", types.SimpleNamespace(tanh=keras_2_tanh, sigmoid=keras_2_sigmoid)
    )


def test_time_major_of_keras_2(monkeypatch, keras_2):
    layer, x, _ = make_case(make_gru(5, activation=keras_2_tanh, recurrent_activation=keras_2_sigmoid), 4, 2, 3, 5)
    monkeypatch.setattr(layers.GRU, "time_major", True, raising=False)
    ours = convert.from_keras(layer)
    assert_agree(ours(tensor(x).transpose(0, 1))[0].transpose(0, 1), call(layer, x)[0])


def test_refuses_activations_of_another_keras_than_the_layer(keras_2):
    with pytest.raises(ValueError, match="activation is 'keras.src.activations.activations.tanh'"):
        convert.from_keras(build(layers.GRU(4), 3))


@pytest.mark.parametrize("activation", ["tanh", keras.activations.tanh, keras.ops.tanh])
def test_activation_by_name_or_function(activation):
    layer, x, _ = make_case(make_gru(5, activation=activation), 4, 2, 3, 5)
    assert_agree(convert.from_keras(layer)(tensor(x))[0], call(layer, x)[0])


def test_arrays_may_be_tensors():
    weights = build(layers.GRU(5), 3).get_weights()
    ours, from_tensors = convert.from_keras(weights), convert.from_keras(tuple(map(torch.tensor, weights)))
    assert all(torch.equal(value, from_tensors.state_dict()[name]) for name, value in ours.state_dict().items())


# ---- errors


class Subclass(layers.GRU):
    pass


# Classes of a user with the names of Keras's, in modules whose names contain "keras".
named_gru = type("GRU", (layers.GRU,), {"__module__": "my_keras_layers"})
named_cell = type("GRUCell", (layers.GRUCell,), {"__module__": "keras.of_mine"})


def make_with_replaced_method(make, name: str):
    """Return the layer that ``make`` makes, with its method ``name`` replaced by a user."""
    layer = make()
    setattr(layer, name, lambda *arguments: None)
    return layer


def make_with_cell(cell):
    """Return a Keras GRU whose cell is replaced by ``cell``."""
    layer = layers.GRU(4)
    layer.cell = cell
    return layer


def make_different_directions(**backward):
    """Return a Bidirectional layer whose backward layer has the options ``backward``."""
    options = {"units": 4, "return_sequences": True}
    return layers.Bidirectional(
        layers.GRU(**options), backward_layer=layers.GRU(**{**options, **backward}, go_backwards=True)
    )


REFUSED_LAYERS = [
    (lambda: layers.GRU(4, activation="relu"), "activation is 'relu'"),
    (lambda: layers.GRU(4, activation=tanh), r"activation is '.*test_convert_keras\.tanh': only Keras's own 'tanh'"),
    (
        lambda: layers.GRUCell(4, recurrent_activation=hard_sigmoid),
        r"recurrent_activation is '.*\.sigmoid': only Keras's own",
    ),
    (lambda: layers.GRU(4, activation=layers.Activation("tanh")), "activation is '<Activation"),
    (lambda: layers.GRU(4, activation=None), "activation is 'linear'"),
    (lambda: layers.GRU(4, recurrent_activation="hard_sigmoid"), "recurrent_activation is 'hard_sigmoid'"),
    (lambda: layers.GRUCell(4, recurrent_activation="hard_sigmoid"), "recurrent_activation is 'hard_sigmoid'"),
    (lambda: make_different_directions(activation="relu"), "activation is 'relu'"),
    (lambda: make_different_directions(units=5), "directions differ: units is 4 forward, 5 backward"),
    (lambda: make_different_directions(use_bias=False), "directions differ: use_bias is True forward"),
    (lambda: make_different_directions(reset_after=False), "directions differ: reset_after is True forward"),
    (
        lambda: layers.Bidirectional(layers.GRU(4, go_backwards=True), backward_layer=layers.GRU(4)),
        "has go_backwards=True",
    ),
    *(
        (lambda mode=mode: layers.Bidirectional(layers.GRU(4), merge_mode=mode), f"merge_mode is '{mode}'")
        for mode in ("sum", "mul", "ave")
    ),
]


@pytest.mark.parametrize("make, text", REFUSED_LAYERS)
def test_refuses_options(make, text):
    layer = make()
    layer.build((None, 3) if isinstance(layer, layers.GRUCell) else (None, None, 3))
    with pytest.raises(ValueError, match=text):
        convert.from_keras(layer)


@pytest.mark.parametrize(
    "make", [lambda: layers.GRU(4), lambda: layers.GRUCell(4), lambda: make_different_directions()]
)
def test_refuses_layers_that_are_not_built(make):
    with pytest.raises(ValueError, match="not built"):
        convert.from_keras(make())


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: layers.LSTM(4), "got keras.*LSTM"),
        (lambda: Subclass(4), "got .*test_convert_keras.Subclass"),
        (lambda: named_gru(4), "got my_keras_layers.GRU"),
        (lambda: named_cell(4), "got keras.of_mine.GRUCell"),
        (lambda: layers.RNN(named_cell(4)), "got keras.of_mine.GRUCell"),
        (lambda: make_with_cell(layers.GRU(4)), "got keras.*GRU"),
        (lambda: make_with_replaced_method(lambda: layers.GRU(4), "call"), "call of this GRU has been replaced"),
        (lambda: make_with_replaced_method(lambda: layers.GRU(4), "inner_loop"), "inner_loop of this GRU"),
        (lambda: make_with_replaced_method(lambda: make_different_directions(), "call"), "call of this Bidirectional"),
        (lambda: layers.RNN(make_with_replaced_method(lambda: layers.GRUCell(4), "call")), "call of this GRUCell"),
        (lambda: layers.Bidirectional(layers.LSTM(4)), "got keras.*LSTM"),
        (lambda: layers.Bidirectional(layers.GRU(4), backward_layer=Subclass(4, go_backwards=True)), "got .*Subclass"),
        (lambda: layers.RNN(layers.LSTMCell(4)), "got keras.*LSTMCell"),
        (lambda: layers.RNN([layers.GRUCell(4), layers.GRUCell(4)]), "got keras.*StackedRNNCells"),
        (lambda: torch.nn.GRU(3, 4), "got torch.*GRU"),
        (lambda: np.ones((3, 12)), "got numpy.ndarray"),
    ],
)
def test_refuses_other_layers(make, text):
    with pytest.raises(TypeError, match=text):
        convert.from_keras(make())


@pytest.mark.parametrize("options", [{"reset_after": True}, {"go_backwards": True}])
def test_refuses_arguments_for_arrays_with_a_layer(options):
    with pytest.raises(ValueError, match="are for arrays"):
        convert.from_keras(build(layers.GRU(4), 3), **options)


def make_ones(*shapes) -> list[np.ndarray]:
    """Return arrays of ones with these shapes."""
    return [np.ones(shape, np.float32) for shape in shapes]


# Shapes of kernel, recurrent kernel and bias of a layer with 3 features, 4 units and reset_after=True.
VALID = [(3, 12), (4, 12), (2, 12)]


@pytest.mark.parametrize(
    "source, options, error, text",
    [
        (make_ones((3, 12)), {}, ValueError, "got 1 arrays"),
        (make_ones(*VALID, *VALID[:2]), {}, ValueError, "got 5 arrays"),
        (make_ones(*VALID * 3), {}, ValueError, "got 9 arrays"),
        (make_ones(*VALID[:2]), {}, ValueError, "do not show reset_after"),
        (make_ones(*VALID[:2] * 2), {}, ValueError, "do not show reset_after"),
        (make_ones(*VALID), {"reset_after": False}, ValueError, "reset_after=False, but .* reset_after=True"),
        (make_ones(*VALID[:2], (12,)), {"reset_after": True}, ValueError, "reset_after=True, but .* reset_after=False"),
        (make_ones(*VALID * 2), {"go_backwards": True}, ValueError, "go_backwards is for one direction"),
        (make_ones((3, 8), *VALID[1:]), {}, ValueError, r"^kernel has the shape \(3, 8\), expected \(input, 12\)"),
        (make_ones((3, 12), (4, 8), (2, 12)), {}, ValueError, r"^recurrent_kernel .*\(4, 8\), expected \(4, 12\)"),
        (make_ones((3, 12), (12,), (2, 12)), {}, ValueError, r"^recurrent_.*\(12,\), expected \(hidden, 3 \* hidden"),
        (make_ones(*VALID[:2], (24,)), {}, ValueError, r"^bias has the shape \(24,\), expected \(12,\)"),
        (make_ones(*VALID[:2], (3, 12)), {}, ValueError, r"^bias has the shape \(3, 12\), expected \(2, 12\)"),
        (make_ones(*VALID, (5, 12), *VALID[1:]), {}, ValueError, r"backward kernel .*\(5, 12\), expected \(3, 12\)"),
        (make_ones(*VALID, (3, 15), (5, 15), (2, 15)), {}, ValueError,
         r"backward kernel .*\(3, 15\), expected \(3, 12\)"),
        (make_ones(*VALID, *VALID[:2], (12,)), {}, ValueError, r"backward bias .*\(12,\), expected \(2, 12\)"),
        ([np.ones(VALID[0]), *make_ones(*VALID[1:])], {}, TypeError,
         "recurrent_kernel is torch.float32.*kernel is torch.f"),
        ([np.ones(shape, int) for shape in VALID], {}, TypeError, "is torch.int64, expected one of"),
    ],
)  # fmt: skip
def test_refuses_wrong_arrays(source, options, error, text):
    with pytest.raises(error, match=text):
        convert.from_keras(source, **options)


def test_keras_resets_after_by_default():
    """The table in triton_gru/convert/README.md has this default."""
    assert layers.GRU(2).reset_after and layers.GRUCell(2).reset_after
