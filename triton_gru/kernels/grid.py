"""The ``grid`` scan: hidden units split over the whole chip, the weights on chip, the state handed over in the L2.

A program owns a few hidden units, for all three gates, and works on a few tiles of the batch at a time. Each of its
warps sums over a slice of all units. The algorithm of a program, for one tile of the batch:

    load my rows of W_hh                            # once: they stay in registers, or in shared memory
    send h_0 of my units to slot 0 of the mailbox
    for t in steps:
        load the gate inputs of step t + 1          # early, so that they have arrived when that step begins
        x = wait for h_t of all units in slot t     # each warp waits for its slice only
        r, z, n = W_hh x                            # each warp sums over its slice
        r, z, n = the sums of all warps             # through shared memory, once a step
        h = gru_update(gate inputs of t, r, z, n, h)
        send h of my units to slot t + 1; store it in out

With ``reset_after=False`` (`Cut.RESET_AFTER` is false) a step has two hand-overs, so a state is in every second slot:

    RESET_AFTER    h_0 | h_1 | h_2 | ...
    otherwise      h_0 | r h_0 | h_1 | r h_1 | h_2 | ...

r and z are made of the state, n of r h. In both cases a hand-over receives from slot s and sends to slot s + 1.

A group is the tiles of the batch that a program works on at a time. One tile is computed while others are handed over.

The programs of a group wait for each other. They do not deadlock. Each sends its part of a slot before it waits for
that slot, and no program waits in order to send. A cooperative launch puts all programs on the chip at once. If an
element does not come within the time limit in ``watch``, the wait gives up (see exchange).

**Products.** Hidden units are rows and batch rows are columns, as in ``block``. The state made of a product is turned:
[COLUMNS, UNITS]. A product is made in one of three ways, and W_hh is held accordingly:

    way           when                            ``w``                                       ``w_shared``
    fragments     16 bits or TF32                 REGISTER_TILES tiles, in registers          address of the others
    lanes         fp32 ieee, LANES_PER_SLICE > 0  all numbers, in registers, see `lanes`      0
    ``tl.dot``    fp32 ieee otherwise             all tiles, in the compiler's shared memory  0

**Masks.** They are [COLUMNS, UNITS] or broadcast to it.

- ``unit_live``: the unit is below H. The last program may own units beyond H.
- ``is_sent``: the column has a row in gi and in the mailbox. The other columns repeat the last row (``row``).
- ``live``: the unit is below H, and the row is in the batch. Only these elements exist in hx, carry and h_n.
- ``is_active``: an element is live, and the row's sequence has the step. Only these elements are stored in out. A row
  whose sequence has ended keeps its state.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from . import exchange, fragments, isa, lanes, reserve, sequences, slices
from .constants import CommonConstants, derived


@dataclass(frozen=True, eq=False, repr=False)
class Cut(CommonConstants):
    """The constants that `grid_scan` is compiled for, by the configuration (`CallConstants`: by the call).

    Sizes nest like this. A slot of the mailbox has tiles of the batch. A tile has ROWS rows of PADDED_H elements. A row
    is cut into SEGMENTS segments, and a segment into SLICES slices of SLICE_DEPTH elements, one for each warp. A slice is
    cut into words of WORD_ELEMENTS elements. An element is one unit of one row.
    """

    RESET_AFTER: bool  # r multiplies W_hn h + b_hn. Else it multiplies h, before the product with W_hn
    UNITS: int  # hidden units of a program
    COLUMNS: int  # columns of a product, which are the rows of a tile of the batch: 8 or 16. By lanes: ROWS
    ROWS: int  # rows of a tile in gi and in the mailbox: COLUMNS. Fewer only if the batch is one tile with fewer rows
    BATCH_TILES: int  # tiles of the batch in a group
    SLICES: int  # slices of the sum over hidden units, one for each warp of a program
    REGISTER_TILES: int  # of the 3 * SEGMENTS tiles of W_hh, the number that stays in registers
    LANES_PER_SLICE: int  # lanes of a warp that share its slice, if lanes make the products (see lanes). Else 0
    PROBE: bool  # whether a thread waits for one word before it reads all: the hand-over "probe" (see exchange)

    @derived
    def PROGRAMS(self):
        """Return the number of programs that own all hidden units of a direction."""
        return -(-self.H.value // self.UNITS.value)

    @derived
    def PADDED_H(self):
        """Return the number of elements of a row of a tile, which are the units of all programs: H or more."""
        return self.PROGRAMS.value * self.UNITS.value

    @derived
    def TILE_ELEMENTS(self):
        """Return the number of elements of a tile of the state in the mailbox, and of a gate's tile in gi."""
        return self.ROWS.value * self.PADDED_H.value

    @derived
    def BY_LANES(self):
        """Return whether lanes make the products, in fp32 ieee."""
        return self.LANES_PER_SLICE.value > 0

    @derived
    def IN_FRAGMENTS(self):
        """Return whether the matrix unit makes the products, of operands that `fragments` loads."""
        return not self.IS_IEEE.value

    @derived
    def STORING_THREADS(self):
        """Return what `isa.count_storing_threads` does for a program's part of a tile: 0 if no thread has a copy."""
        return isa.count_storing_threads(self.UNITS.value * self.COLUMNS.value, self.SLICES.value)

    @derived
    def WORD_ELEMENTS(self):
        """Return the number of elements of a word of the mailbox."""
        return exchange.elements_per_word(self.BITS.value, self.WORD_LAYOUT.value.PARTS.value)

    @derived
    def SLICE_DEPTH(self):
        """Return the number of units of a slice in one segment, except by lanes."""
        return exchange.words_per_slice(self.WORD_LAYOUT.value.PARTS.value) * self.WORD_ELEMENTS.value

    @derived
    def SEGMENTS(self):
        """Return the number of segments of the sum, except by lanes. All slices sum over one segment at a time."""
        return -(-self.PADDED_H.value // (self.SLICES.value * self.SLICE_DEPTH.value))

    @derived
    def WORD_LAYOUT(self):
        """Return which words of a tile of the state each thread receives."""
        bits, parts = self.BITS.value, 2 if self.IS_IEEE.value else 4
        rows, warps = self.ROWS.value, self.SLICES.value
        tile_fields = {
            "BITS": bits, "PARTS": parts, "ROWS": rows, "PROBE": self.PROBE.value,
            "WORDS_PER_ROW": self.PADDED_H.value // exchange.elements_per_word(bits, parts),
        }  # fmt: skip
        if self.BY_LANES.value:
            return lanes.word_layout(self, **tile_fields)
        if self.IN_FRAGMENTS.value:
            return exchange.WordLayout(
                WORDS_PER_SEGMENT=4 * warps, ROWS_PER_THREAD=-(-rows // 8), THREAD_ROW_STEP=8, **tile_fields
            )
        width = exchange.words_per_slice(parts)
        return exchange.WordLayout(
            WORDS_PER_SEGMENT=width * warps, PACK=-(-width * self.COLUMNS.value // 32), **tile_fields
        )

    @derived
    def R_Z_TENSORS(self):
        """Return the number of tensors that have the inputs of r and z of a tile, by lanes."""
        return lanes.count_gate_tensors(2, self.UNITS.value, self.ROWS.value, self.SLICES.value)

    @derived
    def GATE_TENSORS(self):
        """Return the number of tensors of `_load_gates`, all gate inputs of a tile."""
        if not self.BY_LANES.value:
            return 3
        loads = (3,) if self.RESET_AFTER.value else (2, 1)
        return sum(
            lanes.count_gate_tensors(gates, self.UNITS.value, self.ROWS.value, self.SLICES.value) for gates in loads
        )


@reserve.add_shared_memory
@triton.jit(
    do_not_specialize=[
        "steps", "start", "total", "copies", "first_direction", "directions", "layer_row", "batch", "out_t",
        "out_b", "hx_l", "hx_b",
    ],
    do_not_specialize_on_alignment=["lengths", "offsets", "resets"],
)  # fmt: skip
def grid_scan(
    gi,  # gate inputs [all directions, steps, batch tiles, 3, ROWS, PROGRAMS * UNITS], see projection
    w_hh,  # [3 * H, H]
    b_hh,  # [3 * H]; only b_hn is read, and only if RESET_AFTER
    w_hh_back,  # [3 * H, H] of the backward direction
    b_hh_back,  # [3 * H] of the backward direction
    hx,  # [layers * directions, batch, H] through strides: the state before the first step
    carry_in,  # fp32 [layers * directions, batch, H]: the state after an earlier launch
    carry_out,  # fp32 [layers * directions, batch, H]: the state for a later launch
    out,  # [time, batch, directions, H] through strides, or packed; see sequences
    h_n,  # [layers * directions, batch, H]: the state after the last step
    lengths,  # int32 [batch], see sequences
    offsets,  # int32 [time], see sequences
    resets,  # uint8 [time, batch]: not 0 where the state is forgotten before a step
    mailbox,  # int64, see exchange. A slot is [directions, groups * BATCH_TILES] tiles of PROGRAMS * UNITS by ROWS
    watch,  # int64 [2]: time limit of a wait in ns; address of a word in host memory, set when a wait gives up.
    steps,  # time steps of this launch
    start,  # first step of this launch
    total,  # time steps of all launches
    copies,  # times that the PROGRAMS of a direction are launched, each copy for other groups
    first_direction,  # first direction of this launch: 0 forward, 1 backward
    directions,  # directions of this launch
    layer_row,  # the layer's first row of hx, carry and h_n: layer * all directions
    batch,  # batch rows of the call
    out_t,  # elements of out from a time to the next
    out_b,  # elements of out from a batch row to the next
    hx_l,  # elements of hx from a row of a layer and direction to the next
    hx_b,  # elements of hx from a batch row to the next
    cut: tl.constexpr,  # a `Cut`
    call: tl.constexpr,  # a `constants.CallConstants`
):
    # ---- My direction, units and weights. A program's index is (direction in the launch, copy, part of the units).
    launch_direction = tl.program_id(0) // cut.PROGRAMS // copies
    direction = first_direction + launch_direction
    backward = sequences.goes_backward(direction, call.REVERSE)
    w_hh = tl.where(direction != 0, w_hh_back, w_hh)
    first_unit = tl.program_id(0) % cut.PROGRAMS * cut.UNITS
    w, w_shared = _load_weights(w_hh, first_unit, cut)
    unit = tl.arange(0, cut.UNITS)[None, :]
    column = tl.arange(0, cut.COLUMNS)[:, None]
    unit_live = first_unit + unit < cut.H
    b_n = tl.zeros((cut.COLUMNS, cut.UNITS), tl.float32)
    if call.HAS_BIAS and cut.RESET_AFTER:
        b_hn = tl.where(direction != 0, b_hh_back, b_hh) + 2 * cut.H
        b_n += tl.load(b_hn + first_unit + unit, mask=unit_live, other=0.0).to(tl.float32)

    # ---- Base pointers and offsets, in elements. 64-bit offsets are added to scalar pointers. The offsets of a tile
    # are small. Exception: rows of out that are far apart.
    #
    # Mailbox and gate inputs:
    # - ``direction_mailbox`` points to my direction's part of slot 0.
    # - ``slot_elements`` leads from a slot to the next.
    # - ``own_offset`` is the offset of each of my elements in a tile of a slot.
    # - ``gi_offset`` is the offset of each of my elements in a gate's tile of gi, from ``gi``.
    batch_tiles = tl.cdiv(batch, cut.COLUMNS)
    groups = tl.cdiv(batch_tiles, cut.BATCH_TILES)
    direction_mailbox = exchange.element_pointer(mailbox, cut.DTYPE)
    slot_elements = tl.cast(directions * groups, tl.int64) * (cut.BATCH_TILES * cut.TILE_ELEMENTS)
    direction_mailbox += tl.cast(launch_direction * groups, tl.int64) * (cut.BATCH_TILES * cut.TILE_ELEMENTS)
    row = tl.minimum(column, cut.ROWS - 1)
    gi_offset = row * cut.PADDED_H + unit
    if cut.BY_LANES:
        own_offset = lanes.element_offset(first_unit + unit, row, cut)
    else:
        own_offset = exchange.element_offset(first_unit + unit, row, cut.ROWS, cut.WORD_ELEMENTS)
    is_sent = column < cut.ROWS
    # Other tensors:
    # - ``gi`` points to my units at step ``start``, and ``gi_step`` leads from a step to the next.
    # - ``out`` points to my units at step ``start``. ``out_step`` leads from a step to the next, or is 0 if packed.
    # - ``hx`` points to my units in row 0 of the batch.
    # - ``state_offset`` is the offset of my units in row 0 of the batch, in carry and h_n.
    # - ``element`` is the offset of each of my elements in carry and h_n, from the first row of a tile.
    element = column * cut.H + unit
    gi_step = tl.cast(batch_tiles, tl.int64) * (3 * cut.TILE_ELEMENTS)
    gi += tl.cast(direction, tl.int64) * steps * gi_step + first_unit
    out += direction * cut.H + first_unit
    out_step = sequences.step_stride(backward, out_t, call.LAYOUT)
    out += start.to(tl.int64) * out_step
    layer_row += tl.cast(direction, tl.int64)
    hx += layer_row * hx_l + first_unit
    state_offset = layer_row * batch * cut.H + first_unit
    is_last_launch = start + steps == total
    for group in tl.range(tl.program_id(0) // cut.PROGRAMS % copies, groups, copies):
        first_tile = group * cut.BATCH_TILES
        # ``slot`` points to the group's part of the slot to receive from: slot 0, which gets h_0 here.
        slot = direction_mailbox + tl.cast(first_tile, tl.int64) * cut.TILE_ELEMENTS
        # The tuples below have an entry for each tile of the group. Exception: GATE_TENSORS entries in ``gates_ahead``.
        h = ()
        gates_ahead = ()
        length = ()
        out_row_offsets = ()
        group_end = 0
        for i in tl.static_range(cut.BATCH_TILES):
            first_row = (first_tile + i) * cut.COLUMNS
            live = unit_live & (first_row + column < batch)
            from_carry = carry_in + state_offset + tl.cast(first_row, tl.int64) * cut.H
            h_i = tl.load(from_carry + element, mask=live & (start != 0), other=0.0)
            if call.HAS_HX:
                from_hx = hx + tl.cast(first_row, tl.int64) * hx_b + column.to(tl.int64) * hx_b
                h_i += tl.load(from_hx + unit, mask=live & (start == 0), other=0.0).to(tl.float32)
            length_i = sequences.load_lengths(lengths, first_row + column, batch, total, call.LAYOUT)
            length = length + (length_i,)
            group_end = tl.maximum(group_end, sequences.longest(length_i, total, call.LAYOUT))
            if call.HAS_RESETS:
                forget_first = sequences.is_reset(resets, start, length_i, first_row + column, batch, total)
                h_i = tl.where(forget_first, 0.0, h_i)
            h = h + (h_i,)
            out_row_offsets = out_row_offsets + (
                sequences.row_offset(length_i, column, backward, out_t, out_b, call.LAYOUT) + unit,
            )
            _send(slot + own_offset, h_i, is_sent, i, cut)
            # A group's tiles beyond the batch read the gate inputs of the batch's last tile.
            tile = tl.minimum(first_tile + i, batch_tiles - 1)
            gates_ahead = gates_ahead + _load_gates(
                gi + tl.cast(tile, tl.int64) * (3 * cut.TILE_ELEMENTS), gi_offset, is_sent, cut
            )
        # A group stops at the longest of its sequences.
        group_steps = steps if call.LAYOUT == "dense" else tl.minimum(steps, group_end - start)
        if cut.BY_LANES and call.LAYOUT != "dense":
            # The loop exchanges lanes, so the assembler must know that all lanes make the same number of steps.
            group_steps = isa.mark_warp_uniform(group_steps)
        next_gi = gi
        for t in tl.range(0, group_steps):
            gates_now = gates_ahead
            gates_ahead = ()
            new_h = ()
            forget_next = ()
            # Load the gate inputs of the next step, or those of the last step again.
            next_gi += tl.where(t + 1 < steps, gi_step, 0)
            for i in tl.static_range(cut.BATCH_TILES):
                tile = tl.minimum(first_tile + i, batch_tiles - 1)
                gates_ahead = gates_ahead + _load_gates(
                    next_gi + tl.cast(tile, tl.int64) * (3 * cut.TILE_ELEMENTS), gi_offset, is_sent, cut
                )
                if call.HAS_RESETS:
                    tile_row = (first_tile + i) * cut.COLUMNS + column
                    # If the next step is a later launch's, that launch resets the state again. This changes nothing.
                    forget_next = forget_next + (
                        sequences.is_reset(resets, start + t + 1, length[i], tile_row, batch, total),
                    )
            # ---- A hand-over: for each tile, receive from ``slot``, send to ``slot + slot_elements``. Then go there.
            z = ()
            if not cut.RESET_AFTER:  # receive h_t, send r h
                for i in tl.static_range(cut.BATCH_TILES):
                    x = _receive(slot, i, mailbox, watch, cut)
                    r_h, z_i = _make_reset_state(
                        w, w_shared, x, gates_now[cut.GATE_TENSORS * i : cut.GATE_TENSORS * (i + 1)], h[i], cut
                    )
                    if cut.PADDED_H != cut.H:
                        r_h = tl.where(unit_live, r_h, 0.0)  # for the same reason as h_i below
                    _send(slot + slot_elements + own_offset, r_h, is_sent, i, cut)
                    if not cut.IS_IEEE:  # z's products are made here, while r h is on its way
                        (z_i,) = _products_of_slices(w, w_shared, x, 1, 2, cut)
                        z_i = fragments.compute_before_wait(z_i)
                    z = z + (z_i,)
                slot += slot_elements
            # Receive h_t, or r h with reset_after=False, and send h_t+1.
            for i in tl.static_range(cut.BATCH_TILES):
                first_row = (first_tile + i) * cut.COLUMNS
                is_active = sequences.is_active(
                    start + t, length[i], unit_live & (first_row + column < batch), call.LAYOUT
                )
                out_offset = out_row_offsets[i] + sequences.table_offset(
                    start + t, length[i], backward, offsets, out_t, call.LAYOUT
                )
                out_offset += tl.cast(t, tl.int64) * out_step
                out_offset += tl.cast(first_row, tl.int64) * (out_t if call.LAYOUT == "packed" else out_b)
                x = _receive(slot, i, mailbox, watch, cut)
                z_i = () if cut.RESET_AFTER else z[i]
                h_i = _make_next_state(
                    w, w_shared, x, z_i, gates_now[cut.GATE_TENSORS * i : cut.GATE_TENSORS * (i + 1)], b_n, h[i], cut
                )
                if call.LAYOUT != "dense":
                    h_i = tl.where(is_active, h_i, h[i])
                if cut.PADDED_H != cut.H:
                    # Units beyond H stay zero. Otherwise an infinite one, times its zero weights, makes NaN of all.
                    h_i = tl.where(unit_live, h_i, 0.0)
                next_h = h_i
                if call.HAS_RESETS:
                    next_h = tl.where(forget_next[i], 0.0, h_i)
                _send(slot + slot_elements + own_offset, next_h, is_sent, i, cut)
                isa.store(out + out_offset, h_i.to(cut.DTYPE), is_active, cut.STORING_THREADS)
                new_h = new_h + (next_h,)
            h = new_h
            slot += slot_elements

        # ---- The state goes to h_n after the last launch, else to carry_out for the next launch.
        for i in tl.static_range(cut.BATCH_TILES):
            first_row = (first_tile + i) * cut.COLUMNS
            live = unit_live & (first_row + column < batch)
            tile_offset = state_offset + tl.cast(first_row, tl.int64) * cut.H
            tl.store(carry_out + tile_offset + element, h[i], mask=live & (is_last_launch == 0))
            tl.store(h_n + tile_offset + element, h[i].to(cut.DTYPE), mask=live & (is_last_launch != 0))


@triton.jit
def _load_weights(w_hh, first_unit, cut: tl.constexpr):
    """Return ``w`` and ``w_shared``, the program's rows of W_hh as the table at the top says.

    A tile is the rows of one gate in the columns of one segment. The tile of gate g and segment c has the index 3 * c + g.
    With fragments, ``w`` has at most REGISTER_TILES tiles, each a tuple of the parts of words. Tiles of higher indices
    are in shared memory, at each thread's address ``w_shared``. For ``tl.dot``, ``w`` has 3 * SEGMENTS tensors
    [SLICES, UNITS, SLICE_DEPTH].
    """
    w = ()
    w_shared = 0
    if cut.BY_LANES:
        w = lanes.load_weights(w_hh, first_unit, cut)
    elif cut.IN_FRAGMENTS:
        BYTES: tl.constexpr = fragments.weights_bytes(3 * cut.SEGMENTS - cut.REGISTER_TILES, cut.UNITS, cut.SLICES)
        w_shared = fragments.shared_address(16 * fragments.thread(cut.SLICES), BYTES)
        for i in tl.static_range(min(cut.REGISTER_TILES, 3 * cut.SEGMENTS)):
            w = w + (_load_fragments(w_hh, i, first_unit, cut),)
        for i in tl.static_range(cut.REGISTER_TILES, 3 * cut.SEGMENTS):
            fragments.store_tile(
                w_shared, _load_fragments(w_hh, i, first_unit, cut), i - cut.REGISTER_TILES, cut.SLICES
            )
    else:
        for i in tl.static_range(3 * cut.SEGMENTS):
            w = w + (_load_tile(w_hh, i % 3, first_unit, i // 3, cut),)
    return w, w_shared


@triton.jit
def _load_fragments(w_hh, index: tl.constexpr, first_unit, cut: tl.constexpr):
    """Return the tile with index ``index`` of the program's rows of W_hh, for `fragments.multiply`."""
    unit = first_unit + tl.arange(0, 8)[None, :, None]
    slice_ = index // 3 * cut.SLICES + tl.arange(0, cut.SLICES)[:, None, None]
    word = slice_ * 4 + tl.arange(0, 4)[None, None, :]
    return fragments.load_tile(w_hh, index % 3, unit, word, cut.UNITS, 16, cut.H, cut.PRECISION)


@triton.jit
def _load_tile(w_hh, gate: tl.constexpr, first_unit, segment: tl.constexpr, cut: tl.constexpr):
    """Return the tile [SLICES, UNITS, SLICE_DEPTH] of one gate's rows of W_hh in a segment, zero beyond H."""
    unit = first_unit + tl.arange(0, cut.UNITS)[None, :, None]
    slice_ = segment * cut.SLICES + tl.arange(0, cut.SLICES)[:, None, None]
    k = slice_ * cut.SLICE_DEPTH + tl.arange(0, cut.SLICE_DEPTH)[None, None, :]
    address = w_hh + (gate * cut.H + unit) * cut.H + k
    if cut.H % cut.UNITS == 0 and (segment + 1) * cut.SLICES * cut.SLICE_DEPTH <= cut.H:
        return tl.load(address)
    else:
        return tl.load(address, mask=(unit < cut.H) & (k < cut.H), other=0.0)


@triton.jit
def _load_gates(gi, gi_offset, is_sent, cut: tl.constexpr):
    """Return the inputs of r, z and n of my units from the tile at ``gi``, a tuple of GATE_TENSORS tensors.

    Each is [COLUMNS, UNITS], and columns that are not ``is_sent`` are not loaded. Exception: by lanes, a number is in
    the one thread that has its sum. With ``reset_after=False`` the first R_Z_TENSORS tensors are then r's and z's.
    """
    if cut.BY_LANES and cut.RESET_AFTER:
        return lanes.load_gates(gi, 0, 3, cut)
    elif cut.BY_LANES:
        r_z_gates = lanes.load_gates(gi, 0, 2, cut)
        return r_z_gates + lanes.load_gates(gi, 2, 3, cut)
    elif cut.ROWS == cut.COLUMNS:
        gi += gi_offset
        return tl.load(gi), tl.load(gi + cut.TILE_ELEMENTS), tl.load(gi + 2 * cut.TILE_ELEMENTS)
    else:
        gi += gi_offset
        return (
            tl.load(gi, mask=is_sent, other=0.0), tl.load(gi + cut.TILE_ELEMENTS, mask=is_sent, other=0.0),
            tl.load(gi + 2 * cut.TILE_ELEMENTS, mask=is_sent, other=0.0),
        )  # fmt: skip


@triton.jit
def _send(element, x, mask, tile: tl.constexpr, cut: tl.constexpr):
    """Send ``x``, my units of the group's tile ``tile``, where ``mask``. ``element`` points into the first tile."""
    exchange.send(element, x, mask, tile * cut.TILE_ELEMENTS, cut.STORING_THREADS, cut.DTYPE, cut.PRECISION)


@triton.jit
def _receive(slot, tile: tl.constexpr, mailbox, watch, cut: tl.constexpr):
    """Return tile ``tile`` of the group when it has come, for its products. ``slot`` points to the first tile.

    The result is a tuple of int32 parts of words. Its length depends on the way of the products:

    - fragments: by segment, eight columns and part, each [SLICES, 8, 4];
    - lanes: by segment, row and part, each [SLICES, LANES_PER_SLICE, 32 // LANES_PER_SLICE];
    - ``tl.dot``: by segment and part, each [SLICES, words, COLUMNS].

    The abort word of the launch is the first word of the mailbox.
    """
    if cut.BY_LANES:
        return exchange.receive(
            slot, tile * cut.TILE_ELEMENTS, mailbox, watch, lanes.thread_word_index(cut), 0, cut.WORD_LAYOUT
        )
    elif cut.IN_FRAGMENTS:
        word = tl.arange(0, cut.SLICES)[:, None, None] * 4 + tl.arange(0, 4)[None, None, :]
        row = tl.minimum(tl.arange(0, 8)[None, :, None], cut.ROWS - 1)
        x = exchange.receive(slot, tile * cut.TILE_ELEMENTS, mailbox, watch, word, row, cut.WORD_LAYOUT)
        if cut.WORD_LAYOUT.ROWS_PER_THREAD < cut.COLUMNS // 8:
            # There are 16 columns, but no rows from the eighth on. The second eight columns repeat the first eight.
            repeated = ()
            for i in tl.static_range(len(x) // 4):
                repeated = repeated + x[4 * i : 4 * i + 4] + x[4 * i : 4 * i + 4]
            x = repeated
        return x
    else:
        SLICE_WORDS: tl.constexpr = exchange.words_per_slice(2)
        row = tl.minimum(tl.arange(0, cut.COLUMNS)[None, None, :], cut.ROWS - 1)
        word = tl.arange(0, cut.SLICES)[:, None, None] * SLICE_WORDS + tl.arange(0, SLICE_WORDS)[None, :, None]
        return exchange.receive(slot, tile * cut.TILE_ELEMENTS, mailbox, watch, word, row, cut.WORD_LAYOUT)


@triton.jit
def _make_reset_state(w, w_shared, x, gates, h, cut: tl.constexpr):
    """Return r h, made of the state ``x``, and what is made of z with it.

    - fragments: (). The caller makes z's sums after it has sent r h.
    - lanes: z before its sigmoid, [ROWS, UNITS], gate inputs included.
    - ``tl.dot``: z's sums of each slice, [SLICES, UNITS, COLUMNS].

    ``-0.0`` in place of sums stands for "already included". It is the neutral element of +: x + -0.0 is x for any x,
    so the compiler drops the addition. It may not drop x + 0.0, because -0.0 + 0.0 is 0.0.
    """
    if cut.BY_LANES:
        r, z = lanes.products(w, x, gates[: cut.R_Z_TENSORS], 0, 2, cut)
        return isa.reset_state(r, -0.0, h, cut.DTYPE), z
    elif cut.IS_IEEE:
        # z's products are made together with r's. The right operand takes many registers, and is not kept for later.
        # Without `isa.compute_before_wait` LLVM sinks z's products below the wait for r h: 178 spills at H = 600
        # (perf/NOTES.md).
        r, z = _products_of_slices(w, w_shared, x, 0, 2, cut)
        z = isa.compute_before_wait(z)
        (r,) = slices.sum_slices((r,), cut.SLICES, cut.UNITS, cut.COLUMNS, False)
        return isa.reset_state(gates[0], r, h, cut.DTYPE), z
    else:
        (r,) = _products_of_slices(w, w_shared, x, 0, 1, cut)
        (r,) = slices.sum_slices((r,), cut.SLICES, cut.UNITS, cut.COLUMNS, True)
        return isa.reset_state(gates[0], r, h, cut.DTYPE), ()


@triton.jit
def _make_next_state(w, w_shared, x, z, gates, b_n, h, cut: tl.constexpr):
    """Return the state after the step, [COLUMNS, UNITS].

    With RESET_AFTER it is made of ``x``, the state before the step, and ``z`` is (). Otherwise ``x`` is r h, and ``z``
    is z before its sigmoid (lanes) or z's sums of each slice. For ``-0.0`` see `_make_reset_state`.
    """
    if cut.BY_LANES and cut.RESET_AFTER:
        r, z, n, g_n = lanes.products(w, x, gates, 0, 3, cut)
        return isa.gru_update(r, z, g_n, -0.0, -0.0, n + b_n, h, cut.DTYPE)
    elif cut.BY_LANES:
        n, g_n = lanes.products(w, x, gates[cut.R_Z_TENSORS :], 2, 3, cut)
        return isa.next_state(z, g_n, -0.0, n, h, cut.DTYPE)
    elif cut.RESET_AFTER:
        r, z, n = _products_of_slices(w, w_shared, x, 0, 3, cut)
        r, z, n = slices.sum_slices((r, z, n), cut.SLICES, cut.UNITS, cut.COLUMNS, cut.IN_FRAGMENTS)
        return isa.gru_update(gates[0], gates[1], gates[2], r, z, n + b_n, h, cut.DTYPE)
    else:
        (n,) = _products_of_slices(w, w_shared, x, 2, 3, cut)
        z, n = slices.sum_slices((z, n), cut.SLICES, cut.UNITS, cut.COLUMNS, cut.IN_FRAGMENTS)
        return isa.next_state(gates[1], gates[2], z, n, h, cut.DTYPE)


@triton.jit
def _products_of_slices(w, w_shared, x, FIRST: tl.constexpr, END: tl.constexpr, cut: tl.constexpr):
    """Return each slice's products of ``x`` for the gates ``FIRST`` to before ``END``, for `slices.sum_slices`.

    ``x`` is a tuple of `_receive`, the state or r h. The result has an entry for each gate: with fragments a tuple of
    sums, otherwise a tensor [SLICES, UNITS, COLUMNS].
    """
    sums = ()
    for _ in tl.static_range(FIRST, END):
        if cut.IN_FRAGMENTS:
            sums = sums + (fragments.zeros(cut.UNITS, cut.COLUMNS, cut.SLICES),)
        else:
            sums = sums + (tl.zeros((cut.SLICES, cut.UNITS, cut.COLUMNS), tl.float32),)
    SEGMENT_PARTS: tl.constexpr = (
        cut.WORD_LAYOUT.PARTS * (cut.COLUMNS // 8) if cut.IN_FRAGMENTS else cut.WORD_LAYOUT.PARTS
    )
    for c in tl.static_range(len(x) // SEGMENT_PARTS):
        words = x[SEGMENT_PARTS * c : SEGMENT_PARTS * (c + 1)]
        if not cut.IN_FRAGMENTS:
            elements = _words_to_elements(words)
        added = ()
        for gate in tl.static_range(FIRST, END):
            if cut.IN_FRAGMENTS and 3 * c + gate < len(w):
                added = added + (fragments.multiply(w[3 * c + gate], words, sums[gate - FIRST], cut.DTYPE),)
            elif cut.IN_FRAGMENTS:
                tile = fragments.load_shared_tile(w_shared, 3 * c + gate - len(w), cut.UNITS // 8, cut.SLICES)
                added = added + (fragments.multiply(tile, words, sums[gate - FIRST], cut.DTYPE),)
            else:
                added = added + (tl.dot(w[3 * c + gate], elements, acc=sums[gate - FIRST], input_precision="ieee"),)
        sums = added
    return sums


@triton.jit
def _words_to_elements(words):
    """Return a segment's words, two parts [SLICES, words, COLUMNS], as fp32 elements [SLICES, SLICE_DEPTH, COLUMNS]."""
    S: tl.constexpr = words[0].shape[0]
    L: tl.constexpr = words[0].shape[1]
    N: tl.constexpr = words[0].shape[2]
    elements = tl.join(words[0], words[1]).to(tl.float32, bitcast=True)
    return tl.reshape(tl.permute(elements, (0, 1, 3, 2)), (S, L * 2, N))
