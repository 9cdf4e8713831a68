"""What the compiler makes of the kernels where r comes before the recurrent product."""

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
# Kernel, precision, hidden size, batch: every way the heuristics cut, exact and padded, where registers are short. With
# the instructions of a step, as perf/NOTES.md has them, or 0.
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


def compiled_scans(device, kernel, precision, hidden_size, batch_size, **options):
    """The scan; of ``step`` both parts of it."""
    set_compile_target(device)
    launches = kernel_launches(
        kernel, device, precision, hidden_size, batch_size, inputs=hidden_size, hx=True, reset_after=False, **options
    )
    return [launch.compile() for launch in launches[1 : 3 if kernel == "step" else 2]]


@pytest.mark.parametrize("device, kernel, precision, hidden_size, batch_size", cases(CASES, ELSEWHERE))
def test_a_step_stays_on_chip(device, kernel, precision, hidden_size, batch_size):
    case = kernel, precision, hidden_size, batch_size
    for compiled in compiled_scans(device, *case):
        found = KernelStats(compiled)
        # Ordinary fp32 products with masks leave no register: two words go to the stack and back.
        spills = 4 if case[:3] == ("block", "fp32", 100) else 0
        assert found.stack <= STACK_LIMIT and found.spills <= spills, found
        dtype, fp32_precision = PRECISIONS[precision]
        limit = device.shared_memory
        config = HEURISTICS[kernel](hidden_size, batch_size, 1, dtype, fp32_precision, device)
        if kernel == "grid":
            limit = min(limit, config.shared_memory(dtype.itemsize))
        assert found.shared <= limit, found
        if kernel == "grid" and precision != "fp32":
            # The sums of r by themselves, those of z and n together.
            assert found.loop["BAR"] == 4 * config.tiles, found
        if device.arch == "sm_90" and CASES[case]:
            assert found.executed / getattr(config, "ahead", 1) <= INSTRUCTION_SLACK * CASES[case], found


@pytest.mark.parametrize("options", [{"layout": "packed"}, {"layout": "lengths", "resets": True}], ids=str)
@pytest.mark.parametrize("case", [("block", "fp16", 192, 1), ("grid", "fp16", 1024, 64)], ids=lambda case: case[0])
def test_packed_input_lengths_and_resets_spill_nothing_in_the_loop(case, options):
    (compiled,) = compiled_scans(H200, *case, **options)
    found = KernelStats(compiled)
    assert found.spills == 0 and found.stack <= STACK_LIMIT, found
    assert found.executed <= 1.25 * INSTRUCTION_SLACK * CASES[case], found


@pytest.mark.parametrize(
    "precision, tiles, handover", [("fp16", 2, handover) for handover in HANDOVERS] + [("tf32", 1, "flag")]
)
def test_each_handover_is_sent_before_the_next_is_waited_for(precision, handover, tiles):
    """In the order of the PTX, with z's products between: they are made while r h is on its way."""
    config = grid_config(256, 8, 1, *PRECISIONS[precision], H200)
    config = dataclasses.replace(config, tiles=tiles, handover=handover, register_tiles=0)
    (compiled,) = compiled_scans(H200, "grid", precision, 256, 8, config=config)
    send = r"st\.relaxed\.gpu\.global\.b(?:16|32|64)(?= \[%rd\d+(?:\+\d+)?\], %)"
    marks = re.findall(rf"AGAIN:|{send}|red\S*add|atom\S*add|mma\.sync", compiled.asm["ptx"])
    order = "".join("W" if mark == "AGAIN:" else "p" if mark == "mma.sync" else "S" for mark in marks)
    order = re.sub("p+", "p", re.sub("S+", "S", order))
    # The first states; then in the loop the state of each tile is waited for, r h sent, z's products made; and then
    # r h of each waited for, and the next state sent.
    assert order == "S" + tiles * "WpSp" + tiles * "WpS", order


@pytest.mark.parametrize("precision, hidden_size", [("fp16", 512), ("tf32", 100)])
def test_a_single_step_is_two_launches(precision, hidden_size):
    set_compile_target(H200)
    launches = kernel_launches(
        "step", H200, precision, hidden_size, 3, steps=1, inputs=hidden_size, hx=True, reset_after=False
    )
    assert [each.constants["cut"].PART.value for each in launches] == ["reset", "rest"]
    for launch in launches:
        found = KernelStats(launch.compile())
        # Where a step needs no loop, its loads go before its products, and a word goes to the stack and back.
        assert found.stack <= 8 and found.spills <= 2 and found.shared <= H200.shared_memory, found
