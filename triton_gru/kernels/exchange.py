"""The hand-over of the hidden state between the programs of one launch, through a mailbox in memory.

It promises: what a program receives is what the programs of the other units have sent, all of it, and no program waits
for ever. How:

- **The data is the flag.** The mailbox is filled with -1 before the launch. An element, one unit of one batch row, is
  missing while it is -1. As a floating-point number that is a NaN, and `_encode` never makes it. So nothing has to
  arrive in order, and a hand-over takes one trip through memory.
- **A slot for every hand-over.** There is one for each state, from that before the first step to that after the last,
  and, where r comes before the recurrent product, one for r h between two states. No slot is written twice, so no
  program overtakes another's reading.
- **Words.** An element goes out as one store and comes in as part of a word of 128 bits. A word holds neighbouring
  units of one row, and the words of the same units of all rows lie side by side: what a warp reads at once, and what a
  program sends, is one piece of memory. For ordinary fp32 products words have 64 bits, and where lanes make these
  products, a program's words of one row lie side by side.
- **Two ways to wait.** With ``"flag"`` a thread reads all of its words until all have come. With ``"probe"`` it reads
  one until that has come, and then all: a trip through memory more, but where many programs wait, they leave what
  memory can deliver to those that need not.
- **No deadlock.** A program sends its own part of a slot before it waits for that slot, and never waits for room to
  send. All programs of a launch are on the chip at once (it is a cooperative one), so each that is waited for goes on.
- **An end to waiting.** If something does not come for as long as ``watch`` says, a thread takes NaNs for all of its
  words, and what depends on them becomes NaN. It sets the launch's abort word, so that no other wait is as long, and a
  word in the host's memory (launch/hang.py).

The mailbox is a header, then slots. The header begins with the abort word, which is 1 when a wait has given up. A slot
has all tiles of the batch in all directions of the launch, and a tile an element for each unit of each row.

The loop that waits is PTX. The condition of a loop in Triton is one for all threads of a program. Here each thread goes
on when its own words have come, or each warp does where its lanes exchange them (``IS_WARP_WIDE``).
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from . import isa
from .constants import Constants, derived

# The header, in units of 64 bits: the abort word, in a line of 128 bytes of its own.
HEADER = tl.constexpr(16)


@dataclass(frozen=True, eq=False, repr=False)
class WordLayout(Constants):
    """Which words of a tile a thread receives: of every chunk of a row's words one, in some of the rows."""

    BITS: int  # of an element, 16 or 32
    PARTS: int  # of 32 bits in a word, 2 or 4
    WORDS_PER_ROW: int  # words of a row
    WORDS_PER_CHUNK: int  # words of a row that all threads take at a time
    ROWS: int  # of a tile
    ROWS_PER_THREAD: int = 1  # rows of a thread
    THREAD_ROW_STEP: int = 1  # from one of them to the next
    ADJACENT_WORDS: int = 1  # words of a row that lie side by side, before those of the next row
    PACK: int = 1  # words of a thread in each tensor
    IS_WARP_WIDE: bool = False  # a warp waits as a whole, for its lanes to exchange what they have next
    PROBE: bool = False  # wait for one word, then read all

    @derived
    def CHUNKS(self):
        """How many chunks a row has."""
        return -(-self.WORDS_PER_ROW.value // self.WORDS_PER_CHUNK.value)

    @derived
    def HAS_TAIL(self):
        """Whether the last chunk is not whole."""
        return self.WORDS_PER_ROW.value % self.WORDS_PER_CHUNK.value != 0

    @derived
    def STRIDE(self):
        """Words from a chunk to the next."""
        return self.WORDS_PER_CHUNK.value * self.ROWS.value

    @derived
    def ROW_STRIDE(self):
        """Words from a thread's row to its next."""
        return self.THREAD_ROW_STEP.value * self.ADJACENT_WORDS.value

    @derived
    def TENSORS(self):
        """How many tensors `receive` returns: one by chunk, row and part."""
        return self.CHUNKS.value * self.ROWS_PER_THREAD.value * self.PARTS.value

    @derived
    def NAN(self):
        """A part of NaNs."""
        return 0x7FFFFFFF if self.BITS.value == 32 else 0x7FFF7FFF


@triton.constexpr_function
def elements_per_word(bits, parts):
    """Return the elements of a word of so many parts of 32 bits."""
    return 32 * parts // bits


@triton.constexpr_function
def words_per_slice(parts):
    """Return the words of a row that a slice takes at a time.

    Those of four parts are one for each lane of a column of the matrix unit's right operand.
    """
    return 16 // parts


@triton.jit
def element_pointer(mailbox, DTYPE: tl.constexpr):
    """Return a pointer to the first element of a mailbox."""
    element: tl.constexpr = tl.int32 if DTYPE == tl.float32 else tl.int16
    return (mailbox + HEADER).to(tl.pointer_type(element))


@triton.jit
def element_offset(unit, row, ROWS: tl.constexpr, WORD: tl.constexpr):
    """Return the index of a unit and one of ``ROWS`` batch rows among a tile's elements, ``WORD`` in a word."""
    return word_place(unit // WORD, row, ROWS, 1) * WORD + unit % WORD


@triton.jit
def word_place(word, row, ROWS: tl.constexpr, ADJACENT_WORDS: tl.constexpr):
    """Return the index of a row's word among a tile's words, of which ``ADJACENT_WORDS`` of a row lie side by side."""
    return (word // ADJACENT_WORDS * ROWS + row) * ADJACENT_WORDS + word % ADJACENT_WORDS


@triton.jit
def send(element, x, mask, OFFSET: tl.constexpr, THREADS: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """Send fp32 ``x``, all that this program has of a tile, to ``element`` and ``OFFSET`` where ``mask``.

    ``THREADS`` is what `isa.count_storing_threads` returned.
    """
    isa.send(element, _encode(x, DTYPE, PRECISION), mask, OFFSET, THREADS)


@triton.jit
def _encode(x, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """Return fp32 ``x`` as the bits of a product's operand, with one NaN for all."""
    value = isa.round_operand(x, DTYPE, PRECISION)
    if DTYPE == tl.float32:
        return tl.where(x == x, value.to(tl.int32, bitcast=True), 0x7FFFFFFF)
    else:
        return tl.where(x == x, value.to(tl.int16, bitcast=True), 0x7FFF).to(tl.int16)


@triton.jit
def receive(box, OFFSET: tl.constexpr, abort, watch, word, row, words: tl.constexpr):
    """Return a thread's ``words`` of a tile when all have come: int32 tensors by chunk, row and part.

    The tile begins ``OFFSET`` elements after ``box``. ``word`` is the thread's word of the first chunk, and ``row`` its
    first row. After the last word of a row come zeros.
    """
    FIRST: tl.constexpr = OFFSET * words.BITS // (32 * words.PARTS)
    in_tail = (words.CHUNKS - 1) * words.WORDS_PER_CHUNK + word
    start = box.to(tl.pointer_type(tl.int32))
    pointer = start + word_place(word, row, words.ROWS, words.ADJACENT_WORDS) * words.PARTS
    tail = (
        start
        + word_place(tl.minimum(in_tail, words.WORDS_PER_ROW - 1), row, words.ROWS, words.ADJACENT_WORDS) * words.PARTS
    )
    x = isa.wait_words(pointer, tail, abort, watch, FIRST, words)
    if words.HAS_TAIL:
        BEFORE: tl.constexpr = (words.CHUNKS - 1) * words.ROWS_PER_THREAD * words.PARTS
        ended = ()
        for i in tl.static_range(words.ROWS_PER_THREAD * words.PARTS):
            ended = ended + (tl.where(in_tail < words.WORDS_PER_ROW, x[BEFORE + i], 0),)
        x = x[:BEFORE] + ended
    return x
