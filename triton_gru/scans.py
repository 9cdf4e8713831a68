"""What each scan kernel is launched with, for one layer and one chunk of time steps."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import watchdog
from .config import BlockConfig, GridConfig, StepConfig
from .device import Device
from .kernels.block import block_scan
from .kernels.exchange import LINE
from .kernels.grid import grid_scan
from .kernels.step import step_scan

# Cap on the mailbox of a ``grid`` call, which has to stay in the L2, and holds two time steps at least.
MAILBOX_BYTES = 16 << 20


class Launch(NamedTuple):
    """One kernel launch: ``kernel[grid](*args, **constants)``."""

    kernel: object
    grid: tuple[int, ...]
    args: tuple
    constants: dict

    def compile(self):
        """What Triton makes of it, by the path of a real launch up to the moment it would start."""
        return self.kernel.warmup(*self.args, grid=self.grid, **self.constants)


@dataclass
class Scan:
    """One layer's recurrence over one chunk of steps.

    Attributes:
        gi: the gate inputs of the chunk, tile by tile of the batch as the configuration cuts it.
        hx: [layers, B, H], unit stride in H (``step``: contiguous), or None for zeros.
        carry: fp32 [2, layers, B, H], the state between launches; it comes in at ``parity`` and goes out at
            the other, or where it came in if the kernel says so.
        out: where the chunk's states go, from step ``out_start``, ``out_t`` elements a step and ``out_b`` a row apart.
        first, last: whether the chunk is the sequence's first, last.
    """

    gi: Tensor
    w_hh: Tensor
    b_hh: Tensor | None
    hx: Tensor | None
    carry: Tensor
    parity: int
    out: Tensor
    out_start: int
    out_t: int
    out_b: int
    h_n: Tensor
    layer: int
    steps: int
    batch: int
    first: bool
    last: bool

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The arguments that every scan begins with; what is not there is not read."""
        return (
            self.gi,
            self.w_hh,
            self.w_hh if self.b_hh is None else self.b_hh,
            self.h_n if self.hx is None else self.hx,
            self.carry[self.parity],
            self.carry[1 - self.parity],
            self.out,
            self.h_n,
        )

    @property
    def constants(self) -> dict:
        return {"HAS_BIAS": self.b_hh is not None, "HAS_HX": self.hx is not None}

    @property
    def hx_strides(self) -> tuple[int, int]:
        return (0, 0) if self.hx is None else (self.hx.stride(0), self.hx.stride(1))


def block_launches(scan: Scan, config: BlockConfig, shared: dict) -> Iterator[Launch]:
    """``shared`` are constants of all kernels of a call. The state comes in where it goes out."""
    gi, w_hh, b_hh, hx, carry, _, out, h_n = scan.tensors
    yield Launch(
        block_scan,
        (-(-scan.batch // config.batch),),
        (
            gi, w_hh, b_hh, hx, carry, out, h_n, scan.steps, scan.out_start, int(scan.first), int(scan.last),
            scan.layer, scan.batch, scan.out_t, scan.out_b, *scan.hx_strides,
        ),
        shared | scan.constants | {
            "UNITS": config.units,
            "TILES": config.tiles,
            "BATCH": config.batch,
            "AHEAD": config.ahead,
            "REGISTER_TILES": config.register_tiles,
            "num_warps": config.num_warps,
            "num_stages": 1,
        },
    )  # fmt: skip


class Mailbox:
    """The memory through which the programs of ``grid`` launches hand the state over, one launch after another.

    Args:
        dtype, device: of the mailbox; ``described``: what ``device`` offers.
    """

    def __init__(self, config: GridConfig, batch: int, dtype: torch.dtype, device: torch.device, described: Device):
        flagged = config.handover in ("flag", "probe")
        self._fill = -1 if flagged else 0
        # In the interpreter no program waits for another to free a slot.
        self._ring = not flagged and described.isa != "interpreter"
        tiles = -(-batch // (config.batch * config.tiles)) * config.tiles
        self._header = (1 + tiles) * LINE.value
        self._slot = tiles * config.rows * config.padded_hidden * config.element_bytes(dtype.itemsize) // 8
        self._device = device
        self._words: Tensor | None = None

    @property
    def longest(self) -> int:
        """Time steps that one launch can take."""
        if self._ring:
            return (1 << 16) - 2  # the steps have to fit a tag of 16 bits
        return max(1, (MAILBOX_BYTES // 8 - self._header) // self._slot - 1)

    def slots(self, steps: int) -> int:
        return 2 if self._ring else steps + 1

    def cleared(self, steps: int) -> Tensor:
        """The mailbox, ready for a launch of so many steps; in the order of the stream, as the launch itself."""
        size = self._header + self.slots(steps) * self._slot
        if self._words is None or self._words.numel() < size:
            self._words = torch.empty(size, dtype=torch.int64, device=self._device)
        self._words[:size].fill_(self._fill)
        return self._words


def grid_launches(scan: Scan, config: GridConfig, shared: dict, mailbox: Mailbox) -> Iterator[Launch]:
    on_gpu = shared["ISA"] != "interpreter"
    launch = Launch(
        grid_scan,
        (config.programs * config.copies,),
        (
            *scan.tensors, mailbox.cleared(scan.steps), watchdog.of(scan.gi.device).watch,
            scan.steps, mailbox.slots(scan.steps), config.copies, scan.out_start, int(scan.first), int(scan.last),
            scan.layer, scan.batch, scan.out_t, scan.out_b, *scan.hx_strides,
        ),
        shared | scan.constants | {
            "UNITS": config.units,
            "BATCH": config.batch,
            "ROWS": config.rows,
            "TILES": config.tiles,
            "SLICES": config.slices,
            "REGISTER_TILES": config.register_tiles,
            "HANDOVER": config.handover,
            "num_warps": config.slices,
            "num_stages": 1,
            # There is one program to a multiprocessor: registers left free are of no use. By itself the assembler
            # stops short of them here and there, and spills.
            "maxnreg": 255,
        } | ({"launch_cooperative_grid": True} if on_gpu else {}),
    )  # fmt: skip
    # In the interpreter programs run one after another and do not wait: each time over, one step more is right.
    for _ in range(1 if on_gpu else scan.steps + 1):
        yield launch


def step_launches(scan: Scan, config: StepConfig, shared: dict, rounded: Tensor) -> Iterator[Launch]:
    """``rounded`` [2, layers, B, H] is the carry as the product's operand. Parities change from step to step."""
    constants = shared | scan.constants | {
        "UNITS": config.units,
        "BATCH": config.batch,
        "DEPTH": config.depth,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }  # fmt: skip
    gi, w_hh, b_hh, hx, *carry, out, h_n = scan.tensors
    states = (*carry, rounded[scan.parity], rounded[1 - scan.parity])
    swapped = (states[1], states[0], states[3], states[2])
    for step in range(scan.steps):
        yield Launch(
            step_scan,
            (config.programs, -(-scan.batch // config.batch)),
            (
                gi, w_hh, b_hh, hx, *(swapped if step % 2 else states), out, h_n, step, scan.out_start + step,
                int(scan.first and step == 0), int(scan.last and step == scan.steps - 1), scan.layer, scan.batch,
                scan.out_t, scan.out_b,
            ),
            constants,
        )  # fmt: skip
