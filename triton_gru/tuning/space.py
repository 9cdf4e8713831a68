"""The configurations that tuning tries: all that can run on a device, and are not out of the question by count."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from ..plan.config import GRID_CUTS, BlockConfig, Config, GridConfig, StepConfig, cut_grid
from ..plan.cost import call_cost
from ..plan.device import Device
from ..plan.heuristic import HEURISTICS, heuristic
from ..plan.problem import Problem
from ..plan.validity import why_not


class Candidate(NamedTuple):
    """A kernel in a configuration; ``"torch"``, torch's own GRU, has none."""

    kernel: str
    config: Config | None

    def __str__(self) -> str:
        return str(self.config or self.kernel)


TORCH = Candidate("torch", None)
# By count so many times slower than the cheapest: not tried.
_OUT_OF_THE_QUESTION = 3.0


def candidates(problem: Problem, device: Device) -> list[Candidate]:
    """All that is worth compiling for a problem: each kernel's heuristic first, then what is cheapest by count."""
    first = [
        Candidate(kernel, config)
        for kernel in HEURISTICS
        if not isinstance(config := heuristic(kernel, problem, device), str)
    ]
    costs = {}
    for kernel in HEURISTICS:
        for config in _SPACES[kernel](problem, device):
            if not why_not(config, problem, device):
                costs[Candidate(kernel, config)] = call_cost(problem, config, device).total
    limit = _OUT_OF_THE_QUESTION * min((*costs.values(), *_costs(first, problem, device)), default=0.0)
    rest = [each for each in sorted(costs, key=costs.get) if costs[each] <= limit]
    return list(dict.fromkeys(first + rest))


def _costs(candidates: list[Candidate], problem: Problem, device: Device) -> list[float]:
    return [call_cost(problem, config, device).total for _, config in candidates]


def _block_space(problem: Problem, device: Device) -> Iterator[BlockConfig]:
    start = heuristic("block", problem, device)
    if isinstance(start, str) or device.isa == "plain":
        return
    all_tiles = 3 * start.tiles**2
    in_registers = sorted({0, start.register_tiles, *((3, 6, 9) if start.tiles > 1 else (all_tiles,))})
    warps = (start.num_warps // 2, start.num_warps, 2 * start.num_warps)
    for batch, ahead, number, registers in itertools.product((2, 8, 16), (1, 2, 4), warps, in_registers):
        yield replace(start, batch=batch, ahead=ahead, num_warps=number, register_tiles=registers)


def _grid_space(problem: Problem, device: Device) -> Iterator[GridConfig]:
    if device.isa == "plain":
        return
    sizes = problem.hidden_size, problem.batch_size, problem.directions
    numbers = problem.dtype, problem.precision, device
    for cut in GRID_CUTS:
        yield from cut_grid(*sizes, cut, *numbers)


def _step_space(problem: Problem, device: Device) -> Iterator[StepConfig]:
    batches = [batch for batch in (16, 32, 64) if batch == 16 or batch < 2 * problem.batch_size]
    depths = [size // problem.dtype.itemsize for size in (128, 256, 512)]
    for units, batch, depth, warps, stages in itertools.product((16, 32), batches, depths, (4, 8), (2, 3, 4)):
        yield StepConfig(units, -(-problem.hidden_size // units), batch, depth, warps, stages)


_SPACES = {"block": _block_space, "grid": _grid_space, "step": _step_space}
