"""Configurations of the kernels, and the heuristic that picks one for a shape and a device.

What is known here was read from compiled code, not timed: registers, stack and shared memory of each choice
are asserted by ``tests/compiled`` for every architecture named there. Tuning will replace the heuristic by
measurement; it returns the same kind of object.
"""

from dataclasses import dataclass

import torch

from .device import Device


@dataclass(frozen=True)
class BlockConfig:
    """How the ``block`` scan is cut.

    Attributes:
        units: hidden units of a tile of W_hh (a power of two).
        tiles: tiles; ``tiles * units`` is hidden_size, padded.
        batch: batch rows of one program.
        ahead: time steps per iteration of the loop, which is how far the gate inputs are prefetched.
        register_tiles: of the ``3 * tiles**2`` tiles of W_hh, how many stay in registers, as the left operand of
            the matrix unit; the others stay in shared memory.
        num_warps: warps of a program.
    """

    units: int
    tiles: int
    batch: int
    ahead: int
    register_tiles: int
    num_warps: int

    @property
    def padded_hidden(self) -> int:
        return self.units * self.tiles

    @property
    def shared_tiles(self) -> int:
        return 3 * self.tiles**2 - self.register_tiles

    def shared_memory(self, itemsize: int, isa: str) -> int:
        """Bytes of shared memory the compiled kernel takes: at most this."""
        # What goes to registers passes through as well, one tile at a time, before the others come.
        weights = max(self.shared_tiles, 1) * self.units**2 * itemsize
        # The state as an operand, and for fp32 half as much again to move products between layouts.
        state = max(self.padded_hidden * self.batch * (6 if itemsize == 4 else itemsize), 1024)
        # AMD's compiler lets the two share their room where no weights stay there.
        return max(weights, state) if isa == "plain" else weights + state


@dataclass(frozen=True)
class ProjectionConfig:
    """Tile of the input projection: ``rows`` gate units by ``cols`` (step, batch row) pairs, ``depth`` inputs."""

    rows: int
    cols: int
    depth: int
    num_warps: int
    num_stages: int


def block_config(
    hidden_size: int, batch_size: int, dtype: torch.dtype, precision: str, device: Device
) -> BlockConfig | str:
    """The configuration of ``block`` for a shape on a device, or the reason why there is none."""
    if device.isa == "ptx" and device.compute_capability < 80:
        return f"needs compute capability 8.0, {device.name} has {device.compute_capability / 10}"
    config = _cut(hidden_size, dtype, precision, device)
    if config is None:
        return f"hidden_size {hidden_size} is too large: {device.name} keeps 128 hidden units in one program"
    needed = config.shared_memory(dtype.itemsize, device.isa)
    if needed > device.shared_memory:
        return (
            f"hidden_size {hidden_size} is too large: W_hh in {str(dtype)[6:]} ({precision}) needs {needed} bytes "
            f"of shared memory in one program, {device.name} has {device.shared_memory}"
        )
    return _widen(config, batch_size, dtype, device)


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
        ahead = 1 if padded > 64 else 2 if in_fp32 else 4
        return BlockConfig(padded, 1, 8, ahead, register_tiles=3, num_warps=warps)
    # Four warps have registers for six tiles of 64 by 64 16-bit numbers beside a step's own, fewer with masks.
    in_registers = 0 if in_fp32 else 6 if hidden_size % 64 == 0 else 3
    return BlockConfig(64, -(-hidden_size // 64), 8, ahead=1, register_tiles=in_registers, num_warps=4)


def _widen(config: BlockConfig, batch_size: int, dtype: torch.dtype, device: Device) -> BlockConfig:
    """Twice the batch rows per program where eight leave programs waiting for a multiprocessor."""
    fits = config.shared_tiles == 0 and config.batch == 8 and not (dtype == torch.float32 and config.units > 64)
    # Data-centre Blackwell would route products of 16 columns through tensor memory and back, every step.
    if not fits or 100 <= device.compute_capability < 120:
        return config
    resident = device.sms * max(1, 8 // config.num_warps)
    if -(-batch_size // config.batch) <= resident:
        return config
    return BlockConfig(config.units, 1, 16, ahead=1, register_tiles=3, num_warps=config.num_warps)


def projection_config(hidden_size: int, dtype: torch.dtype, precision: str) -> ProjectionConfig:
    """The tile of the projection that goes with any ``block`` configuration."""
    rows = 128 if hidden_size > 32 else 64
    if dtype != torch.float32:
        return ProjectionConfig(rows, 64, depth=64, num_warps=4, num_stages=3)
    if precision == "tf32":
        return ProjectionConfig(rows, 64, depth=32, num_warps=4, num_stages=3)
    return ProjectionConfig(64, 64, depth=32, num_warps=4, num_stages=2)
