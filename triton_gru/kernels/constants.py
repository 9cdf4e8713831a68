"""Named values that kernels are compiled for, as one argument in the place of many."""

import functools
from dataclasses import dataclass, fields

import triton.language as tl


def derived(function):
    """Make a property of a `Constants` that a kernel reads as a constant, too."""
    return property(lambda self: tl.constexpr(function(self)))


@dataclass(frozen=True, eq=False, repr=False)
class Constants:
    """Values for a kernel's argument ``cut: tl.constexpr``, whose functions read ``cut.UNITS`` and so on.

    A subclass is a dataclass with a field for each value, and `derived` properties for what follows from them. Objects
    of the same values are equal.

    Triton's cache on disk tells kernels apart by the text of these objects, and by the source of jitted functions. The
    source of properties is not in it. So the text has what is derived, too: when a later version derives another value,
    no kernel of an earlier one is taken for its own.
    """

    def __post_init__(self):
        values = tuple(getattr(self, each.name) for each in fields(self))
        object.__setattr__(self, "_values", values)
        for each, value in zip(fields(self), values):
            object.__setattr__(self, each.name, tl.constexpr(value))

    @classmethod
    @functools.lru_cache(maxsize=1024)
    def of(cls, **values):
        """Return the one object of these values: a launch is found among those that are compiled by what it is."""
        return cls(**values)

    def __eq__(self, other):
        return type(self) is type(other) and self._values == other._values

    def __hash__(self):
        return hash(self._values)

    def __repr__(self):
        names = [each.name for each in fields(self)]
        names += sorted(name for name in dir(type(self)) if isinstance(getattr(type(self), name), property))
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name).value!r}' for name in names)})"


@dataclass(frozen=True, eq=False, repr=False)
class CommonConstants(Constants):
    """What every kernel is told of the numbers of a call."""

    DTYPE: tl.dtype  # of all tensors of floating-point numbers but the carry
    PRECISION: str  # of products: "tf32" or "ieee"
    H: int

    @derived
    def BITS(self):
        return self.DTYPE.value.primitive_bitwidth

    @derived
    def IS_IEEE(self):
        """Products are ordinary fp32 ones: they are made without the matrix unit."""
        return self.DTYPE.value == tl.float32 and self.PRECISION.value == "ieee"


@dataclass(frozen=True, eq=False, repr=False)
class CallConstants(Constants):
    """What there is of a call, for all scans."""

    LAYOUT: str  # see sequences
    REVERSE: bool  # an only direction goes backward
    HAS_BIAS: bool
    HAS_HX: bool
    HAS_RESETS: bool
