"""Configurations of the kernels, with the registers and shared memory that each needs.

``tests/compiled`` asserts spills, stack and shared memory of the heuristic's configurations for many shapes, on the
architecture of each known device.
"""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class BlockConfig:
    """A configuration of the ``block`` scan.

    Attributes:
        units: hidden units of a tile of W_hh (a power of two).
        tiles: number of unit tiles; ``tiles * units`` is the padded hidden_size.
        batch: batch rows of one program: 2, 8 or 16. 8 and 16 are also the columns of a product.
        ahead: time steps per iteration of the loop. The gate inputs are prefetched by this number of steps.
        register_tiles: tiles of W_hh, of all ``3 * tiles**2``, that stay in registers as the left operand of the matrix
            unit. The other tiles stay in shared memory.
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
        """Return the batch rows of a tile of the gate inputs."""
        return 1 if self.batch == 2 else self.batch

    @property
    def columns(self) -> int:
        """Return the columns of a product: at least eight, so that with ``batch=2`` each row has four columns."""
        return max(self.batch, 8)

    @property
    def shared_tiles(self) -> int:
        """Return the number of tiles of W_hh that stay in shared memory."""
        return 3 * self.tiles**2 - self.register_tiles

    def launch_grid(self, batch_size: int, directions: int) -> tuple[int, ...]:
        """Return the number of programs of a launch, by dimension."""
        return (-(-batch_size // self.batch) * directions,)

    def shared_memory(self, itemsize: int) -> int:
        """Return an upper bound of the bytes of shared memory that the compiled kernel needs."""
        # The register tiles may pass through shared memory, one at a time, before the other tiles. So count one tile.
        weights = max(self.shared_tiles, 1) * self.units**2 * itemsize
        # The state is held in two alternating buffers, or as the operand of a product. In fp32 a value of the operand
        # takes 6 bytes instead of 4, because products are converted between layouts. With 128 bytes more, and at least
        # 1280 bytes, the bound holds (tests/compiled).
        bytes_per_unit = max(2 * self.batch * itemsize, self.columns * (6 if itemsize == 4 else itemsize))
        state = max(self.padded_hidden * bytes_per_unit + 128, 1280)
        return weights + state


HANDOVERS = ("flag", "probe")
_WARP_REGISTER_BYTES = 32 * 4  # of one 32-bit register in all 32 threads of a warp
# Registers of a thread, of 255, that weights, state and sums may take if lanes compute the products (kernels/lanes.py).
_LANE_REGISTERS = 222
_LANE_REGISTERS_OF_FOUR = 190  # the same if four lanes share a slice


@dataclass(frozen=True)
class GridConfig:
    """A configuration of the ``grid`` scan.

    Attributes:
        units: hidden units of a program (a power of two).
        programs: programs that together own all hidden units.
        batch: batch rows of a tile, as the matrix unit takes them.
        rows: batch rows of a tile that hold data. That is ``batch``, or for a batch smaller than a tile, a power of two
            that holds the batch, or twice that. Twice the rows put the words of fewer programs into one line of memory,
            which all programs poll.
        tiles: batch tiles in flight in a program: one is computed while the others are handed over.
        directions: directions of the module that are on the chip at once, each with separate programs. Other directions
            follow in another launch.
        copies: groups of programs of one direction that are on the chip at once, each with separate batch tiles.
        slices: slices of the sum over hidden units, one per warp.
        register_tiles: tiles of W_hh, of the ``3 * segments`` in a program, that stay in registers. In fp32 ieee that
            is all tiles or none. With all of them, lanes compute a step's products there (kernels/lanes.py).
        handover: how the state reaches the other programs, one of `HANDOVERS` (kernels/exchange.py).
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
        """Return the number of programs of a launch. It follows from the fields, which `adapt_to` fits to a batch."""
        return (self.programs * self.copies * self.directions,)

    def adapt_to(self, batch_size: int, directions: int, sms: int) -> "GridConfig":
        """Return this configuration with ``directions``, ``copies`` and ``rows`` for another batch and device.

        Directions and copies become the most that the problem needs and ``sms`` multiprocessors run at once. ``rows``
        becomes the lowest power of two that holds the batch, at most ``batch``. Exception: a configuration with one
        tile and twice that many rows keeps them. An empty batch is treated as one row. A configuration from a file
        whose programs do not fit ``sms``, or with sizes below 1, is returned unchanged.
        """
        if not 0 < self.programs <= sms or self.batch * self.tiles < 1:
            return self
        batch_size = max(batch_size, 1)
        directions_at_once = min(directions, max(1, sms // self.programs))
        copies = min(sms // (self.programs * directions_at_once), -(-batch_size // (self.batch * self.tiles)))
        rows = min(self.batch, 1 << (batch_size - 1).bit_length())
        if self.tiles == 1 and self.rows == 2 * rows <= self.batch:
            rows = self.rows
        return replace(self, rows=rows, copies=copies, directions=directions_at_once)

    def count_rounds(self, batch_size: int, directions: int) -> int:
        """Return how many rounds run one after the other: parts of the batch, times launches for directions."""
        rows_at_once = self.batch * self.tiles * self.copies
        return -(-batch_size // rows_at_once) * (directions // self.directions)

    def weight_tiles(self, itemsize: int) -> int:
        """Return the number of tiles of W_hh in a program."""
        return 3 * -(-self.padded_hidden // (self.slices * self.depth(itemsize)))

    def depth(self, itemsize: int) -> int:
        """Return the hidden units of a tile that a slice sums over."""
        return 32 if itemsize == 2 else 16

    def state_registers(self, itemsize: int) -> int:
        """Return how many 32-bit registers of a thread hold the words of a tile's state that it waits for."""
        slice_depth = self.weight_tiles(itemsize) // 3 * self.depth(itemsize)
        return slice_depth * self.batch * itemsize // _WARP_REGISTER_BYTES

    def registers(self, itemsize: int) -> int:
        """Return how many 32-bit registers of a thread hold the register tiles, one tile's state and the sums."""
        weights = self.register_tiles * self.units * self.depth(itemsize) * itemsize // _WARP_REGISTER_BYTES
        sums = 3 * self.units * self.batch // 32  # of three gates, over 32 threads
        return weights + self.state_registers(itemsize) + sums

    @property
    def lanes_per_slice(self) -> int:
        """Return how many lanes of a warp share a slice if lanes compute the products (kernels/lanes.py): 4 or 8.

        Four lanes exchange less than eight, but each of them needs registers for more of the state.
        """
        return 4 if self._lane_registers(4) <= _LANE_REGISTERS_OF_FOUR else 8

    def lane_words(self, lanes_per_slice: int) -> int:
        """Return how many words of a state row a thread waits for if lanes compute the products.

        Each word holds two values of the row.
        """
        return -(-self.padded_hidden // (2 * self.slices * lanes_per_slice))

    def _lane_registers(self, lanes_per_slice: int) -> int:
        """Return how many 32-bit registers of a thread hold weights, state and sums if lanes compute the products."""
        gate_rows = 3 * self.units * lanes_per_slice // 32  # rows of W_hh that a thread multiplies
        slice_values = 2 * self.lane_words(lanes_per_slice)
        return slice_values * (gate_rows + self.rows) + gate_rows * self.rows

    @property
    def can_use_lanes(self) -> bool:
        """Return whether lanes can compute the products in fp32 ieee: at most four rows, and enough registers."""
        return self.rows <= 4 and self._lane_registers(self.lanes_per_slice) <= _LANE_REGISTERS

    def shared_memory(self, itemsize: int) -> int:
        """Return an upper bound of the bytes of shared memory that the compiled kernel needs."""
        tile = self.slices * self.units * self.depth(itemsize) * itemsize
        shared_tiles = max(self.weight_tiles(itemsize) - self.register_tiles, 0)
        # Besides the weights, the slices' sums of three gates pass through, as words of four float32 values. More than
        # 2048 words pass in two trips, of two values each (kernels/slices.py). Before the first step, each register
        # tile passes through by itself.
        sum_words = self.slices * self.units * self.batch
        return shared_tiles * tile + max(sum_words * (16 if sum_words <= 2048 else 8), tile)


_SHARED_MEMORY_MARGIN = 1024  # bytes added so that an upper bound holds (tests/compiled)


@dataclass(frozen=True)
class StepConfig:
    """A configuration of the ``step`` scan.

    Attributes:
        units: hidden units of a program (a power of two).
        programs: programs that together own all hidden units.
        batch: batch rows of a program.
        depth: hidden units that an iteration of the loop sums over.
        num_warps: warps of a program.
        num_stages: stages of the loop's software pipeline.
    """

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
        """Return the batch rows of a tile of the gate inputs."""
        return self.batch

    def launch_grid(self, batch_size: int, directions: int) -> tuple[int, ...]:
        """Return the number of programs of a launch: those of one direction in x, the directions in y.

        CUDA allows far more programs in x than in y.
        """
        return self.programs * -(-batch_size // self.batch), directions

    @property
    def slices(self) -> int:
        """Return into how many slices the depth is divided: one slice per warp, or 1 if the warps share one slice.

        Warps share one slice if a gate has more than 512 sums, as a warp cannot hold all of them. They share it also if
        a slice per warp would be less deep than 16, the least depth of a ``tl.dot``.
        """
        is_sliced = self.units * self.batch <= 512 and self.depth >= 16 * self.num_warps
        return self.num_warps if is_sliced else 1

    def shared_memory(self, itemsize: int) -> int:
        """Return an upper bound of the bytes of shared memory that the compiled kernel needs."""
        loads = self.num_stages * (3 * self.units + self.batch) * self.depth * itemsize
        # After the loop the same memory holds the slices' sums: for each slice, unit and row up to four, in float32.
        sums = 4 * 4 * self.slices * self.units * self.batch
        return max(loads, sums) + _SHARED_MEMORY_MARGIN


Config = BlockConfig | GridConfig | StepConfig


@dataclass(frozen=True)
class ProjectionConfig:
    """A tile of our own input projection.

    Attributes:
        rows: gate units of the tile, of ``3 * padded_hidden``.
        cols: (step, batch row) pairs of the tile.
        depth: input features that an iteration of the loop sums over.
        num_warps: warps of a program.
        num_stages: stages of the loop's software pipeline.
    """

    rows: int
    cols: int
    depth: int
    num_warps: int
    num_stages: int

    def launch_grid(self, pairs: int, padded_hidden: int, directions: int) -> tuple[int, ...]:
        """Return the number of programs of a launch, by dimension, for ``pairs`` (step, batch row) pairs."""
        return -(-pairs // self.cols), -(-3 * padded_hidden // self.rows), directions

    def shared_memory(self, itemsize: int) -> int:
        """Return an upper bound of the bytes of shared memory that the compiled kernel needs."""
        loads = self.num_stages * (self.rows + self.cols) * self.depth * itemsize
        results = self.rows * self.cols * itemsize  # they pass through the same memory
        return max(loads, results) + _SHARED_MEMORY_MARGIN


@dataclass(frozen=True)
class CublasConfig:
    """The input projection by cuBLAS, which chooses its tiles itself."""

    def __str__(self) -> str:
        return "cuBLAS"


CUBLAS = CublasConfig()
Projection = ProjectionConfig | CublasConfig
# Tile of the kernel that brings cuBLAS's products into the scan's layout: gate units by (step, batch row) pairs.
ARRANGE_TILE = ProjectionConfig(64, 64, depth=0, num_warps=4, num_stages=1)
_CUBLAS_SUFFIX = "+cublas"


def implementation_name(kernel: str, projection: Projection | None) -> str:
    """Return the name of a kernel with a projection: ``"grid+cublas"``, or ``"grid"`` for any tile of our own.

    Plans and tables compare these names.
    """
    return kernel + _CUBLAS_SUFFIX if projection == CUBLAS else kernel


def format_implementation(implementation: str) -> str:
    """Return an implementation's name for reports: ``"nn.GRU"`` for ``"torch"``, other names unchanged."""
    return "nn.GRU" if implementation == "torch" else implementation


def split_implementation(implementation: str) -> tuple[str, Projection | None]:
    """Return the kernel and the projection of an implementation's name, as `implementation_name` makes it.

    The projection is `CUBLAS`, or None for our own. The name does not tell the tile of our own projection.
    """
    kernel = implementation.removesuffix(_CUBLAS_SUFFIX)
    return kernel, None if kernel == implementation else CUBLAS


# (units of a program, batch rows of a tile, tiles in flight). Each was the fastest for some shape on an H200.
GRID_CUTS = ((16, 8, 1), (32, 8, 1), (16, 8, 2), (32, 8, 2), (16, 16, 2), (32, 16, 2))


def projection_config(hidden_size: int, dtype: torch.dtype, precision: str, aligned: bool) -> ProjectionConfig:
    """Return the usual tile of our own projection, which serves if no tile was measured or rows are not aligned.

    It is the same for all scans.

    ``aligned`` tells whether rows of the input are aligned to 16 bytes. Other rows are loaded value by value, each by a
    separate address.
    """
    if dtype == torch.float32 and precision == "ieee":
        return ProjectionConfig(64, 32, depth=16, num_warps=4, num_stages=2)
    if not aligned:
        return ProjectionConfig(64, 64, depth=32, num_warps=4, num_stages=3)
    rows = 128 if hidden_size > 32 else 64
    return ProjectionConfig(rows, 64, depth=128 // dtype.itemsize, num_warps=4, num_stages=3)
