"""Why a configuration cannot run a problem on a device, by what is known before it is compiled.

Sizes are limited by what a launch takes, and by what the 32-bit numbers hold that kernels count with. Places in memory
are no limit: kernels find them in 64 bits, whatever the strides.
"""

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

# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability": programs of a launch in x, y and z.
MAX_LAUNCH_GRID = (2**31 - 1, 65_535, 65_535)
# Triton 3.6's launcher multiplies the three in an int. Where that overflows to less than one, it starts nothing.
PROGRAMS = 2**31 - 1
# Numbers of steps, rows and features. The last tile and what is loaded ahead go beyond the last one, by less than 128.
MAX_SIZE = 2**31 - 1 - 128
# Of a thread's 255 registers, those that ``grid`` has for weights, a tile's state and sums. The heuristic puts tiles of
# W_hh there up to the first number, for the compiler needs registers, too. Tuning tries up to the second, and up to the
# third for the state alone: it sees which configurations spill (tuning/compile_pool.py).
GRID_REGISTERS, _MOST_GRID_REGISTERS, _MOST_STATE_REGISTERS = 192, 230, 64
# The same of ``block``: weights, and sums of three gates.
_MOST_BLOCK_REGISTERS = 210
# The same of our own projection, for sums.
_MOST_TILE_REGISTERS = 128


def too_old_reason(device: Device) -> str:
    """Return why no kernel runs on a device whatever the shape; empty if some do."""
    if device.compute_capability < 80:
        return f"needs compute capability 8.0 or later, {device.name} has {device.compute_capability / 10}"
    return ""


def unsupported_config_reason(config: Config, problem: Problem, device: Device) -> str:
    """Return why a configuration cannot run a problem on a device, as far as is known before it is compiled.

    Empty if it can. The numbers in the configuration may be any: it may come from a file.
    """
    return (
        too_old_reason(device)
        or _REASONS[type(config)](config, problem.shape_on(device))
        or too_large_reason(config, problem)
    )


def _power(number: int, least: int, most: int) -> bool:
    return least <= number <= most and number & (number - 1) == 0


def _against_block(config: BlockConfig, shape: Shape) -> str:
    if not (_power(config.units, 16, 128) and _power(config.num_warps, 1, 8) and _power(config.ahead, 1, 8)):
        return "units, num_warps and ahead must be powers of two, at most 128, 8 and 8"
    if config.batch not in (2, 8, 16):
        return "batch must be 2, 8 or 16"
    if config.batch == 2 and shape.is_ieee:
        return "batch=2 takes the matrix unit, which does not multiply float32 (ieee)"
    if config.batch == 16 and config.tiles > 1:
        # They spill hundreds of words, and on an H200 such a kernel has accessed memory that is not there.
        return "too few registers for 16 rows and several tiles"
    if not 1 <= config.tiles <= 4 or not _covers(config.units, config.tiles, shape.hidden_size):
        return "tiles must be 1 to 4, and as many as hold hidden_size"
    if not 0 <= config.register_tiles <= 3 * config.tiles**2 or (shape.is_ieee and config.register_tiles):
        return "register_tiles must be at most the tiles of W_hh, and 0 in float32 (ieee)"
    if config.num_warps * 16 > config.units:
        return "num_warps must be at most units / 16"
    held = config.register_tiles * config.units**2 * shape.itemsize / 4 + 3 * config.padded_hidden * config.columns
    if held > 32 * config.num_warps * _MOST_BLOCK_REGISTERS:
        return "too few registers"
    if config.shared_memory(shape.itemsize) > shape.device.shared_memory:
        return "too little shared memory"
    return ""


def _covers(units: int, tiles: int, hidden_size: int) -> bool:
    """Return whether all units have a place, and no tile is empty."""
    return units * (tiles - 1) < hidden_size <= units * tiles


def _against_grid(config: GridConfig, shape: Shape) -> str:
    if not _power(config.units, 16, 32) or config.batch not in (8, 16) or config.tiles not in (1, 2):
        return "units must be 16 or 32, batch 8 or 16, tiles 1 or 2"
    if not _power(config.rows, 1, config.batch) or config.slices not in (4, 8) or config.handover not in HANDOVERS:
        return "unsupported rows, slices or handover"
    if not _covers(config.units, config.programs, shape.hidden_size):
        return "programs must be as many as hold hidden_size"
    if config.directions < 1 or config.copies < 1 or shape.directions % config.directions:
        return "directions and copies do not fit the problem"
    if config.programs * config.copies * config.directions > shape.device.sms:
        return "more programs than multiprocessors, where all have to be on the chip at once"
    if config.rows < config.batch and (config.rows < shape.batch_size or config.tiles > 1):
        return "fewer rows than the batch has"
    if not 0 <= config.register_tiles <= config.weight_tiles(shape.itemsize):
        return "register_tiles must be at most the tiles of W_hh"
    all_fit = config.register_tiles == config.weight_tiles(shape.itemsize) and config.can_use_lanes
    if shape.is_ieee and config.register_tiles and not all_fit:
        return "register_tiles in float32 (ieee) must be 0, or all tiles of W_hh if they fit"
    return out_of_resources_reason(config, shape)


def out_of_resources_reason(config: GridConfig, shape: Shape) -> str:
    """Return what a multiprocessor has too little of for a program of ``grid``; empty if it has enough."""
    registers, of_state = config.registers(shape.itemsize), config.state_registers(shape.itemsize)
    if not shape.is_ieee and (registers > _MOST_GRID_REGISTERS or of_state > _MOST_STATE_REGISTERS):
        return "too few registers"
    return "too little shared memory" if config.shared_memory(shape.itemsize) > shape.device.shared_memory else ""


def _against_step(config: StepConfig, shape: Shape) -> str:
    if not _power(config.units, 16, 32) or not _power(config.batch, 16, 64):
        return "units must be 16 or 32, batch 16, 32 or 64"
    if not _covers(config.units, config.programs, shape.hidden_size):
        return "programs must be as many as hold hidden_size"
    if not _power(config.depth * shape.itemsize, 64, 512) or not _power(config.num_warps, 2, 8):
        return "depth must be 64 to 512 bytes, num_warps 2 to 8"
    if config.slices == 1 and config.units * config.batch < 128 * config.num_warps and not shape.is_ieee:
        return "several warps would make the same products"
    if not 1 <= config.num_stages <= 5 or config.shared_memory(shape.itemsize) > shape.device.shared_memory:
        return "too little shared memory"
    return ""


_REASONS = {BlockConfig: _against_block, GridConfig: _against_grid, StepConfig: _against_step}


def is_fused_step(config: Config, problem: Problem) -> bool:
    """Return whether a call is a single step that ``step`` makes as a whole, without a projection before it."""
    return isinstance(config, StepConfig) and problem.is_single_step


def unsupported_projection_reason(
    projection: Projection | None, config: Config, problem: Problem, device: Device
) -> str:
    """Return why a scan's projection cannot be made so; empty if it can. None stands for the usual tile."""
    if is_fused_step(config, problem):
        return "" if projection is None else "a single step is one launch, without a projection"
    if projection is None:
        return ""
    if projection == CUBLAS:
        if problem.layout != "dense":
            return "the sequences have unequal lengths, and cuBLAS would multiply beyond their ends"
        return problem.cublas_unsupported_reason or _too_large_projection_reason(ARRANGE_TILE, config, problem)
    return _against_tile(projection, config, problem, device) or _too_large_projection_reason(
        projection, config, problem
    )


def _against_tile(tile: ProjectionConfig, config: Config, problem: Problem, device: Device) -> str:
    itemsize = problem.dtype.itemsize
    if not (_power(tile.rows, 16, 256) and _power(tile.cols, max(16, config.rows), 256)):
        return "a tile's rows and cols must be powers of two, 16 to 256, and cols a multiple of the scan's rows"
    if not _power(tile.depth * itemsize, 32, 256) or not _power(tile.num_warps, 1, 8) or tile.num_stages > 5:
        return "a tile's depth must be 32 to 256 bytes, num_warps at most 8, num_stages at most 5"
    if tile.rows * tile.cols > 32 * tile.num_warps * _MOST_TILE_REGISTERS:
        return "too few registers"
    return "too little shared memory" if tile.shared_memory(itemsize) > device.shared_memory else ""


def adapt_config(config: Config, problem: Problem, device: Device) -> Config:
    """Return a configuration found for another batch as it is for this problem's."""
    if not isinstance(config, GridConfig):
        return config
    return config.adapt_to(problem.batch_size, problem.directions, device.sms)


def too_large_reason(config: Config, problem: Problem) -> str:
    """Return why a problem is too large for a kernel in this configuration; empty if it is not."""
    for name in ("steps", "batch_size", "input_size", "hidden_size"):
        if (size := getattr(problem, name)) > MAX_SIZE:
            return f"{name} {size} is too large: kernels count in 32 bits, to {MAX_SIZE}"
    usual = (projection_config(problem.hidden_size, problem.dtype, problem.precision, each) for each in (True, False))
    reasons = (_too_large_projection_reason(tile, config, problem) for tile in usual)
    scan = _why_no_launch(config.launch_grid(problem.batch_size, problem.directions))
    return scan or next(filter(None, reasons), "")


def _too_large_projection_reason(tile: ProjectionConfig, config: Config, problem: Problem) -> str:
    """Return why a step's projection is too large to be launched. Several steps are at once only if they are small."""
    pairs = -(-problem.batch_size // config.rows) * config.rows
    return _why_no_launch(tile.launch_grid(pairs, config.padded_hidden, problem.directions))


def _why_no_launch(grid: tuple[int, ...]) -> str:
    x, y, z = (*grid, 1, 1)[:3]
    if all(size <= most for size, most in zip((x, y, z), MAX_LAUNCH_GRID)) and x * y * z <= PROGRAMS:
        return ""
    return (
        f"the sizes are too large: a launch would have {x} x {y} x {z} programs, and may have "
        f"{' x '.join(map(str, MAX_LAUNCH_GRID))}, at most {PROGRAMS} in all"
    )


def too_many_rows_reason(rows: int) -> str:
    """Return why packed data of so many rows is too large; empty if it is not."""
    if rows <= MAX_SIZE:
        return ""
    return f"packed data of {rows} rows is too large: kernels count them in 32 bits, to {MAX_SIZE}"
