"""Constants as one argument: the same values are the same kernel, in memory and on disk, and other values another."""

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
)


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: type(cut).__module__.rpartition(".")[2])
def test_what_differs_in_a_value_is_another_kernel(cut):
    values = {field.name: getattr(cut, field.name).value for field in dataclasses.fields(cut)}
    again = type(cut)(**values)
    assert again == cut and hash(again) == hash(cut) and repr(again) == repr(cut)
    for name, value in values.items():
        other = {tl.float16: tl.bfloat16, "tf32": "ieee", "all": "rest", "dense": "lengths"}.get(value)
        other = other or (
            tl.float16 if isinstance(value, tl.dtype) else "tf32" if isinstance(value, str) else value + 1
        )
        changed = type(cut)(**values | {name: not value if isinstance(value, bool) else other})
        assert changed != cut and repr(changed) != repr(cut), name


def test_what_follows_from_values_is_in_the_text_that_kernels_on_disk_are_told_apart_by():
    """A later version may derive another value from the same ones."""
    assert "PROGRAMS=7" in repr(CUTS[0]) and "WORDS=Words(BITS=16," in repr(CUTS[0]) and "STRIDE=" in repr(CUTS[0])


def test_another_kind_of_constants_is_not_the_same():
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
