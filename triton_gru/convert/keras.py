"""Conversion of Keras's GRU layers and of their weights. This file does not import Keras."""

import sys
from typing import Any

from torch import Tensor

from ..modules import GRU, GRUCell
from ..reference import LayerWeights
from . import assemble

_PACKAGES = ("keras", "tf_keras")
# Modules of a package that have its activation functions. They depend on the package's version.
_ACTIVATION_MODULES = ("src.activations", "activations", "src.ops")
_METHODS = ("call", "get_initial_state", "inner_loop")  # if one is replaced, the layer may compute something else


def from_keras(source: Any, *, reset_after: bool | None = None, go_backwards: bool = False) -> GRU | GRUCell:
    r"""Convert a built Keras layer (Keras 3, tf.keras, tf_keras), or its ``get_weights()``, to a GRU.

        gru = triton_gru.convert.from_keras(layer)

    The formula (keras/src/layers/rnn/gru.py, Keras 3.15), with ``x @ kernel`` for W x and
    ``h @ recurrent_kernel`` for U h:

    .. math::
        z = \sigma(W_z x + b_z + U_z h + c_z) \qquad
        r = \sigma(W_r x + b_r + U_r h + c_r) \qquad
        h' = z \odot h + (1 - z) \odot \hat h \\
        \hat h = \tanh(W_h x + b_h + r \odot (U_h h + c_h)) \text{ if reset_after, else }
        \tanh(W_h x + b_h + U_h (r \odot h))

    Shapes, with the gates in the order z, r, h:
        kernel: [I, 3H].
        recurrent_kernel: [H, 3H].
        bias: [2, 3H] (b and c) with ``reset_after=True``, which is Keras's default since TensorFlow 2. [3H] (b; c = 0)
            with ``reset_after=False``.

    dtypes: that of the layer's variables, the same for all arrays. The GRU keeps it.

    Args:
        source: a layer, or a list of arrays.

            - A layer is a `GRU`, a `GRUCell`, an `RNN` of a `GRUCell`, or a `Bidirectional` of a `GRU` or `RNN` with
              merge_mode "concat" or None.
            - Arrays are [kernel, recurrent_kernel, bias], or [kernel, recurrent_kernel] without a bias. For two
              directions, the list has those of the forward direction, then those of the backward one.
        reset_after: the layer's option, for arrays without a bias. With a bias, the shape of the bias shows the option.
        go_backwards: the layer's option, for arrays of one direction.

    Returns:
        One layer in `eval()`: [B, T, I] -> [B, T, H], or [B, T, 2H] for two directions. It has batch_first, unless the
        layer is time_major. A `GRUCell` becomes a `GRUCell`. Keras's results follow from ``output, h_n``:

        - ``return_sequences=True``: ``output``. With go_backwards, ``output.flip(1)``: Keras returns outputs in the
          order of computation, and our ``output[:, t]`` belongs to the input at t. A Bidirectional needs no flip.
        - ``return_sequences=False``, and the states of ``return_state=True``: ``h_n[0]`` forward, ``h_n[1]`` backward.
          With merge_mode "concat", ``torch.cat([*h_n], 1)``. ``output[:, -1]`` is the same for one forward direction
          only.
        - merge_mode None: the two halves of ``output``'s last dimension, as two tensors.
        - mask, padded on the right: ``lengths=mask.sum(1)``. Our ``output`` is zero beyond the lengths, as with Keras's
          ``zero_output_for_mask=True`` and in its Bidirectional. In other cases, Keras repeats the last output there.
        - initial_state: ``hx``, [directions, B, H]. The state that a stateful layer keeps is not copied: pass it.

    Dropout, regularizers and initializers do not affect inference, and are not converted.

    Raises:
        ValueError: the activation is not Keras's own tanh, or the recurrent_activation is not Keras's own sigmoid, but
            hard_sigmoid, for example, or a function that you wrote.
        ValueError: merge_mode is neither "concat" nor None, or the layer is not built.
        ValueError: the layers of a Bidirectional differ in units, use_bias or reset_after, or its forward layer has
            go_backwards=True.
        ValueError: the number of arrays is not 2, 3, 4 or 6, or their shapes do not fit.
        ValueError: reset_after is missing, or contradicts the shape of the bias.
        ValueError: reset_after or go_backwards is passed with a layer, or go_backwards with arrays of two directions.
        TypeError: ``source`` is neither a list of arrays nor one of the layers above, but an LSTM or a subclass, for
            example. Or the layer's ``call`` has been replaced.
        TypeError: the arrays do not have one floating point dtype.
    """
    if isinstance(source, list | tuple):
        return _convert_arrays(source, reset_after, go_backwards)
    if reset_after is not None or go_backwards:
        raise ValueError("reset_after and go_backwards are for arrays: a layer has its own, so leave them out")
    kind = _check_class(source, "GRU", "GRUCell", "RNN", "Bidirectional")
    if kind == "GRUCell":
        (weights,) = _convert_weights(_get_arrays(source), [""], source.reset_after)
        return assemble.build_cell(weights, reset_after=source.reset_after)
    layers = [source.forward_layer, source.backward_layer] if kind == "Bidirectional" else [source]
    cells = [_get_cell(layer) for layer in layers]
    if len(layers) == 2:
        _check_directions(source.merge_mode, layers, cells)
    arrays = [array for cell in cells for array in _get_arrays(cell)]
    return assemble.build_gru(
        _convert_weights(arrays, ["", "backward "][: len(cells)], cells[0].reset_after),
        reset_after=cells[0].reset_after,
        reverse=len(layers) == 1 and source.go_backwards,
        batch_first=not getattr(layers[0], "time_major", False),  # an option of Keras 2 only
    )


def _convert_arrays(arrays: list | tuple, reset_after: bool | None, go_backwards: bool) -> GRU:
    """Return the GRU of a list of arrays, as `from_keras`. The shape of the bias, if any, decides reset_after."""
    if len(arrays) not in (2, 3, 4, 6):
        raise ValueError(
            f"expected kernel, recurrent_kernel and, if there is one, bias, once or twice, got {len(arrays)} arrays"
        )
    has_bias = len(arrays) in (3, 6)
    directions = 2 if len(arrays) > 3 else 1
    if go_backwards and directions == 2:
        raise ValueError("go_backwards is for one direction, got the arrays of two")
    if has_bias:
        bias_reset_after = assemble.convert_to_tensors({"bias": arrays[2]})["bias"].dim() == 2
        if reset_after not in (None, bias_reset_after):
            raise ValueError(
                f"reset_after={reset_after}, but a bias of this shape is one of reset_after={bias_reset_after}"
            )
        reset_after = bias_reset_after
    elif reset_after is None:
        raise ValueError("arrays without a bias do not show reset_after: pass reset_after=True or False")
    weights = _convert_weights(arrays, ["", "backward "][:directions], reset_after)
    return assemble.build_gru(weights, reset_after=reset_after, reverse=go_backwards, batch_first=True)


def _convert_weights(arrays: list | tuple, prefixes: list[str], reset_after: bool) -> list[LayerWeights]:
    """Return the weights of each direction in torch's layout, from the arrays of all directions.

    ``prefixes`` has one prefix for each direction. Errors name an array by the prefix of its direction, for example
    "backward kernel".
    """
    arrays_per_direction = len(arrays) // len(prefixes)
    array_names = ("kernel", "recurrent_kernel", "bias")[:arrays_per_direction]
    tensors = assemble.convert_to_tensors(
        dict(zip((prefix + name for prefix in prefixes for name in array_names), arrays))
    )
    # Sizes of the first direction, which every direction must have. The prefix of the first direction is empty.
    assemble.check_shape("recurrent_kernel", tensors["recurrent_kernel"], "hidden", "3 * hidden")
    hidden = tensors["recurrent_kernel"].size(0)
    assemble.check_shape("kernel", tensors["kernel"], "input", 3 * hidden)
    inputs = tensors["kernel"].size(0)
    bias_shape = (2, 3 * hidden) if reset_after else (3 * hidden,)
    for prefix in prefixes:
        assemble.check_shape(f"{prefix}kernel", tensors[f"{prefix}kernel"], inputs, 3 * hidden)
        assemble.check_shape(f"{prefix}recurrent_kernel", tensors[f"{prefix}recurrent_kernel"], hidden, 3 * hidden)
        if arrays_per_direction == 3:
            assemble.check_shape(f"{prefix}bias", tensors[f"{prefix}bias"], *bias_shape)
    return [
        _reorder_weights(tensors[f"{prefix}kernel"], tensors[f"{prefix}recurrent_kernel"], tensors.get(f"{prefix}bias"))
        for prefix in prefixes
    ]


def _reorder_weights(kernel: Tensor, recurrent_kernel: Tensor, bias: Tensor | None) -> LayerWeights:
    """Return the weights of one direction in torch's layout. Keras's bias of ``reset_after=False`` becomes bias_ih.

    bias_hh is zero then. Without a bias, both are None.
    """
    if bias is None:
        bias_ih = bias_hh = None
    else:
        bias_ih, bias_hh = bias if bias.dim() == 2 else (bias, bias.new_zeros(bias.shape))
        bias_ih, bias_hh = assemble.reorder_zrn_to_rzn(bias_ih), assemble.reorder_zrn_to_rzn(bias_hh)
    return assemble.reorder_zrn_to_rzn(kernel.t()), assemble.reorder_zrn_to_rzn(recurrent_kernel.t()), bias_ih, bias_hh


# ---- layers


def _check_class(layer: Any, *names: str) -> str:
    """Return the name of the layer's class, after checking that it is a class of Keras, and one of ``names``.

    Raises:
        TypeError: the layer has another class, or one of its methods has been replaced. A subclass raises, too, because
            it may compute anything.
    """
    kind = type(layer)
    is_keras_class = (
        _package_name(layer) in _PACKAGES and getattr(sys.modules.get(kind.__module__), kind.__name__, None) is kind
    )
    if not is_keras_class or kind.__name__ not in names:
        raise TypeError(
            "expected a Keras layer GRU, GRUCell, RNN(GRUCell) or Bidirectional of these, or a list of arrays, "
            f"got {kind.__module__}.{kind.__qualname__}"
        )
    if replaced := [name for name in _METHODS if name in vars(layer)]:
        raise TypeError(f"{', '.join(replaced)} of this {kind.__name__} has been replaced")
    return kind.__name__


def _package_name(layer: Any) -> str:
    """Return the package of the layer's class, such as "keras"."""
    return type(layer).__module__.partition(".")[0]


def _get_cell(layer: Any) -> Any:
    """Return the GRUCell of a Keras GRU or RNN. Raise TypeError if ``layer`` is neither, or has a different cell."""
    _check_class(layer, "GRU", "RNN")
    _check_class(layer.cell, "GRUCell")
    return layer.cell


def _get_arrays(cell: Any) -> list:
    """Return the weights of a Keras GRUCell. Raise ValueError if it is not built, or for an unsupported activation."""
    _check_activation(cell, "activation", "tanh")
    _check_activation(cell, "recurrent_activation", "sigmoid")
    if not cell.built:
        raise ValueError("the layer is not built, so it has no weights: call it, or build(input_shape), first")
    return cell.get_weights()


def _check_activation(cell: Any, name: str, expected: str) -> None:
    """Raise ValueError unless the attribute ``name`` of the cell is Keras's own function of the name ``expected``."""
    function = getattr(cell, name)
    modules = [sys.modules.get(f"{_package_name(cell)}.{path}") for path in _ACTIVATION_MODULES]
    if not any(function is getattr(module, expected, None) for module in modules):
        function_name = getattr(function, "__name__", repr(function))
        if function_name == expected:  # A function of the same name differs by its module.
            function_name = f"{function.__module__}.{function.__qualname__}"
        raise ValueError(f"{name} is {function_name!r}: only Keras's own {expected!r} can be converted")


def _check_directions(merge_mode: str | None, layers: list, cells: list) -> None:
    """Raise ValueError if a Bidirectional of these two layers cannot be converted, by its merge_mode or its layers."""
    if merge_mode not in ("concat", None):
        raise ValueError(f"merge_mode is {merge_mode!r}: only 'concat' and None can be converted")
    if layers[0].go_backwards:
        raise ValueError("the forward layer of this Bidirectional has go_backwards=True, which cannot be converted")
    for name in ("units", "use_bias", "reset_after"):
        forward, backward = (getattr(cell, name) for cell in cells)
        if forward != backward:
            raise ValueError(f"the two directions differ: {name} is {forward} forward, {backward} backward")
