"""Conversion of a GRU written by hand with one matrix a gate, as in textbooks and articles."""

from collections.abc import Sequence
from typing import Any

import torch

from ..modules import GRU
from . import assemble

NAMES = ("W_xz", "W_hz", "b_z", "W_xr", "W_hr", "b_r", "W_xh", "W_hh", "b_h")


def from_gates(gates: Sequence[Any]) -> GRU:
    r"""Convert the nine tensors or arrays of a GRU written by hand. That GRU uses its matrices as ``x @ W``.

        gru = triton_gru.convert.from_gates([W_xz, W_hz, b_z, W_xr, W_hr, b_r, W_xh, W_hh, b_h])

    The formula (Dive into Deep Learning, https://d2l.ai/chapter_recurrent-modern/gru.html) resets before the product:

    .. math::
        Z = \sigma(X W_{xz} + H W_{hz} + b_z) \qquad
        R = \sigma(X W_{xr} + H W_{hr} + b_r) \\
        \tilde H = \tanh(X W_{xh} + (R \odot H) W_{hh} + b_h) \qquad
        H' = Z \odot H + (1 - Z) \odot \tilde H

    Shapes:
        W_xz, W_xr, W_xh: [input, hidden].
        W_hz, W_hr, W_hh: [hidden, hidden].
        b_z, b_r, b_h: [hidden].

    dtypes: float16, bfloat16, float32 or float64, the same for all entries. The GRU keeps it.

    Returns:
        One layer with ``reset_after=False``, in `eval()`: [T, B, input] -> [T, B, hidden]. Parameter bias_ih has the
        biases, and bias_hh is zero.

    Raises:
        ValueError: there are not nine entries, or the shape of an entry does not fit the shape of W_xz. The error names
            the entry.
        TypeError: the dtypes or devices of the entries differ, or a dtype is not one of the above.
    """
    if len(gates) != len(NAMES):
        raise ValueError(
            f"expected the {len(NAMES)} entries {', '.join(NAMES)}, without those of an output layer, got {len(gates)}"
        )
    tensors = assemble.convert_to_tensors(dict(zip(NAMES, gates)))
    assemble.check_shape("W_xz", tensors["W_xz"], "input", "hidden")
    inputs, hidden = tensors["W_xz"].shape
    for name, tensor in tensors.items():
        kind = name[:-1]  # the name without its gate: W_x, W_h or b_
        shape = {"W_x": (inputs, hidden), "W_h": (hidden, hidden), "b_": (hidden,)}[kind]
        assemble.check_shape(name, tensor, *shape)
    weight_ih, weight_hh, bias = (
        torch.cat([tensors[kind + gate].t() if kind != "b_" else tensors[kind + gate] for gate in "rzh"])
        for kind in ("W_x", "W_h", "b_")
    )
    return assemble.build_gru([(weight_ih, weight_hh, bias, torch.zeros_like(bias))], reset_after=False)
