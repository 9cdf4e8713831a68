"""Primitives whose best form depends on the instruction set, each PTX form beside its plain twin.

``ISA`` is a constexpr: ``"ptx"`` on NVIDIA GPUs, ``"plain"`` on any other Triton backend,
``"interpreter"`` under ``TRITON_INTERPRET=1``. Waiting alone has a PTX form and no other (exchange.py says why). All
inline assembly of the project is in this file, but for that of fragments.py.

Why assembly at all: ``tl.load`` and ``tl.store`` choose a coalesced layout of their own, and moving each
tile between that and the layout of the matrix unit's accumulator costs a trip through shared memory and
two barriers. Element-wise assembly has no layout of its own, so it adopts the accumulator's.
"""

import hashlib
import itertools
import pathlib
import re

import triton
import triton.language as tl

# Of this file. Triton's cache of compiled kernels knows a kernel by the source of its jitted functions and by the
# constants they use, not by the functions below that put assembly together: those are handed this one.
_SOURCE = tl.constexpr(hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest())

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_index(pointer, ISA: tl.constexpr):
    """32-bit integers that nothing writes while they are read, in the layout they are used in."""
    return _load_word(pointer) if ISA == "ptx" else tl.load(pointer)


@triton.jit
def load_where(pointer, mask, IS_CONSTANT: tl.constexpr, ISA: tl.constexpr):
    """Return floating-point numbers as `load_number` does, and zero where not ``mask``.

    Only with ``IS_CONSTANT`` nothing writes them in this launch. Else this thread alone does, and later.
    """
    return _load_where(pointer, mask, IS_CONSTANT, _SOURCE) if ISA == "ptx" else tl.load(pointer, mask=mask, other=0.0)


@tl.core.extern
def _load_where(pointer, mask, is_constant, source, _semantic=None):
    dtype = pointer.dtype.element_ty
    bits = dtype.primitive_bitwidth
    load = f"ld.global.nc.b{bits}" if tl.core._unwrap_if_constexpr(is_constant) else f"ld.global.b{bits}"
    return tl.inline_asm_elementwise(
        f"{{ .reg .pred p; setp.ne.s32 p, $2, 0; mov.b{bits} $0, 0; @p {load} $0, [$1]; }}",
        f"=&{'h' if bits == 16 else 'r'},l,r",
        [pointer.to(tl.int64, _semantic=_semantic), mask.to(tl.int32, _semantic=_semantic)],
        dtype=dtype,
        is_pure=True,
        pack=1,
        _semantic=_semantic,
    )


@triton.jit
def load_flag(pointer, ISA: tl.constexpr):
    """As `load_index`, of bytes."""
    if ISA == "ptx":
        return tl.inline_asm_elementwise(
            "ld.global.nc.u8 $0, [$1];", "=r,l", [pointer.to(tl.int64)], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        return tl.load(pointer).to(tl.int32)


@triton.jit
def load_number(pointer, ISA: tl.constexpr):
    """Return floating-point numbers as `load_index` does integers."""
    if ISA == "ptx":
        if pointer.dtype.element_ty.primitive_bitwidth == 32:
            return _load_word(pointer.to(tl.pointer_type(tl.int32))).to(tl.float32, bitcast=True)
        else:
            return tl.inline_asm_elementwise(
                "ld.global.nc.b16 $0, [$1];", "=h,l", [pointer], dtype=pointer.dtype.element_ty, is_pure=True, pack=1
            )
    else:
        return tl.load(pointer)


@triton.jit
def load_gates(gi, tile_offset, GATE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, ISA: tl.constexpr):
    """The r, z and n inputs of one tile [ROWS, COLS], columns contiguous, gates ``GATE`` elements apart.

    Raw: under PTX a pair of columns is one machine word, so that a prefetched tile costs as few registers
    as it can. `gates_to_float` makes numbers of them. ``GATE`` and ``tile_offset`` are even.
    """
    row = tl.arange(0, ROWS)[:, None]
    if ISA == "ptx":
        return load_pairs(gi, tile_offset // 2 + row * (COLS // 2) + tl.arange(0, COLS // 2)[None, :], GATE)
    else:
        element = gi + tile_offset + row * COLS + tl.arange(0, COLS)[None, :]
        return tl.load(element), tl.load(element + GATE), tl.load(element + 2 * GATE)


@triton.jit
def load_pairs(gi, pair, GATE: tl.constexpr):
    """Return the pairs of numbers ``pair`` of r, z and n, each a machine word."""
    if gi.dtype.element_ty.primitive_bitwidth == 32:
        word = gi.to(tl.pointer_type(tl.int64)) + pair
    else:
        word = gi.to(tl.pointer_type(tl.int32)) + pair
    return _load_word(word), _load_word(word + GATE // 2), _load_word(word + GATE)


@triton.jit
def _load_word(pointer):
    # Pure: the compiler may keep it in the one layout that is used. Nothing writes it while it is read.
    if pointer.dtype.element_ty.primitive_bitwidth == 64:
        return tl.inline_asm_elementwise(
            "ld.global.nc.b64 $0, [$1];", "=l,l", [pointer], dtype=tl.int64, is_pure=True, pack=1
        )
    else:
        return tl.inline_asm_elementwise(
            "ld.global.nc.b32 $0, [$1];", "=r,l", [pointer], dtype=tl.int32, is_pure=True, pack=1
        )


@triton.jit
def gates_to_float(raw, DTYPE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, ISA: tl.constexpr):
    """fp32 [ROWS, COLS] of what `load_gates` returned."""
    if ISA == "ptx":
        low, high = split_pair(raw, DTYPE)
        return tl.reshape(tl.join(low, high), (ROWS, COLS))
    else:
        return raw.to(tl.float32)


@triton.jit
def split_pair(raw, DTYPE: tl.constexpr):
    """Return both numbers of pairs in fp32."""
    if DTYPE == tl.float32:
        low = raw.to(tl.int32).to(tl.float32, bitcast=True)
        high = (raw >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    elif DTYPE == tl.bfloat16:
        low = (raw << 16).to(tl.float32, bitcast=True)
        high = (raw & -65536).to(tl.float32, bitcast=True)
    else:
        low = raw.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        high = (raw >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return low, high


@triton.constexpr_function
def first_holders(elements, warps):
    """Return how many threads have an element of a tile first: 0 where none has a copy of another's.

    Where a tile has fewer elements than there are threads, those beyond its elements hold copies.
    """
    return elements if elements < 32 * warps else 0


@triton.jit
def store(pointer, value, mask, ISA: tl.constexpr, THREADS: tl.constexpr = 0):
    """Store as ``tl.store`` does, in the layout of ``value``. ``THREADS`` is what `first_holders` returned."""
    if ISA == "ptx":
        _store(pointer, value, mask, "st.global", 0, THREADS)
    else:
        tl.store(pointer, value, mask=mask)


@triton.jit
def send(pointer, value, mask, OFFSET: tl.constexpr, THREADS: tl.constexpr, ISA: tl.constexpr):
    """Store what other programs wait for as `store` does, ``OFFSET`` elements after ``pointer``."""
    if ISA == "ptx":
        BYTES: tl.constexpr = OFFSET * value.dtype.primitive_bitwidth // 8
        _store(pointer, value, mask, "st.relaxed.gpu.global", BYTES, THREADS)
    else:
        tl.store(pointer + OFFSET, value, mask=mask)


@triton.jit
def _store(pointer, value, mask, INSTRUCTION: tl.constexpr, BYTES: tl.constexpr, THREADS: tl.constexpr):
    threads = tl.where(mask, THREADS, 0) if THREADS else mask.to(tl.int32)
    _store_bits(pointer.to(tl.int64), value, threads, INSTRUCTION, BYTES, THREADS, _SOURCE)


@tl.core.extern
def _store_bits(address, value, mask, instruction, offset, threads, source, _semantic=None):
    instruction, offset, threads = (tl.core._unwrap_if_constexpr(x) for x in (instruction, offset, threads))
    bits = value.dtype.primitive_bitwidth
    register = {16: "h", 32: "r", 64: "l"}[bits]
    plus = f"+{offset}" if offset else ""
    # Where there are copies, the mask of an element is the number of threads that have it first.
    test = "mov.u32 t, %tid.x; setp.lt.u32 p, t, $3;" if threads else "setp.ne.s32 p, $3, 0;"
    return tl.inline_asm_elementwise(
        f"{{ .reg .pred p; .reg .b32 t; {test} @p {instruction}.b{bits} [$1{plus}], $2; mov.b32 $0, 0; }}",
        f"=r,l,{register},r",
        [address, value, mask],
        dtype=tl.int32,  # assembly has to return something
        is_pure=False,
        pack=1,
        _semantic=_semantic,
    )


@triton.jit
def cast(x, DTYPE: tl.constexpr, ISA: tl.constexpr):
    """fp32 to ``DTYPE``, rounded to nearest even. The interpreter would truncate to bf16."""
    if ISA == "interpreter" and DTYPE == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        rounded = tl.where(x == x, rounded, 0x7FC00000)
        return (rounded >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(DTYPE)


@triton.jit
def round_to_tf32(x, ISA: tl.constexpr, USE: tl.constexpr = 0):
    """fp32 rounded to TF32's 10 mantissa bits. The matrix unit by itself would truncate: twice the error.

    Of the same number, results with another ``USE`` differ for Triton, and are one for the assembler that follows.
    """
    if ISA == "ptx":
        return _round_to_tf32(x, USE, _SOURCE)
    else:
        bits = x.to(tl.int32, bitcast=True)
        rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        return tl.where(x == x, rounded, float("nan"))  # a NaN's payload must not overflow into the sign


@tl.core.extern
def _round_to_tf32(x, use, source, _semantic=None):
    # The conversion by itself clears the low bits of a NaN: where those are its whole payload, what is left is infinity
    # (seen on an H200). The sum with -0.0 is the number itself, but of any NaN the canonical one.
    return tl.inline_asm_elementwise(
        f"add.f32 $0, $1, 0f80000000; cvt.rna.tf32.f32 $0, $0; // use {tl.core._unwrap_if_constexpr(use)}",
        "=r,r",
        [x],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
        _semantic=_semantic,
    )


@triton.jit
def rounded(x, DTYPE: tl.constexpr, PRECISION: tl.constexpr, ISA: tl.constexpr):
    """Return fp32 ``x`` rounded to the precision that the matrix unit works in."""
    return round_to_tf32(x, ISA) if PRECISION == "tf32" else cast(x, DTYPE, ISA)


@triton.jit
def operand(x, DTYPE: tl.constexpr, PRECISION: tl.constexpr, ISA: tl.constexpr):
    """fp32 ``x`` as an operand of `matmul`: rounded to the precision the matrix unit works in."""
    x = rounded(x, DTYPE, PRECISION, ISA)
    if ISA == "ptx":
        # An opaque identity. Without it the search for the best operand layout runs back through the join
        # in gates_to_float, ends in another one than the step before the loop, and W is held twice.
        if x.dtype.primitive_bitwidth == 32:
            return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=1)
        else:
            return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=2)
    else:
        return x


@triton.jit
def left_operand(w, COLS: tl.constexpr, IN_REGISTERS: tl.constexpr, PRECISION: tl.constexpr, ISA: tl.constexpr):
    """A loaded [S, M, K] as the left operand of `matmul`s with [S, K, COLS] in a loop to come."""
    if PRECISION == "tf32":
        w = round_to_tf32(w, ISA)
    if ISA == "ptx" and IN_REGISTERS:
        # What comes straight from a load, the compiler keeps in shared memory; and in registers only what was in
        # the right place before the loop. So: a product here, with zeros that it cannot see through.
        w += 0.0
        x = tl.zeros((w.shape[0], w.shape[2], COLS), w.dtype)
        BITS: tl.constexpr = w.dtype.primitive_bitwidth
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=True, pack=32 // BITS)
        acc = matmul(w, x, tl.zeros((w.shape[0], w.shape[1], COLS), tl.float32), PRECISION, ISA)
        tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [acc], dtype=tl.int32, is_pure=False, pack=1)
    return w


@triton.jit
def matmul(a, b, acc, PRECISION: tl.constexpr, ISA: tl.constexpr):
    """``a @ b + acc`` in fp32. ``PRECISION`` matters for fp32 operands alone: "tf32" or "ieee"."""
    if ISA == "interpreter":
        # Its product of bf16 operands is wrong, and numpy's of fp32 ones may round a column by where it stands.
        product = tl.dot(a.to(tl.float64), b.to(tl.float64), out_dtype=tl.float64)
        return (product + acc).to(tl.float32)
    else:
        return tl.dot(a, b, acc=acc, input_precision=PRECISION)


@triton.constexpr_function
def in_fragments(dtype, precision, warps, isa):
    """Return whether products are made as kernels/fragments.py says: by the matrix unit, of more than a warp."""
    return isa == "ptx" and (dtype != tl.float32 or precision == "tf32") and warps > 1


@triton.constexpr_function
def log2(number):
    """Return the logarithm of a power of two."""
    return number.bit_length() - 1


@triton.jit
def joined(parts):
    """Return tensors joined along a new last dimension, in their order."""
    BITS: tl.constexpr = log2(len(parts))
    for _ in tl.static_range(BITS):
        longer = ()
        for k in tl.static_range(len(parts) // 2):
            longer = longer + (tl.join(parts[k], parts[k + len(parts) // 2]),)
        parts = longer
    return tl.reshape(parts[0], parts[0].shape[:3] + [1 << BITS])


@triton.jit
def exchange_lanes(a, b, BIT: tl.constexpr, ISA: tl.constexpr):
    """Return of each [s, l] of [S, L, N] one of a and b, b where l has ``BIT``; and the same one of [s, l ^ BIT].

    A lane of a warp has a number of each, and those of N lie side by side.
    """
    S: tl.constexpr = a.shape[0]
    L: tl.constexpr = a.shape[1]
    N: tl.constexpr = a.shape[2]
    if ISA == "ptx":
        is_second = tl.broadcast_to(tl.arange(0, L)[None, :, None] & BIT, (S, L, N))
        return _exchange_lanes(a, b, is_second, BIT * N, _SOURCE)
    else:
        both = tl.reshape(tl.join(a, b), (S, L // BIT // 2, 2, BIT, N, 2))
        second = tl.arange(0, 2)[None, None, :, None, None]
        a_of, b_of = tl.split(both)
        mine = tl.where(second == 1, b_of, a_of)
        _, high_a = tl.split(tl.permute(a_of, (0, 1, 3, 4, 2)))
        low_b, _ = tl.split(tl.permute(b_of, (0, 1, 3, 4, 2)))
        sent = tl.permute(tl.join(high_a, low_b), (0, 1, 4, 2, 3))
        return tl.reshape(mine, (S, L, N)), tl.reshape(sent, (S, L, N))


@tl.core.extern
def _exchange_lanes(a, b, is_second, distance, source, _semantic=None):
    return tl.inline_asm_elementwise(
        "{ .reg .pred p; .reg .b32 other; setp.ne.u32 p, $4, 0; selp.b32 $0, $3, $2, p; selp.b32 other, $2, $3, p; "
        f"shfl.sync.bfly.b32 $1, other, {tl.core._unwrap_if_constexpr(distance)}, 31, 0xffffffff; }}",
        "=&r,=r,r,r,r",
        [a, b, is_second],
        dtype=(tl.float32, tl.float32),
        is_pure=True,
        pack=1,
        _semantic=_semantic,
    )


@triton.jit
def of_warp(x, ISA: tl.constexpr):
    """Return x, the same int32 in all lanes, for the assembler to know it. A loop up to it may exchange lanes then."""
    if ISA == "ptx":
        return tl.inline_asm_elementwise(
            "redux.sync.max.s32 $0, $1, 0xffffffff;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        return x


@triton.jit
def by_now(x, ISA: tl.constexpr):
    """fp32 ``x``, made before the wait that follows: after it, all it is made of would have had to be kept."""
    if ISA == "ptx":
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=False, pack=1)
    else:
        return x


@triton.jit
def sigmoid(x, DTYPE: tl.constexpr, ISA: tl.constexpr):
    """1 / (1 + e^-x): finite at both infinities. As exact as ``DTYPE`` needs."""
    if ISA == "ptx":
        if DTYPE == tl.float32:
            return _reciprocal(1.0 + _exp2(x * -LOG2_E))
        else:
            return 0.5 * tanh(0.5 * x, DTYPE, ISA) + 0.5
    else:
        return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x, DTYPE: tl.constexpr, ISA: tl.constexpr):
    """Hyperbolic tangent. 16-bit results take the hardware's (2^-11 relative), below their own rounding."""
    if ISA == "ptx":
        if DTYPE == tl.float32:
            return 2.0 * _reciprocal(1.0 + _exp2(x * (-2.0 * LOG2_E))) - 1.0
        else:
            return tl.inline_asm_elementwise(
                "tanh.approx.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
            )
    else:
        return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0


@triton.jit
def gru_update(g_r, g_z, g_n, a_r, a_z, a_n, h, DTYPE: tl.constexpr, ISA: tl.constexpr):
    """The next state, from the gates' inputs g = W_i x + b and the products a = W_h h (+ b_hn): torch.nn.GRU's formula.

    r = sigmoid(g_r + a_r)   z = sigmoid(g_z + a_z)   n = tanh(g_n + r a_n)   h' = n + z (h - n)
    """
    r = sigmoid(g_r.to(tl.float32) + a_r, DTYPE, ISA)
    return next_state(g_z, g_n, a_z, r * a_n, h, DTYPE, ISA)


@triton.jit
def next_state(g_z, g_n, a_z, a_n, h, DTYPE: tl.constexpr, ISA: tl.constexpr):
    """As `gru_update`, of an a_n that r is in already: r W_hn h, or W_hn (r h) of `reset_state`."""
    z = sigmoid(g_z.to(tl.float32) + a_z, DTYPE, ISA)
    n = tanh(g_n.to(tl.float32) + a_n, DTYPE, ISA)
    return n + z * (h - n)


@triton.jit
def reset_state(g_r, a_r, h, DTYPE: tl.constexpr, ISA: tl.constexpr):
    """r h, which W_hn is multiplied by in the GRU of Cho et al. 2014 (arXiv:1406.1078v3)."""
    return sigmoid(g_r.to(tl.float32) + a_r, DTYPE, ISA) * h


@triton.jit
def _exp2(x):
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _reciprocal(x):
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


# Waits while anything is missing. Every 64th time round it asks whether to give up: because the launch's abort
# word is 1, or because the time in watch[0] is over; then it says so, there and in the host's word at watch[1].
_WAIT = """{{
.reg .pred missing, p; .reg .b64 start, now, limit; .reg .b32 seen, a, b, rounds;
mov.b32 rounds, 0;
AGAIN:
{load}
{test}
{whole}@!missing bra DONE;
LATER:
add.u32 rounds, rounds, 1; and.b32 a, rounds, 63; setp.ne.u32 p, a, 0; @p bra AGAIN;
ld.relaxed.gpu.global.b32 a, [{abort}]; setp.eq.u32 p, a, 1; {whole_p}@p bra GIVE_UP;
mov.u64 now, %globaltimer; setp.eq.u32 p, rounds, 64; @p mov.b64 start, now; sub.u64 now, now, start;
ld.global.b64 limit, [{watch}]; setp.lt.s64 p, now, limit; {whole_p}@p bra AGAIN;
mov.b32 a, 1; st.relaxed.gpu.global.b32 [{abort}], a;
ld.global.b64 limit, [{watch}+8]; st.relaxed.sys.global.b32 [limit], a;
GIVE_UP:
{give_up}
DONE:
}}"""

# By the bits of an element: what a part ``a`` of a word adds to ``seen``, and how that shows that one is missing.
_MISSING = {
    # The 16-bit parts of y = ~x: one is zero exactly where (y - 0x00010001) & x has a part's high bit.
    16: (
        "sub.u32 b, 0xFFFEFFFE, {a}; and.b32 b, b, {a}; or.b32 seen, seen, b;",
        "and.b32 seen, seen, 0x80008000; setp.ne.u32 missing, seen, 0;",
    ),
    32: ("max.u32 seen, seen, {a};", "setp.eq.u32 missing, seen, 0xFFFFFFFF;"),
}
# From sm_90 on, one instruction takes the larger halves of two parts. So the test above is made of the largest alone.
_MISSING_FROM_SM_90 = _MISSING | {
    16: (
        "max.u16x2 seen, seen, {a};",
        f"mov.b32 a, seen; mov.b32 seen, 0; {_MISSING[16][0].format(a='a')} {_MISSING[16][1]}",
    )
}


@triton.jit
def wait_words(
    pointer,
    tail,
    abort,
    watch,
    BITS: tl.constexpr,
    PARTS: tl.constexpr,
    COUNT: tl.constexpr,
    STRIDE: tl.constexpr,
    HAS_TAIL: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    NAN: tl.constexpr,
    PACK: tl.constexpr,
    PROBE: tl.constexpr,
    OFFSET: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Return the words at ``pointer``, ``STRIDE`` words after it and so on, ``COUNT`` times, when all have come.

    All of them lie ``OFFSET`` words further on. If ``HAS_TAIL``, the last words lie at ``tail``. Each stands for
    ``ROWS`` words, ``ROW_STRIDE`` apart. A word has ``PARTS`` parts of 32 bits, each an int32 tensor of its own. An
    element of ``BITS``, 16 or 32, that is -1 has not come. After giving up, each part is ``NAN``.

    One loop reads all that a thread needs, ``PACK`` words each time, so that their trips through memory overlap. With
    ``PROBE`` it does so once the first word has come, so that waiting takes little of what memory can deliver. With
    ``WHOLE`` a warp leaves the loop as a whole, which what its lanes exchange next calls for.
    """
    return _wait_words(
        pointer, tail, abort, watch, BITS, PARTS, COUNT, STRIDE, HAS_TAIL, ROWS, ROW_STRIDE, NAN, PACK, PROBE, OFFSET,
        WHOLE, _SOURCE,
    )  # fmt: skip


@tl.core.extern
def _wait_words(
    pointer, tail, abort, watch, bits, parts, count, stride, has_tail, rows, row_stride, nan, pack, probe, offset,
    whole, source, _semantic=None,
):  # fmt: skip
    bits, parts, count, stride, has_tail, rows, row_stride, nan, pack, probe, offset, whole = (
        tl.core._unwrap_if_constexpr(x)
        for x in (bits, parts, count, stride, has_tail, rows, row_stride, nan, pack, probe, offset, whole)
    )
    tensors = parts * rows * count
    # Of each tensor the registers of a thread's words.
    names = [[f"${tensor * pack + j}" for j in range(pack)] for tensor in range(tensors)]
    # The operands follow the results: ``pack`` of each, and of those that are the same for all the first will do.
    first, last, abort_, watch_ = (tensors * pack + i * pack for i in range(4))
    loads = []
    for i, row, j in itertools.product(range(count), range(rows), range(pack)):
        in_tail = has_tail and i == count - 1
        into = ", ".join(names[(i * rows + row) * parts + part][j] for part in range(parts))
        place = offset + row * row_stride + (0 if in_tail else i * stride)
        address = f"[${(last if in_tail else first) + j}+{4 * parts * place}]"
        loads.append(f"ld.relaxed.gpu.global.v{parts}.b32 {{{into}}}, {address};")
    add, conclude = (_MISSING_FROM_SM_90 if _capability(_semantic) >= 90 else _MISSING)[bits]
    any_of_warp = {
        each: f"vote.sync.any.pred {each}, {each}, 0xffffffff; " if whole else "" for each in ("missing", "p")
    }
    if probe:
        first_word = " ".join(add.format(a=names[part][0]) for part in range(parts))
        loads.insert(1, f"mov.b32 seen, 0; {first_word} {conclude} {any_of_warp['missing']}@missing bra LATER;")
    words = [name for tensor in names for name in tensor]
    asm = _WAIT.format(
        load="\n".join(loads),
        test="\n".join(["mov.b32 seen, 0;", *(add.format(a=word) for word in words), conclude]),
        whole=any_of_warp["missing"],
        whole_p=any_of_warp["p"],
        give_up="\n".join(f"mov.b32 {word}, {nan:#x};" for word in words),
        abort=f"${abort_}",
        watch=f"${watch_}",
    )
    addresses = [x.to(tl.int64, _semantic=_semantic) for x in (pointer, tail, abort, watch)]
    return tl.inline_asm_elementwise(
        asm,
        ",".join(["=&r"] * len(words) + ["l"] * 4 * pack),
        addresses,
        dtype=[tl.int32] * tensors,
        is_pure=True,  # else it would wait once for each layout that its words are wanted in
        pack=pack,
        _semantic=_semantic,
    )


def _capability(semantic) -> int:
    """Return the compute capability that is compiled for, such as 90."""
    return int(re.sub(r"\D", "", semantic.builder.options.arch))


@triton.jit
def load_words(pointer, PARTS: tl.constexpr, ISA: tl.constexpr):
    """Return the parts of words that other programs have written; adopts the layout they are used in."""
    if ISA == "ptx":
        return _load_words(pointer, PARTS, _SOURCE)
    else:
        parts = ()
        for i in tl.static_range(PARTS):
            parts = parts + (tl.load(pointer + i, volatile=True),)
        return parts


@tl.core.extern
def _load_words(pointer, parts, source, _semantic=None):
    parts = tl.core._unwrap_if_constexpr(parts)
    into = ", ".join(f"${i}" for i in range(parts))
    return tl.inline_asm_elementwise(
        f"ld.relaxed.gpu.global.v{parts}.b32 {{{into}}}, [${parts}];",
        ",".join(["=r"] * parts + ["l"]),
        [pointer.to(tl.int64, _semantic=_semantic)],
        dtype=(tl.int32,) * parts,
        is_pure=True,
        pack=1,
        _semantic=_semantic,
    )


@triton.jit
def split_part(part, ISA: tl.constexpr):
    """Return the two 16-bit halves of the parts of words, the lower one first."""
    if ISA == "ptx":
        # Of shifts and casts the assembler does not see that two halves side by side are a part as it was, and makes
        # it anew.
        return tl.inline_asm_elementwise(
            "mov.b32 {$0, $1}, $2;", "=h,=h,r", [part], dtype=(tl.int16,) * 2, is_pure=True, pack=1
        )
    else:
        return part.to(tl.int16), (part >> 16).to(tl.int16)
