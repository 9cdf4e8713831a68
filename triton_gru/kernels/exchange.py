"""The hand-over of the hidden state between the programs of one launch, through a mailbox in memory.

A program receives exactly the elements that all programs, itself included, have sent. No program waits for ever.
The means to keep these promises:

- **The data is the flag.** The mailbox is filled with -1 before the launch. An element is one unit of one batch row.
  It is missing while its bits are those of -1, a NaN that `_encode` never makes. So elements may arrive in any order,
  and a hand-over takes one trip through memory.
- **A slot for every hand-over.** Each state has a slot, from the state before the first step to the one after the last.
  With ``reset_after=False`` a slot for r h comes between two states. No slot is written twice, so no program overwrites
  elements that another one has yet to read.
- **Words.** An element is sent by one store and received as part of a word of 128 bits. A word has neighbouring units
  of one row. The words of the same units of all rows are adjacent. So a warp reads one contiguous piece of memory in
  each segment, and a program writes one contiguous piece of a tile. Exception: in fp32 ieee words have 64 bits. If
  lanes make these products, a program's words of one row are adjacent.
- **Two ways to wait.** With ``"flag"`` a thread reads all of its words until all have come. With ``"probe"`` it reads
  one word until that word has come, then all of its words until all have come. This takes another trip through memory,
  but programs that wait take less of the memory's bandwidth.
- **No deadlock.** A program sends its part of a slot before it waits for that slot, and sending never blocks. All
  programs take groups of tiles and slots in the same order. The launch is cooperative, so all of its programs are on
  the chip at once and make progress.
- **An end to waiting.** ``watch`` is int64 [2]: a time limit in nanoseconds, and the address of a word in host memory
  (launch/hang.py). After the limit a thread takes NaNs for all of its words, and the results that depend on these words
  become NaN. The thread sets the abort word, which ends the launch's other waits, and the word in host memory.

The mailbox is a header, then slots. The header begins with the abort word of the launch, which is 1 after a wait has
given up. A slot has all tiles of all groups in all directions of the launch. A tile has an element for each unit of
each row, also for the units beyond H.

The loop that waits is PTX, because the condition of a loop in Triton is the same for all threads of a program. In PTX
each thread leaves the loop when its words have come. Exception: if its lanes exchange sums next, a warp leaves the
loop as a whole (``IS_WARP_WIDE``).
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from . import isa
from .constants import Constants, derived

# The size of the header in units of 64 bits. The abort word has a line of 128 bytes for itself.
HEADER = tl.constexpr(16)


@dataclass(frozen=True, eq=False, repr=False)
class WordLayout(Constants):
    """A description of which words of a tile a thread receives.

    A row's words are cut into segments. A thread receives one word of each segment, in ROWS_PER_THREAD rows. Exception:
    if PACK is more than 1, a thread receives PACK words of each segment, which may be in different rows.
    """

    BITS: int  # bits of an element, 16 or 32
    PARTS: int  # parts of 32 bits in a word, 2 or 4
    WORDS_PER_ROW: int  # words of a row
    WORDS_PER_SEGMENT: int  # words of a row in a segment
    ROWS: int  # rows of a tile
    ROWS_PER_THREAD: int = 1  # rows of which a thread receives words
    THREAD_ROW_STEP: int = 1  # from a row of a thread to its next row, in rows
    ADJACENT_WORDS: int = 1  # words of a row that are adjacent in memory, before those of the next row
    PACK: int = 1  # words of a segment that a thread receives, as elements of the same tensors
    IS_WARP_WIDE: bool = False  # whether a warp waits as a whole, because its lanes exchange sums next
    PROBE: bool = False  # whether a thread waits for one word before it reads all

    @derived
    def SEGMENTS(self):
        """Return the number of segments of a row."""
        return -(-self.WORDS_PER_ROW.value // self.WORDS_PER_SEGMENT.value)

    @derived
    def HAS_TAIL(self):
        """Return whether the last segment has fewer than WORDS_PER_SEGMENT words."""
        return self.WORDS_PER_ROW.value % self.WORDS_PER_SEGMENT.value != 0

    @derived
    def STRIDE(self):
        """Return the number of words in memory from a segment to the next."""
        return self.WORDS_PER_SEGMENT.value * self.ROWS.value

    @derived
    def ROW_STRIDE(self):
        """Return the number of words in memory from a thread's row to its next row."""
        return self.THREAD_ROW_STEP.value * self.ADJACENT_WORDS.value

    @derived
    def TENSORS(self):
        """Return the number of tensors that `receive` returns: one for each segment, row of a thread, and part."""
        return self.SEGMENTS.value * self.ROWS_PER_THREAD.value * self.PARTS.value

    @derived
    def NAN(self):
        """Return a part that consists of NaNs: one of 32 bits, or two of 16 bits."""
        return 0x7FFFFFFF if self.BITS.value == 32 else 0x7FFF7FFF


@triton.constexpr_function
def elements_per_word(bits, parts):
    """Return the number of elements of ``bits`` bits in a word of ``parts`` parts of 32 bits."""
    return 32 * parts // bits


@triton.constexpr_function
def words_per_piece(parts):
    """Return the number of words of a row that a slice has in a segment: 4 words of four parts, or 8 of two parts.

    Four lanes hold a column of the matrix unit's right operand, and each takes one of the 4 words.
    """
    return 16 // parts


@triton.jit
def element_pointer(mailbox, DTYPE: tl.constexpr):
    """Return a pointer to the first element of the first slot of a mailbox."""
    element: tl.constexpr = tl.int32 if DTYPE == tl.float32 else tl.int16
    return (mailbox + HEADER).to(tl.pointer_type(element))


@triton.jit
def element_offset(unit, row, ROWS: tl.constexpr, WORD_ELEMENTS: tl.constexpr):
    """Return the offset of a unit of a row in a tile of ``ROWS`` rows, in elements. Words have ``WORD_ELEMENTS``."""
    return word_index(unit // WORD_ELEMENTS, row, ROWS, ADJACENT_WORDS=1) * WORD_ELEMENTS + unit % WORD_ELEMENTS


@triton.jit
def word_index(word, row, ROWS: tl.constexpr, ADJACENT_WORDS: tl.constexpr):
    """Return the index, among the words of a tile, of word ``word`` of row ``row``.

    ``ADJACENT_WORDS`` words of a row are adjacent. Then the same words of the next row follow.
    """
    return (word // ADJACENT_WORDS * ROWS + row) * ADJACENT_WORDS + word % ADJACENT_WORDS


@triton.jit
def send(pointers, x, mask, OFFSET: tl.constexpr, THREADS: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """Send fp32 ``x``, this program's part of a tile, ``OFFSET`` elements after ``pointers``, where ``mask``.

    ``THREADS`` is the result of `isa.count_storing_threads`.
    """
    isa.send(pointers, _encode(x, DTYPE, PRECISION), mask, OFFSET, THREADS)


@triton.jit
def _encode(x, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """Return the bits of fp32 ``x``, rounded as an operand of products. Every NaN gets the same bits, which are not
    -1."""
    value = isa.round_operand(x, DTYPE, PRECISION)
    if DTYPE == tl.float32:
        return tl.where(x == x, value.to(tl.int32, bitcast=True), 0x7FFFFFFF)
    else:
        return tl.where(x == x, value.to(tl.int16, bitcast=True), 0x7FFF).to(tl.int16)


@triton.jit
def receive(slot, OFFSET: tl.constexpr, abort, watch, word, row, layout: tl.constexpr):
    """Wait for the words of a tile that ``layout`` assigns to a thread, and return them.

    The result is a tuple of int32 tensors, ordered by segment, then by row, then by part. The tile begins ``OFFSET``
    elements after ``slot``. ``word`` is the thread's word of the first segment, and ``row`` is its first row. A word
    beyond the end of a row is zero. ``abort`` points to the abort word.
    """
    OFFSET_WORDS: tl.constexpr = OFFSET * layout.BITS // (32 * layout.PARTS)
    tail_word = (layout.SEGMENTS - 1) * layout.WORDS_PER_SEGMENT + word
    slot_parts = slot.to(tl.pointer_type(tl.int32))
    pointer = slot_parts + word_index(word, row, layout.ROWS, layout.ADJACENT_WORDS) * layout.PARTS
    tail = (
        slot_parts
        + word_index(tl.minimum(tail_word, layout.WORDS_PER_ROW - 1), row, layout.ROWS, layout.ADJACENT_WORDS)
        * layout.PARTS
    )
    x = isa.wait_words(pointer, tail, abort, watch, OFFSET_WORDS, layout)
    if layout.HAS_TAIL:
        PARTS_BEFORE_TAIL: tl.constexpr = (layout.SEGMENTS - 1) * layout.ROWS_PER_THREAD * layout.PARTS
        tail_parts = ()
        for i in tl.static_range(layout.ROWS_PER_THREAD * layout.PARTS):
            tail_parts = tail_parts + (tl.where(tail_word < layout.WORDS_PER_ROW, x[PARTS_BEFORE_TAIL + i], 0),)
        x = x[:PARTS_BEFORE_TAIL] + tail_parts
    return x
