"""The rehearsal of ``triton-gru tune``: all of it in a small form, with kernels that the CPU executes."""

import contextlib
import dataclasses
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import NoReturn
from unittest import mock

import torch

from ..launch import call_cache
from ..plan import device as devices
from ..plan import planner
from ..plan.problem import Problem
from ..plan.tables import lookup
from ..tuning.tuner import merge_problems
from ..units import format_count, format_duration

_BUDGET = 60.0  # seconds
_FOLDER = "TRITON_GRU_CONFIG_DIR"
_CHECKOUT = pathlib.Path(__file__).parents[2]
INTERRUPTED = 130  # exit status
# Runs in the folder of the caller, whose files the arguments name. But the checkout's tests come before the caller's.
_EMULATOR = f"""
import sys
sys.path.insert(0, sys.argv.pop(1))
try:
    from tests.ptx.rehearse import main
    main(sys.argv[1:])
except KeyboardInterrupt:  # before the command itself catches it
    print("triton-gru tune: interrupted", file=sys.stderr)
    sys.exit({INTERRUPTED})
"""


def is_table_kept() -> bool:
    """Return whether a rehearsal keeps its table, in the folder that the environment names."""
    return bool(os.environ.get(_FOLDER))


def is_emulated() -> bool:
    """Return whether the CPU stands in for a GPU in this process."""
    return devices.emulated_device is not None


def run_in_emulator(arguments: list[str]) -> NoReturn:
    """Go on as ``triton-gru`` with these arguments, in this process, where a GPU is emulated.

    Raises:
        RuntimeError: the emulator is not there.
    """
    if not (_CHECKOUT / "tests/ptx/rehearse.py").is_file():
        raise RuntimeError(
            f"--rehearse needs the package of a checkout, beside which is the emulator (tests/ptx), and this one is in "
            f"{_CHECKOUT}. From the root of a checkout: python -m triton_gru tune --rehearse"
        )
    # Not in a child: whoever ends this process ends the emulator.
    os.execv(sys.executable, [sys.executable, "-c", _EMULATOR, str(_CHECKOUT), "-m", "triton_gru", *arguments])


def rehearse(problems: list[Problem], tune: Callable[..., int], options) -> int:
    """Tune small forms of ``problems`` on the CPU by ``tune(problems, device, options)``; return what it returns."""
    options.budget = options.budget or _BUDGET
    small = list(merge_problems(map(_small, problems)).values())
    shapes = format_count(len(small), "shape")
    print(f"rehearsing {shapes} in small sizes on an emulated GPU, in about {format_duration(options.budget)}")
    print("All times below are the emulator's and mean nothing.", flush=True)
    with _folder() as folder:
        status = tune(small, torch.device("cpu"), options)
    table = f"Delete the table in {folder}, which {_FOLDER} names, before a service reads it"
    print(f"Rehearsed. {table if folder else 'Nothing was kept'}.")
    return status


def _small(problem: Problem) -> Problem:
    return dataclasses.replace(
        problem, hidden_size=min(problem.hidden_size, 16), input_size=min(problem.input_size, 16),
        batch_size=min(problem.batch_size, 2), steps=min(problem.steps, 3),
    )  # fmt: skip


@contextlib.contextmanager
def _folder() -> Iterator[str | None]:
    """Let tables be kept in the folder that the environment names, which is yielded, or else in one that is removed."""
    if named := os.environ.get(_FOLDER):
        yield named
        return
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {_FOLDER: folder}):
        _forget_tables()
        try:
            yield None
        finally:
            _forget_tables()


def _forget_tables() -> None:
    lookup.clear_table_cache()
    planner.clear_plan_cache()
    call_cache.clear_call_cache()
