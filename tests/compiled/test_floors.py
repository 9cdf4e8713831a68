"""Tests that the compiler keeps the measured work in the kernels that measure floors."""

import re

import pytest
import torch

from perf.floors import PART, PARTS
from perf.floors_kernel import read_shared, smallest_steps
from triton_gru.launch.kernel_launch import Launch

from .harness import ARCHITECTURES, KernelStats, set_compile_target

# Tensors of the sizes that perf/floors.py uses: only compiled, never read.
NUMBERS, RESULT = torch.empty(PART * PARTS, dtype=torch.int32), torch.empty(4, dtype=torch.int32)


def find_loop(ptx):
    """Return the PTX of the innermost loop: the shortest text from a label to a branch back."""
    loops = re.findall(r"^(\$L__BB0_\d+):(.*?)bra\s+\1;", ptx, flags=re.DOTALL | re.MULTILINE)
    return min((text for _, text in loops), key=len)


@pytest.mark.parametrize("device", ARCHITECTURES, ids=lambda device: device.arch)
def test_every_round_reads_all_numbers_past_the_l1_in_wide_loads(device):
    set_compile_target(device)
    options = {"PART": PART, "PARTS": PARTS, "num_warps": 16}
    programs, rounds = 264, 20
    compiled = Launch(read_shared, (programs,), (NUMBERS, RESULT, rounds), options).compile()
    stats = KernelStats(compiled)
    assert stats.stack == 0 and stats.spills == 0, stats
    loads = re.findall(r"ld\.global(\S*)\.b32", find_loop(compiled.asm["ptx"]))
    numbers_per_thread = PART // (16 * 32)
    assert loads == [".cg.v4"] * (numbers_per_thread // 4)


@pytest.mark.parametrize("device", ARCHITECTURES, ids=lambda device: device.arch)
def test_the_smallest_step_accesses_no_memory_and_no_barrier(device):
    """Check that the loop has one product and its activations, no access to memory, and no barrier."""
    set_compile_target(device)
    w, result = torch.empty(16, 16, dtype=torch.float16), torch.empty(16, 8)
    compiled = Launch(smallest_steps, (1,), (w, result, 100), {"num_warps": 1}).compile()  # 100 steps
    loop = find_loop(compiled.asm["ptx"])
    assert (loop.count("mma.sync"), loop.count("tanh.approx")) == (1, 8)
    assert not re.search(r"(ld|st)\.(global|shared)|bar\.sync", loop)
