"""Which configuration a kernel takes where none was measured: the one estimated cheapest, of those that compile well.

What is known of them was read from compiled code: none spills, on any architecture named in ``tests/compiled``. Tuning
(triton_gru/tuning) looks further, and replaces the estimate by measurement.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

from ..units import format_bytes
from .config import GRID_CUTS, HANDOVERS, BlockConfig, Config, GridConfig, StepConfig
from .cost import estimate_time_step_cost
from .device import Device
from .problem import Problem, Shape
from .validity import GRID_REGISTERS, out_of_resources_reason, too_large_reason, too_old_reason


def _of_fields(choose: Callable[..., Config | str]) -> Callable[..., Config | str]:
    """Make a function of a `Shape` one of the shape's fields, cached, that refuses a device too old for any kernel."""

    @functools.lru_cache(maxsize=1024)
    @functools.wraps(choose)
    def chosen(*fields) -> Config | str:
        shape = Shape(*fields[:6])
        return too_old_reason(shape.device) or choose(shape, *fields[6:])

    return chosen


def _too_large(shape: Shape, why: str) -> str:
    return f"hidden_size {shape.hidden_size} is too large: {why}"


def _cheapest(configs: list[Config], shape: Shape) -> Config:
    """Return the first of the cheapest."""
    return min(configs, key=lambda config: estimate_time_step_cost(config, shape).total)


@_of_fields
def block_config(shape: Shape) -> BlockConfig | str:
    """Return the configuration of ``block`` for a shape, or the reason why there is none."""
    config, device = _cut_block(shape), shape.device
    if config is None:
        return _too_large(shape, f"{device.name} keeps 128 hidden units in one program")
    needed = config.shared_memory(shape.itemsize)
    if needed > device.shared_memory:
        room = format_bytes(device.shared_memory)
        memory = (
            f"{format_bytes(needed)} of shared memory beside the registers of one program, {device.name} has {room}"
        )
        return _too_large(shape, f"W_hh in {shape.dtype_text} needs {memory}")
    configs = [config]
    if config.batch == 8 and not shape.is_ieee:
        # Two batch rows in a program, where products are of eight columns: for a quarter of what follows them. There,
        # masks take no more registers than there are.
        in_registers = 6 if config.tiles > 1 else config.register_tiles
        configs.append(replace(config, batch=2, register_tiles=in_registers))
    # Twice the rows, for fewer programs to wait for a multiprocessor, where registers allow it. Data-centre Blackwell
    # would route products of 16 columns through tensor memory and back, every step.
    too_wide = shape.itemsize == 4 and config.units > 64
    if config.shared_tiles == 0 and config.batch == 8 and not (too_wide or 100 <= device.compute_capability < 120):
        configs.append(replace(config, batch=16, ahead=1))
    return _cheapest(configs, shape)


def _cut_block(shape: Shape) -> BlockConfig | None:
    """Return how W_hh is cut for 8 batch rows in a program; None if no program keeps it."""
    padded = max(16, 1 << (shape.hidden_size - 1).bit_length())
    warps = max(1, min(padded, 128) // 16)  # each warp holds 16 rows of every gate
    tiles = -(-shape.hidden_size // 64)
    if shape.is_ieee:
        # Products on the ordinary fp32 units read W_hh from shared memory.
        units, tiles, warps = (padded, 1, warps) if padded <= 64 else (64, tiles, 8)
        return BlockConfig(units, tiles, 8, ahead=1, register_tiles=0, num_warps=warps)
    if padded <= 128:
        # Prefetch further where a step is shorter than the latency of memory, as far as registers allow.
        ahead = 4 if padded <= 64 else 1 if shape.itemsize == 4 else 2
        return BlockConfig(padded, 1, 8, ahead, register_tiles=3, num_warps=warps)
    # Four warps have registers for six tiles of 64 by 64 16-bit numbers beside a step's own, fewer with masks.
    in_registers = 0 if shape.itemsize == 4 else 6 if shape.hidden_size % 64 == 0 else 3
    return BlockConfig(64, tiles, 8, ahead=1, register_tiles=in_registers, num_warps=4)


# Times the least estimated cost: what costs no more is as good.
_AS_GOOD = 1.05


@_of_fields
def grid_config(
    shape: Shape, cuts: tuple[tuple[int, int, int], ...] = GRID_CUTS, handovers: tuple[str, ...] = ()
) -> GridConfig | str:
    """Return the configuration of ``grid`` for a shape, or the reason why there is none.

    ``cuts`` and ``handovers`` are those of `cut_grid`.
    """
    device = shape.device
    least = -(-shape.hidden_size // 16)
    if least > device.sms:
        has = f"{device.name} has {device.sms}"
        return _too_large(shape, f"it takes {least} programs at once, one on each multiprocessor, {has}")
    configs = list(cut_grid(shape, cuts, handovers))
    if not configs:
        room = f"the registers and shared memory of {least} programs on {device.name}"
        return _too_large(shape, f"W_hh in {shape.dtype_text} does not fit {room}")
    # Of as good as equals the one of fewest programs, in which fewer read the state and wait for each other. Where
    # estimates differ by so little, that was the faster one on an H200.
    least_time = _AS_GOOD * estimate_time_step_cost(_cheapest(configs, shape), shape).total
    equals = [config for config in configs if estimate_time_step_cost(config, shape).total <= least_time]
    programs = min(config.programs for config in equals)
    return _cheapest([config for config in equals if config.programs == programs], shape)


# To wait for one word of a tile before all of it was not worth it with fewer programs, on an H200.
_PROBING_PROGRAMS = 64


def cut_grid(
    shape: Shape, cuts: tuple[tuple[int, int, int], ...] = GRID_CUTS, handovers: tuple[str, ...] = ()
) -> Iterator[GridConfig]:
    """Yield the configurations with ``cuts`` that fit the device: by rows, hand-over and slices.

    Without ``handovers`` they have those that may be the fastest.
    """
    for units, batch, tiles in cuts:
        programs = -(-shape.hidden_size // units)
        if programs > shape.device.sms:
            continue
        start = GridConfig(units, programs, batch, rows=1, tiles=tiles, copies=1, slices=8, register_tiles=0)
        start = start.adapt_to(shape.batch_size, shape.directions, shape.device.sms)
        # Lanes compute every row that there is.
        by_lanes = shape.is_ieee and start.can_use_lanes
        doubles = tiles == 1 and start.rows < batch and not by_lanes
        all_rows = (start.rows, 2 * start.rows) if doubles else (start.rows,)
        all_handovers = handovers or (HANDOVERS if programs >= _PROBING_PROGRAMS else ("flag",))
        for rows, handover, slices in itertools.product(all_rows, all_handovers, (4, 8)):
            # With two tiles in turn one has mostly come while the other was worked on: there is nothing to probe for.
            if tiles == 1 or handover != "probe":
                config = replace(start, rows=rows, handover=handover, slices=slices)
                if config := _with_weights(config, shape):
                    yield config


def _with_weights(config: GridConfig, shape: Shape) -> GridConfig | None:
    """Return ``config`` with as many tiles of W_hh in registers as go there; None if it does not fit the device."""
    itemsize = shape.itemsize
    if shape.is_ieee:
        # Products of eight columns on the ordinary fp32 units read W_hh from shared memory.
        is_narrow = (config.units, config.batch, config.tiles, config.slices) == (16, 8, 1, 8)
        if not is_narrow or out_of_resources_reason(config, shape):
            return None
        by_lanes = replace(config, register_tiles=config.weight_tiles(itemsize))
        return by_lanes if by_lanes.can_use_lanes else config
    budget = GRID_REGISTERS - config.units * (config.tiles - 1) - 32 * (config.units // 16 - 1)
    if shape.device.compute_capability < 90:
        budget -= 8  # the tests of what has come take more there
    if config.padded_hidden % (config.slices * config.depth(itemsize)):
        budget -= 24 * (config.tiles - 1)  # so do the words after the last one
    spare = budget - config.registers(itemsize)
    room = ((spare + 1) * 128 - 1) // (config.units * config.depth(itemsize) * itemsize)
    config = replace(config, register_tiles=max(0, min(config.weight_tiles(itemsize), room)))
    return None if out_of_resources_reason(config, shape) else config


@_of_fields
def step_config(shape: Shape) -> StepConfig | str:
    """Return the configuration of ``step`` for a shape, or the reason why there is none."""
    itemsize, ieee, device = shape.itemsize, shape.is_ieee, shape.device
    batch = 16 if shape.batch_size <= 16 else 32 if shape.batch_size <= 32 or ieee else 64
    programs = -(-shape.hidden_size // 32) * -(-shape.batch_size // batch) * shape.directions
    # With how many programs for each multiprocessor 32 units are worth trying, for fewer trips of the state, and in
    # which order. What is on its way decides how fast weights come, on an H200, where this is measured.
    full, units = (0.9, (32, 16)) if itemsize == 2 and batch == 16 else (2.0, (16, 32))
    wide = programs >= full * device.sms and not ieee
    aligned = shape.hidden_size * itemsize % 16 == 0
    configs = []
    # Rows that are not aligned are loaded number by number, each with an address of its own: fewer of them at once.
    for (size, stages), each in itertools.product(_STEP_LOOPS[0 if aligned else 1 :], units if wide else (16,)):
        depth = size // itemsize
        # As many warps as there are slices of the least depth that the matrix unit sums over.
        config = StepConfig(each, -(-shape.hidden_size // each), batch, depth, min(8, depth // 16), stages)
        if config.slices == 1 or (ieee and not (batch == 16 and aligned)):  # ordinary products take more registers
            config = replace(config, depth=128 // itemsize, num_warps=4, num_stages=3)
        if config.shared_memory(itemsize) <= device.shared_memory:
            configs.append(config)
    return _cheapest(configs, shape)


# Bytes of a row that an iteration takes, and stages.
_STEP_LOOPS = ((512, 3), (256, 4), (256, 3), (128, 3))


# Each kernel's configuration for (hidden_size, batch_size, directions, dtype, precision, device), or why it has none.
HEURISTICS = {"block": block_config, "grid": grid_config, "step": step_config}


def heuristic(kernel: str, problem: Problem, device: Device) -> Config | str:
    """Return a kernel's configuration for a problem, or why it has none."""
    config = HEURISTICS[kernel](*problem.shape_on(device))
    return config if isinstance(config, str) else too_large_reason(config, problem) or config
