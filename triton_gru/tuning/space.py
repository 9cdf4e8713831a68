"""The configurations that tuning tries: those that can run on a device, without those estimated to be far too slow."""

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
        projection: the projection of the inputs; None for our kernel with its usual tile.
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
# Configurations whose estimate is more than this many times the cheapest one are not tried.
_MAX_COST_RATIO = 3.0


def candidates(problem: Problem, device: Device) -> list[Candidate]:
    """Return the candidates to compile for a problem: each kernel's heuristic, then others from the cheapest on."""
    heuristics = [Candidate(kernel, heuristic(kernel, problem, device)) for kernel in HEURISTICS]
    first = [candidate for candidate in heuristics if not isinstance(candidate.config, str)]
    space = [Candidate(kernel, config) for kernel in HEURISTICS for config in _SPACES[kernel](problem, device)]
    runnable = first + [each for each in space if not unsupported_config_reason(each.config, problem, device)]
    costs = {candidate: estimate_call_cost(problem, candidate.config, device).total for candidate in runnable}
    limit = _MAX_COST_RATIO * min(costs.values(), default=0.0)
    return list(dict.fromkeys(first + [each for each in sorted(costs, key=costs.get) if costs[each] <= limit]))


def projections(problem: Problem, config: Config, device: Device) -> list[Projection]:
    """Return the projections to try for a scan's inputs besides the usual one: cuBLAS, and our kernel's other tiles."""
    tiles = (
        ProjectionConfig(rows, cols, depth // problem.dtype.itemsize, warps, stages)
        for rows, cols, depth, warps, stages in (_IEEE_TILES if problem.is_ieee else _TILES)
    )
    usual = projection_config(problem.hidden_size, problem.dtype, problem.precision, aligned=True)
    # Our kernel has only one tile for rows that are not aligned to 16 bytes.
    if all(size * problem.dtype.itemsize % 16 for size, _ in problem.input_sizes):
        tiles = ()
    others = (projection for projection in (CUBLAS, *tiles) if projection != usual)
    return [each for each in others if not unsupported_projection_reason(each, config, problem, device)]


# (rows, columns, bytes of depth, warps, stages), from tiles for a few rows to tiles for thousands.
_TILES = (
    (64, 16, 256, 4, 4), (64, 32, 128, 4, 4), (64, 64, 128, 4, 3), (128, 64, 128, 4, 3), (128, 64, 128, 4, 4),
    (64, 128, 128, 4, 3), (128, 128, 128, 4, 3), (128, 128, 128, 8, 3), (128, 128, 64, 4, 4), (256, 64, 128, 8, 3),
    (128, 256, 128, 8, 3), (256, 128, 128, 8, 3),
)  # fmt: skip
_IEEE_TILES = ((32, 32, 64, 4, 2), (64, 64, 64, 4, 2), (64, 64, 64, 8, 2), (128, 64, 64, 8, 2), (64, 32, 128, 4, 2))


def _block_space(problem: Problem, device: Device) -> Iterator[BlockConfig]:
    start = heuristic("block", problem, device)
    if isinstance(start, str):
        return
    all_tiles = 3 * start.tiles**2
    in_registers = sorted({0, start.register_tiles, *((3, 6, 9) if start.tiles > 1 else (all_tiles,))})
    warps = (start.num_warps // 2, start.num_warps, 2 * start.num_warps)
    for batch, ahead, number, registers in itertools.product((2, 8, 16), (1, 2, 4), warps, in_registers):
        yield replace(start, batch=batch, ahead=ahead, num_warps=number, register_tiles=registers)


def _step_space(problem: Problem, device: Device) -> Iterator[StepConfig]:
    batches = [batch for batch in (16, 32, 64) if batch == 16 or batch < 2 * problem.batch_size]
    depths = [size // problem.dtype.itemsize for size in (128, 256, 512)]
    for units, batch, depth, warps, stages in itertools.product((16, 32), batches, depths, (4, 8), (2, 3, 4)):
        yield StepConfig(units, -(-problem.hidden_size // units), batch, depth, warps, stages)


_SPACES = {
    "block": _block_space,
    "grid": lambda problem, device: cut_grid(problem.shape_on(device)),
    "step": _step_space,
}
