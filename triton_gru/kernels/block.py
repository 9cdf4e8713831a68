"""The ``block`` scan: one program owns all hidden units of a tile of the batch and walks the time steps.

The hidden state never leaves the program, so nothing is handed over between programs; ``W_hh`` is read from
memory once and stays on chip, in registers as the left operand of the matrix unit or in shared memory. The state goes
to its other side through shared memory, in two places by turns: a step has one barrier (see fragments).

Orientation: units are rows, batch rows are columns. ``W_hh[j, k]`` as nn.GRU stores it is then the left
operand as it lies, the state is the right one, and eight batch rows are one column tile of ``mma.sync``.

A program of two batch rows gives each of them four of the eight columns. What a thread then has of a product, two units
in two columns, are two results twice: the threads of a pair of columns take one unit each. So a thread makes one
result of a tile of 16 units and not four, and gate inputs need no padding.
"""

import triton
import triton.language as tl

from . import fragments, isa, reserve, sequences


@reserve.own_memory
@triton.jit(
    do_not_specialize=["steps", "start", "total", "state", "batch", "out_t", "out_b", "hx_l", "hx_b"],
    do_not_specialize_on_alignment=["lengths", "offsets", "resets"],
)
def block_scan(
    gi,  # [directions, steps, batch tiles, 3, TILES * UNITS, BATCH]: x W_ih^T and the biases, see projection;
    # of two batch rows [directions, steps, batch, 3, TILES * UNITS]
    w_hh,  # [3 * H, H]
    b_hh,  # [3 * H]; only b_hn is read, and only to reset after the product
    w_hh_back,  # of the backward direction
    b_hh_back,
    hx,  # [layers * directions, batch, H] through strides; the state before the first step
    carry,  # fp32 [layers * directions, batch, H]: the state between launches
    out,  # [time, batch, directions, H] through strides, or packed; see sequences
    h_n,  # [layers * directions, batch, H]
    lengths,  # int32 [batch], see sequences
    offsets,  # int32 [time], see sequences
    resets,  # uint8 [time, batch]: not 0 where the state is forgotten before a step
    steps,  # of this launch
    start,  # the first of them
    total,  # of all launches
    state,  # the layer's first in hx, carry and h_n
    batch,
    out_t,
    out_b,
    hx_l,
    hx_b,
    H: tl.constexpr,
    UNITS: tl.constexpr,  # hidden units of a tile, a power of two
    TILES: tl.constexpr,  # tiles of units; TILES * UNITS >= H
    BATCH: tl.constexpr,  # batch rows of a program: 2, or the columns of a product, 8 or 16
    AHEAD: tl.constexpr,  # steps per loop iteration, which is how far gi is prefetched
    REGISTER_TILES: tl.constexpr,  # of the 3 * TILES**2 tiles of W_hh, how many stay in registers
    LAYOUT: tl.constexpr,
    REVERSE: tl.constexpr,
    RESET_AFTER: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_HX: tl.constexpr,
    HAS_RESETS: tl.constexpr,
    WARPS: tl.constexpr,
):
    DTYPE: tl.constexpr = out.dtype.element_ty
    # How the matrix unit gets its operands. Products on the fp32 units have no such form.
    IN_FRAGMENTS: tl.constexpr = _in_fragments(DTYPE, PRECISION, WARPS)
    batch_tiles = tl.cdiv(batch, BATCH)
    direction = tl.program_id(0) // batch_tiles
    backward = sequences.goes_backward(direction, REVERSE)
    w_hh = tl.where(direction != 0, w_hh_back, w_hh)
    b_hh = tl.where(direction != 0, b_hh_back, b_hh)
    # 64-bit offsets go into scalar addresses; what is left for the tiles is small.
    first_row = (tl.program_id(0) % batch_tiles) * BATCH
    unit = _units(UNITS, BATCH, WARPS, IN_FRAGMENTS)
    row = _rows(UNITS, BATCH, WARPS, IN_FRAGMENTS)
    row_live = first_row + row < batch
    state += direction.to(tl.int64)
    hx += state * hx_l + first_row.to(tl.int64) * hx_b
    state = (state * batch + first_row) * H
    length = sequences.length(lengths, first_row + row, batch, total, LAYOUT)
    out += direction * H
    out_row = sequences.row_place(length, row, backward, out_t, out_b, LAYOUT)
    out_s = sequences.stride(backward, out_t, LAYOUT)
    out += first_row.to(tl.int64) * (out_t if LAYOUT == "packed" else out_b) + start.to(tl.int64) * out_s

    b_n = ()
    h = ()
    for i in tl.static_range(TILES):
        j = i * UNITS + unit
        live = row_live & (j < H)
        h_i = isa.load_where(carry + state + row * H + j, live & (start != 0), False)
        if HAS_HX:
            h_i += isa.load_where(hx + row.to(tl.int64) * hx_b + j, live & (start == 0), True).to(tl.float32)
        if IN_FRAGMENTS:
            b_n = b_n + (_bias_of_sums(b_hh, i, H, UNITS, BATCH, WARPS, HAS_BIAS and RESET_AFTER),)
        else:
            bias = tl.zeros(unit.shape, tl.float32) + tl.zeros(row.shape, tl.float32)
            if HAS_BIAS and RESET_AFTER:
                bias += tl.load(b_hh + 2 * H + j, mask=j < H, other=0.0).to(tl.float32)
            b_n = b_n + (_columns(bias, UNITS, BATCH),)
        h = h + (h_i,)

    # A tile of gi is one row's where a program has two of them.
    GI_ROWS: tl.constexpr = 1 if BATCH == 2 else BATCH
    GI_TILE: tl.constexpr = 3 * TILES * UNITS * GI_ROWS
    gi_tiles = tl.cdiv(batch, GI_ROWS)
    gi += (direction.to(tl.int64) * steps * gi_tiles + first_row // GI_ROWS) * GI_TILE
    gi_t = gi_tiles.to(tl.int64) * GI_TILE
    if BATCH == 2:
        # The last row stands in for one that is not there.
        gi += tl.minimum(row, batch - 1 - first_row) * GI_TILE + unit
    last = start + steps == total
    # The program stops at its own longest row. One step is always made; if it is none of any row, it leaves nothing.
    steps = tl.minimum(steps, tl.maximum(sequences.longest(length, total, LAYOUT) - start, 1))

    w = ()
    START: tl.constexpr = 0 if REGISTER_TILES == 0 or IN_FRAGMENTS else 1
    memory = ()
    if IN_FRAGMENTS:
        memory = _own_memory(unit, row, UNITS, TILES, BATCH, REGISTER_TILES, WARPS, DTYPE)
        w = _load_fragments(
            memory, w_hh, H, UNITS, TILES, REGISTER_TILES, RESET_AFTER, WARPS, PRECISION
        )  # fmt: skip
    elif START == 0:
        w = _load_all(w_hh, H, UNITS, TILES, RESET_AFTER, PRECISION)
    else:
        # The first step stands before the loop, takes the loop's own path, and brings the weights in: without
        # it the compiler keeps none in registers.
        first_gates = _load_gates(gi, UNITS, TILES, BATCH, WARPS, IN_FRAGMENTS)
        if HAS_RESETS:
            at_first = sequences.restarts(resets, start, length, first_row + row, batch, total)
            h = _zero_where(at_first, h, TILES)
        new, w = _advance(
            h, w, w_hh, memory, 0, b_n, first_gates, 0, True,
            DTYPE, H, UNITS, TILES, BATCH, REGISTER_TILES, RESET_AFTER, PRECISION, WARPS,
        )  # fmt: skip
        going_on = sequences.going_on(start, length, row_live, LAYOUT)
        h = new if LAYOUT == "dense" else _select(going_on, new, h, TILES)
        place = out_row + sequences.looked_up(start, length, backward, offsets, out_t, LAYOUT)
        _store_state(out + place, h, going_on, DTYPE, H, UNITS, TILES, unit)
        out += out_s
    ahead = ()
    forget = ()
    for s in tl.static_range(AHEAD):
        ahead = ahead + _load_gates(
            gi + tl.minimum(START + s, steps - 1) * gi_t, UNITS, TILES, BATCH, WARPS, IN_FRAGMENTS
        )
        if HAS_RESETS:
            step = start + START + s
            forget = forget + (sequences.restarts(resets, step, length, first_row + row, batch, total),)
    for t in tl.range(START, steps, AHEAD):
        now = ahead
        ahead = ()
        forget_now = forget
        forget = ()
        for s in tl.static_range(AHEAD):
            ahead = ahead + _load_gates(
                gi + tl.minimum(t + AHEAD + s, steps - 1) * gi_t, UNITS, TILES, BATCH, WARPS, IN_FRAGMENTS
            )
            if HAS_RESETS:
                step = start + t + AHEAD + s
                forget = forget + (sequences.restarts(resets, step, length, first_row + row, batch, total),)
        for s in tl.static_range(AHEAD):
            step = start + t + s
            going_on = sequences.going_on(step, length, row_live, LAYOUT)
            if AHEAD > 1:  # the last iteration may run past the end
                going_on = going_on & (t + s < steps)
            place = out_row + sequences.looked_up(step, length, backward, offsets, out_t, LAYOUT)
            if HAS_RESETS:
                h = _zero_where(forget_now[s] & (t + s < steps), h, TILES)
            new, _ = _advance(
                h, w, w_hh, memory, s % 2 if AHEAD % 2 == 0 else t % 2, b_n, now, s, False,
                DTYPE, H, UNITS, TILES, BATCH, REGISTER_TILES, RESET_AFTER, PRECISION, WARPS,
            )  # fmt: skip
            if LAYOUT == "dense" and AHEAD == 1:
                h = new
            else:
                h = _select(going_on, new, h, TILES)
            _store_state(out + place, h, going_on, DTYPE, H, UNITS, TILES, unit)
            out += out_s

    for i in tl.static_range(TILES):
        j = i * UNITS + unit
        live = row_live & (j < H)
        isa.store(carry + state + row * H + j, h[i], live & (last == 0))
        isa.store(h_n + state + row * H + j, h[i].to(DTYPE), live & (last != 0))


@triton.constexpr_function
def _in_fragments(dtype, precision, warps):
    """Return whether products are made as kernels/fragments.py says: by the matrix unit, of more than a warp."""
    return (dtype != tl.float32 or precision == "tf32") and warps > 1


# What follows a product is made of its results, [UNITS, BATCH] or of two batch rows [UNITS // 2, 4]. Each row has two
# columns of these: of every 16 units the first one has 0 to 7, the second one the others.


@triton.jit
def _units(UNITS: tl.constexpr, BATCH: tl.constexpr, WARPS: tl.constexpr, IN_FRAGMENTS: tl.constexpr):
    """Return the units of a tile, in the order of its results."""
    if IN_FRAGMENTS:
        return fragments.units(UNITS, BATCH, WARPS)
    elif BATCH == 2:
        i = tl.arange(0, UNITS // 2)[:, None]
        return i // 8 * 16 + tl.arange(0, 4)[None, :] % 2 * 8 + i % 8
    else:
        return tl.arange(0, UNITS)[:, None]


@triton.jit
def _rows(UNITS: tl.constexpr, BATCH: tl.constexpr, WARPS: tl.constexpr, IN_FRAGMENTS: tl.constexpr):
    """Return the batch rows of a tile, in the order of its results."""
    if IN_FRAGMENTS:
        return fragments.rows(UNITS, BATCH, WARPS)
    elif BATCH == 2:
        return tl.arange(0, 4)[None, :] // 2
    else:
        return tl.arange(0, BATCH)[None, :]


@triton.jit
def _results(product, UNITS: tl.constexpr, BATCH: tl.constexpr, IN_FRAGMENTS: tl.constexpr):
    """Return each result of a product [UNITS, columns] once. No number leaves its thread."""
    if IN_FRAGMENTS:
        return fragments.as_state(product, BATCH)
    elif BATCH == 2:
        of_row, _ = tl.split(tl.reshape(product, (UNITS // 16, 2, 8, 4, 2)))
        first, second = tl.split(tl.permute(of_row, (0, 2, 3, 1)))
        odd = tl.arange(0, 4)[None, None, :] % 2 != 0
        return tl.reshape(tl.where(odd, second, first), (UNITS // 2, 4))
    else:
        return product


@triton.jit
def _columns(x, UNITS: tl.constexpr, BATCH: tl.constexpr):
    """Return results as columns of a product, [UNITS, columns]."""
    if BATCH == 2:
        x = tl.permute(tl.reshape(x, (UNITS // 16, 8, 2, 2)), (0, 3, 1, 2))
        x = tl.join(x, x)
        return tl.reshape(tl.join(x, x), (UNITS, 8))
    else:
        return x


@triton.jit
def _load_gates(
    gi, UNITS: tl.constexpr, TILES: tl.constexpr, BATCH: tl.constexpr, WARPS: tl.constexpr,
    IN_FRAGMENTS: tl.constexpr,
):  # fmt: skip
    """One step's gate inputs: r, z, n of each tile of units."""
    gates = ()
    for i in tl.static_range(TILES):
        if BATCH == 2:
            for gate in tl.static_range(3):
                gates = gates + (isa.load(gi + (gate * TILES + i) * UNITS),)
        elif IN_FRAGMENTS:
            gates = gates + fragments.load_pairs(gi, i * UNITS * BATCH, TILES * UNITS * BATCH, UNITS, BATCH, WARPS)
        else:
            gates = gates + isa.load_gates(gi, i * UNITS * BATCH, TILES * UNITS * BATCH, UNITS, BATCH)
    return gates


@triton.jit
def _gate(
    raw, DTYPE: tl.constexpr, UNITS: tl.constexpr, BATCH: tl.constexpr, IN_FRAGMENTS: tl.constexpr
):  # fmt: skip
    """Return in fp32 what `_load_gates` has of one gate and tile."""
    if BATCH == 2:
        return raw.to(tl.float32)
    elif IN_FRAGMENTS:
        return fragments.pairs_to_float(raw, DTYPE)
    else:
        return isa.gates_to_float(raw, DTYPE, UNITS, BATCH)


@triton.constexpr_function
def _place(gate, i, k, tiles, reset_after):
    """Of a tile of W_hh among all: in the order of their first use. To reset before, r of all units comes first."""
    at = i * tiles + k
    if reset_after:
        return 3 * at + gate
    return at if gate == 0 else tiles**2 + 2 * at + gate - 1


@triton.jit
def _advance(
    h,
    w,
    w_hh,
    memory,
    turn,
    b_n,
    gates,
    s: tl.constexpr,
    LOAD_TILES: tl.constexpr,
    DTYPE: tl.constexpr,
    H: tl.constexpr,
    UNITS: tl.constexpr,
    TILES: tl.constexpr,
    BATCH: tl.constexpr,
    REGISTER_TILES: tl.constexpr,
    RESET_AFTER: tl.constexpr,
    PRECISION: tl.constexpr,
    WARPS: tl.constexpr,
):
    """The state after one step, from step ``s`` of the prefetched ``gates``, and the weights' tiles ``w``.

    With ``LOAD_TILES`` each tile is loaded right where it is first used, so that no more than one at a time
    waits in registers for its place in shared memory. ``turn``, 0 or 1, changes from step to step.
    """
    IN_FRAGMENTS: tl.constexpr = _in_fragments(DTYPE, PRECISION, WARPS)
    # Of ordinary fp32 products the right operand takes many registers: that of h is not kept beside that of r h.
    Z_WITH_R: tl.constexpr = not LOAD_TILES and DTYPE == tl.float32 and PRECISION == "ieee"
    if IN_FRAGMENTS:
        zero = fragments.zeros(UNITS // WARPS, max(BATCH, 8), WARPS)
    else:
        zero = tl.zeros((UNITS, max(BATCH, 8)), tl.float32)
    # To reset before, the state has one place and r h the other: between two states all threads have passed r h.
    x = _operands(h, memory, turn if RESET_AFTER else 0, UNITS, TILES, BATCH, DTYPE, PRECISION, WARPS)
    x_n = x
    z = ()
    # The first gate whose products are made of each tile by itself, right before its update.
    FIRST: tl.constexpr = 0 if RESET_AFTER else 2 if Z_WITH_R else 1
    if not RESET_AFTER:
        reset = ()
        for i in tl.static_range(TILES):
            a_r, a_z = zero, zero
            for k in tl.static_range(TILES):
                if LOAD_TILES:
                    tile = _load_tile(
                        w_hh, 0, i, k, _place(0, i, k, TILES, RESET_AFTER) < REGISTER_TILES, H, UNITS, PRECISION
                    )
                    w = w + (tile,)
                a_r = _multiply(
                    w, memory, _place(0, i, k, TILES, RESET_AFTER), x[k], a_r, UNITS, WARPS, DTYPE, PRECISION
                )  # fmt: skip
                if Z_WITH_R:
                    a_z = tl.dot(w[_place(1, i, k, TILES, RESET_AFTER)], x[k], acc=a_z, input_precision=PRECISION)
            z = z + (isa.by_now(a_z) if Z_WITH_R else a_z,)
            g_r = _gate(gates[3 * (s * TILES + i)], DTYPE, UNITS, BATCH, IN_FRAGMENTS)
            r_h = isa.reset_state(g_r, _results(a_r, UNITS, BATCH, IN_FRAGMENTS), h[i], DTYPE)
            if TILES * UNITS != H:
                r_h = tl.where(
                    i * UNITS + _units(UNITS, BATCH, WARPS, IN_FRAGMENTS) < H, r_h, 0.0
                )  # as the state below
            reset = reset + (r_h,)
        x_n = _operands(reset, memory, 1, UNITS, TILES, BATCH, DTYPE, PRECISION, WARPS)
    new = ()
    for i in tl.static_range(TILES):
        a = (zero, zero if RESET_AFTER else z[i], b_n[i])
        for k in tl.static_range(TILES):
            sums = a[:FIRST]
            for gate in tl.static_range(FIRST, 3):
                if LOAD_TILES:
                    tile = _load_tile(
                        w_hh, gate, i, k, _place(gate, i, k, TILES, RESET_AFTER) < REGISTER_TILES,
                        H, UNITS, PRECISION,
                    )  # fmt: skip
                    w = w + (tile,)
                sums = sums + (
                    _multiply(
                        w, memory, _place(gate, i, k, TILES, RESET_AFTER), x_n[k] if gate == 2 else x[k], a[gate],
                        UNITS, WARPS, DTYPE, PRECISION,
                    ),
                )  # fmt: skip
            a = sums
        g_z = _gate(gates[3 * (s * TILES + i) + 1], DTYPE, UNITS, BATCH, IN_FRAGMENTS)
        g_n = _gate(gates[3 * (s * TILES + i) + 2], DTYPE, UNITS, BATCH, IN_FRAGMENTS)
        a_z, a_n = _results(a[1], UNITS, BATCH, IN_FRAGMENTS), _results(a[2], UNITS, BATCH, IN_FRAGMENTS)
        if RESET_AFTER:
            g_r = _gate(gates[3 * (s * TILES + i)], DTYPE, UNITS, BATCH, IN_FRAGMENTS)
            h_i = isa.gru_update(g_r, g_z, g_n, _results(a[0], UNITS, BATCH, IN_FRAGMENTS), a_z, a_n, h[i], DTYPE)
        else:
            h_i = isa.next_state(g_z, g_n, a_z, a_n, h[i], DTYPE)
        if TILES * UNITS != H:
            # Units beyond H stay zero: an infinite state would make NaN of their zero weights, and they of all.
            h_i = tl.where(i * UNITS + _units(UNITS, BATCH, WARPS, IN_FRAGMENTS) < H, h_i, 0.0)
        new = new + (h_i,)
    return new, w


@triton.jit
def _multiply(
    w, memory, index: tl.constexpr, x, sums, UNITS: tl.constexpr, WARPS: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Return ``sums`` and the product of tile ``index`` of W_hh with a tile of the state."""
    if _in_fragments(DTYPE, PRECISION, WARPS):
        CHUNKS: tl.constexpr = fragments.chunks(UNITS, DTYPE)
        if index < len(w):
            tile = w[index]
        else:
            tile = fragments.kept(memory[0], index - len(w), CHUNKS * (UNITS // WARPS // 8), WARPS)
        for c in tl.static_range(CHUNKS):
            of_chunk = tile[len(tile) // CHUNKS * c : len(tile) // CHUNKS * (c + 1)]
            words = x[len(x) // CHUNKS * c : len(x) // CHUNKS * (c + 1)]
            sums = fragments.multiply(of_chunk, words, sums, DTYPE)
        return sums
    else:
        return tl.dot(w[index], x, acc=sums, input_precision=PRECISION)


@triton.jit
def _operands(
    tiles,
    memory,
    turn,
    UNITS: tl.constexpr,
    TILES: tl.constexpr,
    BATCH: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    WARPS: tl.constexpr,
):
    """Return the state, or r h, as right operands: of each tile."""
    x = ()
    if _in_fragments(DTYPE, PRECISION, WARPS):
        BITS: tl.constexpr = DTYPE.primitive_bitwidth
        OFFSET: tl.constexpr = fragments.state_room(BATCH, UNITS, BITS)
        other = turn * fragments.state_room(BATCH, UNITS * TILES, BITS)
        for k in tl.static_range(TILES):
            fragments.share(memory[1] + other, isa.rounded(tiles[k], DTYPE, PRECISION), k * OFFSET)
        tl.debug_barrier()
        CHUNKS: tl.constexpr = fragments.chunks(UNITS, DTYPE)
        words = fragments.shared_words(memory[2] + other, TILES * CHUNKS, BATCH)
        for k in tl.static_range(TILES):
            x = x + (words[len(words) // TILES * k : len(words) // TILES * (k + 1)],)
    else:
        for k in tl.static_range(TILES):
            x = x + (isa.operand(_columns(tiles[k], UNITS, BATCH), DTYPE, PRECISION),)
    return x


@triton.jit
def _own_memory(
    unit, row, UNITS: tl.constexpr, TILES: tl.constexpr, BATCH: tl.constexpr, REGISTER_TILES: tl.constexpr,
    WARPS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Return a thread's addresses in shared memory: of its weights, its results, and what it reads of the state."""
    BITS: tl.constexpr = DTYPE.primitive_bitwidth
    CHUNKS: tl.constexpr = fragments.chunks(UNITS, DTYPE)
    WEIGHTS: tl.constexpr = fragments.room((3 * TILES * TILES - REGISTER_TILES) * CHUNKS, UNITS // WARPS, WARPS)
    STATE: tl.constexpr = fragments.state_room(BATCH, UNITS * TILES, BITS)
    SIZE: tl.constexpr = WEIGHTS + 2 * STATE
    origin = fragments.origin(WARPS)
    weights = fragments.place(origin + 16 * fragments.thread(WARPS), SIZE)
    results = fragments.place(origin + WEIGHTS + fragments.place_in_state(unit, row, BATCH, BITS), SIZE)
    words = fragments.place(origin + WEIGHTS + fragments.place_of_words(BATCH, WARPS), SIZE)
    return weights, results, words


@triton.jit
def _bias_of_sums(
    b_hh, tile: tl.constexpr, H: tl.constexpr, UNITS: tl.constexpr, BATCH: tl.constexpr, WARPS: tl.constexpr,
    IS_THERE: tl.constexpr,
):  # fmt: skip
    """Return b_hn of a tile as sums to begin with."""
    first = tl.zeros((WARPS, 8, 4), tl.float32)
    second = first
    sums = ()
    for m in tl.static_range(UNITS // WARPS // 16):
        if IS_THERE:
            unit = tile * UNITS + (m * WARPS + tl.arange(0, WARPS)[:, None, None]) * 16 + tl.arange(0, 8)[None, :, None]
            unit = unit + tl.zeros((WARPS, 8, 4), tl.int32)
            b_hn = b_hh + 2 * H
            first = isa.load(b_hn + tl.minimum(unit, H - 1)).to(tl.float32)
            second = isa.load(b_hn + tl.minimum(unit + 8, H - 1)).to(tl.float32)
        for _ in tl.static_range((BATCH + 7) // 8):
            sums = sums + (first, first, second, second)
    return sums


@triton.jit
def _load_fragments(
    memory,
    w_hh,
    H: tl.constexpr,
    UNITS: tl.constexpr,
    TILES: tl.constexpr,
    REGISTER_TILES: tl.constexpr,
    RESET_AFTER: tl.constexpr,
    WARPS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the tiles of W_hh that stay in registers, in the order of `_place`. The others go to shared memory."""
    for index in tl.static_range(REGISTER_TILES, 3 * TILES * TILES):
        tile = _load_fragments_of(w_hh, index, H, UNITS, TILES, RESET_AFTER, WARPS, PRECISION)
        fragments.keep(memory[0], tile, index - REGISTER_TILES, WARPS)
    # Last: what passes through registers needs some itself.
    w = ()
    for index in tl.static_range(REGISTER_TILES):
        w = w + (_load_fragments_of(w_hh, index, H, UNITS, TILES, RESET_AFTER, WARPS, PRECISION),)
    return w


@triton.jit
def _load_fragments_of(
    w_hh, index: tl.constexpr, H: tl.constexpr, UNITS: tl.constexpr, TILES: tl.constexpr, RESET_AFTER: tl.constexpr,
    WARPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the tile of W_hh that `_place` puts at ``index``."""
    CHUNKS: tl.constexpr = fragments.chunks(UNITS, w_hh.dtype.element_ty)
    ROW: tl.constexpr = _tile_at(index, TILES, RESET_AFTER, 1)
    COLUMN: tl.constexpr = _tile_at(index, TILES, RESET_AFTER, 2)
    unit = ROW * UNITS + tl.arange(0, WARPS)[:, None, None] * 16 + tl.arange(0, 8)[None, :, None]
    tile = ()
    for c in tl.static_range(CHUNKS):
        word = (COLUMN * CHUNKS + c) * 4 + tl.arange(0, 4)[None, None, :]
        tile = tile + fragments.load_tile(
            w_hh, _tile_at(index, TILES, RESET_AFTER, 0), unit, word, UNITS // WARPS, 16 * WARPS, H, PRECISION
        )  # fmt: skip
    return tile


@triton.constexpr_function
def _tile_at(index, tiles, reset_after, which):
    """Return of the tile that `_place` puts at ``index`` the gate, or its row or its column of tiles."""
    return next(
        (gate, i, k)[which]
        for gate in range(3) for i in range(tiles) for k in range(tiles)
        if _place(gate, i, k, tiles, reset_after) == index
    )  # fmt: skip


@triton.jit
def _load_all(
    w_hh,
    H: tl.constexpr,
    UNITS: tl.constexpr,
    TILES: tl.constexpr,
    RESET_AFTER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All tiles of W_hh, in the order of `_place`, to stay in shared memory."""
    w = ()
    if not RESET_AFTER:
        for i in tl.static_range(TILES):
            for k in tl.static_range(TILES):
                w = w + (_load_tile(w_hh, 0, i, k, False, H, UNITS, PRECISION),)
    for i in tl.static_range(TILES):
        for k in tl.static_range(TILES):
            for gate in tl.static_range(0 if RESET_AFTER else 1, 3):
                w = w + (_load_tile(w_hh, gate, i, k, False, H, UNITS, PRECISION),)
    return w


@triton.jit
def _load_tile(
    w_hh,
    gate: tl.constexpr,
    i: tl.constexpr,
    k: tl.constexpr,
    IN_REGISTERS: tl.constexpr,
    H: tl.constexpr,
    UNITS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Tile [UNITS, UNITS] of one gate's W_hh, rows from ``i * UNITS`` and columns from ``k * UNITS``; zero beyond H."""
    row = i * UNITS + tl.arange(0, UNITS)[:, None]
    col = k * UNITS + tl.arange(0, UNITS)[None, :]
    if (i + 1) * UNITS <= H and (k + 1) * UNITS <= H:
        tile = tl.load(w_hh + (gate * H + row) * H + col)
    else:
        tile = tl.load(w_hh + (gate * H + row) * H + col, mask=(row < H) & (col < H), other=0.0)
    if PRECISION == "tf32":
        tile = isa.round_to_tf32(tile)
    elif IN_REGISTERS:
        tile += 0.0  # what comes straight from a load, the compiler keeps in shared memory
    return tile


@triton.jit
def _select(condition, a, b, TILES: tl.constexpr):
    chosen = ()
    for i in tl.static_range(TILES):
        chosen = chosen + (tl.where(condition, a[i], b[i]),)
    return chosen


@triton.jit
def _zero_where(condition, a, TILES: tl.constexpr):
    chosen = ()
    for i in tl.static_range(TILES):
        chosen = chosen + (tl.where(condition, 0.0, a[i]),)
    return chosen


@triton.jit
def _store_state(
    address,
    h,
    live,
    DTYPE: tl.constexpr,
    H: tl.constexpr,
    UNITS: tl.constexpr,
    TILES: tl.constexpr,
    unit,
):
    for i in tl.static_range(TILES):
        j = i * UNITS + unit
        isa.store(address + j, h[i].to(DTYPE), live & (j < H))
