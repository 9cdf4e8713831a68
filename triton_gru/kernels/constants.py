"""The named values that kernels are compiled for, as one argument instead of many."""

import functools
from dataclasses import dataclass, fields

import triton.language as tl


def derived(function):
    """Return a property of a `Constants` that a kernel reads like a field: its value becomes a ``tl.constexpr``.

    ``function`` is ordinary Python, so it reads fields and other properties through ``.value``.
    """
    return property(lambda self: tl.constexpr(function(self)))


@dataclass(frozen=True, eq=False, repr=False)
class Constants:
    """The values of a ``tl.constexpr`` argument such as ``cut``, read in the kernel as ``cut.UNITS`` and so on.

    A subclass is a dataclass with a field for each value, and a `derived` property for each value that follows from
    the fields. Objects of one class with equal fields are equal.

    Triton's cache on disk has a key for each kernel. It contains the ``repr`` of these objects and the source of jitted
    functions, but not the source of properties. So ``repr`` contains the derived values, too. Otherwise a version that
    derives another value would be served the kernel of an earlier version.
    """

    def __post_init__(self):
        values = tuple(getattr(self, field.name) for field in fields(self))
        object.__setattr__(self, "_values", values)
        for field, value in zip(fields(self), values):
            object.__setattr__(self, field.name, tl.constexpr(value))

    @classmethod
    @functools.lru_cache(maxsize=1024)
    def of(cls, **values):
        """Return an object with these values, from a cache if possible. It is part of the key of a compiled launch."""
        return cls(**values)

    def __eq__(self, other):
        return type(self) is type(other) and self._values == other._values

    def __hash__(self):
        return hash(self._values)

    def __repr__(self):
        names = [field.name for field in fields(self)]
        names += sorted(name for name in dir(type(self)) if isinstance(getattr(type(self), name), property))
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name).value!r}' for name in names)})"


@dataclass(frozen=True, eq=False, repr=False)
class CommonConstants(Constants):
    """The constants of every kernel: the types of values, and the hidden size."""

    DTYPE: tl.dtype  # of all floating-point tensors. Exception: the carry is fp32
    PRECISION: str  # of fp32 products: "tf32" or "ieee". In 16 bits: "ieee"
    H: int  # hidden size

    @derived
    def BITS(self):
        """Return the number of bits of a value of DTYPE."""
        return self.DTYPE.value.primitive_bitwidth

    @derived
    def IS_IEEE(self):
        """Return whether products are ordinary fp32 products, made without the matrix unit."""
        return self.DTYPE.value == tl.float32 and self.PRECISION.value == "ieee"


@dataclass(frozen=True, eq=False, repr=False)
class CallConstants(Constants):
    """The constants that a call fixes, for all scans, independent of the configuration."""

    LAYOUT: str  # "dense", "lengths" or "packed", see sequences
    REVERSE: bool  # whether the only direction goes backward
    HAS_BIAS: bool  # whether the GRU has biases
    HAS_HX: bool  # whether hx is given. Otherwise it is zeros
    HAS_RESETS: bool  # whether resets are given
