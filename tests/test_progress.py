"""Progress of tuning, with planted times."""

import dataclasses
import types

import pytest
import torch

import triton_gru
from triton_gru.tuning import progress
from triton_gru.tuning.progress import Progress, Tracker, describe_shape

from .planted import PROBLEM, PlantedBench, plant_times

KEY = PROBLEM.key()
SECOND = dataclasses.replace(KEY, batch=64)


@pytest.fixture
def clock(monkeypatch):
    """Return a clock of the progress reports that stands still. Tests advance ``now``."""
    clock = types.SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_time_left_follows_the_pace_and_is_limited_by_the_budget(clock):
    reports = []
    tracker = Tracker({KEY: 30, SECOND: 10}, float("inf"), reports.append)
    tracker.begin()
    assert (reports[-1].seconds_left, reports[-1].time_left, reports[-1].fraction_done) == (None, "", 0.0)
    assert "left" not in str(reports[-1])
    clock.now += 60
    tracker.update("compiling 15 of 30", 0.5)  # 15 of all 40 candidates in a minute
    assert reports[-1].seconds_left == pytest.approx(100) and reports[-1].fraction_done == 15 / 40
    assert str(reports[-1]) == "[1/2] fp16 H=512 B<=16 T=100: compiling 15 of 30, about 2 min left"
    clock.now += 60
    tracker.begin()
    assert (reports[-1].number, reports[-1].shapes, reports[-1].key) == (2, 2, SECOND)
    assert reports[-1].seconds_left == pytest.approx(40)
    tracker = Tracker({KEY: 30, SECOND: 10}, clock.now + 90, reports.append)
    tracker.begin()
    assert reports[-1].seconds_left == 90
    clock.now += 60
    tracker.update("compiling", 0.5)
    assert reports[-1].seconds_left == 30
    clock.now += 60
    tracker.begin()
    assert reports[-1].seconds_left == 0 and reports[-1].time_left == "about 1 s left"


def test_progress_is_reported_at_intervals(clock):
    reports = []
    tracker = Tracker({KEY: 100}, float("inf"), reports.append)
    tracker.begin()
    for number in range(100):
        clock.now += 0.1
        tracker.update(f"compiling {number} of 100", number / 100)
    assert 9 <= len(reports) <= 11


@pytest.mark.parametrize(
    "changes, description",
    [
        ({}, "fp16 H=512 B<=16 T=100"),
        ({"dtype": torch.float32, "precision": "tf32", "input_size": 80}, "tf32 H=512 I=80 B<=16 T=100"),
        ({"dtype": torch.float32, "bidirectional": True}, "fp32 H=512 B<=16 T=100 bidirectional"),
        (
            {"dtype": torch.bfloat16, "num_layers": 2, "reset_after": False, "layout": "packed"},
            "bf16 H=512 B<=16 T=100 2 layers reset_after=False packed",
        ),
    ],
)
def test_shape_is_described_in_few_words(changes, description):
    assert describe_shape(dataclasses.replace(PROBLEM, **changes).key()) == description


def test_report_gets_progress_and_lines(tables, capsys):
    reports = []
    triton_gru.tune([PROBLEM], bench=PlantedBench(plant_times(lambda candidate: 0.5)), report=reports.append)
    assert [type(report) for report in reports] == [Progress, str]
    assert reports[1] == (
        "fp16 H=512 B<=16 T=100: grid 500 us, 1.00 times as fast as untuned (grid), 2.00 times as fast as nn.GRU"
    )
    large = dataclasses.replace(PROBLEM, hidden_size=2048, dtype=torch.float32, precision="tf32", steps=64)
    triton_gru.tune([large], bench=PlantedBench(plant_times(lambda candidate: 2.0)), report=reports.append)
    triton_gru.tune(
        [large], bench=PlantedBench(plant_times(lambda candidate: 0.5)), remeasure=True, report=reports.append
    )
    assert [reports[3].partition(": ")[2], reports[5].partition(": ")[2]] == [
        "nn.GRU 1.00 ms, as untuned", "step 500 us, 2.00 times as fast as untuned (nn.GRU)",
    ]  # fmt: skip
    triton_gru.tune([PROBLEM], bench=PlantedBench(None), report=print)
    assert capsys.readouterr().out == "1 of 1 shape already in the table, and not measured again\n"
