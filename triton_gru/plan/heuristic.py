"""Which configuration a kernel takes where none was measured: of those known to compile well, the cheapest by count.

What is known of them was read from compiled code: none spills, on any architecture named in ``tests/compiled``. Tuning
(triton_gru/tuning) looks further, and replaces the estimate by measurement.
"""

import functools
import itertools
from dataclasses import replace

import torch

from .config import GRID_CUTS, BlockConfig, Config, GridConfig, StepConfig, cut_grid
from .cost import step_cost
from .device import Device
from .problem import Problem
from .validity import too_old, why_too_large


def _cheapest(
    configs: list[Config], hidden_size: int, batch_size: int, directions: int, dtype: torch.dtype, precision: str,
    device: Device,
) -> Config:  # fmt: skip
    """Of equals the first."""
    sizes = hidden_size, batch_size, directions, dtype, precision, device
    return min(configs, key=lambda config: step_cost(config, *sizes).total)


@functools.lru_cache(maxsize=1024)
def block_config(
    hidden_size: int, batch_size: int, directions: int, dtype: torch.dtype, precision: str, device: Device
) -> BlockConfig | str:
    """The configuration of ``block`` for a shape on a device, or the reason why there is none."""
    if why := too_old(device):
        return why
    config = _cut(hidden_size, dtype, precision, device)
    if config is None:
        return f"hidden_size {hidden_size} is too large: {device.name} keeps 128 hidden units in one program"
    needed = config.shared_memory(dtype.itemsize, device.isa)
    if needed > device.shared_memory:
        return (
            f"hidden_size {hidden_size} is too large: W_hh in {str(dtype)[6:]} ({precision}) needs {needed} bytes "
            f"of shared memory in one program, {device.name} has {device.shared_memory}"
        )
    others = _narrow(config, dtype, precision, device), _wide(config, dtype, device)
    configs = [config, *filter(None, others)]
    return _cheapest(configs, hidden_size, batch_size, directions, dtype, precision, device)


def _cut(hidden_size: int, dtype: torch.dtype, precision: str, device: Device) -> BlockConfig | None:
    padded = max(16, 1 << (hidden_size - 1).bit_length())
    warps = max(1, min(padded, 128) // 16)  # each warp holds 16 rows of every gate
    if device.isa == "plain":
        # AMD's matrix unit needs 16 columns, and has fp32 products of its own.
        return BlockConfig(padded, 1, 16, ahead=1, register_tiles=3, num_warps=warps) if padded <= 128 else None
    in_fp32 = dtype == torch.float32
    if in_fp32 and precision == "ieee":
        # Products on the ordinary fp32 units read W_hh from shared memory.
        if padded <= 64:
            return BlockConfig(padded, 1, 8, ahead=1, register_tiles=0, num_warps=warps)
        return BlockConfig(64, -(-hidden_size // 64), 8, ahead=1, register_tiles=0, num_warps=8)
    if padded <= 128:
        # Prefetch further where a step is shorter than the latency of memory, as far as registers allow.
        ahead = 4 if padded <= 64 else 1 if in_fp32 else 2
        return BlockConfig(padded, 1, 8, ahead, register_tiles=3, num_warps=warps)
    # Four warps have registers for six tiles of 64 by 64 16-bit numbers beside a step's own, fewer with masks.
    in_registers = 0 if in_fp32 else 6 if hidden_size % 64 == 0 else 3
    return BlockConfig(64, -(-hidden_size // 64), 8, ahead=1, register_tiles=in_registers, num_warps=4)


def _narrow(config: BlockConfig, dtype: torch.dtype, precision: str, device: Device) -> BlockConfig | None:
    """Two batch rows in a program, where products are of eight columns: for a quarter of what follows them."""
    if config.batch > 8 or (dtype == torch.float32 and precision == "ieee"):
        return None
    # There, masks take no more registers than there are.
    return replace(config, batch=2, register_tiles=6 if config.tiles > 1 else config.register_tiles)


def _wide(config: BlockConfig, dtype: torch.dtype, device: Device) -> BlockConfig | None:
    """Twice the batch rows in a program, for fewer programs to wait for a multiprocessor, where registers allow it."""
    fits = config.shared_tiles == 0 and config.batch == 8 and not (dtype == torch.float32 and config.units > 64)
    # Data-centre Blackwell would route products of 16 columns through tensor memory and back, every step.
    if not fits or 100 <= device.compute_capability < 120:
        return None
    return replace(config, batch=16, ahead=1)


# Times the least cost by count: what costs no more is as good.
_AS_GOOD = 1.05


@functools.lru_cache(maxsize=1024)
def grid_config(
    hidden_size: int, batch_size: int, directions: int, dtype: torch.dtype, precision: str, device: Device,
    cuts: tuple[tuple[int, int, int], ...] = GRID_CUTS, handovers: tuple[str, ...] = (),
) -> GridConfig | str:  # fmt: skip
    """The configuration of ``grid`` for a shape on a device, or the reason why there is none.

    ``handovers`` as `cut_grid` takes them.
    """
    if device.isa == "plain":
        return f"its programs wait for each other by means of NVIDIA GPUs, {device.name} is none"
    if why := too_old(device):
        return why
    least = -(-hidden_size // 16)
    if least > device.sms:
        return (
            f"hidden_size {hidden_size} is too large: {least} programs have to be on the chip at once, "
            f"{device.name} has {device.sms} multiprocessors"
        )
    sizes, numbers = (hidden_size, batch_size, directions), (dtype, precision, device)
    configs = [config for cut in cuts for config in cut_grid(*sizes, cut, *numbers, handovers)]
    if configs:
        # Of as good as equals the one of fewest programs, in which fewer read the state and wait for each other. Where
        # estimates differ by so little, that was the faster one on an H200.
        least_time = _AS_GOOD * step_cost(_cheapest(configs, *sizes, *numbers), *sizes, *numbers).total
        equals = [config for config in configs if step_cost(config, *sizes, *numbers).total <= least_time]
        programs = min(config.programs for config in equals)
        return _cheapest([config for config in equals if config.programs == programs], *sizes, *numbers)
    return (
        f"hidden_size {hidden_size} is too large: {least} programs on {device.name} have not the registers "
        f"and the shared memory for W_hh in {str(dtype)[6:]} ({precision})"
    )


@functools.lru_cache(maxsize=1024)
def step_config(
    hidden_size: int, batch_size: int, directions: int, dtype: torch.dtype, precision: str, device: Device
) -> StepConfig | str:
    """The configuration of ``step`` for a shape on a device, or the reason why there is none."""
    if why := too_old(device):
        return why
    ieee = dtype == torch.float32 and precision == "ieee"
    batch = 16 if batch_size <= 16 else 32 if batch_size <= 32 or ieee else 64
    programs = -(-hidden_size // 32) * -(-batch_size // batch) * directions
    # With how many programs for each multiprocessor 32 units are worth trying, for fewer trips of the state, and in
    # which order. What is on its way decides how fast weights come, on an H200, where this is measured.
    full, units = (0.9, (32, 16)) if dtype.itemsize == 2 and batch == 16 else (2.0, (16, 32))
    wide = programs >= full * device.sms and not ieee
    aligned = hidden_size * dtype.itemsize % 16 == 0
    configs = []
    # Rows that are not aligned are loaded number by number, each with an address of its own: fewer of them at once.
    for (size, stages), each in itertools.product(_STEP_LOOPS[0 if aligned else 1 :], units if wide else (16,)):
        depth = size // dtype.itemsize
        # As many warps as there are slices of the least depth that the matrix unit sums over.
        config = StepConfig(each, -(-hidden_size // each), batch, depth, min(8, depth // 16), stages)
        if config.slices == 1 or (ieee and not (batch == 16 and aligned)):  # ordinary products take more registers
            config = replace(config, depth=128 // dtype.itemsize, num_warps=4, num_stages=3)
        if config.shared_memory(dtype.itemsize) <= device.shared_memory:
            configs.append(config)
    return _cheapest(configs, hidden_size, batch_size, directions, dtype, precision, device)


# Bytes of a row that an iteration takes, and stages.
_STEP_LOOPS = ((512, 3), (256, 4), (256, 3), (128, 3))


# Each kernel's configuration for (hidden_size, batch_size, directions, dtype, precision, device), or why it has none.
HEURISTICS = {"block": block_config, "grid": grid_config, "step": step_config}


def heuristic(kernel: str, problem: Problem, device: Device) -> Config | str:
    """A kernel's configuration for a problem, or why it has none."""
    config = HEURISTICS[kernel](
        problem.hidden_size, problem.batch_size, problem.directions, problem.dtype, problem.precision, device
    )
    return config if isinstance(config, str) else why_too_large(config, problem) or config
