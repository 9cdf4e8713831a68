"""The measurements on a GPU, in pieces of at most three minutes each, the most valuable first.

A piece continues where its file ends, and each row of the file is a result. perf/README.md describes the pieces.
"""

import json
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import models

from perf.record import read, statuses
from perf.run import find_owed
from perf.sweeps import SWEEPS, shrink_sweep

SHARDS = 6  # of the tests that are not marked `first`
_PARALLEL = "-n 12 --maxschedchunk 2"  # pytest-xdist: 12 processes on one GPU, each of which takes two tests at a time
_REHEARSE = "python3 -m tests.ptx.rehearse"  # executes kernels on the CPU
_FIRST = f"tests -m 'gpu and first' {_PARALLEL}"

Rows = list[dict]


@dataclass(frozen=True)
class Piece:
    """A question, and the command that answers it.

    Attributes:
        seconds: the time it takes on an H100 with 16 cores, including compilation. It is a guess until measured there.
        command: the command for a GPU, not read by a shell. ``{out}`` is the folder of results, and ``{gpu}`` is its
            name. ``{seconds}`` or ``{minutes}`` is the time after which the command begins no measurement.
        rehearsal: a small form of the command, for a CPU.
        file: the pattern of the files that it writes in the folder of results.
        progress: (rows of these files, whether it is a rehearsal) -> (measurements done, all measurements).
        after: a piece whose results this one needs.
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
        """Return the number of measurements that are done in the folder ``out``, and the number of all."""
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
    """Return a piece that runs the tests of pytest's arguments ``which``, or those of ``small`` on a CPU.

    ``before`` is a prefix of the command on a GPU.
    """
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
    question = f"Do the other tests pass? Part {number} of {SHARDS}."
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
        "tune", "What is fastest for the first standard shapes?", 150, command, small, "tables/*.json", progress
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
        "right", "Are the kernels right on this GPU? The first 500 tests.", _FIRST, "tests/kernels/test_isa.py -n 2"
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
    _tests(
        "right-alone", "Do the tests pass that measure times?", "tests -m 'gpu and alone'", "tests/test_demo.py"
    ),
    *map(_sanitize, ("memcheck", "racecheck")),
)  # fmt: skip
