"""Products on the ordinary fp32 units for ``grid``, with W_hh in registers and no operand in shared memory.

Each warp sums over one slice of the hidden units, as with the matrix unit. Of a warp, ``LANES_PER_SLICE`` lanes share
the units of the slice. The other dimension of the warp has ACROSS = 32 // LANES_PER_SLICE lanes, which have different
rows of W_hh.

A thread multiplies its elements of W_hh by the elements of the state that it has itself received. It computes only
ROWS batch rows, not the eight columns of the matrix unit. ROWS is 1, 2 or 4. Then pairs of lanes exchange sums: of
every two sums each lane keeps one and gives the other one to its partner. Each lane adds what it received to what it
kept. After log2(LANES_PER_SLICE) exchanges every sum is in one lane. Last, the slices of all warps are added through
shared memory.

Values are tuples of tensors [SLICES, LANES_PER_SLICE, ACROSS], one value for each thread. This order, warps and then
lanes, is Triton's default layout of these tensors. ``cut`` is `grid.Cut`.
"""

import triton
import triton.language as tl

from . import exchange, isa, slices

# Elements of a word: adjacent elements of a row in one thread. More than two would leave lanes idle if H is small.
WORD_ELEMENTS = tl.constexpr(2)


@triton.constexpr_function
def count_thread_rows(units, lanes_per_slice):
    """Return how many rows of each gate of W_hh a thread holds."""
    return units * lanes_per_slice // 32


@triton.jit
def load_weights(w_hh, first_unit, cut: tl.constexpr):
    """Load a thread's elements of W_hh, zero beyond H.

    The result is a tuple, ordered by segment of columns, then by element of a word, then by gate, then by row.
    """
    ACROSS: tl.constexpr = 32 // cut.LANES_PER_SLICE
    SEGMENT: tl.constexpr = cut.SLICES * cut.LANES_PER_SLICE * WORD_ELEMENTS
    unit = first_unit + tl.arange(0, ACROSS)[None, None, :]
    column = thread_word_index(cut) * WORD_ELEMENTS
    pointers = w_hh + unit * cut.H + column
    w = ()
    for c in tl.static_range((cut.PADDED_H + SEGMENT - 1) // SEGMENT):
        for i in tl.static_range(WORD_ELEMENTS):
            is_valid = c * SEGMENT + i + column < cut.H
            for gate in tl.static_range(3):
                for u in tl.static_range(count_thread_rows(cut.UNITS, cut.LANES_PER_SLICE)):
                    if cut.PADDED_H != cut.H:
                        is_valid = (u * ACROSS + unit < cut.H) & (c * SEGMENT + i + column < cut.H)
                    offset = (gate * cut.H + u * ACROSS) * cut.H + c * SEGMENT + i
                    w = w + (isa.load_where(pointers + offset, is_valid, IS_CONSTANT=True),)
    return w


@triton.jit
def thread_word_index(cut: tl.constexpr):
    """Return the index of each thread's word within a segment."""
    word = (
        tl.arange(0, cut.SLICES)[:, None, None] * cut.LANES_PER_SLICE + tl.arange(0, cut.LANES_PER_SLICE)[None, :, None]
    )
    return tl.broadcast_to(word, (cut.SLICES, cut.LANES_PER_SLICE, 32 // cut.LANES_PER_SLICE))


def make_word_layout(cut, **tile_constants) -> exchange.WordLayout:
    """Return which words each thread receives: the words that it multiplies, ordered by segment, then by row.

    ``tile_constants`` are the other fields of the layout.
    """
    return exchange.WordLayout(
        WORDS_PER_SEGMENT=cut.SLICES.value * cut.LANES_PER_SLICE.value,
        ROWS_PER_THREAD=cut.ROWS.value,
        ADJACENT_WORDS=cut.UNITS.value // WORD_ELEMENTS.value,
        IS_WARP_WIDE=True,
        **tile_constants,
    )


@triton.jit
def element_offset(unit, row, cut: tl.constexpr):
    """Return the offset of an element in a tile of the mailbox, in elements.

    Here a program's units of one row are adjacent, because lanes read one row at a time. With
    `exchange.element_offset`, a word of the first row is followed by the same word of the next row.
    """
    return exchange.word_index(unit, row, cut.ROWS, cut.UNITS)


@triton.constexpr_function
def count_gate_tensors(gates, units, rows, warps):
    """Return how many tensors `load_gate_inputs` returns for the inputs of ``gates`` gates."""
    return -(-_count_sums(gates) * units * rows // (32 * warps))


@triton.constexpr_function
def _count_sums(gates):
    """Return how many sums the products of ``gates`` gates have, a power of two.

    Three gates have four sums, because the gate inputs of n are a sum by themselves: r multiplies n's product only. One
    gate, which is n, has two sums. Its inputs could be added, but the same form is kept. Two gates are r and z.
    """
    return {1: 2, 2: 2, 3: 4}[gates]


@triton.jit
def load_gate_inputs(gi, FIRST: tl.constexpr, END: tl.constexpr, cut: tl.constexpr):
    """Load the inputs of gates ``FIRST`` to ``END`` - 1, each into one thread.

    In each warp one thread will keep the slice's sum of an element. The input is in one of these threads. Values that
    are no input are zero.
    """
    ACROSS: tl.constexpr = 32 // cut.LANES_PER_SLICE
    THREAD_ROWS: tl.constexpr = count_thread_rows(cut.UNITS, cut.LANES_PER_SLICE)
    GATES: tl.constexpr = _count_sums(END - FIRST)
    inputs = ()
    for i in tl.static_range(count_gate_tensors(END - FIRST, cut.UNITS, cut.ROWS, cut.SLICES)):
        index = i * cut.SLICES * cut.LANES_PER_SLICE + thread_word_index(cut)
        gate = index // (cut.ROWS * THREAD_ROWS)
        unit = index % THREAD_ROWS * ACROSS + tl.arange(0, ACROSS)[None, None, :]
        has_input = gate < GATES
        if END == 3:  # the last sum is n's inputs, and the sum before it, n's product, has no inputs
            has_input = (gate < GATES) & (gate != GATES - 2)
            gate = tl.where(gate == GATES - 1, 2, gate)
        pointers = gi + (gate * cut.ROWS + index // THREAD_ROWS % cut.ROWS) * cut.PADDED_H + unit
        inputs = inputs + (isa.load_where(pointers, has_input, IS_CONSTANT=True),)
    return inputs


@triton.jit
def make_products(w, x, gate_inputs, FIRST: tl.constexpr, END: tl.constexpr, cut: tl.constexpr):
    """Return the products of gates ``FIRST`` to ``END`` - 1 with ``x``, the state or r h, each [ROWS, UNITS].

    ``gate_inputs`` are from `load_gate_inputs`. The inputs of r and z are added to their products. The inputs of n are
    returned after the products.
    """
    ROWS: tl.constexpr = cut.ROWS
    ACROSS: tl.constexpr = 32 // cut.LANES_PER_SLICE
    THREAD_ROWS: tl.constexpr = count_thread_rows(cut.UNITS, cut.LANES_PER_SLICE)
    GATES: tl.constexpr = _count_sums(END - FIRST)
    zero = tl.zeros((cut.SLICES, cut.LANES_PER_SLICE, ACROSS), tl.float32)
    sums = ()
    for _ in tl.static_range((END - FIRST) * ROWS * THREAD_ROWS):
        sums = sums + (zero,)
    for c in tl.static_range(len(x) // (ROWS * WORD_ELEMENTS)):
        for i in tl.static_range(WORD_ELEMENTS):
            added = ()
            for gate in tl.static_range(FIRST, END):
                for row in tl.static_range(ROWS):
                    value = x[(c * ROWS + row) * WORD_ELEMENTS + i].to(tl.float32, bitcast=True)
                    for u in tl.static_range(THREAD_ROWS):
                        weight = w[((c * WORD_ELEMENTS + i) * 3 + gate) * THREAD_ROWS + u]
                        added = added + (tl.fma(weight, value, sums[len(added)]),)
            sums = added
    for i in tl.static_range(isa.log2(cut.LANES_PER_SLICE)):
        halved = ()
        for k in tl.static_range((len(sums) + 1) // 2):
            kept, received = isa.exchange_lanes(sums[2 * k], sums[2 * k + 1] if 2 * k + 1 < len(sums) else zero, 1 << i)
            halved = halved + (kept + received,)
        sums = halved
    with_inputs = ()
    for k in tl.static_range(GATES * ROWS * THREAD_ROWS // cut.LANES_PER_SLICE):
        warp = tl.arange(0, cut.SLICES)[:, None, None]
        inputs = tl.where(warp == k % cut.SLICES, gate_inputs[k // cut.SLICES], 0.0)
        with_inputs = with_inputs + (sums[k] + inputs if k < len(sums) else inputs,)
    sums = with_inputs
    # Join the sums by tensor and lane. The compiler moves no layout conversion past a reduction (here over a dimension
    # of 1). Without the reduction it would move the conversion below to this place, and every thread would compute all
    # of the sums.
    x = tl.permute(isa.join_tensors(sums), (3, 0, 1, 2))
    x = tl.sum(tl.reshape(x, (len(sums), cut.SLICES, cut.LANES_PER_SLICE, ACROSS, 1)), 4)
    x = tl.permute(x, (0, 2, 3, 1))
    x = tl.permute(tl.reshape(x, (GATES, ROWS, THREAD_ROWS, ACROSS, cut.SLICES)), (1, 2, 3, 0, 4))
    x = slices.sum_last(x, cut.SLICES, cut.UNITS, ROWS, GATES)
    if GATES == 4:
        r_and_z, n_and_g_n = tl.split(tl.permute(tl.reshape(x, (ROWS, cut.UNITS, 2, 2)), (0, 1, 3, 2)))
        r, z = tl.split(r_and_z)
        n, g_n = tl.split(n_and_g_n)
        return r, z, n, g_n
    else:
        return tl.split(x)
