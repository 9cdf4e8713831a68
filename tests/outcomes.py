"""A pytest plugin that records the outcome of each test in a CSV, so that tests can run in pieces.

    pytest tests -m gpu -n 12 --maxschedchunk 2 -p tests.outcomes --outcomes right.csv --seconds 130

A test that passed or was skipped does not run again. Tests without an outcome come first, in pytest's order. Failed
tests follow, then tests that began and did not end. No test begins after ``--seconds``. A failure is printed at once
and in full, with the plan of the last call that a kernel served (without prepared calls). If a test has several rows,
its last row takes precedence. An outcome is "owed" (collected), "begun", "passed", "skipped" or "failed".

A failed test that loses the GPU ends its process, in which all later tests would fail. pytest-xdist replaces a worker.
"""

import csv
import os
import pathlib
import sys
import time
from collections import Counter

import pytest

from perf.stamp import read_commit, timestamp

FIELDS = ("timestamp_utc", "git_sha", "test", "outcome", "seconds", "error")
# The order in which outcomes run. Tests with other outcomes do not run.
_ORDER = {"owed": 0, "failed": 1, "begun": 2}
_MAX_ERROR_CHARACTERS = 4000


def pytest_addoption(parser):
    """Add the plugin's command line options."""
    group = parser.getgroup("outcomes")
    group.addoption("--outcomes", type=pathlib.Path, required=True, help="the CSV, created or continued")
    group.addoption("--seconds", type=float, default=float("inf"), help="no test begins later than this")
    group.addoption("--shard", default="1/1", help="2/8: the second of every eight tests")


@pytest.hookimpl(trylast=True)  # after the terminal reporter
def pytest_configure(config):
    """Register `_Runner`. In the process that receives the reports, also register `_Recorder` and set the deadline."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Recorder(config))
        # pytest-xdist's workers read these variables. A worker that replaces another must choose the same tests, and so
        # must not read the outcomes of this run.
        os.environ["OUTCOMES_END"] = str(time.time() + config.option.seconds)
        os.environ["OUTCOMES_EARLIER_ROWS"] = str(len(_read_rows(config.option.outcomes)))
    config.pluginmanager.register(_Runner(config))


def read_outcomes(path: pathlib.Path, num_rows: int | None = None) -> dict[str, str]:
    """Return the last outcome of each test in the file, or in its first ``num_rows`` rows; {} without a file."""
    return {row["test"]: row["outcome"] for row in _read_rows(path)[:num_rows] if row["outcome"]}


def _read_rows(path: pathlib.Path) -> list[dict[str, str]]:
    """Return the rows of the file, or [] if it does not exist."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def describe_counts(outcomes: dict[str, str]) -> str:
    """Describe how many tests have each outcome, and how many of all ran. Tests that only began count as run."""
    counts = Counter(outcomes.values())
    ran = counts.total() - counts["owed"]
    return f"{', '.join(f'{n} {outcome}' for outcome, n in counts.most_common())}; {ran} of {counts.total()} ran"


class _Runner:
    """A plugin of every process that runs tests. It chooses the tests, and begins none after the deadline."""

    def __init__(self, config):
        self._is_worker = hasattr(config, "workerinput")
        self._earlier_outcomes = read_outcomes(config.option.outcomes, int(os.environ["OUTCOMES_EARLIER_ROWS"]))
        self._plan, self._has_lost_gpu = "", False

    @pytest.hookimpl(trylast=True)  # after -m and -k
    def pytest_collection_modifyitems(self, config, items):
        """Keep the tests of this shard that are to run, in the order of `_ORDER`."""
        index, shards = map(int, config.option.shard.split("/"))
        outcomes = {item: self._earlier_outcomes.get(item.nodeid, "owed") for item in items[index - 1 :: shards]}
        chosen = sorted(
            (item for item in outcomes if outcomes[item] in _ORDER), key=lambda item: _ORDER[outcomes[item]]
        )
        if left_out := set(items) - set(chosen):
            config.hook.pytest_deselected(items=list(left_out))
        items[:] = chosen

    def pytest_collection_finish(self):
        """Patch the library, if a test imported it, to note the plan of each call that a kernel serves.

        Exception: a prepared call has no plan to note.
        """
        if (launch := sys.modules.get("triton_gru.launch.execute")) is None:
            return
        run_kernels = launch._run_kernels

        def run_and_note_plan(call, plan):
            self._plan = plan
            return run_kernels(call, plan)

        launch._run_kernels = run_and_note_plan

    def pytest_runtest_protocol(self, item):
        """Skip a test without a report if the deadline has passed."""
        self._plan = ""
        # pytest does not run the test if a hook returns True.
        return True if time.time() > float(os.environ["OUTCOMES_END"]) else None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self):
        """Add the plan of the last call that a kernel served to the report of a failed test."""
        report = yield
        if report.failed and self._plan:
            report.sections.append(("plan of the last call that a kernel served", str(self._plan)))
        self._has_lost_gpu = report.failed and _is_gpu_lost()
        return report

    @pytest.hookimpl(trylast=True)  # after the report was written, or sent by a worker
    def pytest_runtest_logreport(self, report):
        """End this process if its test has lost the GPU. The process that receives reports runs no test itself."""
        if not self._has_lost_gpu:
            return
        if self._is_worker:
            os._exit(1)  # pytest-xdist then reports that the worker crashed in this test, and replaces the worker
        pytest.exit(f"{report.nodeid} has lost the GPU, so that all later tests would fail", returncode=1)


def _is_gpu_lost() -> bool:
    """Return whether this process can no longer use the GPU. Without torch it has not used any."""
    if "torch" not in sys.modules:
        return False
    from perf.gpu import is_gpu_lost  # not at the top, because this import takes seconds

    return is_gpu_lost()


class _Recorder:
    """A plugin of the one process that receives all reports. It writes the rows and prints failures."""

    def __init__(self, config):
        self._print = config.pluginmanager.getplugin("terminalreporter").write_line
        self._path = path = config.option.outcomes
        self._outcomes = read_outcomes(path)
        self._sha = read_commit()
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self._outcomes:
            with path.open("w", newline="") as file:
                csv.writer(file).writerow(FIELDS)

    def pytest_collection_finish(self, session):
        self._write_owed([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)  # of pytest-xdist
    def pytest_xdist_node_collection_finished(self, ids):
        self._write_owed(ids)

    def _write_owed(self, tests: list[str]):
        """Write a row "owed" for each test that has no outcome yet."""
        self._write([(test, "owed") for test in tests if test not in self._outcomes])

    def pytest_runtest_logstart(self, nodeid):
        self._write([(nodeid, "begun")])

    def pytest_runtest_logreport(self, report):
        """Record the outcome of a test. Print a failure at once. Skip passed set-ups and tear-downs."""
        if report.passed and report.when != "call":
            return
        error = ""
        if report.failed:
            error = "\n".join([report.longreprtext, *(f"{title}:\n{text}" for title, text in report.sections)])
            self._print(f"\nFAILED {report.nodeid}\n{error}", flush=True)
        self._write([(report.nodeid, report.outcome, f"{report.duration:.2f}", error[-_MAX_ERROR_CHARACTERS:])])

    def pytest_sessionfinish(self, session, exitstatus):
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self._outcomes:
            session.exitstatus = pytest.ExitCode.OK  # all tests have passed or were skipped before

    def pytest_terminal_summary(self):
        self._print(f"\nof all tests so far: {describe_counts(self._outcomes)}")

    def _write(self, rows: list[tuple]):
        """Append rows to the CSV: (test, outcome), or (test, outcome, seconds, error). Missing fields stay empty."""
        now = timestamp()
        added_fields = 2  # time and commit
        with self._path.open("a", newline="") as file:
            csv.writer(file).writerows(
                [now, self._sha, *row, *[""] * (len(FIELDS) - added_fields - len(row))] for row in rows
            )
        self._outcomes |= {row[0]: row[1] for row in rows}
