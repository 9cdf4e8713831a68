"""The ``step`` scan: one launch a time step, which is what hands the state over.

What a program does, for a few hidden units and batch rows:

    r, z, n = 0                              # sums in registers
    for k in parts of all hidden units:      # W_hh is streamed from memory, every step anew
        r, z, n += W_hh[:, k] h[k]           # h as the launch before has left it in memory
    h = gru_update(gate inputs, r, z, n, h of my units)
    store h in out, and where the next launch finds it

It serves weights beyond what the chip holds, and a single step, where nothing can be kept. No program waits for
another, so any size runs anywhere.

`step_scan` makes a step of a sequence whose inputs have been projected; `whole_step` makes all of one, the projection
included, where there is no more than one.

Where r comes before the recurrent product, a step takes two launches: n's product is of r h, all of it. ``PART`` is
``"reset"`` in the one that makes r h, ``"rest"`` in the other, and ``"all"`` to reset after.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from . import isa, sequences, slices
from .constants import CommonConstants, derived


@dataclass(frozen=True, eq=False, repr=False)
class Cut(CommonConstants):
    """What both kernels are compiled for, beside what there is of a call."""

    PART: str
    UNITS: int  # hidden units of a program
    BATCH: int  # batch rows of a program
    DEPTH: int  # of the sum, an iteration
    SLICES: int  # of the depth, one a warp

    @derived
    def PROGRAMS(self):
        """Programs that own all hidden units."""
        return -(-self.H.value // self.UNITS.value)

    @derived
    def PADDED_H(self):
        return self.PROGRAMS.value * self.UNITS.value

    @derived
    def FIRST(self):
        """The first gate of a launch."""
        return 1 if self.PART.value == "rest" else 0

    @derived
    def END(self):
        """The gate after the last one."""
        return 1 if self.PART.value == "reset" else 3


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
    cut: tl.constexpr,  # a `Cut`
    call: tl.constexpr,  # a `constants.CallConstants`
):
    direction = tl.program_id(1)
    backward = sequences.goes_backward(direction, call.REVERSE)
    state += direction.to(tl.int64)
    reset_state += direction.to(tl.int64) * batch * cut.H
    tile, unit = _part(cut)
    first_row = tile * cut.BATCH
    row = first_row + tl.arange(0, cut.BATCH)[:, None]
    now = start + step
    length = sequences.load_lengths(lengths, row, batch, total, call.LAYOUT)
    live = sequences.is_active(now, length, row < batch, call.LAYOUT)
    remembered = live
    if call.HAS_RESETS:
        remembered = live & (sequences.is_reset(resets, now, length, row, batch, total) == 0)
    end = cut.H
    if call.LAYOUT != "dense":
        end = tl.where(tl.max(tl.ravel(live.to(tl.int32))) == 0, 0, cut.H)
    b_hn = tl.where(direction != 0, b_hh_back, b_hh)
    gi += ((direction.to(tl.int64) * steps + step) * tl.cdiv(batch, cut.BATCH) + tile) * (3 * cut.BATCH * cut.PADDED_H)
    row_b = first_row + tl.arange(0, cut.BATCH)[None, :]
    there = (row_b < batch) & (unit < cut.H)
    # What the gates take beside the products is on its way while those are made, where a thread has registers for it.
    if cut.SLICES > 1:
        g = _gate_inputs(gi, unit, cut)
        b_n = _bias(b_hn, 2, unit, call.HAS_BIAS and cut.PART == "all", cut)
        first = now == 0
        at = state * batch * cut.H + row_b * cut.H + unit
        h = _state(hx, carry_in, at, there, first, call.HAS_HX)
    w = tl.where(direction != 0, w_hh_back, w_hh)
    source, remembered = _before(hx, carry_in, rounded_in, remembered, now == 0, call.HAS_HX, cut)
    source = source + state * batch * cut.H + row * cut.H
    sums = _recurrent_products(
        _zeros(cut.END - cut.FIRST, cut), w, source, remembered, reset_state + row * cut.H, row < batch, unit, end, cut
    )
    if cut.SLICES == 1:
        g = _gate_inputs(gi, unit, cut)
        b_n = _bias(b_hn, 2, unit, call.HAS_BIAS and cut.PART == "all", cut)
        first = now == 0
        at = state * batch * cut.H + row_b * cut.H + unit
        h = _state(hx, carry_in, at, there, first, call.HAS_HX)
    a = _over_slices(sums, cut)
    if cut.PART == "all":
        a = (a[0], a[1], a[2] + b_n)

    length = sequences.load_lengths(lengths, row_b, batch, total, call.LAYOUT)
    live = sequences.is_active(now, length, there, call.LAYOUT)
    before = h
    if call.HAS_RESETS:
        before = tl.where(sequences.is_reset(resets, now, length, row_b, batch, total), 0.0, h)
    if cut.PART == "reset":
        _leave_reset(g[0], a[0], before, reset_state, row_b, unit, there, cut)
    else:
        new = _update(g, a, before, cut)
        h = new if call.LAYOUT == "dense" else tl.where(live, new, h)
        place = sequences.row_offset(length, row_b, backward, out_t, out_b, call.LAYOUT)
        place += now.to(tl.int64) * sequences.step_stride(backward, out_t, call.LAYOUT)
        place += sequences.table_offset(now, length, backward, offsets, out_t, call.LAYOUT)
        isa.store(out + direction * cut.H + place + unit, h.to(cut.DTYPE), live)
        _leave(h, carry_out, rounded_out, h_n, at, there, now == total - 1, cut)


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
    HAS_BIAS: tl.constexpr,
    HAS_HX: tl.constexpr,
    cut: tl.constexpr,  # a `Cut`
):
    direction = tl.program_id(1)
    state += direction.to(tl.int64)
    reset_state += direction.to(tl.int64) * batch * cut.H
    tile, unit = _part(cut)
    first_row = tile * cut.BATCH
    row = first_row + tl.arange(0, cut.BATCH)[:, None]
    b_ih = tl.where(direction != 0, b_ih_back, b_ih)
    b_hh = tl.where(direction != 0, b_hh_back, b_hh)
    row_b = first_row + tl.arange(0, cut.BATCH)[None, :]
    there = (row_b < batch) & (unit < cut.H)
    # As in `step_scan`.
    if cut.SLICES > 1:
        biases = _biases(b_ih, b_hh, unit, HAS_BIAS, cut)
        first = start == 0
        at = state * batch * cut.H + row_b * cut.H + unit
        h = _state(hx, carry_in, at, there, first, HAS_HX)
    sums = _zeros(cut.END - cut.FIRST, cut)
    w = tl.where(direction != 0, w_ih_back, w_ih)
    sums = _products(sums, w, x + row * x_b, x_i, row < batch, unit, I, cut.FIRST, I, cut)
    of_x = ()
    if cut.PART == "all":  # r goes between n's two products
        of_x = (sums[2],)
        sums = sums[:2] + _zeros(1, cut)
    w = tl.where(direction != 0, w_hh_back, w_hh)
    source, remembered = _before(hx, carry_in, rounded_in, row < batch, start == 0, HAS_HX, cut)
    source = source + state * batch * cut.H + row * cut.H
    sums = _recurrent_products(sums, w, source, remembered, reset_state + row * cut.H, row < batch, unit, cut.H, cut)
    if cut.SLICES == 1:
        biases = _biases(b_ih, b_hh, unit, HAS_BIAS, cut)
        first = start == 0
        at = state * batch * cut.H + row_b * cut.H + unit
        h = _state(hx, carry_in, at, there, first, HAS_HX)
    sums = _over_slices(sums[:2] + of_x + sums[2:], cut)
    g = ()
    for i in tl.static_range(len(sums)):
        g = g + (sums[i] + biases[i],)
    if cut.PART == "reset":
        _leave_reset(g[0], 0.0, h, reset_state, row_b, unit, there, cut)
    else:
        if cut.PART == "all":
            h = isa.gru_update(g[0], g[1], g[2], 0.0, 0.0, g[3], h, cut.DTYPE)
        else:
            h = isa.next_state(g[0], g[1], 0.0, 0.0, h, cut.DTYPE)
        isa.store(out + direction * cut.H + row_b * out_b + unit, h.to(cut.DTYPE), there)
        _leave(h, carry_out, rounded_out, h_n, at, there, start == total - 1, cut)


@triton.jit
def _part(cut: tl.constexpr):
    """Return this program's tile of the batch, as 64-bit integer, and its units [UNITS, 1].

    Both are counted in one dimension of the launch, units first: the other dimensions take 65,535 programs at most.
    """
    unit = tl.program_id(0) % cut.PROGRAMS * cut.UNITS + tl.arange(0, cut.UNITS)[:, None]
    return (tl.program_id(0) // cut.PROGRAMS).to(tl.int64), unit


@triton.jit
def _before(hx, carry, rounded, remembered, first, HAS_HX: tl.constexpr, cut: tl.constexpr):
    """Return where the states before the step begin, as operands, and which rows of them are ``remembered``."""
    source = carry if cut.DTYPE == tl.float32 else rounded
    if HAS_HX:
        source = tl.where(first, hx, source)
    else:
        remembered = remembered & (first == 0)
    return source, remembered


@triton.jit
def _recurrent_products(sums, w, source, remembered, r_h, row_there, unit, end, cut: tl.constexpr):
    """Return ``sums`` of a launch's gates and the products of rows of the batch with their rows of ``w``.

    The products are of the state at ``source``, which is zero where a row is not ``remembered``. In the second part of
    a step n's product is of r h. A state of zeros is multiplied like any other: a weight that is NaN makes it NaN.
    """
    if cut.PART == "rest":
        of_r_h = _products((sums[1],), w, r_h, 1, row_there, unit, end, 2, cut.H, cut)
        sums = (sums[0],)
    sums = _products(sums, w, source, 1, remembered, unit, end, cut.FIRST, cut.H, cut)
    return sums + of_r_h if cut.PART == "rest" else sums


@triton.jit
def _products(sums, w, source, apart, row_live, unit, end, FIRST: tl.constexpr, K: tl.constexpr, cut: tl.constexpr):
    """Return ``sums`` of gates from ``FIRST`` on, and rows ``unit`` of ``w`` [3 * H, K] times those at ``source``.

    The sums end at ``end`` of K. With several slices they are [SLICES, UNITS, BATCH], each warp's part by itself.
    """
    in_chunk = tl.arange(0, cut.DEPTH // cut.SLICES)[None, :]
    if cut.SLICES > 1:
        in_chunk = tl.arange(0, cut.SLICES)[:, None, None] * (cut.DEPTH // cut.SLICES) + in_chunk
    w += unit.to(tl.int64) * K
    # One iteration is no loop, and its loads are not made ahead of it: they go before the first product.
    AT_ONCE: tl.constexpr = K <= cut.DEPTH
    # With Triton 3.8 an operand that several products share goes through shared memory again, so each gets its own. The
    # assembler unrolls a loop of up to four iterations, unless it gets longer by that.
    OWN: tl.constexpr = K > 4 * cut.DEPTH
    for k0 in tl.range(0, end, cut.DEPTH):
        k = k0 + in_chunk
        # Turned before it is loaded: Triton 3.8 has what is turned afterwards go through shared memory again.
        turned = tl.trans(k)
        x = _load(tl.trans(source) + turned.to(tl.int64) * apart, tl.trans(row_live), turned, K, cut)
        weights = ()
        if AT_ONCE:
            for i in tl.static_range(len(sums)):
                weights = weights + (_weights(w, FIRST + i, unit, k, K, cut),)
        added = ()
        for i in tl.static_range(len(sums)):
            if AT_ONCE:
                of_gate = weights[i]
            else:
                of_gate = _weights(w, FIRST + i, unit, k, K, cut)
            x_i = isa.round_to_tf32(x, i if OWN else 0) if cut.PRECISION == "tf32" else x
            added = added + (tl.dot(of_gate, x_i, acc=sums[i], input_precision=cut.PRECISION),)
        sums = added
    return sums


@triton.jit
def _weights(w, gate: tl.constexpr, unit, k, K: tl.constexpr, cut: tl.constexpr):
    """Load a gate's rows ``unit`` of ``w`` at the columns k, as the left operand of a product."""
    value = _load(w + gate * cut.H * K + k, unit < cut.H, k, K, cut)
    return isa.round_to_tf32(value) if cut.PRECISION == "tf32" else value


@triton.jit
def _load(address, row_live, k, K: tl.constexpr, cut: tl.constexpr):
    """Load an operand of a product, zero where ``row_live`` is not, and beyond K."""
    live = row_live
    if K % cut.DEPTH != 0:
        live = row_live & (k < K)
    return tl.load(address, mask=live, other=0.0)


@triton.jit
def _zeros(COUNT: tl.constexpr, cut: tl.constexpr):
    """Return so many sums to begin with."""
    zero = tl.zeros((cut.UNITS, cut.BATCH) if cut.SLICES == 1 else (cut.SLICES, cut.UNITS, cut.BATCH), tl.float32)
    sums = ()
    for _ in tl.static_range(COUNT):
        sums = sums + (zero,)
    return sums


@triton.jit
def _over_slices(sums, cut: tl.constexpr):
    """Return each of the sums [SLICES, UNITS, BATCH] over all slices, [UNITS, BATCH]."""
    if cut.SLICES == 1:
        return sums
    else:
        turned = ()
        summed = slices.sum_slices(sums, cut.SLICES, cut.UNITS, cut.BATCH)
        for i in tl.static_range(len(sums)):
            turned = turned + (tl.trans(summed[i]),)
        return turned


@triton.jit
def _gate_inputs(gi, unit, cut: tl.constexpr):
    """Load the gate inputs of a launch's gates."""
    gi += tl.arange(0, cut.BATCH)[None, :] * cut.PADDED_H + unit
    g = ()
    for gate in tl.static_range(cut.FIRST, cut.END):
        g = g + (tl.load(gi + gate * cut.BATCH * cut.PADDED_H),)
    return g


@triton.jit
def _bias(b, gate: tl.constexpr, unit, THERE: tl.constexpr, cut: tl.constexpr):
    """Load a gate's bias in fp32, if it is there."""
    return tl.load(b + gate * cut.H + unit, mask=unit < cut.H, other=0.0).to(tl.float32) if THERE else 0.0


@triton.jit
def _biases(b_ih, b_hh, unit, HAS_BIAS: tl.constexpr, cut: tl.constexpr):
    """Load the biases of a launch's gates. n's two are apart where r goes between them."""
    biases = ()
    for gate in tl.static_range(cut.FIRST, cut.END):
        of_x = _bias(b_ih, gate, unit, HAS_BIAS, cut)
        of_h = _bias(b_hh, gate, unit, HAS_BIAS, cut)
        if gate == 2 and cut.PART == "all":
            biases = biases + (of_x, of_h)
        else:
            biases = biases + (of_x + of_h,)
    return biases


@triton.jit
def _state(hx, carry, at, there, first, HAS_HX: tl.constexpr):
    """Load the state before the step in fp32: from ``hx`` if the step is the ``first``, else from ``carry``."""
    h = tl.load(carry + at, mask=there & (first == 0), other=0.0)
    if HAS_HX:
        h += tl.load(hx + at, mask=there & (first != 0), other=0.0).to(tl.float32)
    return h


@triton.jit
def _update(g, a, h, cut: tl.constexpr):
    """Return the state after the step, of the gate inputs and products of a launch's gates."""
    if cut.PART == "rest":
        return isa.next_state(g[0], g[1], a[0], a[1], h, cut.DTYPE)
    else:
        return isa.gru_update(g[0], g[1], g[2], a[0], a[1], a[2], h, cut.DTYPE)


@triton.jit
def _leave_reset(g_r, a_r, h, reset_state, row, unit, there, cut: tl.constexpr):
    """Store r h for the rest of the step, of what there is of r alone."""
    r_h = isa.reset_state(g_r, a_r, h, cut.DTYPE)
    tl.store(reset_state + row * cut.H + unit, r_h.to(cut.DTYPE), mask=there)


@triton.jit
def _leave(h, carry, rounded, h_n, at, there, last, cut: tl.constexpr):
    """Store the state after the step: in ``carry`` and ``rounded`` for the next one, or in ``h_n`` for the caller."""
    result = h.to(cut.DTYPE)
    tl.store(carry + at, h, mask=there & (last == 0))
    if cut.DTYPE != tl.float32:
        tl.store(rounded + at, result, mask=there & (last == 0))
    tl.store(h_n + at, result, mask=there & (last != 0))
