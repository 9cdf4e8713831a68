"""The input projection ``gi = x W_ih^T + b`` of many time steps at once, written the way the scan reads it.

Own matrix product rather than the library's for three reasons: fp32 must follow the precision that torch has
set for recurrent networks, not the one it has set for matrix products; the input is read through strides,
whichever of batch and time comes first; and ``gi`` comes out tile by tile, so that a scanning program finds
the pairs of batch rows its matrix unit wants next to each other in memory.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from . import isa, sequences
from .constants import Numbers


@dataclass(frozen=True, eq=False, repr=False)
class Cut(Numbers):
    """What `input_projection` is compiled for."""

    RESET_AFTER: bool
    LAYOUT: str  # see sequences
    REVERSE: bool  # an only direction goes backward
    HAS_BIAS: bool
    I: int
    PADDED_H: int
    BATCH: int  # batch rows of a tile of gi
    UNITS_APART: int  # elements from one unit to the next in gi: BATCH, or 1
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
    length = sequences.length(lengths, b, batch, total, cut.LAYOUT)
    col_live = sequences.going_on(start + step, length, (step < steps) & (b < batch), cut.LAYOUT)
    place = sequences.row_place(length, b, backward, x_t, x_b, cut.LAYOUT)
    place += (start + step).to(tl.int64) * sequences.stride(backward, x_t, cut.LAYOUT)
    place += sequences.looked_up(start + step, length, backward, offsets, x_t, cut.LAYOUT)
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
        ADDED: tl.constexpr = 2 if cut.RESET_AFTER else 3  # gates
        bias = tl.load(b_ih + gate * cut.H + unit, mask=row_live, other=0.0).to(tl.float32)
        bias += tl.load(b_hh + gate * cut.H + unit, mask=row_live & (gate < ADDED), other=0.0).to(tl.float32)
        acc += bias[:, None]
    ROWS_APART: tl.constexpr = 1 if cut.UNITS_APART == cut.BATCH else cut.PADDED_H
    at = gate * (cut.PADDED_H * cut.BATCH) + unit * cut.UNITS_APART
    address = (
        gi
        + tile.to(tl.int64)[None, :] * (3 * cut.PADDED_H * cut.BATCH)
        + at[:, None]
        + (col % cut.BATCH * ROWS_APART)[None, :]
    )
    tl.store(address, acc.to(cut.DTYPE), mask=(gate < 3)[:, None] & (step < steps)[None, :])
