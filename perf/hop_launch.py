"""What ``hop_steps`` is launched with, and the answer its programs have to end with."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from triton_gru.launch import hang
from triton_gru.launch.grid import Mailbox
from triton_gru.launch.kernel_launch import Launch
from triton_gru.plan.config import HANDOVERS, GridConfig
from triton_gru.plan.device import Device

from .hop_kernel import hop_steps

ONE_WORD = 0  # in place of kilobytes
LEAST_STEPS = 64  # of the longest launch, for its fixed cost to be small beside them


@dataclass(frozen=True)
class Hop:
    """One tile of ``batch`` rows of ``row`` elements that ``programs`` hand each other, by one hand-over.

    Attributes:
        slices: a program's warps, each of which waits for its own words.
    """

    programs: int
    row: int
    batch: int
    slices: int
    handover: str

    @property
    def name(self) -> str:
        return f"hop.{self.handover}"

    @property
    def config(self) -> GridConfig:
        """That of a ``grid`` scan whose state is the tile."""
        units = self.row // self.programs
        return GridConfig(units, self.programs, self.batch, self.batch, 1, 1, self.slices, 0, handover=self.handover)


def make_hops(programs: int, kilobytes: int) -> list[Hop]:
    """Return by each hand-over the hop of a tile of 8 rows, or of one word.

    Tiles are cut into warps as ``grid`` cuts states of their size.
    """
    if kilobytes == ONE_WORD:
        return [Hop(programs, 8, 1, slices=1, handover=each) for each in HANDOVERS]
    slices = 4 if kilobytes <= 4 else 8
    return [Hop(programs, 64 * kilobytes, 8, slices, handover=each) for each in HANDOVERS]


def obstacle(hop: Hop, device: Device) -> str:
    """Why there is no such launch on the device; empty if there is."""
    if hop.programs > device.sms:
        return f"{hop.programs} programs have to be on the chip at once, {device.name} has {device.sms} multiprocessors"
    longest = Mailbox(hop.config, hop.batch, 1, torch.float16).longest
    return f"a mailbox has room for {longest} steps of it, fewer than {LEAST_STEPS}" if longest < LEAST_STEPS else ""


class Launcher:
    """Each call launches ``steps`` hops, the mailbox cleared before them."""

    def __init__(self, hop: Hop, steps: int, device: torch.device, described: Device):
        self.hop, self.steps = hop, steps
        self._isa = described.isa
        self.mailbox = Mailbox(hop.config, hop.batch, 1, torch.float16)
        self._words = torch.empty(self.mailbox.size(steps), dtype=torch.int64, device=device)
        self.spills = 0  # words a thread keeps in memory for want of registers, known after a call
        self._watch = hang.of(device).watch
        self._result = torch.zeros(hop.programs, dtype=torch.int32, device=device)

    def launch(self) -> Launch:
        hop = self.hop
        return Launch(
            hop_steps,
            (hop.programs,),
            (self._words, self._watch, self._result, self.steps),
            {
                "PROGRAMS": hop.programs,
                "ROW": hop.row,
                "BATCH": hop.batch,
                "SLICES": hop.slices,
                "HANDOVER": hop.handover,
                "ISA": self._isa,
                "num_warps": hop.slices,
                "num_stages": 1,
            }
            | ({} if self._isa == "interpreter" else {"launch_cooperative_grid": True}),
            self.mailbox.clear(self._words, self.steps),
        )

    def __call__(self) -> None:
        compiled = self.launch().start()
        self.spills = compiled.n_spills if compiled else 0

    def is_right(self, call: Callable[[], None]) -> bool:
        """Whether all programs end with the known answer in ``call``, which launches this; waits for the device.

        Raises:
            RuntimeError: a program gave up waiting.
        """
        self._result.zero_()
        call()
        results = self._result.tolist()
        hang.check()
        hop = self.hop
        return results == [answer(hop.row, hop.batch, self.steps)] * hop.programs


@functools.lru_cache(maxsize=256)
def answer(row: int, batch: int, steps: int) -> int:
    """What every program of `hop_steps` ends with, computed with nothing handed over."""
    element = torch.arange(batch * row, device="cpu")
    history = 0
    for _ in range(steps):
        halves = (((history >> 12) + (element & 127)) & 1023).half().view(torch.int32)
        history = (history * 5 + int(halves.sum()) + 2**31) % 2**32 - 2**31
    return history
