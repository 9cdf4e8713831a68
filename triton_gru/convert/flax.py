"""Flax's GRUCells, of flax.linen and of flax.nnx, by their dicts of parameters."""

from collections.abc import Mapping
from typing import Any

import torch

from ..modules import GRU
from ..reference import LayerWeights
from . import assemble

_LINEN = {"ir": {"kernel", "bias"}, "iz": {"kernel", "bias"}, "in": {"kernel", "bias"},
          "hr": {"kernel"}, "hz": {"kernel"}, "hn": {"kernel", "bias"}}  # fmt: skip
_NNX = {"dense_i": {"kernel", "bias"}, "dense_h": {"kernel"}}


def from_flax(params: Mapping[str, Any]) -> GRU:
    r"""A GRU of the parameters of a `flax.linen.GRUCell` or a `flax.nnx.GRUCell`, whose activations are the defaults.

    The formula (flax/linen/recurrent.py and flax/nnx/nn/recurrent.py, Flax 0.12), with ``x @ kernel`` for W x:

    .. math::
        r = \sigma(W_{ir} x + b_{ir} + W_{hr} h) \qquad
        z = \sigma(W_{iz} x + b_{iz} + W_{hz} h) \\
        n = \tanh(W_{in} x + b_{in} + r \odot (W_{hn} h + b_{hn})) \qquad
        h' = (1 - z) \odot n + z \odot h

    Shapes: of linen ``ir``, ``iz``, ``in`` {kernel [I, H], bias [H]}, ``hr``, ``hz`` {kernel [H, H]} and ``hn``
    {kernel [H, H], bias [H]}; of nnx (``nnx.to_pure_dict(nnx.state(cell))``) ``dense_i`` {kernel [I, 3H], bias [3H]}
    and ``dense_h`` {kernel [H, 3H]}, gates in the order r, z, n, and b_hn = 0. Either may be wrapped in
    {"params": ...}. All of one dtype, float16, bfloat16, float32 or float64, which the GRU keeps.

    A dict does not tell other activations than sigmoid and tanh: do not convert a cell that has them.

    Returns:
        One layer in `eval()`: [T, B, I] -> [T, B, H]. Biases that Flax does not have are zero.

    Raises:
        ValueError: other keys than these (of an LSTM, say, or of a module around the cell), or shapes that do not fit.
        TypeError: ``params`` is no mapping, or an array is of another dtype.
    """
    if not isinstance(params, Mapping):
        raise TypeError(f"expected the dict of a GRUCell's parameters, got {type(params).__name__}")
    params = params["params"] if set(params) == {"params"} else params
    keys = {name: set(value) if isinstance(value, Mapping) else set() for name, value in params.items()}
    if keys not in (_LINEN, _NNX):
        raise ValueError(
            f"these are no parameters of one GRUCell, which has {_listed(_LINEN)} or {_listed(_NNX)}: {_listed(keys)}"
        )
    given = assemble.convert_to_tensors(
        {f"{outer}/{inner}": params[outer][inner] for outer in keys for inner in sorted(keys[outer])}
    )
    return assemble.build_gru([_linen(given) if keys == _LINEN else _nnx(given)], reset_after=True)


def _listed(keys: dict[str, set[str]]) -> str:
    return ", ".join("/".join(map(str, [name, *sorted(inner, key=str)])) for name, inner in keys.items())


def _linen(given: dict[str, torch.Tensor]) -> LayerWeights:
    assemble.check_shape("ir/kernel", given["ir/kernel"], "input", "hidden")
    inputs, hidden = given["ir/kernel"].shape
    for name, tensor in given.items():
        rows = inputs if name[0] == "i" else hidden
        assemble.check_shape(name, tensor, *((rows, hidden) if name.endswith("kernel") else (hidden,)))
    weight_ih = torch.cat([given[f"i{gate}/kernel"].t() for gate in "rzn"])
    weight_hh = torch.cat([given[f"h{gate}/kernel"].t() for gate in "rzn"])
    bias_ih = torch.cat([given[f"i{gate}/bias"] for gate in "rzn"])
    bias_hh = torch.zeros_like(bias_ih)
    bias_hh[2 * hidden :] = given["hn/bias"]
    return weight_ih, weight_hh, bias_ih, bias_hh


def _nnx(given: dict[str, torch.Tensor]) -> LayerWeights:
    assemble.check_shape("dense_h/kernel", given["dense_h/kernel"], "hidden", "3 * hidden")
    hidden = given["dense_h/kernel"].size(0)
    assemble.check_shape("dense_h/kernel", given["dense_h/kernel"], hidden, 3 * hidden)
    assemble.check_shape("dense_i/kernel", given["dense_i/kernel"], "input", 3 * hidden)
    assemble.check_shape("dense_i/bias", given["dense_i/bias"], 3 * hidden)
    bias = given["dense_i/bias"]
    weight_ih, weight_hh = (given[f"dense_{side}/kernel"].t().contiguous() for side in "ih")
    return weight_ih, weight_hh, bias, torch.zeros_like(bias)
