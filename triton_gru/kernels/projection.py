"""The input projection ``gi = x W_ih^T + b`` of many time steps at once, written the way the scan reads it.

``gi`` comes tile by tile, so that a scanning program finds the pairs of batch rows its matrix unit wants next to each
other in memory. There are two ways to it:

- `input_projection` multiplies, too. It follows the precision that torch has set for recurrent networks, reads the
  input through strides, whichever of batch and time comes first, and skips what lies behind a sequence's end.
- `arrange_products` lays out what cuBLAS has multiplied, and adds the biases. cuBLAS writes row by row.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from . import isa, sequences
from .constants import CommonConstants, derived


@dataclass(frozen=True, eq=False, repr=False)
class GateInputs(CommonConstants):
    """How ``gi`` lies, and what is in it."""

    RESET_AFTER: bool
    REVERSE: bool  # an only direction goes backward
    HAS_BIAS: bool
    PADDED_H: int
    BATCH: int  # batch rows of a tile of gi
    UNIT_STRIDE: int  # elements from one unit to the next in gi: BATCH, or 1

    @derived
    def ROW_STRIDE(self):
        """Elements from one batch row of a tile to the next in gi."""
        return 1 if self.UNIT_STRIDE.value == self.BATCH.value else self.PADDED_H.value

    @derived
    def ADDED(self):
        """How many gates get b_hh here. A b_hn that belongs inside the product with r is added by the scan."""
        return 2 if self.RESET_AFTER.value else 3


@dataclass(frozen=True, eq=False, repr=False)
class Cut(GateInputs):
    """What `input_projection` is compiled for."""

    LAYOUT: str  # see sequences
    I: int
    BLOCK_M: int  # rows: gate units
    BLOCK_N: int  # columns: (step, batch row) pairs, a multiple of BATCH
    BLOCK_K: int
    X_UNIT: int  # elements that strides of x are counted in


@triton.jit(
    do_not_specialize=["steps", "start", "total", "batch", "x_t", "x_b"],
    do_not_specialize_on_alignment=["lengths", "offsets"],
)
def input_projection(
    x,  # [time, batch, I] through strides, or packed; see sequences
    w_ih,  # [3 * H, I]
    b_ih,  # [3 * H]
    b_hh,  # [3 * H]; added here but for a b_hn that belongs inside the product with r
    w_ih_back,  # of the backward direction
    b_ih_back,
    b_hh_back,
    gi,  # [directions, steps, batch tiles, 3, PADDED_H, BATCH], or with the last two the other way round
    lengths,  # int32 [batch], see sequences
    offsets,  # int32 [time], see sequences
    steps,  # of the scan that reads gi, in its order
    start,  # the first of them
    total,  # of all scans
    batch,
    x_t,  # in units of X_UNIT elements, so that the compiler knows what vectors the rows allow
    x_b,
    x_i,
    cut: tl.constexpr,  # a `Cut`
):
    batch_tiles = tl.cdiv(batch, cut.BATCH)
    direction = tl.program_id(2)
    backward = sequences.goes_backward(direction, cut.REVERSE)
    w_ih = tl.where(direction != 0, w_ih_back, w_ih)
    gi += direction.to(tl.int64) * steps * batch_tiles * (3 * cut.PADDED_H * cut.BATCH)

    row = tl.program_id(1) * cut.BLOCK_M + tl.arange(0, cut.BLOCK_M)  # of the padded gates
    gate = row // cut.PADDED_H
    unit = row % cut.PADDED_H
    row_live = (gate < 3) & (unit < cut.H)
    w_row = w_ih + (gate * cut.H + unit).to(tl.int64) * cut.I

    col = tl.program_id(0) * cut.BLOCK_N + tl.arange(0, cut.BLOCK_N)
    tile = col // cut.BATCH
    step = tile // batch_tiles
    b = (tile % batch_tiles) * cut.BATCH + col % cut.BATCH
    length = sequences.load_lengths(lengths, b, batch, total, cut.LAYOUT)
    col_live = sequences.is_active(start + step, length, (step < steps) & (b < batch), cut.LAYOUT)
    place = sequences.row_offset(length, b, backward, x_t, x_b, cut.LAYOUT)
    place += (start + step).to(tl.int64) * sequences.step_stride(backward, x_t, cut.LAYOUT)
    place += sequences.table_offset(start + step, length, backward, offsets, x_t, cut.LAYOUT)
    x_row = x + place * cut.X_UNIT

    acc = tl.zeros((cut.BLOCK_M, cut.BLOCK_N), tl.float32)
    end = cut.I
    if cut.LAYOUT != "dense":
        end = tl.where(tl.max(col_live.to(tl.int32)) == 0, 0, cut.I)  # where all have ended there is nothing to read
    for k0 in tl.range(0, end, cut.BLOCK_K):
        k = k0 + tl.arange(0, cut.BLOCK_K)
        w_mask = row_live[:, None]
        x_mask = col_live[:, None]
        if cut.I % cut.BLOCK_K != 0:
            w_mask = w_mask & (k[None, :] < cut.I)
            x_mask = x_mask & (k[None, :] < cut.I)
        w_tile = tl.load(w_row[:, None] + k[None, :], mask=w_mask, other=0.0)
        x_tile = tl.load(x_row[:, None] + k[None, :].to(tl.int64) * x_i, mask=x_mask, other=0.0)
        if cut.PRECISION == "tf32":
            w_tile = isa.round_to_tf32(w_tile)
            x_tile = isa.round_to_tf32(x_tile)
        acc = tl.dot(w_tile, tl.trans(x_tile), acc=acc, input_precision=cut.PRECISION)

    if cut.HAS_BIAS:
        b_ih = tl.where(direction != 0, b_ih_back, b_ih)
        b_hh = tl.where(direction != 0, b_hh_back, b_hh)
        acc += _biases(b_ih, b_hh, gate, unit, row_live, cut)[:, None]
    at = _in_tile(gate, unit, cut)
    address = gi + tile.to(tl.int64)[None, :] * (3 * cut.PADDED_H * cut.BATCH) + at[:, None]
    address += (col % cut.BATCH * cut.ROW_STRIDE)[None, :]
    tl.store(address, acc.to(cut.DTYPE), mask=(gate < 3)[:, None] & (step < steps)[None, :])


@triton.jit
def _biases(b_ih, b_hh, gate, unit, live, cut: tl.constexpr):
    """Return what is added to the products of each row."""
    bias = tl.load(b_ih + gate * cut.H + unit, mask=live, other=0.0).to(tl.float32)
    return bias + tl.load(b_hh + gate * cut.H + unit, mask=live & (gate < cut.ADDED), other=0.0).to(tl.float32)


@triton.jit
def _in_tile(gate, unit, cut: tl.constexpr):
    """Return where the first batch row of each unit lies in a tile of gi."""
    return gate * (cut.PADDED_H * cut.BATCH) + unit * cut.UNIT_STRIDE


@dataclass(frozen=True, eq=False, repr=False)
class Arranged(GateInputs):
    """What `arrange_products` is compiled for."""

    BLOCK_M: int  # gate units
    BLOCK_N: int  # (step, batch row) pairs


@triton.jit(do_not_specialize=["steps", "batch", "product_t", "product_b"])
def arrange_products(
    products,  # [directions, rows, 3 * H]: x W_ih^T, in the order of time also of the backward direction
    b_ih,  # [3 * H]
    b_hh,  # [3 * H]
    b_ih_back,  # of the backward direction
    b_hh_back,
    gi,  # as `input_projection` writes it
    steps,
    batch,
    product_t,  # from the row of a step to that of the next one
    product_b,  # from the row of a batch row to that of the next one
    cut: tl.constexpr,  # an `Arranged`
):
    batch_tiles = tl.cdiv(batch, cut.BATCH)
    direction = tl.program_id(2)
    backward = sequences.goes_backward(direction, cut.REVERSE)
    products += direction.to(tl.int64) * steps * batch * (3 * cut.H)
    gi += direction.to(tl.int64) * steps * batch_tiles * (3 * cut.PADDED_H * cut.BATCH)

    row = tl.program_id(1) * cut.BLOCK_M + tl.arange(0, cut.BLOCK_M)  # of the padded gates
    gate = row // cut.PADDED_H
    unit = row % cut.PADDED_H
    row_live = (gate < 3) & (unit < cut.H)
    col = tl.program_id(0) * cut.BLOCK_N + tl.arange(0, cut.BLOCK_N)
    tile = col // cut.BATCH
    step = tile // batch_tiles
    b = (tile % batch_tiles) * cut.BATCH + col % cut.BATCH

    time = tl.where(backward != 0, steps - 1 - step, step)
    place = (time.to(tl.int64) * product_t + b.to(tl.int64) * product_b) * (3 * cut.H)
    there = ((step < steps) & (b < batch))[:, None] & row_live[None, :]
    x = tl.load(products + place[:, None] + (gate * cut.H + unit)[None, :], mask=there, other=0.0).to(tl.float32)
    if cut.HAS_BIAS:
        b_ih = tl.where(direction != 0, b_ih_back, b_ih)
        b_hh = tl.where(direction != 0, b_hh_back, b_hh)
        x += _biases(b_ih, b_hh, gate, unit, row_live, cut)[None, :]
    address = gi + tile.to(tl.int64)[:, None] * (3 * cut.PADDED_H * cut.BATCH) + _in_tile(gate, unit, cut)[None, :]
    address += (col % cut.BATCH * cut.ROW_STRIDE)[:, None]
    tl.store(address, x.to(cut.DTYPE), mask=(step < steps)[:, None] & (gate < 3)[None, :])
