"""Configurations of the kernels, and the heuristic that picks one for a shape and a device.

What is known here was read from compiled code, not timed: registers, stack and shared memory of each choice
are asserted by ``tests/compiled`` for every architecture named there. Tuning will replace the heuristic by
measurement; it returns the same kind of object.
"""

from dataclasses import dataclass, replace

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
    def rows(self) -> int:
        """Batch rows of a tile of the gate inputs."""
        return self.batch

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


HANDOVERS = ("flag", "probe", "tag", "counter")


@dataclass(frozen=True)
class GridConfig:
    """How the ``grid`` scan is cut.

    Attributes:
        units: hidden units of a program (a power of two).
        programs: programs that together own all hidden units.
        batch: batch rows of a tile, as the matrix unit takes them.
        rows: how many of them there are: all, or for a batch smaller than a tile, a power of two that holds it.
        tiles: tiles of the batch in flight in a program: one is computed while others are handed over.
        directions: how many of the module's directions are on the chip at once, each with programs of its own; the
            others follow in a launch of their own.
        copies: how many times over the programs of a direction are on the chip, each copy with tiles of its own.
        slices: slices of the sum over hidden units, one a warp.
        register_tiles: of the tiles of W_hh (``3 * chunks`` in a program), how many stay in registers.
        handover: how the state gets to the other programs, one of `HANDOVERS` (kernels/exchange.py).
    """

    units: int
    programs: int
    batch: int
    rows: int
    tiles: int
    copies: int
    slices: int
    register_tiles: int
    handover: str = "flag"
    directions: int = 1

    @property
    def padded_hidden(self) -> int:
        return self.units * self.programs

    def rounds(self, batch_size: int, directions: int) -> int:
        """Parts of the batch, and directions, that go one after the other."""
        at_once = self.batch * self.tiles * self.copies
        return -(-batch_size // at_once) * (directions // self.directions)

    def element_bytes(self, itemsize: int) -> int:
        """Bytes of a hidden unit in the mailbox."""
        return itemsize * (2 if self.handover == "tag" else 1)

    def weight_tiles(self, itemsize: int) -> int:
        """Tiles of W_hh in a program."""
        return 3 * -(-self.padded_hidden // (self.slices * self._depth(itemsize)))

    def _depth(self, itemsize: int) -> int:
        return 32 if self.element_bytes(itemsize) == 2 else 16

    def state_registers(self, itemsize: int) -> int:
        """32-bit registers of a thread for its words of a tile's state, all of which it waits for at once."""
        depth = self.weight_tiles(itemsize) // 3 * self._depth(itemsize)
        return depth * self.batch * self.element_bytes(itemsize) // 128

    def registers(self, itemsize: int) -> int:
        """32-bit registers of a thread for what a step works on at once: weights, one tile's state, the sums."""
        weights = self.register_tiles * self.units * self._depth(itemsize) * itemsize // 128
        return weights + self.state_registers(itemsize) + 3 * self.units * self.batch // 32

    def shared_memory(self, itemsize: int) -> int:
        """Bytes of shared memory the compiled kernel takes: at most this."""
        tile = self.slices * self.units * self._depth(itemsize) * itemsize
        in_shared = max(self.weight_tiles(itemsize) - self.register_tiles, 0)
        # Beside the weights that stay: the slices' sums of two gates, or one tile on its way to the registers.
        return in_shared * tile + max(self.slices * 2 * self.units * max(self.batch, 16) * 4, tile)


@dataclass(frozen=True)
class StepConfig:
    """How the ``step`` scan is cut: a program's hidden units and batch rows, and the depth of its loop's steps."""

    units: int
    programs: int
    batch: int
    depth: int
    num_warps: int
    num_stages: int

    @property
    def padded_hidden(self) -> int:
        return self.units * self.programs

    @property
    def rows(self) -> int:
        """Batch rows of a tile of the gate inputs."""
        return self.batch


@dataclass(frozen=True)
class ProjectionConfig:
    """Tile of the input projection: ``rows`` gate units by ``cols`` (step, batch row) pairs, ``depth`` inputs."""

    rows: int
    cols: int
    depth: int
    num_warps: int
    num_stages: int


def _too_old(device: Device) -> str:
    """Why no kernel runs on a device whatever the shape; empty if some do."""
    if device.isa == "ptx" and device.compute_capability < 80:
        return f"needs compute capability 8.0, {device.name} has {device.compute_capability / 10}"
    return ""


def block_config(
    hidden_size: int, batch_size: int, directions: int, dtype: torch.dtype, precision: str, device: Device
) -> BlockConfig | str:
    """The configuration of ``block`` for a shape on a device, or the reason why there is none."""
    if too_old := _too_old(device):
        return too_old
    config = _cut(hidden_size, dtype, precision, device)
    if config is None:
        return f"hidden_size {hidden_size} is too large: {device.name} keeps 128 hidden units in one program"
    needed = config.shared_memory(dtype.itemsize, device.isa)
    if needed > device.shared_memory:
        return (
            f"hidden_size {hidden_size} is too large: W_hh in {str(dtype)[6:]} ({precision}) needs {needed} bytes "
            f"of shared memory in one program, {device.name} has {device.shared_memory}"
        )
    return _widen(config, batch_size * directions, dtype, device)


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


def _widen(config: BlockConfig, rows: int, dtype: torch.dtype, device: Device) -> BlockConfig:
    """Twice the batch rows per program where eight of ``rows`` leave programs waiting for a multiprocessor."""
    fits = config.shared_tiles == 0 and config.batch == 8 and not (dtype == torch.float32 and config.units > 64)
    # Data-centre Blackwell would route products of 16 columns through tensor memory and back, every step.
    if not fits or 100 <= device.compute_capability < 120:
        return config
    resident = device.sms * max(1, 8 // config.num_warps)
    if -(-rows // config.batch) <= resident:
        return config
    return BlockConfig(config.units, 1, 16, ahead=1, register_tiles=3, num_warps=config.num_warps)


def grid_config(
    hidden_size: int, batch_size: int, directions: int, dtype: torch.dtype, precision: str, device: Device
) -> GridConfig | str:
    """The configuration of ``grid`` for a shape on a device, or the reason why there is none."""
    if device.isa == "plain":
        return f"its programs wait for each other by means of NVIDIA GPUs, {device.name} is none"
    if too_old := _too_old(device):
        return too_old
    least = -(-hidden_size // 16)
    if least > device.sms:
        return (
            f"hidden_size {hidden_size} is too large: {least} programs have to be on the chip at once, "
            f"{device.name} has {device.sms} multiprocessors"
        )
    best = None
    for cut in GRID_CUTS:
        config = cut_grid(hidden_size, batch_size, directions, cut, dtype, precision, device)
        best = config or best
        if config and config.rounds(batch_size, directions) == 1:
            break
    return best or (
        f"hidden_size {hidden_size} is too large: {least} programs on {device.name} have not the registers "
        f"and the shared memory for W_hh in {str(dtype)[6:]} ({precision})"
    )


# Units of a program, batch rows of a tile and tiles in flight. The first that has the whole batch, in all directions,
# on the chip at once is taken. Of two with the same work, that of more units and fewer batch rows comes first: every
# step each program reads the whole state of its rows.
GRID_CUTS = ((16, 8, 1), (32, 8, 1), (16, 16, 1), (32, 16, 1), (16, 16, 2), (32, 16, 2))

# From this size of a tile on, "probe". By count: the share of a multiprocessor in what the L2 delivers is 24 bytes a
# cycle, so to read a tile in vain takes 1 400 cycles then, and a trip through memory of one word before it 300. With
# two tiles in turn, one has mostly come while the other was worked on.
_PROBED_BYTES = 32 << 10


def cut_grid(
    hidden_size: int,
    batch_size: int,
    directions: int,
    cut: tuple[int, int, int],
    dtype: torch.dtype,
    precision: str,
    device: Device,
) -> GridConfig | None:
    """The configuration with a cut of `GRID_CUTS`, None if it does not fit the device."""
    units, batch, tiles = cut
    programs = -(-hidden_size // units)
    at_once = min(directions, max(1, device.sms // programs))
    copies = min(device.sms // (programs * at_once), -(-batch_size // (batch * tiles)))
    rows = min(batch, 1 << (batch_size - 1).bit_length())
    probe = tiles == 1 and rows * programs * units * dtype.itemsize >= _PROBED_BYTES
    handover = "probe" if probe else "flag"
    config = GridConfig(units, programs, batch, rows, tiles, copies, 8, 0, handover, at_once)
    return fit_grid(config, dtype, precision, device)


# Of a thread's 255 registers; the others are for addresses, gate inputs and whatever else the compiler needs.
_GRID_REGISTERS = 192


def fit_grid(config: GridConfig, dtype: torch.dtype, precision: str, device: Device) -> GridConfig | None:
    """``config`` with as few slices as registers allow and as many weights in registers, or None if it does not fit."""
    itemsize = dtype.itemsize
    if dtype == torch.float32 and precision == "ieee":
        # Products on the ordinary fp32 units read W_hh from shared memory.
        narrow = config.units == 16 and config.batch == 8 and config.tiles == 1
        fits = narrow and config.shared_memory(itemsize) <= device.shared_memory
        return config if fits else None
    budget = _GRID_REGISTERS - config.units * (config.tiles - 1) - 32 * (config.units // 16 - 1)
    if device.compute_capability < 90:
        budget -= 8  # the tests of what has come take more there
    for slices in (4, 8):
        found = replace(config, slices=slices)
        found = replace(found, register_tiles=found.weight_tiles(itemsize))
        if found.registers(itemsize) <= budget:
            return found
    while found.register_tiles > 0 and found.registers(itemsize) > budget:
        found = replace(found, register_tiles=found.register_tiles - 1)
    fits = found.state_registers(itemsize) <= 64 and found.shared_memory(itemsize) <= device.shared_memory
    return found if fits else None


def step_config(
    hidden_size: int, batch_size: int, directions: int, dtype: torch.dtype, precision: str, device: Device
) -> StepConfig | str:
    """The configuration of ``step`` for a shape on a device, or the reason why there is none."""
    if too_old := _too_old(device):
        return too_old
    ieee = dtype == torch.float32 and precision == "ieee"
    batch = 16 if batch_size <= 16 else 32 if batch_size <= 32 or ieee else 64
    # More hidden units to a program, for fewer trips of the state, only where the chip is full all the same.
    programs = -(-hidden_size // 32) * -(-batch_size // batch) * directions
    units = 32 if programs >= 2 * device.sms and not ieee else 16
    depth = 128 // dtype.itemsize
    return StepConfig(units, -(-hidden_size // units), batch, depth, num_warps=4, num_stages=3)


def projection_config(hidden_size: int, dtype: torch.dtype, precision: str, aligned: bool) -> ProjectionConfig:
    """The tile of the projection: the same for all scans.

    Rows that are not ``aligned`` to 16 bytes are loaded number by number, each with an address of its own.
    """
    if dtype == torch.float32 and precision == "ieee":
        return ProjectionConfig(64, 32, depth=16, num_warps=4, num_stages=2)
    if not aligned:
        return ProjectionConfig(64, 64, depth=32, num_warps=4, num_stages=3)
    rows = 128 if hidden_size > 32 else 64
    return ProjectionConfig(rows, 64, depth=128 // dtype.itemsize, num_warps=4, num_stages=3)
