"""The configurations that tuning tries: all that can run on a device, and are not out of the question by count."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from ..config import GRID_CUTS, HANDOVERS, BlockConfig, Config, GridConfig, StepConfig, cut_grid, placed
from ..cost import call_cost
from ..device import Device
from ..heuristic import HEURISTICS, heuristic, too_old
from ..limits import why_too_large
from ..problem import Problem


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


def why_not(config: Config, problem: Problem, device: Device) -> str:
    """Why a configuration cannot run a problem on a device, by what is known before it is compiled; empty if it can.

    Whatever the numbers in it: configurations come from files, too.
    """
    if why := too_old(device):
        return why
    # AMD's matrix unit has products of fp32 numbers.
    ieee = problem.ieee and device.isa != "plain"
    why = _WHY_NOT[type(config)](config, problem, device, ieee, problem.dtype.itemsize)
    return why or why_too_large(config, problem)


def _power(number: int, least: int, most: int) -> bool:
    return least <= number <= most and number & (number - 1) == 0


def _why_not_block(config: BlockConfig, problem: Problem, device: Device, ieee: bool, itemsize: int) -> str:
    if not (_power(config.units, 16, 128) and _power(config.num_warps, 1, 8) and _power(config.ahead, 1, 8)):
        return "units, num_warps and ahead have to be powers of two, to 128, 8 and 8"
    if config.batch not in (2, 8, 16) or (device.isa == "plain" and config.batch < 16):
        return "batch is 2, 8 (neither on AMD) or 16"
    if config.batch == 2 and ieee:
        return "ordinary products are not made for several columns of one row"
    if config.batch == 16 and config.tiles > 1 and device.isa == "ptx":
        # They spill hundreds of words, and on an H200 such a kernel has accessed memory that is not there.
        return "not the registers for 16 rows and several tiles"
    if not 1 <= config.tiles <= 4 or not _covers(config.units, config.tiles, problem.hidden_size):
        return "tiles of units are not as many as hold hidden_size, or more than 4"
    if not 0 <= config.register_tiles <= 3 * config.tiles**2 or (ieee and config.register_tiles):
        return "there are not so many tiles of W_hh, or ordinary products cannot have them in registers"
    if config.num_warps * 16 > config.units:
        return "more warps than rows for them, and each copy of a tile would be stored"
    held = config.register_tiles * config.units**2 * itemsize / 4 + 3 * config.padded_hidden * config.columns
    if device.isa != "plain" and held > 32 * config.num_warps * 210:
        return "not the registers"
    if config.shared_memory(itemsize, device.isa) > device.shared_memory:
        return "not the shared memory"
    return ""


def _covers(units: int, tiles: int, hidden_size: int) -> bool:
    """Whether all units have a place, and no tile is empty."""
    return units * (tiles - 1) < hidden_size <= units * tiles


def _why_not_grid(config: GridConfig, problem: Problem, device: Device, ieee: bool, itemsize: int) -> str:
    if device.isa == "plain":
        return "its programs wait for each other by means of NVIDIA GPUs"
    if not _power(config.units, 16, 32) or config.batch not in (8, 16) or config.tiles not in (1, 2):
        return "units are 16 or 32, batch is 8 or 16, tiles 1 or 2"
    if not _power(config.rows, 1, config.batch) or config.slices not in (4, 8) or config.handover not in HANDOVERS:
        return "rows, slices or handover are none that there are"
    if not _covers(config.units, config.programs, problem.hidden_size):
        return "programs are not as many as hold hidden_size"
    if config.directions < 1 or config.copies < 1 or problem.directions % config.directions:
        return "directions and copies do not fit the problem"
    if config.programs * config.copies * config.directions > device.sms:
        return "more programs than multiprocessors, where all have to be on the chip at once"
    if config.rows < config.batch and (config.rows < problem.batch_size or config.tiles > 1):
        return "fewer rows than the batch has"
    if not 0 <= config.register_tiles <= config.weight_tiles(itemsize):
        return "there are not so many tiles of W_hh"
    all_fit = config.register_tiles == config.weight_tiles(itemsize) and config.lanes_fit
    if ieee and config.register_tiles and not all_fit:
        return "ordinary products have all tiles of W_hh in registers, if few columns and all fit, or none"
    if not ieee and (config.registers(itemsize) > 230 or config.state_registers(itemsize) > 64):
        return "not the registers"
    if config.shared_memory(itemsize) > device.shared_memory:
        return "not the shared memory"
    return ""


def _why_not_step(config: StepConfig, problem: Problem, device: Device, ieee: bool, itemsize: int) -> str:
    if not _power(config.units, 16, 32) or not _power(config.batch, 16, 64):
        return "units are 16 or 32, batch is 16, 32 or 64"
    if not _covers(config.units, config.programs, problem.hidden_size):
        return "programs are not as many as hold hidden_size"
    if not _power(config.depth * itemsize, 64, 512) or not _power(config.num_warps, 2, 8):
        return "a step of the loop is 64 to 512 bytes deep, of 2 to 8 warps"
    if config.slices == 1 and config.units * config.batch < 128 * config.num_warps and device.isa == "ptx" and not ieee:
        return "several warps would make the same products"
    if not 1 <= config.num_stages <= 5 or config.shared_memory(itemsize) > device.shared_memory:
        return "not the shared memory"
    return ""


_WHY_NOT = {BlockConfig: _why_not_block, GridConfig: _why_not_grid, StepConfig: _why_not_step}


def for_problem(config: Config, problem: Problem, device: Device) -> Config:
    """A configuration found for another batch, put to use for this problem's."""
    if not isinstance(config, GridConfig) or config.programs < 1 or config.batch * config.tiles < 1:
        return config
    if config.programs > device.sms:
        return config
    return placed(config, problem.batch_size, problem.directions, device)


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
