"""The measurements on a GPU, in pieces of at most three minutes each, the most valuable first.

A piece continues where its files end, and their rows tell what is done. perf/README.md describes the pieces.
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

Rows = list[dict]


@dataclass(frozen=True)
class Piece:
    """A question, and the command that answers it.

    Attributes:
        seconds: the time of the command on an H100 with 16 cores, including compilation. A guess until measured there.
        command: the command for a GPU, not read by a shell. ``{out}`` is the folder of results, and ``{gpu}`` is its
            name. ``{seconds}`` or ``{minutes}`` is the time after which the command begins no measurement.
        rehearsal: a small form of the command, for a CPU.
        file: the pattern of the files that the command writes in the folder of results.
        progress: (rows of these files, whether this is a rehearsal) -> (measurements done, all measurements).
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


def _make_sweep_piece(name: str, environment: str = "", after: Piece | None = None) -> Piece:
    """Return a piece that times a sweep of perf/. ``environment`` is a prefix of the command that sets variables."""
    command = f"-m perf run --sweep {name} --out {{out}} --resume --minutes {{minutes}}"

    def count_cases(rows: Rows, rehearse: bool) -> tuple[int, int]:
        sweep = shrink_sweep(SWEEPS[name]) if rehearse else SWEEPS[name]
        return len(sweep.cases) - len(find_owed(sweep, sweep.providers, statuses(rows))), len(sweep.cases)

    return Piece(
        name=name,
        question=SWEEPS[name].question,
        seconds=SWEEPS[name].seconds,
        command=f"{environment}python3 {command} --seconds 0.6",
        rehearsal=f"{_REHEARSE} {command} --rehearse --seconds 0.01",
        file=f"{name}-{{gpu}}.csv",
        progress=count_cases,
        after=after,
    )


def _make_test_piece(name: str, question: str, tests: str, rehearsed_tests: str, prefix: str = "") -> Piece:
    """Return a piece that runs tests.

    Args:
        name, question: as in `Piece`.
        tests: the tests to run on a GPU, as arguments of pytest.
        rehearsed_tests: the tests to run on a CPU instead, a few quick ones.
        prefix: text before the command on a GPU, such as a program that runs it.
    """
    options = f"-p tests.outcomes --outcomes {{out}}/{name}-{{gpu}}.csv --seconds {{seconds}} -q --no-summary"
    command = f"python3 -m pytest {options} -p no:cacheprovider -W default"

    def count_tests(rows: Rows, rehearse: bool) -> tuple[int, int]:
        outcomes = {row["test"]: row["outcome"] for row in rows}
        # The file lists all tests once the first run has begun. Before, their number is unknown: nothing of 1 is done.
        return sum(outcome not in ("owed", "begun") for outcome in outcomes.values()), len(outcomes) or 1

    return Piece(
        name=name,
        question=question,
        seconds=150,
        command=f"{prefix}{command} {tests}",
        rehearsal=f"{command} {rehearsed_tests}",
        file=f"{name}-{{gpu}}.csv",
        progress=count_tests,
    )


def _make_shard_piece(number: int) -> Piece:
    """Return a piece that runs a share of the tests that the pieces "right" and "right-alone" leave."""
    shard = f"--shard {number}/{SHARDS}"
    return _make_test_piece(
        f"right-rest-{number}",
        f"Do the other tests pass? Part {number} of {SHARDS}.",
        tests=f"tests -m 'gpu and not first and not alone' {_PARALLEL} {shard}",
        rehearsed_tests=f"tests/test_errors.py {shard}",
    )


def _make_models_piece() -> Piece:
    """Return a piece that times whole models, each in two precisions. A rehearsal times one model in one."""
    command = "scripts/models.py --out {out}"

    def count_targets(rows: Rows, rehearse: bool) -> tuple[int, int]:
        num_targets = len(models.list_targets(rehearse))
        return num_targets - len(models.find_owed(rows, rehearse)), num_targets

    return Piece(
        name="models",
        question="How much faster are whole models?",
        seconds=120,
        command=f"python3 {command}",
        rehearsal=f"{_REHEARSE} {command} --rehearse",
        file="models-{gpu}.csv",
        progress=count_targets,
    )


def _make_tuning_piece() -> Piece:
    """Return a piece that tunes the first standard shapes, into a folder of tables among the results."""
    command = "env TRITON_GRU_CONFIG_DIR={out}/tables python3 -m triton_gru tune"

    def count_entries(rows: Rows, rehearse: bool) -> tuple[int, int]:
        # One run tunes about eight shapes: with a short budget, each shape gets an eighth of it (tuning/tuner.py).
        return len(rows), 1 if rehearse else 8

    return Piece(
        name="tune",
        question="What is fastest for the first standard shapes?",
        seconds=150,
        command=f"{command} --budget {{seconds}}",
        rehearsal=f"{command} --rehearse --budget 5",
        file="tables/*.json",
        progress=count_entries,
    )


def _make_sanitizer_piece(tool: str) -> Piece:
    """Return a piece that runs a few kernel tests under a tool of compute-sanitizer.

    The sanitizer slows kernels down, so they wait longer for each other before they give up. Without torch's caching of
    memory, it sees each tensor as a separate allocation.
    """
    environment = "env TRITON_GRU_TIMEOUT=120 PYTORCH_NO_CUDA_MEMORY_CACHING=1"
    files = "tests/kernels/test_block.py tests/kernels/test_grid.py tests/kernels/test_step.py"
    return _make_test_piece(
        f"sanitize-{tool}",
        "Does a kernel touch memory it does not own, or race?",
        tests=f"{files} -m 'gpu and first'",
        rehearsed_tests="tests/kernels/test_step.py -k agrees",
        prefix=f"{environment} compute-sanitizer --tool {tool} --error-exitcode 1 ",
    )


_RIGHT = _make_test_piece(
    "right",
    "Are the kernels right on this GPU? The first 500 tests.",
    tests=f"tests -m 'gpu and first' {_PARALLEL}",
    rehearsed_tests="tests/kernels/test_isa.py -n 2",
)
_RIGHT_ALONE = _make_test_piece(
    "right-alone",
    "Do the tests pass that measure times?",
    tests="tests -m 'gpu and alone'",
    rehearsed_tests="tests/test_demo.py",
)
_TUNE = _make_tuning_piece()
PIECES = (
    _RIGHT,
    _make_sweep_piece("heart"),
    _make_models_piece(),
    *map(_make_sweep_piece, ("t1", "packed", "heart-small", "heart-large", "overhead")),
    _TUNE,
    _make_sweep_piece("tuned", environment="env TRITON_GRU_CONFIG_DIR={out}/tables ", after=_TUNE),
    *map(_make_sweep_piece, (
        "bidirectional", "streaming", "smoke", "peers", "step-breakdown", "hand-overs", "short", "projection",
        "reset-before", "lengths", "anchor-flashrnn2", "anchor-768", "anchor-24", "deepbench", "t1-cold", "layers",
        "cells", "throughput", "large", "long",
    )),
    *map(_make_shard_piece, range(1, SHARDS + 1)),
    _RIGHT_ALONE,
    *map(_make_sanitizer_piece, ("memcheck", "racecheck")),
)  # fmt: skip
