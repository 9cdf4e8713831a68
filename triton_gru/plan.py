"""Which kernel serves a call, in which configuration, and why not the others."""

import functools
from dataclasses import dataclass

import torch

from .config import BlockConfig, GridConfig, StepConfig, block_config, grid_config, step_config
from .device import Device

Config = BlockConfig | GridConfig | StepConfig

# Each kernel's configuration for (hidden_size, batch_size, directions, dtype, precision, device), or why it has none.
HEURISTICS = {"block": block_config, "grid": grid_config, "step": step_config}
KERNELS = tuple(HEURISTICS)
BACKENDS = ("auto", "torch", "reference", *KERNELS)


@dataclass(frozen=True)
class Problem:
    """What a plan needs to know of a call.

    Attributes:
        steps, batch_size: T and B of the input; of packed input, the longest length and the number of sequences.
        layout: ``"dense"``, ``"lengths"`` (dense, but each sequence with a length of its own) or ``"packed"``.
        resets: whether sequences restart on the way.
        precision: of products of fp32 numbers, ``"tf32"`` or ``"ieee"``, as torch has it set for recurrent networks.
        obstacle: why no kernel can serve the call whatever its shape (grad mode, ...); empty if none.
    """

    steps: int
    batch_size: int
    input_size: int
    hidden_size: int
    num_layers: int
    bidirectional: bool
    dtype: torch.dtype
    precision: str
    reset_after: bool
    reverse: bool = False
    layout: str = "dense"
    resets: bool = False
    obstacle: str = ""

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def __str__(self) -> str:
        precision = f" ({self.precision})" if self.dtype == torch.float32 else ""
        parts = [
            f"T={self.steps} B={self.batch_size} I={self.input_size} H={self.hidden_size}",
            f"layers={self.num_layers}",
            "bidirectional" if self.bidirectional else "reverse" if self.reverse else "",
            self.layout if self.layout != "dense" else "",
            "resets" if self.resets else "",
            f"{str(self.dtype)[6:]}{precision}",
            f"reset {'after' if self.reset_after else 'before'}",
        ]
        return ", ".join(filter(None, parts))


@dataclass(frozen=True)
class Plan:
    """The answer of `choose`.

    Attributes:
        device: where the call would run, None where no kernel runs.
        kernel: ``"block"``, ``"grid"``, ``"step"``, ``"torch"`` (torch's own GRU) or ``"reference"`` (plain torch,
            one step at a time).
        config: the kernel's configuration, None where it has none.
        source: where the configuration comes from.
        reason: why this kernel.
        rejected: (kernel, why not) for each that was considered before it.
    """

    problem: Problem
    device: Device | None
    kernel: str
    config: Config | None
    source: str
    reason: str
    rejected: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        device = self.device.name if self.device else "no device that runs kernels"
        lines = [f"{self.kernel}: {self.reason}", f"  problem   {self.problem}", f"  device    {device}"]
        if self.config is not None:
            lines.append(f"  config    {self.config} from {self.source}")
        lines += [f"  not {kernel}: {why}" for kernel, why in self.rejected]
        return "\n".join(lines)


@functools.lru_cache(maxsize=4096)
def choose(problem: Problem, device: Device | None, backend: str = "auto") -> Plan:
    """The plan for a problem on a device (None: one where no kernel runs).

    Raises:
        ValueError: ``backend`` names no backend.
        RuntimeError: ``backend`` names one that cannot serve this problem. ``"auto"`` never raises.
    """
    check_backend(backend)
    rejected = []
    # A single step by ``step`` is one launch, by the others two.
    kernels = ("step", "block", "grid") if problem.steps == 1 else KERNELS
    for kernel in (*kernels, "torch", "reference") if backend == "auto" else (backend,):
        config = _consider(kernel, problem, device, backend)
        if isinstance(config, str):
            rejected.append((kernel, config))
            continue
        reason = "asked for by name" if backend == kernel else _REASONS[kernel]
        return Plan(problem, device, kernel, config, "heuristic" if config else "", reason, tuple(rejected))
    raise RuntimeError(f"backend={backend!r} cannot serve this call: {rejected[0][1]} ({problem})")


_REASONS = {
    "block": "all of W_hh fits one program, which keeps it on chip for the whole sequence",
    "grid": "W_hh fits the chip, which keeps it for the whole sequence, hidden units split over its multiprocessors",
    "step": "it streams W_hh once a step, in one launch a step: for a single one, or where no chip keeps W_hh",
    "torch": "torch's own GRU serves everything else",
    "reference": "the only implementation of this variant that serves the call",
}


def check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")


def _consider(kernel: str, problem: Problem, device: Device | None, backend: str) -> Config | str | None:
    """A kernel's configuration (None if it has none to choose), or why it cannot serve."""
    if kernel == "reference":
        return None
    if kernel == "torch":
        return _torch_cannot(problem) or None
    if problem.obstacle:
        return problem.obstacle
    if device is None:
        return "kernels run on a GPU (on CPU tensors only under TRITON_INTERPRET=1)"
    if backend == "auto" and device.isa != "ptx":
        # The interpreter is for tests, and on AMD the kernels have been compiled but never run.
        return f"not proven on {device.name}; ask for it by name"
    if problem.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"no kernel for {str(problem.dtype)[6:]}"
    config = HEURISTICS[kernel](
        problem.hidden_size, problem.batch_size, problem.directions, problem.dtype, problem.precision, device
    )
    if isinstance(config, str) or backend != "auto" or _torch_cannot(problem):
        return config  # where torch cannot, what is left is a loop of many launches a step
    if slower := _expected_slower(problem, config):
        return f"expected to be slower than torch {slower}; ask for it by name"
    return config


def _torch_cannot(problem: Problem) -> str:
    """Why torch's own GRU cannot serve a problem; empty if it can."""
    if not problem.reset_after:
        return "torch.nn.GRU resets after the recurrent product, always"
    return "torch.nn.GRU does not restart within a sequence" if problem.resets else ""


# From this many bytes of W_hh on, a step takes the GPU longer to stream them than the host to launch it.
_STREAMED_BYTES = 64 << 20
# So much of the state, in all programs of ``grid`` together, takes the L2 about as long as a step takes torch.
_READ_BYTES = 16 << 20


def _expected_slower(problem: Problem, config: Config) -> str:
    """Where, by count and not by clock, torch's own GRU is expected to be faster than a kernel; empty if nowhere."""
    ieee = problem.dtype == torch.float32 and problem.precision == "ieee"
    if isinstance(config, BlockConfig):
        # Each step reads W_hh from shared memory several times over: 3 to 7 microseconds.
        return "in fp32 ieee above 64 hidden units" if ieee and config.tiles > 1 else ""
    if ieee:
        return "in fp32 ieee"
    if isinstance(config, GridConfig):
        rounds = config.rounds(problem.batch_size, problem.directions)
        rows = -(-problem.batch_size // config.batch) * config.rows
        read = config.directions * config.programs * rows * config.padded_hidden * problem.dtype.itemsize
        if problem.steps == 1:
            return "for a single step"
        if rounds > 2 * problem.directions:
            return f"with the batch in {rounds} parts one after the other"
        return f"where a step reads more than {_READ_BYTES >> 20} MiB of the state" if read > _READ_BYTES else ""
    if problem.batch_size > 64:
        return "in batches above 64"
    weights = 3 * problem.hidden_size**2 * problem.dtype.itemsize
    if problem.steps > 1 and weights < _STREAMED_BYTES:
        return f"where a step streams less than {_STREAMED_BYTES >> 20} MiB of weights"
    return ""
