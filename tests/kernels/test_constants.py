"""Tests of constants as one argument: they are equal, with the same text, exactly if class and values are the same."""

import dataclasses

import pytest
import triton.language as tl

from triton_gru.kernels import block, grid, projection, step
from triton_gru.kernels.constants import CallConstants, Constants, derived

CUTS = (
    grid.Cut(tl.float16, "tf32", 100, True, 16, 8, 8, 1, 4, 3, 0, False),
    block.Cut(tl.float32, "ieee", 100, False, 64, 2, 2, 1, 0, 4),
    step.Cut(tl.bfloat16, "tf32", 100, "all", 16, 16, 64, 1),
    projection.Cut(tl.float16, "tf32", 100, True, "dense", False, True, 7, 112, 8, 8, 64, 64, 32, 1),
    CallConstants("packed", True, False, True, False),
)  # any values that are valid together: only equality is tested
GRID_CUT = CUTS[0]
# Values that `change_value` replaces by another valid value.
OTHER_VALUES = {tl.float16: tl.bfloat16, "tf32": "ieee", "all": "rest", "dense": "lengths"}


def change_value(value):
    """Return another value of the same type."""
    if isinstance(value, bool):
        return not value
    if value in OTHER_VALUES:
        return OTHER_VALUES[value]
    if isinstance(value, tl.dtype):
        return tl.float16
    return "tf32" if isinstance(value, str) else value + 1


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: type(cut).__module__.rpartition(".")[2])
def test_constants_with_another_value_are_not_equal(cut):
    values = {field.name: getattr(cut, field.name).value for field in dataclasses.fields(cut)}
    copied = type(cut)(**values)
    assert copied == cut and hash(copied) == hash(cut) and repr(copied) == repr(cut)
    for name, value in values.items():
        changed = type(cut)(**values | {name: change_value(value)})
        assert changed != cut and repr(changed) != repr(cut), name


def test_derived_values_are_in_the_text_that_identifies_kernels_on_disk():
    """Check `repr`: a later version may derive another value from the same constants."""
    text = repr(GRID_CUT)
    assert "PROGRAMS=7" in text  # 100 hidden units, 16 for each program
    assert "WORD_LAYOUT=WordLayout(BITS=16," in text
    assert "STRIDE=" in text


def test_constants_of_another_class_are_not_equal():
    @dataclasses.dataclass(frozen=True, eq=False, repr=False)
    class First(Constants):
        N: int

        @derived
        def TWICE(self):
            return 2 * self.N.value

    class Second(First):
        pass

    assert First(3) == First(3) != Second(3)
    assert First(3).TWICE.value == 6
