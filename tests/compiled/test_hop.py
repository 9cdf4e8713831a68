"""What the compiler makes of the kernel that perf.hop times: no spills, and each step's send before the next wait."""

import re

import pytest
import torch

from perf.hop_launch import ONE_WORD, Launcher, forms, make_hop, obstacle
from triton_gru.config import HANDOVERS

from .harness import KNOWN, facts, pretend

DEVICES = [KNOWN["A100"], KNOWN["H200"]]
VARIANTS = forms(("ptx", "plain"))


def compiled(device, programs, kilobytes, handover, isa):
    pretend(device)
    hop = make_hop(programs, kilobytes, handover, isa)
    assert not obstacle(hop, device)
    return Launcher(hop, 1, torch.device("cpu"), device).launch().compile()


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.arch)
@pytest.mark.parametrize("handover, isa", VARIANTS)
@pytest.mark.parametrize("programs, kilobytes", [(2, ONE_WORD), (64, 16)])
def test_it_stays_in_registers(device, programs, kilobytes, handover, isa):
    found = facts(compiled(device, programs, kilobytes, handover, isa))
    assert found.stack == 0 and found.spills == 0, found


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.arch)
@pytest.mark.parametrize("handover", HANDOVERS)
def test_the_largest_tile_stays_in_registers_in_ptx(device, handover):
    """The plain form may spill there; the rows of perf.hop say how much."""
    found = facts(compiled(device, 64, 64, handover, "ptx"))
    assert found.stack == 0 and found.spills == 0, found


@pytest.mark.parametrize("handover", HANDOVERS)
@pytest.mark.parametrize("programs, kilobytes", [(2, ONE_WORD), (8, 1), (64, 16)])
def test_a_send_comes_before_the_next_wait_in_ptx(programs, kilobytes, handover):
    """A wait is marked pure, so only what it depends on keeps it from being moved above the send before it."""
    ptx = compiled(KNOWN["H200"], programs, kilobytes, handover, "ptx").asm["ptx"]
    # One wait is many lines, which store too where it gives up.
    ptx, waits = re.subn(r"mov\.b32 rounds, 0;.*?DONE:", "WAIT", ptx, flags=re.DOTALL)
    assert waits == 1, "it waits once for each layout that it is wanted in"
    body = re.search(r"^(\$L__BB0_\d+):.*?bra\s+\1;", ptx, flags=re.DOTALL | re.MULTILINE)
    assert body, "no loop of one piece"
    before, loop, after = ptx[: body.start()], body[0], ptx[body.end() :]
    send = "s+a" if handover == "counter" else "s+"
    take = "wr+" if handover == "counter" else "w"
    assert re.fullmatch(send, _events(before)), _events(before)
    assert re.fullmatch(take + send, _events(loop)), _events(loop)
    assert _events(after) == ""


def _events(ptx):
    """w: a wait, r: a load of what arrived, s: a store of what others wait for, a: a counter raised; in their order."""
    names = {"WAIT": "w", "ld.relaxed.gpu": "r", "st.relaxed.gpu": "s", "atom.": "a"}
    return "".join(names[found[0]] for found in re.finditer(r"WAIT|ld\.relaxed\.gpu|st\.relaxed\.gpu|atom\.", ptx))


@pytest.mark.parametrize("handover", [handover for handover, isa in VARIANTS if isa == "plain"])
@pytest.mark.parametrize("programs, kilobytes", [(2, ONE_WORD), (8, 1), (64, 16)])
def test_a_send_comes_before_the_next_wait_in_the_plain_form(programs, kilobytes, handover):
    """In Triton's own terms, where loops are whole: later passes leave volatile loads and atomics in their places."""
    ir = compiled(KNOWN["H200"], programs, kilobytes, handover, "plain").asm["ttgir"]
    marks = {
        r"scf\.for": "[",
        r"atomic_rmw add, acquire|tt\.load .*isVolatile = true} : tensor": "w",
        r"tt\.store .* : tensor": "s",
        r"atomic_rmw add, release": "a",
    }
    found = "".join(mark for line in ir.splitlines() for form, mark in marks.items() if re.search(form, line))
    send = "s+a" if handover == "counter" else "s+"
    assert re.fullmatch(rf"{send}\[w+{send}", found), found
