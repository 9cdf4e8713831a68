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
    """Check the order in the PTX. A wait is marked pure, so only data dependences keep it below the send before it."""
    set_compile_target(device)
    kernel = Hops(handover, 1, torch.device("cpu")).launch.compile()
    stats = KernelStats(kernel)
    assert stats.stack == 0 and stats.spills == 0, stats
    # Replace the many lines of a wait by one word. Some of these lines are stores, for a wait that gives up.
    ptx, waits = re.subn(r"mov\.b32 rounds, 0;.*?DONE:", "WAIT", kernel.asm["ptx"], flags=re.DOTALL)
    assert waits == 1, "the compiler has repeated the wait for another layout"
    body = re.search(r"^(\$L__BB0_\d+):.*?bra\s+\1;", ptx, flags=re.DOTALL | re.MULTILINE)
    assert body, "the PTX has no loop"
    before, loop, after = ptx[: body.start()], body[0], ptx[body.end() :]
    assert re.fullmatch("s+", _list_events(before)), _list_events(before)
    assert re.fullmatch("ws+", _list_events(loop)), _list_events(loop)
    assert _list_events(after) == ""


def _list_events(ptx):
    """Return a letter for each wait (w), relaxed load (r) and relaxed store (s), in order."""
    names = {"WAIT": "w", "ld.relaxed.gpu": "r", "st.relaxed.gpu": "s"}
    return "".join(names[match[0]] for match in re.finditer(r"WAIT|ld\.relaxed\.gpu|st\.relaxed\.gpu", ptx))
