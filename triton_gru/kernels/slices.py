"""Sums of which each warp of a program has made a slice, as it does where warps share the depth of a product."""

import triton
import triton.language as tl

from . import fragments, isa


@triton.jit
def sum_slices(
    parts, SLICES: tl.constexpr, UNITS: tl.constexpr, BATCH: tl.constexpr, IN_FRAGMENTS: tl.constexpr = False
):
    """Return one to four products summed over the slices, each [BATCH, UNITS].

    A product is [SLICES, UNITS, BATCH], or with ``IN_FRAGMENTS`` as `fragments.multiply` returns it. All go through
    shared memory in one trip. Exception: many large ones, of which two go at a time, for less room.
    """
    PARTS: tl.constexpr = len(parts)
    if PARTS > 2 and SLICES * UNITS * BATCH > 2048:
        first = sum_slices(parts[:2], SLICES, UNITS, BATCH, IN_FRAGMENTS)
        return first + sum_slices(parts[2:], SLICES, UNITS, BATCH, IN_FRAGMENTS)
    elif PARTS == 3:
        # Four make words of 128 bits. In the place of a fourth that is not there the third is summed and not used.
        return sum_slices(parts + (parts[2],), SLICES, UNITS, BATCH, IN_FRAGMENTS)[:3]
    else:
        # A split wants both halves in one thread, so the first one moves all slices of all parts there. tl.sum would
        # add across threads by shuffles and go through shared memory twice. Batch rows come first for the lanes of a
        # warp to have neighbouring units, which lie side by side in memory.
        if IN_FRAGMENTS:
            x = fragments.together(parts, UNITS, BATCH, SLICES)
        else:
            x = tl.permute(isa.joined(parts), (2, 1, 3, 0))
        x = sum_last(x, SLICES, UNITS, BATCH, PARTS)
        if PARTS == 1:
            return (tl.reshape(x, (BATCH, UNITS)),)
        elif PARTS == 2:
            return tl.split(x)
        else:
            even, odd = tl.split(tl.reshape(x, (BATCH, UNITS, 2, 2)))
            first, third = tl.split(even)
            second, fourth = tl.split(odd)
            return first, second, third, fourth


@triton.jit
def sum_last(x, SLICES: tl.constexpr, UNITS: tl.constexpr, BATCH: tl.constexpr, PARTS: tl.constexpr):
    """Return the elements of x, [BATCH, UNITS, PARTS, SLICES] in any shape, summed over the slices by halves."""
    for i in tl.static_range(SLICES.bit_length() - 1):
        a, b = tl.split(tl.reshape(x, (BATCH, UNITS, PARTS, SLICES >> (i + 1), 2)))
        x = a + b
    return tl.reshape(x, (BATCH, UNITS, PARTS))
