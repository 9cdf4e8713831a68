"""Sums of which each warp of a program has made a slice, as it does where warps share the depth of a product."""

import triton
import triton.language as tl


@triton.jit
def sums(parts, SLICES: tl.constexpr, UNITS: tl.constexpr, BATCH: tl.constexpr):
    """Return one to four tensors [SLICES, UNITS, BATCH] summed over the slices, each [BATCH, UNITS].

    All go through shared memory in one trip. Exception: many large ones, of which two go at a time, for less room.
    """
    if len(parts) == 1:
        x = _sum(tl.reshape(parts[0], (SLICES, UNITS, BATCH, 1)), SLICES, UNITS, BATCH, 1)
        return (tl.reshape(x, (BATCH, UNITS)),)
    elif len(parts) == 2:
        return tl.split(_sum(tl.join(parts[0], parts[1]), SLICES, UNITS, BATCH, 2))
    elif SLICES * UNITS * BATCH > 2048:
        return sums(parts[:2], SLICES, UNITS, BATCH) + sums(parts[2:], SLICES, UNITS, BATCH)
    else:
        # Four make words of 128 bits. In the place of a fourth that is not there the third is summed and not used.
        fourth = parts[3] if len(parts) == 4 else parts[2]
        x = tl.join(tl.join(parts[0], parts[2]), tl.join(parts[1], fourth))
        x = _sum(tl.reshape(x, (SLICES, UNITS, BATCH, 4)), SLICES, UNITS, BATCH, 4)
        even, odd = tl.split(tl.reshape(x, (BATCH, UNITS, 2, 2)))
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        return (first, second, third, fourth) if len(parts) == 4 else (first, second, third)


@triton.jit
def _sum(x, SLICES: tl.constexpr, UNITS: tl.constexpr, BATCH: tl.constexpr, PARTS: tl.constexpr):
    """Return [SLICES, UNITS, BATCH, PARTS] summed over the slices, as [BATCH, UNITS, PARTS].

    A split wants both halves in one thread, so the first one moves all slices of all parts there. tl.sum would add
    across threads by shuffles and go through shared memory twice. Batch rows come first for the lanes of a warp to
    have neighbouring units, which lie side by side in memory.
    """
    return sum_last(tl.permute(x, (2, 1, 3, 0)), SLICES, UNITS, BATCH, PARTS)


@triton.jit
def sum_last(x, SLICES: tl.constexpr, UNITS: tl.constexpr, BATCH: tl.constexpr, PARTS: tl.constexpr):
    """Return the elements of x, [BATCH, UNITS, PARTS, SLICES] in any shape, summed over the slices by halves."""
    for i in tl.static_range(SLICES.bit_length() - 1):
        a, b = tl.split(tl.reshape(x, (BATCH, UNITS, PARTS, SLICES >> (i + 1), 2)))
        x = a + b
    return tl.reshape(x, (BATCH, UNITS, PARTS))
