"""The choice of a kernel's configuration if none was measured: the one with the lowest estimate (cost.py).

Exception: of configurations of ``grid`` with almost equal estimates, one with the fewest programs is chosen. Only
configurations that compile well compete. ``tests/compiled`` asserts for many shapes that no loop of products spills
registers. Exception: ``block`` in fp32 ieee with ``reset_after=False`` spills two words at H = 100. Tuning
(triton_gru/tuning) tries more configurations, and replaces the estimate by measurement.
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


def _cache_by_fields(choose: Callable[..., Config | str]) -> Callable[..., Config | str]:
    """Return ``choose`` as a cached function that takes the fields of a `Shape` one by one, then other arguments.

    The cached function returns a configuration, or a reason why there is none. If the device is too old for any kernel,
    it returns that reason without a call of ``choose``.
    """

    @functools.lru_cache(maxsize=1024)
    @functools.wraps(choose)
    def choose_by_fields(*fields) -> Config | str:
        shape, others = Shape(*fields[: len(Shape._fields)]), fields[len(Shape._fields) :]
        return too_old_reason(shape.device) or choose(shape, *others)

    return choose_by_fields


def _too_large_hidden_size_reason(shape: Shape, limit: str) -> str:
    """Return the reason that hidden_size is too large, with the ``limit`` that it exceeds."""
    return f"hidden_size {shape.hidden_size} is too large: {limit}"


def _find_cheapest(configs: list[Config], shape: Shape) -> Config:
    """Return the configuration with the lowest estimate of a time step, with ``reset_after=True``.

    Of equal estimates, the first configuration wins.
    """
    return min(configs, key=lambda config: estimate_time_step_cost(config, shape).total)


@_cache_by_fields
def block_config(shape: Shape) -> BlockConfig | str:
    """Return the configuration of ``block`` for a shape, or as text the reason why there is none."""
    config, device = _cut_block(shape), shape.device
    needed = config.shared_memory(shape.itemsize)
    if needed > device.shared_memory:
        limit = (
            f"W_hh in {shape.dtype_text} needs {format_bytes(needed)} of one program's shared memory, "
            f"{device.name} has {format_bytes(device.shared_memory)}"
        )
        return _too_large_hidden_size_reason(shape, limit)
    configs = [config]
    if not shape.is_ieee:
        # Two batch rows in a program. The products still have eight columns, but a thread computes a quarter of the
        # gates. That leaves registers for six tiles of W_hh, even with masks for units beyond H.
        register_tiles = 6 if config.tiles > 1 else config.register_tiles
        configs.append(replace(config, batch=2, register_tiles=register_tiles))
    # Twice the rows halve the number of programs, if registers allow it. Exception: Blackwell of compute capability 10
    # or 11, which has tensor memory. Triton would move products of 16 columns through that memory at every step.
    is_too_wide = shape.itemsize == 4 and config.units > 64
    has_tensor_memory = 100 <= device.compute_capability < 120
    if config.shared_tiles == 0 and not (is_too_wide or has_tensor_memory):
        configs.append(replace(config, batch=16, ahead=1))
    return _find_cheapest(configs, shape)


def _cut_block(shape: Shape) -> BlockConfig:
    """Return the configuration of ``block`` with 8 batch rows in a program, even if it exceeds the shared memory."""
    padded = max(16, 1 << (shape.hidden_size - 1).bit_length())
    warps = max(1, min(padded, 128) // 16)  # with one tile, each warp holds 16 rows of every gate
    tiles = -(-shape.hidden_size // 64)
    if shape.is_ieee:
        # Products without the matrix unit read W_hh from shared memory.
        units, tiles, warps = (padded, 1, warps) if padded <= 64 else (64, tiles, 8)
        return BlockConfig(units, tiles, 8, ahead=1, register_tiles=0, num_warps=warps)
    if padded <= 128:
        # A short step hides less of the latency of memory. So prefetch further, as far as registers allow.
        ahead = 4 if padded <= 64 else 1 if shape.itemsize == 4 else 2
        # W_hh has one tile for each gate.
        return BlockConfig(padded, 1, 8, ahead, register_tiles=3, num_warps=warps)
    # Besides a step's values, four warps have registers for six tiles of 64 by 64 16-bit numbers. If H is no multiple
    # of 64, units beyond H are masked, and there are registers for three tiles.
    register_tiles = 0 if shape.itemsize == 4 else 6 if shape.hidden_size % 64 == 0 else 3
    return BlockConfig(64, tiles, 8, ahead=1, register_tiles=register_tiles, num_warps=4)


# Configurations are treated as equally fast if their estimates are at most this many times the lowest estimate.
_MAX_EQUAL_COST_RATIO = 1.05


@_cache_by_fields
def grid_config(
    shape: Shape, cuts: tuple[tuple[int, int, int], ...] = GRID_CUTS, handovers: tuple[str, ...] = ()
) -> GridConfig | str:
    """Return the configuration of ``grid`` for a shape, or as text the reason why there is none.

    ``cuts`` and ``handovers`` are those of `cut_grid`.
    """
    configs = list(cut_grid(shape, cuts, handovers))
    if not configs:
        return _no_cut_reason(shape, cuts)
    # Take the fewest programs among configurations with almost equal estimates. Fewer programs then read the state and
    # wait for each other. On an H200 that was faster if estimates differ by at most 5 %.
    max_cost = _MAX_EQUAL_COST_RATIO * estimate_time_step_cost(_find_cheapest(configs, shape), shape).total
    equally_fast = [config for config in configs if estimate_time_step_cost(config, shape).total <= max_cost]
    programs = min(config.programs for config in equally_fast)
    return _find_cheapest([config for config in equally_fast if config.programs == programs], shape)


def _no_cut_reason(shape: Shape, cuts: tuple[tuple[int, int, int], ...]) -> str:
    """Return the reason why none of ``cuts`` fits the device."""
    device, counts = shape.device, [-(-shape.hidden_size // units) for units, _, _ in _allowed_cuts(shape, cuts)]
    if not counts:
        return f"grid has only the cut {_IEEE_CUT} in {shape.dtype_text}, got {cuts}"
    at_once = [programs for programs in counts if programs <= device.sms]
    if at_once:
        memory = f"the registers and shared memory of {max(at_once)} programs on {device.name}"
        limit = f"W_hh in {shape.dtype_text} does not fit {memory}"
    else:
        limit = f"it takes {min(counts)} programs at once on as many multiprocessors, {device.name} has {device.sms}"
    return _too_large_hidden_size_reason(shape, limit)


# Products on the ordinary fp32 units are written for this cut, and 8 slices.
_IEEE_CUT = (16, 8, 1)


def _allowed_cuts(shape: Shape, cuts: tuple[tuple[int, int, int], ...]) -> list[tuple[int, int, int]]:
    """Return those of ``cuts`` that the kernel has for the precision."""
    return [cut for cut in cuts if cut == _IEEE_CUT or not shape.is_ieee]


# "probe" is tried from this many programs on. With fewer programs it was 4 to 30 % slower on an H200 (perf/NOTES.md).
_MIN_PROBE_PROGRAMS = 64


def cut_grid(
    shape: Shape, cuts: tuple[tuple[int, int, int], ...] = GRID_CUTS, handovers: tuple[str, ...] = ()
) -> Iterator[GridConfig]:
    """Yield the configurations of ``grid`` that fit the device: combinations of a cut, rows, hand-over and slices.

    ``"probe"`` is not combined with two tiles in flight. In fp32 ieee only `_IEEE_CUT` with 8 slices is used.

    Args:
        shape: the shape to compute.
        cuts: (units of a program, batch rows of a tile, tiles in flight), as in `GRID_CUTS`.
        handovers: the hand-overs to combine. If empty, those that may be the fastest for the number of programs.
    """
    for units, batch, tiles in _allowed_cuts(shape, cuts):
        programs = -(-shape.hidden_size // units)
        if programs > shape.device.sms:
            continue
        start = GridConfig(units, programs, batch, rows=1, tiles=tiles, copies=1, slices=8, register_tiles=0)
        start = start.adapt_to(shape.batch_size, shape.directions, shape.device.sms)
        # Try twice the rows, too. Exception: lanes compute all ``rows``, so that twice the rows are twice the work.
        uses_lanes = shape.is_ieee and start.can_use_lanes
        can_double_rows = tiles == 1 and start.rows < batch and not uses_lanes
        all_rows = (start.rows, 2 * start.rows) if can_double_rows else (start.rows,)
        all_handovers = handovers or (HANDOVERS if programs >= _MIN_PROBE_PROGRAMS else ("flag",))
        all_slices = (8,) if shape.is_ieee else (4, 8)
        for rows, handover, slices in itertools.product(all_rows, all_handovers, all_slices):
            # With two tiles in turn, a tile mostly arrives while the other tile is computed. So "probe" gains nothing.
            if tiles == 1 or handover != "probe":
                config = replace(start, rows=rows, handover=handover, slices=slices)
                if config := _place_weights(config, shape):
                    yield config


def _place_weights(config: GridConfig, shape: Shape) -> GridConfig | None:
    """Return ``config`` with as many tiles of W_hh in registers as fit, the rest in shared memory.

    In fp32 ieee all tiles are in registers if lanes can compute the products, or else none. Return None if the program
    exceeds the registers or the shared memory of a multiprocessor.
    """
    itemsize = shape.itemsize
    if shape.is_ieee:
        # Products on the ordinary fp32 units read W_hh from shared memory. Exception: lanes keep W_hh in registers.
        if config.can_use_lanes:
            config = replace(config, register_tiles=config.weight_tiles(itemsize))
        return None if out_of_resources_reason(config, shape) else config
    # A second tile in flight, and 32 units instead of 16, take registers of their own.
    budget = GRID_REGISTERS - config.units * (config.tiles - 1) - 32 * (config.units // 16 - 1)
    if shape.device.compute_capability < 90:
        budget -= 8  # before Hopper, testing received words takes more registers
    if config.padded_hidden % (config.slices * config.depth(itemsize)):
        # With two tiles, masking the words beyond the last unit takes registers, too.
        budget -= 24 * (config.tiles - 1)
    spare = budget - config.registers(itemsize)
    # `GridConfig.registers` rounds down to whole registers, so up to one register less a byte more fits. 128 bytes are
    # one register of each thread of a warp.
    most_tiles = ((spare + 1) * 128 - 1) // (config.units * config.depth(itemsize) * itemsize)
    config = replace(config, register_tiles=max(0, min(config.weight_tiles(itemsize), most_tiles)))
    return None if out_of_resources_reason(config, shape) else config


@_cache_by_fields
def step_config(shape: Shape) -> StepConfig | str:
    """Return the configuration of ``step`` for a shape. If the device is too old, return that reason as text."""
    itemsize, is_ieee, device = shape.itemsize, shape.is_ieee, shape.device
    batch = 16 if shape.batch_size <= 16 else 32 if shape.batch_size <= 32 or is_ieee else 64
    programs = -(-shape.hidden_size // 32) * -(-shape.batch_size // batch) * shape.directions
    # Programs of 32 units load the state less often. They are tried if a multiprocessor has ``programs_per_sm`` of them
    # or more. Exception: not in fp32 ieee. Of equal estimates, the first of ``all_units`` wins. On an H200, the bytes
    # in flight decide how fast weights arrive (perf/NOTES.md).
    programs_per_sm, all_units = (0.9, (32, 16)) if itemsize == 2 and batch == 16 else (2.0, (16, 32))
    can_be_wide = programs >= programs_per_sm * device.sms and not is_ieee
    is_aligned = shape.hidden_size * itemsize % 16 == 0
    configs = []
    # Rows that are not aligned are loaded value by value, each by a separate address. So leave out the longest loads.
    loops = _STEP_LOOPS[0 if is_aligned else 1 :]
    for (row_bytes, stages), units in itertools.product(loops, all_units if can_be_wide else (16,)):
        depth = row_bytes // itemsize
        # Each of up to 8 warps has a slice of at least 16 units, the least depth of a ``tl.dot``. Exception: if warps
        # share one slice, 4 warps and the shortest loads are used. The same holds for fp32 ieee, whose products take
        # more registers, unless rows are aligned and the batch tile has 16 rows.
        config = StepConfig(units, -(-shape.hidden_size // units), batch, depth, min(8, depth // 16), stages)
        if config.slices == 1 or (is_ieee and not (batch == 16 and is_aligned)):
            config = replace(config, depth=128 // itemsize, num_warps=4, num_stages=3)
        if config.shared_memory(itemsize) <= device.shared_memory:
            configs.append(config)
    return _find_cheapest(configs, shape)


# (bytes of a row that an iteration loads, stages of the loop)
_STEP_LOOPS = ((512, 3), (256, 4), (256, 3), (128, 3))


# For each kernel, a function of (hidden_size, batch_size, directions, dtype, precision, device). It returns the
# kernel's configuration, or as text the reason why the kernel has none.
HEURISTICS = {"block": block_config, "grid": grid_config, "step": step_config}


def heuristic(kernel: str, problem: Problem, device: Device) -> Config | str:
    """Return the configuration that the heuristic chooses for a problem, or the reason why the kernel cannot serve it.

    A caller tells them apart by type: the reason is a str.
    """
    config_or_reason = HEURISTICS[kernel](*problem.shape_on(device))
    if isinstance(config_or_reason, str):
        return config_or_reason
    return too_large_reason(config_or_reason, problem) or config_or_reason
