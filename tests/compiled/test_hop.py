"""The compiled kernel of a hop, a floor of perf: no spills, and each step's send before the next wait."""

import re

import pytest
import torch

from perf.floors import Hops
from triton_gru.plan.config import HANDOVERS

from .harness import KNOWN_DEVICES, KernelStats, set_compile_target


@pytest.mark.parametrize("handover", HANDOVERS)
@pytest.mark.parametrize("device", [KNOWN_DEVICES["A100"], KNOWN_DEVICES["H200"]], ids=lambda device: device.arch)
def test_it_stays_in_registers_and_sends_before_the_next_wait(device, handover):
    """A wait is marked pure, so only what it depends on keeps it from being moved above the send before it."""
    set_compile_target(device)
    kernel = Hops(handover, 1, torch.device("cpu")).launch.compile()
    found = KernelStats(kernel)
    assert found.stack == 0 and found.spills == 0, found
    # One wait is many lines, which store too where it gives up.
    ptx, waits = re.subn(r"mov\.b32 rounds, 0;.*?DONE:", "WAIT", kernel.asm["ptx"], flags=re.DOTALL)
    assert waits == 1, "it waits once for each layout that it is wanted in"
    body = re.search(r"^(\$L__BB0_\d+):.*?bra\s+\1;", ptx, flags=re.DOTALL | re.MULTILINE)
    assert body, "no loop of one piece"
    before, loop, after = ptx[: body.start()], body[0], ptx[body.end() :]
    assert re.fullmatch("s+", _events(before)), _events(before)
    assert re.fullmatch("ws+", _events(loop)), _events(loop)
    assert _events(after) == ""


def _events(ptx):
    """w: a wait, r: a load of what arrived, s: a store of what others wait for; in their order."""
    names = {"WAIT": "w", "ld.relaxed.gpu": "r", "st.relaxed.gpu": "s"}
    return "".join(names[found[0]] for found in re.finditer(r"WAIT|ld\.relaxed\.gpu|st\.relaxed\.gpu", ptx))
