"""Functions that change the GRUs inside a model to this package's, and back: `accelerate` and `restore`."""

import warnings
from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from .call.options import EXTRA_ATTRIBUTES, Options
from .modules import GRU, GRUCell
from .stand_in import StandIn

_Model = TypeVar("_Model", bound=nn.Module)

_TO_OURS = {nn.GRU: GRU, nn.GRUCell: GRUCell}  # torch's class -> this package's class
_TO_TORCH = {our_class: torch_class for torch_class, our_class in _TO_OURS.items()}


def accelerate(model: _Model) -> _Model:
    """Switch every `nn.GRU` and `nn.GRUCell` of ``model`` to this package's kernels, in place.

        model = torch.nn.Sequential(torch.nn.GRU(8, 16)).eval()
        print(triton_gru.accelerate(model))  # (0): triton_gru.GRU(8, 16)

    Only the class of a module changes. The module stays the same object, with the same Parameters, buffers, hooks and
    attributes. Nothing is copied, and references to the module and its parameters stay valid. ``model`` may itself be a
    GRU.

    Modules that stay unchanged, with a warning that names their paths in the model:
        - subclasses of `nn.GRU` and `nn.GRUCell`, parametrized modules among them;
        - modules whose `forward` has been replaced on the instance.

    A model without any GRU gets a warning, too.

    Types: ``isinstance(module, nn.GRU)`` stays True, and ``type(module)`` is this package's class. So code that looks
    types up in a table skips the module: call `restore` before `torch.ao.quantization.quantize_dynamic`. Exception:
    isinstance is False in code that torch.compile compiles into a graph with this package's operator. torch.compile
    breaks the graph at every `nn.GRU`, so the module must not look like one there. Call isinstance outside of compiled
    functions.

    Export: pickles and `torch.save` of the whole model contain `nn.GRU`, and a receiver does not need this package. The
    same holds for `torch.export`, both ONNX exporters, `torch.jit.trace` and `torch.jit.script`. Call `accelerate`
    again on an unpickled model. Call it again after `torch.jit.script`, too, which leaves `nn.GRU` in the model.
    Exception: a module on which an attribute of `GRU` (such as ``backend``) was set later stays a `triton_gru.GRU` in
    pickles and in `torch.export`.

    An accelerated `nn.GRU` takes ``lengths`` and ``resets``, which a plain `nn.GRU` does not. So a model that passes
    them raises TypeError after `restore`, and after unpickling until it is accelerated again.

    Returns:
        ``model``.
    """
    _change_classes(model, _TO_OURS, "accelerate")
    if not any(isinstance(module, (*_TO_OURS, StandIn)) for module in model.modules()):
        warnings.warn(f"triton_gru.accelerate found no nn.GRU or nn.GRUCell in {type(model).__name__}", stacklevel=2)
    return model


def restore(model: _Model) -> _Model:
    """Switch every `GRU` and `GRUCell` of ``model`` to `nn.GRU` and `nn.GRUCell`, in place. Undoes `accelerate`.

        triton_gru.restore(model)

    This package's attributes, such as ``backend``, are deleted.

    Modules with ``reset_after=False`` or ``reverse=True`` stay unchanged, because torch has no such GRU. Subclasses and
    modules whose `forward` has been replaced stay unchanged, too. A warning names the path of each in the model.

    Returns:
        ``model``.
    """
    _change_classes(model, _TO_TORCH, "restore")
    return model


def _change_classes(model: nn.Module, classes: dict[type, type], function_name: str) -> None:
    """Switch each module of ``model`` whose class is a key of ``classes`` to the class that is the key's value.

    Warn of GRUs and cells that stay unchanged. ``function_name`` names the public function in the warning.
    """
    unchanged = []
    for path, module in model.named_modules():
        new_class = classes.get(type(module))
        if reason := _unchanged_reason(module, new_class, classes):
            unchanged.append(f"{path!r} ({reason})" if path else f"the model itself ({reason})")
        elif new_class is not None:
            module.__class__ = new_class
            for name in EXTRA_ATTRIBUTES:  # nn.GRU does not have them, and our classes have defaults
                module.__dict__.pop(name, None)
    if unchanged:
        warnings.warn(f"triton_gru.{function_name} left these modules unchanged: {', '.join(unchanged)}", stacklevel=3)


def _unchanged_reason(module: nn.Module, new_class: type | None, classes: dict[type, type]) -> str:
    """Return why a GRU or cell keeps its class, or ''.

    Return '' for any other module, too, and for one that has a class of this package when `accelerate` asks.
    ``new_class`` is the class to which ``classes`` maps the module's class, or None.
    """
    kind = type(module)
    if new_class is None:
        bases = [base for base in classes if issubclass(kind, base)]
        is_accelerated = classes is _TO_OURS and issubclass(kind, StandIn)
        if not bases or is_accelerated:
            return ""
        remedy = ": remove its parametrizations first" if parametrize.is_parametrized(module) else ""
        return f"{kind.__name__} is a subclass of {'nn.' * (bases[0] in _TO_OURS)}{bases[0].__name__}{remedy}"
    if "forward" in module.__dict__:
        return "its forward has been replaced"
    unsupported = Options.from_module(module).unsupported_by_nn_gru
    return f"{unsupported}, which nn.GRU does not have" if unsupported else ""
