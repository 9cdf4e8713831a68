"""The ``grid`` scan: hidden units split over the whole chip, the weights on chip, the state handed over in the L2.

A program owns a few hidden units, for all three gates, and works on a few tiles of the batch at a time. Each of its
warps has a slice of the sum over all units. What a program does, for one tile:

    load my rows of W_hh                            # once: they stay in registers, or in shared memory
    send h_0 of my units to the mailbox
    for t in steps:
        load the gate inputs of step t + 1          # they are there when they are wanted
        x = wait for h_t of all units               # each warp its own slice of them, from the mailbox
        r, z, n = W_hh x                            # each warp its own slice of the sums
        r, z, n = the sums of all warps             # through shared memory, once a step
        h = gru_update(gate inputs of t, r, z, n, h)
        send h of my units; store it in out

With several tiles, a group, one is computed while the others are handed over.

The programs of a group wait for each other. They do not deadlock: each sends its part of a state before it waits for
the whole, nobody waits for room to send, and all of them are on the chip at once, as the launch is a cooperative one.
If one is missing all the same, the others give up after a while (see exchange).

Where r comes before the recurrent product (``RESET_AFTER`` is not), a step has two hand-overs: the state, of which r
and z are made, and r h, of which n is.

In a product units are rows and batch rows are columns, as in ``block``. The state that is made of it is [BATCH, UNITS].
A product is made in one of three ways:

- by the matrix unit, of operands that stay where `fragments` puts them;
- in fp32 without TF32 by the ordinary units, with W_hh in registers (see lanes);
- where registers have no room for W_hh in fp32, by ``tl.dot``, whose left operand the compiler keeps in shared memory.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from . import exchange, fragments, isa, lanes, reserve, sequences, slices
from .constants import CommonConstants, derived


@dataclass(frozen=True, eq=False, repr=False)
class Cut(CommonConstants):
    """What `grid_scan` is compiled for, beside the form of a call."""

    RESET_AFTER: bool
    UNITS: int  # hidden units of a program
    BATCH: int  # columns of a product: batch rows of a tile as the matrix unit takes them, 8 or 16. By lanes: ROWS
    ROWS: int  # batch rows of a tile that have memory and are sent: BATCH, or fewer for a batch that is smaller
    BATCH_TILES: int  # tiles of the batch that are in flight in a program
    SLICES: int  # of the sum over units, one a warp
    REGISTER_TILES: int  # of the 3 * CHUNKS tiles of W_hh, how many stay in registers
    LANES_PER_SLICE: int  # where lanes make the products, how many of them share a slice (see lanes); else 0
    PROBE: bool  # wait for one word before all are read: the hand-over "probe" (see exchange)

    @derived
    def PROGRAMS(self):
        """Programs that own all hidden units."""
        return -(-self.H.value // self.UNITS.value)

    @derived
    def PADDED_H(self):
        """Elements of a row of a tile: the units of all programs."""
        return self.PROGRAMS.value * self.UNITS.value

    @derived
    def TILE(self):
        """Elements of a tile of the state, and of a gate's inputs."""
        return self.ROWS.value * self.PADDED_H.value

    @derived
    def BY_LANES(self):
        return self.LANES_PER_SLICE.value > 0

    @derived
    def IN_FRAGMENTS(self):
        return not self.IS_IEEE.value

    @derived
    def THREADS(self):
        """How many threads have an element of the state first, or 0 where none has a copy (see isa.count_storing_threads)."""
        return isa.count_storing_threads(self.UNITS.value * self.BATCH.value, self.SLICES.value)

    @derived
    def WORD(self):
        """Elements of a word of the mailbox."""
        return exchange.elements_per_word(self.BITS.value, self.WORD_LAYOUT.value.PARTS.value)

    @derived
    def DEPTH(self):
        """Units of a slice in a chunk of the sum."""
        return exchange.words_per_slice(self.WORD_LAYOUT.value.PARTS.value) * self.WORD.value

    @derived
    def CHUNKS(self):
        """How many chunks the sum has: all slices take one at a time."""
        return -(-self.PADDED_H.value // (self.SLICES.value * self.DEPTH.value))

    @derived
    def WORD_LAYOUT(self):
        """What a thread receives of a tile of the state."""
        bits, parts = self.BITS.value, 2 if self.IS_IEEE.value else 4
        rows, warps = self.ROWS.value, self.SLICES.value
        of_tile = {
            "BITS": bits, "PARTS": parts, "WORDS_PER_ROW": self.PADDED_H.value // exchange.elements_per_word(bits, parts),
            "ROWS": rows, "PROBE": self.PROBE.value,
        }  # fmt: skip
        if self.BY_LANES.value:
            return lanes.word_layout(self, **of_tile)
        if self.IN_FRAGMENTS.value:
            return exchange.WordLayout(
                WORDS_PER_CHUNK=4 * warps, ROWS_PER_THREAD=-(-rows // 8), THREAD_ROW_STEP=8, **of_tile
            )
        width = exchange.words_per_slice(parts)
        return exchange.WordLayout(WORDS_PER_CHUNK=width * warps, PACK=-(-width * self.BATCH.value // 32), **of_tile)

    @derived
    def R_Z(self):
        """How many tensors have the inputs of r and z, where lanes make the products."""
        return lanes.count_gate_tensors(2, self.UNITS.value, self.ROWS.value, self.SLICES.value)

    @derived
    def GATES(self):
        """How many tensors have all gate inputs of a tile."""
        if not self.BY_LANES.value:
            return 3
        apart = (3,) if self.RESET_AFTER.value else (2, 1)
        return sum(lanes.count_gate_tensors(n, self.UNITS.value, self.ROWS.value, self.SLICES.value) for n in apart)


@reserve.add_shared_memory
@triton.jit(
    do_not_specialize=[
        "steps", "start", "total", "copies", "first_direction", "directions", "state", "batch", "out_t",
        "out_b", "hx_l", "hx_b",
    ],
    do_not_specialize_on_alignment=["lengths", "offsets", "resets"],
)  # fmt: skip
def grid_scan(
    gi,  # [all directions, steps, batch tiles, 3, ROWS, PROGRAMS * UNITS]: x W_ih^T and the biases, see projection
    w_hh,  # [3 * H, H]
    b_hh,  # [3 * H]; only b_hn is read, and only to reset after the product
    w_hh_back,  # of the backward direction
    b_hh_back,
    hx,  # [layers * directions, batch, H] through strides; the state before the first step
    carry_in,  # fp32 [layers * directions, batch, H]: the state an earlier launch left
    carry_out,  # fp32 [layers * directions, batch, H]: the state for a later launch
    out,  # [time, batch, directions, H] through strides, or packed; see sequences
    h_n,  # [layers * directions, batch, H]
    lengths,  # int32 [batch], see sequences
    offsets,  # int32 [time], see sequences
    resets,  # uint8 [time, batch]: not 0 where the state is forgotten before a step
    mailbox,  # int64, see exchange; a slot is [directions, groups * BATCH_TILES] tiles of PROGRAMS * UNITS by ROWS
    watch,  # int64 [2]: how long to wait, and where to say that it was too long; see launch/hang.py
    steps,  # of this launch
    start,  # the first of them
    total,  # of all launches
    copies,  # how many times over the PROGRAMS of a direction are launched
    first_direction,  # of this launch: 0 forward, 1 backward
    directions,  # of this launch
    state,  # index of the layer's first state in hx, carry and h_n
    batch,
    out_t,
    out_b,
    hx_l,
    hx_b,
    cut: tl.constexpr,  # a `Cut`
    call: tl.constexpr,  # a `constants.CallConstants`
):
    # Which direction and units are mine. The PROGRAMS of a direction come ``copies`` times, with groups of their own.
    in_launch = tl.program_id(0) // cut.PROGRAMS // copies
    direction = first_direction + in_launch
    backward = sequences.goes_backward(direction, call.REVERSE)
    w_hh = tl.where(direction != 0, w_hh_back, w_hh)
    first_unit = tl.program_id(0) % cut.PROGRAMS * cut.UNITS
    w, kept = _load_weights(w_hh, first_unit, cut)
    unit = tl.arange(0, cut.UNITS)[None, :]
    b = tl.arange(0, cut.BATCH)[:, None]
    unit_live = first_unit + unit < cut.H
    b_n = tl.zeros((cut.BATCH, cut.UNITS), tl.float32)
    if call.HAS_BIAS and cut.RESET_AFTER:
        b_hn = tl.where(direction != 0, b_hh_back, b_hh) + 2 * cut.H
        b_n += tl.load(b_hn + first_unit + unit, mask=unit_live, other=0.0).to(tl.float32)

    # Where everything lies. 64-bit offsets go into scalar addresses; what is left for a tile is small, but for rows of
    # out far apart.
    tiles = tl.cdiv(batch, cut.BATCH)
    groups = tl.cdiv(tiles, cut.BATCH_TILES)
    elements = exchange.element_pointer(mailbox, cut.DTYPE)
    slot_size = tl.cast(directions * groups, tl.int64) * (cut.BATCH_TILES * cut.TILE)
    elements += tl.cast(in_launch * groups, tl.int64) * (cut.BATCH_TILES * cut.TILE)
    row = tl.minimum(b, cut.ROWS - 1)
    in_tile = row * cut.PADDED_H + unit
    if cut.BY_LANES:
        own = lanes.element_offset(first_unit + unit, row, cut)
    else:
        own = exchange.element_offset(first_unit + unit, row, cut.ROWS, cut.WORD)
    # Rows that are not there repeat the last one, and are not sent.
    sent = b < cut.ROWS
    in_state = b * cut.H + unit
    gi_t = tl.cast(tiles, tl.int64) * (3 * cut.TILE)
    gi += tl.cast(direction, tl.int64) * steps * gi_t + first_unit
    out += direction * cut.H + first_unit
    out_s = sequences.step_stride(backward, out_t, call.LAYOUT)
    out += start.to(tl.int64) * out_s
    state += tl.cast(direction, tl.int64)
    hx += state * hx_l + first_unit
    state = state * batch * cut.H + first_unit
    last = start + steps == total
    for group in tl.range(tl.program_id(0) // cut.PROGRAMS % copies, groups, copies):
        first_tile = group * cut.BATCH_TILES
        # ``box`` is the group's part of the slot that the next state is received from. The first one gets h_0.
        box = elements + tl.cast(first_tile, tl.int64) * cut.TILE
        h = ()
        gates = ()
        length = ()
        out_rows = ()
        end = 0
        for i in tl.static_range(cut.BATCH_TILES):
            first_row = (first_tile + i) * cut.BATCH
            live = unit_live & (first_row + b < batch)
            from_carry = carry_in + state + tl.cast(first_row, tl.int64) * cut.H
            h_i = tl.load(from_carry + in_state, mask=live & (start != 0), other=0.0)
            if call.HAS_HX:
                from_hx = hx + tl.cast(first_row, tl.int64) * hx_b + b.to(tl.int64) * hx_b
                h_i += tl.load(from_hx + unit, mask=live & (start == 0), other=0.0).to(tl.float32)
            length_i = sequences.load_lengths(lengths, first_row + b, batch, total, call.LAYOUT)
            length = length + (length_i,)
            end = tl.maximum(end, sequences.longest(length_i, total, call.LAYOUT))
            if call.HAS_RESETS:
                at_first = sequences.is_reset(resets, start, length_i, first_row + b, batch, total)
                h_i = tl.where(at_first, 0.0, h_i)
            h = h + (h_i,)
            out_rows = out_rows + (sequences.row_offset(length_i, b, backward, out_t, out_b, call.LAYOUT) + unit,)
            _send(box + own, h_i, sent, i, cut)
            # The last tile stands in for tiles beyond the batch.
            tile = tl.minimum(first_tile + i, tiles - 1)
            gates = gates + _load_gates(gi + tl.cast(tile, tl.int64) * (3 * cut.TILE), in_tile, sent, cut)
        # A group stops at its own longest row.
        group_steps = steps if call.LAYOUT == "dense" else tl.minimum(steps, end - start)
        if cut.BY_LANES and call.LAYOUT != "dense":
            group_steps = isa.mark_warp_uniform(group_steps)
        ahead = gi
        for t in tl.range(0, group_steps):
            now = gates
            gates = ()
            new = ()
            forget = ()
            # The gate inputs of the next step are loaded, to be there when they are wanted.
            ahead += tl.where(t + 1 < steps, gi_t, 0)
            for i in tl.static_range(cut.BATCH_TILES):
                tile = tl.minimum(first_tile + i, tiles - 1)
                gates = gates + _load_gates(ahead + tl.cast(tile, tl.int64) * (3 * cut.TILE), in_tile, sent, cut)
                if call.HAS_RESETS:
                    row_i = (first_tile + i) * cut.BATCH + b
                    # Also where the next step is a later launch's, which forgets once more.
                    forget = forget + (sequences.is_reset(resets, start + t + 1, length[i], row_i, batch, total),)
            z = ()
            if not cut.RESET_AFTER:  # the hand-over of r h
                for i in tl.static_range(cut.BATCH_TILES):
                    x = _receive(box, i, mailbox, watch, cut)
                    r_h, z_i = _reset(w, kept, x, now[cut.GATES * i : cut.GATES * (i + 1)], h[i], cut)
                    if cut.PADDED_H != cut.H:
                        r_h = tl.where(unit_live, r_h, 0.0)  # as the state below
                    _send(box + slot_size + own, r_h, sent, i, cut)
                    if not cut.IS_IEEE:  # z is made while r h is on its way
                        (z_i,) = _products_of_slices(w, kept, x, 1, 2, cut)
                        z_i = fragments.compute_before_wait(z_i)
                    z = z + (z_i,)
                box += slot_size
            # The hand-over of the state.
            for i in tl.static_range(cut.BATCH_TILES):
                first_row = (first_tile + i) * cut.BATCH
                is_active = sequences.is_active(start + t, length[i], unit_live & (first_row + b < batch), call.LAYOUT)
                place = out_rows[i] + sequences.table_offset(
                    start + t, length[i], backward, offsets, out_t, call.LAYOUT
                )
                place += tl.cast(t, tl.int64) * out_s
                place += tl.cast(first_row, tl.int64) * (out_t if call.LAYOUT == "packed" else out_b)
                x = _receive(box, i, mailbox, watch, cut)
                z_i = () if cut.RESET_AFTER else z[i]
                h_i = _update(w, kept, x, z_i, now[cut.GATES * i : cut.GATES * (i + 1)], b_n, h[i], cut)
                if call.LAYOUT != "dense":
                    h_i = tl.where(is_active, h_i, h[i])
                if cut.PADDED_H != cut.H:
                    # Units beyond H stay zero: an infinite state would make NaN of their zero weights.
                    h_i = tl.where(unit_live, h_i, 0.0)
                next_h = h_i
                if call.HAS_RESETS:
                    next_h = tl.where(forget[i], 0.0, h_i)
                _send(box + slot_size + own, next_h, sent, i, cut)
                isa.store(out + place, h_i.to(cut.DTYPE), is_active, cut.THREADS)
                new = new + (next_h,)
            h = new
            box += slot_size

        for i in tl.static_range(cut.BATCH_TILES):
            first_row = (first_tile + i) * cut.BATCH
            live = unit_live & (first_row + b < batch)
            at = state + tl.cast(first_row, tl.int64) * cut.H
            tl.store(carry_out + at + in_state, h[i], mask=live & (last == 0))
            tl.store(h_n + at + in_state, h[i].to(cut.DTYPE), mask=live & (last != 0))


@triton.jit
def _load_weights(w_hh, first_unit, cut: tl.constexpr):
    """Return the tiles of the program's rows of W_hh, and where each thread finds those it put into shared memory."""
    w = ()
    kept = 0
    if cut.BY_LANES:
        w = lanes.load_weights(w_hh, first_unit, cut)
    elif cut.IN_FRAGMENTS:
        ROOM: tl.constexpr = fragments.weights_bytes(3 * cut.CHUNKS - cut.REGISTER_TILES, cut.UNITS, cut.SLICES)
        kept = fragments.shared_address(16 * fragments.thread(cut.SLICES), ROOM)
        for i in tl.static_range(min(cut.REGISTER_TILES, 3 * cut.CHUNKS)):
            w = w + (_load_fragments(w_hh, i, first_unit, cut),)
        for i in tl.static_range(cut.REGISTER_TILES, 3 * cut.CHUNKS):
            fragments.store_tile(kept, _load_fragments(w_hh, i, first_unit, cut), i - cut.REGISTER_TILES, cut.SLICES)
    else:
        for i in tl.static_range(3 * cut.CHUNKS):
            w = w + (_load_tile(w_hh, i % 3, first_unit, i // 3, cut),)
    return w, kept


@triton.jit
def _load_fragments(w_hh, index: tl.constexpr, first_unit, cut: tl.constexpr):
    """Return tile ``index`` of the program's rows of W_hh: r, z and n of the first chunk, then of the next one."""
    unit = first_unit + tl.arange(0, 8)[None, :, None]
    slice_ = index // 3 * cut.SLICES + tl.arange(0, cut.SLICES)[:, None, None]
    word = slice_ * 4 + tl.arange(0, 4)[None, None, :]
    return fragments.load_tile(w_hh, index % 3, unit, word, cut.UNITS, 16, cut.H, cut.PRECISION)


@triton.jit
def _load_tile(w_hh, gate: tl.constexpr, first_unit, chunk: tl.constexpr, cut: tl.constexpr):
    """Return a tile [SLICES, UNITS, DEPTH] of one gate's rows of W_hh, zero beyond H."""
    unit = first_unit + tl.arange(0, cut.UNITS)[None, :, None]
    slice_ = chunk * cut.SLICES + tl.arange(0, cut.SLICES)[:, None, None]
    k = slice_ * cut.DEPTH + tl.arange(0, cut.DEPTH)[None, None, :]
    address = w_hh + (gate * cut.H + unit) * cut.H + k
    if cut.H % cut.UNITS == 0 and (chunk + 1) * cut.SLICES * cut.DEPTH <= cut.H:
        return tl.load(address)
    else:
        return tl.load(address, mask=(unit < cut.H) & (k < cut.H), other=0.0)


@triton.jit
def _load_gates(gi, in_tile, there, cut: tl.constexpr):
    """Return the inputs of r, z and n from the tile at ``gi``. Of rows that are not ``there`` none are read."""
    if cut.BY_LANES and cut.RESET_AFTER:
        return lanes.load_gates(gi, 0, 3, cut)
    elif cut.BY_LANES:
        of_r_and_z = lanes.load_gates(gi, 0, 2, cut)
        return of_r_and_z + lanes.load_gates(gi, 2, 3, cut)
    elif cut.ROWS == cut.BATCH:
        gi += in_tile
        return tl.load(gi), tl.load(gi + cut.TILE), tl.load(gi + 2 * cut.TILE)
    else:
        gi += in_tile
        return (
            tl.load(gi, mask=there, other=0.0), tl.load(gi + cut.TILE, mask=there, other=0.0),
            tl.load(gi + 2 * cut.TILE, mask=there, other=0.0),
        )  # fmt: skip


@triton.jit
def _send(element, x, mask, tile: tl.constexpr, cut: tl.constexpr):
    """Send what this program has of a tile in flight, to its place ``element`` in the first tile."""
    exchange.send(element, x, mask, tile * cut.TILE, cut.THREADS, cut.DTYPE, cut.PRECISION)


@triton.jit
def _receive(box, tile: tl.constexpr, mailbox, watch, cut: tl.constexpr):
    """Return a tile in flight when it has come, where its products want it. ``box`` is where the first one lies.

    The mailbox begins with the launch's abort word.
    """
    if cut.BY_LANES:
        return exchange.receive(box, tile * cut.TILE, mailbox, watch, lanes.thread_word_index(cut), 0, cut.WORD_LAYOUT)
    elif cut.IN_FRAGMENTS:
        word = tl.arange(0, cut.SLICES)[:, None, None] * 4 + tl.arange(0, 4)[None, None, :]
        row = tl.minimum(tl.arange(0, 8)[None, :, None], cut.ROWS - 1)
        x = exchange.receive(box, tile * cut.TILE, mailbox, watch, word, row, cut.WORD_LAYOUT)
        if cut.WORD_LAYOUT.ROWS_PER_THREAD < cut.BATCH // 8:
            # Two eights of columns, of which only the first are there.
            repeated = ()
            for i in tl.static_range(len(x) // 4):
                repeated = repeated + x[4 * i : 4 * i + 4] + x[4 * i : 4 * i + 4]
            x = repeated
        return x
    else:
        LANES: tl.constexpr = exchange.words_per_slice(2)
        row = tl.minimum(tl.arange(0, cut.BATCH)[None, None, :], cut.ROWS - 1)
        word = tl.arange(0, cut.SLICES)[:, None, None] * LANES + tl.arange(0, LANES)[None, :, None]
        return exchange.receive(box, tile * cut.TILE, mailbox, watch, word, row, cut.WORD_LAYOUT)


@triton.jit
def _reset(w, kept, x, gates, h, cut: tl.constexpr):
    """Return r h, of the state ``x``, and what of z comes with r: where no matrix unit makes them."""
    if cut.BY_LANES:
        r, z = lanes.products(w, x, gates[: cut.R_Z], 0, 2, cut)
        return isa.reset_state(r, -0.0, h, cut.DTYPE), z
    elif cut.IS_IEEE:
        # The right operand takes many registers: it is not kept from one use to another.
        r, z = _products_of_slices(w, kept, x, 0, 2, cut)
        z = isa.compute_before_wait(z)
        (r,) = slices.sum_slices((r,), cut.SLICES, cut.UNITS, cut.BATCH, False)
        return isa.reset_state(gates[0], r, h, cut.DTYPE), z
    else:
        (r,) = _products_of_slices(w, kept, x, 0, 1, cut)
        (r,) = slices.sum_slices((r,), cut.SLICES, cut.UNITS, cut.BATCH, True)
        return isa.reset_state(gates[0], r, h, cut.DTYPE), ()


@triton.jit
def _update(w, kept, x, z, gates, b_n, h, cut: tl.constexpr):
    """Return the state after the step, of ``x``: the state before it, or r h. ``z`` is made already in that case."""
    if cut.BY_LANES and cut.RESET_AFTER:
        r, z, n, g_n = lanes.products(w, x, gates, 0, 3, cut)
        return isa.gru_update(r, z, g_n, -0.0, -0.0, n + b_n, h, cut.DTYPE)
    elif cut.BY_LANES:
        n, g_n = lanes.products(w, x, gates[cut.R_Z :], 2, 3, cut)
        return isa.next_state(z, g_n, -0.0, n, h, cut.DTYPE)
    elif cut.RESET_AFTER:
        r, z, n = _products_of_slices(w, kept, x, 0, 3, cut)
        r, z, n = slices.sum_slices((r, z, n), cut.SLICES, cut.UNITS, cut.BATCH, cut.IN_FRAGMENTS)
        return isa.gru_update(gates[0], gates[1], gates[2], r, z, n + b_n, h, cut.DTYPE)
    else:
        (n,) = _products_of_slices(w, kept, x, 2, 3, cut)
        z, n = slices.sum_slices((z, n), cut.SLICES, cut.UNITS, cut.BATCH, cut.IN_FRAGMENTS)
        return isa.next_state(gates[1], gates[2], z, n, h, cut.DTYPE)


@triton.jit
def _products_of_slices(w, kept, x, FIRST: tl.constexpr, END: tl.constexpr, cut: tl.constexpr):
    """Return of the gates ``FIRST`` to before ``END`` each slice's products by itself, for `slices.sum_slices`.

    ``x`` are the words of the state, or of r h.
    """
    sums = ()
    for _ in tl.static_range(FIRST, END):
        if cut.IN_FRAGMENTS:
            sums = sums + (fragments.zeros(cut.UNITS, cut.BATCH, cut.SLICES),)
        else:
            sums = sums + (tl.zeros((cut.SLICES, cut.UNITS, cut.BATCH), tl.float32),)
    WORDS: tl.constexpr = cut.WORD_LAYOUT.PARTS * (cut.BATCH // 8) if cut.IN_FRAGMENTS else cut.WORD_LAYOUT.PARTS
    for c in tl.static_range(len(x) // WORDS):
        words = x[WORDS * c : WORDS * (c + 1)]
        if not cut.IN_FRAGMENTS:
            value = _values(words)
        added = ()
        for gate in tl.static_range(FIRST, END):
            if cut.IN_FRAGMENTS and 3 * c + gate < len(w):
                added = added + (fragments.multiply(w[3 * c + gate], words, sums[gate - FIRST], cut.DTYPE),)
            elif cut.IN_FRAGMENTS:
                tile = fragments.load_shared_tile(kept, 3 * c + gate - len(w), cut.UNITS // 8, cut.SLICES)
                added = added + (fragments.multiply(tile, words, sums[gate - FIRST], cut.DTYPE),)
            else:
                added = added + (tl.dot(w[3 * c + gate], value, acc=sums[gate - FIRST], input_precision="ieee"),)
        sums = added
    return sums


@triton.jit
def _values(words):
    """Return words of two parts [S, lanes, N] as their fp32 elements [S, units, N]."""
    S: tl.constexpr = words[0].shape[0]
    L: tl.constexpr = words[0].shape[1]
    N: tl.constexpr = words[0].shape[2]
    elements = tl.join(words[0], words[1]).to(tl.float32, bitcast=True)
    return tl.reshape(tl.permute(elements, (0, 1, 3, 2)), (S, L * 2, N))
