"""Tests of the compiled kernel that measures a hop: no spills, and each step's send before the next wait."""

import re

import pytest
import torch

from perf.floors import Hops
from triton_gru.plan.config import HANDOVERS

from .harness import KNOWN_DEVICES, KernelStats, set_compile_target


@pytest.mark.parametrize("handover", HANDOVERS)
@pytest.mark.parametrize("device", [KNOWN_DEVICES["A100"], KNOWN_DEVICES["H200"]], ids=lambda device: device.arch)
def test_the_hop_kernel_spills_nothing_and_sends_before_the_next_wait(device, handover):
    """Check the order in the PTX. A wait is marked pure, so only its dependences keep it below the send before it."""
    set_compile_target(device)
    kernel = Hops(handover, 1, torch.device("cpu")).launch.compile()
    stats = KernelStats(kernel)
    assert stats.stack == 0 and stats.spills == 0, stats
    # Replace a wait, which is many lines, by one word. Its lines include stores, for when it gives up.
    ptx, waits = re.subn(r"mov\.b32 rounds, 0;.*?DONE:", "WAIT", kernel.asm["ptx"], flags=re.DOTALL)
    assert waits == 1, "the compiler has repeated the wait for another layout"
    body = re.search(r"^(\$L__BB0_\d+):.*?bra\s+\1;", ptx, flags=re.DOTALL | re.MULTILINE)
    assert body, "the PTX has no loop"
    before, loop, after = ptx[: body.start()], body[0], ptx[body.end() :]
    assert re.fullmatch("s+", _events(before)), _events(before)
    assert re.fullmatch("ws+", _events(loop)), _events(loop)
    assert _events(after) == ""


def _events(ptx):
    """Return the order of waits (w), relaxed loads (r) and relaxed stores (s)."""
    names = {"WAIT": "w", "ld.relaxed.gpu": "r", "st.relaxed.gpu": "s"}
    return "".join(names[match[0]] for match in re.finditer(r"WAIT|ld\.relaxed\.gpu|st\.relaxed\.gpu", ptx))
