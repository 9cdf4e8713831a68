"""Tests that run in pieces: each outcome is written at once, no finished test repeats, a crash costs one test."""

import csv
import os
import pathlib
import subprocess
import sys

import pytest

from . import outcomes

ROOT = pathlib.Path(__file__).parents[1]
# A file of tests with every outcome. test_wrong passes as soon as a file "mended" exists.
PLANTED = """
import os, pytest

def test_good(): pass
def test_dies(): os.kill(os.getpid(), 9)
def test_skipped(): pytest.skip("for a reason")

def test_wrong():
    assert os.path.exists("mended"), "a bad number"

@pytest.fixture
def no_setup(): raise RuntimeError("no setup")
@pytest.fixture
def no_end():
    yield
    raise RuntimeError("no end")

def test_setup(no_setup): pass
def test_teardown(no_end): pass
"""

# A file of tests whose one test fails after a call that a kernel serves.
FAILS_ON_A_KERNEL = """
import torch, triton_gru
from tests.ptx.device import emulate_gpu
from triton_gru.plan.device import KNOWN_DEVICES

def test_wrong():
    with emulate_gpu(KNOWN_DEVICES["H200"], 1), torch.no_grad():
        triton_gru.GRU(5, 6, backend="block").eval()(torch.randn(3, 2, 5))
    assert False, "a bad number"
"""


# A file of tests of which the first loses the GPU, which is planted.
LOSES_THE_GPU = """
import sys, types

LOST = []

def synchronize():
    if LOST:
        raise RuntimeError("an illegal memory access was encountered")

sys.modules["torch"] = types.SimpleNamespace(
    cuda=types.SimpleNamespace(is_available=lambda: True, synchronize=synchronize, empty_cache=lambda: None)
)

def test_loses():
    LOST.append(True)
    assert False, "a bad number"

def make_test():
    def test():
        assert not LOST, "the GPU is lost"
    return test

for index in range(20):
    globals()[f"test_{index}"] = make_test()
"""


@pytest.fixture
def run_pytest(tmp_path):
    """Return a function that runs pytest on the planted file with the plugin, and returns what it printed."""
    (tmp_path / "test_planted.py").write_text(PLANTED)

    def run_in_folder(*options: str, status: int | None = None) -> str:
        """Return what pytest printed. Assert that it exited with ``status`` if a status is given."""
        command = [sys.executable, "-m", "pytest", "test_planted.py", "--rootdir", ".", "-c", os.devnull, "-q"]
        command += [
            "-p",
            "xdist",
            "-p",
            "tests.outcomes",
            "--no-summary",
            "--outcomes",
            tmp_path / "right.csv",
            *options,
        ]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "GIT_SHA": "abc"}
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # hypothesis takes a second to import
        ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert status in (None, ended.returncode), ended.stdout
        return ended.stdout

    return run_in_folder


@pytest.mark.parametrize("workers", [(), ("-n", "2", "--maxschedchunk", "1")], ids=["alone", "xdist"])
def test_writes_outcomes_and_repeats_nothing_done(run_pytest, tmp_path, workers):
    path = tmp_path / "right.csv"
    if not workers:  # the process that dies is the only one
        run_pytest()
        assert outcomes.describe_counts(outcomes.read_outcomes(path)) == "4 owed, 1 passed, 1 begun; 2 of 6 ran"
        run_pytest("-k", "not dies")
    else:
        printed = run_pytest(*workers)
        assert "crashed while running" in printed
    first_outcomes = outcomes.read_outcomes(path)
    assert {name.split("::")[1]: outcome for name, outcome in first_outcomes.items()} == {
        "test_good": "passed", "test_dies": "begun" if not workers else "failed", "test_skipped": "skipped",
        "test_wrong": "failed", "test_setup": "failed", "test_teardown": "failed",
    }  # fmt: skip
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    failed_row = next(row for row in rows if row["test"].endswith("wrong") and row["outcome"] == "failed")
    assert "a bad number" in failed_row["error"] and failed_row["git_sha"] == "abc"

    (tmp_path / "mended").touch()
    printed = run_pytest("-k", "not dies", *workers)
    second_outcomes = outcomes.read_outcomes(path)
    assert next(outcome for name, outcome in second_outcomes.items() if name.endswith("wrong")) == "passed"
    with path.open(newline="") as file:
        repeated = [row["test"].split("::")[1] for row in list(csv.DictReader(file))[len(rows) :]]
    assert set(repeated) == {"test_wrong", "test_setup", "test_teardown"}
    assert "of all tests so far: 3 failed, 2 passed, 1 skipped; 6 of 6 ran" in printed or "1 begun" in printed


def test_failure_is_printed_in_full_at_once(run_pytest, tmp_path):
    """The CSV and the printed report also have the plan of the call that the kernel served, with its configuration."""
    (tmp_path / "test_planted.py").write_text(FAILS_ON_A_KERNEL)
    printed = run_pytest()
    assert printed.index("FAILED") < printed.index("of all tests so far: 1 failed; 1 of 1 ran")
    for text in (printed, (tmp_path / "right.csv").read_text()):
        assert "a bad number" in text and "plan of the last call" in text and "units=16" in text


@pytest.mark.parametrize("workers", [(), ("-n", "1", "--maxschedchunk", "1")], ids=["alone", "xdist"])
def test_process_that_has_lost_the_gpu_runs_no_other_test(run_pytest, tmp_path, workers):
    """A new worker runs the others. It chooses the same tests, though some have passed or failed meanwhile."""
    (tmp_path / "test_planted.py").write_text(LOSES_THE_GPU)
    run_pytest("-k", "test_3", status=0)
    printed = run_pytest(*workers, status=1)
    assert "FAILED test_planted.py::test_loses" in printed and "a bad number" in printed
    if not workers:
        assert "test_loses has lost the GPU" in printed and "19 owed" in printed
        printed = run_pytest()
    assert "of all tests so far: 20 passed, 1 failed; 21 of 21 ran" in printed


def test_succeeds_when_all_is_done_and_fails_without_tests(run_pytest):
    run_pytest("-k", "good", status=0)
    assert "1 passed; 1 of 1 ran" in run_pytest("-k", "good", status=0)
    run_pytest("-k", "nonesuch", "--outcomes", "another.csv", status=pytest.ExitCode.NO_TESTS_COLLECTED)


def test_shards_share_the_tests(run_pytest, tmp_path):
    for index in (1, 2, 3):
        run_pytest("-k", "not dies", "--shard", f"{index}/3", "--outcomes", tmp_path / f"{index}.csv")
    names = [name for index in (1, 2, 3) for name in outcomes.read_outcomes(tmp_path / f"{index}.csv")]
    assert len(names) == len(set(names)) == 5


def test_no_test_begins_after_the_deadline(run_pytest, tmp_path):
    printed = run_pytest("--seconds", "0", "-n", "2")
    assert "6 owed; 0 of 6 ran" in printed
    assert set(outcomes.read_outcomes(tmp_path / "right.csv").values()) == {"owed"}
