"""Which kernel serves a call, in which configuration, and why not the others.

By what was measured on such a device where there is a tuned table (triton_gru/tuning), else by count (cost.py).
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..triton_versions import copies_shared_operands
from .config import CUBLAS, Config, Projection, StepConfig, implementation
from .cost import Cost, call_cost
from .device import Device, why_none
from .heuristic import HEURISTICS, heuristic
from .problem import Problem
from .tables import lookup
from .tables.lookup import Verdict
from .validity import is_whole_step, why_no_projection

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
        projection: how the input projection is made; None by a kernel of ours with its usual tile.
        other_projection: what is to be said of the other way, ours or cuBLAS's, put into words when it is asked.
    """

    problem: Problem
    device: Device | None
    kernel: str
    config: Config | None
    source: str
    reason: str
    others: tuple[tuple[str, object], ...]
    tuned: bool = False
    projection: Projection | None = None
    other_projection: object = ""

    @property
    def implementation(self) -> str:
        """Return what it is called where implementations are compared: ``"grid+cublas"``."""
        return implementation(self.kernel, self.projection)

    @property
    def rejected(self) -> tuple[tuple[str, str], ...]:
        """(kernel, why not) for each of the others."""
        return tuple((kernel, str(why)) for kernel, why in self.others)

    def __str__(self) -> str:
        device = self.device.name if self.device else "no device that runs kernels"
        lines = [f"{self.kernel}: {self.reason}", f"  problem   {self.problem}", f"  device    {device}"]
        if self.config is not None:
            lines.append(f"  config    {self.config} from {self.source}")
            if self.other_projection:
                taken, other = self.projection or "our kernel in its usual tile", CUBLAS
                if taken == CUBLAS:
                    other = "our kernel"
                lines.append(f"  inputs    {taken}; not {other}: {self.other_projection}")
            if words := _shortcoming(self.config, self.problem):
                lines.append(f"  Triton    {words}")
        lines += [f"  not {kernel}: {why}" for kernel, why in self.rejected]
        return "\n".join(lines)


@functools.lru_cache(maxsize=4096)
def choose(problem: Problem, device: Device | None, backend: str = "auto", use_tables: bool = True) -> Plan:
    """The plan for a problem on a device (None: one where no kernel runs).

    Without ``use_tables`` it is what there would be without any table.

    Raises:
        ValueError: ``backend`` names no backend.
        RuntimeError: ``backend`` names one that cannot serve this problem. ``"auto"`` never raises.
    """
    check_backend(backend)
    options, rejected = {}, {}
    for kernel in (*KERNELS, "torch") if backend == "auto" else (backend,):
        for name, option in _options(kernel, problem, device, use_tables).items():
            (rejected if isinstance(option, str) else options)[name] = option
    if backend != "auto" and backend not in options:
        raise RuntimeError(
            f"backend={backend!r} cannot serve this call: {rejected[backend]} ({problem}). "
            "backend='auto' serves every call"
        )
    if not options:
        reason = "the only implementation of this variant that serves the call"
        return Plan(problem, device, "reference", None, "", reason, tuple(rejected.items()))
    verdict = lookup.verdict(problem, device, options) if use_tables and len(options) > 1 else None
    # Of a kernel asked for by name the nearest measurement counts, unless one tells its projections apart.
    if verdict and (backend == "auto" or options.keys() <= verdict.milliseconds.keys()):
        name, reason, slower = _measured(verdict, options)
        options[name] = options[name]._replace(
            config=verdict.config, projection=verdict.projection, source=verdict.source, tuned=bool(verdict.config)
        )
    elif len(options) > 1:
        name, slower = _cheapest(options, problem, device)
        reason = _REASONS.get(options[name].kernel, "no kernel is expected to be clearly faster than torch's own GRU")
    else:
        (name,), slower = options, {}
        reason = _REASONS.get(name, "torch's own GRU serves everything else")
    kernel, config, projection, source, tuned = options[name]
    if backend != "auto":
        reason = "asked for by name"
    # Of the kernels that are not taken, that with our own projection says enough.
    others = rejected | slower
    same = others.get(implementation(kernel, None if projection == CUBLAS else CUBLAS), "")
    others = tuple((each, why) for each, why in others.items() if each in BACKENDS and each != kernel)
    return Plan(problem, device, kernel, config, source, reason, others, tuned, projection, same)


class _Option(NamedTuple):
    """What may serve a call.

    Attributes:
        config: None if the kernel has none to choose.
        source, tuned: of `Plan`.
    """

    kernel: str
    config: Config | None = None
    projection: Projection | None = None
    source: str = ""
    tuned: bool = False


# What is estimated to be less than a tenth faster may as well be slower.
_CLEARLY = 0.9


def _cheapest(options: dict[str, _Option], problem: Problem, device: Device) -> tuple[str, dict]:
    """Return the cheapest by count, and what is to be said of the others.

    cuBLAS has to be clearly faster than our own projection, and we clearly faster than torch's own GRU. Several steps
    are compared as in a CUDA graph, where torch's launches cost least.
    """
    in_graph = problem.steps > 1
    costs = {
        name: call_cost(problem, option.config, device, in_graph, option.projection) for name, option in options.items()
    }

    def weighed(name: str) -> float:
        option = options[name]
        if option.projection == CUBLAS and costs[name].total > _CLEARLY * costs[option.kernel].total:
            return math.inf
        return costs[name].total * (_CLEARLY if name == "torch" else 1)

    taken = min(costs, key=weighed)
    return taken, {name: _Slower(costs[name], taken, costs[taken]) for name in costs if name != taken}


def _measured(verdict: Verdict, options: dict) -> tuple[str, str, dict]:
    """Return which of ``options`` was measured to be the fastest, the reason to take it, and what others took."""
    measured = {name: f"measured {ms:.4g} ms" for name, ms in verdict.milliseconds.items()}
    slower = {name: measured.get(name, "not measured") for name in options if name != verdict.winner}
    ours = "no other is clearly faster, nor torch's own GRU in any mode"
    why = "no kernel is as fast both eager and in a graph" if verdict.winner == "torch" else ours
    return verdict.winner, f"{measured[verdict.winner]}, and {why} ({verdict.source})", slower


def check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")


def forget() -> None:
    """Plans are made anew, with what tables there are now."""
    choose.cache_clear()


def _options(kernel: str, problem: Problem, device: Device | None, use_tables: bool) -> dict[str, _Option | str]:
    """Return by name how a kernel may serve a problem, with our own projection and with cuBLAS's; or why it cannot."""
    if kernel == "reference":
        return {kernel: _Option(kernel)}
    if kernel == "torch":
        return {kernel: problem.reason_against_torch or _Option(kernel)}
    if reason := _obstacle(problem, device):
        return {kernel: reason}
    config = heuristic(kernel, problem, device)
    if isinstance(config, str):
        return {kernel: config}
    options = {}
    for projection in (None,) if is_whole_step(config, problem) else (None, CUBLAS):
        name = implementation(kernel, projection)
        if reason := why_no_projection(projection, config, problem, device):
            options[name] = reason
        elif found := use_tables and lookup.configuration(name, problem, device):
            options[name] = _Option(kernel, *found, tuned=True)
        else:
            options[name] = _Option(kernel, config, projection, "heuristic")
    return options


def _obstacle(problem: Problem, device: Device | None) -> str:
    """Return why no kernel can serve a problem; empty if one may."""
    if problem.obstacle:
        return problem.obstacle
    if device is None:
        return why_none()
    if min(problem.input_size, problem.hidden_size) < 1:  # which nn.GRUCell allows
        return f"no kernel for I = {problem.input_size} and H = {problem.hidden_size}: both must be positive"
    if problem.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"no kernel for {str(problem.dtype)[6:]}"
    return ""


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
