"""The candidates that tuning tries: those that can run on a device, without those estimated to be far too slow."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from ..plan.config import (
    CUBLAS,
    BlockConfig,
    Config,
    Projection,
    ProjectionConfig,
    StepConfig,
    implementation_name,
    projection_config,
)
from ..plan.cost import estimate_call_cost
from ..plan.device import Device
from ..plan.heuristic import HEURISTICS, cut_grid, heuristic
from ..plan.problem import Problem
from ..plan.validity import unsupported_config_reason, unsupported_projection_reason


class Candidate(NamedTuple):
    """A kernel in a configuration, or nn.GRU.

    Attributes:
        kernel: ``"block"``, ``"grid"``, ``"step"``, or ``"torch"`` for nn.GRU.
        config: the kernel's configuration; None for nn.GRU.
        projection: the projection of the inputs; None for our kernel with its usual tile, and for nn.GRU.
    """

    kernel: str
    config: Config | None
    projection: Projection | None = None

    @property
    def name(self) -> str:
        """Return the name of the implementation, such as ``"grid+cublas"``."""
        return implementation_name(self.kernel, self.projection)

    def __str__(self) -> str:
        return " ".join(str(part) for part in (self.config or self.kernel, self.projection) if part)


TORCH = Candidate("torch", None)
IMPLEMENTATIONS = [implementation_name(kernel, projection) for kernel in HEURISTICS for projection in (None, CUBLAS)]
# Configurations whose estimate is more than this many times the lowest are not tried, except the heuristic's.
_MAX_COST_RATIO = 3.0


def candidates(problem: Problem, device: Device) -> list[Candidate]:
    """Return the candidates to compile for a problem.

    The heuristic's configuration of each kernel comes first. The others follow in the order of their estimated cost,
    without those above `_MAX_COST_RATIO`. The list is empty if no kernel serves the problem.
    """
    proposals = [Candidate(kernel, heuristic(kernel, problem, device)) for kernel in HEURISTICS]
    # A text in place of a configuration is the reason why the kernel cannot serve.
    heuristics = [candidate for candidate in proposals if not isinstance(candidate.config, str)]
    space = [Candidate(kernel, config) for kernel in HEURISTICS for config in _SPACES[kernel](problem, device)]
    runnable = heuristics + [
        candidate for candidate in space if not unsupported_config_reason(candidate.config, problem, device)
    ]
    costs = {candidate: estimate_call_cost(problem, candidate.config, device).total for candidate in runnable}
    max_cost = _MAX_COST_RATIO * min(costs.values(), default=0.0)
    cheap = [candidate for candidate in sorted(costs, key=costs.get) if costs[candidate] <= max_cost]
    return list(dict.fromkeys(heuristics + cheap))


def projections(problem: Problem, config: Config, device: Device) -> list[Projection]:
    """Return the input projections to try with the scan of ``config``: cuBLAS, and other tiles of our kernel.

    The usual tile is left out, as `candidates` has it with every scan. Projections that cannot run are left out, too.
    """
    tiles = (
        ProjectionConfig(gate_units, pairs, depth_bytes // problem.dtype.itemsize, warps, stages)
        for gate_units, pairs, depth_bytes, warps, stages in (_IEEE_TILES if problem.is_ieee else _TILES)
    )
    usual_tile = projection_config(problem.hidden_size, problem.dtype, problem.precision, aligned=True)
    # Our kernel has only one tile for input rows that are not aligned to 16 bytes. Here no layer has aligned rows.
    if all(size * problem.dtype.itemsize % 16 for size, _ in problem.input_sizes):
        tiles = ()
    return [
        projection
        for projection in (CUBLAS, *tiles)
        if projection != usual_tile and not unsupported_projection_reason(projection, config, problem, device)
    ]


# (gate units, (step, batch row) pairs, bytes of depth, warps, stages), roughly from few pairs to many.
# The depth is the part of an input row that an iteration of the loop sums over.
_TILES = (
    (64, 16, 256, 4, 4), (64, 32, 128, 4, 4), (64, 64, 128, 4, 3), (128, 64, 128, 4, 3), (128, 64, 128, 4, 4),
    (64, 128, 128, 4, 3), (128, 128, 128, 4, 3), (128, 128, 128, 8, 3), (128, 128, 64, 4, 4), (256, 64, 128, 8, 3),
    (128, 256, 128, 8, 3), (256, 128, 128, 8, 3),
)  # fmt: skip
_IEEE_TILES = ((32, 32, 64, 4, 2), (64, 64, 64, 4, 2), (64, 64, 64, 8, 2), (128, 64, 64, 8, 2), (64, 32, 128, 4, 2))


def _vary_block(problem: Problem, device: Device) -> Iterator[BlockConfig]:
    """Yield variations of the heuristic's configuration of ``block``. Not all of them can run on the device.

    Yield nothing if the kernel cannot serve the problem.
    """
    base = heuristic("block", problem, device)
    if isinstance(base, str):  # the reason why the kernel cannot serve
        return
    # W_hh has 3 * tiles**2 tiles. The number of them in registers is 0, the heuristic's, or one of these: all three if
    # W_hh has only three, else 3, 6 or 9.
    tile_counts = (3, 6, 9) if base.tiles > 1 else (3 * base.tiles**2,)
    register_tile_counts = sorted({0, base.register_tiles, *tile_counts})
    warp_counts = (base.num_warps // 2, base.num_warps, 2 * base.num_warps)
    for batch, ahead, num_warps, register_tiles in itertools.product(
        (2, 8, 16), (1, 2, 4), warp_counts, register_tile_counts
    ):
        yield replace(base, batch=batch, ahead=ahead, num_warps=num_warps, register_tiles=register_tiles)


def _list_step(problem: Problem, device: Device) -> Iterator[StepConfig]:
    """Yield configurations of ``step`` that cover the hidden size. Not all of them can run on the device."""
    # Batch tiles of twice the batch or more would be half padding or more. 16 rows is the smallest tile.
    batch_tiles = [rows for rows in (16, 32, 64) if rows == 16 or rows < 2 * problem.batch_size]
    # An iteration of the loop sums over 128, 256 or 512 bytes of a row of W_hh.
    depths = [row_bytes // problem.dtype.itemsize for row_bytes in (128, 256, 512)]
    for units, batch, depth, num_warps, num_stages in itertools.product(
        (16, 32), batch_tiles, depths, (4, 8), (2, 3, 4)
    ):
        programs = -(-problem.hidden_size // units)  # rounded up
        yield StepConfig(units, programs, batch, depth, num_warps, num_stages)


# kernel -> function that yields the configurations to try. Not all of them can run on the device.
_SPACES = {
    "block": _vary_block,
    "grid": lambda problem, device: cut_grid(problem.shape_on(device)),
    "step": _list_step,
}
