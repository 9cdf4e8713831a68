"""Old names that still work for one version, with a DeprecationWarning."""

import functools
import warnings
from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable)
Class = TypeVar("Class", bound=type)


def rename_keywords(**new_names: str) -> Callable[[Function], Function]:
    """Return a decorator by which a function accepts old names of keyword arguments, too.

    ``@rename_keywords(old="new")`` passes the argument ``old`` on as ``new``, and warns.
    """

    def decorate(function):
        @functools.wraps(function)
        def call(*args, **keywords):
            for old in new_names.keys() & keywords.keys():
                _warn(function.__qualname__, old, new_names[old])
                keywords[new_names[old]] = keywords.pop(old)
            return function(*args, **keywords)

        return call

    return decorate


def rename_attributes(**new_names: str) -> Callable[[Class], Class]:
    """Return a decorator by which a class keeps old names of attributes, and of its constructor's keyword arguments.

    With ``@rename_attributes(old="new")``, reading the attribute ``old`` returns the attribute ``new``, and warns.
    """

    def decorate(cls):
        def make_alias(old, new):
            def get(self):
                _warn(cls.__name__, old, new)
                return getattr(self, new)

            return property(get, doc=f"Return `{new}`. Deprecated.")

        cls.__init__ = rename_keywords(**new_names)(cls.__init__)
        for old, new in new_names.items():
            setattr(cls, old, make_alias(old, new))
        return cls

    return decorate


def _warn(owner: str, old: str, new: str) -> None:
    """Warn that ``old`` is named ``new`` now: an attribute of the class ``owner``, or an argument of the function."""
    owner = owner.removesuffix(".__init__")  # a constructor is called by the name of its class
    warnings.warn(
        f"{old} of triton_gru's {owner} is named {new} now; the next version removes the old name",
        DeprecationWarning,
        stacklevel=3,  # the line that uses the old name
    )
