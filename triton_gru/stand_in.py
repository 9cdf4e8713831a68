"""The base class by which this package's modules pass for `nn.GRU` and `nn.GRUCell`.

The class answers isinstance, copies, pickles and TorchScript as nn.GRU does.
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
        _empty_torch_args, _empty_args: arguments of the constructors of ``torch_class`` and of this class. The module
            is on the meta device, where its parameters have no memory.
    """

    torch_class: type[nn.Module]
    backend = "auto"
    reset_after = True
    reverse = False
    _empty_torch_args: tuple
    _empty_args: tuple

    def _choose_apparent_class(self) -> type:
        """Return the class that isinstance sees: one derived from both the real class and ``torch_class``.

        Exception: it is the real class if ``torch_class`` lacks an option that is set (``reset_after=False``,
        ``reverse=True``), or if it is derived from ``torch_class`` already. It is also the real class while
        torch.compile runs, unless the graph must break at the module. Otherwise torch.compile would not look into the
        module, which seems to be an `nn.GRU`.
        """
        kind = type(self)
        is_compiling = CompileContext.try_get() is not None
        if is_compiling and StandIn._choose_apparent_class is _undisabled_choose_apparent_class:
            # torch.compile must not compile this method, because the result differs while torch.compile runs. Disable
            # it only once torch.compile runs.
            StandIn._choose_apparent_class = torch.compiler.disable(_undisabled_choose_apparent_class)
        unsupported_by_nn_gru = not self.reset_after or self.reverse
        # A subclass of both classes, such as a parametrized module, is its own apparent class.
        keeps_class = issubclass(kind, self.torch_class) or unsupported_by_nn_gru
        if keeps_class or (is_compiling and not self._must_break_graph()):
            return kind
        return _derive_class(kind)

    def _set_class(self, new_class: type) -> None:
        """Set the real class. If ``new_class`` is an apparent class, set the real class from which it is derived.

        torch's parametrizations read ``__class__`` and later assign it again, so they assign an apparent class.
        """
        _set_real_class(self, vars(new_class).get("_stands_for", new_class))

    # methodcaller has no Python frame, which torch.compile would compile.
    __class__ = property(operator.methodcaller("_choose_apparent_class"), _set_class)

    def _must_break_graph(self) -> bool:
        """Return whether torch.compile must break the graph at the module, as at any `nn.GRU`. `GRU` overrides this."""
        return False

    def __deepcopy__(self, memo: dict):
        new = memo[id(self)] = object.__new__(type(self))
        new.__setstate__(copy.deepcopy(self._copy_attributes(), memo))
        return new

    def __copy__(self):
        new = object.__new__(type(self))
        new.__setstate__(self._copy_attributes())
        return new

    def __reduce_ex__(self, protocol):
        """Return what pickle stores: a function that makes an empty module, its arguments, and the attributes.

        A module that `accelerate` has changed is stored as ``torch_class``, so a receiver does not need this package.
        Exception: one of `EXTRA_ATTRIBUTES` was set later. If possible, the function is a class, because by default
        `torch.load` calls only functions that its caller allows by name, such as a class.
        """
        kind = type(self)
        # A subclass may have a constructor with other arguments, so do not call it.
        maker = (kind, self._empty_args) if "_empty_args" in vars(kind) else (object.__new__, (kind,))
        if has_only_nn_gru_attributes(self):
            maker = self.torch_class, self._empty_torch_args
        # nn.GRU has __getstate__. nn.GRUCell has it from Python 3.11 on, inherited from object.
        return *maker, getattr(self, "__getstate__", self._copy_attributes)()

    def __prepare_scriptable__(self) -> nn.Module:
        """Return a module of ``torch_class`` with the same parameters, for torch.jit.script.

        torch.jit.script compiles this module, and puts it into the model instead of ours.

        Raises:
            RuntimeError: torch has no such module, or a kernel or ``"reference"`` is requested by name.
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
        """Return the name of a module in prints: "triton_gru.GRU", so that it differs from `nn.GRU`.

        A subclass from elsewhere has the name of its class.
        """
        kind = type(self)
        return f"triton_gru.{kind.__name__}" if kind.__module__ == "triton_gru.modules" else kind.__name__

    def _copy_attributes(self) -> dict:
        """Return a dict of the attributes, without nn.GRU's weak references, which its ``__setstate__`` makes again."""
        return {name: value for name, value in vars(self).items() if name != "_flat_weight_refs"}


_undisabled_choose_apparent_class = StandIn._choose_apparent_class  # the method before torch.compiler.disable wraps it
_apparent_classes: dict[type, type] = {}  # by real class


def _derive_class(kind: type) -> type:
    """Return the class that isinstance sees for modules of the real class ``kind``.

    It is derived from ``kind`` and from the ``torch_class`` of ``kind``, and made only once.
    """
    if kind not in _apparent_classes:
        attributes = {"__module__": kind.__module__, "_stands_for": kind}
        _apparent_classes[kind] = type(kind.__name__, (kind, kind.torch_class), attributes)
    return _apparent_classes[kind]
