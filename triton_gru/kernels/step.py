"""The ``step`` scan: one launch a time step, which is what hands the state over.

``W_hh`` is streamed from memory through a loop over the sum, every step anew: for weights beyond what the chip
holds, and for a single step, where nothing can be kept. No program waits for another, so any size runs anywhere.

`step_scan` makes a step of a sequence whose inputs have been projected; `whole_step` makes all of one, the projection
included, where there is no more than one.

Where r comes before the recurrent product, a step takes two launches: n's product is of r h, all of it. ``PART`` is
``"reset"`` in the one that makes r h, ``"rest"`` in the other, and ``"all"`` to reset after.
"""

import triton
import triton.language as tl

from . import isa, sequences


@triton.jit(
    do_not_specialize=["step", "steps", "start", "total", "state", "batch", "out_t", "out_b"],
    do_not_specialize_on_alignment=["lengths", "offsets", "resets"],
)
def step_scan(
    gi,  # [directions, steps, batch tiles, 3, BATCH, padded H]: x W_ih^T and the biases, see projection
    w_hh,  # [3 * H, H]
    b_hh,  # [3 * H]; only b_hn is read, and only to reset after the product
    w_hh_back,  # of the backward direction
    b_hh_back,
    hx,  # [layers * directions, batch, H]: the state before the first step
    carry_in,  # fp32 [layers * directions, batch, H]: the state before this step
    carry_out,  # fp32 [layers * directions, batch, H]: the state after it
    rounded_in,  # [layers * directions, batch, H]: carry_in as the product's operand; in fp32 carry_in will do
    rounded_out,  # [layers * directions, batch, H]
    reset_state,  # [directions, batch, H]: r h as the product's operand, from one part of the step to the other
    out,  # [time, batch, directions, H] through strides, or packed; see sequences
    h_n,  # [layers * directions, batch, H]
    lengths,  # int32 [batch], see sequences
    offsets,  # int32 [time], see sequences
    resets,  # uint8 [time, batch]: not 0 where the state is forgotten before a step
    step,  # in gi
    steps,  # in gi
    start,  # the first in gi
    total,  # of the sequence
    state,  # the layer's first in hx, carry and h_n
    batch,
    out_t,
    out_b,
    H: tl.constexpr,
    UNITS: tl.constexpr,  # hidden units of a program
    BATCH: tl.constexpr,  # batch rows of a program
    DEPTH: tl.constexpr,  # of the sum, an iteration
    LAYOUT: tl.constexpr,
    REVERSE: tl.constexpr,
    PART: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_HX: tl.constexpr,
    HAS_RESETS: tl.constexpr,
    ISA: tl.constexpr,
):
    DTYPE: tl.constexpr = out.dtype.element_ty
    PADDED_H: tl.constexpr = (H + UNITS - 1) // UNITS * UNITS
    direction = tl.program_id(1)
    backward = sequences.goes_backward(direction, REVERSE)
    state += direction.to(tl.int64)
    reset_state += direction.to(tl.int64) * batch * H
    tile, unit = _part(H, UNITS)
    first_row = tile * BATCH
    row = first_row + tl.arange(0, BATCH)[:, None]
    now = start + step
    length = sequences.length(lengths, row, batch, total, LAYOUT, ISA)
    live = sequences.going_on(now, length, row < batch, LAYOUT)
    remembered = live
    if HAS_RESETS:
        remembered = live & (sequences.restarts(resets, now, length, row, batch, total, LAYOUT, ISA) == 0)
    end = H
    if LAYOUT != "dense":
        end = tl.where(tl.max(tl.ravel(live.to(tl.int32))) == 0, 0, H)
    a = _recurrent_products(
        tl.where(direction != 0, w_hh_back, w_hh), hx, carry_in, rounded_in, reset_state, row, remembered, unit,
        now == 0, end, state, batch, UNITS, BATCH, H, DEPTH, DTYPE, PART, PRECISION, HAS_HX, ISA,
    )  # fmt: skip
    if HAS_BIAS and PART == "all":
        a = (a[0], a[1], a[2] + _bias(tl.where(direction != 0, b_hh_back, b_hh), 2, unit, H))

    b = tl.arange(0, BATCH)[None, :]
    gi += ((direction.to(tl.int64) * steps + step) * tl.cdiv(batch, BATCH) + tile) * (3 * BATCH * PADDED_H)
    gi += b * PADDED_H + unit
    g = ()
    for gate in tl.static_range(_first_gate(PART), 1 if PART == "reset" else 3):
        g = g + (tl.load(gi + gate * BATCH * PADDED_H),)
    row = first_row + b
    there = (row < batch) & (unit < H)
    length = sequences.length(lengths, row, batch, total, LAYOUT, ISA)
    live = sequences.going_on(now, length, there, LAYOUT)
    h = _state(hx, carry_in, row, unit, there, now == 0, state, batch, H, HAS_HX)
    before = h
    if HAS_RESETS:
        before = tl.where(sequences.restarts(resets, now, length, row, batch, total, LAYOUT, ISA), 0.0, h)
    if PART == "reset":
        _leave_reset(g, a, before, reset_state, row, unit, there, H, DTYPE, ISA)
    else:
        new = _update(g, a, before, PART, DTYPE, ISA)
        h = new if LAYOUT == "dense" else tl.where(live, new, h)
        place = sequences.row_place(length, row, backward, out_t, out_b, LAYOUT)
        place += now.to(tl.int64) * sequences.stride(backward, out_t, LAYOUT)
        place += sequences.looked_up(now, length, backward, offsets, out_t, LAYOUT, ISA)
        tl.store(out + direction * H + place + unit, isa.cast(h, DTYPE, ISA), mask=live)
        _leave(
            h, carry_out, rounded_out, h_n, row, unit, there, now == total - 1, state, batch, H, DTYPE, ISA
        )  # fmt: skip


@triton.jit(do_not_specialize=["start", "total", "state", "batch"])
def whole_step(
    x,  # [batch, I] through strides
    w_ih,  # [3 * H, I]
    w_hh,  # [3 * H, H]
    b_ih,  # [3 * H]
    b_hh,  # [3 * H]
    w_ih_back,  # of the backward direction
    w_hh_back,
    b_ih_back,
    b_hh_back,
    hx,  # the states, from here to h_n, as in `step_scan`
    carry_in,
    carry_out,
    rounded_in,
    rounded_out,
    reset_state,
    out,  # [batch, directions, H]
    h_n,
    start,  # of the sequence's ``total`` steps, which this one is
    total,
    state,  # the layer's first in hx, carry and h_n
    batch,
    x_b,
    x_i,
    out_b,
    I: tl.constexpr,
    H: tl.constexpr,
    UNITS: tl.constexpr,
    BATCH: tl.constexpr,
    DEPTH: tl.constexpr,
    PART: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_HX: tl.constexpr,
    ISA: tl.constexpr,
):
    DTYPE: tl.constexpr = out.dtype.element_ty
    direction = tl.program_id(1)
    state += direction.to(tl.int64)
    reset_state += direction.to(tl.int64) * batch * H
    tile, unit = _part(H, UNITS)
    first_row = tile * BATCH
    row = first_row + tl.arange(0, BATCH)[:, None]
    g = _products(
        tl.where(direction != 0, w_ih_back, w_ih), x + row * x_b, x_i, row < batch, unit, I,
        _first_gate(PART), 1 if PART == "reset" else 3, I, H, UNITS, BATCH, DEPTH, PRECISION, ISA,
    )  # fmt: skip
    a = _recurrent_products(
        tl.where(direction != 0, w_hh_back, w_hh), hx, carry_in, rounded_in, reset_state, row, row < batch, unit,
        start == 0, H, state, batch, UNITS, BATCH, H, DEPTH, DTYPE, PART, PRECISION, HAS_HX, ISA,
    )  # fmt: skip
    if HAS_BIAS:
        b_ih = tl.where(direction != 0, b_ih_back, b_ih)
        b_hh = tl.where(direction != 0, b_hh_back, b_hh)
        biased = ()
        for i in tl.static_range(len(g)):
            gate = _first_gate(PART) + i
            g_i = g[i] + _bias(b_ih, gate, unit, H)
            if PART != "all" or i < 2:
                g_i += _bias(b_hh, gate, unit, H)
            biased = biased + (g_i,)
        g = biased
        if PART == "all":
            a = (a[0], a[1], a[2] + _bias(b_hh, 2, unit, H))
    row = first_row + tl.arange(0, BATCH)[None, :]
    there = (row < batch) & (unit < H)
    h = _state(hx, carry_in, row, unit, there, start == 0, state, batch, H, HAS_HX)
    if PART == "reset":
        _leave_reset(g, a, h, reset_state, row, unit, there, H, DTYPE, ISA)
    else:
        h = _update(g, a, h, PART, DTYPE, ISA)
        tl.store(out + direction * H + row * out_b + unit, isa.cast(h, DTYPE, ISA), mask=there)
        _leave(
            h, carry_out, rounded_out, h_n, row, unit, there, start == total - 1, state, batch, H, DTYPE, ISA
        )  # fmt: skip


@triton.jit
def _part(H: tl.constexpr, UNITS: tl.constexpr):
    """Return this program's tile of the batch, as 64-bit integer, and its units [UNITS, 1].

    Both are counted in one dimension of the launch, units first: the other dimensions take 65,535 programs at most.
    """
    PROGRAMS: tl.constexpr = (H + UNITS - 1) // UNITS
    unit = tl.program_id(0) % PROGRAMS * UNITS + tl.arange(0, UNITS)[:, None]
    return (tl.program_id(0) // PROGRAMS).to(tl.int64), unit


@triton.constexpr_function
def _first_gate(part):
    return 1 if part == "rest" else 0


@triton.jit
def _recurrent_products(
    w,
    hx,
    carry_in,
    rounded_in,
    reset_state,
    row,
    remembered,
    unit,
    first,
    end,
    state,
    batch,
    UNITS: tl.constexpr,
    BATCH: tl.constexpr,
    H: tl.constexpr,
    DEPTH: tl.constexpr,
    DTYPE: tl.constexpr,
    PART: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_HX: tl.constexpr,
    ISA: tl.constexpr,
):
    """Return the products of ``PART``'s gates, each [UNITS, BATCH], for rows ``row`` [BATCH, 1].

    They are of the state before the step, which is zero where a row is not ``remembered``. In the second part of a step
    n's product is of r h. A state of zeros is multiplied like any other: a weight that is NaN or infinite makes it NaN.
    """
    before = carry_in if DTYPE == tl.float32 else rounded_in
    if HAS_HX:
        before = tl.where(first, hx, before)
    else:
        remembered = remembered & (first == 0)
    source = before + state * batch * H + row * H
    END: tl.constexpr = 1 if PART == "reset" else 2 if PART == "rest" else 3
    products = _products(
        w, source, 1, remembered, unit, end, _first_gate(PART), END, H, H, UNITS, BATCH, DEPTH, PRECISION, ISA
    )
    if PART == "rest":
        source = reset_state + row * H
        products = products + _products(
            w, source, 1, row < batch, unit, end, 2, 3, H, H, UNITS, BATCH, DEPTH, PRECISION, ISA
        )
    return products


@triton.jit
def _products(
    w,
    source,
    apart,
    row_live,
    unit,
    end,
    FIRST: tl.constexpr,
    END: tl.constexpr,
    K: tl.constexpr,
    H: tl.constexpr,
    UNITS: tl.constexpr,
    BATCH: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    ISA: tl.constexpr,
):
    """For gates ``FIRST`` to before ``END``, their rows ``unit`` of ``w`` [3 * H, K] times those at ``source``.

    The sums end at ``end`` of K.
    """
    zero = tl.zeros((UNITS, BATCH), tl.float32)
    sums = ()
    for _ in tl.static_range(FIRST, END):
        sums = sums + (zero,)
    w += unit.to(tl.int64) * K
    for k0 in tl.range(0, end, DEPTH):
        k = k0 + tl.arange(0, DEPTH)[None, :]
        x = tl.trans(_load(source + k.to(tl.int64) * apart, row_live, k, K, DEPTH, PRECISION, ISA))
        added = ()
        for gate in tl.static_range(FIRST, END):
            weights = _load(w + gate * H * K + k, unit < H, k, K, DEPTH, PRECISION, ISA)
            added = added + (isa.matmul(weights, x, sums[gate - FIRST], PRECISION, ISA),)
        sums = added
    return sums


@triton.jit
def _load(address, row_live, k, K: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr, ISA: tl.constexpr):
    """[rows, DEPTH] of an operand of the product; zero where ``row_live`` is not, and beyond K."""
    live = row_live
    if K % DEPTH != 0:
        live = row_live & (k < K)
    value = tl.load(address, mask=live, other=0.0)
    return isa.round_to_tf32(value, ISA) if PRECISION == "tf32" else value


@triton.jit
def _bias(b, gate: tl.constexpr, unit, H: tl.constexpr):
    return tl.load(b + gate * H + unit, mask=unit < H, other=0.0).to(tl.float32)


@triton.jit
def _state(hx, carry_in, row, unit, there, first, state, batch, H: tl.constexpr, HAS_HX: tl.constexpr):
    """The state before the step, fp32."""
    at = state * batch * H + row * H + unit
    h = tl.load(carry_in + at, mask=there & (first == 0), other=0.0)
    if HAS_HX:
        h += tl.load(hx + at, mask=there & (first != 0), other=0.0).to(tl.float32)
    return h


@triton.jit
def _update(g, a, h, PART: tl.constexpr, DTYPE: tl.constexpr, ISA: tl.constexpr):
    """The state after the step, of ``PART``'s gate inputs and products."""
    if PART == "rest":
        return isa.next_state(g[0], g[1], a[0], a[1], h, DTYPE, ISA)
    else:
        return isa.gru_update(g[0], g[1], g[2], a[0], a[1], a[2], h, DTYPE, ISA)


@triton.jit
def _leave_reset(g, a, h, reset_state, row, unit, there, H: tl.constexpr, DTYPE: tl.constexpr, ISA: tl.constexpr):
    """r h for the rest of the step, of what there is of r alone."""
    r_h = isa.reset_state(g[0], a[0], h, DTYPE, ISA)
    tl.store(reset_state + row * H + unit, isa.cast(r_h, DTYPE, ISA), mask=there)


@triton.jit
def _leave(
    h,
    carry_out,
    rounded_out,
    h_n,
    row,
    unit,
    there,
    last,
    state,
    batch,
    H: tl.constexpr,
    DTYPE: tl.constexpr,
    ISA: tl.constexpr,
):
    """The state after the step, for the next one or the caller."""
    at = state * batch * H + row * H + unit
    rounded = isa.cast(h, DTYPE, ISA)
    tl.store(carry_out + at, h, mask=there & (last == 0))
    if DTYPE != tl.float32:
        tl.store(rounded_out + at, rounded, mask=there & (last == 0))
    tl.store(h_n + at, rounded, mask=there & (last != 0))
