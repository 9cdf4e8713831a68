"""The ``step`` scan: one launch for each time step. The state goes from launch to launch through global memory.

The algorithm of a program, for a few hidden units and batch rows:

    r, z, n = 0                              # sums in registers
    for k in ranges of hidden units:         # W_hh is streamed from memory in every step
        r, z, n += W_hh[:, k] h[k]           # h is in memory, where the previous launch stored it
    h = gru_update(gate inputs, r, z, n, h of my units)
    store h in out, and in memory for the next launch

It serves weights that do not fit on the chip, and calls of one step, which cannot reuse weights. No program waits for
another, so a launch may have more programs than the chip holds at once.

`step_scan` computes a step of a sequence whose inputs have been projected. `whole_step` also computes the projection,
for a call of a single step.

With ``reset_after=False`` a step takes two launches, because n's product needs r h of all units. ``PART`` is
``"reset"`` in the launch that computes r h, and ``"rest"`` in the second launch. Otherwise a step is one launch, and
``PART`` is ``"all"``.

**Gates** are numbered 0 r, 1 z, 2 n. In the code, ``g`` has the gate inputs of a launch's gates, and ``a`` has their
recurrent products, as in `isa.gru_update`. Exception: in `whole_step`, ``g`` has the sum of both. If ``PART`` is
``"all"``, n's recurrent product is a fourth entry instead.

**Masks.**

- ``live``: the row is in the batch, and the unit is below H. Only these elements exist in hx, carry and h_n.
- ``is_active``: the row is in the batch, and its sequence has the step. Only these rows are stored in out, and of them
  only units below H. A row whose sequence has ended keeps its state.
- ``has_state``: the row is active, and neither a reset nor a missing hx makes its state zero.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from . import isa, sequences, slices
from .constants import CommonConstants, derived


@dataclass(frozen=True, eq=False, repr=False)
class Cut(CommonConstants):
    """The constants of `step_scan` and `whole_step` that the configuration and the launch fix.

    `CommonConstants` adds H, DTYPE, BITS, PRECISION and IS_IEEE. The call fixes `CallConstants` for `step_scan`, and
    I, HAS_BIAS and HAS_HX for `whole_step`.
    """

    PART: str  # "all", "reset" or "rest": the part of a step that a launch computes
    UNITS: int  # hidden units of a program
    BATCH: int  # batch rows of a program
    DEPTH: int  # hidden units (or features) that an iteration sums over
    SLICES: int  # parts of an iteration's sum, one for each warp. 1 if all warps share the sum

    @derived
    def PROGRAMS(self):
        """Return the number of programs that own all hidden units, in one direction and one tile of the batch."""
        return -(-self.H.value // self.UNITS.value)

    @derived
    def PADDED_H(self):
        """Return the number of hidden units of all programs: H or more."""
        return self.PROGRAMS.value * self.UNITS.value

    @derived
    def FIRST(self):
        """Return the first gate of the launch."""
        return 1 if self.PART.value == "rest" else 0

    @derived
    def END(self):
        """Return the gate after the last gate of the launch."""
        return 1 if self.PART.value == "reset" else 3


@triton.jit(
    do_not_specialize=["step", "steps", "start", "total", "first_state", "batch", "out_t", "out_b"],
    do_not_specialize_on_alignment=["lengths", "offsets", "resets"],
)
def step_scan(
    gi,  # [directions, steps, batch tiles, 3, BATCH, padded H]: x W_ih^T and the biases, see projection
    w_hh,  # [3 * H, H]
    b_hh,  # [3 * H]; only b_hn is read, and only if PART is "all". gi includes the other biases
    w_hh_back,  # [3 * H, H] of the backward direction
    b_hh_back,  # [3 * H] of the backward direction
    hx,  # [layers * directions, batch, H]: the state before the first step
    carry_in,  # fp32 [layers * directions, batch, H]: the state before this step. Unused in the first step
    carry_out,  # fp32 [layers * directions, batch, H]: the state after this step. Unused in the last step
    rounded_in,  # [layers * directions, batch, H]: carry_in as an operand of products; unused in fp32
    rounded_out,  # [layers * directions, batch, H]: carry_out as an operand of products; unused in fp32
    r_h,  # [directions, batch, H]: r h as an operand of products. Launch "reset" stores it for launch "rest"
    out,  # [time, batch, directions, H] through strides, or packed; see sequences
    h_n,  # [layers * directions, batch, H]: the state after the last step
    lengths,  # int32 [batch], see sequences
    offsets,  # int32 [time], see sequences
    resets,  # uint8 [time, batch]: not 0 where the state is set to zero before a step
    step,  # index of this step in gi
    steps,  # time steps in gi
    start,  # first step in gi, see sequences
    total,  # time steps of the input, made by all launches
    first_state,  # the layer's first row of hx, carry, rounded and h_n: layer * directions
    batch,  # batch rows of the call
    out_t,  # elements of out from a time to the next. Packed: from a row to the next
    out_b,  # elements of out from a batch row to the next
    cut: tl.constexpr,  # a `Cut`
    call: tl.constexpr,  # a `constants.CallConstants`
):
    """Make one time step, or a part of it, of all directions of a layer."""
    direction = tl.program_id(1)
    backward = sequences.goes_backward(direction, call.REVERSE)
    first_state += direction.to(tl.int64)
    r_h += direction.to(tl.int64) * batch * cut.H
    tile, unit = _find_part(cut)
    first_row = tile * cut.BATCH
    # Batch rows are ``row``, [BATCH, 1], where the state is loaded as an operand of products. They are ``row_b``,
    # [1, BATCH], everywhere else.
    row = first_row + tl.arange(0, cut.BATCH)[:, None]
    sequence_step = start + step
    length = sequences.load_lengths(lengths, row, batch, total, call.LAYOUT)
    is_active = sequences.is_active(sequence_step, length, row < batch, call.LAYOUT)
    has_state = is_active
    if call.HAS_RESETS:
        has_state = is_active & (sequences.is_reset(resets, sequence_step, length, row, batch, total) == 0)
    # If all sequences of the program have ended, its products sum over no units.
    end = cut.H
    if call.LAYOUT != "dense":
        end = tl.where(tl.max(tl.ravel(is_active.to(tl.int32))) == 0, 0, cut.H)
    b_hh = tl.where(direction != 0, b_hh_back, b_hh)
    gi += ((direction.to(tl.int64) * steps + step) * tl.cdiv(batch, cut.BATCH) + tile) * (3 * cut.BATCH * cut.PADDED_H)
    row_b = first_row + tl.arange(0, cut.BATCH)[None, :]
    live = (row_b < batch) & (unit < cut.H)
    # With several slices a thread has registers for the gate inputs, the bias and the state. So they are loaded before
    # the products, and arrive meanwhile. With one slice they are loaded after the products.
    if cut.SLICES > 1:
        g = _load_gate_inputs(gi, unit, cut)
        b_n = _load_bias(b_hh, gate=2, unit=unit, HAS_BIAS=call.HAS_BIAS and cut.PART == "all", cut=cut)
        is_first = sequence_step == 0
        state_offset = first_state * batch * cut.H + row_b * cut.H + unit
        h = _load_state(hx, carry_in, state_offset, live, is_first, call.HAS_HX)
    w = tl.where(direction != 0, w_hh_back, w_hh)
    source, has_state = _find_operand(hx, carry_in, rounded_in, has_state, sequence_step == 0, call.HAS_HX, cut)
    source = source + first_state * batch * cut.H + row * cut.H
    sums = _add_recurrent_products(
        _zeros(cut.END - cut.FIRST, cut), w, source, has_state, r_h + row * cut.H, row < batch, unit, end, cut
    )
    if cut.SLICES == 1:
        g = _load_gate_inputs(gi, unit, cut)
        b_n = _load_bias(b_hh, gate=2, unit=unit, HAS_BIAS=call.HAS_BIAS and cut.PART == "all", cut=cut)
        is_first = sequence_step == 0
        state_offset = first_state * batch * cut.H + row_b * cut.H + unit
        h = _load_state(hx, carry_in, state_offset, live, is_first, call.HAS_HX)
    a = _sum_slices(sums, cut)
    if cut.PART == "all":
        a = (a[0], a[1], a[2] + b_n)

    length = sequences.load_lengths(lengths, row_b, batch, total, call.LAYOUT)
    is_active = sequences.is_active(sequence_step, length, live, call.LAYOUT)
    previous_h = h
    if call.HAS_RESETS:
        previous_h = tl.where(sequences.is_reset(resets, sequence_step, length, row_b, batch, total), 0.0, h)
    if cut.PART == "reset":
        _store_r_h(g[0], a[0], previous_h, r_h, row_b, unit, live, cut)
    else:
        new_h = _update(g, a, previous_h, cut)
        h = new_h if call.LAYOUT == "dense" else tl.where(is_active, new_h, h)
        offset = sequences.row_offset(length, row_b, backward, out_t, out_b, call.LAYOUT)
        offset += sequence_step.to(tl.int64) * sequences.step_stride(backward, out_t, call.LAYOUT)
        offset += sequences.table_offset(sequence_step, length, backward, offsets, out_t, call.LAYOUT)
        isa.store(out + direction * cut.H + offset + unit, h.to(cut.DTYPE), is_active)
        _store_state(h, carry_out, rounded_out, h_n, state_offset, live, sequence_step == total - 1, cut)


@triton.jit(do_not_specialize=["start", "total", "first_state", "batch"])
def whole_step(
    x,  # [batch, I] through strides
    w_ih,  # [3 * H, I]
    w_hh,  # [3 * H, H]
    b_ih,  # [3 * H]
    b_hh,  # [3 * H]
    w_ih_back,  # this and the three below: of the backward direction
    w_hh_back,
    b_ih_back,
    b_hh_back,
    hx,  # this and the arguments below up to h_n are those of `step_scan`
    carry_in,
    carry_out,
    rounded_in,
    rounded_out,
    r_h,
    out,  # [batch, directions, H]
    h_n,
    start,  # this step
    total,  # time steps of the input, made by all launches
    first_state,  # the layer's first row of hx, carry, rounded and h_n: layer * directions
    batch,  # batch rows of the call
    x_b,  # elements of x from a batch row to the next
    x_i,  # elements of x from a feature to the next
    out_b,  # elements of out from a batch row to the next
    I: tl.constexpr,  # input features
    HAS_BIAS: tl.constexpr,  # whether the GRU has biases
    HAS_HX: tl.constexpr,  # whether hx is given. Otherwise it is zeros
    cut: tl.constexpr,  # a `Cut`
):
    """Make one time step, or a part of it, of all directions of a layer, including the input projection."""
    direction = tl.program_id(1)
    first_state += direction.to(tl.int64)
    r_h += direction.to(tl.int64) * batch * cut.H
    tile, unit = _find_part(cut)
    first_row = tile * cut.BATCH
    row = first_row + tl.arange(0, cut.BATCH)[:, None]
    b_ih = tl.where(direction != 0, b_ih_back, b_ih)
    b_hh = tl.where(direction != 0, b_hh_back, b_hh)
    row_b = first_row + tl.arange(0, cut.BATCH)[None, :]
    live = (row_b < batch) & (unit < cut.H)
    # With several slices load before the products, otherwise after them, for the reason in `step_scan`.
    if cut.SLICES > 1:
        biases = _load_biases(b_ih, b_hh, unit, HAS_BIAS, cut)
        is_first = start == 0
        state_offset = first_state * batch * cut.H + row_b * cut.H + unit
        h = _load_state(hx, carry_in, state_offset, live, is_first, HAS_HX)
    sums = _zeros(cut.END - cut.FIRST, cut)
    w = tl.where(direction != 0, w_ih_back, w_ih)
    sums = _add_products(sums, w, x + row * x_b, x_i, row < batch, unit, end=I, FIRST=cut.FIRST, K=I, cut=cut)
    n_of_x = ()  # n's product with x, if r multiplies only n's product with the state
    if cut.PART == "all":
        n_of_x = (sums[2],)
        sums = sums[:2] + _zeros(1, cut)
    w = tl.where(direction != 0, w_hh_back, w_hh)
    source, has_state = _find_operand(hx, carry_in, rounded_in, row < batch, start == 0, HAS_HX, cut)
    source = source + first_state * batch * cut.H + row * cut.H
    sums = _add_recurrent_products(sums, w, source, has_state, r_h + row * cut.H, row < batch, unit, cut.H, cut)
    if cut.SLICES == 1:
        biases = _load_biases(b_ih, b_hh, unit, HAS_BIAS, cut)
        is_first = start == 0
        state_offset = first_state * batch * cut.H + row_b * cut.H + unit
        h = _load_state(hx, carry_in, state_offset, live, is_first, HAS_HX)
    sums = _sum_slices(sums[:2] + n_of_x + sums[2:], cut)
    g = ()
    for i in tl.static_range(len(sums)):
        g = g + (sums[i] + biases[i],)
    if cut.PART == "reset":
        _store_r_h(g[0], 0.0, h, r_h, row_b, unit, live, cut)
    else:
        if cut.PART == "all":
            h = isa.gru_update(g[0], g[1], g[2], 0.0, 0.0, g[3], h, cut.DTYPE)
        else:
            h = isa.next_state(g[0], g[1], 0.0, 0.0, h, cut.DTYPE)
        isa.store(out + direction * cut.H + row_b * out_b + unit, h.to(cut.DTYPE), live)
        _store_state(h, carry_out, rounded_out, h_n, state_offset, live, start == total - 1, cut)


@triton.jit
def _find_part(cut: tl.constexpr):
    """Return the index of this program's tile of the batch, as a 64-bit integer, and the program's units [UNITS, 1].

    Both are encoded in the first dimension of the launch grid, because the other dimensions take at most 65,535
    programs.
    """
    unit = tl.program_id(0) % cut.PROGRAMS * cut.UNITS + tl.arange(0, cut.UNITS)[:, None]
    return (tl.program_id(0) // cut.PROGRAMS).to(tl.int64), unit


@triton.jit
def _find_operand(hx, carry, rounded, has_state, is_first, HAS_HX: tl.constexpr, cut: tl.constexpr):
    """Return where to load the state before the step from, and which rows have a state that is not zero.

    In the first step the state is ``hx``. Without ``hx`` no row has a state then. In later steps the state is
    ``carry`` in fp32, and ``rounded`` in 16 bits.
    """
    source = carry if cut.DTYPE == tl.float32 else rounded
    if HAS_HX:
        source = tl.where(is_first, hx, source)
    else:
        has_state = has_state & (is_first == 0)
    return source, has_state


@triton.jit
def _add_recurrent_products(sums, w, source, has_state, r_h, row_live, unit, end, cut: tl.constexpr):
    """Return ``sums`` plus the recurrent products of the launch's gates.

    The right operand is the state at ``source``, or zero where ``has_state`` is false. Exception: in the launch
    ``"rest"`` the right operand of n is at ``r_h``, or zero where ``row_live`` is false. A zero state is multiplied
    like any other state, so a NaN weight gives NaN.
    """
    if cut.PART == "rest":
        n_sums = _add_products(
            (sums[1],), w, r_h, stride=1, row_mask=row_live, unit=unit, end=end, FIRST=2, K=cut.H, cut=cut
        )
        sums = (sums[0],)
    sums = _add_products(
        sums, w, source, stride=1, row_mask=has_state, unit=unit, end=end, FIRST=cut.FIRST, K=cut.H, cut=cut
    )
    return sums + n_sums if cut.PART == "rest" else sums


@triton.jit
def _add_products(
    sums, w, source, stride, row_mask, unit, end, FIRST: tl.constexpr, K: tl.constexpr, cut: tl.constexpr
):
    """Return ``sums`` plus the products of rows ``unit`` of ``w`` [3 * H, K] with the batch rows at ``source``.

    The sums are of the gates from ``FIRST`` on. ``end`` is K, or 0 to add nothing. Elements of a batch row are
    ``stride`` elements apart in memory, and rows outside ``row_mask`` are zero. With several slices the sums are
    [SLICES, UNITS, BATCH], and each warp has one slice. With one slice they are [UNITS, BATCH].
    """
    k_of_iteration = tl.arange(0, cut.DEPTH // cut.SLICES)[None, :]
    if cut.SLICES > 1:
        k_of_iteration = tl.arange(0, cut.SLICES)[:, None, None] * (cut.DEPTH // cut.SLICES) + k_of_iteration
    w += unit.to(tl.int64) * K
    # The compiler does not pipeline the loads of a single iteration. So load all weights before the products.
    IS_ONE_ITERATION: tl.constexpr = K <= cut.DEPTH
    # Triton 3.8 takes an operand of several products through shared memory once more. In TF32 long loops avoid that:
    # they round the operand for each product. In loops of up to four iterations the extra instructions would keep ptxas
    # from unrolling.
    HAS_OWN_OPERANDS: tl.constexpr = K > 4 * cut.DEPTH
    for k0 in tl.range(0, end, cut.DEPTH):
        k = k0 + k_of_iteration
        # Transpose the addresses, because Triton 3.8 takes a tile that is transposed after its load through shared
        # memory.
        k_transposed = tl.trans(k)
        x = _load(tl.trans(source) + k_transposed.to(tl.int64) * stride, tl.trans(row_mask), k_transposed, K, cut)
        weights = ()
        if IS_ONE_ITERATION:
            for i in tl.static_range(len(sums)):
                weights = weights + (_load_weights(w, FIRST + i, unit, k, K, cut),)
        added = ()
        for i in tl.static_range(len(sums)):
            if IS_ONE_ITERATION:
                w_gate = weights[i]
            else:
                w_gate = _load_weights(w, FIRST + i, unit, k, K, cut)
            x_i = isa.round_to_tf32(x, i if HAS_OWN_OPERANDS else 0) if cut.PRECISION == "tf32" else x
            added = added + (tl.dot(w_gate, x_i, acc=sums[i], input_precision=cut.PRECISION),)
        sums = added
    return sums


@triton.jit
def _load_weights(w, gate: tl.constexpr, unit, k, K: tl.constexpr, cut: tl.constexpr):
    """Load rows ``unit`` of one gate, at columns ``k``, as the left operand of a product.

    ``w`` points to column 0 of these rows in gate 0.
    """
    value = _load(w + gate * cut.H * K + k, unit < cut.H, k, K, cut)
    return isa.round_to_tf32(value) if cut.PRECISION == "tf32" else value


@triton.jit
def _load(address, row_mask, k, K: tl.constexpr, cut: tl.constexpr):
    """Load an operand of a product, zero in rows outside ``row_mask`` and in columns from K on."""
    mask = row_mask
    if K % cut.DEPTH != 0:
        mask = row_mask & (k < K)
    return tl.load(address, mask=mask, other=0.0)


@triton.jit
def _zeros(COUNT: tl.constexpr, cut: tl.constexpr):
    """Return a tuple of ``COUNT`` sums that are zero."""
    zero = tl.zeros((cut.UNITS, cut.BATCH) if cut.SLICES == 1 else (cut.SLICES, cut.UNITS, cut.BATCH), tl.float32)
    sums = ()
    for _ in tl.static_range(COUNT):
        sums = sums + (zero,)
    return sums


@triton.jit
def _sum_slices(sums, cut: tl.constexpr):
    """Return ``sums``, each [SLICES, UNITS, BATCH], added over all slices, each [UNITS, BATCH].

    Exception: with one slice ``sums`` are [UNITS, BATCH] already, and are returned unchanged.
    """
    if cut.SLICES == 1:
        return sums
    else:
        transposed = ()
        totals = slices.sum_slices(sums, cut.SLICES, cut.UNITS, cut.BATCH)
        for i in tl.static_range(len(sums)):
            transposed = transposed + (tl.trans(totals[i]),)
        return transposed


@triton.jit
def _load_gate_inputs(gi, unit, cut: tl.constexpr):
    """Load the inputs of the launch's gates, each [UNITS, BATCH]."""
    gi += tl.arange(0, cut.BATCH)[None, :] * cut.PADDED_H + unit
    g = ()
    for gate in tl.static_range(cut.FIRST, cut.END):
        g = g + (tl.load(gi + gate * cut.BATCH * cut.PADDED_H),)
    return g


@triton.jit
def _load_bias(b, gate: tl.constexpr, unit, HAS_BIAS: tl.constexpr, cut: tl.constexpr):
    """Load a gate's bias in fp32. Without ``HAS_BIAS`` it is 0."""
    return tl.load(b + gate * cut.H + unit, mask=unit < cut.H, other=0.0).to(tl.float32) if HAS_BIAS else 0.0


@triton.jit
def _load_biases(b_ih, b_hh, unit, HAS_BIAS: tl.constexpr, cut: tl.constexpr):
    """Load the sum of both biases of each gate of the launch.

    Exception: if ``PART`` is ``"all"``, n's two biases stay separate, because r multiplies only b_hn.
    """
    biases = ()
    for gate in tl.static_range(cut.FIRST, cut.END):
        b_i = _load_bias(b_ih, gate, unit, HAS_BIAS, cut)
        b_h = _load_bias(b_hh, gate, unit, HAS_BIAS, cut)
        if gate == 2 and cut.PART == "all":
            biases = biases + (b_i, b_h)
        else:
            biases = biases + (b_i + b_h,)
    return biases


@triton.jit
def _load_state(hx, carry, state_offset, live, is_first, HAS_HX: tl.constexpr):
    """Load the state before the step in fp32: from ``hx`` if ``is_first``, otherwise from ``carry``.

    In the first step without ``hx``, and outside ``live``, the state is zero.
    """
    h = tl.load(carry + state_offset, mask=live & (is_first == 0), other=0.0)
    if HAS_HX:
        h += tl.load(hx + state_offset, mask=live & (is_first != 0), other=0.0).to(tl.float32)
    return h


@triton.jit
def _update(g, a, h, cut: tl.constexpr):
    """Return the state after the step, from the gate inputs ``g`` and products ``a`` of the launch's gates."""
    if cut.PART == "rest":
        return isa.next_state(g[0], g[1], a[0], a[1], h, cut.DTYPE)
    else:
        return isa.gru_update(g[0], g[1], g[2], a[0], a[1], a[2], h, cut.DTYPE)


@triton.jit
def _store_r_h(g_r, a_r, h, r_h, row, unit, live, cut: tl.constexpr):
    """Compute r h, and store it in ``r_h`` for the launch ``"rest"``."""
    new_r_h = isa.make_r_h(g_r, a_r, h, cut.DTYPE)
    tl.store(r_h + row * cut.H + unit, new_r_h.to(cut.DTYPE), mask=live)


@triton.jit
def _store_state(h, carry, rounded, h_n, state_offset, live, is_last, cut: tl.constexpr):
    """Store the state after the step: in ``h_n`` if ``is_last``, otherwise in ``carry``, and in 16 bits ``rounded``."""
    result = h.to(cut.DTYPE)
    tl.store(carry + state_offset, h, mask=live & (is_last == 0))
    if cut.DTYPE != tl.float32:
        tl.store(rounded + state_offset, result, mask=live & (is_last == 0))
    tl.store(h_n + state_offset, result, mask=live & (is_last != 0))
