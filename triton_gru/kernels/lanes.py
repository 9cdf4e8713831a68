"""Products on the ordinary fp32 units for ``grid``, with W_hh in registers and no operand in shared memory.

A slice of the sum over units is a warp's, as with the matrix unit. Within the warp ``LANES_PER_SLICE`` lanes share the slice's
units, and the others the rows of W_hh. A thread multiplies what it has of W_hh by what it has itself waited for of the
state, and computes no column that is not there. Then lanes halve their sums by turns: of two sums each lane keeps one,
to which the other lane adds its own. What is left of the slices meets in shared memory once.

Tensors are [SLICES, LANES_PER_SLICE, ACROSS], a number for each thread, in tuples: the compiler's own layout has warps, then
lanes in this order. ``cut`` is `grid.Cut`.
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
def load_weights(w_hh, first_unit, cut: tl.constexpr):
    """Return a thread's numbers of W_hh: by chunk of columns, place in a word, gate and row. They are zero beyond H."""
    ACROSS: tl.constexpr = 32 // cut.LANES_PER_SLICE
    CHUNK: tl.constexpr = cut.SLICES * cut.LANES_PER_SLICE * WORD
    unit = first_unit + tl.arange(0, ACROSS)[None, None, :]
    column = thread_word_index(cut) * WORD
    address = w_hh + unit * cut.H + column
    w = ()
    for c in tl.static_range((cut.PADDED_H + CHUNK - 1) // CHUNK):
        for i in tl.static_range(WORD):
            there = c * CHUNK + i + column < cut.H
            for gate in tl.static_range(3):
                for u in tl.static_range(apart(cut.UNITS, cut.LANES_PER_SLICE)):
                    if cut.PADDED_H != cut.H:
                        there = (u * ACROSS + unit < cut.H) & (c * CHUNK + i + column < cut.H)
                    place = (gate * cut.H + u * ACROSS) * cut.H + c * CHUNK + i
                    w = w + (isa.load_where(address + place, there, True),)
    return w


@triton.jit
def thread_word_index(cut: tl.constexpr):
    """Return each thread's word of a chunk."""
    word = (
        tl.arange(0, cut.SLICES)[:, None, None] * cut.LANES_PER_SLICE + tl.arange(0, cut.LANES_PER_SLICE)[None, :, None]
    )
    return tl.broadcast_to(word, (cut.SLICES, cut.LANES_PER_SLICE, 32 // cut.LANES_PER_SLICE))


def word_layout(cut, **of_tile) -> exchange.WordLayout:
    """Return what each thread receives: the numbers that it multiplies, by chunk, row and number in a word."""
    return exchange.WordLayout(
        WORDS_PER_CHUNK=cut.SLICES.value * cut.LANES_PER_SLICE.value, ROWS_PER_THREAD=cut.ROWS.value, ADJACENT_WORDS=cut.UNITS.value // WORD.value,
        IS_WARP_WIDE=True, **of_tile,
    )  # fmt: skip


@triton.jit
def element_offset(unit, row, cut: tl.constexpr):
    """Return what `exchange.element_offset` does, with a row's units of a program side by side: lanes read one row at a time."""
    return exchange.word_place(unit, row, cut.ROWS, cut.UNITS)


@triton.constexpr_function
def count_gate_tensors(gates, units, rows, warps):
    """Return how many tensors `load_gates` makes of the inputs of so many gates."""
    return -(-_padded(gates) * units * rows // (32 * warps))


@triton.constexpr_function
def _padded(gates):
    """Return how many sums so many gates have. n's inputs are added to no product, and have a sum of their own."""
    return {1: 2, 2: 2, 3: 4}[gates]


@triton.jit
def load_gates(gi, FIRST: tl.constexpr, END: tl.constexpr, cut: tl.constexpr):
    """Return the inputs of the gates ``FIRST`` to before ``END``, each in one thread that has its sum."""
    ACROSS: tl.constexpr = 32 // cut.LANES_PER_SLICE
    APART: tl.constexpr = apart(cut.UNITS, cut.LANES_PER_SLICE)
    GATES: tl.constexpr = _padded(END - FIRST)
    words = ()
    for i in tl.static_range(count_gate_tensors(END - FIRST, cut.UNITS, cut.ROWS, cut.SLICES)):
        place = i * cut.SLICES * cut.LANES_PER_SLICE + thread_word_index(cut)
        gate = place // (cut.ROWS * APART)
        unit = place % APART * ACROSS + tl.arange(0, ACROSS)[None, None, :]
        there = gate < GATES
        if END == 3:
            there = (gate < GATES) & (gate != GATES - 2)
            gate = tl.where(gate == GATES - 1, 2, gate)
        address = gi + (gate * cut.ROWS + place // APART % cut.ROWS) * cut.PADDED_H + unit
        words = words + (isa.load_where(address, there, True),)
    return words


@triton.jit
def products(w, x, g, FIRST: tl.constexpr, END: tl.constexpr, cut: tl.constexpr):
    """Return the products of the gates ``FIRST`` to before ``END`` with the words ``x``, each [ROWS, UNITS].

    The inputs of r and z, from ``g``, are added to their products. Those of n follow the products.
    """
    ROWS: tl.constexpr = cut.ROWS
    ACROSS: tl.constexpr = 32 // cut.LANES_PER_SLICE
    APART: tl.constexpr = apart(cut.UNITS, cut.LANES_PER_SLICE)
    GATES: tl.constexpr = _padded(END - FIRST)
    zero = tl.zeros((cut.SLICES, cut.LANES_PER_SLICE, ACROSS), tl.float32)
    sums = ()
    for _ in tl.static_range((END - FIRST) * ROWS * APART):
        sums = sums + (zero,)
    for c in tl.static_range(len(x) // (ROWS * WORD)):
        for i in tl.static_range(WORD):
            added = ()
            for gate in tl.static_range(FIRST, END):
                for row in tl.static_range(ROWS):
                    number = x[(c * ROWS + row) * WORD + i].to(tl.float32, bitcast=True)
                    for u in tl.static_range(APART):
                        weight = w[((c * WORD + i) * 3 + gate) * APART + u]
                        added = added + (tl.fma(weight, number, sums[len(added)]),)
            sums = added
    for i in tl.static_range(isa.log2(cut.LANES_PER_SLICE)):
        halved = ()
        for k in tl.static_range((len(sums) + 1) // 2):
            mine, sent = isa.exchange_lanes(sums[2 * k], sums[2 * k + 1] if 2 * k + 1 < len(sums) else zero, 1 << i)
            halved = halved + (mine + sent,)
        sums = halved
    whole = ()
    for k in tl.static_range(GATES * ROWS * APART // cut.LANES_PER_SLICE):
        warp = tl.arange(0, cut.SLICES)[:, None, None]
        inputs = tl.where(warp == k % cut.SLICES, g[k // cut.SLICES], 0.0)
        whole = whole + (sums[k] + inputs if k < len(sums) else inputs,)
    sums = whole
    # Of the sums that are left, by tensor and lane. No conversion between layouts moves past a reduction: else the one
    # below would be up here, and all of this done in threads that have everything.
    x = tl.permute(isa.joined(sums), (3, 0, 1, 2))
    x = tl.sum(tl.reshape(x, (len(sums), cut.SLICES, cut.LANES_PER_SLICE, ACROSS, 1)), 4)
    x = tl.permute(x, (0, 2, 3, 1))
    x = tl.permute(tl.reshape(x, (GATES, ROWS, APART, ACROSS, cut.SLICES)), (1, 2, 3, 0, 4))
    x = slices.sum_last(x, cut.SLICES, cut.UNITS, ROWS, GATES)
    if GATES == 4:
        first, second = tl.split(tl.permute(tl.reshape(x, (ROWS, cut.UNITS, 2, 2)), (0, 1, 3, 2)))
        r, z = tl.split(first)
        n, g_n = tl.split(second)
        return r, z, n, g_n
    else:
        return tl.split(x)
