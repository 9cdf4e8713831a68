"""Tests that in the machine code of a scan without a stage, only this stage is missing."""

import pytest

from perf.experiments.stages import SCANS
from perf.experiments.stages_kernel import STAGES, load_scan_without

from .harness import KNOWN_DEVICES, KernelStats, kernel_launches, set_compile_target

# The compared instructions: loads and stores of global and shared memory, barriers, products, activations.
COMPARED = ("LDG", "STG", "LDS", "LDSM", "STS", "BAR", "HMMA", "MUFU")
# Stage -> the counts that change without the stage, as functions of the counts `full` of the full scan.
GRID = {
    "waiting": {"LDG": lambda full: full["LDG"] - 3, "STG": lambda full: full["STG"] - 2},  # accesses after a long wait
    "hand-over": {"LDG": lambda full: 3, "STG": lambda full: 1},
    "products-but-the-first": {"HMMA": lambda full: 6},
    "sums": dict.fromkeys(("LDS", "STS", "BAR"), lambda full: 0),
    "activations": {"MUFU": lambda full: 0},
    "gate-inputs": {"LDG": lambda full: full["LDG"] - 3},
    "output": {"STG": lambda full: full["STG"] - 1},
}
BLOCK = {
    "activations": {"MUFU": lambda full: 0},
    "gate-inputs": {"LDG": lambda full: 0},
    "output": {"STG": lambda full: 0},
}
CASES = [("grid", "fp16", 256, GRID), ("block", "tf32", 64, BLOCK)]


@pytest.mark.parametrize("kernel, precision, hidden, changes", CASES, ids=["grid", "block"])
def test_only_the_removed_stage_is_missing(kernel, precision, hidden, changes):
    assert changes.keys() == STAGES[kernel].keys()
    device = KNOWN_DEVICES["H200"]
    set_compile_target(device)
    launch = kernel_launches(kernel, device, precision, hidden, 1)[-1]
    assert launch.kernel is SCANS[kernel]
    full = KernelStats(launch.compile()).loop
    for stage, changed in changes.items():
        stats = KernelStats(launch._replace(kernel=load_scan_without(kernel, stage)).compile())
        expected = {name: changed[name](full) if name in changed else full[name] for name in COMPARED}
        assert {name: stats.loop[name] for name in COMPARED} == expected, stage
        assert stats.stack == 0 and stats.spills == 0, stage
