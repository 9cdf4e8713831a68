"""The ``block`` scan: one program owns all hidden units of a tile of the batch and walks the time steps.

What a program does:

    load W_hh                                 # once: it stays in registers, or in shared memory
    h = h_0 of my rows
    for t in steps:
        load the gate inputs of step t + 1    # they are there when they are wanted
        put h where all warps find it         # in shared memory, in two places by turns: one barrier a step
        r, z, n = W_hh h
        h = gru_update(gate inputs of t, r, z, n, h)
        store h in out

The state never leaves the program, so programs do not wait for each other.

Units are rows and batch rows are columns. ``W_hh[j, k]`` as nn.GRU stores it is then the left operand as it lies, the
state is the right one, and eight batch rows are one column tile of the matrix unit. W_hh and the state are cut into
``UNIT_TILES`` tiles of ``UNITS`` units.

A program of two batch rows gives each of them four of the eight columns. What a thread then has of a product, two units
in two columns, are two results twice: the threads of a pair of columns take one unit each. So a thread makes one
result of a tile of 16 units and not four, and gate inputs need no padding.

Where r comes before the recurrent product (``RESET_AFTER`` is not), r of all units is made first, then r h takes the
state's way to the product with n's weights.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from . import fragments, isa, reserve, sequences
from .constants import CommonConstants, derived


@dataclass(frozen=True, eq=False, repr=False)
class Cut(CommonConstants):
    """What `block_scan` is compiled for, beside the form of a call."""

    RESET_AFTER: bool
    UNITS: int  # hidden units of a tile, a power of two
    UNIT_TILES: int  # tiles of units; UNIT_TILES * UNITS >= H
    BATCH: int  # batch rows of a program: 2, or the columns of a product, 8 or 16
    PREFETCH_STEPS: int  # steps per loop iteration, which is how far gi is prefetched
    REGISTER_TILES: int  # of the 3 * UNIT_TILES**2 tiles of W_hh, how many stay in registers
    WARPS: int

    @derived
    def PADDED_H(self):
        return self.UNIT_TILES.value * self.UNITS.value

    @derived
    def COLUMNS(self):
        """Columns of a product: each of two batch rows has four."""
        return max(self.BATCH.value, 8)

    @derived
    def IN_FRAGMENTS(self):
        """Products are made of operands that stay where `fragments` puts them. Of one warp they are not."""
        return not self.IS_IEEE.value and self.WARPS.value > 1

    @derived
    def CHUNKS(self):
        """Times that a row of a tile takes four words of 128 bits, as `fragments` loads it."""
        return fragments.chunks(self.UNITS.value, self.DTYPE.value)

    @derived
    def GI_ROWS(self):
        """Batch rows of a tile of gi: one where a program has two."""
        return 1 if self.BATCH.value == 2 else self.BATCH.value

    @derived
    def GI_GATE(self):
        """Elements of gi from a gate of a tile to the next."""
        return self.PADDED_H.value * self.GI_ROWS.value


@reserve.add_shared_memory
@triton.jit(
    do_not_specialize=["steps", "start", "total", "state", "batch", "out_t", "out_b", "hx_l", "hx_b"],
    do_not_specialize_on_alignment=["lengths", "offsets", "resets"],
)
def block_scan(
    gi,  # [directions, steps, batch tiles, 3, UNIT_TILES * UNITS, BATCH]: x W_ih^T and the biases, see projection;
    # of two batch rows [directions, steps, batch, 3, UNIT_TILES * UNITS]
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
    cut: tl.constexpr,  # a `Cut`
    call: tl.constexpr,  # a `constants.CallConstants`
):
    batch_tiles = tl.cdiv(batch, cut.BATCH)
    direction = tl.program_id(0) // batch_tiles
    backward = sequences.goes_backward(direction, call.REVERSE)
    w_hh = tl.where(direction != 0, w_hh_back, w_hh)
    b_hh = tl.where(direction != 0, b_hh_back, b_hh)
    # 64-bit offsets go into scalar addresses; what is left for the tiles is small.
    first_row = (tl.program_id(0) % batch_tiles) * cut.BATCH
    unit = _units(cut)
    row = _rows(cut)
    row_live = first_row + row < batch
    state += direction.to(tl.int64)
    hx += state * hx_l + first_row.to(tl.int64) * hx_b
    state = (state * batch + first_row) * cut.H
    length = sequences.load_lengths(lengths, first_row + row, batch, total, call.LAYOUT)
    out += direction * cut.H
    out_row = sequences.row_offset(length, row, backward, out_t, out_b, call.LAYOUT)
    out_s = sequences.step_stride(backward, out_t, call.LAYOUT)
    out += first_row.to(tl.int64) * (out_t if call.LAYOUT == "packed" else out_b) + start.to(tl.int64) * out_s

    b_n = ()
    h = ()
    for i in tl.static_range(cut.UNIT_TILES):
        j = i * cut.UNITS + unit
        live = row_live & (j < cut.H)
        h_i = isa.load_where(carry + state + row * cut.H + j, live & (start != 0), False)
        if call.HAS_HX:
            h_i += isa.load_where(hx + row.to(tl.int64) * hx_b + j, live & (start == 0), True).to(tl.float32)
        if cut.IN_FRAGMENTS:
            b_n = b_n + (_bias_of_sums(b_hh, i, call.HAS_BIAS and cut.RESET_AFTER, cut),)
        else:
            bias = tl.zeros(unit.shape, tl.float32) + tl.zeros(row.shape, tl.float32)
            if call.HAS_BIAS and cut.RESET_AFTER:
                bias += tl.load(b_hh + 2 * cut.H + j, mask=j < cut.H, other=0.0).to(tl.float32)
            b_n = b_n + (_columns(bias, cut),)
        h = h + (h_i,)

    gi_tiles = tl.cdiv(batch, cut.GI_ROWS)
    gi += (direction.to(tl.int64) * steps * gi_tiles + first_row // cut.GI_ROWS) * (3 * cut.GI_GATE)
    gi_t = gi_tiles.to(tl.int64) * (3 * cut.GI_GATE)
    if cut.BATCH == 2:
        # The last row stands in for one that is not there.
        gi += tl.minimum(row, batch - 1 - first_row) * (3 * cut.GI_GATE) + unit
    last = start + steps == total
    # The program stops at its own longest row. One step is always made; if it is none of any row, it leaves nothing.
    steps = tl.minimum(steps, tl.maximum(sequences.longest(length, total, call.LAYOUT) - start, 1))

    w = ()
    memory = ()
    START: tl.constexpr = 0 if cut.REGISTER_TILES == 0 or cut.IN_FRAGMENTS else 1
    if cut.IN_FRAGMENTS:
        memory = _own_memory(unit, row, cut)
        w = _load_fragments(memory, w_hh, cut)
    elif START == 0:
        w = _load_all(w_hh, cut)
    else:
        # The first step stands before the loop, takes the loop's own path, and brings the weights in: without
        # it the compiler keeps none in registers.
        first_gates = _load_gates(gi, cut)
        if call.HAS_RESETS:
            at_first = sequences.is_reset(resets, start, length, first_row + row, batch, total)
            h = _zero_where(at_first, h)
        new, w = _advance(h, w, w_hh, memory, 0, b_n, first_gates, True, cut)
        is_active = sequences.is_active(start, length, row_live, call.LAYOUT)
        h = new if call.LAYOUT == "dense" else _select(is_active, new, h)
        place = out_row + sequences.table_offset(start, length, backward, offsets, out_t, call.LAYOUT)
        _store_state(out + place, h, is_active, unit, cut)
        out += out_s
    ahead = ()
    forget = ()
    for s in tl.static_range(cut.PREFETCH_STEPS):
        ahead = ahead + _load_gates(gi + tl.minimum(START + s, steps - 1) * gi_t, cut)
        if call.HAS_RESETS:
            step = start + START + s
            forget = forget + (sequences.is_reset(resets, step, length, first_row + row, batch, total),)
    for t in tl.range(START, steps, cut.PREFETCH_STEPS):
        now = ahead
        ahead = ()
        forget_now = forget
        forget = ()
        for s in tl.static_range(cut.PREFETCH_STEPS):
            ahead = ahead + _load_gates(gi + tl.minimum(t + cut.PREFETCH_STEPS + s, steps - 1) * gi_t, cut)
            if call.HAS_RESETS:
                step = start + t + cut.PREFETCH_STEPS + s
                forget = forget + (sequences.is_reset(resets, step, length, first_row + row, batch, total),)
        for s in tl.static_range(cut.PREFETCH_STEPS):
            step = start + t + s
            is_active = sequences.is_active(step, length, row_live, call.LAYOUT)
            if cut.PREFETCH_STEPS > 1:  # the last iteration may run past the end
                is_active = is_active & (t + s < steps)
            place = out_row + sequences.table_offset(step, length, backward, offsets, out_t, call.LAYOUT)
            if call.HAS_RESETS:
                h = _zero_where(forget_now[s] & (t + s < steps), h)
            turn = s % 2 if cut.PREFETCH_STEPS % 2 == 0 else t % 2
            gates = now[3 * cut.UNIT_TILES * s : 3 * cut.UNIT_TILES * (s + 1)]
            new, _ = _advance(h, w, w_hh, memory, turn, b_n, gates, False, cut)
            if call.LAYOUT == "dense" and cut.PREFETCH_STEPS == 1:
                h = new
            else:
                h = _select(is_active, new, h)
            _store_state(out + place, h, is_active, unit, cut)
            out += out_s

    for i in tl.static_range(cut.UNIT_TILES):
        j = i * cut.UNITS + unit
        live = row_live & (j < cut.H)
        isa.store(carry + state + row * cut.H + j, h[i], live & (last == 0))
        isa.store(h_n + state + row * cut.H + j, h[i].to(cut.DTYPE), live & (last != 0))


# What follows a product is made of its results, [UNITS, BATCH] or of two batch rows [UNITS // 2, 4]. Each row has two
# columns of these: of every 16 units the first one has 0 to 7, the second one the others.


@triton.jit
def _units(cut: tl.constexpr):
    """Return the units of a tile, in the order of its results."""
    if cut.IN_FRAGMENTS:
        return fragments.state_units(cut.UNITS, cut.BATCH, cut.WARPS)
    elif cut.BATCH == 2:
        i = tl.arange(0, cut.UNITS // 2)[:, None]
        return i // 8 * 16 + tl.arange(0, 4)[None, :] % 2 * 8 + i % 8
    else:
        return tl.arange(0, cut.UNITS)[:, None]


@triton.jit
def _rows(cut: tl.constexpr):
    """Return the batch rows of a tile, in the order of its results."""
    if cut.IN_FRAGMENTS:
        return fragments.state_rows(cut.UNITS, cut.BATCH, cut.WARPS)
    elif cut.BATCH == 2:
        return tl.arange(0, 4)[None, :] // 2
    else:
        return tl.arange(0, cut.BATCH)[None, :]


@triton.jit
def _results(product, cut: tl.constexpr):
    """Return each result of a product [UNITS, columns] once. No number leaves its thread."""
    if cut.IN_FRAGMENTS:
        return fragments.as_state(product, cut.BATCH)
    elif cut.BATCH == 2:
        of_row, _ = tl.split(tl.reshape(product, (cut.UNITS // 16, 2, 8, 4, 2)))
        first, second = tl.split(tl.permute(of_row, (0, 2, 3, 1)))
        odd = tl.arange(0, 4)[None, None, :] % 2 != 0
        return tl.reshape(tl.where(odd, second, first), (cut.UNITS // 2, 4))
    else:
        return product


@triton.jit
def _columns(x, cut: tl.constexpr):
    """Return results as columns of a product, [UNITS, columns]."""
    if cut.BATCH == 2:
        x = tl.permute(tl.reshape(x, (cut.UNITS // 16, 8, 2, 2)), (0, 3, 1, 2))
        x = tl.join(x, x)
        return tl.reshape(tl.join(x, x), (cut.UNITS, 8))
    else:
        return x


@triton.jit
def _load_gates(gi, cut: tl.constexpr):
    """Load one step's gate inputs: r, z, n of each tile of units. `_gate` makes numbers of them."""
    TILE: tl.constexpr = cut.UNITS * cut.BATCH
    gates = ()
    for i in tl.static_range(cut.UNIT_TILES):
        if cut.BATCH == 2:
            for gate in tl.static_range(3):
                gates = gates + (isa.load(gi + (gate * cut.UNIT_TILES + i) * cut.UNITS),)
        elif cut.IN_FRAGMENTS:
            gates = gates + fragments.load_pairs(gi, i * TILE, cut.GI_GATE, cut.UNITS, cut.BATCH, cut.WARPS)
        else:
            gates = gates + isa.load_gates(gi, i * TILE, cut.GI_GATE, cut.UNITS, cut.BATCH)
    return gates


@triton.jit
def _gate(raw, cut: tl.constexpr):
    """Return in fp32 what `_load_gates` has of one gate and tile."""
    if cut.BATCH == 2:
        return raw.to(tl.float32)
    elif cut.IN_FRAGMENTS:
        return fragments.pairs_to_float(raw, cut.DTYPE)
    else:
        return isa.gates_to_float(raw, cut.DTYPE, cut.UNITS, cut.BATCH)


@triton.constexpr_function
def _place(gate, i, k, cut):
    """Return the index of a tile of W_hh among all, in the order of first use. To reset before, r comes first."""
    tiles = cut.UNIT_TILES.value
    at = i * tiles + k
    if cut.RESET_AFTER.value:
        return 3 * at + gate
    return at if gate == 0 else tiles**2 + 2 * at + gate - 1


@triton.jit
def _advance(h, w, w_hh, memory, turn, b_n, gates, LOAD_TILES: tl.constexpr, cut: tl.constexpr):
    """Return the state after one step of ``gates``, and the weights' tiles ``w``.

    With ``LOAD_TILES`` each tile is loaded right where it is first used, so that no more than one at a time
    waits in registers for its place in shared memory. ``turn``, 0 or 1, changes from step to step.
    """
    # The right operand of ordinary fp32 products takes many registers: that of h is not kept beside that of r h.
    Z_WITH_R: tl.constexpr = cut.IS_IEEE and not LOAD_TILES
    if cut.IN_FRAGMENTS:
        zero = fragments.zeros(cut.UNITS // cut.WARPS, cut.COLUMNS, cut.WARPS)
    else:
        zero = tl.zeros((cut.UNITS, cut.COLUMNS), tl.float32)
    # To reset before, the state has one place and r h the other: between two states all threads have passed r h.
    x = _operands(h, memory, turn if cut.RESET_AFTER else 0, cut)
    x_n = x
    z = ()
    # The first gate whose products are made of each tile by itself, right before its update.
    FIRST: tl.constexpr = 0 if cut.RESET_AFTER else 2 if Z_WITH_R else 1
    if not cut.RESET_AFTER:
        reset = ()
        for i in tl.static_range(cut.UNIT_TILES):
            a_r, a_z = zero, zero
            for k in tl.static_range(cut.UNIT_TILES):
                if LOAD_TILES:
                    w = w + (_load_tile(w_hh, 0, i, k, _place(0, i, k, cut) < cut.REGISTER_TILES, cut),)
                a_r = _multiply(w, memory, _place(0, i, k, cut), x[k], a_r, cut)
                if Z_WITH_R:
                    a_z = tl.dot(w[_place(1, i, k, cut)], x[k], acc=a_z, input_precision=cut.PRECISION)
            z = z + (isa.compute_before_wait(a_z) if Z_WITH_R else a_z,)
            r_h = isa.reset_state(_gate(gates[3 * i], cut), _results(a_r, cut), h[i], cut.DTYPE)
            if cut.PADDED_H != cut.H:
                r_h = tl.where(i * cut.UNITS + _units(cut) < cut.H, r_h, 0.0)  # as the state below
            reset = reset + (r_h,)
        x_n = _operands(reset, memory, 1, cut)
    new = ()
    for i in tl.static_range(cut.UNIT_TILES):
        a = (zero, zero if cut.RESET_AFTER else z[i], b_n[i])
        for k in tl.static_range(cut.UNIT_TILES):
            sums = a[:FIRST]
            for gate in tl.static_range(FIRST, 3):
                if LOAD_TILES:
                    w = w + (_load_tile(w_hh, gate, i, k, _place(gate, i, k, cut) < cut.REGISTER_TILES, cut),)
                x_k = x_n[k] if gate == 2 else x[k]
                sums = sums + (_multiply(w, memory, _place(gate, i, k, cut), x_k, a[gate], cut),)
            a = sums
        g_z, g_n = _gate(gates[3 * i + 1], cut), _gate(gates[3 * i + 2], cut)
        a_z, a_n = _results(a[1], cut), _results(a[2], cut)
        if cut.RESET_AFTER:
            g_r = _gate(gates[3 * i], cut)
            h_i = isa.gru_update(g_r, g_z, g_n, _results(a[0], cut), a_z, a_n, h[i], cut.DTYPE)
        else:
            h_i = isa.next_state(g_z, g_n, a_z, a_n, h[i], cut.DTYPE)
        if cut.PADDED_H != cut.H:
            # Units beyond H stay zero: an infinite state would make NaN of their zero weights, and they of all.
            h_i = tl.where(i * cut.UNITS + _units(cut) < cut.H, h_i, 0.0)
        new = new + (h_i,)
    return new, w


@triton.jit
def _multiply(w, memory, index: tl.constexpr, x, sums, cut: tl.constexpr):
    """Return ``sums`` and the product of tile ``index`` of W_hh with a tile of the state."""
    if cut.IN_FRAGMENTS:
        if index < len(w):
            tile = w[index]
        else:
            WORDS: tl.constexpr = cut.CHUNKS * (cut.UNITS // cut.WARPS // 8)
            tile = fragments.load_shared_tile(memory[0], index - len(w), WORDS, cut.WARPS)
        for c in tl.static_range(cut.CHUNKS):
            of_chunk = tile[len(tile) // cut.CHUNKS * c : len(tile) // cut.CHUNKS * (c + 1)]
            words = x[len(x) // cut.CHUNKS * c : len(x) // cut.CHUNKS * (c + 1)]
            sums = fragments.multiply(of_chunk, words, sums, cut.DTYPE)
        return sums
    else:
        return tl.dot(w[index], x, acc=sums, input_precision=cut.PRECISION)


@triton.jit
def _operands(tiles, memory, turn, cut: tl.constexpr):
    """Return the state, or r h, as right operands: of each tile."""
    x = ()
    if cut.IN_FRAGMENTS:
        OFFSET: tl.constexpr = fragments.state_bytes(cut.BATCH, cut.UNITS, cut.BITS)
        other = turn * fragments.state_bytes(cut.BATCH, cut.PADDED_H, cut.BITS)
        for k in tl.static_range(cut.UNIT_TILES):
            fragments.store_state(memory[1] + other, isa.round_operand(tiles[k], cut.DTYPE, cut.PRECISION), k * OFFSET)
        tl.debug_barrier()
        words = fragments.load_state(memory[2] + other, cut.UNIT_TILES * cut.CHUNKS, cut.BATCH)
        for k in tl.static_range(cut.UNIT_TILES):
            x = x + (words[len(words) // cut.UNIT_TILES * k : len(words) // cut.UNIT_TILES * (k + 1)],)
    else:
        for k in tl.static_range(cut.UNIT_TILES):
            x = x + (isa.operand(_columns(tiles[k], cut), cut.DTYPE, cut.PRECISION),)
    return x


@triton.jit
def _own_memory(unit, row, cut: tl.constexpr):
    """Return a thread's addresses in shared memory: of its weights, its results, and what it reads of the state."""
    SHARED_TILES: tl.constexpr = 3 * cut.UNIT_TILES * cut.UNIT_TILES - cut.REGISTER_TILES
    WEIGHTS: tl.constexpr = fragments.weights_bytes(SHARED_TILES * cut.CHUNKS, cut.UNITS // cut.WARPS, cut.WARPS)
    SIZE: tl.constexpr = WEIGHTS + 2 * fragments.state_bytes(cut.BATCH, cut.PADDED_H, cut.BITS)
    origin = fragments.touch_shared_memory(cut.WARPS)
    weights = fragments.shared_address(origin + 16 * fragments.thread(cut.WARPS), SIZE)
    results = fragments.shared_address(origin + WEIGHTS + fragments.state_offset(unit, row, cut.BATCH, cut.BITS), SIZE)
    words = fragments.shared_address(origin + WEIGHTS + fragments.lane_state_offset(cut.BATCH, cut.WARPS), SIZE)
    return weights, results, words


@triton.jit
def _bias_of_sums(b_hh, tile: tl.constexpr, IS_THERE: tl.constexpr, cut: tl.constexpr):
    """Return b_hn of a tile as sums to begin with."""
    first = tl.zeros((cut.WARPS, 8, 4), tl.float32)
    second = first
    sums = ()
    for m in tl.static_range(cut.UNITS // cut.WARPS // 16):
        if IS_THERE:
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
def _load_fragments(memory, w_hh, cut: tl.constexpr):
    """Return the tiles of W_hh that stay in registers, in the order of `_place`. The others go to shared memory."""
    for index in tl.static_range(cut.REGISTER_TILES, 3 * cut.UNIT_TILES * cut.UNIT_TILES):
        fragments.store_tile(memory[0], _load_fragments_of(w_hh, index, cut), index - cut.REGISTER_TILES, cut.WARPS)
    # Last: what passes through registers needs some itself.
    w = ()
    for index in tl.static_range(cut.REGISTER_TILES):
        w = w + (_load_fragments_of(w_hh, index, cut),)
    return w


@triton.jit
def _load_fragments_of(w_hh, index: tl.constexpr, cut: tl.constexpr):
    """Return the tile of W_hh that `_place` puts at ``index``."""
    GATE: tl.constexpr = _tile_at(index, cut, 0)
    ROW: tl.constexpr = _tile_at(index, cut, 1)
    COLUMN: tl.constexpr = _tile_at(index, cut, 2)
    unit = ROW * cut.UNITS + tl.arange(0, cut.WARPS)[:, None, None] * 16 + tl.arange(0, 8)[None, :, None]
    tile = ()
    for c in tl.static_range(cut.CHUNKS):
        word = (COLUMN * cut.CHUNKS + c) * 4 + tl.arange(0, 4)[None, None, :]
        tile = tile + fragments.load_tile(
            w_hh, GATE, unit, word, cut.UNITS // cut.WARPS, 16 * cut.WARPS, cut.H, cut.PRECISION
        )
    return tile


@triton.constexpr_function
def _tile_at(index, cut, which):
    """Return of the tile that `_place` puts at ``index`` the gate, or its row or its column of tiles."""
    tiles = cut.UNIT_TILES.value
    return next(
        (gate, i, k)[which]
        for gate in range(3) for i in range(tiles) for k in range(tiles)
        if _place(gate, i, k, cut) == index
    )  # fmt: skip


@triton.jit
def _load_all(w_hh, cut: tl.constexpr):
    """All tiles of W_hh, in the order of `_place`, to stay in shared memory."""
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
    """Load a tile [UNITS, UNITS] of one gate's W_hh, of the rows and columns of tiles i and k; zero beyond H."""
    row = i * cut.UNITS + tl.arange(0, cut.UNITS)[:, None]
    col = k * cut.UNITS + tl.arange(0, cut.UNITS)[None, :]
    if (i + 1) * cut.UNITS <= cut.H and (k + 1) * cut.UNITS <= cut.H:
        tile = tl.load(w_hh + (gate * cut.H + row) * cut.H + col)
    else:
        tile = tl.load(w_hh + (gate * cut.H + row) * cut.H + col, mask=(row < cut.H) & (col < cut.H), other=0.0)
    if cut.PRECISION == "tf32":
        tile = isa.round_to_tf32(tile)
    elif IN_REGISTERS:
        tile += 0.0  # what comes straight from a load, the compiler keeps in shared memory
    return tile


@triton.jit
def _select(condition, a, b):
    """Return of each tile a where ``condition``, and b elsewhere."""
    chosen = ()
    for i in tl.static_range(len(a)):
        chosen = chosen + (tl.where(condition, a[i], b[i]),)
    return chosen


@triton.jit
def _zero_where(condition, a):
    """Return zeros where ``condition``, and a elsewhere, of each tile."""
    chosen = ()
    for i in tl.static_range(len(a)):
        chosen = chosen + (tl.where(condition, 0.0, a[i]),)
    return chosen


@triton.jit
def _store_state(address, h, live, unit, cut: tl.constexpr):
    """Store all tiles of a state, rounded, where ``live``."""
    for i in tl.static_range(cut.UNIT_TILES):
        j = i * cut.UNITS + unit
        isa.store(address + j, h[i].to(cut.DTYPE), live & (j < cut.H))
