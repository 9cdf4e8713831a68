"""The hand-over of the hidden state between the programs of one launch, through a mailbox in memory.

The mailbox is a header, then slots of tiles of the batch, an element for each unit of each row. An element goes out
as one store and is read as part of a 128-bit word; elements arrive in any order, and each shows by itself whether it
has come. A word holds neighbouring units of one row, and the words of the same units of all rows lie side by side:
what a warp reads at once, and what a program sends, is then one piece of memory. For ordinary fp32 products words have
64 bits.

There is a slot for every hand-over: of the state before each time step, and, where r comes before the recurrent
product, of r h by turns with it. The data is the flag: the mailbox is filled with -1 before the launch, and an element
is missing while it is -1, as a floating-point number a NaN that `_encode` never makes. A program waits in one of two
ways:

- ``"flag"``: a thread reads all of its words until all have come.
- ``"probe"``: it reads one word until that has come, and then all. A trip through memory more, but where many programs
  wait, they do not take what memory can deliver from those that need not.

No wait is endless. A program that has waited for as long as ``watch`` says takes NaNs for what is missing, so that
all that depends on it becomes NaN, sets the launch's abort word, so that no other wait is as long, and a word in
the host's memory (launch/hang.py).

Threads wait, each for its own words, in PTX. There is no portable form: Triton takes what one thread finds for what
all have found, and the warps of a program that gives up would leave the loop at different times. In the interpreter
programs take turns (turns.py).
"""

import triton
import triton.language as tl

from . import isa, turns

# The header, in units of 64 bits: the abort word, in a line of 128 bytes of its own.
HEADER = tl.constexpr(16)


@triton.jit
def elements_of(mailbox, DTYPE: tl.constexpr):
    """Return a pointer to the first element of a mailbox."""
    element: tl.constexpr = tl.int32 if DTYPE == tl.float32 else tl.int16
    return (mailbox + HEADER).to(tl.pointer_type(element))


@triton.constexpr_function
def word_elements(dtype, parts):
    """Return the elements of a word of so many parts of 32 bits."""
    return 32 * parts // dtype.primitive_bitwidth


@triton.constexpr_function
def word_lanes(parts):
    """Return the words of a row that a slice takes at a time.

    Those of four parts are one for each lane of a column of the matrix unit's right operand.
    """
    return 16 // parts


@triton.jit
def place(unit, row, ROWS: tl.constexpr, WORD: tl.constexpr):
    """Return the index of a unit and one of ``ROWS`` batch rows among a tile's elements, ``WORD`` in a word."""
    return word_place(unit // WORD, row, ROWS, 1) * WORD + unit % WORD


@triton.jit
def word_place(word, row, ROWS: tl.constexpr, TOGETHER: tl.constexpr):
    """Return the index of a row's word among a tile's words, of which ``TOGETHER`` of a row lie side by side."""
    return (word // TOGETHER * ROWS + row) * TOGETHER + word % TOGETHER


@triton.jit
def send(
    element, x, mask, OFFSET: tl.constexpr, THREADS: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    ISA: tl.constexpr,
):  # fmt: skip
    """Send fp32 ``x``, all that this program has of a tile, to ``element`` and ``OFFSET`` where ``mask``.

    ``THREADS`` is what `isa.first_holders` returned.
    """
    isa.send(element, _encode(x, DTYPE, PRECISION, ISA), mask, OFFSET, THREADS, ISA)


@triton.jit
def _encode(x, DTYPE: tl.constexpr, PRECISION: tl.constexpr, ISA: tl.constexpr):
    """fp32 ``x`` as the bits of a product's operand, with one NaN for all."""
    value = isa.rounded(x, DTYPE, PRECISION, ISA)
    if DTYPE == tl.float32:
        return tl.where(x == x, value.to(tl.int32, bitcast=True), 0x7FFFFFFF)
    else:
        return tl.where(x == x, value.to(tl.int16, bitcast=True), 0x7FFF).to(tl.int16)


@triton.jit
def receive(
    box,
    OFFSET: tl.constexpr,
    abort,
    watch,
    PARTS: tl.constexpr,
    WORDS: tl.constexpr,
    SLICES: tl.constexpr,
    ROWS: tl.constexpr,
    BATCH: tl.constexpr,
    DTYPE: tl.constexpr,
    HANDOVER: tl.constexpr,
    ISA: tl.constexpr,
):
    """Return a tile when all of it has come.

    Its ``ROWS`` rows of ``WORDS`` words of ``PARTS`` parts begin ``OFFSET`` elements after ``box``. The result is a
    tuple of int32 [SLICES, lanes, BATCH]: the parts of the first words, of the next ones, and so on. After the last
    word come zeros, and after the last row that row again.
    """
    LANES: tl.constexpr = word_lanes(PARTS)
    row = tl.minimum(tl.arange(0, BATCH)[None, None, :], ROWS - 1)
    word = tl.arange(0, SLICES)[:, None, None] * LANES + tl.arange(0, LANES)[None, :, None]
    PACK: tl.constexpr = (LANES * BATCH + 31) // 32  # words of a thread in each of the tensors
    return receive_words(
        box, OFFSET, abort, watch, word, row, PARTS, WORDS, SLICES * LANES, ROWS, 1, 1, 1, PACK, False, DTYPE, HANDOVER,
        ISA,
    )  # fmt: skip


@triton.jit
def receive_fragments(
    box, OFFSET: tl.constexpr, abort, watch, WORDS: tl.constexpr, SLICES: tl.constexpr, ROWS: tl.constexpr,
    BATCH: tl.constexpr, DTYPE: tl.constexpr, HANDOVER: tl.constexpr, ISA: tl.constexpr,
):  # fmt: skip
    """Return a tile as `receive` does, as words for `fragments.multiply`: by chunk, eight rows and part."""
    word = tl.arange(0, SLICES)[:, None, None] * 4 + tl.arange(0, 4)[None, None, :]
    row = tl.minimum(tl.arange(0, 8)[None, :, None], ROWS - 1)
    EIGHTS: tl.constexpr = (ROWS + 7) // 8
    x = receive_words(
        box, OFFSET, abort, watch, word, row, 4, WORDS, SLICES * 4, ROWS, EIGHTS, 8, 1, 1, False, DTYPE, HANDOVER, ISA
    )  # fmt: skip
    if EIGHTS == BATCH // 8:
        return x
    else:
        repeated = ()
        for i in tl.static_range(len(x) // 4):
            repeated = repeated + x[4 * i : 4 * i + 4] + x[4 * i : 4 * i + 4]
        return repeated


@triton.jit
def receive_words(
    box,
    OFFSET: tl.constexpr,
    abort,
    watch,
    word,
    row,
    PARTS: tl.constexpr,
    WORDS: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    ROWS_EACH: tl.constexpr,
    ROWS_APART: tl.constexpr,
    TOGETHER: tl.constexpr,
    PACK: tl.constexpr,
    WHOLE: tl.constexpr,
    DTYPE: tl.constexpr,
    HANDOVER: tl.constexpr,
    ISA: tl.constexpr,
):
    """Return of every ``CHUNK`` words of a tile those at ``word``, of ``ROWS_EACH`` rows: ``row`` and what follows.

    From one of these rows to the next there are ``ROWS_APART``. A word has ``PARTS`` parts. Of a row ``TOGETHER`` words
    lie side by side, then those of the next row. The result has the parts of a word, then the next rows, then the next
    chunk. With ``WHOLE`` a warp waits as a whole.
    """
    BITS: tl.constexpr = DTYPE.primitive_bitwidth
    NAN: tl.constexpr = 0x7FFFFFFF if DTYPE == tl.float32 else 0x7FFF7FFF
    COUNT: tl.constexpr = (WORDS + CHUNK - 1) // CHUNK
    HAS_TAIL: tl.constexpr = COUNT * CHUNK != WORDS
    ROW_STRIDE: tl.constexpr = ROWS_APART * TOGETHER
    FIRST: tl.constexpr = OFFSET * BITS // (32 * PARTS)
    in_tail = (COUNT - 1) * CHUNK + word
    words = box.to(tl.pointer_type(tl.int32))
    pointer = words + word_place(word, row, ROWS, TOGETHER) * PARTS
    tail = words + word_place(tl.minimum(in_tail, WORDS - 1), row, ROWS, TOGETHER) * PARTS
    if ISA == "ptx":
        x = isa.wait_words(
            pointer, tail, abort, watch, BITS, PARTS, COUNT, CHUNK * ROWS, HAS_TAIL, ROWS_EACH, ROW_STRIDE, NAN, PACK,
            HANDOVER == "probe", FIRST, WHOLE,
        )  # fmt: skip
    else:
        tl.static_assert(ISA == "interpreter", "programs wait for each other in PTX alone")
        x = load_words(pointer, tail, PARTS, COUNT, CHUNK * ROWS, HAS_TAIL, ROWS_EACH, ROW_STRIDE, FIRST, ISA)
        while turns.missing(x, BITS):
            x = load_words(pointer, tail, PARTS, COUNT, CHUNK * ROWS, HAS_TAIL, ROWS_EACH, ROW_STRIDE, FIRST, ISA)
    if HAS_TAIL:
        BEFORE: tl.constexpr = (COUNT - 1) * ROWS_EACH * PARTS
        ended = ()
        for i in tl.static_range(ROWS_EACH * PARTS):
            ended = ended + (tl.where(in_tail < WORDS, x[BEFORE + i], 0),)
        x = x[:BEFORE] + ended
    return x


@triton.jit
def load_words(
    pointer, tail, PARTS: tl.constexpr, COUNT: tl.constexpr, STRIDE: tl.constexpr, HAS_TAIL: tl.constexpr,
    ROWS: tl.constexpr, ROW_STRIDE: tl.constexpr, OFFSET: tl.constexpr, ISA: tl.constexpr,
):  # fmt: skip
    """Return the words that `isa.wait_words` would wait for as they are now."""
    words = ()
    for i in tl.static_range(COUNT):
        first = tail if HAS_TAIL and i == COUNT - 1 else pointer + i * STRIDE * PARTS
        for row in tl.static_range(ROWS):
            words = words + isa.load_words(first + (OFFSET + row * ROW_STRIDE) * PARTS, PARTS, ISA)
    return words


@triton.jit
def values(x, DTYPE: tl.constexpr, ISA: tl.constexpr):
    """Return words, a tuple of their parts [S, lanes, N], as their elements [S, lanes * elements of a word, N].

    The order of the elements is that which `in_order` gives units.
    """
    S: tl.constexpr = x[0].shape[0]
    L: tl.constexpr = x[0].shape[1]
    N: tl.constexpr = x[0].shape[2]
    PARTS: tl.constexpr = len(x)
    WORD: tl.constexpr = word_elements(DTYPE, PARTS)
    if PARTS == 2:
        elements = tl.join(x[0], x[1])
    elif DTYPE == tl.float32:
        elements = tl.join(tl.join(x[0], x[2]), tl.join(x[1], x[3]))
    else:
        low = ()
        high = ()
        for i in tl.static_range(4):
            halves = isa.split_part(x[i], ISA)
            low = low + (halves[0],)
            high = high + (halves[1],)
        low = tl.join(tl.join(low[0], low[2]), tl.join(low[1], low[3]))
        high = tl.join(tl.join(high[0], high[2]), tl.join(high[1], high[3]))
        elements = tl.join(low, high)
    elements = tl.reshape(elements.to(DTYPE, bitcast=True), (S, L, N, WORD))
    return in_order(tl.reshape(tl.permute(elements, (0, 1, 3, 2)), (S, L * WORD, N)), PARTS, DTYPE)


@triton.jit
def in_order(x, PARTS: tl.constexpr, DTYPE: tl.constexpr):
    """Return [S, K, N], K consecutive units, with the units in the order that suits their product.

    A thread gives the matrix unit two parts of a word of four at a time. Of its right operand Triton takes these from
    the first and from the second half of K. In this order they are neighbours, and a word is an operand as it was
    loaded.
    """
    if PARTS == 2:  # for ordinary products
        return x
    else:
        S: tl.constexpr = x.shape[0]
        K: tl.constexpr = x.shape[1]
        N: tl.constexpr = x.shape[2]
        PART: tl.constexpr = word_elements(DTYPE, 1)
        x = tl.reshape(x, (S, K // (16 * PART), 4, 2, 2, PART, N))
        return tl.reshape(tl.permute(x, (0, 1, 4, 2, 3, 5, 6)), (S, K, N))
