"""How this package's modules pass for torch's: with isinstance, in copies and pickles, in TorchScript and torch.fx."""

import copy
import operator

import torch
from torch import nn
from torch._guards import CompileContext

from .call.options import EXTRA_ATTRIBUTES, Options, has_only_nn_gru_attributes

_set_class = object.__dict__["__class__"].__set__


class StandIn:
    """What `GRU` and `GRUCell` are to those who ask for torch's module. `torch.nn.Module` is to follow in the bases.

    Attributes:
        torch_class: torch's class.
        backend, reset_after, reverse: as in `GRU`. These are the class's, so that a module of torch's whose class is
            changed to this one (`accelerate`) needs nothing set. A cell goes through no time, whatever ``reverse`` is.
        _empty_torch_class, _empty: arguments by which torch's class and this one make a module without memory.
    """

    torch_class: type[nn.Module]
    backend = "auto"
    reset_after = True
    reverse = False
    _empty_torch_class: tuple
    _empty: tuple

    def _passes_for(self) -> type:
        """Return a class that is torch's as well, for isinstance; of what torch does not compute, the type alone.

        torch.compile refuses to look into any `nn.GRU`. It gets the type of what it is to look into, which is therefore
        not derived from torch's.
        """
        kind = type(self)
        compiling = CompileContext.try_get() is not None
        if compiling and StandIn._passes_for is _passes_for:
            # The answer is another one while torch.compile asks: it is not to be found out in a compiled frame.
            StandIn._passes_for = torch.compiler.disable(_passes_for)
        unsupported_by_nn_gru = not self.reset_after or self.reverse
        if issubclass(kind, self.torch_class) or unsupported_by_nn_gru or (compiling and not self._stops_compiler()):
            return kind
        return _both(kind)

    def _become(self, new: type) -> None:
        # Who derives a class from the one above and takes it back later, as torch's parametrizations do, gives that.
        _set_class(self, vars(new).get("_stands_for", new))

    # Without a frame of its own, which torch.compile would compile.
    __class__ = property(operator.methodcaller("_passes_for"), _become)

    def _stops_compiler(self) -> bool:
        """Return whether torch.compile, which asks, is to refuse the module as it does any `nn.GRU`."""
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
        """Pickle a module that `accelerate` has changed as torch's, for receivers without this package.

        A call of the class makes an empty module, which is filled: `torch.load` allows no other functions by default.
        """
        kind = type(self)
        make = (kind, self._empty) if "_empty" in vars(kind) else (object.__new__, (kind,))
        if has_only_nn_gru_attributes(self):
            make = self.torch_class, self._empty_torch_class
        return *make, getattr(self, "__getstate__", self._state)()

    def __prepare_scriptable__(self) -> nn.Module:
        """Return torch's module with the same parameters: what torch.jit.script compiles, and leaves in its place.

        Raises:
            RuntimeError: torch has no such module, or a kernel is asked for by name.
        """
        if own := Options.from_module(self).unsupported_by_nn_gru:
            raise RuntimeError(f"torch.jit.script compiles nn.GRU, which has no {own}: leave the module out")
        if self.backend not in ("auto", "torch"):
            raise RuntimeError(
                f"backend={self.backend!r} cannot serve torch.jit.script, which compiles nn.GRU: set "
                "backend='auto' or restore() the model"
            )
        made = object.__new__(self.torch_class)
        made.__dict__ = {name: value for name, value in vars(self).items() if name not in EXTRA_ATTRIBUTES}
        return made

    def _get_name(self) -> str:
        """Return how a module is called where it is printed: this package's is no torch.nn.GRU, and says so."""
        kind = type(self)
        return f"triton_gru.{kind.__name__}" if kind.__module__ == "triton_gru.modules" else kind.__name__

    def _state(self) -> dict:
        """Return all that ``__setstate__`` does not make by itself."""
        return {name: value for name, value in vars(self).items() if name != "_flat_weight_refs"}


_passes_for = StandIn._passes_for


_derived: dict[type, type] = {}


def _both(kind: type) -> type:
    """Return a class derived from ``kind`` and from torch's, always the same."""
    if kind not in _derived:
        more = {"__module__": kind.__module__, "_stands_for": kind}
        _derived[kind] = type(kind.__name__, (kind, kind.torch_class), more)
    return _derived[kind]
