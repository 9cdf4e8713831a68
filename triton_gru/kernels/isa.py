"""The primitives of all kernels. Each docstring states what the primitive guarantees, and inline PTX keeps it.

Why assembly: ``tl.load`` and ``tl.store`` choose a coalesced layout. Converting a tile between that layout and the
matrix unit's costs a trip through shared memory and two barriers. Elementwise assembly has no layout of its own. It
adopts the layout of its operands, or of the operation that uses its result.

All inline assembly of the library is in this file and in fragments.py. Where its text depends on constants, a
``constexpr_function`` returns it. Triton's cache key includes the source of such functions.
"""

import re

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.constexpr_function
def log2(power):
    """Return the base-2 logarithm of a power of two."""
    return power.bit_length() - 1


# ---- Reading memory


@triton.jit
def load(pointer):
    """Load data that no thread writes during the launch, in the layout of the result's use. Bytes become int32."""
    BITS: tl.constexpr = pointer.dtype.element_ty.primitive_bitwidth
    if pointer.dtype.element_ty == tl.float32:
        return load(pointer.to(tl.pointer_type(tl.int32))).to(tl.float32, bitcast=True)
    else:
        return tl.inline_asm_elementwise(
            _load_ptx(BITS),
            _load_registers(BITS),
            [pointer.to(tl.int64)],
            dtype=tl.int32 if BITS == 8 else pointer.dtype.element_ty,
            is_pure=True,  # lets the compiler load directly in the one layout that is used
            pack=1,
        )


@triton.constexpr_function
def _load_ptx(bits):
    """Return PTX of `load` for elements of ``bits`` bits."""
    return f"ld.global.nc.{'u' if bits == 8 else 'b'}{bits} $0, [$1];"


@triton.constexpr_function
def _load_registers(bits):
    """Return the register constraints of `load`: the result, then the address."""
    return {8: "=r,l", 16: "=h,l", 32: "=r,l", 64: "=l,l"}[bits]


@triton.jit
def load_where(pointer, mask, IS_CONSTANT: tl.constexpr):
    """Load elements where ``mask``, in the layout of the result's use, and return zero elsewhere.

    With ``IS_CONSTANT`` no thread writes these elements during the launch. Without it, no other thread writes them, and
    the thread that loads them writes them only later.
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
    """Return PTX of `load_where`. ``nc`` may use the cache for constant data."""
    load = f"ld.global.nc.b{bits}" if is_constant else f"ld.global.b{bits}"
    return f"{{ .reg .pred p; setp.ne.s32 p, $2, 0; mov.b{bits} $0, 0; @p {load} $0, [$1]; }}"


@triton.jit
def load_gate_inputs(gi, tile_offset, GATE_STRIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Load the r, z and n inputs of one tile [ROWS, COLS], stored row by row, gates ``GATE_STRIDE`` elements apart.

    The three results are [ROWS, COLS // 2]. Each pair of columns stays one integer, so that a prefetched tile takes as
    few registers as possible. `gate_inputs_to_float` converts a gate's tile to fp32. ``GATE_STRIDE`` and
    ``tile_offset`` are even.
    """
    row = tl.arange(0, ROWS)[:, None]
    return load_pairs(gi, tile_offset // 2 + row * (COLS // 2) + tl.arange(0, COLS // 2)[None, :], GATE_STRIDE)


@triton.jit
def load_pairs(gi, pair_index, GATE_STRIDE: tl.constexpr):
    """Load the pairs with index ``pair_index`` of the r, z and n inputs, each pair as one integer."""
    if gi.dtype.element_ty.primitive_bitwidth == 32:
        pair = gi.to(tl.pointer_type(tl.int64)) + pair_index
    else:
        pair = gi.to(tl.pointer_type(tl.int32)) + pair_index
    return load(pair), load(pair + GATE_STRIDE // 2), load(pair + GATE_STRIDE)


@triton.jit
def gate_inputs_to_float(raw, DTYPE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Return the pairs that `load_gate_inputs` returned for one gate as fp32 [ROWS, COLS]."""
    low, high = split_pair(raw, DTYPE)
    return tl.reshape(tl.join(low, high), (ROWS, COLS))


@triton.jit
def split_pair(raw, DTYPE: tl.constexpr):
    """Return the first and the second value of each pair, in fp32."""
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
    """Return how many threads of a program store a tile of ``elements`` elements, one each, or 0 if all threads store.

    If a tile has fewer elements than the program has threads, the threads after the last element hold copies. Then only
    the first ``elements`` threads store.
    """
    return elements if elements < 32 * warps else 0


@triton.jit
def store(pointer, value, mask, THREADS: tl.constexpr = 0):
    """Store each element of ``value`` once where ``mask``, without a change of layout.

    ``THREADS`` is the result of `count_storing_threads`.
    """
    _store(pointer, value, mask, "st.global", 0, THREADS)


@triton.jit
def send(pointer, value, mask, OFFSET: tl.constexpr, THREADS: tl.constexpr):
    """Store ``value`` as `store` does, ``OFFSET`` elements after ``pointer``, for other programs that wait for it.

    Another program sees an element completely or not at all. It may see elements in any order.
    """
    BYTES: tl.constexpr = OFFSET * value.dtype.primitive_bitwidth // 8
    _store(pointer, value, mask, "st.relaxed.gpu.global", BYTES, THREADS)


@triton.jit
def _store(pointer, value, mask, INSTRUCTION: tl.constexpr, BYTES: tl.constexpr, THREADS: tl.constexpr):
    """Store ``value`` where ``mask`` by ``INSTRUCTION``, ``BYTES`` bytes after ``pointer``. See `store`, `send`."""
    BITS: tl.constexpr = value.dtype.primitive_bitwidth
    # With copies, the condition in PTX is "thread index < threads": false for copies, and for all where mask is false.
    condition = tl.where(mask, THREADS, 0) if THREADS else mask.to(tl.int32)
    tl.inline_asm_elementwise(
        _store_ptx(BITS, INSTRUCTION, BYTES, THREADS > 0),
        _store_registers(BITS),
        [pointer.to(tl.int64), value, condition],
        dtype=tl.int32,  # inline assembly must have a result
        is_pure=False,
        pack=1,
    )


@triton.constexpr_function
def _store_ptx(bits, instruction, offset, has_copies):
    """Return PTX that stores ``$2`` at ``$1`` plus ``offset`` bytes, under a condition, by ``instruction``.

    The condition is ``$3`` != 0. With ``has_copies`` it is that the thread's index is less than ``$3``. The result
    ``$0`` is a dummy.
    """
    plus = f"+{offset}" if offset else ""
    test = "mov.u32 t, %tid.x; setp.lt.u32 p, t, $3;" if has_copies else "setp.ne.s32 p, $3, 0;"
    return f"{{ .reg .pred p; .reg .b32 t; {test} @p {instruction}.b{bits} [$1{plus}], $2; mov.b32 $0, 0; }}"


@triton.constexpr_function
def _store_registers(bits):
    """Return the register constraints of `_store`: the dummy result, address, value and condition."""
    return {16: "=r,l,h,r", 32: "=r,l,r,r", 64: "=r,l,l,r"}[bits]


# ---- Operands of products


@triton.jit
def round_to_tf32(x, USE: tl.constexpr = 0):
    """Round fp32 to TF32's 10 mantissa bits. The matrix unit would truncate instead, at twice the error.

    Different ``USE`` keep Triton from merging two roundings of one value. ptxas still merges them.
    """
    # cvt.rna.tf32 clears the low bits of a NaN. If they are its whole payload, the result is infinity (seen on an
    # H200). Adding -0.0 first leaves all other values as they are, and makes any NaN the canonical NaN.
    return tl.inline_asm_elementwise(_tf32_ptx(USE), "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.constexpr_function
def _tf32_ptx(use):
    """Return PTX that adds -0.0 (see `round_to_tf32`) and rounds.

    The comment with ``use`` makes the text of each use different, so that Triton does not merge them. ptxas ignores it.
    """
    return f"add.f32 $0, $1, 0f80000000; cvt.rna.tf32.f32 $0, $0; // use {use}"


@triton.jit
def round_operand(x, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """Return fp32 ``x`` rounded to the precision of a product's operands."""
    return round_to_tf32(x) if PRECISION == "tf32" else x.to(DTYPE)


@triton.jit
def operand(x, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """Return fp32 ``x``, rounded, as an operand of ``tl.dot`` whose layout does not depend on the origin of ``x``."""
    x = round_operand(x, DTYPE, PRECISION)
    # An identity that the compiler cannot see through. Without it the compiler derives the operand's layout from the
    # join in gate_inputs_to_float. The loop's layout then differs from the peeled step's, and W_hh is held in both.
    PACK: tl.constexpr = 32 // x.dtype.primitive_bitwidth
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=PACK)


@triton.jit
def join_tensors(tensors):
    """Return ``tensors``, each [A, B, C], as one tensor [A, B, C, len(tensors)]. Their number is a power of two.

    Each round joins tensor k with tensor k + len(tensors) // 2. So the last dimension has the order of ``tensors``.
    """
    ROUNDS: tl.constexpr = log2(len(tensors))
    for _ in tl.static_range(ROUNDS):
        joined = ()
        for k in tl.static_range(len(tensors) // 2):
            joined = joined + (tl.join(tensors[k], tensors[k + len(tensors) // 2]),)
        tensors = joined
    return tl.reshape(tensors[0], tensors[0].shape[:3] + [1 << ROUNDS])


# ---- Between the lanes of a warp, and for the compiler


@triton.jit
def exchange_lanes(a, b, BIT: tl.constexpr):
    """Exchange values of two tensors [SLICES, LANES, ACROSS] between lanes.

    Each lane has one value of each tensor. Its partner is the lane whose index l in LANES differs only in ``BIT``.

    Returns:
        kept: the lane's value of ``b`` if its l has ``BIT``, otherwise of ``a``.
        received: the partner's value of the same tensor.
    """
    SLICES: tl.constexpr = a.shape[0]
    LANES: tl.constexpr = a.shape[1]
    ACROSS: tl.constexpr = a.shape[2]
    keeps_b = tl.broadcast_to(tl.arange(0, LANES)[None, :, None] & BIT, (SLICES, LANES, ACROSS))
    return tl.inline_asm_elementwise(
        _exchange_ptx(BIT * ACROSS),
        "=&r,=r,r,r,r",
        [a, b, keeps_b],
        dtype=(tl.float32, tl.float32),
        is_pure=True,
        pack=1,
    )


@triton.constexpr_function
def _exchange_ptx(distance):
    """Return PTX of `exchange_lanes`. ``distance`` is the difference of the partners' indices in the warp."""
    return (
        "{ .reg .pred p; .reg .b32 other; setp.ne.u32 p, $4, 0; selp.b32 $0, $3, $2, p; selp.b32 other, $2, $3, p; "
        f"shfl.sync.bfly.b32 $1, other, {distance}, 31, 0xffffffff; }}"
    )


@triton.jit
def mark_warp_uniform(x):
    """Return int32 ``x``, which is equal in all lanes, in a form that tells ptxas so.

    If ``x`` is the bound of a loop, the loop's body may exchange values between lanes.
    """
    return tl.inline_asm_elementwise(
        "redux.sync.max.s32 $0, $1, 0xffffffff;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def compute_before_wait(x):
    """Force fp32 ``x`` to be computed before the following wait or barrier, and return it.

    Otherwise the compiler may sink the computation below the wait, and keep its operands in registers across the wait.
    """
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=False, pack=1)


# ---- Gates


@triton.jit
def gru_update(g_r, g_z, g_n, a_r, a_z, a_n, h, DTYPE: tl.constexpr):
    """Return the next state by nn.GRU's formula, from gate inputs g = W_i x + b and products a = W_h h (+ b_hn).

    r = sigmoid(g_r + a_r)   z = sigmoid(g_z + a_z)   n = tanh(g_n + r a_n)   h' = n + z (h - n)
    """
    r = sigmoid(g_r.to(tl.float32) + a_r, DTYPE)
    return next_state(g_z, g_n, a_z, r * a_n, h, DTYPE)


@triton.jit
def next_state(g_z, g_n, a_z, a_n, h, DTYPE: tl.constexpr):
    """Return the next state as `gru_update` does, from an ``a_n`` that includes r: r (W_hn h + b_hn), or W_hn (r h)."""
    z = sigmoid(g_z.to(tl.float32) + a_z, DTYPE)
    n = tanh(g_n.to(tl.float32) + a_n, DTYPE)
    return n + z * (h - n)


@triton.jit
def make_r_h(g_r, a_r, h, DTYPE: tl.constexpr):
    """Return r h, the right operand of W_hn in the GRU of Cho et al. 2014 (arXiv:1406.1078v3)."""
    return sigmoid(g_r.to(tl.float32) + a_r, DTYPE) * h


@triton.jit
def sigmoid(x, DTYPE: tl.constexpr):
    """Return 1 / (1 + e^-x), finite at both infinities.

    For 16-bit results it is 0.5 tanh(x / 2) + 0.5, with half the absolute error of `tanh`.
    """
    if DTYPE == tl.float32:
        return _reciprocal(1.0 + _exp2(x * -LOG2_E))
    else:
        return 0.5 * tanh(0.5 * x, DTYPE) + 0.5


@triton.jit
def tanh(x, DTYPE: tl.constexpr):
    """Return the hyperbolic tangent.

    For 16-bit results it is the hardware's ``tanh.approx``, whose relative error of 2^-11 is that of rounding to fp16.
    """
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
def wait_words(pointer, tail, abort, watch, OFFSET: tl.constexpr, layout: tl.constexpr):
    """Wait until all words of a thread have arrived, and return the words as int32 tensors.

    There is one tensor for each segment, row of the thread, and part. If ``layout.PACK`` is more than 1, a thread has
    a part of this number of words in each tensor.

    ``layout``, an `exchange.WordLayout`, says which words these are. They begin ``OFFSET`` words after ``pointer``. If
    the last segment is incomplete, its words begin ``OFFSET`` words after ``tail``. An element of -1 has not arrived.

    No wait is endless. In every 64th round a thread reads the ``abort`` word and gives up if it is 1. In these rounds
    it also gives up if ``watch[0]`` nanoseconds have passed since its 64th round. Then it sets the abort word, and the
    host's word at address ``watch[1]``. After giving up, all parts consist of NaNs, also those that had arrived.
    """
    return tl.inline_asm_elementwise(
        _wait_ptx(layout, OFFSET, _capability()),
        _wait_registers(layout),
        [pointer.to(tl.int64), tail.to(tl.int64), abort.to(tl.int64), watch.to(tl.int64)],
        dtype=(tl.int32,) * layout.TENSORS,
        # If it were not pure, a thread would wait once for each layout in which its words are used. Being pure, it
        # could move above the send that it depends on. tests/compiled check in the PTX that it does not.
        is_pure=True,
        pack=layout.PACK,
    )


@triton.constexpr_function
def _wait_registers(layout):
    """Return the register constraints of `wait_words`: ``PACK`` for each result and for each of four addresses."""
    pack = layout.PACK.value
    return ",".join(["=&r"] * layout.TENSORS.value * pack + ["l"] * 4 * pack)


@triton.constexpr_function
def _wait_ptx(layout, offset, capability):
    """Return the loop of `wait_words` in PTX. In every 64th round it checks whether to give up."""
    pack, tensors = layout.PACK.value, layout.TENSORS.value
    # Registers are numbered by tensor, ``pack`` registers each. The addresses follow. ``abort`` and ``watch`` are the
    # same address ``pack`` times, so the first register of each is enough.
    names = [[f"${tensor * pack + j}" for j in range(pack)] for tensor in range(tensors)]
    all_names = [name for tensor in names for name in tensor]
    abort, watch = (f"${(tensors + i) * pack}" for i in (2, 3))
    loads = wait_loads(layout, offset)
    add, conclude = missing_ptx(layout.BITS.value, capability)
    # If lanes exchange values next, all lanes of a warp leave the loop together. A vote makes a predicate true for all
    # lanes if it is true for any lane.
    vote = {
        predicate: f"vote.sync.any.pred {predicate}, {predicate}, 0xffffffff; " if layout.IS_WARP_WIDE.value else ""
        for predicate in ("missing", "p")
    }
    if layout.PROBE.value:
        # Poll only the first word, and read the others when it has arrived. So waiting takes little memory bandwidth.
        fold_first_word = " ".join(add.replace("NEXT", names[part][0]) for part in range(layout.PARTS.value))
        loads.insert(1, f"mov.b32 seen, 0; {fold_first_word} {conclude} {vote['missing']}@missing bra LATER;")
    load = "\n".join(loads)
    test = "\n".join(["mov.b32 seen, 0;", *(add.replace("NEXT", name) for name in all_names), conclude])
    give_up = "\n".join(f"mov.b32 {name}, {layout.NAN.value:#x};" for name in all_names)
    return f"""{{
.reg .pred missing, p; .reg .b64 start, now, limit; .reg .b32 seen, a, b, rounds;
mov.b32 rounds, 0;
AGAIN:
{load}
{test}
{vote["missing"]}@!missing bra DONE;
LATER:
add.u32 rounds, rounds, 1; and.b32 a, rounds, 63; setp.ne.u32 p, a, 0; @p bra AGAIN;
ld.relaxed.gpu.global.b32 a, [{abort}]; setp.eq.u32 p, a, 1; {vote["p"]}@p bra GIVE_UP;
mov.u64 now, %globaltimer; setp.eq.u32 p, rounds, 64; @p mov.b64 start, now; sub.u64 now, now, start;
ld.global.b64 limit, [{watch}]; setp.lt.s64 p, now, limit; {vote["p"]}@p bra AGAIN;
mov.b32 a, 1; st.relaxed.gpu.global.b32 [{abort}], a;
ld.global.b64 limit, [{watch}+8]; st.relaxed.sys.global.b32 [limit], a;
GIVE_UP:
{give_up}
DONE:
}}"""


@triton.constexpr_function
def wait_loads(layout, offset):
    """Return a list of PTX loads, one for each word of a thread. They follow each other, so their latencies overlap."""
    pack, parts, tensors = layout.PACK.value, layout.PARTS.value, layout.TENSORS.value
    segments, rows = layout.SEGMENTS.value, layout.ROWS_PER_THREAD.value
    loads = []
    for segment in range(segments):
        in_tail = layout.HAS_TAIL.value and segment == segments - 1
        for row in range(rows):
            word = offset + row * layout.ROW_STRIDE.value + (0 if in_tail else segment * layout.STRIDE.value)
            first_part = (segment * rows + row) * parts
            for j in range(pack):
                registers = ", ".join(f"${(first_part + part) * pack + j}" for part in range(parts))
                address = (tensors + (1 if in_tail else 0)) * pack + j
                loads.append(f"ld.relaxed.gpu.global.v{parts}.b32 {{{registers}}}, [${address}+{4 * parts * word}];")
    return loads


@triton.constexpr_function
def missing_ptx(bits, capability):
    """Return PTX that folds a part ``NEXT`` into ``seen``, and PTX that sets the predicate ``missing`` from ``seen``.

    ``missing`` is true if an element, of ``bits`` bits, of any part is -1.
    """
    if bits == 32:
        return "max.u32 seen, seen, NEXT;", "setp.eq.u32 missing, seen, 0xFFFFFFFF;"
    # With y = ~x, a 16-bit half of x is -1 if that half of y is zero. (y - 0x00010001) & x & 0x80008000 is not 0
    # exactly if any half of y is zero.
    add = "sub.u32 b, 0xFFFEFFFE, NEXT; and.b32 b, b, NEXT; or.b32 seen, seen, b;"
    conclude = "and.b32 seen, seen, 0x80008000; setp.ne.u32 missing, seen, 0;"
    if capability < 90:
        return add, conclude
    # From sm_90 on, one instruction takes the larger one of two parts, half by half. Then one test at the end is
    # enough.
    test_largest = add.replace("NEXT", "a")
    return "max.u16x2 seen, seen, NEXT;", f"mov.b32 a, seen; mov.b32 seen, 0; {test_largest} {conclude}"


@tl.core.extern
def _capability(_semantic=None):
    """Return the compute capability of the target, such as 90."""
    return tl.constexpr(int(re.sub(r"\D", "", _semantic.builder.options.arch)))
