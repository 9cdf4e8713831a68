"""Checks that a kernel can read a tensor: its memory must hold its values, in its dtype and shape."""

import torch
from torch import Tensor

from ..reference import WEIGHT_NAMES, LayerWeights
from .options import Options

_PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def materialize(tensor: Tensor | None) -> Tensor | None:
    """Return ``tensor``, or a copy whose memory holds the values of ``tensor`` if the memory of ``tensor`` does not.

    Exception: a tensor subclass is returned unchanged.
    """
    return tensor.clone() if type(tensor) in _PLAIN_TYPES and _has_lazy_values(tensor) else tensor


def _has_lazy_values(tensor: Tensor) -> bool:
    """Return whether the values of ``tensor`` are not those in its memory, because torch computes them on reading.

    torch may store a negation as a bit of the tensor (``z.conj().imag``), and zeros without any memory.
    """
    return tensor.is_neg() or tensor._is_zerotensor()


def is_plain(tensor) -> bool:
    """Return whether ``tensor`` is a plain torch tensor or Parameter with strided memory, not another subclass."""
    return type(tensor) in _PLAIN_TYPES and tensor.layout is torch.strided


def unreadable_reason(tensor: Tensor) -> str:
    """Return why a kernel cannot read the values of ``tensor`` from its memory, or ''."""
    if type(tensor) not in _PLAIN_TYPES:
        return f"{type(tensor).__name__} is a tensor subclass"
    if tensor.layout is not torch.strided:
        return (
            f"a tensor has the layout {str(tensor.layout).removeprefix('torch.')}, and kernels read strided memory only"
        )
    if _has_lazy_values(tensor):
        return "a tensor's values are not in its memory: torch negates them on reading, or keeps zeros without memory"
    return ""


def unreadable_weights_reason(options: Options, weights: list[LayerWeights], input: Tensor) -> str:
    """Return why a kernel cannot use the weights of a GRU or cell with ``input``, or ''.

    Each weight must be readable, of the dtype and device of ``input``, and of the shape that the module's sizes imply.
    """
    hidden = options.hidden_size
    for index, layer in enumerate(weights):
        is_first_layer = index < options.directions
        features = options.input_size if is_first_layer else options.directions * hidden
        shapes = ((3 * hidden, features), (3 * hidden, hidden), (3 * hidden,), (3 * hidden,))
        for name, weight, shape in zip(WEIGHT_NAMES, layer, shapes):
            if weight is None:
                continue
            if reason := unreadable_reason(weight):
                return reason
            if weight.dtype != input.dtype or weight.device != input.device:
                return (
                    f"{name} and the input differ in dtype or device: {weight.dtype} on {weight.device} and "
                    f"{input.dtype} on {input.device}"
                )
            if weight.shape != shape:
                return f"{name} has the shape {list(weight.shape)}, expected {list(shape)} by the module's sizes"
    return ""
