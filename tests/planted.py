"""Tables and benches with planted times, over the real space of configurations, and disks that are full."""

import contextlib
import dataclasses
import errno
import os
import pathlib
import subprocess
import sys

import torch

from triton_gru.plan.config import Config
from triton_gru.plan.device import KNOWN_DEVICES
from triton_gru.plan.problem import Problem
from triton_gru.plan.tables.entries import Entry, TimedResult
from triton_gru.plan.tables.revision import environment, revision
from triton_gru.tuning.space import TORCH, candidates

H200 = KNOWN_DEVICES["H200"]
T4 = dataclasses.replace(H200, name="T4", arch="sm_75")  # runs no kernel
PROBLEM = Problem(
    steps=100, batch_size=16, input_size=512, hidden_size=512, num_layers=1, bidirectional=False, dtype=torch.float16,
    precision="ieee", reset_after=True,
)  # fmt: skip


def change_problem(problem=PROBLEM, **fields):
    """Return ``problem`` with these fields changed."""
    return dataclasses.replace(problem, **fields)


# Two configurations of `PROBLEM` that no heuristic chooses.
ONE_CONFIG, OTHER_CONFIG = [candidate.config for candidate in candidates(PROBLEM, H200) if candidate.kernel == "grid"][
    -2:
]


class PlantedBench:
    """A bench that compiles and runs nothing.

    ``ms(candidate, mode)`` returns the milliseconds of a call. ``out(candidate)`` returns the reason why the candidate
    does not compile, or ``""``. Opening the problem of index ``stop_at`` raises KeyboardInterrupt, as Ctrl-C does. The
    bench notes the ``problems`` opened, the candidates ``compiled``, and whether it was ``closed``.
    """

    def __init__(self, ms, out=None, device=H200, modes=("eager", "graph"), stop_at=None):
        self.device, self.modes = device, modes
        self.problems, self.compiled, self.closed = [], [], False
        self._ms, self._out, self._stop_at = ms, out or (lambda candidate: ""), stop_at

    def compile(self, problem, candidates, seconds):
        """Yield each candidate with the reason why it does not compile, or ''. Yield nothing if no seconds are left."""
        for candidate in candidates if seconds > 0 else ():
            self.compiled.append(candidate)
            yield candidate, self._out(candidate)

    @contextlib.contextmanager
    def open_problem(self, problem):
        """Note the problem, unless it is the last one noted. Raise KeyboardInterrupt if its index is ``stop_at``."""
        if problem not in self.problems[-1:]:  # tuning opens a problem twice
            if len(self.problems) == self._stop_at:
                raise KeyboardInterrupt
            self.problems.append(problem)
        yield

    def judge(self, candidate):
        """Return the reason why the results of ``candidate`` are wrong: always '', since nothing runs."""
        return ""

    def time_candidates(self, candidates, mode, rounds, seconds):
        """Return ``rounds`` times of each candidate: its planted time, spread by 0.1 % either way."""
        return {
            candidate: [self._ms(candidate, mode) * (1 + 0.001 * (i % 3 - 1)) for i in range(rounds)]
            for candidate in candidates
        }

    def close(self):
        self.closed = True


def make_result(kernel: str, config: Config | None, ms: float, heuristic_ms=None) -> TimedResult:
    """Return a result whose times are ``ms`` within 1 %, in both modes."""
    quantiles = (0.99 * ms, ms, 1.01 * ms)
    return TimedResult(config, revision(kernel), quantiles, quantiles, heuristic_ms)


def make_entry(problem, winner: str, **results: tuple[Config | None, float]) -> Entry:
    """Return an entry of this version, with (configuration, milliseconds) for each kernel."""
    timed = {kernel: make_result(kernel, *result) for kernel, result in results.items()}
    return Entry(problem.key(), winner, timed, 7, {}, environment(), "2026-01-02T03:04:05+00:00")


def plant_times(ms):
    """Return a function of planted times: 1 for nn.GRU, ``ms(candidate)`` for other candidates, in all modes."""
    return lambda candidate, mode: 1.0 if candidate == TORCH else ms(candidate)


def start_python(code: str, *arguments, **options) -> subprocess.Popen:
    """Start a process that runs ``code`` with imports from this repository. ``arguments`` become its sys.argv."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    root = pathlib.Path(__file__).parents[1]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def fill_disk(monkeypatch, step: str, writes_before: int = 0) -> None:
    """Let each ``"write"`` or ``"fsync"`` of a table fail as on a full disk.

    Exception: the first ``writes_before`` of them do nothing and raise no error.
    """
    successes_left = [writes_before]

    def fail(_):
        successes_left[0] -= 1
        if successes_left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
        return
    open_path = pathlib.Path.open

    def open_to_fail(path, mode="r", *arguments, **options):
        """Open a file as `pathlib.Path.open` does. Writing to a file that is created fails."""
        file = open_path(path, mode, *arguments, **options)
        if "x" in mode:
            file.write = fail
        return file

    monkeypatch.setattr(pathlib.Path, "open", open_to_fail)
