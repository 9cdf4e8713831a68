"""Rows, quantiles and the gate before any time is taken."""

import argparse
import csv
import dataclasses
import time

import pytest
import torch

import triton_gru
from perf import block_vs_torch
from perf.record import Report, Row
from perf.timing import interleaved, quantiles


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


OPTIONS = argparse.Namespace(device="cpu", steps=5, rounds=3)


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_a_cell_of_the_sweep(precision):
    rows = block_vs_torch.measure(precision, 16, 2, OPTIONS)
    assert [row.provider for row in rows] == ["triton_gru", "torch.nn.GRU"]
    for row in rows:
        assert (row.T, row.B, row.I, row.H, row.n, row.status) == (5, 2, 16, 16, 3, "ok")
        assert 0 < row.p20_ms <= row.p50_ms <= row.p80_ms


@pytest.mark.parametrize("planted", [0.1, float("nan")])
def test_a_wrong_provider_gets_no_time(planted, monkeypatch):
    def forward(self, input, hx=None):
        output, h_n = torch.nn.GRU.forward(self, input, hx)
        return output + planted, h_n

    monkeypatch.setattr(triton_gru.GRU, "forward", forward)
    ours, theirs = block_vs_torch.measure("fp16", 16, 2, OPTIONS)
    assert (ours.status, ours.p50_ms) == ("wrong", "")
    assert theirs.status == "ok"
    assert theirs.p50_ms > 0
