"""The rehearsal of ``triton-gru tune``: all of it in a small form, with kernels that the CPU executes."""

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from unittest import mock

import torch

from ..launch import call_cache
from ..plan import device as devices
from ..plan import planner
from ..plan.problem import Problem
from ..plan.tables import lookup
from ..tuning.tuner import unique

_BUDGET = 60.0  # seconds
_PATIENCE = 10.0  # seconds for the emulator to end after an interrupt
_FOLDER = "TRITON_GRU_CONFIG_DIR"
_CHECKOUT = pathlib.Path(__file__).parents[2]


def is_emulated() -> bool:
    """Return whether the CPU stands in for a GPU in this process."""
    return devices.on_cpu is not None


def run_in_emulator(arguments: list[str]) -> int:
    """Run ``triton-gru`` with these arguments in a process where a GPU is emulated; return its exit status.

    Raises:
        RuntimeError: the emulator is not there.
    """
    if not (_CHECKOUT / "tests/ptx/rehearse.py").is_file():
        raise RuntimeError(f"--rehearse needs a checkout: the emulator, tests/ptx, is not in {_CHECKOUT}")
    # In the folder of the caller, whose files the arguments name; but the checkout's tests come before the caller's.
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from tests.ptx.rehearse import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, str(_CHECKOUT), "-m", "triton_gru", *arguments]
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:  # which the emulator gets, too
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(_PATIENCE)
            process.kill()
            raise


def rehearse(problems: list[Problem], tune: Callable[..., int], options) -> int:
    """Tune small forms of ``problems`` on the CPU by ``tune(problems, device, options)``; return what it returns."""
    options.budget = options.budget or _BUDGET
    small = list(unique(map(_small, problems)).values())
    with _folder() as folder:
        status = tune(small, torch.device("cpu"), options)
    kept = f"the table is in {folder}, which {_FOLDER} names: delete it before a service reads it"
    print(f"rehearsed: times are the emulator's and mean nothing, {kept if folder else 'nothing was kept'}")
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
    lookup.forget()
    planner.forget()
    call_cache.forget()
