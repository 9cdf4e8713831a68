"""Tests of the machine code of the kernels with ``reset_after=False``, where r comes before the recurrent product."""

import dataclasses
import re

import pytest

from triton_gru.accuracy import PRECISIONS
from triton_gru.plan.config import HANDOVERS
from triton_gru.plan.heuristic import HEURISTICS, grid_config

from .harness import (
    INSTRUCTION_SLACK,
    KNOWN_DEVICES,
    STACK_LIMIT,
    KernelStats,
    cases,
    kernel_launches,
    set_compile_target,
)

H200 = KNOWN_DEVICES["H200"]
# Kernel, precision, hidden size, batch -> instructions of a step, as in perf/NOTES.md, or 0 if not checked. The cases
# are every cut of the heuristics, exact and padded, where registers are short.
CASES = {
    ("block", "fp16", 64, 20_000): 0, ("block", "fp16", 128, 1): 82, ("block", "fp16", 150, 1): 0,
    ("block", "fp16", 192, 1): 319, ("block", "tf32", 128, 1): 127, ("block", "fp32", 100, 1): 0,
    ("block", "fp32", 128, 1): 0,
    ("grid", "fp16", 25, 1): 0, ("grid", "fp16", 256, 1): 148, ("grid", "fp16", 1024, 64): 477,
    ("grid", "fp16", 2048, 1): 283, ("grid", "fp16", 2048, 64): 725, ("grid", "tf32", 1024, 64): 736,
    ("grid", "tf32", 1500, 1): 0, ("grid", "fp32", 1024, 1): 0,
    ("step", "fp16", 4096, 1): 0, ("step", "tf32", 4001, 64): 0, ("step", "fp32", 4096, 32): 0,
}  # fmt: skip
ELSEWHERE = [("block", "fp16", 128, 1), ("grid", "fp16", 1024, 64)]


def compile_scans(device, kernel, precision, hidden_size, batch_size, **options):
    """Return the compiled kernels of a scan with ``reset_after=False``: one, or two for ``step``."""
    set_compile_target(device)
    launches = kernel_launches(
        kernel, device, precision, hidden_size, batch_size, inputs=hidden_size, hx=True, reset_after=False, **options
    )
    kernels_per_step = 2 if kernel == "step" else 1
    return [launch.compile() for launch in launches[1 : 1 + kernels_per_step]]  # launches[0]: the input projection


@pytest.mark.parametrize("device, kernel, precision, hidden_size, batch_size", cases(CASES, ELSEWHERE))
def test_a_step_stays_on_chip(device, kernel, precision, hidden_size, batch_size):
    case = kernel, precision, hidden_size, batch_size
    is_masked_fp32 = case[:3] == ("block", "fp32", 100)
    for compiled in compile_scans(device, *case):
        stats = KernelStats(compiled)
        # fp32 products with masks leave no free register: two words are spilled and loaded again.
        max_spills = 4 if is_masked_fp32 else 0
        assert stats.stack <= STACK_LIMIT and stats.spills <= max_spills, stats
        dtype, fp32_precision = PRECISIONS[precision]
        limit = device.shared_memory
        config = HEURISTICS[kernel](hidden_size, batch_size, 1, dtype, fp32_precision, device)
        if kernel == "grid":
            limit = min(limit, config.shared_memory(dtype.itemsize))
        assert stats.shared <= limit, stats
        if kernel == "grid" and precision != "fp32":
            # Slices exchange the sums of r in one trip, and those of z and n in another. A trip has two barriers.
            assert stats.loop["BAR"] == 4 * config.tiles, stats
        if device.arch == "sm_90" and CASES[case]:
            steps_per_iteration = getattr(config, "ahead", 1)
            assert stats.executed / steps_per_iteration <= INSTRUCTION_SLACK * CASES[case], stats


@pytest.mark.parametrize("options", [{"layout": "packed"}, {"layout": "lengths", "resets": True}], ids=str)
@pytest.mark.parametrize("case", [("block", "fp16", 192, 1), ("grid", "fp16", 1024, 64)], ids=lambda case: case[0])
def test_packed_input_lengths_and_resets_spill_nothing_in_the_loop(case, options):
    (compiled,) = compile_scans(H200, *case, **options)
    stats = KernelStats(compiled)
    assert stats.spills == 0 and stats.stack <= STACK_LIMIT, stats
    assert stats.executed <= 1.25 * INSTRUCTION_SLACK * CASES[case], stats


@pytest.mark.parametrize(
    "precision, tiles, handover", [("fp16", 2, handover) for handover in HANDOVERS] + [("tf32", 1, "flag")]
)
def test_each_handover_is_sent_before_the_wait_for_the_next_one(precision, handover, tiles):
    """Check the order of sends, waits and products in the PTX.

    A step has two hand-overs, r h and the new state. A wait that the compiler moved above the send that it needs would
    never end. z's products stand between the send of r h and the wait for it, so that they hide the time of a hop.
    """
    config = grid_config(256, 8, 1, *PRECISIONS[precision], H200)
    config = dataclasses.replace(config, tiles=tiles, handover=handover, register_tiles=0)
    (compiled,) = compile_scans(H200, "grid", precision, 256, 8, config=config)
    send = r"st\.relaxed\.gpu\.global\.b(?:16|32|64)(?= \[%rd\d+(?:\+\d+)?\], %)"
    marks = re.findall(rf"AGAIN:|{send}|red\S*add|atom\S*add|mma\.sync", compiled.asm["ptx"])
    events = {"AGAIN:": "wait", "mma.sync": "product"}  # AGAIN is the label of a wait's loop. All others are sends.
    order = [events.get(mark, "send") for mark in marks]
    # Several products or sends in a row are one event. Waits are not: each has to be followed by its products.
    order = [event for i, event in enumerate(order) if event == "wait" or order[i - 1 : i] != [event]]
    first_half = ["wait", "product", "send", "product"]  # for the state: r's products, send r h, z's products
    second_half = ["wait", "product", "send"]  # for r h: n's products, send the new state
    assert order == ["send"] + tiles * first_half + tiles * second_half, order


@pytest.mark.parametrize("precision, hidden_size", [("fp16", 512), ("tf32", 100)])
def test_a_single_step_is_two_launches(precision, hidden_size):
    set_compile_target(H200)
    launches = kernel_launches(
        "step", H200, precision, hidden_size, 3, steps=1, inputs=hidden_size, hx=True, reset_after=False
    )
    assert [launch.constants["cut"].PART.value for launch in launches] == ["reset", "rest"]
    for launch in launches:
        stats = KernelStats(launch.compile())
        # If a step needs no loop, its loads move above its products, and a word is spilled and loaded again.
        assert stats.stack <= 8 and stats.spills <= 2 and stats.shared <= H200.shared_memory, stats
