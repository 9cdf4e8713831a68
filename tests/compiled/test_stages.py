"""What the compiler makes of scans with a stage left out: that stage is gone, and of the others nothing is."""

import pytest

from perf.experiments.stages import SCANS
from perf.experiments.stages_kernel import STAGES, load_scan_without

from .harness import KNOWN_DEVICES, KernelStats, kernel_launches, set_compile_target

# What there is a step of: loads and stores of memory and of shared memory, barriers, products, activations.
COUNTED = ("LDG", "STG", "LDS", "LDSM", "STS", "BAR", "HMMA", "MUFU")
# What is left of it without a stage, where that is not all: of what there is in the whole, w.
GRID = {
    "waiting": {"LDG": lambda w: w["LDG"] - 3, "STG": lambda w: w["STG"] - 2},  # when it has waited for long
    "hand-over": {"LDG": lambda w: 3, "STG": lambda w: 1},
    "products-but-the-first": {"HMMA": lambda w: 6},
    "sums": dict.fromkeys(("LDS", "STS", "BAR"), lambda w: 0),
    "activations": {"MUFU": lambda w: 0},
    "gate-inputs": {"LDG": lambda w: w["LDG"] - 3},
    "output": {"STG": lambda w: w["STG"] - 1},
}
BLOCK = {
    "activations": {"MUFU": lambda w: 0},
    "gate-inputs": {"LDG": lambda w: 0},
    "output": {"STG": lambda w: 0},
}
CASES = [("grid", "fp16", 256, GRID), ("block", "tf32", 64, BLOCK)]


@pytest.mark.parametrize("kernel, precision, hidden, left", CASES, ids=["grid", "block"])
def test_one_stage_is_gone_and_no_other(kernel, precision, hidden, left):
    assert left.keys() == STAGES[kernel].keys()
    device = KNOWN_DEVICES["H200"]
    set_compile_target(device)
    launch = kernel_launches(kernel, device, precision, hidden, 1)[-1]
    assert launch.kernel is SCANS[kernel]
    whole = KernelStats(launch.compile()).loop
    for stage, changed in left.items():
        found = KernelStats(launch._replace(kernel=load_scan_without(kernel, stage)).compile())
        expected = {name: changed[name](whole) if name in changed else whole[name] for name in COUNTED}
        assert {name: found.loop[name] for name in COUNTED} == expected, stage
        assert found.stack == 0 and found.spills == 0, stage
