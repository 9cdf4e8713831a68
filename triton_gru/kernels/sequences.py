"""Where the sequences of a batch end, and where the steps of each lie in memory: the same for all kernels.

A scan counts its steps in the order in which it makes them. Forward, step s of a sequence is its time s; backward it is
time length - 1 - s, so that every sequence begins at its own last time and none joins late. ``LAYOUT`` is

- ``"dense"``: [time, batch] through strides, all sequences as long as the input;
- ``"lengths"``: the same, each as long as ``lengths`` says (0 to the input's length);
- ``"packed"``: torch's PackedSequence, longest sequence first: time t of row b lies at ``offsets[t] + b``.
"""

import triton
import triton.language as tl

from . import isa


@triton.jit
def goes_backward(direction, REVERSE: tl.constexpr):
    """Whether a direction goes backward in time: the second does, and with ``REVERSE`` an only one."""
    return direction | REVERSE


@triton.jit
def load_lengths(lengths, row, batch, total, LAYOUT: tl.constexpr):
    """Of the sequences in rows ``row`` of the batch; in place of rows beyond it, the last one's."""
    if LAYOUT == "dense":
        return total
    else:
        return isa.load(lengths + tl.minimum(row, batch - 1))


@triton.jit
def longest(lengths, total, LAYOUT: tl.constexpr):
    """The largest of what `load_lengths` returned."""
    if LAYOUT == "dense":
        return total
    else:
        return tl.max(tl.ravel(lengths))


@triton.jit
def is_active(step, lengths, row_live, LAYOUT: tl.constexpr):
    """Which of the rows have a step ``step``; ``row_live`` are those that are there."""
    if LAYOUT == "dense":
        return row_live
    else:
        return row_live & (step < lengths)


# Where a step of a row lies, in elements from the first of all, in 64 bits, is the sum of three: `row_offset`; the step
# times `step_stride`; and `table_offset`. Packed, ``stride_t`` is that from one row of the data to the next, and ``stride_b``
# means nothing.


@triton.jit
def row_offset(lengths, row, backward, stride_t, stride_b, LAYOUT: tl.constexpr):
    """What is the same for all steps of a row."""
    if LAYOUT == "packed":
        return row.to(tl.int64) * stride_t
    else:
        last = (lengths - 1).to(tl.int64) * stride_t
        return row.to(tl.int64) * stride_b + tl.where(backward != 0, last, 0)


@triton.jit
def step_stride(backward, stride_t, LAYOUT: tl.constexpr):
    """From a step to the next one, where it is always the same."""
    if LAYOUT == "packed":
        return tl.cast(0, tl.int64)
    else:
        return tl.where(backward != 0, -stride_t, stride_t).to(tl.int64)


@triton.jit
def table_offset(step, lengths, backward, offsets, stride_t, LAYOUT: tl.constexpr):
    """Where it is not: from the first step to step ``step``."""
    if LAYOUT == "packed":
        time = tl.where(backward != 0, lengths - 1 - step, step)
        time = tl.minimum(tl.maximum(time, 0), tl.maximum(lengths - 1, 0))  # of a row that has ended, any of its own
        return isa.load(offsets + time).to(tl.int64) * stride_t
    else:
        return 0


@triton.jit
def is_reset(resets, step, lengths, row, batch, total):
    """Which of the rows are to forget their state before step ``step``: never one that has ended. None but forward."""
    at = tl.cast(tl.minimum(step, total - 1), tl.int64) * batch + tl.minimum(row, batch - 1)
    return (isa.load(resets + at) != 0) & (step < lengths)
