"""`accelerate` and `restore`: change the GRUs inside a model to this package's, and back."""

import warnings

from torch import nn
from torch.nn.utils import parametrize

from .arguments import beyond_torch
from .modules import GRU, GRUCell

_OURS = {nn.GRU: GRU, nn.GRUCell: GRUCell}
_TORCHS = {ours: torchs for torchs, ours in _OURS.items()}


def accelerate(model: nn.Module) -> nn.Module:
    """Let every `nn.GRU` and `nn.GRUCell` of ``model``, and ``model`` itself, run on this package's kernels.

    In place, and only the class changes: each module stays the same object with the same Parameters, buffers,
    hooks and attributes, so whatever shares or refers to it goes on doing so, and nothing is copied. A module
    whose type is a subclass of the two (a parametrized one too), or that has a `forward` of its own set on the
    instance, is left alone, with a warning that names it.

    ``isinstance(module, nn.GRU)`` is False afterwards (`nn.RNNBase` holds), as torch.compile refuses to look
    into an `nn.GRU`.

    Returns:
        ``model``.
    """
    _change_classes(model, _OURS)
    return model


def restore(model: nn.Module) -> nn.Module:
    """The reverse of `accelerate`: every `GRU` and `GRUCell` of ``model`` becomes torch's own again, in place.

    One with ``reset_after=False`` or ``reverse=True`` has no counterpart in torch and is left alone, with a warning.

    Returns:
        ``model``.
    """
    _change_classes(model, _TORCHS)
    return model


def _change_classes(model: nn.Module, classes: dict[type, type]) -> None:
    left_alone = []
    for name, module in model.named_modules():
        new_class = classes.get(type(module))
        why_not = _why_not(module, new_class, classes)
        if why_not:
            left_alone.append(f"{name or 'the model itself'} ({why_not})")
        elif new_class is not None:
            module.__class__ = new_class
            for own in ("backend", "reset_after", "reverse"):
                module.__dict__.pop(own, None)
    if left_alone:
        warnings.warn("left alone: " + "; ".join(left_alone), stacklevel=3)


def _why_not(module: nn.Module, new_class: type | None, classes: dict[type, type]) -> str:
    if new_class is None:
        bases = [base for base in classes if isinstance(module, base)]
        way_out = ": remove its parametrizations first" if parametrize.is_parametrized(module) else ""
        return f"{type(module).__name__} is a subclass of {bases[0].__name__}{way_out}" if bases else ""
    if "forward" in module.__dict__:
        return "its forward has been replaced"
    own = beyond_torch(module)
    return f"{own}, which torch does not have" if own else ""
