"""The processes that compile: what becomes of calls that fail, die, hang, print or are not waited for."""

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


def asked(pool, items, *seconds):
    """Yield what becomes of each item, in a pool of processes that `behave` as it says."""
    for call, why in pool.run([functools.partial(behave, each) for each in items], *seconds):
        yield call.args[0], why


@pytest.fixture
def pool(monkeypatch):
    """A pool of one process: each takes seconds to import torch."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    with contextlib.closing(Pool(seconds_each=60)) as pool:
        yield pool


def test_each_call_gets_its_own_answer_whatever_became_of_others(pool):
    items = ["nothing", "say why", "print", "raise", Unreadable(), "die", "nothing"]
    found = list(asked(pool, items))
    assert [item for item, _ in found] == items
    assert [why for _, why in found[:5]] == ["", "because", "", "ValueError: two", "NameError: it is not known here"]
    assert found[5][1] == "the compiler crashed with its last words"
    assert found[6:] == [("nothing", "")]


def test_a_process_that_is_killed_is_replaced(pool):
    assert list(asked(pool, ["nothing"])) == [("nothing", "")]
    os.kill(pool._workers[0]._process.pid, signal.SIGKILL)
    assert list(asked(pool, ["nothing", "nothing"])) == [("nothing", "the compiler crashed"), ("nothing", "")]


def test_what_takes_too_long_fails_and_what_comes_after_the_time_does_not_come(pool):
    assert list(asked(pool, ["nothing"], 0)) == []
    assert list(asked(pool, ["nothing"])) == [("nothing", "")]  # its process is there now
    pool._seconds_each = 1
    assert list(asked(pool, ["hang"])) == [("hang", "not compiled within 1 s")]
    pool._seconds_each = 60
    assert list(asked(pool, ["nothing"])) == [("nothing", "")]  # as is the one in its stead
    assert list(asked(pool, ["nothing", "hang", "nothing"], 3)) == [("nothing", "")]


def test_closing_midway_ends_the_processes(pool):
    running = asked(pool, ["nothing", "hang"])
    assert next(running) == ("nothing", "")
    process = pool._workers[0]._process
    start = time.monotonic()
    running.close()
    pool.close()
    assert process.poll() is not None and time.monotonic() - start < 30


def test_calls_in_parallel_go_on_where_one_fails(tmp_path):
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


@pytest.mark.parametrize("by_name", [False, True])
def test_a_program_can_ask_for_its_own_functions(by_name, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = ["-m", "program"] if by_name else [str(tmp_path / "program.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path)] * by_name + sys.path)}
    subprocess.run([sys.executable, *command, str(tmp_path / "made")], env=environment, check=True)
    assert (tmp_path / "made").exists()
