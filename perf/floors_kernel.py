"""Kernels that do one thing over and over, for what the device can do of it at most."""

import triton
import triton.language as tl

from triton_gru.kernels import isa


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


@triton.jit(do_not_specialize=["steps"])
def smallest_steps(
    w,  # fp16 [16, 16]
    result,  # fp32 [16, 8]
    steps,
    ISA: tl.constexpr,
):
    """A GRU's steps at their shortest: one warp, 16 units of 8 rows, inputs of zero.

    What waits for each other in any GRU: a product, a sigmoid, a tanh, the update, and the way back to an operand.
    """
    unit = tl.arange(0, 16)[None, :, None]
    weights = tl.load(w + unit * 16 + tl.arange(0, 16)[None, None, :])
    weights = isa.left_operand(weights, 8, True, "ieee", ISA)
    zero = tl.zeros((1, 16, 8), tl.float32)
    h = zero + 1.0
    for _ in range(steps):
        a = isa.matmul(weights, h.to(tl.float16), zero, "ieee", ISA)
        h = isa.gru_update(zero, zero, zero, a, a, a, h, tl.float16, ISA)
    tl.store(result + unit * 8 + tl.arange(0, 8)[None, None, :], h)
