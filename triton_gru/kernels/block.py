"""The ``block`` scan: one program owns all hidden units of a tile of the batch and walks the time steps.

The hidden state never leaves the program, so nothing is handed over between programs; ``W_hh`` is read from
memory once and stays on chip, in registers as the left operand of the matrix unit or in shared memory.

Orientation: units are rows, batch rows are columns. ``W_hh[j, k]`` as nn.GRU stores it is then the left
operand as it lies, the state is the right one, and eight batch rows are one column tile of ``mma.sync``.
"""

import triton
import triton.language as tl

from . import isa


@triton.jit(
    do_not_specialize=[
        "steps", "out_start", "first", "last", "layer", "batch", "out_t", "out_b", "hx_l", "hx_b",
    ]
)  # fmt: skip
def block_scan(
    gi,  # [steps, batch tiles, 3, TILES * UNITS, BATCH]: x W_ih^T + b_ih (+ b_hh for r and z)
    w_hh,  # [3 * H, H]
    b_hh,  # [3 * H]; only b_hn is read
    hx,  # [layers, batch, H] through strides; the state before the first step
    carry,  # fp32 [layers, batch, H]: the state between launches
    out,  # [time, batch, H] through strides
    h_n,  # [layers, batch, H]
    steps,
    out_start,  # the first step's index in out
    first,  # 1: the state comes from hx, 0: from carry
    last,  # 1: the state goes to h_n, 0: to carry
    layer,
    batch,
    out_t,
    out_b,
    hx_l,
    hx_b,
    H: tl.constexpr,
    UNITS: tl.constexpr,  # hidden units of a tile, a power of two
    TILES: tl.constexpr,  # tiles of units; TILES * UNITS >= H
    BATCH: tl.constexpr,  # batch rows of a program
    AHEAD: tl.constexpr,  # steps per loop iteration, which is how far gi is prefetched
    IN_REGISTERS: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_HX: tl.constexpr,
    ISA: tl.constexpr,
):
    DTYPE: tl.constexpr = out.dtype.element_ty
    # 64-bit offsets go into scalar addresses; what is left for the tiles is small.
    first_row = tl.program_id(0).to(tl.int64) * BATCH
    unit = tl.arange(0, UNITS)[:, None]
    row = tl.arange(0, BATCH)[None, :]
    row_live = first_row + row < batch
    hx += layer.to(tl.int64) * hx_l + first_row * hx_b
    carry += (layer.to(tl.int64) * batch + first_row) * H
    h_n += (layer.to(tl.int64) * batch + first_row) * H
    out += out_start.to(tl.int64) * out_t + first_row * out_b
    out_row = row.to(tl.int64) * out_b

    w = _load_weights(w_hh, H, UNITS, TILES, IN_REGISTERS, PRECISION, ISA)
    b_n = ()
    h = ()
    for i in tl.static_range(TILES):
        j = i * UNITS + unit
        live = row_live & (j < H)
        bias = tl.zeros((UNITS, BATCH), tl.float32)
        if HAS_BIAS:
            bias += tl.load(b_hh + 2 * H + j, mask=j < H, other=0.0).to(tl.float32)
        h_i = tl.load(carry + row * H + j, mask=live & (first == 0), other=0.0)
        if HAS_HX:
            h_i += tl.load(hx + row.to(tl.int64) * hx_b + j, mask=live & (first != 0), other=0.0).to(tl.float32)
        b_n = b_n + (bias,)
        h = h + (h_i,)

    STEP: tl.constexpr = 3 * TILES * UNITS * BATCH
    gi += tl.program_id(0).to(tl.int64) * STEP
    gi_t = tl.num_programs(0).to(tl.int64) * STEP

    START: tl.constexpr = 1 if IN_REGISTERS else 0
    if START == 1:
        # One step before the loop, through the same code: only then does the compiler keep W in registers.
        opening = _load_gates(gi, UNITS, TILES, BATCH, ISA)
        h = _advance(h, w, b_n, opening, 0, DTYPE, H, UNITS, TILES, BATCH, PRECISION, ISA)
        _store_state(out + out_row, h, row_live, DTYPE, H, UNITS, TILES, ISA)
        out += out_t
    ahead = ()
    for s in tl.static_range(AHEAD):
        ahead = ahead + _load_gates(gi + tl.minimum(START + s, steps - 1) * gi_t, UNITS, TILES, BATCH, ISA)
    for t in tl.range(START, steps, AHEAD):
        now = ahead
        ahead = ()
        for s in tl.static_range(AHEAD):
            ahead = ahead + _load_gates(gi + tl.minimum(t + AHEAD + s, steps - 1) * gi_t, UNITS, TILES, BATCH, ISA)
        for s in tl.static_range(AHEAD):
            new = _advance(h, w, b_n, now, s, DTYPE, H, UNITS, TILES, BATCH, PRECISION, ISA)
            if AHEAD == 1:
                h = new
                _store_state(out + out_row, h, row_live, DTYPE, H, UNITS, TILES, ISA)
            else:  # the last iteration may run past the end
                h = _select(t + s < steps, new, h, TILES)
                _store_state(out + out_row, h, row_live & (t + s < steps), DTYPE, H, UNITS, TILES, ISA)
            out += out_t

    for i in tl.static_range(TILES):
        j = i * UNITS + unit
        live = row_live & (j < H)
        tl.store(carry + row * H + j, h[i], mask=live & (last == 0))
        tl.store(h_n + row * H + j, isa.cast(h[i], DTYPE, ISA), mask=live & (last != 0))


@triton.jit
def _load_weights(
    w_hh,
    H: tl.constexpr,
    UNITS: tl.constexpr,
    TILES: tl.constexpr,
    IN_REGISTERS: tl.constexpr,
    PRECISION: tl.constexpr,
    ISA: tl.constexpr,
):
    """W_hh as tiles [UNITS, UNITS], gate by gate, row tile by row tile; zero beyond H."""
    j = tl.arange(0, UNITS)[:, None]
    k = tl.arange(0, UNITS)[None, :]
    w = ()
    for gate in tl.static_range(3):
        for row in tl.static_range(TILES):
            for col in tl.static_range(TILES):
                address = w_hh + (gate * H + row * UNITS + j) * H + col * UNITS + k
                if TILES * UNITS == H:
                    tile = tl.load(address)
                else:
                    tile = tl.load(address, mask=(row * UNITS + j < H) & (col * UNITS + k < H), other=0.0)
                if PRECISION == "tf32":
                    tile = isa.round_to_tf32(tile, ISA)
                elif IN_REGISTERS:
                    tile += 0.0  # a plain load would be sent to shared memory, and re-read from there every step
                w = w + (tile,)
    return w


@triton.jit
def _load_gates(gi, UNITS: tl.constexpr, TILES: tl.constexpr, BATCH: tl.constexpr, ISA: tl.constexpr):
    """One step's gate inputs: r, z, n of each tile of units."""
    GATE: tl.constexpr = TILES * UNITS * BATCH
    gates = ()
    for i in tl.static_range(TILES):
        gates = gates + isa.load_gates(gi, i * UNITS * BATCH, GATE, UNITS, BATCH, ISA)
    return gates


@triton.jit
def _advance(
    h,
    w,
    b_n,
    gates,
    s: tl.constexpr,
    DTYPE: tl.constexpr,
    H: tl.constexpr,
    UNITS: tl.constexpr,
    TILES: tl.constexpr,
    BATCH: tl.constexpr,
    PRECISION: tl.constexpr,
    ISA: tl.constexpr,
):
    """The state after one step, from step ``s`` of the prefetched ``gates``.

    r = sigmoid(gi_r + W_hr h)   z = sigmoid(gi_z + W_hz h)   n = tanh(gi_n + r (W_hn h + b_hn))
    h' = n + z (h - n), the formula of torch.nn.GRU.
    """
    x = ()
    for k in tl.static_range(TILES):
        x = x + (isa.operand(h[k], DTYPE, PRECISION, ISA),)
    new = ()
    for i in tl.static_range(TILES):
        a_r = tl.zeros((UNITS, BATCH), tl.float32)
        a_z = tl.zeros((UNITS, BATCH), tl.float32)
        a_n = b_n[i]
        for k in tl.static_range(TILES):
            a_r = isa.matmul(w[(0 * TILES + i) * TILES + k], x[k], a_r, PRECISION, ISA)
            a_z = isa.matmul(w[(1 * TILES + i) * TILES + k], x[k], a_z, PRECISION, ISA)
            a_n = isa.matmul(w[(2 * TILES + i) * TILES + k], x[k], a_n, PRECISION, ISA)
        g_r = isa.gates_to_float(gates[3 * (s * TILES + i)], DTYPE, UNITS, BATCH, ISA)
        g_z = isa.gates_to_float(gates[3 * (s * TILES + i) + 1], DTYPE, UNITS, BATCH, ISA)
        g_n = isa.gates_to_float(gates[3 * (s * TILES + i) + 2], DTYPE, UNITS, BATCH, ISA)
        r = isa.sigmoid(g_r + a_r, DTYPE, ISA)
        z = isa.sigmoid(g_z + a_z, DTYPE, ISA)
        n = isa.tanh(g_n + r * a_n, DTYPE, ISA)
        h_i = n + z * (h[i] - n)
        if TILES * UNITS != H:
            # Units beyond H stay zero: an infinite state would make NaN of their zero weights, and they of all.
            h_i = tl.where(i * UNITS + tl.arange(0, UNITS)[:, None] < H, h_i, 0.0)
        new = new + (h_i,)
    return new


@triton.jit
def _select(condition, a, b, TILES: tl.constexpr):
    chosen = ()
    for i in tl.static_range(TILES):
        chosen = chosen + (tl.where(condition, a[i], b[i]),)
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
    ISA: tl.constexpr,
):
    for i in tl.static_range(TILES):
        j = i * UNITS + tl.arange(0, UNITS)[:, None]
        isa.store(address + j, isa.cast(h[i], DTYPE, ISA), live & (j < H), ISA)
