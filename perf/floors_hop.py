"""One hop of one word between two programs, by each hand-over: the lower bound of a step that programs share.

A launch of many hops and one of an eighth of them are timed in CUDA graphs, each with the clearing of its mailbox. A
hop is the difference of the two over the difference of their steps. So it has no part in what a launch costs once. It
includes what a step costs: the sum of what arrived, and for "flag" the clearing of a slot.
"""

import functools
from collections.abc import Callable

import torch

from triton_gru.launch import hang
from triton_gru.launch.grid import Mailbox
from triton_gru.launch.kernel_launch import Launch
from triton_gru.plan.config import HANDOVERS, GridConfig
from triton_gru.plan.device import Device, find
from triton_gru.tuning.timing import clock, graphed, quantiles, samples

from .floors_kernel import hop_steps
from .record import Row

PROGRAMS, ROW = 2, 8  # each program sends four elements of fp16, which are one word
STEPS, FEWER_STEPS = 1000, 125


class Hops:
    """A launch of ``steps`` hops, and whether it ends with the known answer."""

    def __init__(self, handover: str, steps: int, device: torch.device, described: Device):
        config = GridConfig(
            units=ROW // PROGRAMS, programs=PROGRAMS, batch=1, rows=1, tiles=1, copies=1, slices=1, register_tiles=0,
            handover=handover,
        )  # fmt: skip
        mailbox = Mailbox(config, 1, 1, torch.float16)
        words = torch.empty(mailbox.size(steps), dtype=torch.int64, device=device)
        self._steps, self._result = steps, torch.zeros(PROGRAMS, dtype=torch.int32, device=device)
        constants = {"PROGRAMS": PROGRAMS, "ROW": ROW, "BATCH": 1, "SLICES": 1, "HANDOVER": handover}
        constants |= {"ISA": described.isa, "num_warps": 1, "num_stages": 1}
        constants |= {} if described.isa == "interpreter" else {"launch_cooperative_grid": True}
        arguments = words, hang.of(device).watch, self._result, steps
        self.launch = Launch(hop_steps, (PROGRAMS,), arguments, constants, mailbox.clear(words, steps))

    def is_right(self, call: Callable[[], object]) -> bool:
        """Return whether all programs end with the known answer in ``call``, which starts this launch.

        Raises:
            RuntimeError: a program gave up waiting.
        """
        self._result.zero_()
        call()
        results = self._result.tolist()  # waits for the device
        hang.raise_if_hung()
        return results == [answer(self._steps)] * PROGRAMS


@functools.cache
def answer(steps: int) -> int:
    """Return what every program of `hop_steps` ends with, computed with nothing handed over."""
    element = torch.arange(ROW, device="cpu")
    history = 0
    for _ in range(steps):
        halves = (((history >> 12) + (element & 127)) & 1023).half().view(torch.int32)
        history = (history * 5 + int(halves.sum()) + 2**31) % 2**32 - 2**31
    return history


def measure_hop(rounds: int) -> Row:
    """Return the row of the fastest hand-over's hop. A hand-over gets a time if it is right before and after.

    Raises:
        RuntimeError: no hand-over is right.
    """
    device, hops, reasons = torch.device("cuda"), {}, []
    for handover in HANDOVERS:
        launches = [Hops(handover, steps, device, find(device)) for steps in (FEWER_STEPS, STEPS)]
        try:
            replays = [graphed(each.launch.start)[0] for each in launches]
            are_right = functools.partial(map, Hops.is_right, launches, replays)
            if all(are_right()):
                calls = {i: [replay] for i, replay in enumerate(replays)}
                taken = samples(calls, rounds, clock("cuda"), seconds=2.0)
                hops[handover] = quantiles([(b - a) / (STEPS - FEWER_STEPS) for a, b in zip(*taken.values())])
            if not all(are_right()):
                hops.pop(handover, None)
                reasons.append(f"{handover} ends with another answer")
        except RuntimeError as error:
            reasons.append(f"{handover}: {error}")
    if not hops:
        raise RuntimeError(f"no hand-over works: {reasons}")
    best = min(hops, key=lambda handover: hops[handover].p20)
    return Row(provider="floor.hop", config=f"1 hops by {best}", mode="graph", **hops[best].columns())
