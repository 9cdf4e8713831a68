"""The base class by which this package's modules pass for `nn.GRU` and `nn.GRUCell`.

It serves isinstance, copies, pickles, TorchScript and torch.fx.
"""

import copy
import operator

import torch
from torch import nn
from torch._guards import CompileContext

from .call.options import EXTRA_ATTRIBUTES, Options, has_only_nn_gru_attributes

_set_real_class = object.__dict__["__class__"].__set__


class StandIn:
    """A base class of `GRU` and `GRUCell`. A subclass of `torch.nn.Module` must follow in the bases.

    Attributes:
        torch_class: the class to pass for, `nn.GRU` or `nn.GRUCell`.
        backend, reset_after, reverse: as in `GRU`. These defaults are class attributes, so `accelerate` can change the
            class of a torch module without setting anything. ``reverse`` means nothing to a cell.
        _empty_torch_class, _empty: arguments with which torch_class and this class make a module without memory.
    """

    torch_class: type[nn.Module]
    backend = "auto"
    reset_after = True
    reverse = False
    _empty_torch_class: tuple
    _empty: tuple

    def _passes_for(self) -> type:
        """Return the class for isinstance: one derived from ``torch_class`` too.

        Exception: a module that ``torch_class`` cannot compute has its own type. torch.compile also gets the module's
        own type if it is to look into the module, because it does not look into any `nn.GRU`.
        """
        kind = type(self)
        is_compiling = CompileContext.try_get() is not None
        if is_compiling and StandIn._passes_for is _passes_for:
            # torch.compile must not compile this method: the answer differs while torch.compile runs.
            StandIn._passes_for = torch.compiler.disable(_passes_for)
        unsupported_by_nn_gru = not self.reset_after or self.reverse
        if issubclass(kind, self.torch_class) or unsupported_by_nn_gru or (is_compiling and not self._stops_compiler()):
            return kind
        return _derive_class(kind)

    def _set_class(self, new: type) -> None:
        # torch's parametrizations derive a class from __class__. Later they assign its base, made by `_derive_class`.
        _set_real_class(self, vars(new).get("_stands_for", new))

    # methodcaller has no Python frame, which torch.compile would compile.
    __class__ = property(operator.methodcaller("_passes_for"), _set_class)

    def _stops_compiler(self) -> bool:
        """Return whether torch.compile has to refuse the module, as it refuses any `nn.GRU`."""
        return False

    def __deepcopy__(self, memo: dict):
        new = memo[id(self)] = object.__new__(type(self))
        new.__setstate__(copy.deepcopy(self._state(), memo))
        return new

    def __copy__(self):
        new = object.__new__(type(self))
        new.__setstate__(self._state())
        return new

    def __reduce_ex__(self, protocol):
        """Return how to pickle a module. One that `accelerate` has changed becomes ``torch_class``.

        So receivers do not need this package. Unpickling calls a class to make an empty module, and then fills it:
        `torch.load` allows no other functions by default.
        """
        kind = type(self)
        make = (kind, self._empty) if "_empty" in vars(kind) else (object.__new__, (kind,))
        if has_only_nn_gru_attributes(self):
            make = self.torch_class, self._empty_torch_class
        return *make, getattr(self, "__getstate__", self._state)()

    def __prepare_scriptable__(self) -> nn.Module:
        """Return a module of ``torch_class`` with the same parameters, for torch.jit.script.

        torch.jit.script compiles this module, and puts it into the model instead of ours.

        Raises:
            RuntimeError: torch has no such module, or a kernel is requested by name.
        """
        if unsupported := Options.from_module(self).unsupported_by_nn_gru:
            raise RuntimeError(f"torch.jit.script compiles nn.GRU, which has no {unsupported}: leave the module out")
        if self.backend not in ("auto", "torch"):
            raise RuntimeError(
                f"backend={self.backend!r} cannot serve torch.jit.script, which compiles nn.GRU: set "
                "backend='auto' or restore() the model"
            )
        module = object.__new__(self.torch_class)
        module.__dict__ = {name: value for name, value in vars(self).items() if name not in EXTRA_ATTRIBUTES}
        return module

    def _get_name(self) -> str:
        """Return the name of a module in prints: "triton_gru.GRU", so that it differs from `nn.GRU`."""
        kind = type(self)
        return f"triton_gru.{kind.__name__}" if kind.__module__ == "triton_gru.modules" else kind.__name__

    def _state(self) -> dict:
        """Return the attributes, without the weak references that ``__setstate__`` makes itself."""
        return {name: value for name, value in vars(self).items() if name != "_flat_weight_refs"}


_passes_for = StandIn._passes_for


_derived: dict[type, type] = {}


def _derive_class(kind: type) -> type:
    """Return the class derived from ``kind`` and from its ``torch_class``. Each call returns the same class."""
    if kind not in _derived:
        attributes = {"__module__": kind.__module__, "_stands_for": kind}
        _derived[kind] = type(kind.__name__, (kind, kind.torch_class), attributes)
    return _derived[kind]
