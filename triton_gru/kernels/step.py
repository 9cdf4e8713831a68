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

from . import isa, sequences, slices


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
    SLICES: tl.constexpr,  # of the depth, one a warp
    LAYOUT: tl.constexpr,
    REVERSE: tl.constexpr,
    PART: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_HX: tl.constexpr,
    HAS_RESETS: tl.constexpr,
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
    length = sequences.length(lengths, row, batch, total, LAYOUT)
    live = sequences.going_on(now, length, row < batch, LAYOUT)
    remembered = live
    if HAS_RESETS:
        remembered = live & (sequences.restarts(resets, now, length, row, batch, total) == 0)
    end = H
    if LAYOUT != "dense":
        end = tl.where(tl.max(tl.ravel(live.to(tl.int32))) == 0, 0, H)
    b_hn = tl.where(direction != 0, b_hh_back, b_hh)
    gi += ((direction.to(tl.int64) * steps + step) * tl.cdiv(batch, BATCH) + tile) * (3 * BATCH * PADDED_H)
    row_b = first_row + tl.arange(0, BATCH)[None, :]
    there = (row_b < batch) & (unit < H)
    sums = _zeros(_end_gate(PART) - _first_gate(PART), UNITS, BATCH, SLICES)
    # What the gates take beside the products is on its way while those are made, where a thread has registers for it.
    if SLICES > 1:
        g = _gate_inputs(gi, unit, BATCH, PADDED_H, PART)
        b_n = _bias(b_hn, 2, unit, H, HAS_BIAS and PART == "all")
        h = _state(hx, carry_in, row_b, unit, there, now == 0, state, batch, H, HAS_HX)
    sums = _recurrent_products(
        sums, tl.where(direction != 0, w_hh_back, w_hh), hx, carry_in, rounded_in, reset_state, row, remembered, unit,
        now == 0, end, state, batch, H, DEPTH, SLICES, DTYPE, PART, PRECISION, HAS_HX,
    )  # fmt: skip
    if SLICES == 1:
        g = _gate_inputs(gi, unit, BATCH, PADDED_H, PART)
        b_n = _bias(b_hn, 2, unit, H, HAS_BIAS and PART == "all")
        h = _state(hx, carry_in, row_b, unit, there, now == 0, state, batch, H, HAS_HX)
    a = _over_slices(sums, UNITS, BATCH, SLICES)
    if PART == "all":
        a = (a[0], a[1], a[2] + b_n)

    length = sequences.length(lengths, row_b, batch, total, LAYOUT)
    live = sequences.going_on(now, length, there, LAYOUT)
    before = h
    if HAS_RESETS:
        before = tl.where(sequences.restarts(resets, now, length, row_b, batch, total), 0.0, h)
    if PART == "reset":
        _leave_reset(g, a, before, reset_state, row_b, unit, there, H, DTYPE)
    else:
        new = _update(g, a, before, PART, DTYPE)
        h = new if LAYOUT == "dense" else tl.where(live, new, h)
        place = sequences.row_place(length, row_b, backward, out_t, out_b, LAYOUT)
        place += now.to(tl.int64) * sequences.stride(backward, out_t, LAYOUT)
        place += sequences.looked_up(now, length, backward, offsets, out_t, LAYOUT)
        isa.store(out + direction * H + place + unit, h.to(DTYPE), live)
        _leave(
            h, carry_out, rounded_out, h_n, row_b, unit, there, now == total - 1, state, batch, H, DTYPE
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
    SLICES: tl.constexpr,
    PART: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_HX: tl.constexpr,
):
    DTYPE: tl.constexpr = out.dtype.element_ty
    direction = tl.program_id(1)
    state += direction.to(tl.int64)
    reset_state += direction.to(tl.int64) * batch * H
    tile, unit = _part(H, UNITS)
    first_row = tile * BATCH
    row = first_row + tl.arange(0, BATCH)[:, None]
    b_ih = tl.where(direction != 0, b_ih_back, b_ih)
    b_hh = tl.where(direction != 0, b_hh_back, b_hh)
    row_b = first_row + tl.arange(0, BATCH)[None, :]
    there = (row_b < batch) & (unit < H)
    # As in `step_scan`.
    if SLICES > 1:
        biases = _biases(b_ih, b_hh, unit, H, PART, HAS_BIAS)
        h = _state(hx, carry_in, row_b, unit, there, start == 0, state, batch, H, HAS_HX)
    sums = _products(
        _zeros(_end_gate(PART) - _first_gate(PART), UNITS, BATCH, SLICES),
        tl.where(direction != 0, w_ih_back, w_ih), x + row * x_b, x_i, row < batch, unit, I, _first_gate(PART),
        I, H, DEPTH, SLICES, PRECISION,
    )  # fmt: skip
    of_x = ()
    if PART == "all":  # r goes between n's two products
        of_x = (sums[2],)
        sums = sums[:2] + _zeros(1, UNITS, BATCH, SLICES)
    sums = _recurrent_products(
        sums, tl.where(direction != 0, w_hh_back, w_hh), hx, carry_in, rounded_in, reset_state, row, row < batch, unit,
        start == 0, H, state, batch, H, DEPTH, SLICES, DTYPE, PART, PRECISION, HAS_HX,
    )  # fmt: skip
    if SLICES == 1:
        biases = _biases(b_ih, b_hh, unit, H, PART, HAS_BIAS)
        h = _state(hx, carry_in, row_b, unit, there, start == 0, state, batch, H, HAS_HX)
    sums = _over_slices(sums[:2] + of_x + sums[2:], UNITS, BATCH, SLICES)
    g = ()
    for i in tl.static_range(len(sums)):
        g = g + (sums[i] + biases[i],)
    if PART == "reset":
        _leave_reset(g, (0.0,), h, reset_state, row_b, unit, there, H, DTYPE)
    else:
        if PART == "all":
            h = isa.gru_update(g[0], g[1], g[2], 0.0, 0.0, g[3], h, DTYPE)
        else:
            h = isa.next_state(g[0], g[1], 0.0, 0.0, h, DTYPE)
        isa.store(out + direction * H + row_b * out_b + unit, h.to(DTYPE), there)
        _leave(
            h, carry_out, rounded_out, h_n, row_b, unit, there, start == total - 1, state, batch, H, DTYPE
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


@triton.constexpr_function
def _end_gate(part):
    return 1 if part == "reset" else 3


@triton.jit
def _recurrent_products(
    sums,
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
    H: tl.constexpr,
    DEPTH: tl.constexpr,
    SLICES: tl.constexpr,
    DTYPE: tl.constexpr,
    PART: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_HX: tl.constexpr,
):
    """Return ``sums`` of ``PART``'s gates and the products of rows ``row`` [BATCH, 1] with their rows of ``w``.

    They are of the state before the step, which is zero where a row is not ``remembered``. In the second part of a step
    n's product is of r h. A state of zeros is multiplied like any other: a weight that is NaN or infinite makes it NaN.
    """
    before = carry_in if DTYPE == tl.float32 else rounded_in
    if HAS_HX:
        before = tl.where(first, hx, before)
    else:
        remembered = remembered & (first == 0)
    source = before + state * batch * H + row * H
    if PART == "rest":
        of_r_h = _products(
            (sums[1],), w, reset_state + row * H, 1, row < batch, unit, end, 2, H, H, DEPTH, SLICES, PRECISION,
        )  # fmt: skip
        sums = (sums[0],)
    sums = _products(sums, w, source, 1, remembered, unit, end, _first_gate(PART), H, H, DEPTH, SLICES, PRECISION)
    return sums + of_r_h if PART == "rest" else sums


@triton.jit
def _products(
    sums,
    w,
    source,
    apart,
    row_live,
    unit,
    end,
    FIRST: tl.constexpr,
    K: tl.constexpr,
    H: tl.constexpr,
    DEPTH: tl.constexpr,
    SLICES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return ``sums`` of gates from ``FIRST`` on, and rows ``unit`` of ``w`` [3 * H, K] times those at ``source``.

    The sums end at ``end`` of K. With several slices they are [SLICES, UNITS, BATCH], each warp's part by itself.
    """
    in_chunk = tl.arange(0, DEPTH // SLICES)[None, :]
    if SLICES > 1:
        in_chunk = tl.arange(0, SLICES)[:, None, None] * (DEPTH // SLICES) + in_chunk
    w += unit.to(tl.int64) * K
    # One iteration is no loop, and its loads are not made ahead of it: they go before the first product.
    AT_ONCE: tl.constexpr = K <= DEPTH
    # With Triton 3.8 an operand that several products share goes through shared memory again, so each gets its own. The
    # assembler unrolls a loop of up to four iterations, unless it gets longer by that.
    OWN: tl.constexpr = K > 4 * DEPTH
    for k0 in tl.range(0, end, DEPTH):
        k = k0 + in_chunk
        # Turned before it is loaded: Triton 3.8 has what is turned afterwards go through shared memory again.
        turned = tl.trans(k)
        x = _load(tl.trans(source) + turned.to(tl.int64) * apart, tl.trans(row_live), turned, K, DEPTH)
        weights = ()
        if AT_ONCE:
            for i in tl.static_range(len(sums)):
                weights = weights + (_weights(w, FIRST + i, unit, k, K, H, DEPTH, PRECISION),)
        added = ()
        for i in tl.static_range(len(sums)):
            if AT_ONCE:
                of_gate = weights[i]
            else:
                of_gate = _weights(w, FIRST + i, unit, k, K, H, DEPTH, PRECISION)
            x_i = isa.round_to_tf32(x, i if OWN else 0) if PRECISION == "tf32" else x
            added = added + (tl.dot(of_gate, x_i, acc=sums[i], input_precision=PRECISION),)
        sums = added
    return sums


@triton.jit
def _weights(
    w,
    gate: tl.constexpr,
    unit,
    k,
    K: tl.constexpr,
    H: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    value = _load(w + gate * H * K + k, unit < H, k, K, DEPTH)
    return isa.round_to_tf32(value) if PRECISION == "tf32" else value


@triton.jit
def _load(address, row_live, k, K: tl.constexpr, DEPTH: tl.constexpr):
    """[rows, DEPTH] of an operand of the product; zero where ``row_live`` is not, and beyond K."""
    live = row_live
    if K % DEPTH != 0:
        live = row_live & (k < K)
    return tl.load(address, mask=live, other=0.0)


@triton.jit
def _zeros(COUNT: tl.constexpr, UNITS: tl.constexpr, BATCH: tl.constexpr, SLICES: tl.constexpr):
    zero = tl.zeros((UNITS, BATCH) if SLICES == 1 else (SLICES, UNITS, BATCH), tl.float32)
    sums = ()
    for _ in tl.static_range(COUNT):
        sums = sums + (zero,)
    return sums


@triton.jit
def _over_slices(sums, UNITS: tl.constexpr, BATCH: tl.constexpr, SLICES: tl.constexpr):
    """Return each of the sums [SLICES, UNITS, BATCH] over all slices, [UNITS, BATCH]."""
    if SLICES == 1:
        return sums
    else:
        turned = ()
        summed = slices.sums(sums, SLICES, UNITS, BATCH)
        for i in tl.static_range(len(sums)):
            turned = turned + (tl.trans(summed[i]),)
        return turned


@triton.jit
def _gate_inputs(gi, unit, BATCH: tl.constexpr, PADDED_H: tl.constexpr, PART: tl.constexpr):
    gi += tl.arange(0, BATCH)[None, :] * PADDED_H + unit
    g = ()
    for gate in tl.static_range(_first_gate(PART), _end_gate(PART)):
        g = g + (tl.load(gi + gate * BATCH * PADDED_H),)
    return g


@triton.jit
def _bias(b, gate: tl.constexpr, unit, H: tl.constexpr, THERE: tl.constexpr):
    return tl.load(b + gate * H + unit, mask=unit < H, other=0.0).to(tl.float32) if THERE else 0.0


@triton.jit
def _biases(b_ih, b_hh, unit, H: tl.constexpr, PART: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Return the biases of ``PART``'s gates. n's two are apart where r goes between them."""
    biases = ()
    for gate in tl.static_range(_first_gate(PART), _end_gate(PART)):
        of_x = _bias(b_ih, gate, unit, H, HAS_BIAS)
        of_h = _bias(b_hh, gate, unit, H, HAS_BIAS)
        if gate == 2 and PART == "all":
            biases = biases + (of_x, of_h)
        else:
            biases = biases + (of_x + of_h,)
    return biases


@triton.jit
def _state(hx, carry_in, row, unit, there, first, state, batch, H: tl.constexpr, HAS_HX: tl.constexpr):
    """The state before the step, fp32."""
    at = state * batch * H + row * H + unit
    h = tl.load(carry_in + at, mask=there & (first == 0), other=0.0)
    if HAS_HX:
        h += tl.load(hx + at, mask=there & (first != 0), other=0.0).to(tl.float32)
    return h


@triton.jit
def _update(g, a, h, PART: tl.constexpr, DTYPE: tl.constexpr):
    """The state after the step, of ``PART``'s gate inputs and products."""
    if PART == "rest":
        return isa.next_state(g[0], g[1], a[0], a[1], h, DTYPE)
    else:
        return isa.gru_update(g[0], g[1], g[2], a[0], a[1], a[2], h, DTYPE)


@triton.jit
def _leave_reset(g, a, h, reset_state, row, unit, there, H: tl.constexpr, DTYPE: tl.constexpr):
    """r h for the rest of the step, of what there is of r alone."""
    r_h = isa.reset_state(g[0], a[0], h, DTYPE)
    tl.store(reset_state + row * H + unit, r_h.to(DTYPE), mask=there)


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
):
    """The state after the step, for the next one or the caller."""
    at = state * batch * H + row * H + unit
    rounded = h.to(DTYPE)
    tl.store(carry_out + at, h, mask=there & (last == 0))
    if DTYPE != tl.float32:
        tl.store(rounded_out + at, rounded, mask=there & (last == 0))
    tl.store(h_n + at, rounded, mask=there & (last != 0))
