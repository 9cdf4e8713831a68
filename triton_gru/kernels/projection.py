"""The input projection ``gi = x W_ih^T + b`` of many time steps at once, in the layout that the scan reads.

``gi`` is stored tile by tile. So the gate inputs of a tile of the batch at a step are adjacent in memory. Steps are in
the order of the scan: backward, the last time of a sequence is first. There are two kernels:

- `input_projection` computes the products, too. It follows torch's precision setting for recurrent networks. It reads
  the input through strides, time first or batch first, or packed. It does not read steps after a sequence's end.
- `arrange_products` copies the products that cuBLAS wrote row by row into this layout, and adds the biases. It serves
  only sequences of equal length.

**Gates** are numbered 0 r, 1 z, 2 n.

**Masks.** ``unit_live``: a row of W_ih is one of a unit below H. ``is_active``: a column is a step that the sequence of
its batch row has. ``live``: the unit is below H, and the batch row and the step exist.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from . import isa, sequences
from .constants import CommonConstants, derived


@dataclass(frozen=True, eq=False, repr=False)
class GateInputs(CommonConstants):
    """The layout of ``gi``, the direction of its steps, and which biases it includes."""

    RESET_AFTER: bool  # whether r multiplies W_hn h + b_hn. Otherwise r multiplies h, before the product with W_hn
    REVERSE: bool  # whether the only direction goes backward
    HAS_BIAS: bool  # whether the GRU has biases
    PADDED_H: int  # hidden units of each gate in gi: H or more
    BATCH: int  # batch rows of a tile of gi
    # Elements from a unit to the next in gi: BATCH for tiles [PADDED_H, BATCH] (block), 1 for tiles [BATCH, PADDED_H]
    # (grid, step).
    UNIT_STRIDE: int

    @derived
    def ROW_STRIDE(self):
        """Return the number of elements of gi from a batch row of a tile to the next."""
        return 1 if self.UNIT_STRIDE.value == self.BATCH.value else self.PADDED_H.value

    @derived
    def B_HH_GATES(self):
        """Return how many gates get b_hh here. With RESET_AFTER the scan adds b_hn, because r multiplies b_hn."""
        return 2 if self.RESET_AFTER.value else 3


@dataclass(frozen=True, eq=False, repr=False)
class Cut(GateInputs):
    """The constants that `input_projection` is compiled for."""

    LAYOUT: str  # see sequences
    I: int  # input features
    BLOCK_M: int  # rows of a program: units of gates
    BLOCK_N: int  # columns of a program: (step, batch row) pairs, a multiple of BATCH
    BLOCK_K: int  # features that an iteration sums over
    X_UNIT: int  # elements in one unit of the strides of x


@triton.jit(
    do_not_specialize=["steps", "start", "total", "batch", "x_t", "x_b"],
    do_not_specialize_on_alignment=["lengths", "offsets"],
)
def input_projection(
    x,  # [time, batch, I] through strides, or packed; see sequences
    w_ih,  # [3 * H, I]
    b_ih,  # [3 * H]
    b_hh,  # [3 * H]; added here, except b_hn with RESET_AFTER
    w_ih_back,  # this and the two below: of the backward direction
    b_ih_back,
    b_hh_back,
    gi,  # [directions, steps, batch tiles, 3, PADDED_H, BATCH], or [..., BATCH, PADDED_H] if UNIT_STRIDE is 1
    lengths,  # int32 [batch], see sequences
    offsets,  # int32 [time], see sequences
    steps,  # time steps in gi
    start,  # first step in gi, see sequences
    total,  # time steps of the input, in all chunks
    batch,  # batch rows of the call
    # The strides of time and row are in units of X_UNIT elements. So the compiler knows how wide loads of a row can be.
    x_t,  # units of x from a time to the next. Packed: from a row to the next
    x_b,  # units of x from a batch row to the next
    x_i,  # elements of x from a feature to the next
    cut: tl.constexpr,  # a `Cut`
):
    """Compute the gate inputs of ``steps`` steps in all directions of a layer, and store them in ``gi``."""
    batch_tiles = tl.cdiv(batch, cut.BATCH)
    direction = tl.program_id(2)
    backward = sequences.goes_backward(direction, cut.REVERSE)
    w_ih = tl.where(direction != 0, w_ih_back, w_ih)
    gi += direction.to(tl.int64) * steps * batch_tiles * (3 * cut.PADDED_H * cut.BATCH)

    row = tl.program_id(1) * cut.BLOCK_M + tl.arange(0, cut.BLOCK_M)  # rows of W_ih, with each gate padded to PADDED_H
    gate = row // cut.PADDED_H
    unit = row % cut.PADDED_H
    unit_live = (gate < 3) & (unit < cut.H)
    w_row = w_ih + (gate * cut.H + unit).to(tl.int64) * cut.I

    col = tl.program_id(0) * cut.BLOCK_N + tl.arange(0, cut.BLOCK_N)
    tile = col // cut.BATCH
    step = tile // batch_tiles
    batch_row = (tile % batch_tiles) * cut.BATCH + col % cut.BATCH
    length = sequences.load_lengths(lengths, batch_row, batch, total, cut.LAYOUT)
    is_active = sequences.is_active(start + step, length, (step < steps) & (batch_row < batch), cut.LAYOUT)
    offset = sequences.row_offset(length, batch_row, backward, x_t, x_b, cut.LAYOUT)
    offset += (start + step).to(tl.int64) * sequences.step_stride(backward, x_t, cut.LAYOUT)
    offset += sequences.table_offset(start + step, length, backward, offsets, x_t, cut.LAYOUT)
    x_row = x + offset * cut.X_UNIT

    acc = tl.zeros((cut.BLOCK_M, cut.BLOCK_N), tl.float32)
    end = cut.I
    if cut.LAYOUT != "dense":
        end = tl.where(tl.max(is_active.to(tl.int32)) == 0, 0, cut.I)  # read nothing if all sequences have ended
    for k0 in tl.range(0, end, cut.BLOCK_K):
        k = k0 + tl.arange(0, cut.BLOCK_K)
        w_mask = unit_live[:, None]
        x_mask = is_active[:, None]
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
        acc += _load_biases(b_ih, b_hh, gate, unit, unit_live, cut)[:, None]
    unit_offset = _offset_in_tile(gate, unit, cut)
    address = gi + tile.to(tl.int64)[None, :] * (3 * cut.PADDED_H * cut.BATCH) + unit_offset[:, None]
    address += (col % cut.BATCH * cut.ROW_STRIDE)[None, :]
    tl.store(address, acc.to(cut.DTYPE), mask=(gate < 3)[:, None] & (step < steps)[None, :])


@triton.jit
def _load_biases(b_ih, b_hh, gate, unit, unit_live, cut: tl.constexpr):
    """Load what to add to each row of W_ih x, in fp32: b_ih, plus b_hh for the first ``B_HH_GATES`` gates."""
    bias = tl.load(b_ih + gate * cut.H + unit, mask=unit_live, other=0.0).to(tl.float32)
    return bias + tl.load(b_hh + gate * cut.H + unit, mask=unit_live & (gate < cut.B_HH_GATES), other=0.0).to(
        tl.float32
    )


@triton.jit
def _offset_in_tile(gate, unit, cut: tl.constexpr):
    """Return the offset of each unit's first batch row in a tile of gi, in elements."""
    return gate * (cut.PADDED_H * cut.BATCH) + unit * cut.UNIT_STRIDE


@dataclass(frozen=True, eq=False, repr=False)
class Arranged(GateInputs):
    """The constants that `arrange_products` is compiled for."""

    BLOCK_M: int  # units of gates of a program
    BLOCK_N: int  # (step, batch row) pairs of a program


@triton.jit(do_not_specialize=["steps", "batch", "product_t", "product_b"])
def arrange_products(
    products,  # [directions, rows, 3 * H]: x W_ih^T, in both directions from the first time to the last
    b_ih,  # [3 * H]
    b_hh,  # [3 * H]
    b_ih_back,  # [3 * H] of the backward direction
    b_hh_back,  # [3 * H] of the backward direction
    gi,  # in the layout that `input_projection` writes
    steps,  # time steps in gi
    batch,  # batch rows of the call
    product_t,  # rows of products from a time to the next
    product_b,  # rows of products from a batch row to the next
    cut: tl.constexpr,  # an `Arranged`
):
    """Copy the products of ``steps`` steps in all directions of a layer to ``gi``, with the biases added."""
    batch_tiles = tl.cdiv(batch, cut.BATCH)
    direction = tl.program_id(2)
    backward = sequences.goes_backward(direction, cut.REVERSE)
    products += direction.to(tl.int64) * steps * batch * (3 * cut.H)
    gi += direction.to(tl.int64) * steps * batch_tiles * (3 * cut.PADDED_H * cut.BATCH)

    row = tl.program_id(1) * cut.BLOCK_M + tl.arange(0, cut.BLOCK_M)  # rows of W_ih, with each gate padded to PADDED_H
    gate = row // cut.PADDED_H
    unit = row % cut.PADDED_H
    unit_live = (gate < 3) & (unit < cut.H)
    col = tl.program_id(0) * cut.BLOCK_N + tl.arange(0, cut.BLOCK_N)
    tile = col // cut.BATCH
    step = tile // batch_tiles
    batch_row = (tile % batch_tiles) * cut.BATCH + col % cut.BATCH

    time = tl.where(backward != 0, steps - 1 - step, step)
    offset = (time.to(tl.int64) * product_t + batch_row.to(tl.int64) * product_b) * (3 * cut.H)
    live = ((step < steps) & (batch_row < batch))[:, None] & unit_live[None, :]
    gates = tl.load(products + offset[:, None] + (gate * cut.H + unit)[None, :], mask=live, other=0.0).to(tl.float32)
    if cut.HAS_BIAS:
        b_ih = tl.where(direction != 0, b_ih_back, b_ih)
        b_hh = tl.where(direction != 0, b_hh_back, b_hh)
        gates += _load_biases(b_ih, b_hh, gate, unit, unit_live, cut)[None, :]
    address = (
        gi + tile.to(tl.int64)[:, None] * (3 * cut.PADDED_H * cut.BATCH) + _offset_in_tile(gate, unit, cut)[None, :]
    )
    address += (col % cut.BATCH * cut.ROW_STRIDE)[:, None]
    tl.store(address, gates.to(cut.DTYPE), mask=(step < steps)[:, None] & (gate < 3)[None, :])
