"""The ``grid`` scan: hidden units split over the whole chip, W_hh on chip, the state handed over in the L2.

A program owns a few hidden units, for all three gates. It works on a group at a time, which is one or two tiles of the
batch. The algorithm of a program:

    load my rows of W_hh                                # once: they stay in registers, or in shared memory
    for group in my groups:
        for tile in group: send h_0 of my units to slot 0 of the mailbox
        for t in steps:
            load the gate inputs of step t + 1          # early, so that they have arrived when that step begins
            for tile in group:
                x = wait for h_t of all units in slot t # each warp waits for its slice only
                r, z, n = W_hh x                        # each warp sums over its slice
                r, z, n = the sums of all warps         # through shared memory
                h = gru_update(gate inputs of t, r, z, n, h)
                send h of my units to slot t + 1; store h in out

With two tiles, one is computed while the other is handed over.

**Hand-over.** The mailbox, in global memory, has a slot for the first state, and a slot for what each hand-over sends.
A slot is never reused, and the last slot is not read. The mailbox is filled with -1 before the launch, and an element
has come when it is not -1. With ``reset_after=False`` (`Cut.RESET_AFTER` is false) a step has two hand-overs, so a
state is in every second slot:

    RESET_AFTER    h_0 | h_1 | h_2 | ...
    otherwise      h_0 | r h_0 | h_1 | r h_1 | h_2 | ...

r and z are made of the state, and n is then made of r h. In both cases a hand-over receives from slot s and sends to
slot s + 1.

The PROGRAMS programs that work on one group wait for each other. They do not deadlock. Each sends its part of a slot
before it waits for that slot, and sending never blocks. All programs take groups and slots in the same order. A
cooperative launch puts all programs on the chip at once. If an element does not come within the time limit in
``watch``, the wait gives up (see exchange).

**Gates** are numbered 0 r, 1 z, 2 n. **Steps** are counted as in ``block``: backward from a sequence's own last time.

**Products.** Hidden units are rows and batch rows are columns, as in ``block``. Each warp sums over a slice, a part of
all units. Then the warps' sums are added through shared memory, to tensors [COLUMNS, UNITS] (see `slices`). So the sums
come out transposed, and the state, gate inputs and masks are [COLUMNS, UNITS], too. Exception: by lanes, gate inputs
have the shape that `_load_gate_inputs` describes. A product is made in one of three ways, and W_hh is held accordingly:

    way         when                            ``w``                                       ``w_shared``
    fragments   16 bits or TF32                 REGISTER_TILES tiles, in registers          address of the others
    lanes       fp32 ieee, LANES_PER_SLICE > 0  all elements, in registers, see `lanes`     0
    ``tl.dot``  fp32 ieee otherwise             all tiles, in the compiler's shared memory  0

- Fragments: the matrix unit multiplies operands that each thread has loaded or received itself, as in ``block``.
- Lanes: a thread multiplies its own elements of W_hh with the words of the state that it has received. Then lanes add
  up their sums by shuffles.

**Masks.** They are [COLUMNS, UNITS] or broadcast to it.

- ``unit_live``: the unit is below H. The last program may own units beyond H.
- ``has_row``: the column has a row in gi and in the mailbox. In products the other columns repeat some row. Their
  results are never sent or stored.
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
    """The constants of `grid_scan` that the configuration fixes.

    `CommonConstants` adds H, DTYPE, BITS, PRECISION and IS_IEEE (fp32 products without the matrix unit). The call fixes
    `CallConstants`: LAYOUT, REVERSE, HAS_BIAS, HAS_HX and HAS_RESETS.

    Sizes nest like this. A slot of the mailbox has tiles of the batch. A tile has ROWS rows of PADDED_H elements. An
    element is one unit of one row. A row is cut into SEGMENTS segments, and a segment into SLICES pieces of
    PIECE_ELEMENTS elements. Each warp takes one piece of every segment, and these pieces are its slice. A piece is cut
    into words of WORD_ELEMENTS elements. Exception: by lanes the segments of WORD_LAYOUT are used, which `lanes` cuts.

    A word (64 bits in fp32 ieee, otherwise 128) is received by one load. It has two or four parts of 32 bits.
    WORD_LAYOUT says which words of a segment a thread receives.
    """

    RESET_AFTER: bool  # whether r multiplies W_hn h + b_hn. Otherwise r multiplies h, before the product with W_hn
    UNITS: int  # hidden units of a program
    COLUMNS: int  # batch rows of a tile, as columns of a product: 8 or 16. By lanes: ROWS
    ROWS: int  # of these, the rows stored in gi and in the mailbox. Fewer than COLUMNS only if the batch has fewer
    BATCH_TILES: int  # tiles of the batch in a group
    SLICES: int  # slices of the sum over hidden units, one for each warp of a program
    REGISTER_TILES: int  # of the 3 * SEGMENTS weight tiles, the number that stays in registers
    LANES_PER_SLICE: int  # lanes of a warp that share its slice, if lanes make the products (see lanes). Otherwise 0
    PROBE: bool  # whether a thread waits for one word before it reads all: the hand-over "probe" (see exchange)

    @derived
    def PROGRAMS(self):
        """Return the number of programs that own all hidden units of a direction."""
        return -(-self.H.value // self.UNITS.value)

    @derived
    def PADDED_H(self):
        """Return the number of elements in a row of a tile, one for each unit of all programs: H or more."""
        return self.PROGRAMS.value * self.UNITS.value

    @derived
    def TILE_ELEMENTS(self):
        """Return the number of elements in a tile of a slot, which is also that of a gate's tile in gi."""
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
        """Return how many threads store a program's part of a tile, one element each, or 0 if all threads store."""
        return isa.count_storing_threads(self.UNITS.value * self.COLUMNS.value, self.SLICES.value)

    @derived
    def WORD_ELEMENTS(self):
        """Return the number of elements in a word of the mailbox."""
        return exchange.elements_per_word(self.BITS.value, self.WORD_LAYOUT.value.PARTS.value)

    @derived
    def PIECE_ELEMENTS(self):
        """Return the number of elements in a piece: the units that a slice has in one segment. Not used by lanes."""
        return exchange.words_per_piece(self.WORD_LAYOUT.value.PARTS.value) * self.WORD_ELEMENTS.value

    @derived
    def SEGMENTS(self):
        """Return the number of segments of a row. Not used by lanes. All slices sum over one segment at a time."""
        return -(-self.PADDED_H.value // (self.SLICES.value * self.PIECE_ELEMENTS.value))

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
            return lanes.make_word_layout(self, **tile_fields)
        if self.IN_FRAGMENTS.value:  # in each segment a thread has one of the 4 words of its warp, in rows i and i + 8
            return exchange.WordLayout(
                WORDS_PER_SEGMENT=4 * warps, ROWS_PER_THREAD=-(-rows // 8), THREAD_ROW_STEP=8, **tile_fields
            )
        # tl.dot: in each segment a warp has 8 words in each of COLUMNS rows, for 32 lanes. So a lane has PACK of them.
        words_per_piece = exchange.words_per_piece(parts)
        return exchange.WordLayout(
            WORDS_PER_SEGMENT=words_per_piece * warps,
            PACK=-(-words_per_piece * self.COLUMNS.value // 32),
            **tile_fields,
        )

    @derived
    def R_Z_TENSORS(self):
        """Return the number of tensors that hold the inputs of r and z of a tile. Used only by lanes."""
        return lanes.count_gate_tensors(2, self.UNITS.value, self.ROWS.value, self.SLICES.value)

    @derived
    def GATE_TENSORS(self):
        """Return the number of tensors that `_load_gate_inputs` returns for a tile."""
        if not self.BY_LANES.value:
            return 3
        loads = (3,) if self.RESET_AFTER.value else (2, 1)  # gates that are loaded together
        return sum(
            lanes.count_gate_tensors(gates, self.UNITS.value, self.ROWS.value, self.SLICES.value) for gates in loads
        )


@reserve.add_shared_memory  # to each launch: the bytes that `fragments.shared_address` asks for
@triton.jit(
    do_not_specialize=[
        "steps", "start", "total", "copies", "first_direction", "directions", "first_state", "batch", "out_t",
        "out_b", "hx_l", "hx_b",
    ],
    do_not_specialize_on_alignment=["lengths", "offsets", "resets"],
)  # fmt: skip
def grid_scan(
    gi,  # gate inputs [all directions, steps, batch tiles, 3, ROWS, PROGRAMS * UNITS], see projection. Steps are in the
    # order of the scan
    w_hh,  # [3 * H, H]
    b_hh,  # [3 * H]; only b_hn is read, and only if RESET_AFTER. gi includes the other biases
    w_hh_back,  # [3 * H, H] of direction 1, or w_hh again if there is one direction
    b_hh_back,  # [3 * H] of direction 1, or b_hh again
    hx,  # [layers * directions, batch, H] through strides: the state before the first step
    carry_in,  # fp32 [layers * directions, batch, H]: the state after the launch before this one
    carry_out,  # like carry_in, for the next launch. Another thread than the one that loads an element may store it, so
    # one tensor for both would be a race
    out,  # [time, batch, directions, H] through strides, or packed; see sequences
    h_n,  # [layers * directions, batch, H]: the state after the last step
    lengths,  # int32 [batch], see sequences
    offsets,  # int32 [time], see sequences
    resets,  # uint8 [time, batch]: not 0 where the state is set to zero before a step
    mailbox,  # int64: a header that begins with the abort word, then slots [directions, tiles of all groups,
    # TILE_ELEMENTS], see exchange
    watch,  # int64 [2]: time limit of a wait in ns; address of the word in host memory that tells of a failed wait.
    steps,  # time steps of this launch
    start,  # first step of this launch
    total,  # time steps of the input, made by all launches
    copies,  # The PROGRAMS of a direction are launched ``copies`` times. Copy c has groups c, c + copies, and so on
    first_direction,  # first direction of this launch: 0 or 1
    directions,  # directions of this launch
    first_state,  # index of the layer's first state in hx, carry and h_n: layer * directions of the layer
    batch,  # batch rows of the call
    out_t,  # elements of out from a time to the next. Packed: from a row to the next
    out_b,  # elements of out from a batch row to the next
    hx_l,  # elements of hx from a state (of a layer and direction) to the next
    hx_b,  # elements of hx from a batch row to the next
    cut: tl.constexpr,  # a `Cut`
    call: tl.constexpr,  # a `constants.CallConstants`
):
    """Make ``steps`` time steps of the launch's directions, and store the outputs and the state after the steps."""
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
    # are small. Exception: rows of out and hx may be far apart, so their offsets have 64 bits.
    #
    # Mailbox and gate inputs:
    # - ``direction_mailbox`` points to my direction's part of slot 0.
    # - ``slot_elements`` leads from a slot to the next.
    # - ``mailbox_offset`` is the offset of each of my elements in a tile of a slot.
    #   A tile has word 0 of every row, then word 1 of every row, and so on. By lanes it has, for each program, the
    #   program's UNITS units of row 0, then of row 1, and so on.
    # - ``row`` is the row of each column in tiles of gi and of slots. Columns from ROWS on get the last row, only to
    #   keep addresses in bounds.
    # - ``gi_offset`` is the offset of each of my elements in a gate's tile of gi, from ``gi``.
    batch_tiles = tl.cdiv(batch, cut.COLUMNS)
    groups = tl.cdiv(batch_tiles, cut.BATCH_TILES)
    direction_mailbox = exchange.element_pointer(mailbox, cut.DTYPE)
    slot_elements = tl.cast(directions * groups, tl.int64) * (cut.BATCH_TILES * cut.TILE_ELEMENTS)
    direction_mailbox += tl.cast(launch_direction * groups, tl.int64) * (cut.BATCH_TILES * cut.TILE_ELEMENTS)
    row = tl.minimum(column, cut.ROWS - 1)
    gi_offset = row * cut.PADDED_H + unit
    if cut.BY_LANES:
        mailbox_offset = lanes.element_offset(first_unit + unit, row, cut)
    else:
        mailbox_offset = exchange.element_offset(first_unit + unit, row, cut.ROWS, cut.WORD_ELEMENTS)
    has_row = column < cut.ROWS
    # Other tensors:
    # - ``gi`` points to my units at step ``start``, and ``gi_step`` leads from a step to the next.
    # - ``out`` has the part of the address of my units that all rows share, at step ``start``. `sequences.row_offset`
    #   and `sequences.table_offset` add the others.
    # - ``out_step`` leads from a step to the next. It is 0 in the packed layout, where `table_offset` leads to the
    #   time.
    # - ``hx`` points to my units in row 0 of the batch.
    # - ``state_offset`` is the offset of my units in row 0 of the batch, in carry and h_n.
    # - ``carry_offset`` is the offset of each of my elements in carry and h_n, from my units in a tile's first row.
    carry_offset = column * cut.H + unit
    gi_step = tl.cast(batch_tiles, tl.int64) * (3 * cut.TILE_ELEMENTS)
    gi += tl.cast(direction, tl.int64) * steps * gi_step + first_unit
    out += direction * cut.H + first_unit
    out_step = sequences.step_stride(backward, out_t, call.LAYOUT)
    out += start.to(tl.int64) * out_step
    first_state += tl.cast(direction, tl.int64)
    hx += first_state * hx_l + first_unit
    state_offset = first_state * batch * cut.H + first_unit
    is_last_launch = start + steps == total
    for group in tl.range(tl.program_id(0) // cut.PROGRAMS % copies, groups, copies):
        first_tile = group * cut.BATCH_TILES
        # ``slot`` points to the group's part of the slot to receive from: slot 0, which gets h_0 here.
        slot = direction_mailbox + tl.cast(first_tile, tl.int64) * cut.TILE_ELEMENTS
        # The tuples below have an entry for each tile of the group. Exception: ``inputs_ahead`` has GATE_TENSORS
        # entries for each tile.
        h = ()
        inputs_ahead = ()
        length = ()
        out_row_offsets = ()
        group_end = 0
        for i in tl.static_range(cut.BATCH_TILES):
            first_row = (first_tile + i) * cut.COLUMNS
            live = unit_live & (first_row + column < batch)
            from_carry = carry_in + state_offset + tl.cast(first_row, tl.int64) * cut.H
            h_i = tl.load(from_carry + carry_offset, mask=live & (start != 0), other=0.0)
            if call.HAS_HX:
                from_hx = hx + tl.cast(first_row, tl.int64) * hx_b + column.to(tl.int64) * hx_b
                h_i += tl.load(from_hx + unit, mask=live & (start == 0), other=0.0).to(tl.float32)
            length_i = sequences.load_lengths(lengths, first_row + column, batch, total, call.LAYOUT)
            length = length + (length_i,)
            group_end = tl.maximum(group_end, sequences.max_length(length_i, total, call.LAYOUT))
            if call.HAS_RESETS:
                # A reset sets a state to zero before it is sent. So a step's resets are looked up in the step before.
                # Resets of the first step are looked up here.
                forget_first = sequences.is_reset(resets, start, length_i, first_row + column, batch, total)
                h_i = tl.where(forget_first, 0.0, h_i)
            h = h + (h_i,)
            out_row_offsets = out_row_offsets + (
                sequences.row_offset(length_i, column, backward, out_t, out_b, call.LAYOUT) + unit,
            )
            _send(slot + mailbox_offset, h_i, has_row, i, cut)
            # A group's tiles beyond the batch read the gate inputs of the batch's last tile.
            tile = tl.minimum(first_tile + i, batch_tiles - 1)
            inputs_ahead = inputs_ahead + _load_gate_inputs(
                gi + tl.cast(tile, tl.int64) * (3 * cut.TILE_ELEMENTS), gi_offset, has_row, cut
            )
        # A group stops at the end of its longest sequence.
        group_steps = steps if call.LAYOUT == "dense" else tl.minimum(steps, group_end - start)
        if cut.BY_LANES and call.LAYOUT != "dense":
            # Lanes exchange values in the loop, so the assembler must know that all lanes make equally many steps.
            group_steps = isa.mark_warp_uniform(group_steps)
        next_gi = gi
        for t in tl.range(0, group_steps):
            inputs_now = inputs_ahead
            inputs_ahead = ()
            h_after = ()
            forget_next = ()
            # Load the gate inputs of the next step, or those of the last step again.
            next_gi += tl.where(t + 1 < steps, gi_step, 0)
            for i in tl.static_range(cut.BATCH_TILES):
                tile = tl.minimum(first_tile + i, batch_tiles - 1)
                inputs_ahead = inputs_ahead + _load_gate_inputs(
                    next_gi + tl.cast(tile, tl.int64) * (3 * cut.TILE_ELEMENTS), gi_offset, has_row, cut
                )
                if call.HAS_RESETS:
                    tile_row = (first_tile + i) * cut.COLUMNS + column
                    # If the next step is the next launch's, that launch resets the state again, which changes nothing.
                    # After a sequence's last step `is_reset` is false, so h_n is not reset.
                    forget_next = forget_next + (
                        sequences.is_reset(resets, start + t + 1, length[i], tile_row, batch, total),
                    )
            # ---- One hand-over, or two with reset_after=False. Each receives from ``slot`` and sends to the next slot,
            # for each tile. Then ``slot`` moves on to that slot.
            z = ()
            if not cut.RESET_AFTER:  # receive h_t, send r h
                for i in tl.static_range(cut.BATCH_TILES):
                    x = _receive(slot, i, mailbox, watch, cut)
                    r_h, z_i = _make_r_h_and_z(
                        w, w_shared, x, inputs_now[cut.GATE_TENSORS * i : cut.GATE_TENSORS * (i + 1)], h[i], cut
                    )
                    if cut.PADDED_H != cut.H:
                        r_h = tl.where(unit_live, r_h, 0.0)  # units beyond H, see h_i below
                    _send(slot + slot_elements + mailbox_offset, r_h, has_row, i, cut)
                    # Make z's products while r h is on its way. In fp32 ieee `_make_r_h_and_z` has made them.
                    if not cut.IS_IEEE:
                        (z_i,) = _products_of_slices(w, w_shared, x, FIRST=1, END=2, cut=cut)
                        z_i = fragments.compute_sums_before_wait(z_i)
                    z = z + (z_i,)
                slot += slot_elements
            # Receive h_t, or r h with reset_after=False, and send h_t+1. Of one tile, ``h_i`` is the state after this
            # step, which out gets. ``sent_h`` is the state as the next step begins, which other programs get.
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
                    w, w_shared, x, z_i, inputs_now[cut.GATE_TENSORS * i : cut.GATE_TENSORS * (i + 1)], b_n, h[i], cut
                )
                if call.LAYOUT != "dense":
                    h_i = tl.where(is_active, h_i, h[i])
                if cut.PADDED_H != cut.H:
                    # Units beyond H stay zero. Otherwise one can become NaN (an infinite state times its zero
                    # weights), and the next step spreads NaN to all units.
                    h_i = tl.where(unit_live, h_i, 0.0)
                sent_h = h_i
                if call.HAS_RESETS:
                    sent_h = tl.where(forget_next[i], 0.0, h_i)
                _send(slot + slot_elements + mailbox_offset, sent_h, has_row, i, cut)
                isa.store(out + out_offset, h_i.to(cut.DTYPE), is_active, cut.STORING_THREADS)
                h_after = h_after + (sent_h,)
            h = h_after
            slot += slot_elements

        # ---- The last launch stores the state in h_n. The others store it in carry_out for the next launch.
        for i in tl.static_range(cut.BATCH_TILES):
            first_row = (first_tile + i) * cut.COLUMNS
            live = unit_live & (first_row + column < batch)
            tile_offset = state_offset + tl.cast(first_row, tl.int64) * cut.H
            tl.store(carry_out + tile_offset + carry_offset, h[i], mask=live & (is_last_launch == 0))
            tl.store(h_n + tile_offset + carry_offset, h[i].to(cut.DTYPE), mask=live & (is_last_launch != 0))


@triton.jit
def _load_weights(w_hh, first_unit, cut: tl.constexpr):
    """Return ``w`` and ``w_shared``, the program's rows of W_hh, as the table at the top says.

    A weight tile is the rows of one gate in the columns of one segment. The weight tile of gate g and segment c has the
    index 3 * c + g. With fragments, ``w`` has the tiles with indices below REGISTER_TILES, each a tuple of int32 parts
    of words. The other tiles are in shared memory, at each thread's address ``w_shared``. For ``tl.dot``, ``w`` has
    3 * SEGMENTS tensors [SLICES, UNITS, PIECE_ELEMENTS].
    """
    w = ()
    w_shared = 0
    if cut.BY_LANES:
        w = lanes.load_weights(w_hh, first_unit, cut)
    elif cut.IN_FRAGMENTS:
        BYTES: tl.constexpr = fragments.weights_bytes(3 * cut.SEGMENTS - cut.REGISTER_TILES, cut.UNITS, cut.SLICES)
        w_shared = fragments.shared_address(16 * fragments.thread_index(cut.SLICES), BYTES)
        for i in tl.static_range(min(cut.REGISTER_TILES, 3 * cut.SEGMENTS)):
            w = w + (_load_fragment_tile(w_hh, i, first_unit, cut),)
        for i in tl.static_range(cut.REGISTER_TILES, 3 * cut.SEGMENTS):
            tile = _load_fragment_tile(w_hh, i, first_unit, cut)
            fragments.store_tile(w_shared, tile, i - cut.REGISTER_TILES, cut.SLICES)
    else:
        for i in tl.static_range(3 * cut.SEGMENTS):
            w = w + (_load_tile(w_hh, i % 3, first_unit, i // 3, cut),)
    return w, w_shared


@triton.jit
def _load_fragment_tile(w_hh, index: tl.constexpr, first_unit, cut: tl.constexpr):
    """Return the weight tile with index ``index``, a tuple of int32 parts for `fragments.multiply`."""
    unit = first_unit + tl.arange(0, 8)[None, :, None]
    piece = index // 3 * cut.SLICES + tl.arange(0, cut.SLICES)[:, None, None]  # of all pieces of a row
    word = piece * 4 + tl.arange(0, 4)[None, None, :]
    return fragments.load_tile(
        w_hh, index % 3, unit, word, ROWS=cut.UNITS, ROW_STEP=16, H=cut.H, PRECISION=cut.PRECISION
    )


@triton.jit
def _load_tile(w_hh, gate: tl.constexpr, first_unit, segment: tl.constexpr, cut: tl.constexpr):
    """Return a weight tile for ``tl.dot``, [SLICES, UNITS, PIECE_ELEMENTS]: a gate's rows in a segment, 0 beyond H."""
    unit = first_unit + tl.arange(0, cut.UNITS)[None, :, None]
    piece = segment * cut.SLICES + tl.arange(0, cut.SLICES)[:, None, None]  # of all pieces of a row
    k = piece * cut.PIECE_ELEMENTS + tl.arange(0, cut.PIECE_ELEMENTS)[None, None, :]
    pointers = w_hh + (gate * cut.H + unit) * cut.H + k
    if cut.H % cut.UNITS == 0 and (segment + 1) * cut.SLICES * cut.PIECE_ELEMENTS <= cut.H:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=(unit < cut.H) & (k < cut.H), other=0.0)


@triton.jit
def _load_gate_inputs(gi, gi_offset, has_row, cut: tl.constexpr):
    """Return the inputs of r, z and n of my units from the tile at ``gi``, a tuple of GATE_TENSORS tensors.

    Each tensor is [COLUMNS, UNITS], and columns that are not ``has_row`` are zero.

    By lanes each tensor is [SLICES, LANES_PER_SLICE, 32 // LANES_PER_SLICE], one value for each thread. A thread has
    the inputs of the sums that it keeps after the lanes have exchanged sums (see `lanes`). With ``reset_after=False``
    the first R_Z_TENSORS tensors are r's and z's.
    """
    if cut.BY_LANES and cut.RESET_AFTER:
        return lanes.load_gate_inputs(gi, FIRST=0, END=3, cut=cut)
    elif cut.BY_LANES:
        r_z_gates = lanes.load_gate_inputs(gi, FIRST=0, END=2, cut=cut)
        return r_z_gates + lanes.load_gate_inputs(gi, FIRST=2, END=3, cut=cut)
    elif cut.ROWS == cut.COLUMNS:
        gi += gi_offset
        return tl.load(gi), tl.load(gi + cut.TILE_ELEMENTS), tl.load(gi + 2 * cut.TILE_ELEMENTS)
    else:
        gi += gi_offset
        return (
            tl.load(gi, mask=has_row, other=0.0), tl.load(gi + cut.TILE_ELEMENTS, mask=has_row, other=0.0),
            tl.load(gi + 2 * cut.TILE_ELEMENTS, mask=has_row, other=0.0),
        )  # fmt: skip


@triton.jit
def _send(pointers, x, mask, tile: tl.constexpr, cut: tl.constexpr):
    """Send ``x``, my units of tile ``tile``, where ``mask``. ``pointers`` are my elements in the group's first tile."""
    exchange.send(pointers, x, mask, tile * cut.TILE_ELEMENTS, cut.STORING_THREADS, cut.DTYPE, cut.PRECISION)


@triton.jit
def _receive(slot, tile: tl.constexpr, mailbox, watch, cut: tl.constexpr):
    """Wait for tile ``tile`` of the group, and return it as the operand of products. ``slot`` points to tile 0.

    The result is a tuple of int32 parts of words. Its entries are ordered, outermost first:

    - fragments: by segment, group of eight columns and part. Each tensor is [SLICES, 8, 4].
    - lanes: by segment of WORD_LAYOUT, row and part. Each tensor is [SLICES, LANES_PER_SLICE, 32 // LANES_PER_SLICE].
    - ``tl.dot``: by segment and part. Each tensor is [SLICES, words, COLUMNS].

    The abort word of the launch is the first word of the mailbox.
    """
    if cut.BY_LANES:
        return exchange.receive(
            slot, tile * cut.TILE_ELEMENTS, mailbox, watch, lanes.thread_word_index(cut), row=0, layout=cut.WORD_LAYOUT
        )
    elif cut.IN_FRAGMENTS:
        word = tl.arange(0, cut.SLICES)[:, None, None] * 4 + tl.arange(0, 4)[None, None, :]
        row = tl.minimum(tl.arange(0, 8)[None, :, None], cut.ROWS - 1)
        x = exchange.receive(slot, tile * cut.TILE_ELEMENTS, mailbox, watch, word, row, cut.WORD_LAYOUT)
        if cut.WORD_LAYOUT.ROWS_PER_THREAD < cut.COLUMNS // 8:
            # There are 16 columns but at most eight rows, so a thread has received one row. The second group of eight
            # columns repeats the first group.
            repeated = ()
            for i in tl.static_range(len(x) // 4):
                repeated = repeated + x[4 * i : 4 * i + 4] + x[4 * i : 4 * i + 4]
            x = repeated
        return x
    else:
        PIECE_WORDS: tl.constexpr = exchange.words_per_piece(cut.WORD_LAYOUT.PARTS)
        row = tl.minimum(tl.arange(0, cut.COLUMNS)[None, None, :], cut.ROWS - 1)
        word = tl.arange(0, cut.SLICES)[:, None, None] * PIECE_WORDS + tl.arange(0, PIECE_WORDS)[None, :, None]
        return exchange.receive(slot, tile * cut.TILE_ELEMENTS, mailbox, watch, word, row, cut.WORD_LAYOUT)


@triton.jit
def _make_r_h_and_z(w, w_shared, x, gate_inputs, h, cut: tl.constexpr):
    """Return r h, from the state ``x`` before the step, and what this call computes of z:

    - fragments: (). The caller makes z's sums after it has sent r h.
    - lanes: z before its sigmoid, [ROWS, UNITS], gate inputs included.
    - ``tl.dot``: z's sums of each slice, [SLICES, UNITS, COLUMNS].

    ``-0.0`` in place of sums stands for "already included". It is the neutral element of +: x + -0.0 is x for any x,
    so the compiler drops the addition. It may not drop x + 0.0, because -0.0 + 0.0 is 0.0.
    """
    if cut.BY_LANES:
        r_in, z_in = lanes.make_products(w, x, gate_inputs[: cut.R_Z_TENSORS], FIRST=0, END=2, cut=cut)
        return isa.make_r_h(r_in, -0.0, h, cut.DTYPE), z_in
    elif cut.IS_IEEE:
        # Make z's products together with r's. The right operand takes many registers, and is not kept for later.
        # Without `isa.compute_before_wait` LLVM sinks z's products below the wait for r h: 178 spills at H = 600
        # (perf/NOTES.md).
        slices_r, slices_z = _products_of_slices(w, w_shared, x, FIRST=0, END=2, cut=cut)
        slices_z = isa.compute_before_wait(slices_z)
        (a_r,) = slices.sum_slices((slices_r,), cut.SLICES, cut.UNITS, cut.COLUMNS, IN_FRAGMENTS=False)
        return isa.make_r_h(gate_inputs[0], a_r, h, cut.DTYPE), slices_z
    else:
        (slices_r,) = _products_of_slices(w, w_shared, x, FIRST=0, END=1, cut=cut)
        (a_r,) = slices.sum_slices((slices_r,), cut.SLICES, cut.UNITS, cut.COLUMNS, IN_FRAGMENTS=True)
        return isa.make_r_h(gate_inputs[0], a_r, h, cut.DTYPE), ()


@triton.jit
def _make_next_state(w, w_shared, x, made_z, gate_inputs, b_n, h, cut: tl.constexpr):
    """Return the state after the step, [COLUMNS, UNITS].

    With RESET_AFTER, ``x`` is the state before the step, and ``made_z`` is (). Otherwise ``x`` is r h, and ``made_z``
    is z before its sigmoid (lanes) or z's sums of each slice. For ``-0.0`` see `_make_r_h_and_z`.
    """
    # In the code, ``a_r`` has the sums of r, and ``r_in`` has these sums with r's gate inputs added, as lanes add them.
    # n's inputs are separate, because r multiplies n's product only. With reset_after=False they are separate only to
    # keep the same form.
    if cut.BY_LANES and cut.RESET_AFTER:
        r_in, z_in, a_n, g_n = lanes.make_products(w, x, gate_inputs, FIRST=0, END=3, cut=cut)
        return isa.gru_update(r_in, z_in, g_n, -0.0, -0.0, a_n + b_n, h, cut.DTYPE)
    elif cut.BY_LANES:
        a_n, g_n = lanes.make_products(w, x, gate_inputs[cut.R_Z_TENSORS :], FIRST=2, END=3, cut=cut)
        return isa.next_state(made_z, g_n, -0.0, a_n, h, cut.DTYPE)
    elif cut.RESET_AFTER:
        of_slices = _products_of_slices(w, w_shared, x, FIRST=0, END=3, cut=cut)
        a_r, a_z, a_n = slices.sum_slices(of_slices, cut.SLICES, cut.UNITS, cut.COLUMNS, IN_FRAGMENTS=cut.IN_FRAGMENTS)
        return isa.gru_update(gate_inputs[0], gate_inputs[1], gate_inputs[2], a_r, a_z, a_n + b_n, h, cut.DTYPE)
    else:
        (slices_n,) = _products_of_slices(w, w_shared, x, FIRST=2, END=3, cut=cut)
        a_z, a_n = slices.sum_slices(
            (made_z, slices_n), cut.SLICES, cut.UNITS, cut.COLUMNS, IN_FRAGMENTS=cut.IN_FRAGMENTS
        )
        return isa.next_state(gate_inputs[1], gate_inputs[2], a_z, a_n, h, cut.DTYPE)


@triton.jit
def _products_of_slices(w, w_shared, x, FIRST: tl.constexpr, END: tl.constexpr, cut: tl.constexpr):
    """Return each slice's products of W_hh and ``x`` for the gates ``FIRST`` to ``END`` - 1, for `slices.sum_slices`.

    ``x`` is a tuple of `_receive`: the state or r h. The result has an entry for each gate. With fragments the entry is
    a tuple of sums in the order of `fragments.multiply`, otherwise a tensor [SLICES, UNITS, COLUMNS].
    """
    sums = ()
    for _ in tl.static_range(FIRST, END):
        if cut.IN_FRAGMENTS:
            sums = sums + (fragments.make_zero_sums(cut.UNITS, cut.COLUMNS, cut.SLICES),)
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
    """Return the words of a segment as fp32 elements [SLICES, PIECE_ELEMENTS, COLUMNS].

    ``words`` has two parts, each [SLICES, words of a piece, COLUMNS].
    """
    SLICES: tl.constexpr = words[0].shape[0]
    WORDS: tl.constexpr = words[0].shape[1]
    COLUMNS: tl.constexpr = words[0].shape[2]
    elements = tl.join(words[0], words[1]).to(tl.float32, bitcast=True)
    return tl.reshape(tl.permute(elements, (0, 1, 3, 2)), (SLICES, WORDS * 2, COLUMNS))
