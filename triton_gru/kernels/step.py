"""The ``step`` scan: one launch a time step, which is what hands the state over.

``W_hh`` is streamed from memory through a loop over the sum, every step anew: for weights beyond what the chip
holds, and for a single step, where nothing can be kept. No program waits for another, so any size runs anywhere.
"""

import triton
import triton.language as tl

from . import isa


@triton.jit(do_not_specialize=["step", "out_step", "first", "last", "layer", "batch", "out_t", "out_b"])
def step_scan(
    gi,  # [steps, batch tiles, 3, BATCH, padded H]: x W_ih^T + b_ih (+ b_hh for r and z)
    w_hh,  # [3 * H, H]
    b_hh,  # [3 * H]; only b_hn is read
    hx,  # [layers, batch, H]: the state before the first step
    carry_in,  # fp32 [layers, batch, H]: the state before this step
    carry_out,  # fp32 [layers, batch, H]: the state after it
    rounded_in,  # [layers, batch, H]: carry_in as the product's operand; in fp32 carry_in will do
    rounded_out,  # [layers, batch, H]
    out,  # [time, batch, H] through strides
    h_n,  # [layers, batch, H]
    step,  # in gi
    out_step,  # the same step in out
    first,  # 1: the state comes from hx, 0: from carry_in
    last,  # 1: the state goes to h_n, 0: to carry_out
    layer,
    batch,
    out_t,
    out_b,
    H: tl.constexpr,
    UNITS: tl.constexpr,  # hidden units of a program
    BATCH: tl.constexpr,  # batch rows of a program
    DEPTH: tl.constexpr,  # of the sum, an iteration
    PRECISION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_HX: tl.constexpr,
    ISA: tl.constexpr,
):
    DTYPE: tl.constexpr = out.dtype.element_ty
    PADDED_H: tl.constexpr = (H + UNITS - 1) // UNITS * UNITS
    state = layer.to(tl.int64) * batch * H
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)[:, None]
    first_row = tl.program_id(1).to(tl.int64) * BATCH

    row = first_row + tl.arange(0, BATCH)[:, None]
    before = carry_in if DTYPE == tl.float32 else rounded_in
    end = H
    if HAS_HX:
        before = tl.where(first != 0, hx, before)
    else:
        end = tl.where(first != 0, 0, H)  # a state of zeros needs no product
    source = before + state + row * H
    a_r = tl.zeros((UNITS, BATCH), tl.float32)
    a_z = tl.zeros((UNITS, BATCH), tl.float32)
    a_n = tl.zeros((UNITS, BATCH), tl.float32)
    w = w_hh + unit.to(tl.int64) * H
    for k0 in tl.range(0, end, DEPTH):
        k = k0 + tl.arange(0, DEPTH)[None, :]
        x = _load(source + k, row < batch, k, H, DEPTH, PRECISION, ISA)
        x = tl.trans(x)
        a_r = isa.matmul(_load(w + k, unit < H, k, H, DEPTH, PRECISION, ISA), x, a_r, PRECISION, ISA)
        a_z = isa.matmul(_load(w + H * H + k, unit < H, k, H, DEPTH, PRECISION, ISA), x, a_z, PRECISION, ISA)
        a_n = isa.matmul(_load(w + 2 * H * H + k, unit < H, k, H, DEPTH, PRECISION, ISA), x, a_n, PRECISION, ISA)

    if HAS_BIAS:
        a_n += tl.load(b_hh + 2 * H + unit, mask=unit < H, other=0.0).to(tl.float32)
    b = tl.arange(0, BATCH)[None, :]
    row = first_row + b
    gi += (step.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * (3 * BATCH * PADDED_H) + b * PADDED_H + unit
    g_r, g_z, g_n = tl.load(gi), tl.load(gi + BATCH * PADDED_H), tl.load(gi + 2 * BATCH * PADDED_H)
    live = (row < batch) & (unit < H)
    at = state + row * H + unit
    h = tl.load(carry_in + at, mask=live & (first == 0), other=0.0)
    if HAS_HX:
        h += tl.load(hx + at, mask=live & (first != 0), other=0.0).to(tl.float32)
    h = isa.gru_update(g_r, g_z, g_n, a_r, a_z, a_n, h, DTYPE, ISA)

    rounded = isa.cast(h, DTYPE, ISA)
    tl.store(out + out_step.to(tl.int64) * out_t + row * out_b + unit, rounded, mask=live)
    tl.store(carry_out + at, h, mask=live & (last == 0))
    if DTYPE != tl.float32:
        tl.store(rounded_out + at, rounded, mask=live & (last == 0))
    tl.store(h_n + at, rounded, mask=live & (last != 0))


@triton.jit
def _load(address, row_live, k, H: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr, ISA: tl.constexpr):
    """[rows, DEPTH] of an operand of the product; zero where ``row_live`` is not, and beyond H."""
    live = row_live
    if H % DEPTH != 0:
        live = row_live & (k < H)
    value = tl.load(address, mask=live, other=0.0)
    return isa.round_to_tf32(value, ISA) if PRECISION == "tf32" else value
