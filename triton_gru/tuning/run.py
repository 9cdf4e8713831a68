"""Tunes one problem: compiles what may be fastest, times what is right, and concludes."""

import contextlib
import datetime
import time
from collections import Counter

from ..plan.heuristic import HEURISTICS, heuristic
from ..plan.planner import choose
from ..plan.problem import Problem
from ..plan.tables.entries import Entry
from ..plan.tables.revision import environment
from .bench import Bench
from .progress import Tracker
from .space import TORCH, Candidate, candidates
from .timing import Times, quantiles
from .verdict import conclude

# Rounds of a first look at all that compiled, of so many in turn, and of the finals between the fastest of each kernel.
_LOOK, _AT_ONCE, _FINALS, _FINALISTS = 10, 16, 60, 4
# Of the time that there is, for compiling; and of the work when all are judged.
_COMPILING, _JUDGED = 0.7, 0.85
_TOO_LATE = "not tried: the time was over"

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
        # What runs now and what would untuned are measured whatever the time: without them there is nothing to compare.
        here = (*self._before.values(), *self._untuned.values())
        self._first = list(dict.fromkeys(each for each in here if each.config))

    def tune(self) -> tuple[Entry, Ranking] | None:
        """Return what was found; None if nothing serves the problem, or nothing runs."""
        rest = [each for each in candidates(self._problem, self._bench.device) if each not in self._first]
        if not self._first:
            self._progress.say(f"{self._problem.key()}: no kernel serves it")
            return None
        compiled = self._compile(rest)
        with self._bench.opened(self._problem):
            finals = self._time(self._right(compiled))
        if not any(finals.values()):
            self._progress.say(f"{self._problem.key()}: nothing runs: {dict(self._failed)}")
            return None
        winner, results = conclude(self._before, self._untuned, finals)
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        # The reasons may have numbers in them: the rarest are not worth their lines.
        failed = dict(self._failed.most_common(20))
        tried = len(self._first) + len(rest)
        entry = Entry(self._problem.key(), winner, results, tried, failed, environment(), now)
        medians = {each: times.p50 for each, times in finals[self._bench.modes[-1]].items()}
        return entry, tuple(sorted(medians.items(), key=lambda each: each[1]))

    @property
    def _left(self) -> float:
        return self._end - time.monotonic()

    def _compile(self, rest: list[Candidate]) -> list[Candidate]:
        """Return the candidates that compiled."""
        compiled = []
        number = len(self._first) + len(rest)
        for some in (self._first, rest):
            seconds = float("inf") if some is self._first else _COMPILING * self._left
            for candidate, why in self._bench.compile(self._problem, some, seconds):
                if why:
                    self._failed[why] += 1
                else:
                    compiled.append(candidate)
                done = len(compiled) + self._failed.total()
                self._progress.at(f"compiling {done} of {number}", _COMPILING * done / number)
        self._failed += Counter({_TOO_LATE: number - len(compiled) - self._failed.total()})  # which drops what is zero
        return compiled

    def _right(self, compiled: list[Candidate]) -> list[Candidate]:
        """Return those that are right; torch.nn.GRU, where it serves, and what is there are run whatever the time."""
        must = [] if self._problem.reason_against_torch else [TORCH]
        must += [each for each in self._first if each in compiled]
        right = []
        todo = list(dict.fromkeys(must + compiled))
        for done, candidate in enumerate(todo):
            share = _COMPILING + (_JUDGED - _COMPILING) * done / len(todo)
            self._progress.at(f"checking {done} of {len(todo)}", share)
            too_late = self._left < 0 and candidate not in must
            if why := _TOO_LATE if too_late else self._bench.judge(candidate):
                self._failed[why] += 1
            else:
                right.append(candidate)
        return right

    def _time(self, right: list[Candidate]) -> dict[str, dict[Candidate, Times]]:
        """Return the finalists' times by mode, of those that can be timed in all."""
        bench, look = self._bench, {}
        for group in (right[i : i + _AT_ONCE] for i in range(0, len(right), _AT_ONCE)):
            self._progress.at(f"timing {len(right)} that are right", _JUDGED + (1 - _JUDGED) * len(look) / len(right))
            if look and self._left < 0:
                self._failed[_TOO_LATE] += len(group)
                continue
            times = bench.times(group, bench.modes[-1], _LOOK, max(1.0, self._left / 4))
            self._failed += Counter({"it could not be timed": len(group) - len(times)})
            look |= times
        # torch.nn.GRU, what is there now, what would be untuned, and the fastest of each kernel.
        by_time = sorted(look, key=lambda each: quantiles(look[each]).p50)
        finalists = [each for each in (TORCH, *self._first) if each in look]
        for kernel in HEURISTICS:
            finalists += [each for each in by_time if each.kernel == kernel][:_FINALISTS]
        finalists = list(dict.fromkeys(finalists))
        self._progress.at(f"timing the {len(finalists)} fastest", _JUDGED)
        finals = {mode: bench.times(finalists, mode, _FINALS, max(2.0, self._left / 2)) for mode in bench.modes}
        timed = [each for each in finalists if all(each in times for times in finals.values())]
        return {mode: {each: quantiles(times[each]) for each in timed} for mode, times in finals.items()}


def _incumbents(problem: Problem, bench: Bench) -> dict[str, Candidate]:
    """Return what runs now: by kernel, and by "" the kernel that is chosen."""
    plan = choose(problem, bench.device)
    found = {"": Candidate(plan.kernel, plan.config)}
    for kernel in HEURISTICS:
        with contextlib.suppress(RuntimeError):
            found[kernel] = Candidate(kernel, choose(problem, bench.device, kernel).config)
    return found
