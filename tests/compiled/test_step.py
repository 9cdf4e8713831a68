"""Tests of the machine code of every ``step`` configuration that the heuristic can choose, without a GPU."""

import pytest

from triton_gru.accuracy import PRECISIONS
from triton_gru.plan.heuristic import step_config

from .harness import (
    INSTRUCTION_SLACK,
    KNOWN_DEVICES,
    STACK_LIMIT,
    KernelStats,
    cases,
    count_variants,
    kernel_launches,
    set_compile_target,
)

# Shape -> instructions of an iteration, or 0 if not checked. The shapes have every width of a batch tile, and rows of
# W_hh that are aligned or not. An iteration takes 512 bytes of each row of W_hh that a program computes, or 256 bytes
# if rows are not aligned. Exception: the iteration takes 128 bytes if warps have no slices.
SHAPES = {
    ("fp16", 25, 1): 0, ("fp16", 4001, 1): 0, ("fp16", 4001, 64): 0, ("fp16", 512, 16): 74, ("fp16", 4096, 1): 119,
    ("fp16", 4096, 32): 113, ("fp16", 4096, 64): 115, ("fp16", 4096, 1000): 160,
    ("tf32", 4001, 1): 0, ("tf32", 4001, 64): 0, ("tf32", 4096, 1): 188, ("tf32", 4096, 32): 233,
    ("tf32", 4096, 64): 303, ("tf32", 4096, 1000): 503,
    ("fp32", 4001, 1): 0, ("fp32", 4001, 64): 0, ("fp32", 4096, 1): 519, ("fp32", 4096, 32): 511,
}  # fmt: skip
ELSEWHERE = [("fp16", 4096, 1), ("tf32", 4001, 64)]


@pytest.mark.parametrize(
    "device, kernel, precision, hidden_size, batch_size",
    cases([("step", *shape) for shape in SHAPES], [("step", *shape) for shape in ELSEWHERE]),
)
def test_every_chosen_configuration_streams_the_weights_to_shared_memory(
    device, kernel, precision, hidden_size, batch_size
):
    set_compile_target(device)
    launches = kernel_launches(kernel, device, precision, hidden_size, batch_size, inputs=hidden_size, hx=True)
    projection, scan, *_ = launches  # all scans have the same kernel
    for launch in (projection, scan) if batch_size == 1 or hidden_size % 2 else (scan,):
        stats = KernelStats(launch.compile())
        assert stats.stack <= STACK_LIMIT and stats.spills == 0, stats
        assert stats.shared <= device.shared_memory, stats
    if hidden_size == 4096 and stats.loop:  # there is no loop if it is unrolled
        # Weights are copied to shared memory, past the registers, while earlier products are computed.
        assert stats.loop["LDGSTS"] > 0 and stats.loop["LDG"] == 0, stats
    if device.arch == "sm_90" and SHAPES[precision, hidden_size, batch_size]:
        assert stats.executed <= INSTRUCTION_SLACK * SHAPES[precision, hidden_size, batch_size], stats


def test_batch_tiles_grow_with_the_batch():
    h200 = KNOWN_DEVICES["H200"]
    configs = [step_config(4096, batch, 1, *PRECISIONS["fp16"], h200) for batch in (1, 16, 17, 32, 33, 1000)]
    assert [(config.units, config.batch) for config in configs] == [
        (32, 16),
        (32, 16),
        (16, 32),
        (16, 32),
        (16, 64),
        (32, 64),
    ]


@pytest.mark.parametrize("hx", [False, True])
def test_other_lengths_and_batches_need_no_other_kernel(hx):
    set_compile_target(KNOWN_DEVICES["H200"])
    launches = []
    for steps in (2, 3, 17):
        for batch_size in (1, 3, 8, 16):
            launches += kernel_launches("step", KNOWN_DEVICES["H200"], "fp16", 600, batch_size, steps=steps, hx=hx)
    assert count_variants(launches) == {"step_scan": 1, "input_projection": 1}
