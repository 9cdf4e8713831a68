"""Which tensors a kernel can read: those whose memory holds their values, as their dtype and shape say."""

import torch
from torch import Tensor

from ..reference import WEIGHT_NAMES, LayerWeights
from .options import Options

_PLAIN = (Tensor, torch.nn.Parameter)


def materialize(tensor: Tensor | None) -> Tensor | None:
    """Return ``tensor`` with its values in memory, as a copy where memory holds something else.

    torch may keep a negation as a bit of the tensor (``z.conj().imag``), and zeros without any memory.
    """
    return tensor.clone() if type(tensor) in _PLAIN and _holds_other_values(tensor) else tensor


def _holds_other_values(tensor: Tensor) -> bool:
    return tensor.is_neg() or tensor._is_zerotensor()


def is_plain(tensor) -> bool:
    """Return whether ``tensor`` is one of torch's own, with memory of its own."""
    return type(tensor) in _PLAIN and tensor.layout is torch.strided


def unreadable_reason(tensor: Tensor) -> str:
    """Return why the values of ``tensor`` are not what its memory holds; empty if they are."""
    if type(tensor) not in _PLAIN:
        return f"{type(tensor).__name__} is a tensor subclass"
    if tensor.layout is not torch.strided:
        return f"a tensor has the layout {str(tensor.layout)[6:]}, and kernels read strided memory"
    if _holds_other_values(tensor):
        return "the memory of a tensor holds other values: torch negates them when they are read, or has zeros only"
    return ""


def unreadable_weights_reason(options: Options, weights: list[LayerWeights], input: Tensor) -> str:
    """Return why a kernel cannot read the weights of a GRU or cell beside ``input``; empty if it can."""
    hidden = options.hidden_size
    for i, layer in enumerate(weights):
        features = options.input_size if i < options.directions else options.directions * hidden
        shapes = ((3 * hidden, features), (3 * hidden, hidden), (3 * hidden,), (3 * hidden,))
        for name, weight, shape in zip(WEIGHT_NAMES, layer, shapes):
            if weight is None:
                continue
            if reason := unreadable_reason(weight):
                return reason
            if weight.dtype != input.dtype or weight.device != input.device:
                here, there = f"{weight.dtype} on {weight.device}", f"{input.dtype} on {input.device}"
                return f"{name} and the input differ in dtype or device: {here} and {there}"
            if weight.shape != shape:
                return f"{name} has the shape {list(weight.shape)}, expected {list(shape)} by the module's sizes"
    return ""
