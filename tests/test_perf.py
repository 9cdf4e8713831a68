"""Rows, quantiles and the gate before any time is taken."""

import argparse
import csv
import dataclasses
import time
import types

import pytest
import torch

import triton_gru
from perf import hop, kernels_vs_torch
from perf.hop_launch import Launcher, make_hop
from perf.record import Report, Row
from perf.timing import LEAST_ROUNDS, interleaved, quantiles
from perf.variants import Cell, Variant
from triton_gru.device import INTERPRETER


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_report_grows_row_by_row(tmp_path):
    path = tmp_path / "folder" / "report.csv"
    first = Report(path, "cpu")
    first.add(Row(provider="a", T=3, p50_ms=1.5, error='quotes " and, commas\nand lines'))
    assert len(read(path)) == 1
    Report(path, "cpu").add(Row(provider="b"))
    rows = read(path)
    assert [row["provider"] for row in rows] == ["a", "b"]
    assert list(rows[0]) == [field.name for field in dataclasses.fields(Row)]
    assert rows[0]["error"] == 'quotes " and, commas\nand lines'
    assert rows[0]["p50_ms"] == "1.5"
    assert rows[0]["torch"] == torch.__version__
    assert rows[0]["gpu_name"].startswith("none: ")
    assert rows[0]["run_id"] != rows[1]["run_id"]


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
    times = interleaved(calls, rounds=4, device="cpu")
    assert order[-8:] == ["slow", "fast 1", "slow", "fast 2"] * 2
    assert times["slow"].p50 >= 20
    assert times["fast"].p50 < 5


def test_rounds_end_when_their_time_is_over():
    calls = {"any": [lambda: time.sleep(0.01)]}
    assert interleaved(calls, rounds=1000, device="cpu", seconds=0.02)["any"].n == LEAST_ROUNDS


OPTIONS = argparse.Namespace(device="cpu", steps=2, rounds=3, seconds=10.0)
VARIANTS = [Variant(kernel) for kernel in ("auto", "block", "grid", "step")] + [Variant("grid", handover="tag")]


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_a_cell_of_the_sweep(precision):
    rows = kernels_vs_torch.measure(Cell(precision, 16, 2), VARIANTS, OPTIONS)
    ours = ["triton_gru", "triton_gru.block", "triton_gru.grid", "triton_gru.step", "triton_gru.grid.tag"]
    assert [row.provider for row in rows] == ["torch.nn.GRU", *ours]
    assert [row.kernel for row in rows] == ["torch", "torch", "block", "grid", "step", "grid"]
    for row in rows:
        assert (row.T, row.B, row.I, row.H, row.n, row.status) == (2, 2, 16, 16, 3, "ok")
        assert 0 < row.p20_ms <= row.p50_ms <= row.p80_ms
    assert "handover='tag'" in rows[-1].config
    assert len(kernels_vs_torch.summary(rows).splitlines()) == len(rows)


def test_a_kernel_that_cannot_serve_a_cell_is_a_row_that_says_why():
    rows = kernels_vs_torch.measure(Cell("fp16", 1040, 1), [Variant("grid")], OPTIONS)
    assert (rows[1].status, rows[1].n) == ("failed", 0)
    assert "65 programs have to be on the chip at once" in rows[1].error
    assert "65 programs" in kernels_vs_torch.summary(rows)


@pytest.mark.parametrize("planted", [0.1, float("nan")])
def test_a_wrong_provider_gets_no_time(planted, monkeypatch):
    def forward(self, input, hx=None):
        output, h_n = torch.nn.GRU.forward(self, input, hx)
        return output + planted, h_n

    monkeypatch.setattr(triton_gru.GRU, "forward", forward)
    theirs, ours = kernels_vs_torch.measure(Cell("fp16", 16, 2), [Variant("auto")], OPTIONS)
    assert (ours.status, ours.p50_ms) == ("wrong", "")
    assert theirs.status == "ok"
    assert theirs.p50_ms > 0


HOPS = [make_hop(4, 1, handover, "interpreter") for handover in hop.HANDOVERS]


def test_every_handover_ends_with_the_known_answer():
    rows = hop.measure(HOPS, 3, 1, torch.device("cpu"), INTERPRETER)
    assert [(row.provider, row.status, row.n) for row in rows] == [
        (f"hop.{handover}.interpreter", "ok", 0) for handover in hop.HANDOVERS
    ]


def test_a_hop_that_hands_over_something_else_is_wrong(monkeypatch):
    """One pass too few of a launch in the interpreter: the last programs' last words have not come."""
    init = Launcher.__init__

    def one_pass(self, *args):
        init(self, *args)
        self.passes = 1

    monkeypatch.setattr(Launcher, "__init__", one_pass)
    assert {row.status for row in hop.measure(HOPS, 3, 1, torch.device("cpu"), INTERPRETER)} == {"wrong"}


def test_a_hop_that_the_device_has_no_room_for_is_skipped_with_a_reason():
    assert "multiprocessors" in hop.obstacle(make_hop(128, 4, "flag", "ptx"), INTERPRETER)
    assert hop.obstacle(make_hop(64, 4, "flag", "ptx"), INTERPRETER) == ""


class Stub:
    """A launcher for no device, whose tags give up and whose counters end with something else."""

    spills = 0
    mailbox = types.SimpleNamespace(longest=80)

    def __init__(self, hop, steps, device, described):
        self.handover = hop.handover

    def is_right(self, call):
        if self.handover == "tag":
            raise RuntimeError("gave up")
        return self.handover == "flag"


@pytest.fixture
def measured_on_a_stub(monkeypatch):
    def samples(calls, rounds, device, seconds):
        return {(provider, steps): [0.5 + 0.003 * steps] * rounds for provider, steps in calls}

    def measure(gave_up):
        monkeypatch.setattr(hop, "_gave_up", lambda: gave_up)
        return hop.measure(HOPS, 1000, 5, torch.device("cuda"), INTERPRETER)

    monkeypatch.setattr(hop, "Launcher", Stub)
    monkeypatch.setattr(hop, "graphed", lambda call: call)
    monkeypatch.setattr(hop, "samples", samples)
    return measure


def test_a_hop_is_the_difference_of_two_launches(measured_on_a_stub):
    rows = measured_on_a_stub(gave_up="")
    timed = {(row.mode, row.variant, row.T): row.p50_ms for row in rows if row.n}
    launches = {1: 0.503, 10: 0.53, 80: 0.74}
    expected = {(mode, "launch", steps): ms for mode in ("eager", "graph") for steps, ms in launches.items()}
    assert timed == pytest.approx(expected | {(mode, "hop", 80): 0.003 for mode in ("eager", "graph")})
    assert {row.provider: (row.status, row.error, row.n) for row in rows if row.status != "ok"} == {
        "hop.tag.interpreter": ("failed", "gave up", 0),
        "hop.counter.interpreter": ("wrong", "", 0),
    }
    line = hop.table({"a cell": rows}, "eager").splitlines()[1]
    assert line.split() == ["a", "cell", "3.000", "failed", "wrong", "hop.flag.interpreter"]
    lines = hop.table({"a cell": rows, "another": []}, "graph").splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["hop.flag.interpreter", "none"]


def test_a_launch_that_gives_up_while_others_are_timed_leaves_no_times(measured_on_a_stub):
    rows = measured_on_a_stub(gave_up="for 1 s one of its programs did not get")
    assert {row.status for row in rows} == {"failed", "wrong"}
    assert not any(row.n for row in rows)
