"""Rows of CSV files, quantiles, and the order and number of timed rounds."""

import dataclasses
import pathlib
import time
import types

import pytest
import torch

from perf.record import COLUMNS, Row, TimingsCsv, config_text, environment, row_key
from triton_gru.plan.config import StepConfig
from triton_gru.tuning.timing import LEAST_ROUNDS, QUIET_CHECK_ROUNDS, host_clock, quantiles, samples

from .perf_calls import read_csv


def test_csv_grows_row_by_row(tmp_path):
    path = tmp_path / "folder" / "report.csv"
    first = TimingsCsv(path, "cpu")
    first.add(Row(provider="a", T=3, p50_ms=1.5, error='quotes " and, commas\nand lines'))
    assert len(read_csv(first.path)) == 1
    TimingsCsv(path, "cpu").add(Row(provider="b"))
    rows = read_csv(first.path)
    assert rows == first.rows()
    assert [row["provider"] for row in rows] == ["a", "b"]
    assert list(rows[0]) == [field.name for field in dataclasses.fields(Row)]
    assert rows[0]["error"] == 'quotes " and, commas and lines'  # a row is a line
    assert rows[0]["p50_ms"] == "1.5"
    assert rows[0]["torch"] == torch.__version__
    assert rows[0]["gpu_name"].startswith("none: ")
    assert rows[0]["run_id"] != rows[1]["run_id"]


def test_cut_off_row_is_dropped_and_the_others_kept(tmp_path):
    report = TimingsCsv(tmp_path / "report.csv", "cpu")
    path = report.path
    report.add(Row(provider="a"))
    report.add(Row(provider="b", error="why"))
    complete = path.read_bytes()
    for cut in range(0, len(complete), 5):
        path.write_bytes(complete[:cut])
        kept = max(0, complete[:cut].count(b"\n") - 1)
        reopened = TimingsCsv(tmp_path / "report.csv", "cpu")
        assert [row["provider"] for row in read_csv(path)] == ["a", "b"][:kept]
        assert len(reopened.last_statuses()) == kept
    reopened.add(Row(provider="c"))
    assert [row["provider"] for row in read_csv(path)] == ["a", "c"]


def test_csv_with_other_columns_is_refused_and_unchanged(tmp_path):
    path = tmp_path / "mine.csv"
    for text in ("some,other\ntable,1\n", ",".join(COLUMNS).replace("layout", "packed") + "\r\n"):
        path.write_bytes(text.encode())
        with pytest.raises(ValueError, match="other columns than those of schema 5: choose another folder"):
            TimingsCsv(path, "cpu")
        assert path.read_bytes() == text.encode()


def test_configuration_is_written_as_json():
    text = '{"units": 16, "programs": 4, "batch": 8, "depth": 64, "num_warps": 4, "num_stages": 3}'
    assert config_text(StepConfig(16, 4, 8, 64, 4, 3)) == text
    assert config_text(None) == ""


def test_last_statuses_are_found_by_the_key_of_a_row(tmp_path):
    report = TimingsCsv(tmp_path / "report.csv", "cpu")
    row = Row(provider="a", dtype="float32", T=3, B=2, layout="dense", p50_ms=1.0, n=3)
    report.add(row)
    assert row_key(dataclasses.replace(row, p50_ms=2.0, status="failed")) in report.last_statuses()
    for change in ({"provider": "b"}, {"T": 4}, {"mode": "graph"}, {"l2": "cold"}, {"layout": "packed"}):
        assert row_key(dataclasses.replace(row, **change)) not in report.last_statuses()
    report.environment["gpu_name"] = "another"
    assert report.last_statuses() == {}


def test_commit_of_a_copy_comes_from_git_sha(tmp_path, monkeypatch):
    """GIT_SHA takes precedence, also inside of a repository, whose commit may be another one."""
    monkeypatch.setenv("GIT_SHA", "abc")
    for folder in (pathlib.Path(__file__).parent, tmp_path):
        monkeypatch.chdir(folder)
        assert (environment("cpu")["git_sha"], environment("cpu")["git_dirty"]) == ("abc", "")


def test_quantiles():
    times = quantiles([5.0, 1.0, 2.0, 3.0, 4.0, 6.0, 11.0, 8.0, 9.0, 10.0, 7.0])
    assert (times.n, times.p20, times.p50, times.p80) == (11, 3.0, 6.0, 9.0)
    assert times.rel_iqr == 1.0


def test_providers_take_turns():
    order = []
    calls = {
        "slow": [lambda: (order.append("slow"), time.sleep(0.02))],
        "fast": [lambda: order.append("fast 1"), lambda: order.append("fast 2")],
    }
    taken = samples(calls, 4, host_clock)
    rounds = [sorted(order[-2 * n :][:2]) for n in (4, 3, 2, 1)]
    assert rounds == [["fast 1", "slow"], ["fast 2", "slow"]] * 2
    assert quantiles(taken["slow"]).p50 >= 20
    assert quantiles(taken["fast"]).p50 < 5


def test_rounds_end_when_the_seconds_are_over():
    assert len(samples({"any": [lambda: time.sleep(0.01)]}, 1000, host_clock, seconds=0.02)["any"]) == LEAST_ROUNDS


def test_slow_call_takes_warm_up_and_the_seconds_or_the_least_rounds(monkeypatch):
    """Two calls together take 100 ms. Each warms up with its 4 inputs, which does not count against the seconds.

    In a minute, the rounds end once the times are found to be quiet.
    """
    now = 0.0

    def take(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr("triton_gru.tuning.timing.time", types.SimpleNamespace(perf_counter=lambda: now))
    calls = {"slow": [lambda: take(0.09)] * 4, "fast": [lambda: take(0.01)] * 4}
    for seconds, rounds in ((0.6, LEAST_ROUNDS), (1.05, 11), (60.0, QUIET_CHECK_ROUNDS)):  # a round takes 0.1 s
        start = now
        taken = samples(calls, 200, host_clock, seconds, stop_when_quiet=True)
        assert [len(times) for times in taken.values()] == [rounds, rounds]
        assert now - start == pytest.approx(0.1 * (4 + rounds))


def test_order_of_calls_varies_between_rounds():
    order = []
    samples({name: [lambda name=name: order.append(name)] for name in "abc"}, 60, host_clock)
    timed = order[-180:]  # 60 rounds of three calls, without the warm-up
    before_a = [timed[i - 1] for i in range(3, 180) if timed[i] == "a"]
    assert min(before_a.count("b"), before_a.count("c")) > 10


@pytest.mark.parametrize("spread, rounds", [(0.01, QUIET_CHECK_ROUNDS), (0.1, 3 * QUIET_CHECK_ROUNDS)])
def test_rounds_end_early_when_all_calls_are_quiet(spread, rounds):
    """Times alternate between 1 and 1 + spread. A spread within 2 % ends the rounds early, a larger one does not."""
    ticks = iter(range(10_000))
    clock = lambda function: 1 + spread * (next(ticks) // 2 % 2)  # noqa: E731
    taken = samples({"a": [int], "b": [int]}, 3 * QUIET_CHECK_ROUNDS, clock, stop_when_quiet=True)
    assert {len(times) for times in taken.values()} == {rounds}
    assert quantiles(taken["a"]).rel_iqr == pytest.approx(spread, rel=0.1)
