"""Tunes one problem: compiles the candidates, checks and times them, and chooses the winner."""

import contextlib
import datetime
import math
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from ..plan.heuristic import HEURISTICS, heuristic
from ..plan.planner import Plan, choose
from ..plan.problem import Problem
from ..plan.tables.entries import Entry
from ..plan.tables.revision import environment
from .bench import Bench
from .progress import Tracker, describe_shape
from .space import IMPLEMENTATIONS, TORCH, Candidate, candidates, projections
from .timing import Times, quantiles
from .verdict import choose_winner

# Screening times a few calls of every candidate, group by group. The candidates of a group are called in turn.
_SCREENING_ROUNDS, _GROUP_SIZE = 10, 16
_MAX_GROUP_SHARE = 0.25  # of the time that is left, for one group, but at least 1 s
# The finals time more calls of the fastest `_FINALISTS` of each implementation.
_FINAL_ROUNDS, _FINALISTS = 60, 4
_COMPILING_SHARE = 0.7  # of the time that is left
# Other projections are tried only for kernels that can still win: those that take at most this many times as long as
# the fastest kernel.
_MAX_PROJECTED_RATIO = 1.3
# Tables store this text, which marks entries that were cut short. If the text changes, such entries of older tables are
# taken for complete.
SKIPPED_BUDGET = "not tried: the time was over"

# (candidate, median milliseconds in the last mode), the fastest first.
Ranking = tuple[tuple[Candidate, float], ...]


class _Stage(NamedTuple):
    """A part of the work on a problem, from ``start`` to ``end`` as fractions of all work, for progress reports."""

    start: float
    end: float


# Required candidates are compiled first, then all others. Then all are checked and timed, and then the fastest scans
# with other projections are compiled, checked and timed. The finals, after the last stage, report no progress.
_REQUIRED_COMPILING = _Stage(0.0, 0.0)
_SCAN_COMPILING, _SCAN_CHECKING, _SCAN_TIMING = _Stage(0.0, 0.5), _Stage(0.5, 0.6), _Stage(0.6, 0.7)
_PROJECTION_COMPILING, _PROJECTION_CHECKING, _PROJECTION_TIMING = _Stage(0.7, 0.8), _Stage(0.8, 0.85), _Stage(0.85, 0.9)


class Run:
    """The tuning of one problem, in about ``seconds``.

    Its methods report to ``progress``, and count the reasons why candidates are dropped.
    """

    def __init__(self, problem: Problem, bench: Bench, seconds: float, progress: Tracker):
        self._problem, self._bench, self._progress = problem, bench, progress
        self._end = time.monotonic() + seconds
        self._failed: Counter[str] = Counter()
        self._incumbents = _find_incumbents(problem, bench)
        heuristics = {kernel: Candidate(kernel, heuristic(kernel, problem, bench.device)) for kernel in HEURISTICS}
        self._untuned = {
            kernel: candidate for kernel, candidate in heuristics.items() if not isinstance(candidate.config, str)
        }
        untuned = _candidate_of_plan(choose(problem, bench.device, use_tables=False))
        self._untuned[untuned.name] = untuned
        # Incumbents and untuned candidates are measured even if the time is over, as others are compared with them.
        required = (*self._incumbents.values(), *self._untuned.values())
        self._required = list(dict.fromkeys(candidate for candidate in required if candidate.config))

    def tune(self) -> tuple[Entry, Ranking] | None:
        """Return the table entry and the ranking; None if no kernel serves the problem, or no candidate runs."""
        key = self._problem.key()
        all_candidates = candidates(self._problem, self._bench.device)
        others = [candidate for candidate in all_candidates if candidate not in self._required]
        if not self._required:
            self._progress.report(f"{describe_shape(key)}: no kernel serves it")
            return None
        compiled = self._compile(self._required, math.inf, _REQUIRED_COMPILING)
        required = ([] if self._problem.nn_gru_unsupported_reason else [TORCH]) + compiled
        compiled += self._compile(others, _COMPILING_SHARE * self._seconds_left, _SCAN_COMPILING)
        with self._bench.open_problem(self._problem):
            correct = self._check(required, compiled, _SCAN_CHECKING)
            screened = self._screen(correct, _SCAN_TIMING)
        projected = self._vary_projections(screened)
        # Not within `open_problem`, so that another tuner can use the GPU while this tuner compiles.
        compiled = self._compile(projected, _COMPILING_SHARE * self._seconds_left, _PROJECTION_COMPILING)
        with self._bench.open_problem(self._problem):
            screened |= self._screen(self._check([], compiled, _PROJECTION_CHECKING), _PROJECTION_TIMING)
            finals = self._time_finalists(screened)
        if not any(finals.values()):
            reasons = "; ".join(f"{count} {reason}" for reason, count in self._failed.most_common(3))
            self._progress.report(f"{describe_shape(key)}: nothing runs: {reasons}")
            return None
        winner, results = choose_winner(self._incumbents, self._untuned, finals)
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        # Reasons that contain numbers may be many, so the rarest are dropped.
        failed = dict(self._failed.most_common(20))
        tried = len(self._required) + len(others) + len(projected)
        entry = Entry(key, winner, results, tried, failed, environment(), now)
        medians = {candidate: times.p50 for candidate, times in finals[self._bench.modes[-1]].items()}
        return entry, tuple(sorted(medians.items(), key=lambda pair: pair[1]))

    @property
    def _seconds_left(self) -> float:
        """Return the seconds that are left for this problem, below 0 if the time is over."""
        return self._end - time.monotonic()

    def _report(self, doing: str, fraction: float, stage: _Stage) -> None:
        """Report the activity, and that ``fraction`` of the stage is done."""
        self._progress.update(doing, stage.start + fraction * (stage.end - stage.start))

    def _compile(self, todo: list[Candidate], seconds: float, stage: _Stage) -> list[Candidate]:
        """Return the candidates of ``todo`` that compile within ``seconds``."""
        compiled, failed = [], 0
        for candidate, reason in self._bench.compile(self._problem, todo, seconds) if todo else ():
            if reason:
                self._failed[reason] += 1
                failed += 1
            else:
                compiled.append(candidate)
            done = len(compiled) + failed
            self._report(f"compiling {done} of {len(todo)}", done / len(todo), stage)
        self._failed += Counter({SKIPPED_BUDGET: len(todo) - len(compiled) - failed})  # "+=" drops counts of 0
        return compiled

    def _check(self, required: list[Candidate], compiled: list[Candidate], stage: _Stage) -> list[Candidate]:
        """Return the candidates whose results are correct. ``required`` ones are checked even if the time is over."""
        correct, todo = [], list(dict.fromkeys(required + compiled))
        for done, candidate in enumerate(todo):
            self._report(f"checking {done} of {len(todo)}", done / len(todo), stage)
            is_too_late = self._seconds_left < 0 and candidate not in required
            if reason := SKIPPED_BUDGET if is_too_late else self._bench.judge(candidate):
                self._failed[reason] += 1
            else:
                correct.append(candidate)
        return correct

    def _screen(self, correct: list[Candidate], stage: _Stage) -> dict[Candidate, Times]:
        """Return the times of a few calls of each candidate.

        Candidates that cannot be timed are left out. So are all groups after the first group, once the time is over.
        """
        bench, screened = self._bench, {}
        for start in range(0, len(correct), _GROUP_SIZE):
            group = correct[start : start + _GROUP_SIZE]
            self._report(f"timing {start} of {len(correct)}", start / len(correct), stage)
            if start > 0 and self._seconds_left < 0:
                self._failed[SKIPPED_BUDGET] += len(group)
                continue
            seconds = max(1.0, self._seconds_left * _MAX_GROUP_SHARE)
            times = bench.time_candidates(group, bench.modes[-1], _SCREENING_ROUNDS, seconds)
            self._failed += Counter({"it could not be timed": len(group) - len(times)})
            screened |= {candidate: quantiles(milliseconds) for candidate, milliseconds in times.items()}
        return screened

    def _vary_projections(self, screened: dict[Candidate, Times]) -> list[Candidate]:
        """Return the fastest candidate of each kernel with other projections. Kernels that cannot win are left out."""
        fastest = {}
        for candidate in sorted(screened, key=_median_of(screened)):
            if candidate != TORCH:
                fastest.setdefault(candidate.kernel, candidate)
        fastest_ms = min((screened[candidate].p50 for candidate in fastest.values()), default=0.0)
        varied = [
            candidate._replace(projection=projection)
            for candidate in fastest.values()
            if screened[candidate].p50 <= _MAX_PROJECTED_RATIO * fastest_ms
            for projection in projections(self._problem, candidate.config, self._bench.device)
        ]
        return [candidate for candidate in varied if candidate not in screened]

    def _time_finalists(self, screened: dict[Candidate, Times]) -> dict[str, dict[Candidate, Times]]:
        """Return the finalists' times by mode. A finalist that cannot be timed in every mode is left out."""
        # nn.GRU, incumbents, untuned candidates, and the fastest of each implementation.
        bench, by_time = self._bench, sorted(screened, key=_median_of(screened))
        finalists = [candidate for candidate in (TORCH, *self._required) if candidate in screened]
        for name in IMPLEMENTATIONS:
            finalists += [candidate for candidate in by_time if candidate.name == name][:_FINALISTS]
        finalists = list(dict.fromkeys(finalists))
        times_by_mode = {
            mode: bench.time_candidates(finalists, mode, _FINAL_ROUNDS, max(2.0, self._seconds_left / 2))
            for mode in bench.modes
        }
        timed = [candidate for candidate in finalists if all(candidate in times for times in times_by_mode.values())]
        return {
            mode: {candidate: quantiles(times[candidate]) for candidate in timed}
            for mode, times in times_by_mode.items()
        }


def _median_of(times: dict[Candidate, Times]) -> Callable[[Candidate], float]:
    """Return a sort key: the function from a candidate to its median time."""
    return lambda candidate: times[candidate].p50


def _find_incumbents(problem: Problem, bench: Bench) -> dict[str, Candidate]:
    """Return the candidates that plans take now: implementation -> candidate, and "" -> the candidate of ``"auto"``."""
    incumbents = {"": _candidate_of_plan(choose(problem, bench.device))}
    for kernel in HEURISTICS:
        with contextlib.suppress(RuntimeError):  # the kernel cannot serve this problem
            candidate = _candidate_of_plan(choose(problem, bench.device, kernel))
            incumbents[candidate.name] = candidate
    return incumbents


def _candidate_of_plan(plan: Plan) -> Candidate:
    """Return the candidate that a plan runs."""
    return Candidate(plan.kernel, plan.config, plan.projection)
