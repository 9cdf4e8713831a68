"""The processes that compile: the answers of calls that fail, die, hang, print, or come too late."""

import contextlib
import functools
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from triton_gru.tuning.compile_pool import Pool, run_in_parallel

from .calls_in_workers import Unreadable, behave


def run_items(pool, items, *seconds):
    """Call `behave` with each item in ``pool``. Yield each item with its answer: '' or the reason of its failure."""
    for call, reason in pool.run([functools.partial(behave, item) for item in items], *seconds):
        yield call.args[0], reason


@pytest.fixture
def pool(monkeypatch):
    """Yield a pool of one process, as each process takes seconds to import torch."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    with contextlib.closing(Pool(seconds_each=60)) as pool:
        yield pool


def test_each_call_gets_its_own_answer_when_others_fail(pool):
    items = ["nothing", "say why", "print", "raise", Unreadable(), "die", "nothing"]
    answers = list(run_items(pool, items))
    assert [item for item, _ in answers] == items
    assert [answer for _, answer in answers[:5]] == [
        "",
        "because",
        "",
        "ValueError: two",
        "NameError: it is not known here",
    ]
    assert answers[5][1] == "the compiler crashed with its last words"
    assert answers[6:] == [("nothing", "")]


def test_killed_process_is_replaced(pool):
    assert list(run_items(pool, ["nothing"])) == [("nothing", "")]
    os.kill(pool._workers[0]._process.pid, signal.SIGKILL)
    assert list(run_items(pool, ["nothing", "nothing"])) == [("nothing", "the compiler crashed"), ("nothing", "")]


def test_slow_calls_fail_and_calls_after_the_deadline_are_dropped(pool):
    assert list(run_items(pool, ["nothing"], 0)) == []
    assert list(run_items(pool, ["nothing"])) == [("nothing", "")]  # now the pool's process runs
    pool._seconds_each = 1
    assert list(run_items(pool, ["hang"])) == [("hang", "not compiled within 1 s")]
    pool._seconds_each = 60
    assert list(run_items(pool, ["nothing"])) == [("nothing", "")]  # in the process that replaced the one killed
    assert list(run_items(pool, ["nothing", "hang", "nothing"], 3)) == [("nothing", "")]


def test_closing_ends_running_processes(pool):
    running = run_items(pool, ["nothing", "hang"])
    assert next(running) == ("nothing", "")
    process = pool._workers[0]._process
    start = time.monotonic()
    running.close()
    pool.close()
    assert process.poll() is not None and time.monotonic() - start < 30


def test_parallel_calls_continue_after_a_failure(tmp_path):
    calls = [functools.partial(pathlib.Path.touch, tmp_path / name) for name in ("missing/a", "b", "c")]
    run_in_parallel(calls)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]


PROGRAM = """
import functools, pathlib, sys
from triton_gru.tuning.compile_pool import run_in_parallel

def touch(name):
    pathlib.Path(name).touch()

if __name__ == "__main__":
    run_in_parallel([functools.partial(touch, sys.argv[1])])
"""


@pytest.mark.parametrize("as_module", [False, True])
def test_program_can_run_its_own_functions(as_module, tmp_path):
    """Check that worker processes find functions of the main program, a file or a module."""
    (tmp_path / "program.py").write_text(PROGRAM)
    command = ["-m", "program"] if as_module else [str(tmp_path / "program.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path)] * as_module + sys.path)}
    subprocess.run([sys.executable, *command, str(tmp_path / "made")], env=environment, check=True)
    assert (tmp_path / "made").exists()
