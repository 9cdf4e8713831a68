"""Which kernel serves a call, in which configuration, and why not the others.

What was measured on such a device decides if there is a tuned table (triton_gru/tuning), else an estimate (cost.py).
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..deprecated import rename_attributes
from ..triton_versions import copies_shared_operands
from ..units import format_time
from .config import CUBLAS, Config, Projection, ProjectionConfig, StepConfig, implementation_name
from .cost import Cost, estimate_call_cost
from .device import Device, no_device_reason
from .heuristic import HEURISTICS, heuristic
from .problem import Problem
from .tables import lookup
from .tables.lookup import Verdict
from .validity import is_fused_step, unsupported_projection_reason

KERNELS = tuple(HEURISTICS)
BACKENDS = ("auto", "torch", "reference", *KERNELS)


class CannotServe(RuntimeError):
    """The error of a backend that cannot serve a call; ``reason`` says why."""

    reason = ""  # no argument of a constructor: pickle makes errors of their message alone


class Estimate(NamedTuple):
    """The time of a call by the cost model. Its text is made when it is asked for."""

    cost: Cost

    def __str__(self) -> str:
        return f"estimated {self.cost}"


class Measurement(NamedTuple):
    """The time of a call by a table.

    Attributes:
        milliseconds: the median; None if it was not measured.
        how: in words, each after a space, how it was measured: ``" in a CUDA graph at T=64"``.
    """

    milliseconds: float | None
    how: str = ""

    @property
    def time(self) -> str:
        return format_time(1000 * self.milliseconds)

    def __str__(self) -> str:
        return "not measured" if self.milliseconds is None else f"measured {self.time}"


@rename_attributes(rejected="rejection_reasons", others="alternatives", tuned="is_tuned")
@dataclass(frozen=True)
class Plan:
    """The answer of `choose`. Its text is a report.

    Attributes:
        device: where the call would run, None where no kernel runs.
        kernel: ``"block"``, ``"grid"``, ``"step"``, ``"torch"`` (nn.GRU) or ``"reference"`` (plain torch, one step at a
            time).
        config: the kernel's configuration, None where it has none.
        source: where the configuration comes from: ``"heuristic"``, or a table and how it was found.
        is_tuned: whether it comes from a table.
        reason: why this kernel.
        alternatives: as `rejection_reasons`, but for the texts, which are made when they are asked for.
        projection: how the input projection is made; None by a kernel of ours with its usual tile.
        other_projection: the time with the other projection, ours or cuBLAS's, or why it cannot be; empty if neither.
        time: the estimated or measured time; None if there is neither.
    """

    problem: Problem
    device: Device | None
    kernel: str
    config: Config | None
    source: str
    reason: str
    alternatives: tuple[tuple[str, str | Estimate | Measurement], ...]
    is_tuned: bool = False
    projection: Projection | None = None
    other_projection: str | Estimate | Measurement = ""
    time: Estimate | Measurement | None = None

    @property
    def implementation(self) -> str:
        """Return what it is called where implementations are compared: ``"grid+cublas"``."""
        return implementation_name(self.kernel, self.projection)

    @property
    def rejection_reasons(self) -> tuple[tuple[str, str], ...]:
        """(kernel, why not) for each of the others."""
        return tuple((kernel, str(why)) for kernel, why in self.alternatives)

    def __str__(self) -> str:
        rows = [f"  {label:9}  {words}" for label, words in self._rows()]
        return "\n".join([f"{self.kernel}: {self.reason}", *rows])

    def _rows(self) -> Iterator[tuple[str, object]]:
        # Where no kernel runs, the precision of the kernels' products is nobody's.
        yield "call", self.problem if self.device else dataclasses.replace(self.problem, precision="")
        yield "GPU", self.device.name if self.device else "none that runs kernels"
        if self.config is not None:
            yield "config", f"{_field_words(self.config)}{self._origin}"
        if self.other_projection:
            yield "inputs", f"projected by {self._projector}; {self._other_projector}"
        if isinstance(self.time, Estimate):
            yield "estimated", self.time.cost
        elif self.time:
            yield "measured", f"{self.time.time}{self.time.how} ({self.source})"
        if words := self.config and _shortcoming(self.config, self.problem):
            yield "Triton", words
        kernels: dict[str, list[str]] = {}
        for kernel, why in self.rejection_reasons:
            kernels.setdefault(why, []).append(kernel)
        for why, alike in kernels.items():
            yield f"not {', '.join(alike)}", why
        if isinstance(self.time, Estimate):
            mode = "as in a CUDA graph" if self.problem.steps > 1 else "without the host (nn.GRU: eager)"
            yield "estimates", f"are {mode}, by a model fitted to an H200; `triton-gru tune` measures"

    @property
    def _origin(self) -> str:
        """Return in words where the configuration comes from. The table of a measured time is named with that."""
        if self.source == "heuristic":
            return " (chosen by the heuristic, not tuned)"
        if not self.is_tuned:
            return ""
        return " (tuned)" if isinstance(self.time, Measurement) else f" (tuned: {self.source})"

    @property
    def _projector(self) -> str:
        if isinstance(self.projection, ProjectionConfig):
            return f"our kernel, {_field_words(self.projection)}"
        return "cuBLAS" if self.projection == CUBLAS else "our kernel"

    @property
    def _other_projector(self) -> str:
        """Return in words why the other projection is not taken."""
        name, other = "our kernel" if self.projection == CUBLAS else "cuBLAS", self.other_projection
        if isinstance(other, Measurement):
            return f"with {name} the call was {other}"
        if not isinstance(other, Estimate):
            return f"not by {name}: {other}"
        return f"with {name} the call is estimated to take {format_time(other.cost.total)}"


def _field_words(config: Config | ProjectionConfig) -> str:
    """Return the fields of a configuration: ``"units=16, programs=32"``."""
    return ", ".join(f"{field.name}={getattr(config, field.name)}" for field in dataclasses.fields(config))


@functools.lru_cache(maxsize=4096)
def choose(problem: Problem, device: Device | None, backend: str = "auto", use_tables: bool = True) -> Plan:
    """The plan for a problem on a device (None: one where no kernel runs).

    Without ``use_tables`` it is what there would be without any table.

    Raises:
        ValueError: ``backend`` names no backend.
        CannotServe: ``backend`` names one that cannot serve this problem. ``"auto"`` never raises.
    """
    check_backend(backend)
    options, rejected = {}, {}
    for kernel in (*KERNELS, "torch") if backend == "auto" else (backend,):
        for name, option in _options(kernel, problem, device, use_tables).items():
            (rejected if isinstance(option, str) else options)[name] = option
    if backend != "auto" and backend not in options:
        error = CannotServe(
            f"backend={backend!r} cannot serve this call: {rejected[backend]} ({problem}). "
            "backend='auto' serves every call"
        )
        error.reason = rejected[backend]
        raise error
    if not options:
        reason = "plain PyTorch serves the call step by step, as neither a kernel nor nn.GRU can"
        return Plan(problem, device, "reference", None, "", reason, tuple(rejected.items()))
    verdict = lookup.find_verdict(problem, device, options) if use_tables and len(options) > 1 else None
    # Of a kernel asked for by name the nearest measurement counts, unless one tells its projections apart.
    if verdict and (backend == "auto" or options.keys() <= verdict.milliseconds.keys()):
        name, reason, times = _measured(verdict, problem, options)
        options[name] = options[name]._replace(
            config=verdict.config, projection=verdict.projection, source=verdict.source, is_tuned=bool(verdict.config)
        )
    elif len(options) > 1:
        name, times = _cheapest(options, problem, device)
        reason = f"nn.GRU serves the call, as no kernel is estimated to be faster by {_CLEARLY_PERCENT} % or more"
        if name != "torch":
            reason = _advantage(options[name].kernel, problem)
    else:
        ((name, option),) = options.items()
        is_kernel = option.config is not None
        times = {name: _estimate(option, problem, device)} if is_kernel else {}
        reason = _advantage(name, problem) if is_kernel else _why_torch(problem, device)
    kernel, config, projection, source, tuned = options[name]
    if backend != "auto":
        reason = "asked for by name"
    time = times.pop(name, None)
    # Of the kernels that are not taken, that with our own projection says enough.
    others = rejected | times
    other_projection = others.get(implementation_name(kernel, None if projection == CUBLAS else CUBLAS), "")
    others = tuple((each, why) for each, why in others.items() if each in BACKENDS and each != kernel)
    return Plan(problem, device, kernel, config, source, reason, others, tuned, projection, other_projection, time)


class _Option(NamedTuple):
    """What may serve a call.

    Attributes:
        config: None if the kernel has none to choose.
        source, is_tuned: of `Plan`.
    """

    kernel: str
    config: Config | None = None
    projection: Projection | None = None
    source: str = ""
    is_tuned: bool = False


# What is estimated to be faster by less than these percent may as well be slower.
_CLEARLY_PERCENT = 10
_CLEARLY = 1 - _CLEARLY_PERCENT / 100


def _estimate(option: _Option, problem: Problem, device: Device) -> Estimate:
    """Return the estimated time. Several steps are taken to be in a CUDA graph, where nn.GRU's launches cost least."""
    return Estimate(estimate_call_cost(problem, option.config, device, problem.steps > 1, option.projection))


def _cheapest(options: dict[str, _Option], problem: Problem, device: Device) -> tuple[str, dict[str, Estimate]]:
    """Return the option that is estimated to be the fastest, and all estimates.

    cuBLAS has to be clearly faster than our own projection, and a kernel clearly faster than nn.GRU.
    """
    estimates = {name: _estimate(option, problem, device) for name, option in options.items()}
    costs = {name: estimate.cost for name, estimate in estimates.items()}

    def weighed(name: str) -> float:
        option = options[name]
        if option.projection == CUBLAS and costs[name].total > _CLEARLY * costs[option.kernel].total:
            return math.inf
        return costs[name].total * (_CLEARLY if name == "torch" else 1)

    return min(costs, key=weighed), estimates


def _measured(verdict: Verdict, problem: Problem, options: dict) -> tuple[str, str, dict[str, Measurement]]:
    """Return which of ``options`` was measured to be the fastest, the reason to take it, and the times of all."""
    how, wanted = " in a CUDA graph" * verdict.in_graph, problem.key()
    differing = [
        f"{letter}={getattr(verdict.key, name)}"
        for letter, name in (("T", "steps"), ("I", "input_size"))
        if getattr(verdict.key, name) != getattr(wanted, name)
    ]
    how += f" at {' '.join(differing)}" if differing else ""
    times = {name: Measurement(verdict.milliseconds.get(name), how) for name in options}
    if verdict.winner == "torch":
        reason = "nn.GRU serves the call, as no kernel was measured to be as fast both eager and in a CUDA graph"
    else:
        reason = "no other was clearly faster when measured, nor was nn.GRU, eager or in a CUDA graph"
    return verdict.winner, reason, times


def check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")


def clear_plan_cache() -> None:
    """Plans are made anew, with what tables there are now."""
    choose.cache_clear()


def _options(kernel: str, problem: Problem, device: Device | None, use_tables: bool) -> dict[str, _Option | str]:
    """Return by name how a kernel may serve a problem, with our own projection and with cuBLAS's; or why it cannot."""
    if kernel == "reference":
        return {kernel: _Option(kernel)}
    if kernel == "torch":
        return {kernel: problem.nn_gru_unsupported_reason or _Option(kernel)}
    if reason := _unsupported_reason(problem, device):
        return {kernel: reason}
    config = heuristic(kernel, problem, device)
    if isinstance(config, str):
        return {kernel: config}
    options = {}
    for projection in (None,) if is_fused_step(config, problem) else (None, CUBLAS):
        name = implementation_name(kernel, projection)
        if reason := unsupported_projection_reason(projection, config, problem, device):
            options[name] = reason
        elif found := use_tables and lookup.find_config(name, problem, device):
            options[name] = _Option(kernel, *found, is_tuned=True)
        else:
            options[name] = _Option(kernel, config, projection, "heuristic")
    return options


def _unsupported_reason(problem: Problem, device: Device | None) -> str:
    """Return why no kernel can serve a problem; empty if one may."""
    if device is None:
        return no_device_reason()
    if problem.unsupported_reason:
        return problem.unsupported_reason
    if min(problem.input_size, problem.hidden_size) < 1:  # which nn.GRUCell allows
        return f"no kernel for I = {problem.input_size} and H = {problem.hidden_size}: both must be positive"
    if problem.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"no kernel for {str(problem.dtype)[6:]}"
    return ""


def _advantage(kernel: str, problem: Problem) -> str:
    """Return how a kernel goes about the problem, which is why it may be the fastest."""
    if kernel == "block":
        return "W_hh fits in one program, and stays on chip for the whole sequence"
    if kernel == "grid":
        where = "its hidden units split over the multiprocessors"
        return f"W_hh fits the chip, {where}, and stays there for the whole sequence"
    if problem.is_single_step:
        return "a single step is one launch, which reads W_hh once"
    return "W_hh is read again at every step, which is a launch"


def _why_torch(problem: Problem, device: Device | None) -> str:
    """Return why nn.GRU serves a problem that no kernel can serve."""
    is_without_gpu = device is None and not problem.unsupported_reason
    why = ", which is on no GPU that runs the kernels" if is_without_gpu else ", as no kernel can"
    return f"nn.GRU serves the call{why}"


def _shortcoming(config: Config, problem: Problem) -> str:
    """Return what this Triton makes worse of a kernel than others do; empty if nothing.

    In longer loops each product has an operand of its own (kernels/step.py).
    """
    is_tf32 = problem.dtype == torch.float32 and not problem.is_ieee
    if not (isinstance(config, StepConfig) and is_tf32 and copies_shared_operands()):
        return ""
    is_short = problem.hidden_size <= 4 * config.depth
    return "this version compiles it to a sixth more instructions than 3.6, 3.7 or 3.9 do" if is_short else ""
