"""The ``block`` scan: one program owns all hidden units of a tile of the batch, and makes all time steps.

The algorithm of a program:

    load W_hh                                 # once: it stays in registers, or in shared memory
    h = h_0 of my rows
    for t in steps:
        load the gate inputs of a later step  # early, so that they have arrived when that step begins
        share h with all warps                # through shared memory, see "Sharing"
        r, z, n = W_hh h
        h = gru_update(gate inputs of t, r, z, n, h)
        store h in out

The state never leaves the program, so programs do not wait for each other.

With ``reset_after=False`` (`Cut.RESET_AFTER` is false) a step makes r of all units first. Then it shares r h as it
shares h, and multiplies r h by n's weights.

**Steps** are counted for each sequence. A time is a position in the input. Forward, step 0 is a sequence's first time.
Backward, step 0 is its last time. So all rows of a program begin with step 0.

**Gates** are numbered 0 r, 1 z, 2 n.

**Products.** Hidden units are rows and batch rows are columns. ``W_hh[j, k]`` is then the left operand, in the layout
that nn.GRU stores. The state is the right operand. One instruction of the matrix unit takes eight columns. In fp32 ieee
products do not use the matrix unit, but the shapes are the same.

**Tiles.** Hidden units are cut into ``UNIT_TILES`` tiles of ``UNITS`` units. So the state has UNIT_TILES tiles, and
W_hh has, for each gate, UNIT_TILES * UNIT_TILES tiles [UNITS, UNITS]. In the code, i is a tile of the units that a
product makes, and k is a tile of the units that it sums over.

**Two rows.** Exception: if a program has two batch rows, each of them has four of the eight columns. The four columns
are equal, so a thread keeps one value of every four (the picture is at `_state_units`). It updates a quarter of the
elements. Gate inputs are stored row by row, without rows beyond the batch.

**W_hh** is held in one of three ways. In the first and the third way, registers hold the first ``REGISTER_TILES``
tiles, and shared memory holds the others.

    way          when                              loaded by          shared memory is managed by
    fragments    16 bits or TF32, several warps    `_load_fragments`  the file `fragments`
    all shared   otherwise, if REGISTER_TILES = 0  `_load_all`        the compiler
    peeled step  otherwise                         the peeled step    the compiler

    way          ``w``                             ``addresses``      `_multiply` uses
    fragments    REGISTER_TILES tuples             `_get_addresses`   `fragments.multiply`
    all shared   all tiles: [UNITS, UNITS] each    ()                 ``tl.dot``
    peeled step  all tiles: [UNITS, UNITS] each    ()                 ``tl.dot``

- Peeled step: the loop's body runs once before the loop, and loads each tile of W_hh at its first use.
- ``addresses``: where a thread finds W_hh and the state in shared memory.
- With fragments a word is 128 bits of a row, held as four int32 parts. A segment is four words, one for each of four
  lanes. In `grid`, where each warp sums over a slice, these four words are one piece of a segment.

The configurations that plan/heuristic.py chooses use fragments above H = 16, and the peeled step up to H = 16, where a
program is one warp. In fp32 ieee they use "all shared".

**Sharing.** With fragments the state goes through two buffers in shared memory that alternate, so one barrier per step
is enough. With ``reset_after=False`` the state has one of the buffers and r h the other one, and a step has two
barriers. Without fragments the compiler shares the state.

**Masks.**

- ``row_live``: the row is in the batch. The last program of a direction may have fewer than BATCH rows in the batch.
- ``live``: the row is in the batch, and the unit is below H. Only these elements exist in hx, carry and h_n.
- ``is_active``: the row is in the batch, and its sequence has the step. Only these rows are stored in out, and of them
  only units below H. A row whose sequence has ended keeps its state.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from . import fragments, isa, reserve, sequences
from .constants import CommonConstants, derived


@dataclass(frozen=True, eq=False, repr=False)
class Cut(CommonConstants):
    """The constants of `block_scan` that the configuration fixes.

    `CommonConstants` adds H, DTYPE, BITS, PRECISION and IS_IEEE (fp32 products without the matrix unit). The call fixes
    `CallConstants`: LAYOUT, REVERSE, HAS_BIAS, HAS_HX and HAS_RESETS.

    Fields become ``tl.constexpr``, so the properties below read ``.value``. Kernels read a property like a field.
    """

    RESET_AFTER: bool  # whether r multiplies W_hn h + b_hn. Otherwise r multiplies h, before the product with W_hn
    UNITS: int  # hidden units of a tile, a power of two
    UNIT_TILES: int  # tiles of hidden units; UNIT_TILES * UNITS >= H
    BATCH: int  # batch rows of a program: 2, 8 or 16
    # Time steps that a loop iteration makes. It also loads the gate inputs of as many later steps. A power of two.
    PREFETCH_STEPS: int
    REGISTER_TILES: int  # of the 3 * UNIT_TILES**2 tiles of W_hh, the number that stays in registers
    WARPS: int  # warps of a program

    @derived
    def PADDED_H(self):
        """Return the number of hidden units of all tiles: H or more."""
        return self.UNIT_TILES.value * self.UNITS.value

    @derived
    def COLUMNS(self):
        """Return the number of columns of a product: one for each batch row, or four for each of two rows."""
        return max(self.BATCH.value, 8)

    @derived
    def IN_FRAGMENTS(self):
        """Return whether the operands of products stay in registers and memory that `fragments` manages."""
        return not self.IS_IEEE.value and self.WARPS.value > 1

    @derived
    def SEGMENTS(self):
        """Return the number of segments in a row of a tile."""
        return fragments.count_segments(self.UNITS.value, self.DTYPE.value)

    @derived
    def GI_ROWS(self):
        """Return the number of batch rows in a tile of gi: BATCH. Exception: 1 if a program has two rows."""
        return 1 if self.BATCH.value == 2 else self.BATCH.value

    @derived
    def GI_GATE_STRIDE(self):
        """Return the number of elements of gi from a gate of a tile to the next gate."""
        return self.PADDED_H.value * self.GI_ROWS.value


@reserve.add_shared_memory  # to each launch: the bytes that `fragments.shared_address` asks for
@triton.jit(
    do_not_specialize=["steps", "start", "total", "first_state", "batch", "out_t", "out_b", "hx_l", "hx_b"],
    do_not_specialize_on_alignment=["lengths", "offsets", "resets"],
)
def block_scan(
    gi,  # gate inputs [directions, steps, batch tiles, 3, UNIT_TILES * UNITS, BATCH], see projection. A batch tile has
    # BATCH rows. Steps are in the order of the scan. If BATCH is 2: [directions, steps, batch, 3, UNIT_TILES * UNITS]
    w_hh,  # [3 * H, H]
    b_hh,  # [3 * H]; only b_hn is read, and only if RESET_AFTER. gi includes the other biases
    w_hh_back,  # [3 * H, H] of direction 1, or w_hh again if there is one direction
    b_hh_back,  # [3 * H] of direction 1, or b_hh again
    hx,  # [layers * directions, batch, H] through strides: the state before the first step
    carry,  # fp32 [layers * directions, batch, H]: the state between launches
    out,  # [time, batch, directions, H] through strides, or packed; see sequences
    h_n,  # [layers * directions, batch, H]: the state after the last step
    lengths,  # int32 [batch], see sequences
    offsets,  # int32 [time], see sequences
    resets,  # uint8 [time, batch]: not 0 where the state is set to zero before a step. Given only if all directions are
    # forward, where a step is its time
    steps,  # time steps of this launch
    start,  # first step of this launch
    total,  # time steps of the input, made by all launches
    first_state,  # index of the layer's first state in hx, carry and h_n: layer * directions
    batch,  # batch rows of the call
    out_t,  # elements of out from a time to the next. Packed: from a row to the next
    out_b,  # elements of out from a batch row to the next
    hx_l,  # elements of hx from a state (of a layer and direction) to the next
    hx_b,  # elements of hx from a batch row to the next
    cut: tl.constexpr,  # a `Cut`
    call: tl.constexpr,  # a `constants.CallConstants`
):
    """Make ``steps`` time steps of all directions of a layer, and store the outputs and the state after the steps."""
    # ---- My direction and batch rows. 64-bit offsets are added to scalar pointers. The offsets of a tile are small.
    # Exception: rows of out and hx may be far apart, so their offsets have 64 bits.
    batch_tiles = tl.cdiv(batch, cut.BATCH)
    direction = tl.program_id(0) // batch_tiles
    backward = sequences.goes_backward(direction, call.REVERSE)
    w_hh = tl.where(direction != 0, w_hh_back, w_hh)
    b_hh = tl.where(direction != 0, b_hh_back, b_hh)
    first_row = (tl.program_id(0) % batch_tiles) * cut.BATCH
    unit = _state_units(cut)
    row = _state_rows(cut)
    row_live = first_row + row < batch

    # ---- Base pointers and offsets, in elements:
    # - ``hx`` points to my first row.
    # - ``state_offset`` is the offset of my first row in carry and h_n.
    # - ``out`` has the part of the address that all rows share, at step ``start``, later at the step that is made.
    # - ``out_row_offset`` and `sequences.table_offset` add the parts that differ from row to row. Backward,
    #   ``out_row_offset`` includes the way to the row's last time.
    # - ``out_step`` leads from a step to the next.
    #
    # Packed (torch's PackedSequence): time t of row b is row ``offsets[t] + b`` of out, and ``out_t`` leads from a row
    # to the next. Then ``out_step`` is 0, and `sequences.table_offset` leads to the time.
    first_state += direction.to(tl.int64)
    hx += first_state * hx_l + first_row.to(tl.int64) * hx_b
    state_offset = (first_state * batch + first_row) * cut.H
    length = sequences.load_lengths(lengths, first_row + row, batch, total, call.LAYOUT)
    out += direction * cut.H
    out_row_offset = sequences.row_offset(length, row, backward, out_t, out_b, call.LAYOUT)
    out_step = sequences.step_stride(backward, out_t, call.LAYOUT)
    out += first_row.to(tl.int64) * (out_t if call.LAYOUT == "packed" else out_b) + start.to(tl.int64) * out_step

    # ---- Tuples with an entry for each tile of units: ``h``, the state, and ``b_n``, the sums that n's products begin
    # with (b_hn, or zeros).
    # ``b_n`` has the arrangement of sums, not of the state: see "Two arrangements" below.
    b_n = ()
    h = ()
    for i in tl.static_range(cut.UNIT_TILES):
        j = i * cut.UNITS + unit
        live = row_live & (j < cut.H)
        h_i = isa.load_where(carry + state_offset + row * cut.H + j, live & (start != 0), IS_CONSTANT=False)
        if call.HAS_HX:
            from_hx = hx + row.to(tl.int64) * hx_b + j
            h_i += isa.load_where(from_hx, live & (start == 0), IS_CONSTANT=True).to(tl.float32)
        if cut.IN_FRAGMENTS:
            b_n = b_n + (_initial_sums_of_n(b_hh, i, call.HAS_BIAS and cut.RESET_AFTER, cut),)
        else:
            bias = tl.zeros(unit.shape, tl.float32) + tl.zeros(row.shape, tl.float32)  # in the shape of a state
            if call.HAS_BIAS and cut.RESET_AFTER:
                bias += tl.load(b_hh + 2 * cut.H + j, mask=j < cut.H, other=0.0).to(tl.float32)
            b_n = b_n + (_state_to_columns(bias, cut),)
        h = h + (h_i,)

    # ---- Gate inputs: ``gi`` points to my tile at step ``start``, and ``gi_step`` leads to the next step.
    gi_tiles = tl.cdiv(batch, cut.GI_ROWS)
    gi += (direction.to(tl.int64) * steps * gi_tiles + first_row // cut.GI_ROWS) * (3 * cut.GI_GATE_STRIDE)
    gi_step = gi_tiles.to(tl.int64) * (3 * cut.GI_GATE_STRIDE)
    if cut.BATCH == 2:
        # With two rows ``gi`` becomes one pointer for each element of a state. Otherwise it stays one pointer.
        # If the batch has only the first of the two rows, the second row reads the inputs of the first row.
        gi += tl.minimum(row, batch - 1 - first_row) * (3 * cut.GI_GATE_STRIDE) + unit
    is_last_launch = start + steps == total
    # The program stops at the end of its longest sequence. ``program_steps``, counted from ``start``, is at least 1,
    # because the peeled step always runs, and the prefetch reads the inputs of step ``program_steps - 1``. If no row is
    # active in a step, the state stays as it is, and nothing is stored in out.
    program_steps = tl.minimum(steps, tl.maximum(sequences.max_length(length, total, call.LAYOUT) - start, 1))

    # ---- Weights: in one of three ways, see the table at the top. Without the peeled step the compiler would keep no
    # tile in registers during the loop (perf/NOTES.md).
    w = ()
    addresses = ()
    PEELED_STEPS: tl.constexpr = 0 if cut.REGISTER_TILES == 0 or cut.IN_FRAGMENTS else 1
    if cut.IN_FRAGMENTS:
        addresses = _get_addresses(unit, row, cut)
        w = _load_fragments(addresses, w_hh, cut)
    elif PEELED_STEPS == 0:
        w = _load_all(w_hh, cut)
    else:
        first_inputs = _load_gate_inputs(gi, cut)
        if call.HAS_RESETS:
            forget_first = sequences.is_reset(resets, start, length, first_row + row, batch, total)
            h = _zero_where(forget_first, h)
        new_h, w = _make_step(h, w, w_hh, addresses, 0, b_n, first_inputs, LOAD_TILES=True, cut=cut)
        is_active = sequences.is_active(start, length, row_live, call.LAYOUT)
        h = new_h if call.LAYOUT == "dense" else _select(is_active, new_h, h)
        out_offset = out_row_offset + sequences.table_offset(start, length, backward, offsets, out_t, call.LAYOUT)
        _store_state(out + out_offset, h, is_active, unit, cut)
        out += out_step
    # ---- The loop over time. Each iteration makes P = PREFETCH_STEPS steps. Before them it loads the gate inputs of
    # the next P steps:
    # | inputs_ahead = load(PEELED_STEPS .. PEELED_STEPS + P - 1)
    # | for t in range(PEELED_STEPS, program_steps, P):
    # |     inputs_now, inputs_ahead = inputs_ahead, load(t + P .. t + 2 P - 1)
    # |     run the steps t .. t + P - 1 with inputs_now
    # A load beyond the last step reads the last step's inputs. A step beyond the last one changes no state and stores
    # nothing. ``forget_now`` and ``forget_ahead`` take turns in the same way: masks of rows whose state is reset.
    inputs_ahead = ()
    forget_ahead = ()
    for s in tl.static_range(cut.PREFETCH_STEPS):
        inputs_ahead = inputs_ahead + _load_gate_inputs(
            gi + tl.minimum(PEELED_STEPS + s, program_steps - 1) * gi_step, cut
        )
        if call.HAS_RESETS:
            step = start + PEELED_STEPS + s
            forget_ahead = forget_ahead + (sequences.is_reset(resets, step, length, first_row + row, batch, total),)
    for t in tl.range(PEELED_STEPS, program_steps, cut.PREFETCH_STEPS):
        inputs_now = inputs_ahead
        inputs_ahead = ()
        forget_now = forget_ahead
        forget_ahead = ()
        for s in tl.static_range(cut.PREFETCH_STEPS):
            inputs_ahead = inputs_ahead + _load_gate_inputs(
                gi + tl.minimum(t + cut.PREFETCH_STEPS + s, program_steps - 1) * gi_step, cut
            )
            if call.HAS_RESETS:
                step = start + t + cut.PREFETCH_STEPS + s
                forget_ahead = forget_ahead + (sequences.is_reset(resets, step, length, first_row + row, batch, total),)
        for s in tl.static_range(cut.PREFETCH_STEPS):
            step = start + t + s
            is_active = sequences.is_active(step, length, row_live, call.LAYOUT)
            if cut.PREFETCH_STEPS > 1:  # the last iteration may run beyond the last step
                is_active = is_active & (t + s < program_steps)
            out_offset = out_row_offset + sequences.table_offset(step, length, backward, offsets, out_t, call.LAYOUT)
            if call.HAS_RESETS:  # a reset sets the state to zero at the beginning of its step
                h = _zero_where(forget_now[s] & (t + s < program_steps), h)
            # The index of the step's buffer alternates, also from one iteration to the next, because P is 1 or even.
            # With reset_after=False `_make_step` does not use it.
            buffer = s % 2 if cut.PREFETCH_STEPS % 2 == 0 else t % 2
            gate_inputs = inputs_now[3 * cut.UNIT_TILES * s : 3 * cut.UNIT_TILES * (s + 1)]
            new_h, _ = _make_step(h, w, w_hh, addresses, buffer, b_n, gate_inputs, LOAD_TILES=False, cut=cut)
            if call.LAYOUT == "dense" and cut.PREFETCH_STEPS == 1:
                h = new_h
            else:
                h = _select(is_active, new_h, h)
            _store_state(out + out_offset, h, is_active, unit, cut)
            out += out_step

    # ---- The last launch stores the state in h_n. The others store it in carry for the next launch.
    for i in tl.static_range(cut.UNIT_TILES):
        j = i * cut.UNITS + unit
        live = row_live & (j < cut.H)
        isa.store(carry + state_offset + row * cut.H + j, h[i], live & (is_last_launch == 0))
        isa.store(h_n + state_offset + row * cut.H + j, h[i].to(cut.DTYPE), live & (is_last_launch != 0))


# ---- Two arrangements of the elements of a tile of units.
#
# Sums: the sums of a product, in all COLUMNS columns, in the threads that the product leaves them in. With fragments
# they are a tuple (see `fragments.multiply`), otherwise a tensor [UNITS, COLUMNS]. Right operands have all COLUMNS
# columns, too.
#
# State: each (unit, row) once. h, gates, and gate inputs in fp32 are arranged in this way. The shape is
# - [UNITS, BATCH] for 8 or 16 rows, without fragments;
# - [UNITS // 2, 4] for two rows, without fragments;
# - [N, WARPS, 8, 4] with fragments, where N is the count of elements in a thread, and [8, 4] are the lanes of a warp.


@triton.jit
def _state_units(cut: tl.constexpr):
    """Return the unit of each element of a state, counted from the first unit of its tile.

    Of the product of 16 units and 8 columns, lane 4 p + q of a warp (p = 0..7, q = 0..3) has four sums, c0 to c3:

                          column 2 q    column 2 q + 1
        unit p                c0              c1
        unit p + 8            c2              c3

    With 8 or 16 batch rows each column is one batch row, and the lane keeps all four sums. With two rows c0 = c1 and
    c2 = c3, and the lane keeps c0 if q is even, c2 if q is odd:

        column        0     1  |  2     3  |  4     5  |  6     7
        lane          q = 0    |  q = 1    |  q = 2    |  q = 3
        batch row     0     0  |  0     0  |  1     1  |  1     1
        kept unit     p        |  p + 8    |  p        |  p + 8
    """
    if cut.IN_FRAGMENTS:
        return fragments.state_units(cut.UNITS, cut.BATCH, cut.WARPS)
    elif cut.BATCH == 2:
        i = tl.arange(0, cut.UNITS // 2)[:, None]
        return i // 8 * 16 + tl.arange(0, 4)[None, :] % 2 * 8 + i % 8
    else:
        return tl.arange(0, cut.UNITS)[:, None]


@triton.jit
def _state_rows(cut: tl.constexpr):
    """Return the batch row of each element of a state, counted from the program's first row: see `_state_units`."""
    if cut.IN_FRAGMENTS:
        return fragments.state_rows(cut.UNITS, cut.BATCH, cut.WARPS)
    elif cut.BATCH == 2:
        return tl.arange(0, 4)[None, :] // 2
    else:
        return tl.arange(0, cut.BATCH)[None, :]


@triton.jit
def _sums_to_state(sums, cut: tl.constexpr):
    """Return the sums of a product in the arrangement of a state. Every value stays in its thread."""
    if cut.IN_FRAGMENTS:
        return fragments.sums_to_state(sums, cut.BATCH)
    elif cut.BATCH == 2:
        even_column, _ = tl.split(tl.reshape(sums, (cut.UNITS // 16, 2, 8, 4, 2)))
        unit_p, unit_p_plus_8 = tl.split(tl.permute(even_column, (0, 2, 3, 1)))
        is_odd_lane = tl.arange(0, 4)[None, None, :] % 2 != 0
        return tl.reshape(tl.where(is_odd_lane, unit_p_plus_8, unit_p), (cut.UNITS // 2, 4))
    else:
        return sums


@triton.jit
def _state_to_columns(x, cut: tl.constexpr):
    """Return a state, without fragments, as columns of a product, [UNITS, COLUMNS].

    With two batch rows each row has four columns.
    """
    if cut.BATCH == 2:
        x = tl.permute(tl.reshape(x, (cut.UNITS // 16, 8, 2, 2)), (0, 3, 1, 2))
        x = tl.join(x, x)
        return tl.reshape(tl.join(x, x), (cut.UNITS, 8))
    else:
        return x


@triton.jit
def _load_gate_inputs(gi, cut: tl.constexpr):
    """Return one step's gate inputs, 3 * UNIT_TILES tensors: r, z and n of each tile of units.

    With 8 or 16 rows an element of these tensors is a pair of gate inputs. `_gate_input_to_float` converts a tensor.
    """
    TILE_ELEMENTS: tl.constexpr = cut.UNITS * cut.BATCH
    gate_inputs = ()
    for i in tl.static_range(cut.UNIT_TILES):
        if cut.BATCH == 2:
            for gate in tl.static_range(3):
                gate_inputs = gate_inputs + (isa.load(gi + (gate * cut.UNIT_TILES + i) * cut.UNITS),)
        elif cut.IN_FRAGMENTS:
            gate_inputs = gate_inputs + fragments.load_pairs(
                gi, i * TILE_ELEMENTS, cut.GI_GATE_STRIDE, cut.UNITS, cut.BATCH, cut.WARPS
            )
        else:
            gate_inputs = gate_inputs + isa.load_gate_inputs(
                gi, i * TILE_ELEMENTS, cut.GI_GATE_STRIDE, cut.UNITS, cut.BATCH
            )
    return gate_inputs


@triton.jit
def _gate_input_to_float(raw, cut: tl.constexpr):
    """Return one tensor of `_load_gate_inputs` as a state in fp32."""
    if cut.BATCH == 2:
        return raw.to(tl.float32)
    elif cut.IN_FRAGMENTS:
        return fragments.pairs_to_float(raw, cut.DTYPE)
    else:
        return isa.gate_inputs_to_float(raw, cut.DTYPE, cut.UNITS, cut.BATCH)


@triton.constexpr_function
def _tile_index(gate, i, k, cut):
    """Return the index of a tile of W_hh, by its gate, its row i and its column k of tiles.

    Indices have the order in which the peeled step uses the tiles: r, z, n for each i and k. Exception: with
    ``reset_after=False`` r for each i and k, then z, n for each i and k. ``w`` has tiles in this order: all of them, or
    with fragments the first REGISTER_TILES. `_tile_of_index` is the inverse.
    """
    tiles = cut.UNIT_TILES.value
    tile = i * tiles + k
    if cut.RESET_AFTER.value:
        return 3 * tile + gate
    return tile if gate == 0 else tiles**2 + 2 * tile + gate - 1


@triton.jit
def _make_step(h, w, w_hh, addresses, buffer, b_n, gate_inputs, LOAD_TILES: tl.constexpr, cut: tl.constexpr):
    """Return the state after one step, a tuple with an entry for each tile of units, and the tiles ``w`` of W_hh.

    With ``LOAD_TILES``, in the peeled step, ``w`` comes in empty, and each tile is loaded at its first use. So only one
    tile at a time needs registers on its way to the compiler's shared memory. ``buffer`` is the index, 0 or 1, of the
    state's buffer in shared memory.

    In the code, ``x`` is the state as right operands, and ``x_n`` has the right operands of n's products. Of a gate
    such as r, ``g_r`` is the gate input and ``a_r`` the sums.
    """
    # With reset_after=False in fp32 ieee, z's products are made with r's, before r h exists. There a right operand
    # takes four times the registers of an operand of the matrix unit. So the operands of h are not kept until n's
    # products (perf/NOTES.md). The peeled step keeps the order of `_tile_index`.
    Z_WITH_R: tl.constexpr = cut.IS_IEEE and not LOAD_TILES
    if cut.IN_FRAGMENTS:
        zero = fragments.make_zero_sums(cut.UNITS // cut.WARPS, cut.COLUMNS, cut.WARPS)
    else:
        zero = tl.zeros((cut.UNITS, cut.COLUMNS), tl.float32)
    # With reset_after=False the state has buffer 0 at every step, and r h buffer 1. The barrier of r h is between two
    # uses of buffer 0, and the state's barrier is between two uses of buffer 1.
    x = _make_operands(h, addresses, buffer if cut.RESET_AFTER else 0, cut)
    x_n = x
    # With reset_after=False, for each tile of units: z's sums if Z_WITH_R, otherwise zeros as z's initial sums.
    z = ()
    # The last loop over i makes the products of gates FIRST_GATE to 2. The loop for r h has made the others.
    FIRST_GATE: tl.constexpr = 0 if cut.RESET_AFTER else 2 if Z_WITH_R else 1
    if not cut.RESET_AFTER:
        # Make r h of all tiles first, then the operands of r h. Making the operand after each tile spills two words at
        # H = 128 (perf/NOTES.md).
        all_r_h = ()
        for i in tl.static_range(cut.UNIT_TILES):
            a_r, a_z = zero, zero
            for k in tl.static_range(cut.UNIT_TILES):
                if LOAD_TILES:
                    w = w + (_load_tile(w_hh, 0, i, k, _tile_index(0, i, k, cut) < cut.REGISTER_TILES, cut),)
                a_r = _multiply(w, addresses, _tile_index(0, i, k, cut), x[k], a_r, cut)
                if Z_WITH_R:
                    a_z = tl.dot(w[_tile_index(1, i, k, cut)], x[k], acc=a_z, input_precision=cut.PRECISION)
            # Do not let the compiler sink z's products below the barrier of r h.
            z = z + (isa.compute_before_wait(a_z) if Z_WITH_R else a_z,)
            r_h = isa.make_r_h(_gate_input_to_float(gate_inputs[3 * i], cut), _sums_to_state(a_r, cut), h[i], cut.DTYPE)
            if cut.PADDED_H != cut.H:
                r_h = tl.where(i * cut.UNITS + _state_units(cut) < cut.H, r_h, 0.0)  # units beyond H, see h_i below
            all_r_h = all_r_h + (r_h,)
        x_n = _make_operands(all_r_h, addresses, buffer=1, cut=cut)
    new_h = ()
    for i in tl.static_range(cut.UNIT_TILES):
        # The sums of r, z and n. Each k replaces the entries FIRST_GATE to 2.
        sums = (zero, zero if cut.RESET_AFTER else z[i], b_n[i])
        for k in tl.static_range(cut.UNIT_TILES):
            added = sums[:FIRST_GATE]
            for gate in tl.static_range(FIRST_GATE, 3):
                if LOAD_TILES:
                    w = w + (_load_tile(w_hh, gate, i, k, _tile_index(gate, i, k, cut) < cut.REGISTER_TILES, cut),)
                x_k = x_n[k] if gate == 2 else x[k]
                added = added + (_multiply(w, addresses, _tile_index(gate, i, k, cut), x_k, sums[gate], cut),)
            sums = added
        g_z, g_n = _gate_input_to_float(gate_inputs[3 * i + 1], cut), _gate_input_to_float(gate_inputs[3 * i + 2], cut)
        a_z, a_n = _sums_to_state(sums[1], cut), _sums_to_state(sums[2], cut)
        if cut.RESET_AFTER:
            g_r = _gate_input_to_float(gate_inputs[3 * i], cut)
            h_i = isa.gru_update(g_r, g_z, g_n, _sums_to_state(sums[0], cut), a_z, a_n, h[i], cut.DTYPE)
        else:
            h_i = isa.next_state(g_z, g_n, a_z, a_n, h[i], cut.DTYPE)
        if cut.PADDED_H != cut.H:
            # Units beyond H stay zero. Otherwise one can become NaN (an infinite state times its zero weights), and the
            # next step spreads NaN to all units.
            h_i = tl.where(i * cut.UNITS + _state_units(cut) < cut.H, h_i, 0.0)
        new_h = new_h + (h_i,)
    return new_h, w


@triton.jit
def _multiply(w, addresses, index: tl.constexpr, x, sums, cut: tl.constexpr):
    """Return ``sums`` plus the product of the tile of W_hh with index ``index`` and of the right operand ``x``.

    With fragments, tiles from index ``len(w)`` on are loaded here from shared memory. A tile is then a tuple of int32
    parts. They are ordered by segment, then by 16 rows, then by part, then by the two rows of a thread: p, then p + 8.
    """
    if cut.IN_FRAGMENTS:
        if index < len(w):
            tile = w[index]
        else:
            w_address, _, _ = addresses
            TILE_WORDS: tl.constexpr = cut.SEGMENTS * (cut.UNITS // cut.WARPS // 8)
            tile = fragments.load_shared_tile(w_address, index - len(w), TILE_WORDS, cut.WARPS)
        for c in tl.static_range(cut.SEGMENTS):
            segment_tile = tile[len(tile) // cut.SEGMENTS * c : len(tile) // cut.SEGMENTS * (c + 1)]
            segment_words = x[len(x) // cut.SEGMENTS * c : len(x) // cut.SEGMENTS * (c + 1)]
            sums = fragments.multiply(segment_tile, segment_words, sums, cut.DTYPE)
        return sums
    else:
        return tl.dot(w[index], x, acc=sums, input_precision=cut.PRECISION)


@triton.jit
def _make_operands(state, addresses, buffer, cut: tl.constexpr):
    """Return ``state``, which is h or r h, as right operands, one for each tile of units.

    With fragments all warps store their elements in the buffer with index ``buffer``, and load operands after a
    barrier. An operand is then a tuple of int32 parts, ordered by segment, then by eight columns, then by part. With
    two rows each lane reads the row of its column, so columns repeat without any copy.

    Without fragments an operand is a tensor [UNITS, COLUMNS].
    """
    x = ()
    if cut.IN_FRAGMENTS:
        _, write_address, read_address = addresses
        TILE_BYTES: tl.constexpr = fragments.state_bytes(cut.BATCH, cut.UNITS, cut.BITS)
        buffer_offset = buffer * fragments.state_bytes(cut.BATCH, cut.PADDED_H, cut.BITS)
        for k in tl.static_range(cut.UNIT_TILES):
            fragments.store_state(
                write_address + buffer_offset, isa.round_operand(state[k], cut.DTYPE, cut.PRECISION), k * TILE_BYTES
            )
        tl.debug_barrier()
        parts = fragments.load_state(read_address + buffer_offset, cut.UNIT_TILES * cut.SEGMENTS, cut.BATCH)
        for k in tl.static_range(cut.UNIT_TILES):
            x = x + (parts[len(parts) // cut.UNIT_TILES * k : len(parts) // cut.UNIT_TILES * (k + 1)],)
    else:
        for k in tl.static_range(cut.UNIT_TILES):
            x = x + (isa.operand(_state_to_columns(state[k], cut), cut.DTYPE, cut.PRECISION),)
    return x


@triton.jit
def _get_addresses(unit, row, cut: tl.constexpr):
    """Return three addresses in shared memory for each thread.

    - ``w_address``: of its words of W_hh, in the tiles from REGISTER_TILES on;
    - ``write_address``: of the elements of the state that it writes, in buffer 0;
    - ``read_address``: of the first word of the state that it reads, in buffer 0.

    The memory has the tiles of W_hh, then the two buffers of the state. `fragments.shared_address` puts these BYTES
    bytes after the compiler's shared memory, and `reserve` adds them to the launch.
    """
    SHARED_TILES: tl.constexpr = 3 * cut.UNIT_TILES * cut.UNIT_TILES - cut.REGISTER_TILES
    WEIGHT_BYTES: tl.constexpr = fragments.weights_bytes(SHARED_TILES * cut.SEGMENTS, cut.UNITS // cut.WARPS, cut.WARPS)
    BYTES: tl.constexpr = WEIGHT_BYTES + 2 * fragments.state_bytes(cut.BATCH, cut.PADDED_H, cut.BITS)
    # ``origin`` is 0. Computing it uses the compiler's shared memory, so PTX declares the name that
    # `fragments.shared_address` needs. In `grid`, `slices.sum_slices` uses this memory anyway.
    origin = fragments.touch_shared_memory(cut.WARPS)
    w_address = fragments.shared_address(origin + 16 * fragments.thread_index(cut.WARPS), BYTES)
    write_address = fragments.shared_address(
        origin + WEIGHT_BYTES + fragments.state_offset(unit, row, cut.BATCH, cut.BITS), BYTES
    )
    read_address = fragments.shared_address(
        origin + WEIGHT_BYTES + fragments.lane_state_offset(cut.BATCH, cut.WARPS), BYTES
    )
    return w_address, write_address, read_address


@triton.jit
def _initial_sums_of_n(b_hh, tile: tl.constexpr, HAS_B_HN: tl.constexpr, cut: tl.constexpr):
    """Return the sums that n's products of a tile begin with, with fragments: b_hn in all columns, or zeros.

    A lane's four sums of 16 units and 8 columns are of unit p twice, then of unit p + 8 twice (the picture is at
    `_state_units`). Units beyond H get the last unit's b_hn, which is harmless: their states are set to zero later.
    """
    b_p = tl.zeros((cut.WARPS, 8, 4), tl.float32)
    b_p_plus_8 = b_p
    sums = ()
    for m in tl.static_range(cut.UNITS // cut.WARPS // 16):
        if HAS_B_HN:
            first_unit = (m * cut.WARPS + tl.arange(0, cut.WARPS)[:, None, None]) * 16
            unit = tile * cut.UNITS + first_unit + tl.arange(0, 8)[None, :, None]
            unit = unit + tl.zeros((cut.WARPS, 8, 4), tl.int32)  # broadcast to one value for each thread
            b_hn = b_hh + 2 * cut.H
            b_p = isa.load(b_hn + tl.minimum(unit, cut.H - 1)).to(tl.float32)
            b_p_plus_8 = isa.load(b_hn + tl.minimum(unit + 8, cut.H - 1)).to(tl.float32)
        for _ in tl.static_range(cut.COLUMNS // 8):
            sums = sums + (b_p, b_p, b_p_plus_8, b_p_plus_8)
    return sums


@triton.jit
def _load_fragments(addresses, w_hh, cut: tl.constexpr):
    """Return the tiles of W_hh with indices below REGISTER_TILES. Store the others in shared memory."""
    w_address, _, _ = addresses
    for index in tl.static_range(cut.REGISTER_TILES, 3 * cut.UNIT_TILES * cut.UNIT_TILES):
        tile = _load_fragment_tile(w_hh, index, cut)
        fragments.store_tile(w_address, tile, index - cut.REGISTER_TILES, cut.WARPS)
    # The tiles that stay in registers come last, because the others need registers on their way to shared memory.
    w = ()
    for index in tl.static_range(cut.REGISTER_TILES):
        w = w + (_load_fragment_tile(w_hh, index, cut),)
    return w


@triton.jit
def _load_fragment_tile(w_hh, index: tl.constexpr, cut: tl.constexpr):
    """Return the tile of W_hh with index ``index`` as a tuple of int32 parts, in the order that `_multiply` describes.

    A warp takes 16 units, the next warp the next 16 units, and so on. So a thread has rows p and p + 8 of 16 units,
    then the two rows that are 16 * WARPS further, and so on.
    """
    GATE: tl.constexpr = _tile_of_index(index, cut, 0)
    ROW_TILE: tl.constexpr = _tile_of_index(index, cut, 1)
    COLUMN_TILE: tl.constexpr = _tile_of_index(index, cut, 2)
    WARP_ROWS: tl.constexpr = cut.UNITS // cut.WARPS
    unit = ROW_TILE * cut.UNITS + tl.arange(0, cut.WARPS)[:, None, None] * 16 + tl.arange(0, 8)[None, :, None]
    tile = ()
    for c in tl.static_range(cut.SEGMENTS):
        word = (COLUMN_TILE * cut.SEGMENTS + c) * 4 + tl.arange(0, 4)[None, None, :]
        tile = tile + fragments.load_tile(
            w_hh, GATE, unit, word, ROWS=WARP_ROWS, ROW_STEP=16 * cut.WARPS, H=cut.H, PRECISION=cut.PRECISION
        )
    return tile


@triton.constexpr_function
def _tile_of_index(index, cut, which):
    """Return the gate (``which`` is 0), the row (1) or the column (2) of tiles of the tile with index ``index``.

    The function inverts `_tile_index` by a search at compile time.
    """
    tiles = cut.UNIT_TILES.value
    return next(
        (gate, i, k)[which]
        for gate in range(3) for i in range(tiles) for k in range(tiles)
        if _tile_index(gate, i, k, cut) == index
    )  # fmt: skip


@triton.jit
def _load_all(w_hh, cut: tl.constexpr):
    """Return all tiles of W_hh, in the order of `_tile_index`. The compiler keeps them in shared memory."""
    w = ()
    if not cut.RESET_AFTER:
        for i in tl.static_range(cut.UNIT_TILES):
            for k in tl.static_range(cut.UNIT_TILES):
                w = w + (_load_tile(w_hh, gate=0, i=i, k=k, IN_REGISTERS=False, cut=cut),)
    for i in tl.static_range(cut.UNIT_TILES):
        for k in tl.static_range(cut.UNIT_TILES):
            for gate in tl.static_range(0 if cut.RESET_AFTER else 1, 3):
                w = w + (_load_tile(w_hh, gate, i, k, IN_REGISTERS=False, cut=cut),)
    return w


@triton.jit
def _load_tile(
    w_hh, gate: tl.constexpr, i: tl.constexpr, k: tl.constexpr, IN_REGISTERS: tl.constexpr, cut: tl.constexpr
):
    """Return a tile [UNITS, UNITS] of a gate's W_hh: the rows of tile i, the columns of tile k, zeros beyond H."""
    row = i * cut.UNITS + tl.arange(0, cut.UNITS)[:, None]
    column = k * cut.UNITS + tl.arange(0, cut.UNITS)[None, :]
    if (i + 1) * cut.UNITS <= cut.H and (k + 1) * cut.UNITS <= cut.H:
        tile = tl.load(w_hh + (gate * cut.H + row) * cut.H + column)
    else:
        is_valid = (row < cut.H) & (column < cut.H)
        tile = tl.load(w_hh + (gate * cut.H + row) * cut.H + column, mask=is_valid, other=0.0)
    if cut.PRECISION == "tf32":
        tile = isa.round_to_tf32(tile)
    elif IN_REGISTERS:
        # Without an operation after the load the compiler keeps the tile in shared memory (perf/NOTES.md). In TF32 the
        # rounding is such an operation, for every tile.
        tile += 0.0
    return tile


@triton.jit
def _select(condition, if_true, if_false):
    """Return, for each tile, ``if_true`` where ``condition`` and ``if_false`` elsewhere."""
    selected = ()
    for i in tl.static_range(len(if_true)):
        selected = selected + (tl.where(condition, if_true[i], if_false[i]),)
    return selected


@triton.jit
def _zero_where(condition, tiles):
    """Return ``tiles`` with zeros where ``condition``."""
    zeroed = ()
    for i in tl.static_range(len(tiles)):
        zeroed = zeroed + (tl.where(condition, 0.0, tiles[i]),)
    return zeroed


@triton.jit
def _store_state(pointers, h, is_active, unit, cut: tl.constexpr):
    """Store all tiles of a state, rounded, in active rows. ``pointers`` point to unit 0 of each element's row."""
    for i in tl.static_range(cut.UNIT_TILES):
        j = i * cut.UNITS + unit
        isa.store(pointers + j, h[i].to(cut.DTYPE), is_active & (j < cut.H))
