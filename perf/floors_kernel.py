"""Kernels that repeat one operation, to measure the highest rate of the device."""

import triton
import triton.language as tl

from triton_gru.kernels import exchange, fragments, isa


@triton.jit(do_not_specialize=["rounds"])
def read_shared(
    source,  # int32 [PARTS * PART]
    result,  # int32 [programs]
    rounds,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Read all of ``source`` in every program, ``rounds`` times, and store the sum of the elements read.

    Reads bypass the L1, as do the reads of other programs' state in ``grid``.
    """
    total = tl.zeros((PART,), tl.int32)
    for _ in range(rounds):
        # Programs start at different parts, so that they do not read the same part at the same time.
        for i in range(PARTS):
            part = (i + tl.program_id(0)) % PARTS
            total += tl.load(source + part * PART + tl.arange(0, PART), cache_modifier=".cg")
    tl.store(result + tl.program_id(0), tl.sum(total))


@triton.jit(do_not_specialize=["steps"])
def smallest_steps(
    w,  # fp16 [16, 16]
    result,  # fp32 [16, 8]
    steps,
):
    """Run the shortest steps of a GRU: one warp, 16 units, 8 rows, inputs of zero.

    These operations wait for each other in any GRU's step: a product, a sigmoid, a tanh and the update. The conversion
    of the state to an operand is the last.
    """
    row, pair = tl.arange(0, 8)[None, :, None], tl.arange(0, 4)[None, None, :]  # of each lane
    pairs = w.to(tl.pointer_type(tl.int32)) + row * 8 + pair
    weights = (tl.load(pairs), tl.load(pairs + 64), tl.load(pairs + 4), tl.load(pairs + 68))
    zero = tl.zeros((1, 8, 4), tl.float32)
    # Each lane has the states of two columns, for unit ``row`` (h0, h1) and for unit ``row + 8`` (h2, h3).
    h0, h1, h2, h3 = zero + 1.0, zero + 1.0, zero + 1.0, zero + 1.0
    for _ in range(steps):
        operand = (_transpose_pairs(h0, h1), _transpose_pairs(h2, h3))
        a = fragments.mma(weights, operand, (zero, zero, zero, zero), tl.float16)
        h0 = isa.gru_update(zero, zero, zero, a[0], a[0], a[0], h0, tl.float16)
        h1 = isa.gru_update(zero, zero, zero, a[1], a[1], a[1], h1, tl.float16)
        h2 = isa.gru_update(zero, zero, zero, a[2], a[2], a[2], h2, tl.float16)
        h3 = isa.gru_update(zero, zero, zero, a[3], a[3], a[3], h3, tl.float16)
    pointer = result + row * 8 + 2 * pair
    tl.store(pointer, h0)
    tl.store(pointer + 1, h1)
    tl.store(pointer + 64, h2)
    tl.store(pointer + 65, h3)


@triton.jit
def _transpose_pairs(low, high):
    """Return the transpose of a matrix of 8 units and 8 columns, in fp16, two values in an int32.

    Each lane passes the values of one unit in two adjacent columns, ``low`` and ``high``.
    """
    return tl.inline_asm_elementwise(
        "{ .reg .b32 pair; cvt.rn.f16x2.f32 pair, $2, $1; movmatrix.sync.aligned.m8n8.trans.b16 $0, pair; }",
        "=r,f,f", [low, high], dtype=tl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit(do_not_specialize=["steps"])
def hop_steps(
    mailbox,  # int64, see exchange. A slot is a tile of BATCH rows of ROW fp16 elements
    watch,  # int64 [2], see exchange
    result,  # int32 [PROGRAMS]
    steps,
    PROGRAMS: tl.constexpr,
    ROW: tl.constexpr,  # elements of a row. A program sends the same ROW // PROGRAMS elements of each row
    BATCH: tl.constexpr,  # rows
    SLICES: tl.constexpr,  # one for each warp
    words: tl.constexpr,  # the words of a tile, an `exchange.WordLayout`
):
    """Hand elements over among all programs, ``steps`` times, and store a result that depends on all of them.

    Each program makes its next ``history`` from the words received in a step, and sends elements that depend on it.
    So a step cannot begin before the previous step has ended, and wrong elements change the result.
    """
    DTYPE: tl.constexpr = tl.float16
    UNITS: tl.constexpr = ROW // PROGRAMS
    LANES: tl.constexpr = exchange.words_per_piece(4)
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)[:, None]
    offset = exchange.element_offset(unit, tl.arange(0, BATCH)[None, :], BATCH, exchange.elements_per_word(16, 4))
    elements = exchange.element_pointer(mailbox, DTYPE)
    word = tl.arange(0, SLICES)[:, None, None] * LANES + tl.arange(0, LANES)[None, :, None]
    row = tl.arange(0, BATCH)[None, None, :]

    THREADS: tl.constexpr = isa.count_storing_threads(UNITS * BATCH, SLICES)
    history = 0
    exchange.send(elements + offset, _make_elements(history, offset), offset >= 0, 0, THREADS, DTYPE, "ieee")
    for _ in tl.range(0, steps):
        x = exchange.receive(elements, 0, mailbox, watch, word, row, words)
        total = tl.zeros((SLICES, LANES, BATCH), tl.int32)
        for i in tl.static_range(len(x)):
            total += x[i]
        history = history * 5 + tl.sum(tl.ravel(total)).to(tl.int32)
        elements += BATCH * ROW
        exchange.send(elements + offset, _make_elements(history, offset), offset >= 0, 0, THREADS, DTYPE, "ieee")
    tl.store(result + tl.program_id(0), history)


@triton.jit
def _make_elements(history, element):
    """Return the values to send at the indices ``element``, integers that depend on ``history``.

    fp16 holds the values exactly. At most 128 of the 1024 possible values are sent at a time. If all of them occurred
    equally often, their sum would not depend on the history.
    """
    return (((history >> 12) + (element & 127)) & 1023).to(tl.float32)
