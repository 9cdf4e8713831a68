"""Conversion of the GRUCells of flax.linen and flax.nnx, from their dicts of parameters."""

from collections.abc import Mapping
from typing import Any

import torch

from ..modules import GRU
from ..reference import LayerWeights
from . import assemble

# Keys of the parameters of a cell: the outer keys, and the keys in the dict of each.
_LINEN = {"ir": {"kernel", "bias"}, "iz": {"kernel", "bias"}, "in": {"kernel", "bias"},
          "hr": {"kernel"}, "hz": {"kernel"}, "hn": {"kernel", "bias"}}  # fmt: skip
_NNX = {"dense_i": {"kernel", "bias"}, "dense_h": {"kernel"}}


def from_flax(params: Mapping[str, Any]) -> GRU:
    r"""Convert the parameters of a `flax.linen.GRUCell` or a `flax.nnx.GRUCell` to a GRU.

        params = cell.init(key, carry, x)["params"]  # flax.linen
        params = nnx.to_pure_dict(nnx.state(cell))  # flax.nnx
        gru = triton_gru.convert.from_flax(params)

    The cell must have the default activations, sigmoid and tanh. **A dict does not show other activations: do not
    convert a cell that has them.**

    The formula (flax/linen/recurrent.py and flax/nnx/nn/recurrent.py, Flax 0.12), with ``x @ kernel`` for W x:

    .. math::
        r = \sigma(W_{ir} x + b_{ir} + W_{hr} h) \qquad
        z = \sigma(W_{iz} x + b_{iz} + W_{hz} h) \\
        n = \tanh(W_{in} x + b_{in} + r \odot (W_{hn} h + b_{hn})) \qquad
        h' = (1 - z) \odot n + z \odot h

    Shapes of flax.linen:
        ir, iz, in: {kernel [I, H], bias [H]}.
        hr, hz: {kernel [H, H]}.
        hn: {kernel [H, H], bias [H]}.

    Shapes of flax.nnx, with the gates in the order r, z, n, and b_hn = 0:
        dense_i: {kernel [I, 3H], bias [3H]}.
        dense_h: {kernel [H, 3H]}.

    dtypes: float16, bfloat16, float32 or float64, the same for all arrays. The GRU keeps it.

    Args:
        params: a mapping with these keys and arrays. It may be wrapped as {"params": ...}.

    Returns:
        One layer in `eval()`: [T, B, I] -> [T, B, H]. Biases that Flax does not have are zero.

    Raises:
        ValueError: the keys are not those of a GRUCell, but of an LSTM, for example, or of a module that contains the
            cell.
        ValueError: a shape does not fit the shapes above.
        TypeError: ``params`` is not a mapping, the dtypes or devices of the arrays differ, or a dtype is not one of the
            above.
    """
    if not isinstance(params, Mapping):
        raise TypeError(f"expected the dict of a GRUCell's parameters, got {type(params).__name__}")
    params = params["params"] if set(params) == {"params"} else params
    keys = {name: set(value) if isinstance(value, Mapping) else set() for name, value in params.items()}
    if keys not in (_LINEN, _NNX):
        raise ValueError(
            f"expected the parameters of one GRUCell, {_format_keys(_LINEN)} or {_format_keys(_NNX)}, "
            f"got {_format_keys(keys)}"
        )
    tensors = assemble.convert_to_tensors(
        {f"{outer}/{inner}": params[outer][inner] for outer in keys for inner in sorted(keys[outer])}
    )
    weights = _convert_linen(tensors) if keys == _LINEN else _convert_nnx(tensors)
    return assemble.build_gru([weights], reset_after=True)


def _format_keys(keys: dict[str, set[str]]) -> str:
    """Return keys for an error: ``"dense_i/bias/kernel, dense_h/kernel"``."""
    return ", ".join("/".join(map(str, [name, *sorted(inner, key=str)])) for name, inner in keys.items())


def _convert_linen(tensors: dict[str, torch.Tensor]) -> LayerWeights:
    """Return the weights of a flax.linen cell in torch's layout. Raise ValueError if shapes do not fit."""
    assemble.check_shape("ir/kernel", tensors["ir/kernel"], "input", "hidden")
    inputs, hidden = tensors["ir/kernel"].shape
    for name, tensor in tensors.items():
        rows = inputs if name.startswith("i") else hidden
        assemble.check_shape(name, tensor, *((rows, hidden) if name.endswith("kernel") else (hidden,)))
    weight_ih = torch.cat([tensors[f"i{gate}/kernel"].t() for gate in "rzn"])
    weight_hh = torch.cat([tensors[f"h{gate}/kernel"].t() for gate in "rzn"])
    bias_ih = torch.cat([tensors[f"i{gate}/bias"] for gate in "rzn"])
    bias_hh = torch.zeros_like(bias_ih)
    bias_hh[2 * hidden :] = tensors["hn/bias"]
    return weight_ih, weight_hh, bias_ih, bias_hh


def _convert_nnx(tensors: dict[str, torch.Tensor]) -> LayerWeights:
    """Return the weights of a flax.nnx cell in torch's layout. Raise ValueError if shapes do not fit."""
    assemble.check_shape(
        "dense_h/kernel", tensors["dense_h/kernel"], "hidden", "3 * hidden"
    )  # checks only that it is a matrix
    hidden = tensors["dense_h/kernel"].size(0)
    assemble.check_shape("dense_h/kernel", tensors["dense_h/kernel"], hidden, 3 * hidden)
    assemble.check_shape("dense_i/kernel", tensors["dense_i/kernel"], "input", 3 * hidden)
    assemble.check_shape("dense_i/bias", tensors["dense_i/bias"], 3 * hidden)
    bias = tensors["dense_i/bias"]
    weight_ih, weight_hh = (tensors[f"dense_{side}/kernel"].t().contiguous() for side in "ih")
    return weight_ih, weight_hh, bias, torch.zeros_like(bias)
