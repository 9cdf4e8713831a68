"""The kernel that ``perf.hop`` times: programs of one launch hand a tile to each other, step after step, and no GRU.

Every step a program receives the whole tile as ``grid`` does (the same words, warp by warp), adds up all its bits,
and sends elements that depend on the sum and on those of all steps before. So no hop can begin before the last one
is over, and one wrong element anywhere changes every sum that comes after it: what the programs end with proves
that each of their hops was right.
"""

import triton
import triton.language as tl

from triton_gru.kernels import exchange, isa, turns


@turns.in_turns
@triton.jit(do_not_specialize=["steps"])
def hop_steps(
    mailbox,  # int64, see exchange; a slot is a tile of BATCH rows of ROW fp16 elements
    watch,  # int64 [2], see exchange
    result,  # int32 [PROGRAMS]
    steps,
    PROGRAMS: tl.constexpr,
    ROW: tl.constexpr,  # elements of a row; a program sends the same ROW // PROGRAMS of each
    BATCH: tl.constexpr,  # rows
    SLICES: tl.constexpr,  # one a warp
    HANDOVER: tl.constexpr,
    ISA: tl.constexpr,
):
    DTYPE: tl.constexpr = tl.float16
    UNITS: tl.constexpr = ROW // PROGRAMS
    WORD: tl.constexpr = exchange.word_elements(DTYPE, 4)
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)[:, None]
    own = exchange.place(unit, tl.arange(0, BATCH)[None, :], BATCH, WORD)
    elements = exchange.elements_of(mailbox, DTYPE)

    THREADS: tl.constexpr = isa.first_holders(UNITS * BATCH, SLICES)
    history = 0
    exchange.send(elements + own, _numbers(history, own), own >= 0, 0, THREADS, DTYPE, "ieee", ISA)
    for _ in tl.range(0, steps):
        x = exchange.receive(elements, 0, mailbox, watch, 4, ROW // WORD, SLICES, BATCH, BATCH, DTYPE, HANDOVER, ISA)
        total = tl.zeros((SLICES, exchange.word_lanes(4), BATCH), tl.int32)
        for c in tl.static_range(len(x)):
            total += x[c]
        if ISA == "interpreter":
            total = total.to(tl.int64)  # its sum of 32-bit numbers does not wrap but fails
        history = history * 5 + tl.sum(tl.ravel(total)).to(tl.int32)
        elements += BATCH * ROW
        exchange.send(elements + own, _numbers(history, own), own >= 0, 0, THREADS, DTYPE, "ieee", ISA)
    tl.store(result + tl.program_id(0), history)


@triton.jit
def _numbers(history, element):
    """What an element is after that history: whole numbers that fp16 holds exactly.

    Not every number as often as every other: then their sum would not depend on the history.
    """
    return (((history >> 12) + (element & 127)) & 1023).to(tl.float32)
