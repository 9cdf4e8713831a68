"""The rehearsal of ``triton-gru tune``: the same shapes in small sizes, with kernels that the CPU executes."""

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

from ..plan import device as devices
from ..plan import planner
from ..plan.problem import Problem
from ..plan.tables import lookup
from ..tuning.tuner import merge_problems
from ..units import format_count, format_duration

_BUDGET = 60.0  # seconds, without --budget
_FOLDER = "TRITON_GRU_CONFIG_DIR"
_CHECKOUT = pathlib.Path(__file__).parents[2]
INTERRUPTED = 130  # exit status
# Runs in the caller's folder, since arguments name files there. The checkout comes first in sys.path, so that `tests`
# is the checkout's package and not one in the caller's folder.
_EMULATOR = f"""
import sys
sys.path.insert(0, sys.argv.pop(1))
try:
    from tests.ptx.rehearse import main
    main(sys.argv[1:])
except KeyboardInterrupt:  # the command itself catches later interrupts
    print("triton-gru tune: interrupted", file=sys.stderr)
    sys.exit({INTERRUPTED})
"""


def is_table_kept() -> bool:
    """Return whether a rehearsal keeps its table: TRITON_GRU_CONFIG_DIR names a folder."""
    return bool(os.environ.get(_FOLDER))


def is_emulated() -> bool:
    """Return whether this process emulates a GPU on the CPU."""
    return devices.emulated_device is not None


def run_in_emulator(arguments: list[str]) -> NoReturn:
    """Replace this process by ``triton-gru`` with these arguments on an emulated GPU.

    Raises:
        RuntimeError: this package is not in a checkout, which has the emulator.
    """
    if not (_CHECKOUT / "tests/ptx/rehearse.py").is_file():
        raise RuntimeError(
            f"--rehearse needs a checkout, which has the emulator in tests/ptx, but this package is in {_CHECKOUT}. "
            "In the root of a checkout, run: python -m triton_gru tune --rehearse"
        )
    # exec and no child process: a signal that ends this process then also ends the emulator.
    os.execv(sys.executable, [sys.executable, "-c", _EMULATOR, str(_CHECKOUT), "-m", "triton_gru", *arguments])


def rehearse(problems: list[Problem], tune: Callable[..., int], options) -> int:
    """Call ``tune(problems, device, options)`` with ``problems`` in small sizes. Return the exit status of ``tune``."""
    options.budget = options.budget or _BUDGET
    small = list(merge_problems(map(_shrink, problems)).values())
    shapes = format_count(len(small), "shape")
    print(f"rehearsing {shapes} in small sizes on an emulated GPU, in about {format_duration(options.budget)}")
    print("All times below are the emulator's and mean nothing.", flush=True)
    with _provide_table_folder() as folder:
        status = tune(small, torch.device("cpu"), options)
    advice = f"Delete the table in {folder}, which {_FOLDER} names, before a service reads it"
    print(f"Rehearsed. {advice if folder else 'Nothing was kept'}.")
    return status


def _shrink(problem: Problem) -> Problem:
    """Return the problem in sizes that the emulated GPU runs in seconds, with the other options unchanged."""
    return dataclasses.replace(
        problem, hidden_size=min(problem.hidden_size, 16), input_size=min(problem.input_size, 16),
        batch_size=min(problem.batch_size, 2), steps=min(problem.steps, 3),
    )  # fmt: skip


@contextlib.contextmanager
def _provide_table_folder() -> Iterator[str | None]:
    """Let tuning write into the folder that TRITON_GRU_CONFIG_DIR names, and yield this folder.

    If the variable is unset or empty, it names a temporary folder until the block ends. Then None is yielded, as no
    table is kept.
    """
    if named_folder := os.environ.get(_FOLDER):
        yield named_folder
        return
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {_FOLDER: folder}):
        _clear_caches()
        try:
            yield None
        finally:
            _clear_caches()


def _clear_caches() -> None:
    """Forget all tables, plans and prepared calls, because they come from another folder of tables."""
    lookup.clear_table_cache()
    planner.clear_plan_cache()
