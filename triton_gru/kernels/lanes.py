"""Products on the ordinary fp32 units for ``grid``, with W_hh in registers and no operand in shared memory.

A slice of the sum over units is a warp's, as with the matrix unit. Within the warp ``ALONG`` lanes share the slice's
units, and the others the rows of W_hh. A thread multiplies what it has of W_hh by what it has itself waited for of the
state, and computes no column that is not there. Then lanes halve their sums by turns: of two sums each lane keeps one,
to which the other lane adds its own. What is left of the slices meets in shared memory once.

Tensors are [SLICES, ALONG, ACROSS], a number for each thread, in tuples: the compiler's own layout has warps, then
lanes in this order.
"""

import triton
import triton.language as tl

from . import exchange, isa, slices

# Numbers of a row that a thread has side by side. More would leave lanes idle where H is small.
WORD = tl.constexpr(2)


@triton.constexpr_function
def apart(units, along):
    """Rows of W_hh that a thread has of each gate."""
    return units * along // 32


@triton.jit
def load_weights(
    w_hh,
    first_unit,
    H: tl.constexpr,
    UNITS: tl.constexpr,
    ROW: tl.constexpr,
    SLICES: tl.constexpr,
    ALONG: tl.constexpr,
    ISA: tl.constexpr,
):
    """Return a thread's numbers of W_hh: by chunk of columns, place in a word, gate and row. They are zero beyond H."""
    CHUNK: tl.constexpr = SLICES * ALONG * WORD
    unit = first_unit + tl.arange(0, 32 // ALONG)[None, None, :]
    column = _word(SLICES, ALONG) * WORD
    address = w_hh + unit * H + column
    w = ()
    for c in tl.static_range((ROW + CHUNK - 1) // CHUNK):
        for i in tl.static_range(WORD):
            there = c * CHUNK + i + column < H
            for gate in tl.static_range(3):
                for u in tl.static_range(apart(UNITS, ALONG)):
                    if ROW != H:
                        there = (u * (32 // ALONG) + unit < H) & (c * CHUNK + i + column < H)
                    place = (gate * H + u * (32 // ALONG)) * H + c * CHUNK + i
                    w = w + (isa.load_where(address + place, there, True, ISA),)
    return w


@triton.jit
def _word(SLICES: tl.constexpr, ALONG: tl.constexpr):
    """Return each thread's word of a chunk."""
    word = tl.arange(0, SLICES)[:, None, None] * ALONG + tl.arange(0, ALONG)[None, :, None]
    return tl.broadcast_to(word, (SLICES, ALONG, 32 // ALONG))


@triton.jit
def place(unit, row, UNITS: tl.constexpr, ROWS: tl.constexpr):
    """Return what `exchange.place` does, with a row's units of a program side by side: lanes read one row at a time."""
    return exchange.word_place(unit, row, ROWS, UNITS)


@triton.jit
def receive(
    box, OFFSET: tl.constexpr, abort, watch, ROW: tl.constexpr, UNITS: tl.constexpr, SLICES: tl.constexpr,
    ALONG: tl.constexpr, ROWS: tl.constexpr, DTYPE: tl.constexpr, HANDOVER: tl.constexpr, ISA: tl.constexpr,
):  # fmt: skip
    """Return for each thread the numbers that it multiplies, when the tile has come: by chunk, row and number."""
    return exchange.receive_words(
        box, OFFSET, abort, watch, _word(SLICES, ALONG), 0, WORD, ROW // WORD, SLICES * ALONG, ROWS, ROWS,
        1, UNITS // WORD, 1, True, DTYPE, HANDOVER, ISA,
    )  # fmt: skip


@triton.constexpr_function
def words_of_gates(gates, units, rows, warps):
    """Return how many tensors `load_gates` makes of the inputs of so many gates."""
    return -(-_padded(gates) * units * rows // (32 * warps))


@triton.constexpr_function
def _padded(gates):
    """Return how many sums so many gates have. n's inputs are added to no product, and have a sum of their own."""
    return {1: 2, 2: 2, 3: 4}[gates]


@triton.jit
def load_gates(
    gi, FIRST: tl.constexpr, END: tl.constexpr, UNITS: tl.constexpr, ROW: tl.constexpr, ROWS: tl.constexpr,
    SLICES: tl.constexpr, ALONG: tl.constexpr, ISA: tl.constexpr,
):  # fmt: skip
    """Return the inputs of the gates ``FIRST`` to before ``END``, each in one thread that has its sum."""
    APART: tl.constexpr = apart(UNITS, ALONG)
    GATES: tl.constexpr = _padded(END - FIRST)
    words = ()
    for i in tl.static_range(words_of_gates(END - FIRST, UNITS, ROWS, SLICES)):
        place = i * SLICES * ALONG + _word(SLICES, ALONG)
        gate = place // (ROWS * APART)
        unit = place % APART * (32 // ALONG) + tl.arange(0, 32 // ALONG)[None, None, :]
        there = gate < GATES
        if END == 3:
            there = (gate < GATES) & (gate != GATES - 2)
            gate = tl.where(gate == GATES - 1, 2, gate)
        words = words + (isa.load_where(gi + (gate * ROWS + place // APART % ROWS) * ROW + unit, there, True, ISA),)
    return words


@triton.jit
def products(
    w,
    x,
    g,
    FIRST: tl.constexpr,
    END: tl.constexpr,
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    SLICES: tl.constexpr,
    ALONG: tl.constexpr,
    ISA: tl.constexpr,
):
    """Return the products of the gates ``FIRST`` to before ``END`` with the words ``x``, each [ROWS, UNITS].

    The inputs of r and z, from ``g``, are added to their products. Those of n follow the products.
    """
    APART: tl.constexpr = apart(UNITS, ALONG)
    GATES: tl.constexpr = _padded(END - FIRST)
    NUMBER: tl.constexpr = tl.float64 if ISA == "interpreter" else tl.float32  # as in isa.matmul
    zero = tl.zeros((SLICES, ALONG, 32 // ALONG), NUMBER)
    sums = ()
    for _ in tl.static_range((END - FIRST) * ROWS * APART):
        sums = sums + (zero,)
    for c in tl.static_range(len(x) // (ROWS * WORD)):
        for i in tl.static_range(WORD):
            added = ()
            for gate in tl.static_range(FIRST, END):
                for row in tl.static_range(ROWS):
                    number = x[(c * ROWS + row) * WORD + i].to(tl.float32, bitcast=True).to(NUMBER)
                    for u in tl.static_range(APART):
                        weight = w[((c * WORD + i) * 3 + gate) * APART + u].to(NUMBER)
                        added = added + (tl.fma(weight, number, sums[len(added)]),)
            sums = added
    for i in tl.static_range(isa.log2(ALONG)):
        halved = ()
        for k in tl.static_range((len(sums) + 1) // 2):
            mine, sent = isa.exchange_lanes(
                sums[2 * k], sums[2 * k + 1] if 2 * k + 1 < len(sums) else zero, 1 << i, ISA
            )
            halved = halved + (mine + sent,)
        sums = halved
    whole = ()
    for k in tl.static_range(GATES * ROWS * APART // ALONG):
        inputs = tl.where(tl.arange(0, SLICES)[:, None, None] == k % SLICES, g[k // SLICES].to(NUMBER), 0.0)
        whole = whole + (sums[k] + inputs if k < len(sums) else inputs,)
    sums = whole
    # Of the sums that are left, by tensor and lane. No conversion between layouts moves past a reduction: else the one
    # below would be up here, and all of this done in threads that have everything.
    x = tl.permute(isa.joined(sums), (3, 0, 1, 2))
    x = tl.sum(tl.reshape(x, (len(sums), SLICES, ALONG, 32 // ALONG, 1)), 4)
    x = tl.permute(x, (0, 2, 3, 1))
    x = tl.permute(tl.reshape(x, (GATES, ROWS, APART, 32 // ALONG, SLICES)), (1, 2, 3, 0, 4))
    x = slices.sum_last(x, SLICES, UNITS, ROWS, GATES)
    if GATES == 4:
        first, second = tl.split(tl.permute(tl.reshape(x, (ROWS, UNITS, 2, 2)), (0, 1, 3, 2)))
        r, z = tl.split(first)
        n, g_n = tl.split(second)
        return r.to(tl.float32), z.to(tl.float32), n.to(tl.float32), g_n.to(tl.float32)
    else:
        first, second = tl.split(x)
        return first.to(tl.float32), second.to(tl.float32)
