"""Counts the work of one time step of a scan, as compiled for a GPU: instructions, bytes and products, not time.

``test_counts.py`` asserts the numbers.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable

import torch
from torch.nn.utils.rnn import pack_padded_sequence

from triton_gru.call.bind import bind_gru
from triton_gru.launch import execute
from triton_gru.launch.kernel_launch import Launch
from triton_gru.plan.config import Config
from triton_gru.plan.heuristic import HEURISTICS

from ..calls import PRECISIONS, make_gru
from .device import EmulatedGpu
from .machine import Outcome

# The numbers of steps of two calls, whose difference is the work of MORE - FEWER steps. If a loop makes more than two
# steps at a time, the longer call of `count_step` has more steps than MORE.
FEWER, MORE = 2, 4
# Lanes meet as early as possible, so that no instruction is counted once for each half of a warp.
SCHEDULE = {"seed": 1, "quantum": 1000, "delay": 0, "sleeps": False, "resident": 0}
SCHEDULE |= {"reconverge_late": False, "reconverge_early": True}


@dataclasses.dataclass(frozen=True)
class Case:
    """A kind of call: a kernel, its sizes and precision, and where its sequences end.

    Attributes:
        kernel: one of `planner.KERNELS`, or ``"whole"``, the kernel of ``step`` for a call of a single step.
        ends: ``"dense"``, ``"lengths"``, ``"packed"`` or ``"resets"``.
    """

    kernel: str
    hidden: int
    batch: int
    precision: str
    ends: str = "dense"
    is_bidirectional: bool = False
    reset_after: bool = True

    def __str__(self) -> str:
        options = [
            "" if self.ends == "dense" else self.ends,
            "both directions" if self.is_bidirectional else "",
            "" if self.reset_after else "reset before",
        ]
        return " ".join([f"{self.kernel} H{self.hidden} B{self.batch} {self.precision}", *filter(None, options)])

    @property
    def backend(self) -> str:
        """Return the backend that has the kernel."""
        return "step" if self.kernel == "whole" else self.kernel

    def config(self, device) -> Config | str:
        """Return the configuration that the heuristic chooses, or why the kernel does not serve the case."""
        return HEURISTICS[self.backend](
            self.hidden, self.batch, 1 + self.is_bidirectional, *PRECISIONS[self.precision], device
        )


def count_step(gpu: EmulatedGpu, case: Case, config: Config | None = None) -> Counter:
    """Execute two calls of a few steps, and return the work of one step in all programs, without its projection.

    Exception: for ``"whole"``, one call of a single step is executed, and its projection is included.

    If all programs do the same, only one is executed, and the hand-overs that it would wait for are already there.
    ``config`` is the kernel's configuration, or None for the heuristic's choice.

    Returns:
        Numbers by name.

        - Of the step: ``"launches"``.
        - Of a launch: ``"programs"``, and ``"warps"`` of a program.
        - Of all programs: ``"matrix"`` and ``"flops"`` of the matrix unit; ``"fma"``, fused multiply-adds of fp32, each
          of a thread.
        - Of all programs, in bytes: ``"shared"``, ``"read"``, ``"received"`` and ``"written"``. The last three are also
          counted by argument, as ``"read gi"``.
        - Of a program: ``"busiest"`` and ``"idlest"``, the instructions of the warps with most and fewest;
          ``"barriers"``; ``"exchanges"``, as in `Outcome`.
        - ``"twice"``: the number of stores that write what another warp has written, and of forgiven faults.

        ``"twice"``, ``"programs"`` and ``"warps"`` are those of the longer call, and all others are of one step.
    """
    gpu.fixed_schedule = dict(SCHEDULE)
    config = config or case.config(gpu.device)
    assert not isinstance(config, str), config
    gru = make_gru(
        case.hidden if case.kernel == "whole" else 16, case.hidden, case.precision, "cpu", case.backend,
        bidirectional=case.is_bidirectional, reset_after=case.reset_after,
    )  # fmt: skip
    if case.kernel == "whole":
        return _count_call(gpu, case, config, gru, 1)
    difference = max(MORE - FEWER, getattr(config, "ahead", 1))
    return _count_one_step(lambda steps: _count_call(gpu, case, config, gru, steps), FEWER, FEWER + difference)


def count_calls(gpu: EmulatedGpu, call: Callable[[int], object], fewer: int, more: int) -> Counter:
    """Execute the launches of ``call(fewer)`` and ``call(more)``, and return the work of a step, as `count_step`."""
    gpu.fixed_schedule = dict(SCHEDULE)

    def count(steps: int) -> Counter:
        counted, outcomes_before = Counter(), len(gpu.outcomes)
        call(steps)
        for outcome in gpu.outcomes[outcomes_before:]:
            _add_launch(counted, outcome, times=1, programs=outcome.ctas)
        return counted

    return _count_one_step(count, fewer, more)


def _count_one_step(count: Callable[[int], Counter], fewer: int, more: int) -> Counter:
    """Return the work of one step: the difference of ``count(more)`` and ``count(fewer)``, divided by the steps."""
    short, long = count(fewer), count(more)
    step = Counter({name: (long[name] - short[name]) / (more - fewer) for name in long})
    # Exception: these are numbers of the longer call, not a difference. `update` adds.
    step.update({name: long[name] - step[name] for name in ("twice", "programs", "warps")})
    return step


def _add_launch(counted: Counter, outcome: Outcome, times: int, programs: int) -> None:
    """Add the work of a launch of ``programs`` programs to ``counted``: ``times`` times the work of ``outcome``."""
    made, busiest = outcome.made, outcome.busiest
    counted.update({"busiest": max(outcome.by_warp), "idlest": min(outcome.by_warp), "barriers": busiest.barriers})
    counted.update({"twice": len(outcome.notes), "launches": 1, "exchanges": outcome.exchanges})
    counted["programs"], counted["warps"] = max(counted["programs"], programs), outcome.warps
    work = {"matrix": made.matrix, "flops": made.flops, "fma": 32 * made.fma}
    work["shared"] = made.shared_read + made.shared_written
    for name, traffic in (("", made), *outcome.memory.items()):
        for direction in ("read", "received", "written"):
            work[f"{direction} {name}".strip()] = getattr(traffic, direction)
    counted.update({name: times * amount for name, amount in work.items()})


def _count_call(gpu: EmulatedGpu, case: Case, config: Config, gru, steps: int) -> Counter:
    """Return the work of the scans of a call of ``steps`` steps."""
    counted = Counter()
    for scan in _make_scans(gpu, case, config, gru, steps):
        if scan.fill is not None:
            scan.fill.words.zero_()  # no element of the mailbox is missing
        if are_alike := _are_programs_alike(case, config):
            gpu.run_program(scan, (0, 0, 0))
        else:
            gpu.make_starter(scan)(*scan.args)
        outcome, programs = gpu.outcomes[-1], math.prod(scan.programs)
        _add_launch(counted, outcome, times=programs if are_alike else 1, programs=programs)
        assert not any(dataclasses.astuple(outcome.waited)), "a program waited"
    return counted


def _make_scans(gpu: EmulatedGpu, case: Case, config: Config, gru, steps: int) -> list[Launch]:
    """Return the launches of a call of ``steps`` steps with zeros as input, without the input projection."""
    dtype = gru.weight_hh_l0.dtype
    x = torch.zeros(steps, case.batch, gru.input_size, dtype=dtype)
    hx = torch.zeros(1 + case.is_bidirectional, case.batch, case.hidden, dtype=dtype)
    lengths = torch.full((case.batch,), steps)
    resets = torch.zeros(steps, case.batch, dtype=torch.bool) if case.ends == "resets" else None
    if case.ends == "packed":
        x = pack_padded_sequence(x, lengths)
    call = bind_gru(gru, x, hx, lengths if case.ends == "lengths" else None, resets)
    launches = execute.launches(call, config, gpu.device, *execute.allocate(call))
    return [launch for launch in launches if launch.kernel.__name__ != "input_projection"]


def _are_programs_alike(case: Case, config: Config) -> bool:
    """Return whether all programs do the same, on different memory: none has a tail that another program lacks.

    A tail is of units, rows or tiles.
    """
    tiles = -(-case.batch // config.batch)
    groups = -(-tiles // getattr(config, "tiles", 1)) if case.kernel == "grid" else tiles
    return (
        case.hidden % config.units == 0
        and (case.batch % config.batch == 0 or tiles == 1)
        and (case.kernel != "grid" or groups % config.copies == 0)
    )
