"""Tests that faults planted in the PTX of every kernel are found, by the machine or by a wrong result."""

import contextlib
import re

import pytest
import torch

from triton_gru.launch import call_cache
from triton_gru.plan.config import CUBLAS, BlockConfig, GridConfig

from ..calls import make_call, run_checked, use_config, use_projection
from .machine import Fault

# Kernel -> a call that launches it: backend, precision, hidden size, batch, steps, input size.
CALLS = {
    "input_projection": ("block", "fp16", 64, 9, 3, 130),
    "arrange_products": ("block", "tf32", 64, 17, 3, 16),  # tiles of 16 rows, through shared memory
    "block_scan": ("block", "tf32", 100, 17, 3, 16),
    "grid_scan": ("grid", "fp16", 64, 9, 4, 16),
    "step_scan": ("step", "bf16", 264, 9, 3, 16),
    "whole_step": ("step", "fp16", 264, 9, 1, 130),
}
# Pattern and replacement.
BARRIER = r"bar\.sync\s+0;", ""
COPIED = r"cp\.async\.wait_group\s+\w+;", ""
COPY = r"(cp\.async\.\S+ \[.*\], \[ %rd\d+) \+ 0", r"\1 + 16"
SEND = r"@p st\.relaxed\.gpu\.global\.b16 .*?;", ""
THREE_WORDS = r"(max\.u16x2 seen, seen, %r\d+;\s*(\.loc.*\s*)?){3}", ""
WRONG = "differ|error"  # in the message of a wrong result
# Name -> kernel, pattern, replacement, index of the match to replace (from the end if negative), pattern of the error.
FAULTS = {
    "projection: a barrier is gone": ("input_projection", *BARRIER, 4, "SHARED"),
    "projection: the last barrier is gone": ("input_projection", *BARRIER, -1, "SHARED"),
    "projection: an index of the input": ("input_projection", *COPY, 0, WRONG),
    "projection: an index of the result": (
        "input_projection", r"(st\.global\.v4\.b32 \[ %rd\d+) \+ 0", r"\1 + 16", 0, WRONG,
    ),
    "projection: a guard is negated": ("input_projection", r"@(%p\d+ st\.global)", r"@!\1", 0, WRONG),
    "projection: copies are not waited for": ("input_projection", *COPIED, 0, "SHARED_NOT_WAITED_FOR"),
    "projection: products are not waited for": ("input_projection", r"wgmma\.wait_group\S+ 0;", "", 0, "UNDEFINED"),
    "projection: wgmma is not fenced": ("input_projection", r"fence\.proxy\.async\S*;", "", 0, "SHARED_NOT_FENCED"),
    "arranging: a barrier is gone": ("arrange_products", *BARRIER, -1, "SHARED"),
    "arranging: an index of the products": (
        "arrange_products", r"(ld\.global\S* \{.*?\}, \[ ?%rd\d+) \+ 0", r"\1 + 16", 0, f"OUT_OF|{WRONG}",
    ),
    "arranging: an index of the result": (
        "arrange_products", r"(st\.global\S* \[ ?%rd\d+) \+ 0", r"\1 + 16", 0, f"OUT_OF|{WRONG}",
    ),
    "arranging: a guard is negated": ("arrange_products", r"@(%p\d+ st\.global)", r"@!\1", 0, WRONG),
    "block: a barrier is gone": ("block_scan", *BARRIER, 1, "SHARED"),
    "block: the last barrier is gone": ("block_scan", *BARRIER, -1, "SHARED"),
    "block: an index of the gates": ("block_scan", r"(ld\.global\.nc\.b32 %r\d+, \[%rd\d+)\]", r"\1+4]", 2, WRONG),
    "block: an index of the state": (
        "block_scan", r"(st\.shared\S*\.b32\s+\[ ?%r\d+)( \+ 0)?", r"\1+4", 0, f"SHARED|{WRONG}",
    ),
    "block: an index of the output": ("block_scan", r"(@p st\.global\.b32 \[%rd\d+)\]", r"\1+4]", -1, WRONG),
    "grid: a barrier is gone": ("grid_scan", *BARRIER, 0, "SHARED"),
    "grid: the last barrier is gone": ("grid_scan", *BARRIER, -1, "SHARED"),
    "grid: an index of the gates": (
        "grid_scan", r"(ld\.global\.b16 \{ %rs\d+ \}, \[ %rd\d+) \+ 0", r"\1 + 2", -1, WRONG,
    ),
    "grid: an index of the mailbox": (
        "grid_scan", r"(@p st\.relaxed\.gpu\.global\.b16 \[%rd\d+)\]", r"\1+2]", -1, f"ENDLESS|{WRONG}",
    ),
    "grid: the first state is not sent": ("grid_scan", *SEND, 0, f"ENDLESS|{WRONG}"),
    "grid: a state is not sent": ("grid_scan", *SEND, -1, f"ENDLESS|{WRONG}"),
    "grid: a plain store sends": (
        "grid_scan", r"st\.relaxed\.gpu(\.global\.b16)", r"st\1", -1, "RACE_BETWEEN_CTAS",
    ),
    "grid: a wait does not wait": ("grid_scan", r"@!missing (bra DONE)", r"\1", 0, WRONG),
    "grid: a wait looks at one of four words": ("grid_scan", *THREE_WORDS, 0, WRONG),
    "grid: a plain load waits": ("grid_scan", r"ld\.relaxed\.gpu(\.global\.v4\.b32)", r"ld\1", 0, "RACE_BETWEEN_CTAS"),
    "grid: sums of slices are mixed up": (
        "grid_scan", r"(ld\.shared\.v[24]\.b32\s+\{.*\}, \[%r\d+)(\+\d+)?\]", r"\1+16]", -1, f"SHARED|{WRONG}",
    ),
    "step: a barrier is gone": ("step_scan", *BARRIER, 2, "SHARED"),
    "step: the last barrier is gone": ("step_scan", *BARRIER, -1, "SHARED"),
    "step: copies are not waited for": ("step_scan", *COPIED, 0, "SHARED_NOT_WAITED_FOR"),
    "step: an index of the weights": ("step_scan", *COPY, 1, WRONG),
    "step: a row of a tile": ("step_scan", r"(ldmatrix\S+ \{.*\}, \[%r\d+)", r"\1+16", 0, f"SHARED|{WRONG}"),
    "step: an index of the state": (
        "step_scan", r"(st\.global\S* \[ %rd\d+) \+ 0", r"\1 + 4", -1, f"MISALIGNED|OUT_OF|{WRONG}",
    ),
    "whole step: a barrier is gone": ("whole_step", *BARRIER, 1, "SHARED"),
    "whole step: copies are not waited for": ("whole_step", *COPIED, -1, "SHARED_NOT_WAITED_FOR"),
    "whole step: an index of the weights": ("whole_step", *COPY, 0, WRONG),
    "whole step: operands of a product": (
        "whole_step", r"(mma\S+ \{.*?\}, \{ )(%r\d+), (%r\d+)", r"\1\3, \2", 0, WRONG,
    ),
}  # fmt: skip


def check_call(gpu, kernel: str) -> None:
    """Make the call of a kernel, and check its results."""
    backend, precision, hidden, batch, steps, inputs = CALLS[kernel]
    config = GridConfig(16, programs=4, batch=8, rows=8, tiles=1, copies=1, slices=4, register_tiles=0, handover="flag")
    with contextlib.ExitStack() as stack:
        if backend == "grid":
            stack.enter_context(use_config("grid", config))
        elif kernel == "arrange_products":
            config = BlockConfig(64, tiles=1, batch=16, ahead=1, register_tiles=3, num_warps=4)
            stack.enter_context(use_config("block", config))
            stack.enter_context(use_projection(CUBLAS))
        gru, x, hx = make_call(
            backend, hidden, batch, steps, precision, "time_first", True, 1, True, True, "cpu", inputs=inputs
        )
        run_checked(gru, x, hx, precision, gpu.launched)
    assert kernel in gpu.launched


def check_three_calls(gpu, kernel: str) -> None:
    """Make the call of a kernel under three schedules, and check its results."""
    for _ in range(3):
        check_call(gpu, kernel)


@pytest.mark.parametrize("kernel", CALLS)
def test_a_kernel_without_a_fault_passes(kernel, gpu):
    check_call(gpu, kernel)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name, gpu):
    target, pattern, replacement, index, error = FAULTS[name]
    gpu.max_instructions = 3_000_000
    planted_count = 0

    def plant(kernel: str, ptx: str) -> str:
        nonlocal planted_count
        if kernel != target:
            return ptx
        match = list(re.finditer(pattern, ptx))[index]  # fails if Triton compiles no such code
        planted_count += 1
        return ptx[: match.start()] + match.expand(replacement) + ptx[match.end() :]

    gpu.change_ptx = plant
    gpu.fixed_schedule["delay"] = 300  # parts of a word arrive at different times
    gpu.seed(0)
    torch.manual_seed(0)
    with pytest.raises((Fault, AssertionError), match=error):
        check_three_calls(gpu, target)
    assert planted_count


def test_a_prepared_call_whose_workspace_is_too_small_is_found(gpu):
    gru, x, hx = make_call("block", 16, 2, 2, "fp16", "time_first", True, 1, True, True, "cpu")
    with torch.no_grad():
        gru(x, hx)
        gru(x, hx)
        call_cache.find_route(gru, x, hx)._workspace_words //= 2
        with pytest.raises(Fault, match="OUT_OF_BOUNDS"):
            gru(x, hx)
