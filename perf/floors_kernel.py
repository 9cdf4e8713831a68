"""Kernels that do one thing over and over, for what the device can do of it at most."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rounds"])
def read_shared(
    source,  # int32 [PARTS * PART]
    result,  # int32 [programs]
    rounds,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Every program reads all of ``source``, ``rounds`` times, past the L1: as programs read each other's state."""
    total = tl.zeros((PART,), tl.int32)
    for _ in range(rounds):
        # Not all programs the same part at the same time.
        for i in range(PARTS):
            part = (i + tl.program_id(0)) % PARTS
            total += tl.load(source + part * PART + tl.arange(0, PART), cache_modifier=".cg")
    tl.store(result + tl.program_id(0), tl.sum(total))


@triton.jit(do_not_specialize=["rounds"])
def barriers(result, rounds):  # result: int32 [programs]
    """One program's warps wait for each other ``rounds`` times: the least that they must to hand anything over."""
    for _ in range(rounds):
        tl.debug_barrier()
    tl.store(result + tl.program_id(0), rounds)
