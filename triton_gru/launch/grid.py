"""Launches of ``grid``, and the mailbox: the memory through which its programs hand the state over."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..kernels.exchange import HEADER
from ..kernels.grid import Cut, grid_scan
from ..plan.config import GridConfig
from ..plan.problem import Problem
from . import hang
from .kernel_launch import Fill, Launch
from .scan import Scan, common_constants

# Most bytes of a mailbox, so that the mailbox stays in the L2. Exception: a mailbox has at least the slots of one step.
MAILBOX_BYTES = 16 << 20
_WORD_BYTES = 8  # of the 64-bit words that the header and the slots are counted in


class Mailbox:
    """The layout of a call's mailbox in global memory. All ``grid`` launches of a call use it, one after the other.

    A mailbox is a header and slots of equal size, in 64-bit words. A slot holds what is handed over at a time, of all
    batch tiles and directions in a launch: a state, or r * h with ``reset_after=False``.

    Args:
        config: the configuration of the launches.
        batch: batch size.
        handovers: hand-overs in a time step: one, or two with ``reset_after=False``.
        dtype: dtype of the elements in the slots.
    """

    def __init__(self, config: GridConfig, batch: int, handovers: int, dtype: torch.dtype):
        self._handovers = handovers
        tiles = -(-batch // (config.batch * config.tiles)) * config.tiles * config.directions
        self._slot_words = tiles * config.rows * config.padded_hidden * dtype.itemsize // _WORD_BYTES

    @property
    def max_steps(self) -> int:
        """Return the most time steps of one launch whose mailbox has at most `MAILBOX_BYTES`, or 1 if none fits."""
        slots = (MAILBOX_BYTES // _WORD_BYTES - HEADER.value) // self._slot_words
        slots_of_steps = slots - 1  # the first slot holds the state before the first step
        return max(1, slots_of_steps // self._handovers)

    def count_words(self, steps: int) -> int:
        """Return the size of a mailbox for ``steps`` steps in 64-bit words.

        A mailbox has the header, a slot for the state before the first step, and a slot for each hand-over.
        """
        return HEADER.value + (1 + self._handovers * steps) * self._slot_words

    def make_fill(self, words: Tensor, steps: int) -> Fill:
        """Return the fill that marks a mailbox as empty before a launch of ``steps`` steps.

        Programs wait for an element while it is -1 (kernels/exchange.py). ``words``, int64, is the mailbox's memory.
        """
        return Fill(words[: self.count_words(steps)], value=-1)


def launches(scan: Scan, config: GridConfig, mailbox: Mailbox, words: Tensor) -> Iterator[Launch]:
    """Yield one launch for all directions, or one for each direction if the chip cannot hold both.

    ``words``, int64 [`Mailbox.count_words` or more], is the memory of ``mailbox``. At the end ``scan.parity`` is
    flipped.
    """
    constants = {
        "cut": cut(config, scan.problem),
        "call": scan.call_constants,
        "num_warps": config.slices,
        "num_stages": 1,
        # A multiprocessor runs one program, so it may use all registers. Without this limit ptxas sometimes uses fewer,
        # and spills.
        "maxnreg": 255,
        "launch_cooperative_grid": True,
    }
    for first_direction in range(0, len(scan.weights), config.directions):
        yield Launch(
            grid_scan,
            config.launch_grid(scan.batch, len(scan.weights)),
            (
                scan.gi, *scan.select_weights("weight_hh", "bias_hh"), scan.initial_state,
                scan.carry[scan.parity], scan.carry[1 - scan.parity], scan.out, scan.h_n,
                *scan.sequence_tensors, words, hang.get_watchdog(scan.gi.device).watch,
                scan.steps, scan.start, scan.total, config.copies, first_direction,
                config.directions, scan.first_state, scan.batch, *scan.out_strides, *scan.hx_strides,
            ),
            constants,
            mailbox.make_fill(words, scan.steps),
        )  # fmt: skip
    scan.parity ^= 1


def cut(config: GridConfig, problem: Problem) -> Cut:
    """Return the constants of a configuration and problem that the kernel is compiled for."""
    uses_lanes = problem.is_ieee and config.register_tiles > 0
    return Cut.of(
        **common_constants(problem),
        RESET_AFTER=problem.reset_after,
        UNITS=config.units,
        COLUMNS=config.rows if uses_lanes else config.batch,
        ROWS=config.rows,
        BATCH_TILES=config.tiles,
        SLICES=config.slices,
        REGISTER_TILES=config.register_tiles,
        LANES_PER_SLICE=config.lanes_per_slice if uses_lanes else 0,
        PROBE=config.handover == "probe",
    )
