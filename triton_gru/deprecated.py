"""Old names that still work for one version, with a DeprecationWarning."""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable)
Class = TypeVar("Class", bound=type)


def rename_keywords(**new_names: str) -> Callable[[Function], Function]:
    """Return a decorator by which a function accepts old names of keyword arguments, too.

    ``@rename_keywords(old="new")`` passes the argument ``old`` on as ``new``, and warns. Both names in one call raise
    TypeError.
    """
    return functools.partial(_rename_keywords, new_names=new_names)


def _rename_keywords(function: Function, new_names: dict[str, str], fields: frozenset[str] = frozenset()) -> Function:
    """Return the function with old names of keyword arguments, as `rename_keywords` describes.

    ``fields`` are the fields of a dataclass if the function is its constructor. `dataclasses.replace` passes all fields
    by their new names, besides the changed ones. So an old name takes precedence if all fields are passed.
    """

    @functools.wraps(function)
    def call(*args, **keywords):
        for old in new_names.keys() & keywords.keys():
            new = new_names[old]
            if new in keywords and not (fields and fields <= keywords.keys()):
                name = _name_owner(function)
                raise TypeError(f"{name}() got {new!r} and {old!r}, its old name: pass only {new!r}")
            _warn(_name_owner(function), old, new)
            keywords[new] = keywords.pop(old)
        return function(*args, **keywords)

    return call


def _name_owner(function: Callable) -> str:
    """Return the name by which a function is called. For a constructor it is the name of the class."""
    return function.__qualname__.removesuffix(".__init__")


def rename_attributes(**new_names: str) -> Callable[[Class], Class]:
    """Return a decorator by which a dataclass keeps old names of attributes, and of its constructor's arguments.

    With ``@rename_attributes(old="new")``, reading the attribute ``old`` returns the attribute ``new``, and warns.
    """

    def decorate(cls):
        def make_alias(old, new):
            def get(self):
                _warn(cls.__name__, old, new)
                return getattr(self, new)

            return property(get, doc=f"Return `{new}`. Deprecated.")

        fields = frozenset(field.name for field in dataclasses.fields(cls) if field.init)
        cls.__init__ = _rename_keywords(cls.__init__, new_names, fields)
        for old, new in new_names.items():
            setattr(cls, old, make_alias(old, new))
        return cls

    return decorate


def _warn(owner: str, old: str, new: str) -> None:
    """Warn that ``old`` is named ``new`` now: an attribute of the class ``owner``, or an argument of the function."""
    warnings.warn(
        f"{old} of triton_gru's {owner} is named {new} now; the next version removes the old name",
        DeprecationWarning,
        stacklevel=3,  # the line that uses the old name
    )
