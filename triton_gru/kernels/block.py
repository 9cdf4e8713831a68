"""The ``block`` scan: one program owns all hidden units of a tile of the batch and walks the time steps.

The algorithm of a program:

    load W_hh                                 # once: it stays in registers, or in shared memory
    h = h_0 of my rows
    for t in steps:
        load the gate inputs of a later step  # early, so that they have arrived when that step begins
        share h with all warps                # through two buffers in shared memory that alternate: one barrier a step
        r, z, n = W_hh h
        h = gru_update(gate inputs of t, r, z, n, h)
        store h in out

The state never leaves the program, so programs do not wait for each other.

With ``reset_after=False`` (`Cut.RESET_AFTER` is false) a step makes r of all units first. Then r h takes the way of the
state, through shared memory, to the product with n's weights.

**Products.** Hidden units are rows and batch rows are columns. ``W_hh[j, k]`` is then the left operand, in the layout
that nn.GRU stores. The state is the right operand. One instruction of the matrix unit takes eight columns.

**Tiles.** W_hh and the state are cut into ``UNIT_TILES`` tiles of ``UNITS`` units. In the code, i is a tile of the
units that a product makes, and k a tile of the units that it sums over.

**Two rows.** Exception: if a program has two batch rows, each of them takes four of the eight columns. The four columns
are equal, so a thread keeps one number of every four (the picture is at `_state_units`). It updates a quarter of the
elements, and gate inputs need no padding.

**W_hh** is held in one of three ways. Registers hold the first ``REGISTER_TILES`` tiles, shared memory the others:

    way            when                              loaded by           shared memory is managed by
    fragments      16 bits or TF32, several warps    `_load_fragments`   `fragments`
    shared memory  otherwise, if REGISTER_TILES = 0  `_load_all`         the compiler
    peeled step    otherwise                         the peeled step     the compiler

    way            ``w``                              ``addresses``        `_multiply` uses
    fragments      the REGISTER_TILES tiles: tuples   `_get_addresses`     `fragments.multiply`
    shared memory  all tiles: [UNITS, UNITS] each     ()                   ``tl.dot``
    peeled step    all tiles: [UNITS, UNITS] each     ()                   ``tl.dot``

The heuristic has the second way in fp32 ieee, and the third one up to H = 16, where a program is one warp.

**Masks.**

- ``row_live``: the row is in the batch. The last program may have fewer rows than columns.
- ``live``: the row is in the batch, and the unit is below H. Only these elements exist in hx, carry and h_n.
- ``is_active``: the row is in the batch, and its sequence has the step. Only these rows are stored in out. A row whose
  sequence has ended keeps its state.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from . import fragments, isa, reserve, sequences
from .constants import CommonConstants, derived


@dataclass(frozen=True, eq=False, repr=False)
class Cut(CommonConstants):
    """The constants that `block_scan` is compiled for, by the configuration (`CallConstants`: by the call)."""

    RESET_AFTER: bool  # r multiplies W_hn h + b_hn. Else it multiplies h, before the product with W_hn
    UNITS: int  # hidden units of a tile, a power of two
    UNIT_TILES: int  # tiles of hidden units; UNIT_TILES * UNITS >= H
    BATCH: int  # batch rows of a program: 2, 8 or 16
    PREFETCH_STEPS: int  # time steps of a loop iteration, and from a load of gi to its use. A power of two
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
        """Return the number of segments of a row of a tile. A segment is four words of 128 bits (see `fragments`)."""
        return fragments.count_segments(self.UNITS.value, self.DTYPE.value)

    @derived
    def GI_ROWS(self):
        """Return the number of batch rows of a tile of gi: BATCH. Exception: 1 if a program has two rows."""
        return 1 if self.BATCH.value == 2 else self.BATCH.value

    @derived
    def GI_GATE_STRIDE(self):
        """Return the elements of gi from a gate of a tile to the next gate."""
        return self.PADDED_H.value * self.GI_ROWS.value


@reserve.add_shared_memory
@triton.jit(
    do_not_specialize=["steps", "start", "total", "layer_row", "batch", "out_t", "out_b", "hx_l", "hx_b"],
    do_not_specialize_on_alignment=["lengths", "offsets", "resets"],
)
def block_scan(
    gi,  # gate inputs [directions, steps, batch tiles, 3, UNIT_TILES * UNITS, BATCH], see projection.
    # If BATCH is 2: [directions, steps, batch, 3, UNIT_TILES * UNITS]
    w_hh,  # [3 * H, H]
    b_hh,  # [3 * H]; only b_hn is read, and only if RESET_AFTER
    w_hh_back,  # [3 * H, H] of the backward direction
    b_hh_back,  # [3 * H] of the backward direction
    hx,  # [layers * directions, batch, H] through strides: the state before the first step
    carry,  # fp32 [layers * directions, batch, H]: the state between launches
    out,  # [time, batch, directions, H] through strides, or packed; see sequences
    h_n,  # [layers * directions, batch, H]: the state after the last step
    lengths,  # int32 [batch], see sequences
    offsets,  # int32 [time], see sequences
    resets,  # uint8 [time, batch]: not 0 where the state is forgotten before a step
    steps,  # time steps of this launch
    start,  # first step of this launch
    total,  # time steps of all launches
    layer_row,  # the layer's first row of hx, carry and h_n: layer * directions
    batch,  # batch rows of the call
    out_t,  # elements of out from a time to the next
    out_b,  # elements of out from a batch row to the next
    hx_l,  # elements of hx from a row of a layer and direction to the next
    hx_b,  # elements of hx from a batch row to the next
    cut: tl.constexpr,  # a `Cut`
    call: tl.constexpr,  # a `constants.CallConstants`
):
    # ---- My direction and batch rows. 64-bit offsets are added to scalar pointers. The offsets of a tile are small.
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
    # - ``out`` points to my first row at step ``start``, later at the step that is made. A row is at
    #   ``out + out_row_offset``, and in the packed layout at ``sequences.table_offset`` more.
    # - ``out_step`` leads from a step to the next. It is 0 in the packed layout.
    layer_row += direction.to(tl.int64)
    hx += layer_row * hx_l + first_row.to(tl.int64) * hx_b
    state_offset = (layer_row * batch + first_row) * cut.H
    length = sequences.load_lengths(lengths, first_row + row, batch, total, call.LAYOUT)
    out += direction * cut.H
    out_row_offset = sequences.row_offset(length, row, backward, out_t, out_b, call.LAYOUT)
    out_step = sequences.step_stride(backward, out_t, call.LAYOUT)
    out += first_row.to(tl.int64) * (out_t if call.LAYOUT == "packed" else out_b) + start.to(tl.int64) * out_step

    # ---- By tile of units: ``h``, the state, and ``b_n``, the sums that n's products begin with (b_hn, or zeros).
    b_n = ()
    h = ()
    for i in tl.static_range(cut.UNIT_TILES):
        j = i * cut.UNITS + unit
        live = row_live & (j < cut.H)
        h_i = isa.load_where(carry + state_offset + row * cut.H + j, live & (start != 0), False)
        if call.HAS_HX:
            h_i += isa.load_where(hx + row.to(tl.int64) * hx_b + j, live & (start == 0), True).to(tl.float32)
        if cut.IN_FRAGMENTS:
            b_n = b_n + (_initial_sums_of_n(b_hh, i, call.HAS_BIAS and cut.RESET_AFTER, cut),)
        else:
            bias = tl.zeros(unit.shape, tl.float32) + tl.zeros(row.shape, tl.float32)
            if call.HAS_BIAS and cut.RESET_AFTER:
                bias += tl.load(b_hh + 2 * cut.H + j, mask=j < cut.H, other=0.0).to(tl.float32)
            b_n = b_n + (_state_to_columns(bias, cut),)
        h = h + (h_i,)

    # ---- Gate inputs of my first row at step ``start``, with ``gi_step`` to the next step.
    gi_tiles = tl.cdiv(batch, cut.GI_ROWS)
    gi += (direction.to(tl.int64) * steps * gi_tiles + first_row // cut.GI_ROWS) * (3 * cut.GI_GATE_STRIDE)
    gi_step = gi_tiles.to(tl.int64) * (3 * cut.GI_GATE_STRIDE)
    if cut.BATCH == 2:
        # If the batch has only the first of the two rows, the second one reads the inputs of the first.
        gi += tl.minimum(row, batch - 1 - first_row) * (3 * cut.GI_GATE_STRIDE) + unit
    is_last_launch = start + steps == total
    # The program stops at the longest of its sequences. It runs one step at least. If no row is active in that step,
    # nothing is stored.
    program_steps = tl.minimum(steps, tl.maximum(sequences.longest(length, total, call.LAYOUT) - start, 1))

    # ---- Weights: in one of three ways, see the table at the top.
    # The peeled step runs the loop's body once before the loop, and loads each tile at its first use. Without it the
    # compiler keeps no tile in registers during the loop (perf/NOTES.md).
    w = ()
    addresses = ()
    PEELED_STEPS: tl.constexpr = 0 if cut.REGISTER_TILES == 0 or cut.IN_FRAGMENTS else 1
    if cut.IN_FRAGMENTS:
        addresses = _get_addresses(unit, row, cut)
        w = _load_fragments(addresses, w_hh, cut)
    elif PEELED_STEPS == 0:
        w = _load_all(w_hh, cut)
    else:
        first_gates = _load_gates(gi, cut)
        if call.HAS_RESETS:
            forget_first = sequences.is_reset(resets, start, length, first_row + row, batch, total)
            h = _zero_where(forget_first, h)
        new_h, w = _make_step(h, w, w_hh, addresses, 0, b_n, first_gates, True, cut)
        is_active = sequences.is_active(start, length, row_live, call.LAYOUT)
        h = new_h if call.LAYOUT == "dense" else _select(is_active, new_h, h)
        out_offset = out_row_offset + sequences.table_offset(start, length, backward, offsets, out_t, call.LAYOUT)
        _store_state(out + out_offset, h, is_active, unit, cut)
        out += out_step
    # ---- The loop over time. Gate inputs are loaded P = PREFETCH_STEPS steps before their use, by rotation of tuples:
    # | gates_ahead = load(PEELED_STEPS .. PEELED_STEPS + P - 1)
    # | for t in range(PEELED_STEPS, program_steps, P):
    # |     gates_now, gates_ahead = gates_ahead, load(t + P .. t + 2 P - 1)
    # |     run the steps t .. t + P - 1 with gates_now
    # A load beyond the last step reads the last step's inputs. A step beyond the last one changes no state and stores
    # nothing. ``forget_now`` and ``forget_ahead`` rotate in the same way: masks of rows that forget their state.
    gates_ahead = ()
    forget_ahead = ()
    for s in tl.static_range(cut.PREFETCH_STEPS):
        gates_ahead = gates_ahead + _load_gates(gi + tl.minimum(PEELED_STEPS + s, program_steps - 1) * gi_step, cut)
        if call.HAS_RESETS:
            step = start + PEELED_STEPS + s
            forget_ahead = forget_ahead + (sequences.is_reset(resets, step, length, first_row + row, batch, total),)
    for t in tl.range(PEELED_STEPS, program_steps, cut.PREFETCH_STEPS):
        gates_now = gates_ahead
        gates_ahead = ()
        forget_now = forget_ahead
        forget_ahead = ()
        for s in tl.static_range(cut.PREFETCH_STEPS):
            gates_ahead = gates_ahead + _load_gates(
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
            if call.HAS_RESETS:
                h = _zero_where(forget_now[s] & (t + s < program_steps), h)
            # The step's buffer of the state in shared memory alternates, also from one iteration to the next.
            buffer = s % 2 if cut.PREFETCH_STEPS % 2 == 0 else t % 2
            gates = gates_now[3 * cut.UNIT_TILES * s : 3 * cut.UNIT_TILES * (s + 1)]
            new_h, _ = _make_step(h, w, w_hh, addresses, buffer, b_n, gates, False, cut)
            if call.LAYOUT == "dense" and cut.PREFETCH_STEPS == 1:
                h = new_h
            else:
                h = _select(is_active, new_h, h)
            _store_state(out + out_offset, h, is_active, unit, cut)
            out += out_step

    # ---- The state goes to h_n after the last launch, else to carry for the next launch.
    for i in tl.static_range(cut.UNIT_TILES):
        j = i * cut.UNITS + unit
        live = row_live & (j < cut.H)
        isa.store(carry + state_offset + row * cut.H + j, h[i], live & (is_last_launch == 0))
        isa.store(h_n + state_offset + row * cut.H + j, h[i].to(cut.DTYPE), live & (is_last_launch != 0))


# ---- Two arrangements of the numbers of a tile of units.
#
# Sums: a product's numbers, as the matrix unit leaves them, in all COLUMNS columns. With fragments they are a tuple
# (see `fragments.multiply`), else a tensor [UNITS, COLUMNS]. The next product takes its right operand in columns, too.
#
# State: each (unit, row) once. h, gate inputs and gates are arranged so. The shape is
# - [UNITS, BATCH] for 8 or 16 rows, without fragments;
# - [UNITS // 2, 4] for two rows, without fragments;
# - [numbers of a thread, WARPS, 8, 4] with fragments.


@triton.jit
def _state_units(cut: tl.constexpr):
    """Return the unit of each element of a state, counted from the first unit of its tile.

    Of the product of 16 units and 8 columns, lane 4 i + l of a warp (i to 7, l to 3) has four sums, c0 to c3:

                          column 2 l    column 2 l + 1
        unit i                c0              c1
        unit i + 8            c2              c3

    With 8 or 16 batch rows a column is a row, and the lane keeps all four sums. With two rows c0 = c1 and c2 = c3, and
    the lane keeps c0 if l is even, c2 if l is odd:

        column        0     1  |  2     3  |  4     5  |  6     7
        lane          l = 0    |  l = 1    |  l = 2    |  l = 3
        batch row     0     0  |  0     0  |  1     1  |  1     1
        kept unit     i        |  i + 8    |  i        |  i + 8
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
def _sums_to_state(product, cut: tl.constexpr):
    """Return the sums of a product as a state. No number leaves the thread that has it."""
    if cut.IN_FRAGMENTS:
        return fragments.as_state(product, cut.BATCH)
    elif cut.BATCH == 2:
        even_column, _ = tl.split(tl.reshape(product, (cut.UNITS // 16, 2, 8, 4, 2)))
        first, second = tl.split(tl.permute(even_column, (0, 2, 3, 1)))
        odd = tl.arange(0, 4)[None, None, :] % 2 != 0
        return tl.reshape(tl.where(odd, second, first), (cut.UNITS // 2, 4))
    else:
        return product


@triton.jit
def _state_to_columns(x, cut: tl.constexpr):
    """Return a state, without fragments, as columns of a product, [UNITS, COLUMNS]: a row of two gets four columns."""
    if cut.BATCH == 2:
        x = tl.permute(tl.reshape(x, (cut.UNITS // 16, 8, 2, 2)), (0, 3, 1, 2))
        x = tl.join(x, x)
        return tl.reshape(tl.join(x, x), (cut.UNITS, 8))
    else:
        return x


@triton.jit
def _load_gates(gi, cut: tl.constexpr):
    """Return one step's gate inputs, 3 * UNIT_TILES tensors: r, z and n of each tile of units.

    With 8 or 16 rows an element is a pair of numbers. `_gate_to_float` converts a tensor.
    """
    TILE: tl.constexpr = cut.UNITS * cut.BATCH
    gates = ()
    for i in tl.static_range(cut.UNIT_TILES):
        if cut.BATCH == 2:
            for gate in tl.static_range(3):
                gates = gates + (isa.load(gi + (gate * cut.UNIT_TILES + i) * cut.UNITS),)
        elif cut.IN_FRAGMENTS:
            gates = gates + fragments.load_pairs(gi, i * TILE, cut.GI_GATE_STRIDE, cut.UNITS, cut.BATCH, cut.WARPS)
        else:
            gates = gates + isa.load_gates(gi, i * TILE, cut.GI_GATE_STRIDE, cut.UNITS, cut.BATCH)
    return gates


@triton.jit
def _gate_to_float(raw, cut: tl.constexpr):
    """Return one tensor of `_load_gates` as a state in fp32."""
    if cut.BATCH == 2:
        return raw.to(tl.float32)
    elif cut.IN_FRAGMENTS:
        return fragments.pairs_to_float(raw, cut.DTYPE)
    else:
        return isa.gates_to_float(raw, cut.DTYPE, cut.UNITS, cut.BATCH)


@triton.constexpr_function
def _tile_index(gate, i, k, cut):
    """Return the index in ``w`` of the tile of W_hh with the gate, row i and column k of tiles.

    Tiles are in the order of first use: r, z, n for each i and k. Exception: with ``reset_after=False``, r for each i
    and k, then z, n for each i and k. `_tile_of_index` is the inverse.
    """
    tiles = cut.UNIT_TILES.value
    tile = i * tiles + k
    if cut.RESET_AFTER.value:
        return 3 * tile + gate
    return tile if gate == 0 else tiles**2 + 2 * tile + gate - 1


@triton.jit
def _make_step(h, w, w_hh, addresses, buffer, b_n, gates, LOAD_TILES: tl.constexpr, cut: tl.constexpr):
    """Return the state after one step, a tuple by tile of units, and the tiles ``w`` of W_hh.

    With ``LOAD_TILES``, in the peeled step, ``w`` comes in empty. Each tile is then loaded where it is first used.
    So no more than one tile at a time is in registers on its way to shared memory. ``buffer``, 0 or 1, alternates.

    In the code, ``x`` is the state as right operands, and ``x_n`` are those of n's products. Of each gate, such as r,
    ``g_r`` is the input and ``a_r`` the sums.
    """
    # In fp32 ieee z's products are made together with r's: right operands take four times the registers there, so
    # h's operand is not kept until r h has one (perf/NOTES.md).
    Z_WITH_R: tl.constexpr = cut.IS_IEEE and not LOAD_TILES
    if cut.IN_FRAGMENTS:
        zero = fragments.zeros(cut.UNITS // cut.WARPS, cut.COLUMNS, cut.WARPS)
    else:
        zero = tl.zeros((cut.UNITS, cut.COLUMNS), tl.float32)
    # With reset_after=False the state has buffer 0 at every step, and r h buffer 1. The barrier of r h is between two
    # uses of buffer 0, and the state's barrier between two uses of buffer 1.
    x = _operands(h, addresses, buffer if cut.RESET_AFTER else 0, cut)
    x_n = x
    # With reset_after=False, by tile of units: z's sums if Z_WITH_R, otherwise the zeros that they begin with.
    z = ()
    # The first of the gates whose products are made in the second loop, for a tile right before its update.
    FIRST: tl.constexpr = 0 if cut.RESET_AFTER else 2 if Z_WITH_R else 1
    if not cut.RESET_AFTER:
        # r h of all tiles is made before any of its operands. One tile at a time spills two words at H = 128
        # (perf/NOTES.md).
        reset_h = ()
        for i in tl.static_range(cut.UNIT_TILES):
            a_r, a_z = zero, zero
            for k in tl.static_range(cut.UNIT_TILES):
                if LOAD_TILES:
                    w = w + (_load_tile(w_hh, 0, i, k, _tile_index(0, i, k, cut) < cut.REGISTER_TILES, cut),)
                a_r = _multiply(w, addresses, _tile_index(0, i, k, cut), x[k], a_r, cut)
                if Z_WITH_R:
                    a_z = tl.dot(w[_tile_index(1, i, k, cut)], x[k], acc=a_z, input_precision=cut.PRECISION)
            z = z + (isa.compute_before_wait(a_z) if Z_WITH_R else a_z,)
            r_h = isa.reset_state(_gate_to_float(gates[3 * i], cut), _sums_to_state(a_r, cut), h[i], cut.DTYPE)
            if cut.PADDED_H != cut.H:
                r_h = tl.where(i * cut.UNITS + _state_units(cut) < cut.H, r_h, 0.0)  # for the same reason as h_i below
            reset_h = reset_h + (r_h,)
        x_n = _operands(reset_h, addresses, 1, cut)
    new_h = ()
    for i in tl.static_range(cut.UNIT_TILES):
        # The sums of r, z and n. Those of gates before FIRST are not changed here.
        a = (zero, zero if cut.RESET_AFTER else z[i], b_n[i])
        for k in tl.static_range(cut.UNIT_TILES):
            sums = a[:FIRST]
            for gate in tl.static_range(FIRST, 3):
                if LOAD_TILES:
                    w = w + (_load_tile(w_hh, gate, i, k, _tile_index(gate, i, k, cut) < cut.REGISTER_TILES, cut),)
                x_k = x_n[k] if gate == 2 else x[k]
                sums = sums + (_multiply(w, addresses, _tile_index(gate, i, k, cut), x_k, a[gate], cut),)
            a = sums
        g_z, g_n = _gate_to_float(gates[3 * i + 1], cut), _gate_to_float(gates[3 * i + 2], cut)
        a_z, a_n = _sums_to_state(a[1], cut), _sums_to_state(a[2], cut)
        if cut.RESET_AFTER:
            g_r = _gate_to_float(gates[3 * i], cut)
            h_i = isa.gru_update(g_r, g_z, g_n, _sums_to_state(a[0], cut), a_z, a_n, h[i], cut.DTYPE)
        else:
            h_i = isa.next_state(g_z, g_n, a_z, a_n, h[i], cut.DTYPE)
        if cut.PADDED_H != cut.H:
            # Units beyond H stay zero. Otherwise an infinite one, times its zero weights, makes NaN of all units.
            h_i = tl.where(i * cut.UNITS + _state_units(cut) < cut.H, h_i, 0.0)
        new_h = new_h + (h_i,)
    return new_h, w


@triton.jit
def _multiply(w, addresses, index: tl.constexpr, x, sums, cut: tl.constexpr):
    """Return ``sums`` plus the product of tile ``index`` of W_hh with ``x``, a tile of the state as a right operand.

    With fragments a tile is a tuple of the parts of words. Tiles from ``len(w)`` on are loaded from shared memory here.
    """
    if cut.IN_FRAGMENTS:
        if index < len(w):
            tile = w[index]
        else:
            WORDS: tl.constexpr = cut.SEGMENTS * (cut.UNITS // cut.WARPS // 8)
            tile = fragments.load_shared_tile(addresses[0], index - len(w), WORDS, cut.WARPS)
        for c in tl.static_range(cut.SEGMENTS):
            segment_tile = tile[len(tile) // cut.SEGMENTS * c : len(tile) // cut.SEGMENTS * (c + 1)]
            segment_words = x[len(x) // cut.SEGMENTS * c : len(x) // cut.SEGMENTS * (c + 1)]
            sums = fragments.multiply(segment_tile, segment_words, sums, cut.DTYPE)
        return sums
    else:
        return tl.dot(w[index], x, acc=sums, input_precision=cut.PRECISION)


@triton.jit
def _operands(tiles, addresses, buffer, cut: tl.constexpr):
    """Return the state, or r h, as right operands, one for each tile of units.

    With fragments an operand is a tuple of the parts of words, 4 * SEGMENTS for each eight columns. They come from all
    warps, through the buffer ``buffer`` in shared memory. Otherwise it is a tensor [UNITS, COLUMNS].
    """
    x = ()
    if cut.IN_FRAGMENTS:
        TILE_BYTES: tl.constexpr = fragments.state_bytes(cut.BATCH, cut.UNITS, cut.BITS)
        buffer_offset = buffer * fragments.state_bytes(cut.BATCH, cut.PADDED_H, cut.BITS)
        for k in tl.static_range(cut.UNIT_TILES):
            fragments.store_state(
                addresses[1] + buffer_offset, isa.round_operand(tiles[k], cut.DTYPE, cut.PRECISION), k * TILE_BYTES
            )
        tl.debug_barrier()
        words = fragments.load_state(addresses[2] + buffer_offset, cut.UNIT_TILES * cut.SEGMENTS, cut.BATCH)
        for k in tl.static_range(cut.UNIT_TILES):
            x = x + (words[len(words) // cut.UNIT_TILES * k : len(words) // cut.UNIT_TILES * (k + 1)],)
    else:
        for k in tl.static_range(cut.UNIT_TILES):
            x = x + (isa.operand(_state_to_columns(tiles[k], cut), cut.DTYPE, cut.PRECISION),)
    return x


@triton.jit
def _get_addresses(unit, row, cut: tl.constexpr):
    """Return a thread's three addresses in shared memory.

    - of its words of W_hh, in the tiles from REGISTER_TILES on;
    - of the elements of the state that it writes, in buffer 0;
    - of the first word of the state that it reads, in buffer 0.

    The memory has the tiles of W_hh, then the two buffers of the state.
    """
    SHARED_TILES: tl.constexpr = 3 * cut.UNIT_TILES * cut.UNIT_TILES - cut.REGISTER_TILES
    WEIGHTS: tl.constexpr = fragments.weights_bytes(SHARED_TILES * cut.SEGMENTS, cut.UNITS // cut.WARPS, cut.WARPS)
    SIZE: tl.constexpr = WEIGHTS + 2 * fragments.state_bytes(cut.BATCH, cut.PADDED_H, cut.BITS)
    origin = fragments.touch_shared_memory(cut.WARPS)
    weights = fragments.shared_address(origin + 16 * fragments.thread(cut.WARPS), SIZE)
    results = fragments.shared_address(origin + WEIGHTS + fragments.state_offset(unit, row, cut.BATCH, cut.BITS), SIZE)
    words = fragments.shared_address(origin + WEIGHTS + fragments.lane_state_offset(cut.BATCH, cut.WARPS), SIZE)
    return weights, results, words


@triton.jit
def _initial_sums_of_n(b_hh, tile: tl.constexpr, HAS_B_HN: tl.constexpr, cut: tl.constexpr):
    """Return the sums of fragments that n's products of a tile begin with: b_hn in all columns, or zeros."""
    first = tl.zeros((cut.WARPS, 8, 4), tl.float32)
    second = first
    sums = ()
    for m in tl.static_range(cut.UNITS // cut.WARPS // 16):
        if HAS_B_HN:
            sixteen = (m * cut.WARPS + tl.arange(0, cut.WARPS)[:, None, None]) * 16
            unit = tile * cut.UNITS + sixteen + tl.arange(0, 8)[None, :, None]
            unit = unit + tl.zeros((cut.WARPS, 8, 4), tl.int32)
            b_hn = b_hh + 2 * cut.H
            first = isa.load(b_hn + tl.minimum(unit, cut.H - 1)).to(tl.float32)
            second = isa.load(b_hn + tl.minimum(unit + 8, cut.H - 1)).to(tl.float32)
        for _ in tl.static_range(cut.COLUMNS // 8):
            sums = sums + (first, first, second, second)
    return sums


@triton.jit
def _load_fragments(addresses, w_hh, cut: tl.constexpr):
    """Return the first REGISTER_TILES tiles of W_hh, by `_tile_index`. Store the others in shared memory."""
    for index in tl.static_range(cut.REGISTER_TILES, 3 * cut.UNIT_TILES * cut.UNIT_TILES):
        fragments.store_tile(addresses[0], _load_fragment_tile(w_hh, index, cut), index - cut.REGISTER_TILES, cut.WARPS)
    # The tiles that stay in registers come last, because the others need registers on their way to shared memory.
    w = ()
    for index in tl.static_range(cut.REGISTER_TILES):
        w = w + (_load_fragment_tile(w_hh, index, cut),)
    return w


@triton.jit
def _load_fragment_tile(w_hh, index: tl.constexpr, cut: tl.constexpr):
    """Return the tile of W_hh with the index ``index``, a tuple of the parts of words (see `fragments.load_tile`)."""
    GATE: tl.constexpr = _tile_of_index(index, cut, 0)
    ROW_TILE: tl.constexpr = _tile_of_index(index, cut, 1)
    COLUMN_TILE: tl.constexpr = _tile_of_index(index, cut, 2)
    unit = ROW_TILE * cut.UNITS + tl.arange(0, cut.WARPS)[:, None, None] * 16 + tl.arange(0, 8)[None, :, None]
    tile = ()
    for c in tl.static_range(cut.SEGMENTS):
        word = (COLUMN_TILE * cut.SEGMENTS + c) * 4 + tl.arange(0, 4)[None, None, :]
        tile = tile + fragments.load_tile(
            w_hh, GATE, unit, word, cut.UNITS // cut.WARPS, 16 * cut.WARPS, cut.H, cut.PRECISION
        )
    return tile


@triton.constexpr_function
def _tile_of_index(index, cut, which):
    """Return the gate, the row or the column of tiles (``which`` is 0, 1 or 2) of the tile with the index ``index``.

    It inverts `_tile_index` by a search at compile time.
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
                w = w + (_load_tile(w_hh, 0, i, k, False, cut),)
    for i in tl.static_range(cut.UNIT_TILES):
        for k in tl.static_range(cut.UNIT_TILES):
            for gate in tl.static_range(0 if cut.RESET_AFTER else 1, 3):
                w = w + (_load_tile(w_hh, gate, i, k, False, cut),)
    return w


@triton.jit
def _load_tile(
    w_hh, gate: tl.constexpr, i: tl.constexpr, k: tl.constexpr, IN_REGISTERS: tl.constexpr, cut: tl.constexpr
):
    """Return a tile [UNITS, UNITS] of a gate's W_hh: the rows of tile i, the columns of tile k, zeros beyond H."""
    row = i * cut.UNITS + tl.arange(0, cut.UNITS)[:, None]
    col = k * cut.UNITS + tl.arange(0, cut.UNITS)[None, :]
    if (i + 1) * cut.UNITS <= cut.H and (k + 1) * cut.UNITS <= cut.H:
        tile = tl.load(w_hh + (gate * cut.H + row) * cut.H + col)
    else:
        tile = tl.load(w_hh + (gate * cut.H + row) * cut.H + col, mask=(row < cut.H) & (col < cut.H), other=0.0)
    if cut.PRECISION == "tf32":
        tile = isa.round_to_tf32(tile)
    elif IN_REGISTERS:
        tile += 0.0  # Without an operation after the load the compiler keeps the tile in shared memory (perf/NOTES.md).
    return tile


@triton.jit
def _select(condition, a, b):
    """Return, for each tile, a where ``condition`` and b elsewhere."""
    selected = ()
    for i in tl.static_range(len(a)):
        selected = selected + (tl.where(condition, a[i], b[i]),)
    return selected


@triton.jit
def _zero_where(condition, a):
    """Return, for each tile, zeros where ``condition`` and a elsewhere."""
    selected = ()
    for i in tl.static_range(len(a)):
        selected = selected + (tl.where(condition, 0.0, a[i]),)
    return selected


@triton.jit
def _store_state(address, h, live, unit, cut: tl.constexpr):
    """Store all tiles of a state, rounded, in the rows where ``live``, at ``address`` and a unit's index."""
    for i in tl.static_range(cut.UNIT_TILES):
        j = i * cut.UNITS + unit
        isa.store(address + j, h[i].to(cut.DTYPE), live & (j < cut.H))
