"""What each scan kernel is launched with, for one layer and one chunk of time steps."""

import ctypes
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from triton import knobs
from triton.runtime import driver

from ..call.sequences import Sequences
from ..kernels.block import block_scan
from ..kernels.exchange import HEADER
from ..kernels.grid import grid_scan
from ..kernels.step import step_scan, whole_step
from ..plan.config import BlockConfig, GridConfig, StepConfig
from ..plan.problem import Problem
from ..reference import Weights
from ..triton_versions import COMPILER_OPTIONS, is_launcher_known
from . import hang

# Cap on the mailbox of a ``grid`` call, which has to stay in the L2, and holds two time steps at least.
MAILBOX_BYTES = 16 << 20


class Clear(NamedTuple):
    """``words.fill_(value)``."""

    words: Tensor
    value: int


class Launch(NamedTuple):
    """One kernel launch: ``kernel[grid](*args, **constants)``, once ``clear`` is done.

    `COMPILER_OPTIONS` are passed beside the constants.
    """

    kernel: object
    grid: tuple[int, ...]
    args: tuple
    constants: dict
    clear: Clear | None = None

    def start(self):
        """As Triton's own launch does, returns the compiled kernel; nothing in the interpreter."""
        if self.clear is not None:
            self.clear.words.fill_(self.clear.value)
        return self.kernel[self.grid](*self.args, **self.constants, **COMPILER_OPTIONS)

    def compile(self):
        """What Triton makes of it, by the path of a real launch up to the moment it would start."""
        return self.kernel.warmup(*self.args, grid=self.grid, **self.constants, **COMPILER_OPTIONS)

    def prepared(self) -> Callable[..., None]:
        """Starts the kernel with other arguments of the same kinds, in place of tensors the addresses of such.

        It does not ask what they are: an address is to be as much of a multiple of 16 as the tensor's is.
        """
        if self.constants["ISA"] == "interpreter":
            return _interpreted(self)
        constants = [self.constants[name] for name in self.kernel.arg_names[len(self.args) :]]
        grid = (*self.grid, 1, 1)[:3]
        compiled = self.compile()
        observed = compiled[grid]  # which loads it, too
        run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
        stream, device = driver.active.get_current_stream, driver.active.get_current_device()
        hooks = knobs.runtime
        if not is_launcher_known():
            return lambda *args: observed(*args, *constants)

        def start(*args) -> None:
            if hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls:  # a profiler's
                observed(*args, *constants)
            else:
                run(*grid, stream(device), function, metadata, None, None, None, *args, *constants)

        return start


def _interpreted(launch: Launch) -> Callable[..., None]:
    """As `Launch.prepared`: the interpreter takes no addresses, but asks a tensor for nothing else than its dtype."""
    kernel, constants = launch.kernel[launch.grid], launch.constants
    dtypes = [arg.dtype if isinstance(arg, Tensor) else None for arg in launch.args]

    def start(*args) -> None:
        kernel(*(_tensor_at(arg, dtype) if dtype else arg for arg, dtype in zip(args, dtypes)), **constants)

    return start


def _tensor_at(address: int, dtype: torch.dtype) -> Tensor:
    if address == 0:
        return torch.empty(0, dtype=dtype, device="cpu")
    return torch.frombuffer((ctypes.c_byte * dtype.itemsize).from_address(address), dtype=dtype)


class Scan:
    """The recurrence of a call, one layer and one chunk of its steps at a time: what every scan kernel is told of it.

    Attributes:
        gi: the gate inputs of the chunk [directions, at least steps, ...], tile by tile as the configuration cuts the
            batch.
        weights: of the layer, for each direction; in place of a bias that is not there, what is not read.
        hx: [layers * directions, B, H], unit stride in H (``step``: contiguous), or None for zeros.
        carry: fp32 [2, layers * directions, B, H], the state between launches; it comes in at ``parity`` and goes out
            at the other, or where it came in if the kernel says so.
        out: where the layer's states go, time first or packed.
        reverse, reset_after: as in `Problem`.
        start, steps, total: the chunk's first step, how many they are, and of how many.
    """

    def __init__(
        self,
        problem: Problem,
        sequences: Sequences,
        hx: Tensor | None,
        carry: Tensor,
        h_n: Tensor,
        resets: Tensor | None,
    ):
        self.layout, self.total, self.batch = sequences.layout, sequences.steps, sequences.batch_size
        self._directions = problem.directions
        self.ieee = problem.ieee
        self.hx, self.carry, self.h_n = hx, carry, h_n
        # What is not there is not read.
        nothing = h_n
        self.lengths = nothing if sequences.lengths is None else sequences.lengths
        self.offsets = nothing if sequences.offsets is None else sequences.offsets
        self._resets = nothing if resets is None else resets
        self.reverse, self.reset_after = problem.reverse, problem.reset_after
        self._has_resets = resets is not None

    def begin(self, layer: int, weights: list[Weights], out: Tensor) -> None:
        self.has_bias = weights[0][3] is not None
        self.weights = [
            (w_ih, w_hh, w_ih if b_ih is None else b_ih, w_hh if b_hh is None else b_hh)
            for w_ih, w_hh, b_ih, b_hh in weights
        ]
        self.out, self.parity = out, 0
        self.first_state = layer * self._directions
        self.start = 0

    def go_on(self, gi: Tensor, start: int, steps: int) -> None:
        self.gi, self.start, self.steps = gi, start, steps

    def of_both(self, *which: int) -> list[Tensor]:
        """Those of the four weights, by their place, forward and backward; of one direction twice."""
        return [weights[i] for weights in (self.weights[0], self.weights[-1]) for i in which]

    @property
    def recurrent_weights(self) -> list[Tensor]:
        return self.of_both(1, 3)

    @property
    def initial(self) -> Tensor:
        return self.h_n if self.hx is None else self.hx

    @property
    def ends(self) -> tuple[Tensor, ...]:
        return self.lengths, self.offsets, self._resets

    @property
    def constants(self) -> dict:
        return {
            "LAYOUT": self.layout,
            "REVERSE": self.reverse,
            "HAS_BIAS": self.has_bias,
            "HAS_HX": self.hx is not None,
            "HAS_RESETS": self._has_resets,
        }

    @property
    def out_strides(self) -> tuple[int, int]:
        """From one time to the next and from one row to the next; packed the former is that from row to row."""
        return self.out.stride(0), self.out.stride(1)

    @property
    def hx_strides(self) -> tuple[int, int]:
        return (0, 0) if self.hx is None else (self.hx.stride(0), self.hx.stride(1))


def block_launches(scan: Scan, config: BlockConfig, shared: dict) -> Iterator[Launch]:
    """``shared`` are constants of all kernels of a call. The state comes in where it goes out."""
    yield Launch(
        block_scan,
        config.launch_grid(scan.batch, len(scan.weights)),
        (
            scan.gi, *scan.recurrent_weights, scan.initial, scan.carry[0], scan.out, scan.h_n, *scan.ends,
            scan.steps, scan.start, scan.total, scan.first_state, scan.batch, *scan.out_strides, *scan.hx_strides,
        ),
        shared | scan.constants | {
            "UNITS": config.units,
            "TILES": config.tiles,
            "BATCH": config.batch,
            "AHEAD": config.ahead,
            "REGISTER_TILES": config.register_tiles,
            "RESET_AFTER": scan.reset_after,
            "WARPS": config.num_warps,
            "num_warps": config.num_warps,
            "num_stages": 1,
        },
    )  # fmt: skip


class Mailbox:
    """The memory through which the programs of ``grid`` launches hand the state over, one launch after another.

    Args:
        handovers: in a time step.
        dtype: of the state.
    """

    def __init__(self, config: GridConfig, batch: int, handovers: int, dtype: torch.dtype):
        self._handovers = handovers
        tiles = -(-batch // (config.batch * config.tiles)) * config.tiles
        tiles *= config.directions
        self._slot = tiles * config.rows * config.padded_hidden * dtype.itemsize // 8

    @property
    def longest(self) -> int:
        """Time steps that one launch can take."""
        in_all = (MAILBOX_BYTES // 8 - HEADER.value) // self._slot
        return max(1, (in_all - 1) // self._handovers)

    def size(self, steps: int) -> int:
        """Return the words of 64 bits that a launch takes: a slot for each hand-over and one for the first state."""
        return HEADER.value + (self._handovers * steps + 1) * self._slot

    def clear(self, words: Tensor, steps: int) -> Clear:
        """What has to come before a launch of so many steps."""
        return Clear(words[: self.size(steps)], -1)


def grid_launches(scan: Scan, config: GridConfig, shared: dict, mailbox: Mailbox, words: Tensor) -> Iterator[Launch]:
    """One launch for all directions, or one for each where the chip has no room for both.

    ``words``, int64, is the memory of ``mailbox``.
    """
    by_lanes = scan.ieee and config.register_tiles > 0
    constants = shared | scan.constants | {
        "UNITS": config.units,
        "BATCH": config.rows if by_lanes else config.batch,
        "ROWS": config.rows,
        "TILES": config.tiles,
        "SLICES": config.slices,
        "REGISTER_TILES": config.register_tiles,
        "ALONG": config.along if by_lanes else 0,
        "HANDOVER": config.handover,
        "RESET_AFTER": scan.reset_after,
        "num_warps": config.slices,
        "num_stages": 1,
        # There is one program to a multiprocessor: registers left free are of no use. By itself the assembler
        # stops short of them here and there, and spills.
        "maxnreg": 255,
    } | ({} if shared["ISA"] == "interpreter" else {"launch_cooperative_grid": True})  # fmt: skip
    for first_direction in range(0, len(scan.weights), config.directions):
        yield Launch(
            grid_scan,
            config.launch_grid(scan.batch, len(scan.weights)),
            (
                scan.gi, *scan.recurrent_weights, scan.initial, scan.carry[scan.parity], scan.carry[1 - scan.parity],
                scan.out, scan.h_n, *scan.ends, words, hang.of(scan.gi.device).watch,
                scan.steps, scan.start, scan.total, config.copies, first_direction,
                config.directions, scan.first_state, scan.batch, *scan.out_strides, *scan.hx_strides,
            ),
            constants,
            mailbox.clear(words, scan.steps),
        )  # fmt: skip
    scan.parity ^= 1


def room_for_reset_state(problem: Problem, like: Tensor, new: Callable[..., Tensor] = Tensor.new_empty) -> Tensor:
    """Room for r h between the two launches of a step to reset before: [directions, B, H], as the product's operand.

    ``like`` itself where nothing is read from there; otherwise made by ``new``.
    """
    if problem.reset_after:
        return like
    return new(like, problem.directions, problem.batch_size, problem.hidden_size)


def step_launches(
    scan: Scan, config: StepConfig, shared: dict, rounded: Tensor, reset_state: Tensor
) -> Iterator[Launch]:
    """``rounded``, of the carry's shape, is the carry as the product's operand. Parities change from step to step."""
    constants = shared | scan.constants | _step_constants(config)
    for step in range(scan.steps):
        for part in _parts(scan):
            yield Launch(
                step_scan,
                config.launch_grid(scan.batch, len(scan.weights)),
                (
                    scan.gi, *scan.recurrent_weights, scan.initial, *_step_states(scan, rounded), reset_state,
                    scan.out, scan.h_n, *scan.ends, step, scan.steps, scan.start, scan.total, scan.first_state,
                    scan.batch, *scan.out_strides,
                ),
                constants | part,
            )  # fmt: skip
        scan.parity ^= 1


def whole_step_launches(
    scan: Scan, x: Tensor, config: StepConfig, shared: dict, rounded: Tensor, reset_state: Tensor
) -> Iterator[Launch]:
    """All of a step, the projection of ``x`` [B, I] included: one launch, or two to reset before."""
    batch, inputs = x.shape
    constants = {"I": inputs, "HAS_BIAS": scan.has_bias, "HAS_HX": scan.hx is not None}
    for part in _parts(scan):
        yield Launch(
            whole_step,
            config.launch_grid(scan.batch, len(scan.weights)),
            (
                x, *scan.of_both(0, 1, 2, 3), scan.initial, *_step_states(scan, rounded), reset_state,
                scan.out, scan.h_n, scan.start, scan.total, scan.first_state, batch,
                x.stride(0) if batch > 1 else inputs, x.stride(1) if inputs > 1 else 1, scan.out.stride(-2),
            ),
            shared | _step_constants(config) | constants | part,
        )  # fmt: skip


def _parts(scan: Scan) -> list[dict]:
    """The launches of a step: the second one's product is of what all programs of the first have made."""
    return [{"PART": part} for part in (("all",) if scan.reset_after else ("reset", "rest"))]


def _step_constants(config: StepConfig) -> dict:
    return {
        "UNITS": config.units,
        "BATCH": config.batch,
        "DEPTH": config.depth,
        "SLICES": config.slices,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }


def _step_states(scan: Scan, rounded: Tensor) -> tuple[Tensor, ...]:
    before, after = scan.parity, 1 - scan.parity
    return scan.carry[before], scan.carry[after], rounded[before], rounded[after]
