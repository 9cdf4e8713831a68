"""Configurations of the kernels, and what each takes of a multiprocessor.

Registers, stack and shared memory of each choice of the heuristic are asserted by ``tests/compiled`` for every
architecture named there.
"""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class BlockConfig:
    """How the ``block`` scan is cut.

    Attributes:
        units: hidden units of a tile of W_hh (a power of two).
        tiles: tiles; ``tiles * units`` is hidden_size, padded.
        batch: batch rows of one program: 2, or as many as columns of a product, 8 or 16.
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
        return 1 if self.batch == 2 else self.batch

    @property
    def columns(self) -> int:
        """Columns of a product: each of two batch rows has four."""
        return max(self.batch, 8)

    @property
    def shared_tiles(self) -> int:
        return 3 * self.tiles**2 - self.register_tiles

    def launch_grid(self, batch_size: int, directions: int) -> tuple[int, ...]:
        """Return the programs of a launch, by dimension."""
        return (-(-batch_size // self.batch) * directions,)

    def shared_memory(self, itemsize: int) -> int:
        """Return the most bytes of shared memory that the compiled kernel takes."""
        # What goes to registers may pass through as well, one tile at a time, before the others come.
        weights = max(self.shared_tiles, 1) * self.units**2 * itemsize
        # The state, by turns in two places; or as an operand, in fp32 with half as much again to move products between
        # layouts.
        of_unit = max(2 * self.batch * itemsize, self.columns * (6 if itemsize == 4 else itemsize))
        state = max(self.padded_hidden * of_unit + 128, 1280)
        return weights + state


HANDOVERS = ("flag", "probe")
# Of a thread's 255 registers, where lanes make the products: what is there for them, and what is if four share a slice.
_LANE_REGISTERS, _LANE_REGISTERS_OF_FOUR = 222, 190


@dataclass(frozen=True)
class GridConfig:
    """How the ``grid`` scan is cut.

    Attributes:
        units: hidden units of a program (a power of two).
        programs: programs that together own all hidden units.
        batch: batch rows of a tile, as the matrix unit takes them.
        rows: how many of them there are: all, or for a batch smaller than a tile, a power of two that holds it. Or
            twice that: the words of fewer programs lie in one line of memory then, which all others look at.
        tiles: tiles of the batch in flight in a program: one is computed while others are handed over.
        directions: how many of the module's directions are on the chip at once, each with programs of its own; the
            others follow in a launch of their own.
        copies: how many times over the programs of a direction are on the chip, each copy with tiles of its own.
        slices: slices of the sum over hidden units, one a warp.
        register_tiles: of the tiles of W_hh (``3 * chunks`` in a program), how many stay in registers. In fp32 without
            TF32 all or none: with all of them a step's products are made as kernels/lanes.py says.
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

    def launch_grid(self, batch_size: int, directions: int) -> tuple[int, ...]:
        """Return the programs of a launch: as many as the configuration says, whatever the batch."""
        return (self.programs * self.copies * self.directions,)

    def adapt_to(self, batch_size: int, directions: int, sms: int) -> "GridConfig":
        """Return this with as many directions and copies on ``sms`` multiprocessors as there are and have room.

        It gets as many rows as the batch needs, or keeps twice as many. An empty batch is cut as one row is: its
        configuration has no meaning, but is one. A configuration from a file that has no place is returned as it is.
        """
        if not 0 < self.programs <= sms or self.batch * self.tiles < 1:
            return self
        batch_size = max(batch_size, 1)
        at_once = min(directions, max(1, sms // self.programs))
        copies = min(sms // (self.programs * at_once), -(-batch_size // (self.batch * self.tiles)))
        rows = min(self.batch, 1 << (batch_size - 1).bit_length())
        if self.tiles == 1 and self.rows == 2 * rows <= self.batch:
            rows = self.rows
        return replace(self, rows=rows, copies=copies, directions=at_once)

    def count_rounds(self, batch_size: int, directions: int) -> int:
        """Return how many parts of the batch, and directions, go one after the other."""
        at_once = self.batch * self.tiles * self.copies
        return -(-batch_size // at_once) * (directions // self.directions)

    def weight_tiles(self, itemsize: int) -> int:
        """Return the tiles of W_hh in a program."""
        return 3 * -(-self.padded_hidden // (self.slices * self.depth(itemsize)))

    def depth(self, itemsize: int) -> int:
        """Return how many hidden units of a tile a slice sums over."""
        return 32 if itemsize == 2 else 16

    def state_registers(self, itemsize: int) -> int:
        """Return a thread's 32-bit registers for its words of a tile's state, all of which it waits for at once."""
        depth = self.weight_tiles(itemsize) // 3 * self.depth(itemsize)
        return depth * self.batch * itemsize // 128

    def registers(self, itemsize: int) -> int:
        """Return a thread's 32-bit registers for what a step works on: weights, one tile's state, the sums."""
        weights = self.register_tiles * self.units * self.depth(itemsize) * itemsize // 128
        return weights + self.state_registers(itemsize) + 3 * self.units * self.batch // 32

    @property
    def lanes_per_slice(self) -> int:
        """Lanes of a warp that share a slice where lanes make the products (kernels/lanes.py).

        Few, for little is exchanged between them then, but each has registers for more of the state.
        """
        return 4 if self._lane_registers(4) <= _LANE_REGISTERS_OF_FOUR else 8

    def lane_words(self, lanes_per_slice: int) -> int:
        """Return the words of two numbers of a row of the state that a thread waits for in such a step."""
        return -(-self.padded_hidden // (2 * self.slices * lanes_per_slice))

    def _lane_registers(self, lanes_per_slice: int) -> int:
        """Return a thread's 32-bit registers for what such a step works on: weights, the state, the sums."""
        rows_of_gates = 3 * self.units * lanes_per_slice // 32
        return 2 * self.lane_words(lanes_per_slice) * (rows_of_gates + self.rows) + rows_of_gates * self.rows

    @property
    def can_use_lanes(self) -> bool:
        """Whether such a step has the registers, and fewer columns than the eight of other products."""
        return self.rows <= 4 and self._lane_registers(self.lanes_per_slice) <= _LANE_REGISTERS

    def shared_memory(self, itemsize: int) -> int:
        """Return the most bytes of shared memory that the compiled kernel takes."""
        tile = self.slices * self.units * self.depth(itemsize) * itemsize
        in_shared = max(self.weight_tiles(itemsize) - self.register_tiles, 0)
        # Beside the weights that stay: the slices' sums of three gates, in words of four, or of two at a time where
        # that would be much (kernels/grid.py); or one tile on its way to the registers.
        sums = self.slices * self.units * self.batch
        return in_shared * tile + max(sums * (16 if sums <= 2048 else 8), tile)


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

    def launch_grid(self, batch_size: int, directions: int) -> tuple[int, ...]:
        """Return the programs of a launch: all of a direction in x, the dimension that takes the most."""
        return self.programs * -(-batch_size // self.batch), directions

    @property
    def slices(self) -> int:
        """Of the depth, one a warp; 1 where warps share a tile too large for each to have sums of all of it.

        A slice is no less deep than the matrix unit sums over.
        """
        sliced = self.units * self.batch <= 512 and self.depth >= 16 * self.num_warps
        return self.num_warps if sliced else 1

    def shared_memory(self, itemsize: int) -> int:
        """Return the most bytes of shared memory that the compiled kernel takes."""
        loads = self.num_stages * (3 * self.units + self.batch) * self.depth * itemsize
        # After the loop, in the same place, the slices' sums of all gates.
        return max(loads, 4 * 4 * self.slices * self.units * self.batch) + 1024


Config = BlockConfig | GridConfig | StepConfig


@dataclass(frozen=True)
class ProjectionConfig:
    """Tile of our own input projection: ``rows`` gate units by ``cols`` (step, batch row) pairs, ``depth`` inputs."""

    rows: int
    cols: int
    depth: int
    num_warps: int
    num_stages: int

    def launch_grid(self, pairs: int, padded_hidden: int, directions: int) -> tuple[int, ...]:
        """Return the programs of a launch for so many (step, batch row) pairs."""
        return -(-pairs // self.cols), -(-3 * padded_hidden // self.rows), directions

    def shared_memory(self, itemsize: int) -> int:
        """Return the most bytes of shared memory that the compiled kernel takes."""
        loads = self.num_stages * (self.rows + self.cols) * self.depth * itemsize
        return max(loads, self.rows * self.cols * itemsize) + 1024  # and the results, on their way to memory


@dataclass(frozen=True)
class CublasConfig:
    """The input projection by cuBLAS, which tiles as it likes."""

    def __str__(self) -> str:
        return "cuBLAS"


CUBLAS = CublasConfig()
Projection = ProjectionConfig | CublasConfig
# What laying out cuBLAS's products takes at a time: gate units by (step, batch row) pairs.
ARRANGE_TILE = ProjectionConfig(64, 64, depth=0, num_warps=4, num_stages=1)
_BY_CUBLAS = "+cublas"


def implementation_name(kernel: str, projection: Projection | None) -> str:
    """Return what a scan with such a projection is called where implementations are compared: ``"grid+cublas"``."""
    return kernel + _BY_CUBLAS if projection == CUBLAS else kernel


def report_name(implementation: str) -> str:
    """Return what a person calls an implementation: ``"nn.GRU"`` for ``"torch"``, others as they are."""
    return "nn.GRU" if implementation == "torch" else implementation


def split_implementation(implementation: str) -> tuple[str, Projection | None]:
    """Return the kernel and `CUBLAS` or None: the reverse of `implementation`, but for a tile."""
    kernel = implementation.removesuffix(_BY_CUBLAS)
    return kernel, None if kernel == implementation else CUBLAS


# Units of a program, batch rows of a tile and tiles in flight: each the fastest for some shape on an H200.
GRID_CUTS = ((16, 8, 1), (32, 8, 1), (16, 8, 2), (32, 8, 2), (16, 16, 2), (32, 16, 2))


def projection_config(hidden_size: int, dtype: torch.dtype, precision: str, aligned: bool) -> ProjectionConfig:
    """Return the tile of our own projection where none was measured, the same for all scans.

    Rows that are not ``aligned`` to 16 bytes are loaded number by number, each with an address of its own.
    """
    if dtype == torch.float32 and precision == "ieee":
        return ProjectionConfig(64, 32, depth=16, num_warps=4, num_stages=2)
    if not aligned:
        return ProjectionConfig(64, 64, depth=32, num_warps=4, num_stages=3)
    rows = 128 if hidden_size > 32 else 64
    return ProjectionConfig(rows, 64, depth=128 // dtype.itemsize, num_warps=4, num_stages=3)
