"""Reasons why a configuration cannot run a problem on a device, as far as they are known before it is compiled.

A launch limits the number of programs. Kernels count steps, rows and features in 32 bits, which limits sizes. They
compute addresses in 64 bits, so strides are not limited.
"""

import math

from ..units import format_bytes
from .config import (
    ARRANGE_TILE,
    CUBLAS,
    HANDOVERS,
    BlockConfig,
    Config,
    GridConfig,
    Projection,
    ProjectionConfig,
    StepConfig,
    projection_config,
)
from .device import Device
from .problem import Problem, Shape

# Programs of a launch in x, y and z: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
MAX_LAUNCH_GRID = (2**31 - 1, 65_535, 65_535)
# Programs of a launch in all. Triton 3.6's launcher multiplies x, y and z in an int. If the product overflows to less
# than one, the launcher starts nothing.
MAX_PROGRAMS = 2**31 - 1
# Steps, rows or features. The last tile and prefetched loads reach less than 128 of them beyond the end.
MAX_SIZE = 2**31 - 1 - 128
# Registers of a thread, of 255, that ``grid`` may take for weights, a tile's state and sums. The heuristic places tiles
# of W_hh within GRID_REGISTERS, as the compiler needs registers, too. Tuning tries up to _MAX_GRID_REGISTERS, and drops
# configurations that spill (tuning/compile_pool.py).
GRID_REGISTERS = 192
_MAX_GRID_REGISTERS = 230
_MAX_STATE_REGISTERS = 64  # of these, for a tile's state
_MAX_BLOCK_REGISTERS = 210  # of a thread of ``block``, for weights and the sums of three gates
_MAX_TILE_REGISTERS = 128  # of a thread of our own projection, for sums


def too_old_reason(device: Device) -> str:
    """Return why no kernel runs on a device at any shape, or ''."""
    if device.compute_capability < 80:
        return f"needs compute capability 8.0 or later, {device.name} has {device.compute_capability / 10}"
    return ""


def unsupported_config_reason(config: Config, problem: Problem, device: Device) -> str:
    """Return why a configuration cannot run a problem on a device, or '' if nothing is known against it.

    Nothing is compiled. The configuration may come from a file, so its numbers may have any value.
    """
    return (
        too_old_reason(device)
        or _REASONS[type(config)](config, problem.shape_on(device))
        or too_large_reason(config, problem)
    )


def _is_power_of_two(value: int, lowest: int, highest: int) -> bool:
    """Return whether ``value`` is a power of two from ``lowest`` to ``highest``."""
    return lowest <= value <= highest and value & (value - 1) == 0


def _block_config_reason(config: BlockConfig, shape: Shape) -> str:
    """Return why ``block`` cannot run in this configuration, or ''."""
    units, num_warps, ahead = config.units, config.num_warps, config.ahead
    if not (_is_power_of_two(units, 16, 128) and _is_power_of_two(num_warps, 1, 8) and _is_power_of_two(ahead, 1, 8)):
        limits = "units must be 16 to 128, num_warps and ahead 1 to 8, all powers of two"
        return f"{limits}, got {units}, {num_warps} and {ahead}"
    if config.batch not in (2, 8, 16):
        return f"batch must be 2, 8 or 16, got {config.batch}"
    if config.batch == 2 and shape.is_ieee:
        return "batch=2 needs the matrix unit, which does not multiply float32 (ieee)"
    if config.batch == 16 and config.tiles > 1:
        # Such kernels spill hundreds of words, and one has accessed memory outside of its tensors on an H200.
        return f"too few registers for batch=16 with tiles={config.tiles}: tiles must be 1"
    if not 1 <= config.tiles <= 4:
        return f"tiles must be 1 to 4, got {config.tiles}"
    if reason := _coverage_reason("tiles", config.tiles, units, shape):
        return reason
    most_tiles = 0 if shape.is_ieee else 3 * config.tiles**2
    if not 0 <= config.register_tiles <= most_tiles:
        return f"register_tiles must be 0 to {most_tiles} in {shape.dtype_text}, got {config.register_tiles}"
    # The matrix unit gives each warp 16 rows of every gate. Products without it have no such rows.
    units_per_warp = 8 if shape.is_ieee else 16
    if num_warps * units_per_warp > units:
        return f"num_warps must be at most units / {units_per_warp}, got {num_warps} with units={units}"
    threads = 32 * num_warps
    weight_registers = config.register_tiles * units**2 * shape.itemsize / 4  # of all threads, 4 bytes each
    sum_registers = 3 * config.padded_hidden * config.columns
    if weight_registers + sum_registers > threads * _MAX_BLOCK_REGISTERS:
        return _too_few_registers_reason((weight_registers + sum_registers) / threads, _MAX_BLOCK_REGISTERS)
    return _shared_memory_reason(config.shared_memory(shape.itemsize), shape.device)


def _coverage_reason(field: str, count: int, units: int, shape: Shape) -> str:
    """Return why hidden_size does not need exactly ``count`` tiles or programs of ``units`` hidden units, or ''.

    ``field`` is the name of the configuration's field that holds ``count``.
    """
    if units * (count - 1) < shape.hidden_size <= units * count:
        return ""
    return f"{field} must be {-(-shape.hidden_size // units)} with units={units}, to hold hidden_size, got {count}"


def _too_few_registers_reason(needed: float, limit: int) -> str:
    return f"too few registers: a thread needs {math.ceil(needed)}, of at most {limit}"


def _shared_memory_reason(needed: int, device: Device) -> str:
    """Return the reason that a program needs more than the device's shared memory, or '' if it does not."""
    if needed <= device.shared_memory:
        return ""
    available = f"{device.name} has {format_bytes(device.shared_memory)}"
    return f"too little shared memory: a program needs {format_bytes(needed)}, {available}"


def _grid_config_reason(config: GridConfig, shape: Shape) -> str:
    """Return why ``grid`` cannot run in this configuration, or ''."""
    if not _is_power_of_two(config.units, 16, 32) or config.batch not in (8, 16) or config.tiles not in (1, 2):
        got = f"{config.units}, {config.batch} and {config.tiles}"
        return f"units must be 16 or 32, batch 8 or 16, tiles 1 or 2, got {got}"
    if not _is_power_of_two(config.rows, 1, config.batch):
        return f"rows must be a power of two of at most batch={config.batch}, got {config.rows}"
    if config.slices not in (4, 8) or config.handover not in HANDOVERS:
        limits = f"slices must be 4 or 8, handover {' or '.join(HANDOVERS)}"
        return f"{limits}, got {config.slices} and {config.handover}"
    if reason := _coverage_reason("programs", config.programs, config.units, shape):
        return reason
    if config.directions < 1 or config.copies < 1 or shape.directions % config.directions:
        limits = f"directions must divide {shape.directions}, and copies be 1 or more"
        return f"{limits}, got {config.directions} and {config.copies}"
    programs = config.programs * config.copies * config.directions
    if programs > shape.device.sms:
        available = f"{shape.device.name} has {shape.device.sms}"
        return f"{programs} programs have to run at once on as many multiprocessors, {available}"
    if config.rows < config.batch and (config.rows < shape.batch_size or config.tiles > 1):
        needed = "with tiles=2" if config.tiles > 1 else f"for {shape.batch_size} sequences"
        return f"rows must be batch={config.batch} {needed}, got {config.rows}"
    all_tiles = config.weight_tiles(shape.itemsize)
    if not 0 <= config.register_tiles <= all_tiles:
        return f"register_tiles must be 0 to {all_tiles}, got {config.register_tiles}"
    holds_all = config.register_tiles == all_tiles and config.can_use_lanes
    if shape.is_ieee and config.register_tiles and not holds_all:
        limits = f"0, or all {all_tiles} tiles of W_hh if registers hold them"
        return f"register_tiles in float32 (ieee) must be {limits}, got {config.register_tiles}"
    return out_of_resources_reason(config, shape)


def out_of_resources_reason(config: GridConfig, shape: Shape) -> str:
    """Return why a program of ``grid`` exceeds the registers or shared memory of a multiprocessor, or ''.

    In fp32 ieee only shared memory is checked. `GridConfig.can_use_lanes` checks the registers that lanes need.
    """
    if not shape.is_ieee:
        registers, state_registers = config.registers(shape.itemsize), config.state_registers(shape.itemsize)
        if registers > _MAX_GRID_REGISTERS:
            return _too_few_registers_reason(registers, _MAX_GRID_REGISTERS)
        if state_registers > _MAX_STATE_REGISTERS:
            return f"{_too_few_registers_reason(state_registers, _MAX_STATE_REGISTERS)} for the state"
    return _shared_memory_reason(config.shared_memory(shape.itemsize), shape.device)


def _step_config_reason(config: StepConfig, shape: Shape) -> str:
    """Return why ``step`` cannot run in this configuration, or ''."""
    if not _is_power_of_two(config.units, 16, 32) or not _is_power_of_two(config.batch, 16, 64):
        return f"units must be 16 or 32, batch 16, 32 or 64, got {config.units} and {config.batch}"
    if reason := _coverage_reason("programs", config.programs, config.units, shape):
        return reason
    depth_bytes = config.depth * shape.itemsize
    if not _is_power_of_two(depth_bytes, 64, 512) or not _is_power_of_two(config.num_warps, 2, 8):
        limits = "depth must be 64 to 512 bytes, num_warps 2 to 8, both powers of two"
        return f"{limits}, got {depth_bytes} and {config.num_warps}"
    # The warps divide a tile into products of 16 rows and 8 columns, 128 sums each.
    if config.slices == 1 and config.units * config.batch < 128 * config.num_warps and not shape.is_ieee:
        tile = f"{config.units} units and {config.batch} rows"
        return f"{config.num_warps} warps are too many for {tile}: some would repeat the products of others"
    if not 1 <= config.num_stages <= 5:
        return f"num_stages must be 1 to 5, got {config.num_stages}"
    return _shared_memory_reason(config.shared_memory(shape.itemsize), shape.device)


_REASONS = {BlockConfig: _block_config_reason, GridConfig: _grid_config_reason, StepConfig: _step_config_reason}


def is_fused_step(config: Config, problem: Problem) -> bool:
    """Return whether a call is a single step that ``step`` computes without a separate launch for the projection."""
    return isinstance(config, StepConfig) and problem.is_single_step


def unsupported_projection_reason(
    projection: Projection | None, config: Config, problem: Problem, device: Device
) -> str:
    """Return why a scan cannot have this input projection, or ''.

    Args:
        projection: `CUBLAS`, a tile of our own projection, or None for the usual tile.
        config: the scan's configuration.
        problem, device: the call and its device.
    """
    if is_fused_step(config, problem):
        return "" if projection is None else "a single step has no launch for the projection: the kernel computes it"
    if projection is None:
        return ""
    if projection == CUBLAS:
        if problem.layout != "dense":
            return "the sequences have unequal lengths, and cuBLAS would multiply beyond their ends"
        return problem.cublas_unsupported_reason or _too_large_projection_reason(ARRANGE_TILE, config, problem)
    return _tile_reason(projection, config, problem, device) or _too_large_projection_reason(
        projection, config, problem
    )


def _tile_reason(tile: ProjectionConfig, config: Config, problem: Problem, device: Device) -> str:
    """Return why our own projection cannot run in this tile before a scan in ``config``, or ''."""
    itemsize, min_cols = problem.dtype.itemsize, max(16, config.rows)
    if not (_is_power_of_two(tile.rows, 16, 256) and _is_power_of_two(tile.cols, min_cols, 256)):
        limits = f"a tile's rows must be 16 to 256, cols {min_cols} to 256, both powers of two"
        return f"{limits}, got {tile.rows} and {tile.cols}"
    depth_bytes = tile.depth * itemsize
    if not _is_power_of_two(depth_bytes, 32, 256) or not _is_power_of_two(tile.num_warps, 1, 8) or tile.num_stages > 5:
        limits = "a tile's depth must be 32 to 256 bytes, num_warps 1 to 8, both powers of two, num_stages at most 5"
        return f"{limits}, got {depth_bytes}, {tile.num_warps} and {tile.num_stages}"
    sums_per_thread = tile.rows * tile.cols / (32 * tile.num_warps)
    if sums_per_thread > _MAX_TILE_REGISTERS:
        return _too_few_registers_reason(sums_per_thread, _MAX_TILE_REGISTERS)
    return _shared_memory_reason(tile.shared_memory(itemsize), device)


def adapt_config(config: Config, problem: Problem, device: Device) -> Config:
    """Return ``config``, which may have been measured with another batch size, adapted to the problem and device.

    Only configurations of ``grid`` have fields to adapt. Other configurations are returned unchanged.
    """
    if not isinstance(config, GridConfig):
        return config
    return config.adapt_to(problem.batch_size, problem.directions, device.sms)


def too_large_reason(config: Config, problem: Problem) -> str:
    """Return why a problem is too large for a scan in this configuration with our own projection, or ''."""
    for name in ("steps", "batch_size", "input_size", "hidden_size"):
        if (size := getattr(problem, name)) > MAX_SIZE:
            return f"{name} {size} is too large: kernels count in 32 bits, up to {MAX_SIZE}"
    if reason := _too_large_launch_reason(config.launch_grid(problem.batch_size, problem.directions)):
        return reason
    for aligned in (True, False):  # the projection of a layer has either tile, by the alignment of the layer's input
        tile = projection_config(problem.hidden_size, problem.dtype, problem.precision, aligned)
        if reason := _too_large_projection_reason(tile, config, problem):
            return reason
    return ""


def _too_large_projection_reason(tile: ProjectionConfig, config: Config, problem: Problem) -> str:
    """Return why the projection of one step is too large for a launch, or ''.

    One step is enough to check. A launch projects several steps only if they fit the workspace. Then its programs are
    few.
    """
    pairs = -(-problem.batch_size // config.rows) * config.rows
    return _too_large_launch_reason(tile.launch_grid(pairs, config.padded_hidden, problem.directions))


def _too_large_launch_reason(launch_grid: tuple[int, ...]) -> str:
    """Return why a launch cannot have this number of programs, by dimension, or ''."""
    x, y, z = (*launch_grid, 1, 1)[:3]  # missing dimensions have size 1
    if all(size <= limit for size, limit in zip((x, y, z), MAX_LAUNCH_GRID)) and x * y * z <= MAX_PROGRAMS:
        return ""
    return (
        f"the sizes are too large: a launch would have {x} x {y} x {z} programs, and may have "
        f"{' x '.join(map(str, MAX_LAUNCH_GRID))}, at most {MAX_PROGRAMS} in all"
    )


def too_many_rows_reason(rows: int) -> str:
    """Return why packed data of this many rows is too large, or ''."""
    if rows <= MAX_SIZE:
        return ""
    return f"packed data of {rows} rows is too large: kernels count rows in 32 bits, up to {MAX_SIZE}"
