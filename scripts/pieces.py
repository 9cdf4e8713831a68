"""What is measured on a GPU, in pieces of at most three minutes each, in order of value; perf/README.md says what for.

A piece goes on where its file ends, and whatever it has done by then is a result.
"""

import json
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import models

from perf.record import read, statuses
from perf.run import find_owed
from perf.sweeps import SWEEPS, shrink_sweep

SHARDS = 6  # of the tests that are not among the first
_PARALLEL = "-n 12 --maxschedchunk 2"  # of pytest-xdist: processes on the one GPU, which take tests two by two
_REHEARSE = "python3 -m tests.ptx.rehearse"  # with kernels executed on the CPU
_FIRST = f"tests -m 'gpu and first' {_PARALLEL}"

Rows = list[dict]


@dataclass(frozen=True)
class Piece:
    """A question, and the command that answers it.

    Attributes:
        seconds: how long it takes on an H100 with 16 cores, compiling included; guessed until it is measured there.
        command, rehearsal: on a GPU, and a small form of it for a CPU. No shell reads them. ``{out}`` is the folder of
            results, ``{gpu}`` its name; ``{seconds}`` and ``{minutes}`` are the time after which nothing is begun.
        file: the pattern of the files it writes in the folder of results.
        progress: of that file's rows, and for a rehearsal or not: how much of the piece is done, and of how much.
        after: a piece without whose results this one means nothing.
    """

    name: str
    question: str
    seconds: int
    command: str
    rehearsal: str
    file: str
    progress: Callable[[Rows, bool], tuple[int, int]]
    after: "Piece | None" = None

    def count_done(self, out: pathlib.Path, rehearse: bool) -> tuple[int, int]:
        """Return how much of the piece is done in the folder ``out``, and of how much."""
        pattern = self.file.format(gpu=out.name)
        if pattern.endswith(".json"):
            rows = [entry for path in out.glob(pattern) for entry in json.loads(path.read_text())["entries"]]
        else:
            rows = read(out, pattern)
        return self.progress(rows, rehearse)


def _sweep(name: str, environment: str = "", after: Piece | None = None) -> Piece:
    command = f"-m perf run --sweep {name} --out {{out}} --resume --minutes {{minutes}}"

    def progress(rows: Rows, rehearse: bool) -> tuple[int, int]:
        sweep = shrink_sweep(SWEEPS[name]) if rehearse else SWEEPS[name]
        return len(sweep.cases) - len(find_owed(sweep, sweep.providers, statuses(rows))), len(sweep.cases)

    small = f"{_REHEARSE} {command} --rehearse --seconds 0.01"
    command = f"{environment}python3 {command} --seconds 0.6"
    return Piece(
        name, SWEEPS[name].question, SWEEPS[name].seconds, command, small, f"{name}-{{gpu}}.csv", progress, after
    )


def _tests(name: str, question: str, which: str, small: str, before: str = "") -> Piece:
    """Return tests chosen by pytest's arguments ``which``, or for a CPU by ``small``; ``before`` is a prefix."""
    options = f"-p tests.outcomes --outcomes {{out}}/{name}-{{gpu}}.csv --seconds {{seconds}} -q --no-summary"
    command = f"python3 -m pytest {options} -p no:cacheprovider -W default"

    def progress(rows: Rows, rehearse: bool) -> tuple[int, int]:
        outcomes = {row["test"]: row["outcome"] for row in rows}
        return sum(outcome != "owed" for outcome in outcomes.values()), len(outcomes) or 1

    return Piece(
        name, question, 150, f"{before}{command} {which}", f"{command} {small}", f"{name}-{{gpu}}.csv", progress
    )


def _shard(number: int) -> Piece:
    shard = f"--shard {number}/{SHARDS}"
    which = f"tests -m 'gpu and not first and not alone' {_PARALLEL} {shard}"
    question = f"Are the other tests right? A part of {SHARDS}."
    return _tests(f"right-rest-{number}", question, which, f"tests/test_errors.py {shard}")


def _models() -> Piece:
    command = "scripts/models.py --out {out}"

    def progress(rows: Rows, rehearse: bool) -> tuple[int, int]:
        cells = len(models.cells(rehearse))
        return cells - len(models.find_owed(rows, rehearse)), cells

    return Piece(
        "models", "How much faster are whole models?", 120, f"python3 {command}", f"{_REHEARSE} {command} --rehearse",
        "models-{gpu}.csv", progress,
    )  # fmt: skip


def _tune() -> Piece:
    tune = "env TRITON_GRU_CONFIG_DIR={out}/tables python3 -m triton_gru tune"
    command, small = f"{tune} --budget {{seconds}}", f"{tune} --rehearse --budget 5"

    def progress(rows: Rows, rehearse: bool) -> tuple[int, int]:
        return len(rows), 1 if rehearse else 8

    return Piece(
        "tune", "What does tuning find, at the first of its shapes?", 150, command, small, "tables/*.json", progress
    )


def _sanitize(tool: str) -> Piece:
    before = "env TRITON_GRU_TIMEOUT=120 PYTORCH_NO_CUDA_MEMORY_CACHING=1 "
    before += f"compute-sanitizer --tool {tool} --error-exitcode 1 "
    files = "tests/kernels/test_block.py tests/kernels/test_grid.py tests/kernels/test_step.py"
    question = "Does a kernel touch memory it does not own, or race?"
    return _tests(
        f"sanitize-{tool}", question, f"{files} -m 'gpu and first'", "tests/kernels/test_step.py -k agrees", before
    )


_TUNE = _tune()
PIECES = (
    _tests(
        "right", "Are the kernels right on this GPU? 500 tests to begin with.", _FIRST, "tests/kernels/test_isa.py -n 2"
    ),
    _sweep("heart"),
    _models(),
    *map(_sweep, ("t1", "packed", "heart-small", "heart-large", "overhead")),
    _TUNE,
    _sweep("tuned", "env TRITON_GRU_CONFIG_DIR={out}/tables ", _TUNE),
    *map(_sweep, ("bidirectional", "streaming", "smoke", "peers", "step-breakdown", "hand-overs", "short")),
    *map(_sweep, ("projection", "reset-before", "lengths", "anchor-flashrnn2", "anchor-768", "anchor-24", "deepbench")),
    *map(_sweep, ("t1-cold", "layers", "cells", "throughput", "large", "long")),
    *map(_shard, range(1, SHARDS + 1)),
    _tests("right-alone", "And the tests that look at times?", "tests -m 'gpu and alone'", "tests/test_demo.py"),
    *map(_sanitize, ("memcheck", "racecheck")),
)  # fmt: skip
