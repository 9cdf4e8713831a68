"""Tunes one problem: compiles what may be fastest, times what is right, and concludes."""

import contextlib
import datetime
import math
import time
from collections import Counter

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

# Rounds of a first look at all that compiled, of so many in turn, and of the finals between the fastest of each kernel.
_SCREENING_ROUNDS, _GROUP_SIZE, _FINAL_ROUNDS, _FINALISTS = 10, 16, 60, 4
# Of the time that there is, for compiling.
_COMPILING = 0.7
# Of the work, when what follows is done: scans compiled, judged, timed; then the same with other projections.
_SCANS_COMPILED, _SCANS_JUDGED, _SCANS_TIMED = 0.5, 0.6, 0.7
_COMPILED, _JUDGED, _TIMED = 0.8, 0.85, 0.9
# Scans that take more than so many times as long as the fastest have their projection as it is.
_IN_REACH = 1.3
SKIPPED_BUDGET = "not tried: the time was over"

# (candidate, median milliseconds in the mode that counts), the fastest first.
Ranking = tuple[tuple[Candidate, float], ...]


class Run:
    """The tuning of one problem, in about so many ``seconds``."""

    def __init__(self, problem: Problem, bench: Bench, seconds: float, progress: Tracker):
        self._problem, self._bench, self._progress = problem, bench, progress
        self._end = time.monotonic() + seconds
        self._failed: Counter[str] = Counter()
        self._before = _incumbents(problem, bench)
        heuristics = {kernel: Candidate(kernel, heuristic(kernel, problem, bench.device)) for kernel in HEURISTICS}
        self._untuned = {kernel: each for kernel, each in heuristics.items() if not isinstance(each.config, str)}
        untuned = _candidate(choose(problem, bench.device, use_tables=False))
        self._untuned[untuned.name] = untuned
        # What runs now and what would untuned are measured whatever the time: without them there is nothing to compare.
        here = (*self._before.values(), *self._untuned.values())
        self._first = list(dict.fromkeys(each for each in here if each.config))

    def tune(self) -> tuple[Entry, Ranking] | None:
        """Return what was found; None if nothing serves the problem, or nothing runs."""
        key = self._problem.key()
        rest = [each for each in candidates(self._problem, self._bench.device) if each not in self._first]
        if not self._first:
            self._progress.report(f"{describe_shape(key)}: no kernel serves it")
            return None
        compiled = self._compile(self._first, math.inf, 0.0, 0.0)
        must = ([] if self._problem.nn_gru_unsupported_reason else [TORCH]) + compiled
        compiled += self._compile(rest, _COMPILING * self._left, 0.0, _SCANS_COMPILED)
        with self._bench.open_problem(self._problem):
            right = self._right(must, compiled, _SCANS_COMPILED, _SCANS_JUDGED)
            look = self._look(right, _SCANS_JUDGED, _SCANS_TIMED)
        others = self._otherwise_projected(look)
        # Outside, for compilers disturb who times.
        compiled = self._compile(others, _COMPILING * self._left, _SCANS_TIMED, _COMPILED)
        with self._bench.open_problem(self._problem):
            look |= self._look(self._right([], compiled, _COMPILED, _JUDGED), _JUDGED, _TIMED)
            finals = self._finals(look)
        if not any(finals.values()):
            reasons = "; ".join(f"{number} {why}" for why, number in self._failed.most_common(3))
            self._progress.report(f"{describe_shape(key)}: nothing runs: {reasons}")
            return None
        winner, results = choose_winner(self._before, self._untuned, finals)
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        # The reasons may have numbers in them: the rarest are not worth their lines.
        failed = dict(self._failed.most_common(20))
        tried = len(self._first) + len(rest) + len(others)
        entry = Entry(key, winner, results, tried, failed, environment(), now)
        medians = {each: times.p50 for each, times in finals[self._bench.modes[-1]].items()}
        return entry, tuple(sorted(medians.items(), key=lambda each: each[1]))

    @property
    def _left(self) -> float:
        return self._end - time.monotonic()

    def _at(self, doing: str, fraction: float, start: float, end: float) -> None:
        """Report that ``fraction`` is done of what goes from ``start`` to ``end`` of the work. So below."""
        self._progress.update(doing, start + fraction * (end - start))

    def _compile(self, todo: list[Candidate], seconds: float, start: float, end: float) -> list[Candidate]:
        """Return the candidates that compile within so many ``seconds``."""
        compiled, failed = [], 0
        for candidate, why in self._bench.compile(self._problem, todo, seconds) if todo else ():
            if why:
                self._failed[why] += 1
                failed += 1
            else:
                compiled.append(candidate)
            done = len(compiled) + failed
            self._at(f"compiling {done} of {len(todo)}", done / len(todo), start, end)
        self._failed += Counter({SKIPPED_BUDGET: len(todo) - len(compiled) - failed})  # which drops what is zero
        return compiled

    def _right(self, must: list[Candidate], compiled: list[Candidate], start: float, end: float) -> list[Candidate]:
        """Return those that are right. Those that ``must`` be there are run whatever the time."""
        right, todo = [], list(dict.fromkeys(must + compiled))
        for done, candidate in enumerate(todo):
            self._at(f"checking {done} of {len(todo)}", done / len(todo), start, end)
            too_late = self._left < 0 and candidate not in must
            if why := SKIPPED_BUDGET if too_late else self._bench.judge(candidate):
                self._failed[why] += 1
            else:
                right.append(candidate)
        return right

    def _look(self, right: list[Candidate], start: float, end: float) -> dict[Candidate, Times]:
        """Return the times of a few calls of each that can be timed."""
        bench, look = self._bench, {}
        for first in range(0, len(right), _GROUP_SIZE):
            group = right[first : first + _GROUP_SIZE]
            self._at(f"timing {first} of {len(right)}", first / len(right), start, end)
            if first > 0 and self._left < 0:
                self._failed[SKIPPED_BUDGET] += len(group)
                continue
            times = bench.time_candidates(group, bench.modes[-1], _SCREENING_ROUNDS, max(1.0, self._left / 4))
            self._failed += Counter({"it could not be timed": len(group) - len(times)})
            look |= {each: quantiles(taken) for each, taken in times.items()}
        return look

    def _otherwise_projected(self, look: dict[Candidate, Times]) -> list[Candidate]:
        """Return the fastest of each kernel with other projections, where the kernel itself is not out of reach."""
        fastest = {}
        for each in sorted(look, key=lambda each: look[each].p50):
            if each != TORCH:
                fastest.setdefault(each.kernel, each)
        least = min((look[each].p50 for each in fastest.values()), default=0.0)
        found = [
            each._replace(projection=projection)
            for each in fastest.values()
            if look[each].p50 <= _IN_REACH * least
            for projection in projections(self._problem, each.config, self._bench.device)
        ]
        return [each for each in found if each not in look]

    def _finals(self, look: dict[Candidate, Times]) -> dict[str, dict[Candidate, Times]]:
        """Return the finalists' times by mode, of those that can be timed in all."""
        # torch.nn.GRU, what is there now, what would be untuned, and the fastest of each implementation.
        bench, by_time = self._bench, sorted(look, key=lambda each: look[each].p50)
        finalists = [each for each in (TORCH, *self._first) if each in look]
        for name in IMPLEMENTATIONS:
            finalists += [each for each in by_time if each.name == name][:_FINALISTS]
        finalists = list(dict.fromkeys(finalists))
        finals = {
            mode: bench.time_candidates(finalists, mode, _FINAL_ROUNDS, max(2.0, self._left / 2))
            for mode in bench.modes
        }
        timed = [each for each in finalists if all(each in times for times in finals.values())]
        return {mode: {each: quantiles(times[each]) for each in timed} for mode, times in finals.items()}


def _incumbents(problem: Problem, bench: Bench) -> dict[str, Candidate]:
    """Return what runs now: by implementation, and by "" what is chosen."""
    found = {"": _candidate(choose(problem, bench.device))}
    for kernel in HEURISTICS:
        with contextlib.suppress(RuntimeError):
            candidate = _candidate(choose(problem, bench.device, kernel))
            found[candidate.name] = candidate
    return found


def _candidate(plan: Plan) -> Candidate:
    return Candidate(plan.kernel, plan.config, plan.projection)
