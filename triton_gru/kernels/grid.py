"""The ``grid`` scan: hidden units split over the whole chip, the weights on chip, the state handed over in the L2.

A program owns a few hidden units, for all three gates, and works on a few tiles of the batch at a time. Every step
it needs the whole state of a tile, which the programs of the other units hand it through a mailbox (see exchange);
so all programs of a launch have to be on the chip at once, which a cooperative launch guarantees.

Units are rows and batch rows are columns, as in ``block``. Each warp has a slice of the sum over all units: it
waits for its own slice of the state alone and reads it straight into the layout of the matrix unit's right operand;
its slice of ``W_hh`` stays in registers as the left operand, or in shared memory. The slices' sums meet in shared
memory once a step.

Where r comes before the recurrent product (``RESET_AFTER`` is not), there are two such hand-overs in a step: the state,
of which r and z are made, and r h, of which n is.
"""

import triton
import triton.language as tl

from . import exchange, fragments, isa, lanes, reserve, sequences, slices, turns


@turns.in_turns
@reserve.own_memory
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
    mailbox,  # int64, see exchange; a slot is [directions, groups * TILES] tiles of PROGRAMS * UNITS by ROWS
    watch,  # int64 [2], see exchange
    steps,  # of this launch
    start,  # the first of them
    total,  # of all launches
    copies,  # how many times over the PROGRAMS of a direction are launched
    first_direction,  # of this launch: 0 forward, 1 backward
    directions,  # of this launch
    state,  # the layer's first in hx, carry and h_n
    batch,
    out_t,
    out_b,
    hx_l,
    hx_b,
    H: tl.constexpr,
    UNITS: tl.constexpr,  # hidden units of a program
    BATCH: tl.constexpr,  # batch rows of a tile, as the matrix unit takes them; of products by lanes ROWS
    ROWS: tl.constexpr,  # of them, how many there are: all, or no fewer than the batch has
    TILES: tl.constexpr,  # tiles of the batch that are in flight in a program
    SLICES: tl.constexpr,  # of the sum over units, one a warp
    REGISTER_TILES: tl.constexpr,  # of the 3 * CHUNKS tiles of W_hh, how many stay in registers
    ALONG: tl.constexpr,  # where lanes make the products, how many of them share a slice (see lanes); else 0
    HANDOVER: tl.constexpr,
    LAYOUT: tl.constexpr,
    REVERSE: tl.constexpr,
    RESET_AFTER: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_HX: tl.constexpr,
    HAS_RESETS: tl.constexpr,
    ISA: tl.constexpr,
):
    DTYPE: tl.constexpr = out.dtype.element_ty
    PROGRAMS: tl.constexpr = (H + UNITS - 1) // UNITS
    ROW: tl.constexpr = PROGRAMS * UNITS
    # Of ordinary fp32 products the right operand takes many registers: it is not kept from one use to another.
    Z_WITH_R: tl.constexpr = DTYPE == tl.float32 and PRECISION == "ieee"
    PARTS: tl.constexpr = 2 if Z_WITH_R else 4  # of a word of the mailbox, see exchange
    WORD: tl.constexpr = exchange.word_elements(DTYPE, PARTS)
    DEPTH: tl.constexpr = exchange.word_lanes(PARTS) * WORD  # of a slice of a chunk
    THREADS: tl.constexpr = isa.first_holders(UNITS * BATCH, SLICES)
    CHUNKS: tl.constexpr = (ROW + SLICES * DEPTH - 1) // (SLICES * DEPTH)
    BY_LANES: tl.constexpr = ALONG > 0
    # How the matrix unit gets its operands. The interpreter has none.
    IN_FRAGMENTS: tl.constexpr = ISA == "ptx" and not Z_WITH_R
    # Tensors of a tile's gate inputs: three, or what lanes take, to reset before those of r and z first.
    R_Z_N: tl.constexpr = lanes.words_of_gates(3, UNITS, ROWS, SLICES) if BY_LANES else 3
    R_Z: tl.constexpr = lanes.words_of_gates(2, UNITS, ROWS, SLICES)
    R_Z_AND_N: tl.constexpr = R_Z + lanes.words_of_gates(1, UNITS, ROWS, SLICES)

    in_launch = tl.program_id(0) // PROGRAMS // copies
    direction = first_direction + in_launch
    backward = sequences.goes_backward(direction, REVERSE)
    w_hh = tl.where(direction != 0, w_hh_back, w_hh)
    first_unit = tl.program_id(0) % PROGRAMS * UNITS
    w = ()
    kept = 0
    if BY_LANES:
        w = lanes.load_weights(w_hh, first_unit, H, UNITS, ROW, SLICES, ALONG, ISA)
    elif IN_FRAGMENTS:
        ROOM: tl.constexpr = fragments.room(3 * CHUNKS - REGISTER_TILES, UNITS, SLICES)
        kept = fragments.place(16 * fragments.thread(SLICES), ROOM)
        for i in tl.static_range(min(REGISTER_TILES, 3 * CHUNKS)):
            w = w + (_load_fragments(w_hh, i, first_unit, H, UNITS, SLICES, PRECISION, ISA),)
        for i in tl.static_range(REGISTER_TILES, 3 * CHUNKS):
            weights = _load_fragments(w_hh, i, first_unit, H, UNITS, SLICES, PRECISION, ISA)
            fragments.keep(kept, weights, i - REGISTER_TILES, SLICES)
    else:
        for i in tl.static_range(3 * CHUNKS):
            weights = _load_tile(w_hh, i % 3, first_unit, i // 3, H, UNITS, SLICES, DEPTH, PARTS, DTYPE)
            w = w + (isa.left_operand(weights, BATCH, i < REGISTER_TILES, PRECISION, ISA),)
    unit = tl.arange(0, UNITS)[None, :]
    b = tl.arange(0, BATCH)[:, None]
    unit_live = first_unit + unit < H
    b_n = tl.zeros((BATCH, UNITS), tl.float32)
    if HAS_BIAS and RESET_AFTER:
        b_hn = tl.where(direction != 0, b_hh_back, b_hh) + 2 * H
        b_n += tl.load(b_hn + first_unit + unit, mask=unit_live, other=0.0).to(tl.float32)

    tiles = tl.cdiv(batch, BATCH)
    groups = tl.cdiv(tiles, TILES)
    elements = exchange.elements_of(mailbox, DTYPE)
    # 64-bit offsets go into scalar addresses; what is left for a tile is small, but for rows of out far apart.
    TILE: tl.constexpr = ROWS * ROW
    slot_size = tl.cast(directions * groups, tl.int64) * (TILES * TILE)
    elements += tl.cast(in_launch * groups, tl.int64) * (TILES * TILE)
    row = tl.minimum(b, ROWS - 1)
    in_tile = row * ROW + unit
    if BY_LANES:
        own = lanes.place(first_unit + unit, row, UNITS, ROWS)
    else:
        own = exchange.place(first_unit + unit, row, ROWS, WORD)
    # Rows that are not there repeat the last one, and are not sent.
    sent = b < ROWS
    in_state = b * H + unit
    gi_t = tl.cast(tiles, tl.int64) * (3 * TILE)
    gi += tl.cast(direction, tl.int64) * steps * gi_t + first_unit
    out += direction * H + first_unit
    out_s = sequences.stride(backward, out_t, LAYOUT)
    out += start.to(tl.int64) * out_s
    state += tl.cast(direction, tl.int64)
    hx += state * hx_l + first_unit
    state = state * batch * H + first_unit
    last = start + steps == total
    for group in tl.range(tl.program_id(0) // PROGRAMS % copies, groups, copies):
        first_tile = group * TILES
        box = elements + tl.cast(first_tile, tl.int64) * TILE
        h = ()
        gates = ()
        length = ()
        out_rows = ()
        end = 0
        for i in tl.static_range(TILES):
            first_row = (first_tile + i) * BATCH
            live = unit_live & (first_row + b < batch)
            from_carry = carry_in + state + tl.cast(first_row, tl.int64) * H
            h_i = tl.load(from_carry + in_state, mask=live & (start != 0), other=0.0)
            if HAS_HX:
                from_hx = hx + tl.cast(first_row, tl.int64) * hx_b + b.to(tl.int64) * hx_b
                h_i += tl.load(from_hx + unit, mask=live & (start == 0), other=0.0).to(tl.float32)
            length_i = sequences.length(lengths, first_row + b, batch, total, LAYOUT, ISA)
            length = length + (length_i,)
            end = tl.maximum(end, sequences.longest(length_i, total, LAYOUT))
            if HAS_RESETS:
                at_first = sequences.restarts(resets, start, length_i, first_row + b, batch, total, LAYOUT, ISA)
                h_i = tl.where(at_first, 0.0, h_i)
            h = h + (h_i,)
            out_rows = out_rows + (sequences.row_place(length_i, b, backward, out_t, out_b, LAYOUT) + unit,)
            exchange.send(box + own, h_i, sent, i * TILE, THREADS, DTYPE, PRECISION, ISA)
            # The last tile stands in for tiles beyond the batch.
            tile = tl.minimum(first_tile + i, tiles - 1)
            gates = gates + _load_gates(
                gi + tl.cast(tile, tl.int64) * (3 * TILE), in_tile, sent, UNITS, ROW, ROWS, BATCH, SLICES, ALONG,
                RESET_AFTER, ISA,
            )  # fmt: skip
        # A group stops at its own longest row.
        group_steps = steps if LAYOUT == "dense" else tl.minimum(steps, end - start)
        if BY_LANES and LAYOUT != "dense":
            group_steps = isa.of_warp(group_steps, ISA)
        ahead = gi
        for t in tl.range(0, group_steps):
            now = gates
            gates = ()
            new = ()
            ahead += tl.where(t + 1 < steps, gi_t, 0)
            forget = ()
            for i in tl.static_range(TILES):
                tile = tl.minimum(first_tile + i, tiles - 1)
                gates = gates + _load_gates(
                    ahead + tl.cast(tile, tl.int64) * (3 * TILE), in_tile, sent, UNITS, ROW, ROWS, BATCH, SLICES, ALONG,
                    RESET_AFTER, ISA,
                )  # fmt: skip
                if HAS_RESETS:
                    row_i = (first_tile + i) * BATCH + b
                    # Before the first step of a later launch, too, which does so again.
                    forget = forget + (
                        sequences.restarts(resets, start + t + 1, length[i], row_i, batch, total, LAYOUT, ISA),
                    )
            z_of_slices = ()
            if not RESET_AFTER:
                for i in tl.static_range(TILES):
                    x = _receive(
                        box, i * TILE, mailbox, watch, PARTS, ROW, UNITS, SLICES, ROWS, BATCH, ALONG, DTYPE, HANDOVER,
                        ISA,
                    )  # fmt: skip
                    if BY_LANES:
                        g = now[R_Z_AND_N * i : R_Z_AND_N * i + R_Z]
                        r, z = lanes.products(w, x, g, 0, 2, UNITS, ROWS, SLICES, ALONG, ISA)
                        r_h = isa.reset_state(r, -0.0, h[i], DTYPE, ISA)
                    else:
                        if Z_WITH_R:
                            r, z = _products_of_slices(w, kept, x, PARTS, 0, 2, UNITS, BATCH, DTYPE, PRECISION, ISA)
                            z = isa.by_now(z, ISA)
                        else:
                            (r,) = _products_of_slices(w, kept, x, PARTS, 0, 1, UNITS, BATCH, DTYPE, PRECISION, ISA)
                        (r,) = slices.sums((r,), SLICES, UNITS, BATCH, IN_FRAGMENTS)
                        r_h = isa.reset_state(now[3 * i], r, h[i], DTYPE, ISA)
                    if ROW != H:
                        r_h = tl.where(unit_live, r_h, 0.0)  # as the state below
                    exchange.send(box + slot_size + own, r_h, sent, i * TILE, THREADS, DTYPE, PRECISION, ISA)
                    if not Z_WITH_R:  # but while r h is on its way
                        (z,) = _products_of_slices(w, kept, x, PARTS, 1, 2, UNITS, BATCH, DTYPE, PRECISION, ISA)
                        z = fragments.by_now(z, ISA) if IN_FRAGMENTS else isa.by_now(z, ISA)
                    z_of_slices = z_of_slices + (z,)
                box += slot_size
            for i in tl.static_range(TILES):
                first_row = (first_tile + i) * BATCH
                going_on = sequences.going_on(start + t, length[i], unit_live & (first_row + b < batch), LAYOUT)
                place = out_rows[i] + sequences.looked_up(
                    start + t, length[i], backward, offsets, out_t, LAYOUT, ISA
                )  # fmt: skip
                place += tl.cast(t, tl.int64) * out_s
                place += tl.cast(first_row, tl.int64) * (out_t if LAYOUT == "packed" else out_b)
                x = _receive(
                    box, i * TILE, mailbox, watch, PARTS, ROW, UNITS, SLICES, ROWS, BATCH, ALONG, DTYPE, HANDOVER, ISA
                )  # fmt: skip
                if BY_LANES and RESET_AFTER:
                    g = now[R_Z_N * i : R_Z_N * (i + 1)]
                    r, z, n, g_n = lanes.products(w, x, g, 0, 3, UNITS, ROWS, SLICES, ALONG, ISA)
                    h_i = isa.gru_update(r, z, g_n, -0.0, -0.0, n + b_n, h[i], DTYPE, ISA)
                elif BY_LANES:
                    g = now[R_Z_AND_N * i + R_Z : R_Z_AND_N * (i + 1)]
                    n, g_n = lanes.products(w, x, g, 2, 3, UNITS, ROWS, SLICES, ALONG, ISA)
                    h_i = isa.next_state(z_of_slices[i], g_n, -0.0, n, h[i], DTYPE, ISA)
                elif RESET_AFTER:
                    r, z, n = _products_of_slices(w, kept, x, PARTS, 0, 3, UNITS, BATCH, DTYPE, PRECISION, ISA)
                    r, z, n = slices.sums((r, z, n), SLICES, UNITS, BATCH, IN_FRAGMENTS)
                    h_i = isa.gru_update(now[3 * i], now[3 * i + 1], now[3 * i + 2], r, z, n + b_n, h[i], DTYPE, ISA)
                else:
                    (n,) = _products_of_slices(w, kept, x, PARTS, 2, 3, UNITS, BATCH, DTYPE, PRECISION, ISA)
                    z, n = slices.sums((z_of_slices[i], n), SLICES, UNITS, BATCH, IN_FRAGMENTS)
                    h_i = isa.next_state(now[3 * i + 1], now[3 * i + 2], z, n, h[i], DTYPE, ISA)
                if LAYOUT != "dense":
                    h_i = tl.where(going_on, h_i, h[i])
                if ROW != H:
                    # Units beyond H stay zero: an infinite state would make NaN of their zero weights.
                    h_i = tl.where(unit_live, h_i, 0.0)
                next_h = h_i
                if HAS_RESETS:
                    next_h = tl.where(forget[i], 0.0, h_i)
                exchange.send(box + slot_size + own, next_h, sent, i * TILE, THREADS, DTYPE, PRECISION, ISA)
                isa.store(out + place, isa.cast(h_i, DTYPE, ISA), going_on, ISA, THREADS)
                new = new + (next_h,)
            h = new
            box += slot_size

        for i in tl.static_range(TILES):
            first_row = (first_tile + i) * BATCH
            live = unit_live & (first_row + b < batch)
            at = state + tl.cast(first_row, tl.int64) * H
            tl.store(carry_out + at + in_state, h[i], mask=live & (last == 0))
            tl.store(h_n + at + in_state, isa.cast(h[i], DTYPE, ISA), mask=live & (last != 0))


@triton.jit
def _load_fragments(
    w_hh, index: tl.constexpr, first_unit, H: tl.constexpr, UNITS: tl.constexpr, SLICES: tl.constexpr,
    PRECISION: tl.constexpr, ISA: tl.constexpr,
):  # fmt: skip
    """Return a tile of a program's rows of W_hh: those of a gate, of a chunk after all gates of the one before."""
    unit = first_unit + tl.arange(0, 8)[None, :, None]
    word = (index // 3 * SLICES + tl.arange(0, SLICES)[:, None, None]) * 4 + tl.arange(0, 4)[None, None, :]
    return fragments.load_tile(w_hh, index % 3, unit, word, UNITS, 16, H, PRECISION, ISA)


@triton.jit
def _load_tile(
    w_hh,
    gate: tl.constexpr,
    first_unit,
    chunk: tl.constexpr,
    H: tl.constexpr,
    UNITS: tl.constexpr,
    SLICES: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Tile [SLICES, UNITS, DEPTH] of one gate's rows of W_hh, columns in the order of `exchange.values`; else zero."""
    unit = first_unit + tl.arange(0, UNITS)[None, :, None]
    k = (chunk * SLICES + tl.arange(0, SLICES)[:, None, None]) * DEPTH + tl.arange(0, DEPTH)[None, None, :]
    address = w_hh + (gate * H + unit) * H + k
    if H % UNITS == 0 and (chunk + 1) * SLICES * DEPTH <= H:
        tile = tl.load(address)
    else:
        tile = tl.load(address, mask=(unit < H) & (k < H), other=0.0)
    return tl.permute(exchange.in_order(tl.permute(tile, (0, 2, 1)), PARTS, DTYPE), (0, 2, 1))


@triton.jit
def _load_gates(
    gi, in_tile, there, UNITS: tl.constexpr, ROW: tl.constexpr, ROWS: tl.constexpr, BATCH: tl.constexpr,
    SLICES: tl.constexpr, ALONG: tl.constexpr, RESET_AFTER: tl.constexpr, ISA: tl.constexpr,
):  # fmt: skip
    """Return the inputs of r, z and n from the tile at ``gi``. Of rows that are not ``there`` none are read."""
    GATE: tl.constexpr = ROWS * ROW
    if ALONG > 0 and RESET_AFTER:
        return lanes.load_gates(gi, 0, 3, UNITS, ROW, ROWS, SLICES, ALONG, ISA)
    elif ALONG > 0:
        of_r_and_z = lanes.load_gates(gi, 0, 2, UNITS, ROW, ROWS, SLICES, ALONG, ISA)
        return of_r_and_z + lanes.load_gates(gi, 2, 3, UNITS, ROW, ROWS, SLICES, ALONG, ISA)
    elif ROWS == BATCH:
        gi += in_tile
        return tl.load(gi), tl.load(gi + GATE), tl.load(gi + 2 * GATE)
    else:
        gi += in_tile
        return (
            tl.load(gi, mask=there, other=0.0), tl.load(gi + GATE, mask=there, other=0.0),
            tl.load(gi + 2 * GATE, mask=there, other=0.0),
        )  # fmt: skip


@triton.jit
def _receive(
    box, OFFSET: tl.constexpr, abort, watch, PARTS: tl.constexpr, ROW: tl.constexpr, UNITS: tl.constexpr,
    SLICES: tl.constexpr, ROWS: tl.constexpr, BATCH: tl.constexpr, ALONG: tl.constexpr, DTYPE: tl.constexpr,
    HANDOVER: tl.constexpr, ISA: tl.constexpr,
):  # fmt: skip
    """Return a tile when it has come, where its products want it."""
    if ALONG > 0:
        return lanes.receive(box, OFFSET, abort, watch, ROW, UNITS, SLICES, ALONG, ROWS, DTYPE, HANDOVER, ISA)
    elif ISA == "ptx" and PARTS == 4:
        WORDS: tl.constexpr = ROW // exchange.word_elements(DTYPE, PARTS)
        return exchange.receive_fragments(
            box, OFFSET, abort, watch, WORDS, SLICES, ROWS, BATCH, DTYPE, HANDOVER, ISA
        )  # fmt: skip
    else:
        WORDS: tl.constexpr = ROW // exchange.word_elements(DTYPE, PARTS)
        return exchange.receive(box, OFFSET, abort, watch, PARTS, WORDS, SLICES, ROWS, BATCH, DTYPE, HANDOVER, ISA)


@triton.jit
def _products_of_slices(
    w,
    kept,
    x,
    PARTS: tl.constexpr,
    FIRST: tl.constexpr,
    END: tl.constexpr,
    UNITS: tl.constexpr,
    BATCH: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    ISA: tl.constexpr,
):
    """Return of the gates ``FIRST`` to before ``END`` each slice's products by itself, for `slices.sums`.

    ``x`` are the words of the state, or of r h.
    """
    IN_FRAGMENTS: tl.constexpr = ISA == "ptx" and PARTS == 4
    sums = ()
    for _ in tl.static_range(FIRST, END):
        if IN_FRAGMENTS:
            sums = sums + (fragments.zeros(UNITS, BATCH, x[0].shape[0]),)
        else:
            sums = sums + (tl.zeros((x[0].shape[0], UNITS, BATCH), tl.float32),)
    WORDS: tl.constexpr = PARTS * (BATCH // 8) if IN_FRAGMENTS else PARTS
    for c in tl.static_range(len(x) // WORDS):
        words = x[WORDS * c : WORDS * (c + 1)]
        if not IN_FRAGMENTS:
            value = exchange.values(words, DTYPE, ISA)
        added = ()
        for gate in tl.static_range(FIRST, END):
            if IN_FRAGMENTS and 3 * c + gate < len(w):
                added = added + (fragments.multiply(w[3 * c + gate], words, sums[gate - FIRST], DTYPE),)
            elif IN_FRAGMENTS:
                tile = fragments.kept(kept, 3 * c + gate - len(w), UNITS // 8, x[0].shape[0])
                added = added + (fragments.multiply(tile, words, sums[gate - FIRST], DTYPE),)
            else:
                added = added + (isa.matmul(w[3 * c + gate], value, sums[gate - FIRST], PRECISION, ISA),)
        sums = added
    return sums
