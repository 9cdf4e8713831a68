"""A GRU written out by hand, one matrix a gate, as textbooks and articles do."""

from collections.abc import Sequence
from typing import Any

import torch

from ..modules import GRU
from . import assemble

NAMES = ("W_xz", "W_hz", "b_z", "W_xr", "W_hr", "b_r", "W_xh", "W_hh", "b_h")


def from_gates(gates: Sequence[Any]) -> GRU:
    r"""A GRU of ``[W_xz, W_hz, b_z, W_xr, W_hr, b_r, W_xh, W_hh, b_h]``, tensors or arrays, used as ``x @ W``.

    The formula (Dive into Deep Learning, https://d2l.ai/chapter_recurrent-modern/gru.html), whose state resets
    before its product:

    .. math::
        Z = \sigma(X W_{xz} + H W_{hz} + b_z) \qquad
        R = \sigma(X W_{xr} + H W_{hr} + b_r) \\
        \tilde H = \tanh(X W_{xh} + (R \odot H) W_{hh} + b_h) \qquad
        H' = Z \odot H + (1 - Z) \odot \tilde H

    Shapes: W_x* [input, hidden], W_h* [hidden, hidden], b_* [hidden]; all of one dtype (float16, bfloat16, float32 or
    float64), which the GRU keeps.

    Returns:
        One layer with ``reset_after=False``, in `eval()`: [T, B, input] -> [T, B, hidden]. The biases are its bias_ih,
        its bias_hh is zero.

    Raises:
        ValueError: not nine entries, or one whose shape does not fit W_xz's; it is named.
        TypeError: an entry of another dtype.
    """
    if len(gates) != len(NAMES):
        raise ValueError(
            f"expected the {len(NAMES)} entries {', '.join(NAMES)} and no output layer's, got {len(gates)}"
        )
    given = assemble.convert_to_tensors(dict(zip(NAMES, gates)))
    assemble.check_shape("W_xz", given["W_xz"], "input", "hidden")
    inputs, hidden = given["W_xz"].shape
    for name, tensor in given.items():
        shape = {"W_x": (inputs, hidden), "W_h": (hidden, hidden)}.get(name[:3], (hidden,))
        assemble.check_shape(name, tensor, *shape)
    weight_ih, weight_hh, bias = (
        torch.cat([given[kind + gate].t() if kind != "b_" else given[kind + gate] for gate in "rzh"])
        for kind in ("W_x", "W_h", "b_")
    )
    return assemble.build_gru([(weight_ih, weight_hh, bias, torch.zeros_like(bias))], reset_after=False)
