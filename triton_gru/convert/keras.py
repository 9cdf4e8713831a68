"""Keras's GRU layers and their weights. Keras itself is not imported: who has a layer of it has imported it."""

import sys
from typing import Any

from torch import Tensor

from ..modules import GRU, GRUCell
from ..reference import LayerWeights
from . import assemble

_PACKAGES = ("keras", "tf_keras")
# Of each package, in the versions there are.
_FUNCTIONS_IN = ("src.activations", "activations", "src.ops")
_METHODS = ("call", "get_initial_state", "inner_loop")


def from_keras(source: Any, *, reset_after: bool | None = None, go_backwards: bool = False) -> GRU | GRUCell:
    r"""Return a GRU of a built Keras layer (Keras 3, tf.keras, tf_keras), or of its ``get_weights()``.

    The formula (keras/src/layers/rnn/gru.py, Keras 3.15), with ``x @ kernel`` for W x and
    ``h @ recurrent_kernel`` for U h:

    .. math::
        z = \sigma(W_z x + b_z + U_z h + c_z) \qquad
        r = \sigma(W_r x + b_r + U_r h + c_r) \qquad
        h' = z \odot h + (1 - z) \odot \hat h \\
        \hat h = \tanh(W_h x + b_h + r \odot (U_h h + c_h)) \text{ if reset_after, else }
        \tanh(W_h x + b_h + U_h (r \odot h))

    Shapes: kernel [I, 3H], recurrent_kernel [H, 3H], bias [2, 3H] (b and c) with ``reset_after=True``, which is Keras's
    default since TensorFlow 2, [3H] (b; c = 0) with ``reset_after=False``; gates in the order z, r, h. All of one
    dtype, that of the layer's variables, which the GRU keeps.

    Args:
        source: a layer `GRU`, `GRUCell`, `RNN` of a `GRUCell`, or `Bidirectional` of one of the layers with
            merge_mode "concat" or None; or arrays [kernel, recurrent_kernel, bias], without the bias
            if there is none, and twice that (forward, then backward) for two directions.
        reset_after: for arrays. Told by the shape of the bias; needed where there is none.
        go_backwards: for arrays of one direction.

    Returns:
        One layer in `eval()`, with batch_first unless the layer is time_major: [B, T, I] -> [B, T, H]; of a `GRUCell`
        a `GRUCell`. What it returns, ``output, h_n``, is what Keras returns so:

        - ``return_sequences=True``: ``output``; with go_backwards, ``output.flip(1)``, as Keras puts what it computes
          first first and we put it where its input stands. A Bidirectional turns its backward half as we do.
        - ``return_sequences=False``, and the states of ``return_state=True``: ``h_n[0]``, and ``h_n[1]`` backward; with
          merge_mode "concat", ``torch.cat([*h_n], 1)``. It is not ``output[:, -1]``, but for one direction forward.
        - merge_mode None: the halves of ``output`` as two tensors.
        - mask, padded on the right: ``lengths=mask.sum(1)``. Beyond them ``output`` is zero, as with Keras's
          ``zero_output_for_mask=True`` and in its Bidirectional; otherwise Keras repeats the last output there.
        - initial_state: ``hx``, [directions, B, H]. What a stateful layer has kept is not copied: pass it.

    Dropout, regularizers and initializers play no part in inference and are not carried over.

    Raises:
        ValueError: an activation that is not Keras's own tanh, or a recurrent_activation that is not its own sigmoid
            (hard_sigmoid, say, or a function of yours, whatever its name); another merge_mode; a layer that is not
            built; directions that differ or that are exchanged; arrays whose number or shapes do not fit; reset_after
            missing, or against the bias; arguments that are for arrays.
        TypeError: another layer (an LSTM, a subclass), a layer whose ``call`` has been replaced, or arrays that are not
            of one floating point dtype.
    """
    if isinstance(source, list | tuple):
        return _of_arrays(source, reset_after, go_backwards)
    if reset_after is not None or go_backwards:
        raise ValueError("reset_after and go_backwards are for arrays: a layer has its own")
    kind = _kind(source, "GRU", "GRUCell", "RNN", "Bidirectional")
    if kind == "GRUCell":
        return assemble.build_cell(*_named(_arrays(source), [""], source.reset_after), reset_after=source.reset_after)
    layers = [source.forward_layer, source.backward_layer] if kind == "Bidirectional" else [source]
    cells = [_cell(layer) for layer in layers]
    if len(layers) == 2:
        _check_directions(source.merge_mode, layers, cells)
    arrays = [array for cell in cells for array in _arrays(cell)]
    return assemble.build_gru(
        _named(arrays, ["", "backward "][: len(cells)], cells[0].reset_after),
        reset_after=cells[0].reset_after,
        reverse=len(layers) == 1 and source.go_backwards,
        batch_first=not getattr(layers[0], "time_major", False),  # Keras 2 has it
    )


def _of_arrays(arrays: list | tuple, reset_after: bool | None, go_backwards: bool) -> GRU:
    if len(arrays) not in (2, 3, 4, 6):
        raise ValueError(
            f"expected kernel, recurrent_kernel and, if there is one, bias, once or twice, got {len(arrays)} arrays"
        )
    directions = 2 if len(arrays) > 3 else 1
    if go_backwards and directions == 2:
        raise ValueError("go_backwards is for one direction, got the arrays of two")
    if len(arrays) % 3 == 0:
        told = assemble.convert_to_tensors({"bias": arrays[2]})["bias"].dim() == 2
        if reset_after not in (None, told):
            raise ValueError(f"reset_after={reset_after}, but a bias of this shape is one of reset_after={told}")
        reset_after = told
    elif reset_after is None:
        raise ValueError("arrays without a bias do not tell reset_after: pass it")
    weights = _named(arrays, ["", "backward "][:directions], reset_after)
    return assemble.build_gru(weights, reset_after=reset_after, reverse=go_backwards, batch_first=True)


def _named(arrays: list | tuple, prefixes: list[str], reset_after: bool) -> list[LayerWeights]:
    """The weights of each direction in torch's layout, of the arrays of all."""
    each = len(arrays) // len(prefixes)
    names = [prefix + name for prefix in prefixes for name in ("kernel", "recurrent_kernel", "bias")[:each]]
    given = assemble.convert_to_tensors(dict(zip(names, arrays)))
    first = given["recurrent_kernel"]
    assemble.check_shape("recurrent_kernel", first, "hidden", "3 * hidden")
    hidden = first.size(0)
    assemble.check_shape("kernel", given["kernel"], "input", 3 * hidden)
    inputs = given["kernel"].size(0)
    bias_shape = (2, 3 * hidden) if reset_after else (3 * hidden,)
    for prefix in prefixes:
        assemble.check_shape(f"{prefix}kernel", given[f"{prefix}kernel"], inputs, 3 * hidden)
        assemble.check_shape(f"{prefix}recurrent_kernel", given[f"{prefix}recurrent_kernel"], hidden, 3 * hidden)
        if each == 3:
            assemble.check_shape(f"{prefix}bias", given[f"{prefix}bias"], *bias_shape)
    return [
        _weights(given[f"{prefix}kernel"], given[f"{prefix}recurrent_kernel"], given.get(f"{prefix}bias"))
        for prefix in prefixes
    ]


def _weights(kernel: Tensor, recurrent_kernel: Tensor, bias: Tensor | None) -> LayerWeights:
    if bias is None:
        bias_ih = bias_hh = None
    else:
        bias_ih, bias_hh = bias if bias.dim() == 2 else (bias, bias.new_zeros(bias.shape))
        bias_ih, bias_hh = assemble.reorder_zrn_to_rzn(bias_ih), assemble.reorder_zrn_to_rzn(bias_hh)
    return assemble.reorder_zrn_to_rzn(kernel.t()), assemble.reorder_zrn_to_rzn(recurrent_kernel.t()), bias_ih, bias_hh


# ---- layers


def _kind(layer: Any, *names: str) -> str:
    """Return which of these classes of Keras's own ``layer`` is of.

    Raises:
        TypeError: it is of none of them, or computes something else. A subclass may compute anything.
    """
    kind = type(layer)
    is_own = _package(layer) in _PACKAGES and getattr(sys.modules.get(kind.__module__), kind.__name__, None) is kind
    if not is_own or kind.__name__ not in names:
        raise TypeError(
            "expected a Keras layer GRU, GRUCell, RNN(GRUCell) or Bidirectional of these, or a list of arrays, "
            f"got {kind.__module__}.{kind.__qualname__}"
        )
    if replaced := [name for name in _METHODS if name in vars(layer)]:
        raise TypeError(f"{', '.join(replaced)} of this {kind.__name__} has been replaced")
    return kind.__name__


def _package(layer: Any) -> str:
    return type(layer).__module__.partition(".")[0]


def _cell(layer: Any) -> Any:
    """Return the GRUCell of a GRU or of an RNN."""
    _kind(layer, "GRU", "RNN")
    _kind(layer.cell, "GRUCell")
    return layer.cell


def _arrays(cell: Any) -> list:
    _check_activation(cell, "activation", "tanh")
    _check_activation(cell, "recurrent_activation", "sigmoid")
    if not cell.built:
        raise ValueError("the layer is not built, so it has no weights: call it, or build(input_shape), first")
    return cell.get_weights()


def _check_activation(cell: Any, name: str, expected: str) -> None:
    function = getattr(cell, name)
    modules = [sys.modules.get(f"{_package(cell)}.{each}") for each in _FUNCTIONS_IN]
    if not any(function is getattr(each, expected, None) for each in modules):
        given = getattr(function, "__name__", repr(function))
        # A function of the same name needs its module to be told apart.
        given = f"{function.__module__}.{function.__qualname__}" if given == expected else given
        raise ValueError(f"{name} is {given!r}: only Keras's own {expected!r} can be converted")


def _check_directions(merge_mode: str | None, layers: list, cells: list) -> None:
    if merge_mode not in ("concat", None):
        raise ValueError(f"merge_mode is {merge_mode!r}: only 'concat' and None can be converted")
    if layers[0].go_backwards:
        raise ValueError("the forward layer of this Bidirectional has go_backwards=True: it turns time around")
    for name in ("units", "use_bias", "reset_after"):
        forward, backward = (getattr(cell, name) for cell in cells)
        if forward != backward:
            raise ValueError(f"the two directions differ: {name} is {forward} forward, {backward} backward")
