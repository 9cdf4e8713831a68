"""The choice of the kernel that serves a call and of its configuration, with reasons against the other kernels.

Measured times decide, from a tuned table for the device or a similar one (triton_gru/tuning). Without measured times,
estimates decide (cost.py).
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
    """The error of a backend that cannot serve a call. ``reason`` says why."""

    reason = ""  # not an argument of the constructor, because pickle passes only the message to it


class Estimate(NamedTuple):
    """The time of a call by the cost model. ``str`` makes its text, so that planning does not wait for the text."""

    cost: Cost

    def __str__(self) -> str:
        return f"estimated {self.cost}"


class Measurement(NamedTuple):
    """The time of a call from a table.

    Attributes:
        milliseconds: the median, or None if the call was not measured.
        how: the conditions of the measurement, each after a space: ``" in a CUDA graph at T=64"``.
    """

    milliseconds: float | None
    how: str = ""

    @property
    def time(self) -> str:
        """Return the median as text. The call must have been measured."""
        return format_time(1000 * self.milliseconds)

    def __str__(self) -> str:
        return "not measured" if self.milliseconds is None else f"measured {self.time}"


@rename_attributes(rejected="rejection_reasons", others="alternatives", tuned="is_tuned")
@dataclass(frozen=True)
class Plan:
    """The result of `choose`: what serves a call, and why. ``str`` makes a report.

    Attributes:
        problem: the call.
        device: the device that the call would run on, or None if no kernel runs there.
        kernel: ``"block"``, ``"grid"``, ``"step"``, ``"torch"`` (nn.GRU) or ``"reference"`` (plain torch, one step at a
            time).
        config: the kernel's configuration, or None if it has none.
        source: where the configuration comes from: ``"heuristic"``, or a table with its date and state. It is '' for
            nn.GRU if no table decided, for ``"reference"``, and for a configuration that tuning tries.
        reason: why this kernel was chosen.
        alternatives: (kernel, reason or time) for each kernel that was not chosen. Empty if the backend was asked for
            by name.
        is_tuned: whether the configuration comes from a table.
        projection: how the input projection is computed. None stands for our kernel with its usual tile, for nn.GRU,
            and for ``"reference"``.
        other_projection: the time of the kernel with the projection that was not chosen (ours or cuBLAS's), or why it
            cannot be used. Empty if the kernel has no choice of projection.
        time: the estimated or measured time, or None if there is neither.
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
        """Return the name of the kernel with its projection: ``"grid+cublas"``, or ``"grid"`` with our projection."""
        return implementation_name(self.kernel, self.projection)

    @property
    def rejection_reasons(self) -> tuple[tuple[str, str], ...]:
        """Return `alternatives` as (kernel, text): the kernel's time, "not measured", or why it cannot serve."""
        return tuple((kernel, str(reason)) for kernel, reason in self.alternatives)

    def __str__(self) -> str:
        """Return a report: the kernel and the reason for it, then a line for each fact."""
        rows = [f"  {label:9}  {text}" for label, text in self._rows()]
        return "\n".join([f"{self.kernel}: {self.reason}", *rows])

    def _rows(self) -> Iterator[tuple[str, object]]:
        """Yield (label, content) of each row of the report."""
        # The precision is that of the kernels' products. Leave it out if there is no device that runs kernels.
        yield "call", self.problem if self.device else dataclasses.replace(self.problem, precision="")
        yield "GPU", self.device.name if self.device else "no GPU that runs the kernels"
        if self.config is not None:
            yield "config", f"{_describe_fields(self.config)}{self._config_origin}"
        if self.other_projection:
            yield "inputs", f"projected by {self._projection_text}; {self._other_projection_text}"
        if isinstance(self.time, Estimate):
            yield "estimated", self.time.cost
        elif self.time:
            yield "measured", f"{self.time.time}{self.time.how} ({self.source})"
        if shortcoming := self.config and _triton_shortcoming(self.config, self.problem):
            yield "Triton", shortcoming
        kernels_by_reason: dict[str, list[str]] = {}
        for kernel, reason in self.rejection_reasons:
            kernels_by_reason.setdefault(reason, []).append(kernel)
        for reason, kernels in kernels_by_reason.items():
            yield f"not {', '.join(kernels)}", reason
        if isinstance(self.time, Estimate):
            mode = "are for a call in a CUDA graph"
            if self.problem.steps == 1:
                mode = "leave out the host (nn.GRU: eager)"
            yield "estimates", f"{mode}, by a model fitted to an H200; `triton-gru tune` measures times"

    @property
    def _config_origin(self) -> str:
        """Return where the configuration comes from, as text for its row. '' for a configuration that tuning tries.

        A table's name is left out if the time is measured, because the row of the time names the table.
        """
        if self.source == "heuristic":
            return " (chosen by the heuristic, not tuned)"
        if not self.is_tuned:
            return ""
        return " (tuned)" if isinstance(self.time, Measurement) else f" (tuned: {self.source})"

    @property
    def _projection_text(self) -> str:
        """Return how the input projection is computed, as text."""
        if isinstance(self.projection, ProjectionConfig):
            return f"our kernel, {_describe_fields(self.projection)}"
        return "cuBLAS" if self.projection == CUBLAS else "our kernel"

    @property
    def _other_projection_text(self) -> str:
        """Return as text the time of the call with the projection that was not chosen, or why there is no time."""
        name, other = "our kernel" if self.projection == CUBLAS else "cuBLAS", self.other_projection
        if isinstance(other, Measurement):
            return f"with {name} the call {'was not measured' if other.milliseconds is None else f'took {other.time}'}"
        if not isinstance(other, Estimate):
            return f"not by {name}: {other}"
        return f"with {name} the call is estimated to take {format_time(other.cost.total)}"


def _describe_fields(config: Config | ProjectionConfig) -> str:
    """Return the fields of a configuration as text: ``"units=16, programs=32"``."""
    return ", ".join(f"{field.name}={getattr(config, field.name)}" for field in dataclasses.fields(config))


@functools.lru_cache(maxsize=4096)
def choose(problem: Problem, device: Device | None, backend: str = "auto", use_tables: bool = True) -> Plan:
    """Return the plan for a problem on a device. ``device`` is None if no kernel runs there.

    Without ``use_tables`` the plan is made as if no tuned table existed.

    Raises:
        ValueError: ``backend`` names no backend.
        CannotServe: ``backend`` names one that cannot serve this problem. ``"auto"`` never raises.
    """
    check_backend(backend)
    options, reasons = _collect_options(problem, device, backend, use_tables)
    if backend != "auto" and backend not in options:
        error = CannotServe(
            f"backend={backend!r} cannot serve this call: {reasons[backend]} ({problem}). "
            "backend='auto' serves every call"
        )
        error.reason = reasons[backend]
        raise error
    if not options:
        reason = "plain PyTorch serves the call step by step, as neither a kernel nor nn.GRU can"
        return Plan(problem, device, "reference", None, "", reason, tuple(reasons.items()))
    choice = _choose_option(options, problem, device, backend, use_tables)
    kernel, config, projection, source, is_tuned = choice.option
    other_times = {name: time for name, time in choice.times.items() if name != choice.name}
    alternatives = reasons | other_times
    other_projection = alternatives.get(implementation_name(kernel, None if projection == CUBLAS else CUBLAS), "")
    return Plan(
        problem,
        device,
        kernel,
        config,
        source,
        choice.reason if backend == "auto" else "asked for by name",
        _select_other_kernels(alternatives, kernel),
        is_tuned,
        projection,
        other_projection,
        choice.times.get(choice.name),
    )


class _Option(NamedTuple):
    """A kernel with a projection, or nn.GRU, that can serve a call.

    Attributes:
        kernel: as in `Plan`.
        config: the kernel's configuration, or None if it has none.
        projection, source, is_tuned: as in `Plan`.
    """

    kernel: str
    config: Config | None = None
    projection: Projection | None = None
    source: str = ""
    is_tuned: bool = False


class _Choice(NamedTuple):
    """The option that serves a call.

    Attributes:
        name: name of the option's implementation.
        option: the option. If a table decided, it has the table's configuration.
        reason: why the option was chosen.
        times: the time of each option by implementation. Either all are estimates, or all are measurements, without
            milliseconds for an option that the verdict lacks. Empty if the only option is nn.GRU or ``"reference"``.
    """

    name: str
    option: _Option
    reason: str
    times: dict[str, Estimate | Measurement]


def _collect_options(
    problem: Problem, device: Device | None, backend: str, use_tables: bool
) -> tuple[dict[str, _Option], dict[str, str]]:
    """Return the options that can serve the problem, and reasons why the rest cannot, both by implementation."""
    options, reasons = {}, {}
    for kernel in (*KERNELS, "torch") if backend == "auto" else (backend,):
        for name, option_or_reason in _find_options(kernel, problem, device, use_tables).items():
            (reasons if isinstance(option_or_reason, str) else options)[name] = option_or_reason
    return options, reasons


def _choose_option(
    options: dict[str, _Option], problem: Problem, device: Device | None, backend: str, use_tables: bool
) -> _Choice:
    """Return the choice among options: by measured times if a table has a verdict, else by estimates.

    A single option is chosen without a verdict. If ``backend`` names a kernel, all options are this kernel with
    different projections. A verdict then decides only if it has the times of all of them. Otherwise each option keeps
    its configuration, which a table may have for a similar problem, and estimates choose the projection.
    """
    if len(options) == 1:
        ((name, option),) = options.items()
        if option.config is None:
            return _Choice(name, option, _nn_gru_reason(problem, device), {})
        return _Choice(name, option, _describe_advantage(name, problem), {name: _estimate(option, problem, device)})
    verdict = lookup.find_verdict(problem, device, options) if use_tables else None
    if verdict and (backend == "auto" or options.keys() <= verdict.milliseconds.keys()):
        return _choose_measured(options, problem, verdict)
    return _choose_estimated(options, problem, device)


def _select_other_kernels(
    alternatives: dict, chosen_kernel: str
) -> tuple[tuple[str, str | Estimate | Measurement], ...]:
    """Return (kernel, reason or time) of kernels that were not chosen, each with our own projection only.

    ``alternatives`` are by implementation. With our own projection, an implementation has the name of its kernel.
    """
    return tuple(
        (name, reason_or_time)
        for name, reason_or_time in alternatives.items()
        if name in BACKENDS and name != chosen_kernel
    )


# A kernel whose estimate is lower by less than this may still be slower. The median error of estimates is 12 % on an
# H200 (perf/NOTES.md).
_MIN_SPEEDUP_PERCENT = 10
_MAX_TIME_RATIO = 1 - _MIN_SPEEDUP_PERCENT / 100


def _estimate(option: _Option, problem: Problem, device: Device) -> Estimate:
    """Return the estimated time of an option: in a CUDA graph, where nn.GRU is fastest, or of one step eager."""
    in_graph = problem.steps > 1
    return Estimate(estimate_call_cost(problem, option.config, device, in_graph, option.projection))


def _choose_estimated(options: dict[str, _Option], problem: Problem, device: Device) -> _Choice:
    """Return the choice of the option with the lowest estimate.

    cuBLAS has to be faster than our own projection by `_MIN_SPEEDUP_PERCENT`, and so has a kernel than nn.GRU.
    """
    estimates = {name: _estimate(option, problem, device) for name, option in options.items()}
    totals = {name: estimate.cost.total for name, estimate in estimates.items()}

    def weigh(name: str) -> float:
        option = options[name]
        if option.projection == CUBLAS and totals[name] > _MAX_TIME_RATIO * totals[option.kernel]:
            return math.inf
        return totals[name] * (_MAX_TIME_RATIO if name == "torch" else 1)

    name = min(totals, key=weigh)
    reason = f"nn.GRU serves the call, as no kernel is estimated to be faster by {_MIN_SPEEDUP_PERCENT} % or more"
    if name != "torch":
        reason = _describe_advantage(options[name].kernel, problem)
    return _Choice(name, options[name], reason, estimates)


def _choose_measured(options: dict[str, _Option], problem: Problem, verdict: Verdict) -> _Choice:
    """Return the choice of the verdict's winner, with its configuration, and the times that the verdict has."""
    wanted = problem.key()
    differing = [
        f"{letter}={getattr(verdict.key, name)}"
        for letter, name in (("T", "steps"), ("I", "input_size"))
        if getattr(verdict.key, name) != getattr(wanted, name)
    ]
    how = " in a CUDA graph" * verdict.in_graph + (f" at {' '.join(differing)}" if differing else "")
    times = {name: Measurement(verdict.milliseconds.get(name), how) for name in options}
    if verdict.winner == "torch":
        reason = "nn.GRU serves the call, as no kernel was measured to be as fast both eager and in a CUDA graph"
    else:
        reason = "measured: no other kernel was clearly faster, and nn.GRU was not, eager or in a CUDA graph"
    option = options[verdict.winner]._replace(
        config=verdict.config, projection=verdict.projection, source=verdict.source, is_tuned=bool(verdict.config)
    )
    return _Choice(verdict.winner, option, reason, times)


def check_backend(backend: str) -> None:
    """Raise ValueError if ``backend`` names no backend."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")


# Stands for the plans in force. `clear_plan_cache` replaces it, which outdates what callers have derived from plans.
generation = object()


def clear_plan_cache() -> None:
    """Forget all plans, and with them the cached routes of modules and streams (launch/call_cache.py).

    Later plans also use entries that this process has added since (`lookup.add_process_entries`). Files are not read
    again. Exception: after `lookup.clear_table_cache`.
    """
    global generation
    choose.cache_clear()
    generation = object()


def _find_options(kernel: str, problem: Problem, device: Device | None, use_tables: bool) -> dict[str, _Option | str]:
    """Return the options of a kernel by implementation: with our own projection, and with cuBLAS's.

    Exception: a single step on ``step`` has only the first. An implementation that cannot serve the problem has the
    reason as text in place of an option. If the kernel cannot serve it at all, only the kernel's name has a reason.
    ``kernel`` may also be ``"torch"`` or ``"reference"``.
    """
    if kernel == "reference":
        return {kernel: _Option(kernel)}
    if kernel == "torch":
        return {kernel: problem.nn_gru_unsupported_reason or _Option(kernel)}
    if reason := _unsupported_reason(problem, device):
        return {kernel: reason}
    config_or_reason = heuristic(kernel, problem, device)
    if isinstance(config_or_reason, str):
        return {kernel: config_or_reason}
    config, options = config_or_reason, {}
    for projection in (None,) if is_fused_step(config, problem) else (None, CUBLAS):
        name = implementation_name(kernel, projection)
        if reason := unsupported_projection_reason(projection, config, problem, device):
            options[name] = reason
        elif tuned := use_tables and lookup.find_config(name, problem, device):
            tuned_config, tuned_projection, source = tuned
            options[name] = _Option(kernel, tuned_config, tuned_projection, source, is_tuned=True)
        else:
            options[name] = _Option(kernel, config, projection, "heuristic")
    return options


def _unsupported_reason(problem: Problem, device: Device | None) -> str:
    """Return why no kernel in any configuration can serve a problem on a device, or ''.

    A GPU that is too old is not found here: `heuristic` returns that reason.
    """
    if device is None:
        return no_device_reason()
    if problem.unsupported_reason:
        return problem.unsupported_reason
    if min(problem.input_size, problem.hidden_size) < 1:  # nn.GRUCell allows size 0
        return f"no kernel for I = {problem.input_size} and H = {problem.hidden_size}: both must be positive"
    if problem.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"no kernel for {str(problem.dtype).removeprefix('torch.')}"
    return ""


def _describe_advantage(kernel: str, problem: Problem) -> str:
    """Return how a kernel handles W_hh for this problem, which is why it may be the fastest."""
    if kernel == "block":
        return "W_hh fits in one program, and stays on chip for the whole sequence"
    if kernel == "grid":
        return "W_hh fits the chip if split over its multiprocessors, and stays there for the whole sequence"
    if problem.is_single_step:
        return "a single step reads W_hh once, so that keeping W_hh on chip would gain nothing"
    return "each step is a launch, which reads W_hh again"


def _nn_gru_reason(problem: Problem, device: Device | None) -> str:
    """Return why nn.GRU serves a problem that no kernel can serve."""
    if device is None and not problem.unsupported_reason:
        return "nn.GRU serves the call, as it is not on a GPU that runs the kernels"
    return "nn.GRU serves the call, as no kernel can"


def _triton_shortcoming(config: Config, problem: Problem) -> str:
    """Return a warning if this version of Triton compiles the kernel to slower code than other versions do, or ''.

    Only ``step`` in TF32 is slower, and only if its loop over hidden units has at most four iterations. In a longer
    loop each product has a separate copy of the operand in any version (kernels/step.py).
    """
    is_tf32 = problem.dtype == torch.float32 and not problem.is_ieee
    if not (isinstance(config, StepConfig) and is_tf32 and copies_shared_operands()):
        return ""
    is_short = problem.hidden_size <= 4 * config.depth
    return "this version compiles the kernel to 16 % more instructions than 3.6, 3.7 and 3.9 do" if is_short else ""
