"""What ``grid`` is launched with, and the memory through which its programs hand the state over."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..kernels.exchange import HEADER
from ..kernels.grid import Cut, grid_scan
from ..plan.config import GridConfig
from ..plan.problem import Problem
from . import hang
from .kernel_launch import Clear, Launch
from .scan import Scan, common_constants

# Cap on the mailbox of a call, which has to stay in the L2, and holds two time steps at least.
MAILBOX_BYTES = 16 << 20


class Mailbox:
    """The memory through which the programs of ``grid`` launches hand the state over, one launch after another.

    Args:
        handovers: in a time step.
        dtype: of the state.
    """

    def __init__(self, config: GridConfig, batch: int, handovers: int, dtype: torch.dtype):
        self._handovers = handovers
        tiles = -(-batch // (config.batch * config.tiles)) * config.tiles
        tiles *= config.directions
        self._slot = tiles * config.rows * config.padded_hidden * dtype.itemsize // 8

    @property
    def longest(self) -> int:
        """Time steps that one launch can take."""
        in_all = (MAILBOX_BYTES // 8 - HEADER.value) // self._slot
        return max(1, (in_all - 1) // self._handovers)

    def size(self, steps: int) -> int:
        """Return the words of 64 bits that a launch takes: a slot for each hand-over and one for the first state."""
        return HEADER.value + (self._handovers * steps + 1) * self._slot

    def clear(self, words: Tensor, steps: int) -> Clear:
        """What has to come before a launch of so many steps."""
        return Clear(words[: self.size(steps)], -1)


def launches(scan: Scan, config: GridConfig, mailbox: Mailbox, words: Tensor) -> Iterator[Launch]:
    """Yield one launch for all directions, or one for each where the chip has no room for both.

    ``words``, int64, is the memory of ``mailbox``.
    """
    constants = {
        "cut": cut(config, scan.problem),
        "call": scan.call_constants,
        "num_warps": config.slices,
        "num_stages": 1,
        # There is one program to a multiprocessor: registers left free are of no use. By itself the assembler
        # stops short of them here and there, and spills.
        "maxnreg": 255,
        "launch_cooperative_grid": True,
    }
    for first_direction in range(0, len(scan.weights), config.directions):
        yield Launch(
            grid_scan,
            config.launch_grid(scan.batch, len(scan.weights)),
            (
                scan.gi, *scan.select_weights(1, 3), scan.initial, scan.carry[scan.parity], scan.carry[1 - scan.parity],
                scan.out, scan.h_n, *scan.ends, words, hang.get_watchdog(scan.gi.device).watch,
                scan.steps, scan.start, scan.total, config.copies, first_direction,
                config.directions, scan.first_state, scan.batch, *scan.out_strides, *scan.hx_strides,
            ),
            constants,
            mailbox.clear(words, scan.steps),
        )  # fmt: skip
    scan.parity ^= 1


def cut(config: GridConfig, problem: Problem) -> Cut:
    """Return what the kernel is compiled for."""
    by_lanes = problem.is_ieee and config.register_tiles > 0
    return Cut.of(
        **common_constants(problem),
        RESET_AFTER=problem.reset_after,
        UNITS=config.units,
        BATCH=config.rows if by_lanes else config.batch,
        ROWS=config.rows,
        BATCH_TILES=config.tiles,
        SLICES=config.slices,
        REGISTER_TILES=config.register_tiles,
        LANES_PER_SLICE=config.lanes_per_slice if by_lanes else 0,
        PROBE=config.handover == "probe",
    )
