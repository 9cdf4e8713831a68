"""What the compiler makes of every configuration of ``step`` that the heuristic can choose."""

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

# Every width of a batch tile, and rows of W_hh that are aligned and not; on other architectures a few. With the
# instructions of an iteration, or 0. It takes 512 bytes of each row of W_hh that a program has where each warp has a
# slice of them, 128 where none has.
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
def test_every_chosen_configuration_streams_the_weights_once(device, kernel, precision, hidden_size, batch_size):
    set_compile_target(device)
    launches = kernel_launches(kernel, device, precision, hidden_size, batch_size, inputs=hidden_size, hx=True)
    projection, first = launches[:2]
    for launch in (projection, first) if batch_size == 1 or hidden_size % 2 else (first,):
        found = KernelStats(launch.compile())
        assert found.stack <= STACK_LIMIT and found.spills == 0, found
        assert found.shared <= device.shared_memory, found
    if hidden_size == 4096 and found.loop:  # which is not unrolled
        # On their way to shared memory while the products before them are made, past the registers.
        assert found.loop["LDGSTS"] > 0 and found.loop["LDG"] == 0, found
    if device.arch == "sm_90" and SHAPES[precision, hidden_size, batch_size]:
        assert found.executed <= INSTRUCTION_SLACK * SHAPES[precision, hidden_size, batch_size], found


def test_the_batch_is_cut_the_way_it_comes():
    h200 = KNOWN_DEVICES["H200"]
    configs = [step_config(4096, batch, 1, *PRECISIONS["fp16"], h200) for batch in (1, 16, 17, 32, 33, 1000)]
    assert [(c.units, c.batch) for c in configs] == [(32, 16), (32, 16), (16, 32), (16, 32), (16, 64), (32, 64)]


@pytest.mark.parametrize("hx", [False, True])
def test_other_lengths_and_batches_add_no_compile(hx):
    set_compile_target(KNOWN_DEVICES["H200"])
    launches = []
    for steps in (2, 3, 17):
        for batch_size in (1, 3, 8, 16):
            launches += kernel_launches("step", KNOWN_DEVICES["H200"], "fp16", 600, batch_size, steps=steps, hx=hx)
    assert count_variants(launches) == {"step_scan": 1, "input_projection": 1}
