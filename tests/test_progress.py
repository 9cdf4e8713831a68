"""How far tuning is, by planted times."""

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
    clock = types.SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_the_time_left_is_by_the_pace_of_candidates_and_no_more_than_the_budgets_rest(clock):
    said = []
    tracker = Tracker({KEY: 30, SECOND: 10}, float("inf"), said.append)
    tracker.begin()
    assert (said[-1].seconds_left, said[-1].time_left, said[-1].fraction_done) == (None, "", 0.0)
    assert "left" not in str(said[-1])
    clock.now += 60
    tracker.update("compiling 15 of 30", 0.5)  # 15 of 40 in a minute
    assert said[-1].seconds_left == pytest.approx(100) and said[-1].fraction_done == 15 / 40
    assert str(said[-1]) == "[1/2] fp16 H=512 B<=16 T=100: compiling 15 of 30, about 2 min left"
    clock.now += 60
    tracker.begin()
    assert (said[-1].number, said[-1].shapes, said[-1].key) == (2, 2, SECOND)
    assert said[-1].seconds_left == pytest.approx(40)
    tracker = Tracker({KEY: 30, SECOND: 10}, clock.now + 90, said.append)
    tracker.begin()
    assert said[-1].seconds_left == 90
    clock.now += 60
    tracker.update("compiling", 0.5)
    assert said[-1].seconds_left == 30
    clock.now += 60
    tracker.begin()
    assert said[-1].seconds_left == 0 and said[-1].time_left == "about 1 s left"


def test_it_is_said_from_time_to_time(clock):
    said = []
    tracker = Tracker({KEY: 100}, float("inf"), said.append)
    tracker.begin()
    for number in range(100):
        clock.now += 0.1
        tracker.update(f"compiling {number} of 100", number / 100)
    assert 9 <= len(said) <= 11


@pytest.mark.parametrize(
    "changes, words",
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
def test_a_shape_is_said_in_few_words(changes, words):
    assert describe_shape(dataclasses.replace(PROBLEM, **changes).key()) == words


def test_a_caller_is_told_progress_and_lines(tables, capsys):
    said = []
    triton_gru.tune([PROBLEM], bench=PlantedBench(plant_times(lambda candidate: 0.5)), report=said.append)
    assert [type(each) for each in said] == [Progress, str]
    assert said[1] == (
        "fp16 H=512 B<=16 T=100: grid 500 us, 1.00 times as fast as untuned (grid), 2.00 times as fast as nn.GRU"
    )
    large = dataclasses.replace(PROBLEM, hidden_size=2048, dtype=torch.float32, precision="tf32", steps=64)
    triton_gru.tune([large], bench=PlantedBench(plant_times(lambda candidate: 2.0)), report=said.append)
    triton_gru.tune([large], bench=PlantedBench(plant_times(lambda candidate: 0.5)), remeasure=True, report=said.append)
    assert [said[3].partition(": ")[2], said[5].partition(": ")[2]] == [
        "nn.GRU 1.00 ms, as untuned", "step 500 us, 2.00 times as fast as untuned (nn.GRU)",
    ]  # fmt: skip
    triton_gru.tune([PROBLEM], bench=PlantedBench(None), report=print)
    assert capsys.readouterr().out == "1 of 1 shape already in the table, and not measured again\n"
