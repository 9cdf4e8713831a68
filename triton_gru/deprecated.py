"""Old names that still work for one version, with a DeprecationWarning."""

import functools
import warnings
from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable)
Class = TypeVar("Class", bound=type)


def rename_keywords(**names: str) -> Callable[[Function], Function]:
    """Return a decorator that lets a function take old keywords, too: ``rename_keywords(old="new")``."""

    def decorate(function):
        @functools.wraps(function)
        def call(*args, **keywords):
            for old in names.keys() & keywords.keys():
                _warn(function.__qualname__, old, names[old])
                keywords[names[old]] = keywords.pop(old)
            return function(*args, **keywords)

        return call

    return decorate


def rename_attributes(**names: str) -> Callable[[Class], Class]:
    """Return a decorator that keeps a class's old attributes and keywords: ``rename_attributes(old="new")``."""

    def decorate(cls):
        def make_alias(old, new):
            def get(self):
                _warn(cls.__name__, old, new)
                return getattr(self, new)

            return property(get, doc=f"Return `{new}`. Deprecated.")

        cls.__init__ = rename_keywords(**names)(cls.__init__)
        for old, new in names.items():
            setattr(cls, old, make_alias(old, new))
        return cls

    return decorate


def _warn(owner: str, old: str, new: str) -> None:
    owner = owner.removesuffix(".__init__")
    warnings.warn(
        f"{old} of triton_gru's {owner} is named {new} now; the next version removes the old name",
        DeprecationWarning,
        stacklevel=3,
    )
