"""The ends of the sequences of a batch, and the place of each step of a sequence in memory, for all kernels.

A scan counts its steps in the order in which it makes them. Forward, step s of a sequence is time s. Backward, it is
time length - 1 - s. So every sequence begins with step 0, backward at its own last time. ``LAYOUT`` is

- ``"dense"``: [time, batch] through strides, all sequences as long as the input;
- ``"lengths"``: [time, batch] through strides, each sequence as long as its entry of ``lengths`` (0 to the input's
  length);
- ``"packed"``: torch's PackedSequence, longest sequence first. Time t of batch row b is row ``offsets[t] + b``.

A row is active at a step if it is in the batch and its sequence has the step.
"""

import triton
import triton.language as tl

from . import isa


@triton.jit
def goes_backward(direction, REVERSE: tl.constexpr):
    """Return not 0 if a direction goes backward in time: the second direction, or with ``REVERSE`` the only one.

    Return 0 if the direction goes forward.
    """
    return direction | REVERSE


@triton.jit
def load_lengths(lengths, row, batch, total, LAYOUT: tl.constexpr):
    """Return the lengths of the sequences in rows ``row``. Rows beyond the batch get the length of the last row.

    Exception: in the dense layout return the scalar ``total``.
    """
    if LAYOUT == "dense":
        return total
    else:
        return isa.load(lengths + tl.minimum(row, batch - 1))


@triton.jit
def max_length(lengths, total, LAYOUT: tl.constexpr):
    """Return the largest of the lengths of `load_lengths`."""
    if LAYOUT == "dense":
        return total
    else:
        return tl.max(tl.ravel(lengths))


@triton.jit
def is_active(step, lengths, row_live, LAYOUT: tl.constexpr):
    """Return the mask of the rows of ``row_live`` that are active at step ``step``.

    ``row_live`` is a mask of rows in the batch, or of their elements. In the dense layout it is returned unchanged, so
    that steps beyond the input are not masked.
    """
    if LAYOUT == "dense":
        return row_live
    else:
        return row_live & (step < lengths)


# The offset of a row's step in x or out, in the units of the strides and in 64 bits, is a sum of three:
#
# | `row_offset` + step * `step_stride` + `table_offset`
#
# In the packed layout ``stride_t`` leads from a row of the data to the next, and ``stride_b`` is not used.


@triton.jit
def row_offset(lengths, row, backward, stride_t, stride_b, LAYOUT: tl.constexpr):
    """Return the part of the offset that is the same for all steps of a row.

    Backward, it includes the way to the row's last time. In the packed layout `table_offset` includes that way.
    """
    if LAYOUT == "packed":
        return row.to(tl.int64) * stride_t
    else:
        last_time = (lengths - 1).to(tl.int64) * stride_t
        return row.to(tl.int64) * stride_b + tl.where(backward != 0, last_time, 0)


@triton.jit
def step_stride(backward, stride_t, LAYOUT: tl.constexpr):
    """Return the stride from a step to the next, which is negative backward.

    Return 0 in the packed layout, where `table_offset` leads to the step.
    """
    if LAYOUT == "packed":
        return tl.cast(0, tl.int64)
    else:
        return tl.where(backward != 0, -stride_t, stride_t).to(tl.int64)


@triton.jit
def table_offset(step, lengths, backward, offsets, stride_t, LAYOUT: tl.constexpr):
    """Return the table-driven part of the offset of step ``step`` in the packed layout, else 0."""
    if LAYOUT == "packed":
        time = tl.where(backward != 0, lengths - 1 - step, step)
        # A row that has ended gets one of its own times. Otherwise its time could be outside of the table.
        time = tl.minimum(tl.maximum(time, 0), tl.maximum(lengths - 1, 0))
        return isa.load(offsets + time).to(tl.int64) * stride_t
    else:
        return 0


@triton.jit
def is_reset(resets, step, lengths, row, batch, total):
    """Return the mask of the rows whose state is set to zero before step ``step``. A row that has ended is not reset.

    Rows beyond the batch get the last row's reset. Only a forward direction has resets, so a step is its time.
    """
    offset = tl.cast(tl.minimum(step, total - 1), tl.int64) * batch + tl.minimum(row, batch - 1)
    return (isa.load(resets + offset) != 0) & (step < lengths)
