"""The sums of the slices that warps have made, where the warps of a program share the depth of a product."""

import triton
import triton.language as tl

from . import fragments, isa


@triton.jit
def sum_slices(
    parts, SLICES: tl.constexpr, UNITS: tl.constexpr, BATCH: tl.constexpr, IN_FRAGMENTS: tl.constexpr = False
):
    """Return one to four products summed over the slices, a tuple of tensors [BATCH, UNITS].

    ``parts`` is a tuple of products, each [SLICES, UNITS, BATCH], or with ``IN_FRAGMENTS`` as `fragments.multiply`
    returns it. All go through shared memory in one trip. Exception: large products go two at a time, for less memory.
    """
    PARTS: tl.constexpr = len(parts)
    if PARTS > 2 and SLICES * UNITS * BATCH > 2048:
        first = sum_slices(parts[:2], SLICES, UNITS, BATCH, IN_FRAGMENTS)
        return first + sum_slices(parts[2:], SLICES, UNITS, BATCH, IN_FRAGMENTS)
    elif PARTS == 3:
        # Four numbers make a word of 128 bits. The third product also stands in for the missing fourth one.
        return sum_slices(parts + (parts[2],), SLICES, UNITS, BATCH, IN_FRAGMENTS)[:3]
    else:
        # tl.split needs both halves in one thread, so the first split moves all slices of all parts there. tl.sum would
        # add across threads by shuffles, and go through shared memory twice: at H = 512 1,500 cycles instead of 1,150
        # (perf/NOTES.md). Batch rows come first. So the lanes of a warp have neighbouring units, adjacent in memory.
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
    """Return ``x``, [BATCH, UNITS, PARTS, SLICES] in any shape, summed over the slices: [BATCH, UNITS, PARTS].

    Each round adds two halves, so SLICES is a power of two.
    """
    for i in tl.static_range(SLICES.bit_length() - 1):
        a, b = tl.split(tl.reshape(x, (BATCH, UNITS, PARTS, SLICES >> (i + 1), 2)))
        x = a + b
    return tl.reshape(x, (BATCH, UNITS, PARTS))
