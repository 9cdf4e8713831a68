"""What the compiler makes of the kernels that the floors are measured by: it leaves in them what is measured."""

import re

import pytest
import torch

from perf.floors import PART, PARTS
from perf.floors_kernel import read_shared, smallest_steps
from triton_gru.launch.kernel_launch import Launch

from .harness import ARCHITECTURES, KernelStats, set_compile_target

NUMBERS, RESULT = torch.empty(PART * PARTS, dtype=torch.int32), torch.empty(4, dtype=torch.int32)


def loop_of(ptx):
    """The innermost loop."""
    return min(re.findall(r"^(\$L__BB0_\d+):(.*?)bra\s+\1;", ptx, flags=re.DOTALL | re.MULTILINE), key=len)[1]


@pytest.mark.parametrize("device", ARCHITECTURES, ids=lambda device: device.arch)
def test_every_round_reads_all_past_the_l1_in_wide_loads(device):
    set_compile_target(device)
    options = {"PART": PART, "PARTS": PARTS, "num_warps": 16}
    compiled = Launch(read_shared, (264,), (NUMBERS, RESULT, 20), options).compile()
    found = KernelStats(compiled)
    assert found.stack == 0 and found.spills == 0, found
    loads = re.findall(r"ld\.global(\S*)\.b32", loop_of(compiled.asm["ptx"]))
    assert loads == [".cg.v4"] * (PART // (16 * 32) // 4)


@pytest.mark.parametrize("device", ARCHITECTURES, ids=lambda device: device.arch)
def test_the_smallest_step_waits_for_nothing_but_its_own(device):
    """One product and its activations, of which nothing comes from memory and no other warp is waited for."""
    set_compile_target(device)
    w, result = torch.empty(16, 16, dtype=torch.float16), torch.empty(16, 8)
    compiled = Launch(smallest_steps, (1,), (w, result, 100), {"num_warps": 1}).compile()
    loop = loop_of(compiled.asm["ptx"])
    assert (loop.count("mma.sync"), loop.count("tanh.approx")) == (1, 8)
    assert not re.search(r"(ld|st)\.(global|shared)|bar\.sync", loop)
