"""What the compiler makes of every configuration of ``step`` that the heuristic can choose."""

import pytest

from triton_gru.accuracy import PRECISIONS
from triton_gru.heuristic import step_config
from triton_gru.kernels.step import step_scan

from .harness import KNOWN, compiled_variants, facts, kernel_launches, pretend

# Every width of a batch tile, and rows of W_hh that are aligned and not; on other architectures a few.
SHAPES = [(precision, *shape) for precision in ("fp16", "tf32") for shape in ((4096, 1), (4096, 32), (4001, 64))]
SHAPES += [("fp16", 25, 1), ("fp32", 4096, 32), ("fp32", 4001, 64)]
ELSEWHERE = [("fp16", 4096, 1), ("tf32", 4001, 64)]
CASES = [
    pytest.param(
        device, precision, hidden_size, batch_size, id=f"{device.arch}-{precision}-H{hidden_size}-B{batch_size}"
    )
    for device in KNOWN.values()
    for precision, hidden_size, batch_size in (SHAPES if device.arch == "sm_90" else ELSEWHERE)
]


@pytest.mark.parametrize("device, precision, hidden_size, batch_size", CASES)
def test_every_chosen_configuration_streams_the_weights_once(device, precision, hidden_size, batch_size):
    pretend(device)
    launches = kernel_launches("step", device, precision, hidden_size, batch_size, inputs=hidden_size, hx=True)
    for launch in launches[:2]:  # the projection and the first step
        found = facts(launch.compile())
        assert found.stack == 0 and found.spills == 0, found
        assert found.shared <= device.shared_memory, found
    if device.isa == "ptx" and hidden_size == 4096:
        # On their way to shared memory while the products before them are made, past the registers.
        assert found.loop["LDGSTS"] > 0 and found.loop["LDG"] == 0, found


# Of an iteration, which takes 128 bytes of each row of W_hh that a program has; by batch size, and so by tile.
INSTRUCTIONS = {
    ("fp16", 1): 87, ("fp16", 32): 87, ("fp16", 64): 115, ("fp16", 1000): 160,
    ("tf32", 1): 216, ("tf32", 32): 200, ("tf32", 64): 237, ("tf32", 1000): 386,
}  # fmt: skip


@pytest.mark.parametrize("case", INSTRUCTIONS, ids=lambda case: "{}-B{}".format(*case))
def test_an_iteration_takes_no_more_instructions_than_it_did(case):
    pretend(KNOWN["H200"])
    precision, batch_size = case
    scan = kernel_launches("step", KNOWN["H200"], precision, 4096, batch_size, hx=True)[-1]
    assert facts(scan.compile()).executed <= INSTRUCTIONS[case]


def test_the_batch_is_cut_the_way_it_comes():
    h200 = KNOWN["H200"]
    configs = [step_config(4096, batch, 1, *PRECISIONS["fp16"], h200) for batch in (1, 16, 17, 32, 33, 1000)]
    assert [(c.units, c.batch) for c in configs] == [(16, 16), (16, 16), (16, 32), (16, 32), (16, 64), (32, 64)]


@pytest.mark.parametrize("hx", [False, True])
def test_other_lengths_and_batches_add_no_compile(hx):
    pretend(KNOWN["H200"])
    step_scan.device_caches.clear()
    for steps in (1, 2, 17):
        for batch_size in (1, 3, 8, 16):
            for launch in kernel_launches("step", KNOWN["H200"], "fp16", 600, batch_size, steps=steps, hx=hx):
                launch.compile()
    assert compiled_variants(step_scan) == 1
