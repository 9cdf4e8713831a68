"""Which kernel serves a call, in which configuration, and why not the others.

By what was measured on such a device where there is a tuned table (triton_gru/tuning), else by count (cost.py).
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..triton_versions import copies_shared_operands
from .config import Config, StepConfig
from .cost import Cost, call_cost
from .device import Device, why_none
from .heuristic import HEURISTICS, heuristic
from .problem import Problem
from .tables import lookup
from .tables.lookup import Verdict

KERNELS = tuple(HEURISTICS)
BACKENDS = ("auto", "torch", "reference", *KERNELS)


@dataclass(frozen=True)
class Plan:
    """The answer of `choose`.

    Attributes:
        device: where the call would run, None where no kernel runs.
        kernel: ``"block"``, ``"grid"``, ``"step"``, ``"torch"`` (torch's own GRU) or ``"reference"`` (plain torch,
            one step at a time).
        config: the kernel's configuration, None where it has none.
        source: where the configuration comes from: ``"heuristic"``, or a table and how it was found.
        tuned: whether it comes from a table.
        reason: why this kernel.
        others: what `rejected` says of the others, and is put into words when it is asked.
    """

    problem: Problem
    device: Device | None
    kernel: str
    config: Config | None
    source: str
    reason: str
    others: tuple[tuple[str, object], ...]
    tuned: bool = False

    @property
    def rejected(self) -> tuple[tuple[str, str], ...]:
        """(kernel, why not) for each of the others."""
        return tuple((kernel, str(why)) for kernel, why in self.others)

    def __str__(self) -> str:
        device = self.device.name if self.device else "no device that runs kernels"
        lines = [f"{self.kernel}: {self.reason}", f"  problem   {self.problem}", f"  device    {device}"]
        if self.config is not None:
            lines.append(f"  config    {self.config} from {self.source}")
            if words := _shortcoming(self.config, self.problem):
                lines.append(f"  Triton    {words}")
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
    if backend != "auto":
        option = _option(backend, problem, device)
        if isinstance(option, str):
            raise RuntimeError(
                f"backend={backend!r} cannot serve this call: {option} ({problem}). backend='auto' serves every call"
            )
        return Plan(problem, device, backend, *option[:2], "asked for by name", (), option[2])
    options, rejected = {}, {}
    for kernel in (*KERNELS, "torch"):
        option = _option(kernel, problem, device)
        (rejected if isinstance(option, str) else options)[kernel] = option
    if not options:
        reason = "the only implementation of this variant that serves the call"
        return Plan(problem, device, "reference", None, "", reason, tuple(rejected.items()))
    others = tuple(rejected.items())
    if len(options) > 1 and (verdict := lookup.verdict(problem, device, options)):
        return _measured(problem, device, verdict, options, others)
    if len(options) > 1:
        kernel, slower = _cheapest(options, problem, device)
        reason = _REASONS.get(kernel, "no kernel is expected to be clearly faster than torch's own GRU")
    else:
        (kernel,), slower = options, ()
        reason = _REASONS.get(kernel, "torch's own GRU serves everything else")
    config, source, tuned = options[kernel]
    return Plan(problem, device, kernel, config, source, reason, others + slower, tuned)


# What is estimated to be less than a tenth faster may as well be slower.
_CLEARLY = 0.9


def _cheapest(options: dict, problem: Problem, device: Device) -> tuple[str, tuple]:
    """By count, and what is to be said of the others. Ours have to be clearly faster than torch's own GRU.

    Several steps are compared as in a CUDA graph, where torch's launches cost least.
    """
    in_graph = problem.steps > 1
    costs = {kernel: call_cost(problem, option[0], device, in_graph) for kernel, option in options.items()}
    kernel = min(costs, key=lambda kernel: costs[kernel].total * (_CLEARLY if kernel == "torch" else 1))
    return kernel, tuple((each, _Slower(costs[each], kernel, costs[kernel])) for each in costs if each != kernel)


def _measured(problem: Problem, device: Device, verdict: Verdict, options: dict, others: tuple) -> Plan:
    """The plan where one of ``options`` was measured to be the fastest."""
    measured = {kernel: f"measured {ms:.4g} ms" for kernel, ms in verdict.milliseconds.items()}
    slower = ((kernel, measured.get(kernel, "not measured")) for kernel in options if kernel != verdict.winner)
    ours = "no other is clearly faster, nor torch's own GRU in any mode"
    why = "no kernel is as fast both eager and in a graph" if verdict.winner == "torch" else ours
    reason = f"{measured[verdict.winner]}, and {why} ({verdict.source})"
    tuned = verdict.config is not None
    return Plan(problem, device, verdict.winner, verdict.config, verdict.source, reason, (*others, *slower), tuned)


def check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")


def forget() -> None:
    """Plans are made anew, with what tables there are now."""
    choose.cache_clear()


def _option(kernel: str, problem: Problem, device: Device | None) -> tuple[Config | None, str, bool] | str:
    """A kernel's configuration (None if it has none to choose), its source and whether it is tuned; or why it cannot
    serve."""
    if kernel == "reference":
        return None, "", False
    if kernel == "torch":
        return problem.reason_against_torch or (None, "", False)
    if problem.obstacle:
        return problem.obstacle
    if device is None:
        return why_none()
    if min(problem.input_size, problem.hidden_size) < 1:  # which nn.GRUCell allows
        return f"no kernel for I = {problem.input_size} and H = {problem.hidden_size}: both must be positive"
    if problem.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"no kernel for {str(problem.dtype)[6:]}"
    config = heuristic(kernel, problem, device)
    if isinstance(config, str):
        return config
    if found := lookup.configuration(kernel, problem, device):
        return *found, True
    return config, "heuristic", False


_REASONS = {
    "block": "all of W_hh fits one program, which keeps it on chip for the whole sequence",
    "grid": "W_hh fits the chip, which keeps it for the whole sequence, hidden units split over its multiprocessors",
    "step": "it streams W_hh once a step, in one launch a step: for a single one, or where no chip keeps W_hh",
}


def _shortcoming(config: Config, problem: Problem) -> str:
    """Return what this Triton makes worse of a kernel than others do; empty if nothing.

    In longer loops each product has an operand of its own (kernels/step.py).
    """
    is_tf32 = problem.dtype == torch.float32 and not problem.ieee
    if not (isinstance(config, StepConfig) and is_tf32 and copies_shared_operands()):
        return ""
    is_short = problem.hidden_size <= 4 * config.depth
    return "this version makes a sixth more instructions of it than 3.6, 3.7 or 3.9" if is_short else ""


class _Slower(NamedTuple):
    cost: Cost
    kernel: str
    kernels_cost: Cost

    def __str__(self) -> str:
        clearly = "clearly faster" if self.kernel == "torch" else "faster"
        return f"not expected to be {clearly}, by count: {self.cost}, {self.kernel} {self.kernels_cost}"
