"""The primitives of all kernels: each says what it promises, and keeps it in PTX.

Why assembly: ``tl.load`` and ``tl.store`` choose a coalesced layout of their own. To move a tile between it and the
matrix unit's layout costs a trip through shared memory and two barriers. Assembly for each element has no layout of its
own, so it adopts the layout of what it is made of or used for.

All inline assembly of the library is here and in fragments.py. Where its text depends on constants, a function of
Python makes it, a ``constexpr_function``: Triton's cache knows a kernel by the source of these, too.
"""

import re

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.constexpr_function
def log2(number):
    """Return the logarithm of a power of two."""
    return number.bit_length() - 1


# ---- Reading memory


@triton.jit
def load(pointer):
    """Load what nothing writes during the launch, in the layout that the result is used in. Bytes become int32."""
    BITS: tl.constexpr = pointer.dtype.element_ty.primitive_bitwidth
    if pointer.dtype.element_ty == tl.float32:
        return load(pointer.to(tl.pointer_type(tl.int32))).to(tl.float32, bitcast=True)
    else:
        return tl.inline_asm_elementwise(
            _load_ptx(BITS),
            _load_registers(BITS),
            [pointer.to(tl.int64)],
            dtype=tl.int32 if BITS == 8 else pointer.dtype.element_ty,
            is_pure=True,  # so that the compiler keeps it in the one layout that is used
            pack=1,
        )


@triton.constexpr_function
def _load_ptx(bits):
    return f"ld.global.nc.{'u' if bits == 8 else 'b'}{bits} $0, [$1];"


@triton.constexpr_function
def _load_registers(bits):
    return {8: "=r,l", 16: "=h,l", 32: "=r,l", 64: "=l,l"}[bits]


@triton.jit
def load_where(pointer, mask, IS_CONSTANT: tl.constexpr):
    """Load numbers where ``mask``, in the layout that they are used in. Elsewhere they are zero.

    With ``IS_CONSTANT`` nothing writes them during the launch. Else only the thread that loads them does, later.
    """
    BITS: tl.constexpr = pointer.dtype.element_ty.primitive_bitwidth
    return tl.inline_asm_elementwise(
        _load_where_ptx(BITS, IS_CONSTANT),
        "=&h,l,r" if BITS == 16 else "=&r,l,r",
        [pointer.to(tl.int64), mask.to(tl.int32)],
        dtype=pointer.dtype.element_ty,
        is_pure=True,
        pack=1,
    )


@triton.constexpr_function
def _load_where_ptx(bits, is_constant):
    load = f"ld.global.nc.b{bits}" if is_constant else f"ld.global.b{bits}"
    return f"{{ .reg .pred p; setp.ne.s32 p, $2, 0; mov.b{bits} $0, 0; @p {load} $0, [$1]; }}"


@triton.jit
def load_gates(gi, tile_offset, GATE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Load the r, z and n inputs of one tile [ROWS, COLS], columns contiguous, gates ``GATE`` elements apart.

    A pair of columns is one machine word, so that a prefetched tile costs as few registers as it can. `gates_to_float`
    makes numbers of it. ``GATE`` and ``tile_offset`` are even.
    """
    row = tl.arange(0, ROWS)[:, None]
    return load_pairs(gi, tile_offset // 2 + row * (COLS // 2) + tl.arange(0, COLS // 2)[None, :], GATE)


@triton.jit
def load_pairs(gi, pair, GATE: tl.constexpr):
    """Load the pairs of numbers ``pair`` of r, z and n, each a machine word."""
    if gi.dtype.element_ty.primitive_bitwidth == 32:
        word = gi.to(tl.pointer_type(tl.int64)) + pair
    else:
        word = gi.to(tl.pointer_type(tl.int32)) + pair
    return load(word), load(word + GATE // 2), load(word + GATE)


@triton.jit
def gates_to_float(raw, DTYPE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Return fp32 [ROWS, COLS] of what `load_gates` returned of one gate."""
    low, high = split_pair(raw, DTYPE)
    return tl.reshape(tl.join(low, high), (ROWS, COLS))


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


# ---- Writing memory


@triton.constexpr_function
def count_storing_threads(elements, warps):
    """Return how many threads have an element of a tile first: 0 where none has a copy of another's.

    Where a tile has fewer elements than there are threads, those beyond its elements hold copies.
    """
    return elements if elements < 32 * warps else 0


@triton.jit
def store(pointer, value, mask, THREADS: tl.constexpr = 0):
    """Store ``value`` where ``mask``, from the layout it is in, once: ``THREADS`` is what `count_storing_threads` returned."""
    _store(pointer, value, mask, "st.global", 0, THREADS)


@triton.jit
def send(pointer, value, mask, OFFSET: tl.constexpr, THREADS: tl.constexpr):
    """Store what other programs wait for as `store` does, ``OFFSET`` elements after ``pointer``.

    They see an element whole or not at all. Nothing is promised of the order of elements.
    """
    BYTES: tl.constexpr = OFFSET * value.dtype.primitive_bitwidth // 8
    _store(pointer, value, mask, "st.relaxed.gpu.global", BYTES, THREADS)


@triton.jit
def _store(pointer, value, mask, INSTRUCTION: tl.constexpr, BYTES: tl.constexpr, THREADS: tl.constexpr):
    BITS: tl.constexpr = value.dtype.primitive_bitwidth
    # Where there are copies, the mask of an element is the number of threads that have it first.
    threads = tl.where(mask, THREADS, 0) if THREADS else mask.to(tl.int32)
    tl.inline_asm_elementwise(
        _store_ptx(BITS, INSTRUCTION, BYTES, THREADS),
        _store_registers(BITS),
        [pointer.to(tl.int64), value, threads],
        dtype=tl.int32,  # assembly has to return something
        is_pure=False,
        pack=1,
    )


@triton.constexpr_function
def _store_ptx(bits, instruction, offset, threads):
    plus = f"+{offset}" if offset else ""
    test = "mov.u32 t, %tid.x; setp.lt.u32 p, t, $3;" if threads else "setp.ne.s32 p, $3, 0;"
    return f"{{ .reg .pred p; .reg .b32 t; {test} @p {instruction}.b{bits} [$1{plus}], $2; mov.b32 $0, 0; }}"


@triton.constexpr_function
def _store_registers(bits):
    return {16: "=r,l,h,r", 32: "=r,l,r,r", 64: "=r,l,l,r"}[bits]


# ---- Operands of products


@triton.jit
def round_to_tf32(x, USE: tl.constexpr = 0):
    """Round fp32 to TF32's 10 mantissa bits. The matrix unit by itself would truncate: twice the error.

    Of the same number, results with another ``USE`` differ for Triton, and are one for the assembler that follows.
    """
    # The conversion by itself clears the low bits of a NaN: where those are its whole payload, what is left is infinity
    # (seen on an H200). The sum with -0.0 is the number itself, but of any NaN the canonical one.
    return tl.inline_asm_elementwise(_tf32_ptx(USE), "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.constexpr_function
def _tf32_ptx(use):
    return f"add.f32 $0, $1, 0f80000000; cvt.rna.tf32.f32 $0, $0; // use {use}"


@triton.jit
def round_operand(x, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """Return fp32 ``x`` rounded to the precision that the matrix unit works in."""
    return round_to_tf32(x) if PRECISION == "tf32" else x.to(DTYPE)


@triton.jit
def operand(x, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """Return fp32 ``x``, `round_operand`, as an operand of ``tl.dot`` whose layout does not depend on where it comes from."""
    x = round_operand(x, DTYPE, PRECISION)
    # An identity that the compiler cannot see through. Without it the search for the best operand layout runs back
    # through the join in gates_to_float, ends in another one than the step before the loop, and W is held twice.
    PACK: tl.constexpr = 32 // x.dtype.primitive_bitwidth
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=PACK)


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


# ---- Between the lanes of a warp, and for the compiler


@triton.jit
def exchange_lanes(a, b, BIT: tl.constexpr):
    """Return of each [s, l] of [S, L, N] one of a and b, b where l has ``BIT``; and the same one of [s, l ^ BIT].

    A lane of a warp has a number of each, and those of N lie side by side.
    """
    S: tl.constexpr = a.shape[0]
    L: tl.constexpr = a.shape[1]
    N: tl.constexpr = a.shape[2]
    is_second = tl.broadcast_to(tl.arange(0, L)[None, :, None] & BIT, (S, L, N))
    return tl.inline_asm_elementwise(
        _exchange_ptx(BIT * N),
        "=&r,=r,r,r,r",
        [a, b, is_second],
        dtype=(tl.float32, tl.float32),
        is_pure=True,
        pack=1,
    )


@triton.constexpr_function
def _exchange_ptx(distance):
    return (
        "{ .reg .pred p; .reg .b32 other; setp.ne.u32 p, $4, 0; selp.b32 $0, $3, $2, p; selp.b32 other, $2, $3, p; "
        f"shfl.sync.bfly.b32 $1, other, {distance}, 31, 0xffffffff; }}"
    )


@triton.jit
def mark_warp_uniform(x):
    """Return x, the same int32 in all lanes, for the assembler to know it. A loop up to it may exchange lanes then."""
    return tl.inline_asm_elementwise(
        "redux.sync.max.s32 $0, $1, 0xffffffff;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def compute_before_wait(x):
    """Return fp32 ``x``, made before the wait that follows: after it, all it is made of would have had to be kept."""
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=False, pack=1)


# ---- Gates


@triton.jit
def gru_update(g_r, g_z, g_n, a_r, a_z, a_n, h, DTYPE: tl.constexpr):
    """Return the next state, from gate inputs g = W_i x + b and products a = W_h h (+ b_hn): torch.nn.GRU's formula.

    r = sigmoid(g_r + a_r)   z = sigmoid(g_z + a_z)   n = tanh(g_n + r a_n)   h' = n + z (h - n)
    """
    r = sigmoid(g_r.to(tl.float32) + a_r, DTYPE)
    return next_state(g_z, g_n, a_z, r * a_n, h, DTYPE)


@triton.jit
def next_state(g_z, g_n, a_z, a_n, h, DTYPE: tl.constexpr):
    """Return the next state as `gru_update` does, of an a_n that r is in already: r W_hn h, or W_hn (r h)."""
    z = sigmoid(g_z.to(tl.float32) + a_z, DTYPE)
    n = tanh(g_n.to(tl.float32) + a_n, DTYPE)
    return n + z * (h - n)


@triton.jit
def reset_state(g_r, a_r, h, DTYPE: tl.constexpr):
    """Return r h, which W_hn is multiplied by in the GRU of Cho et al. 2014 (arXiv:1406.1078v3)."""
    return sigmoid(g_r.to(tl.float32) + a_r, DTYPE) * h


@triton.jit
def sigmoid(x, DTYPE: tl.constexpr):
    """Return 1 / (1 + e^-x), finite at both infinities. For 16-bit results it is made of `tanh`, at half its error."""
    if DTYPE == tl.float32:
        return _reciprocal(1.0 + _exp2(x * -LOG2_E))
    else:
        return 0.5 * tanh(0.5 * x, DTYPE) + 0.5


@triton.jit
def tanh(x, DTYPE: tl.constexpr):
    """Return the hyperbolic tangent. For 16-bit results the hardware's: 2^-11 relative, as much as fp16's rounding."""
    if DTYPE == tl.float32:
        return 2.0 * _reciprocal(1.0 + _exp2(x * (-2.0 * LOG2_E))) - 1.0
    else:
        return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _exp2(x):
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _reciprocal(x):
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


# ---- Waiting for other programs


@triton.jit
def wait_words(pointer, tail, abort, watch, OFFSET: tl.constexpr, words: tl.constexpr):
    """Return a thread's ``words`` (an `exchange.WordLayout`) when all have come, a tensor for each of their parts.

    They begin ``OFFSET`` words after ``pointer``; those of the last chunk after ``tail``, if that chunk is not whole.
    An element that is -1 has not come.

    No wait is endless. Every 64th time round a thread looks at the ``abort`` word: if it is 1, the thread gives up. It
    also gives up when the nanoseconds in ``watch[0]`` are over, and sets the abort word and the host's word at
    ``watch[1]``. After giving up each part is a NaN.
    """
    return tl.inline_asm_elementwise(
        _wait_ptx(words, OFFSET, _capability()),
        _wait_registers(words),
        [pointer.to(tl.int64), tail.to(tl.int64), abort.to(tl.int64), watch.to(tl.int64)],
        dtype=(tl.int32,) * words.TENSORS,
        # Else it would wait once for each layout that its words are wanted in. That the compiler leaves it behind the
        # send that it waits for, tests/compiled read in the PTX.
        is_pure=True,
        pack=words.PACK,
    )


@triton.constexpr_function
def _wait_registers(words):
    """Return the registers of `wait_words`: of each result and each address one for each of a thread's words."""
    pack = words.PACK.value
    return ",".join(["=&r"] * words.TENSORS.value * pack + ["l"] * 4 * pack)


@triton.constexpr_function
def _wait_ptx(words, offset, capability):
    """Return the loop of `wait_words`. Every 64th time round it asks whether to give up."""
    pack, tensors = words.PACK.value, words.TENSORS.value
    # Of each tensor the registers of a thread's words. The addresses follow: of abort and watch the first will do.
    names = [[f"${tensor * pack + j}" for j in range(pack)] for tensor in range(tensors)]
    all_names = [name for tensor in names for name in tensor]
    abort, watch = (f"${(tensors + i) * pack}" for i in (2, 3))
    loads = wait_loads(words, offset)
    add, conclude = missing_ptx(words.BITS.value, capability)
    # A warp that exchanges lanes next leaves the loop as a whole.
    whole = {
        each: f"vote.sync.any.pred {each}, {each}, 0xffffffff; " if words.IS_WARP_WIDE.value else ""
        for each in ("missing", "p")
    }
    if words.PROBE.value:
        # The other words are read once the first has come, so that waiting takes little of what memory can deliver.
        first = " ".join(add.replace("NEXT", names[part][0]) for part in range(words.PARTS.value))
        loads.insert(1, f"mov.b32 seen, 0; {first} {conclude} {whole['missing']}@missing bra LATER;")
    load = "\n".join(loads)
    test = "\n".join(["mov.b32 seen, 0;", *(add.replace("NEXT", name) for name in all_names), conclude])
    give_up = "\n".join(f"mov.b32 {name}, {words.NAN.value:#x};" for name in all_names)
    return f"""{{
.reg .pred missing, p; .reg .b64 start, now, limit; .reg .b32 seen, a, b, rounds;
mov.b32 rounds, 0;
AGAIN:
{load}
{test}
{whole["missing"]}@!missing bra DONE;
LATER:
add.u32 rounds, rounds, 1; and.b32 a, rounds, 63; setp.ne.u32 p, a, 0; @p bra AGAIN;
ld.relaxed.gpu.global.b32 a, [{abort}]; setp.eq.u32 p, a, 1; {whole["p"]}@p bra GIVE_UP;
mov.u64 now, %globaltimer; setp.eq.u32 p, rounds, 64; @p mov.b64 start, now; sub.u64 now, now, start;
ld.global.b64 limit, [{watch}]; setp.lt.s64 p, now, limit; {whole["p"]}@p bra AGAIN;
mov.b32 a, 1; st.relaxed.gpu.global.b32 [{abort}], a;
ld.global.b64 limit, [{watch}+8]; st.relaxed.sys.global.b32 [limit], a;
GIVE_UP:
{give_up}
DONE:
}}"""


@triton.constexpr_function
def wait_loads(words, offset):
    """Return the loads of all ``words`` of a thread, so that their trips through memory overlap."""
    pack, parts, count, rows = (each.value for each in (words.PACK, words.PARTS, words.CHUNKS, words.ROWS_PER_THREAD))
    tensors = words.TENSORS.value
    loads = []
    for chunk in range(count):
        in_tail = words.HAS_TAIL.value and chunk == count - 1
        for row in range(rows):
            place = offset + row * words.ROW_STRIDE.value + (0 if in_tail else chunk * words.STRIDE.value)
            first = (chunk * rows + row) * parts
            for j in range(pack):
                into = ", ".join(f"${(first + part) * pack + j}" for part in range(parts))
                address = (tensors + (1 if in_tail else 0)) * pack + j
                loads.append(f"ld.relaxed.gpu.global.v{parts}.b32 {{{into}}}, [${address}+{4 * parts * place}];")
    return loads


@triton.constexpr_function
def missing_ptx(bits, capability):
    """Return what a part ``NEXT`` of words adds to ``seen``, and how that shows whether an element is missing."""
    if bits == 32:
        return "max.u32 seen, seen, NEXT;", "setp.eq.u32 missing, seen, 0xFFFFFFFF;"
    # The 16-bit parts of y = ~x: one is zero exactly where (y - 0x00010001) & x has a part's high bit.
    add = "sub.u32 b, 0xFFFEFFFE, NEXT; and.b32 b, b, NEXT; or.b32 seen, seen, b;"
    conclude = "and.b32 seen, seen, 0x80008000; setp.ne.u32 missing, seen, 0;"
    if capability < 90:
        return add, conclude
    # One instruction takes the larger halves of two parts. So the test above is made of the largest alone.
    of_largest = add.replace("NEXT", "a")
    return "max.u16x2 seen, seen, NEXT;", f"mov.b32 a, seen; mov.b32 seen, 0; {of_largest} {conclude}"


@tl.core.extern
def _capability(_semantic=None):
    """Return the compute capability that is compiled for, such as 90."""
    return tl.constexpr(int(re.sub(r"\D", "", _semantic.builder.options.arch)))
