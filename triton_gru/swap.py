"""`accelerate` and `restore`: change the GRUs inside a model to this package's, and back."""

import warnings
from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from .call.options import EXTRA_ATTRIBUTES, Options
from .modules import GRU, GRUCell
from .stand_in import StandIn

_Model = TypeVar("_Model", bound=nn.Module)

_OURS = {nn.GRU: GRU, nn.GRUCell: GRUCell}
_TORCHS = {ours: torchs for torchs, ours in _OURS.items()}


def accelerate(model: _Model) -> _Model:
    """Let every `nn.GRU` and `nn.GRUCell` of ``model``, and ``model`` itself, run on this package's kernels.

        model = torch.nn.Sequential(torch.nn.GRU(8, 16)).eval()
        print(triton_gru.accelerate(model))  # (0): triton_gru.GRU(8, 16)

    In place, and only the class changes: each module stays the same object with the same Parameters, buffers,
    hooks and attributes, so whatever shares or refers to it goes on doing so, and nothing is copied. A module
    whose type is a subclass of the two (a parametrized one too), or that has a `forward` of its own set on the
    instance, is left unchanged, with a warning that names its path in the model. A model without a GRU gets one, too.

    ``isinstance(module, nn.GRU)`` stays True. ``type(module)`` is this package's class: what looks types up in a table,
    as `torch.ao.quantization.quantize_dynamic` does, passes over the module. Call `restore` before. Where torch.compile
    looks into the module isinstance is False, as it looks into no `nn.GRU`: ask outside of compiled functions.

    What leaves the process is torch's own, and needs this package nowhere: pickles and `torch.save` of the whole model,
    `torch.export`, both ONNX exporters, `torch.jit.trace` and `torch.jit.script`. An unpickled model is accelerated by
    another call; so is the model itself after `torch.jit.script`, which puts what it compiles into it. Exception: a
    module on which an attribute of `GRU` was set afterwards (``backend``, say) is pickled and exported as it is.

    An accelerated `nn.GRU` takes ``lengths`` and ``resets``, which torch's does not: a model that passes them raises
    TypeError once it is restored, or unpickled and not accelerated again.

    Returns:
        ``model``.
    """
    _change_classes(model, _OURS, "accelerate")
    if not any(isinstance(module, (*_OURS, StandIn)) for module in model.modules()):
        warnings.warn(f"triton_gru.accelerate found no nn.GRU or nn.GRUCell in {type(model).__name__}", stacklevel=2)
    return model


def restore(model: _Model) -> _Model:
    """The reverse of `accelerate`: every `GRU` and `GRUCell` of ``model`` becomes torch's own again, in place.

    One with ``reset_after=False`` or ``reverse=True`` has no counterpart in torch. A warning names it, and it stays.

    Returns:
        ``model``.
    """
    _change_classes(model, _TORCHS, "restore")
    return model


def _change_classes(model: nn.Module, classes: dict[type, type], called: str) -> None:
    unchanged = []
    for path, module in model.named_modules():
        new_class = classes.get(type(module))
        if reason := _reason_against(module, new_class, classes):
            unchanged.append(f"{path!r} ({reason})" if path else f"the model itself ({reason})")
        elif new_class is not None:
            module.__class__ = new_class
            for own in EXTRA_ATTRIBUTES:
                module.__dict__.pop(own, None)
    if unchanged:
        warnings.warn(f"triton_gru.{called} left these modules unchanged: {', '.join(unchanged)}", stacklevel=3)


def _reason_against(module: nn.Module, new_class: type | None, classes: dict[type, type]) -> str:
    kind = type(module)
    if new_class is None:
        bases = [base for base in classes if issubclass(kind, base)]
        accelerated = classes is _OURS and issubclass(kind, StandIn)
        if not bases or accelerated:
            return ""
        way_out = ": remove its parametrizations first" if parametrize.is_parametrized(module) else ""
        return f"{kind.__name__} is a subclass of {'nn.' * (bases[0] in _OURS)}{bases[0].__name__}{way_out}"
    if "forward" in module.__dict__:
        return "its forward has been replaced"
    own = Options.from_module(module).unsupported_by_nn_gru
    return f"{own}, which torch does not have" if own else ""
