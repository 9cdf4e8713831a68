"""Tests that in the machine code of a scan without a stage, only this stage is missing."""

import pytest

from perf.experiments.stages import SCANS
from perf.experiments.stages_kernel import STAGES, load_scan_without

from .harness import KNOWN_DEVICES, KernelStats, kernel_launches, set_compile_target

# The counted instructions of a step: loads and stores of global and shared memory, barriers, products, activations.
COUNTED = ("LDG", "STG", "LDS", "LDSM", "STS", "BAR", "HMMA", "MUFU")
# Stage -> the counts that change without it, as functions of the counts `w` of the full scan.
GRID = {
    "waiting": {"LDG": lambda w: w["LDG"] - 3, "STG": lambda w: w["STG"] - 2},  # those after a long wait
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
        expected = {name: changed[name](full) if name in changed else full[name] for name in COUNTED}
        assert {name: stats.loop[name] for name in COUNTED} == expected, stage
        assert stats.stack == 0 and stats.spills == 0, stage
