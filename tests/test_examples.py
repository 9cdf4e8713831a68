"""The programs in scripts/examples: on a CPU as their README shows them, and on kernels."""

import importlib
import os
import pathlib
import re
import subprocess
import sys

import pytest

from triton_gru.plan.planner import KERNELS
from triton_gru.tuning import run
from triton_gru.tuning.space import candidates

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "scripts/examples"))

import ragged
import streaming
import tune_recorded

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "scripts/examples"
README = (FOLDER / "README.md").read_text()
NAMES = "ragged", "streaming", "from_onnx", "tune_recorded"


def read_shown_output(name: str) -> str:
    """Return the output that the README shows for a program: the first text block after its command."""
    return README.split(f"\npython scripts/examples/{name}.py\n")[1].split("```text\n")[1].split("```")[0]


def hide_measurements(text: str) -> str:
    """Return a program's output with "#" for numbers like 1.2e-07: they are errors, whose digits depend on the CPU."""
    return re.sub(r"\d\.\de[+-]\d\d", "#", text)


def test_readme_describes_every_program():
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == sorted(NAMES)
    assert re.findall(r"^## `(\w+)\.py`", README, re.MULTILINE) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_prints_what_the_readme_shows_on_a_cpu(name, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(FOLDER / f"{name}.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert hide_measurements(done.stdout) == hide_measurements(read_shown_output(name))
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_ragged_on_a_kernel(device, launched, capsys):
    ragged.main(device, **{} if device == "cuda" else {"lengths": (4, 2, 1), "hidden": 64})
    assert launched.scan_count
    assert "(a Triton kernel)" in capsys.readouterr().out


def test_streaming_on_a_kernel(device, launched, capsys):
    frames, sizes = (200, {}) if device == "cuda" else (6, {"frames": 6, "batch": 2, "hidden": 64})
    streaming.main(device, **sizes)
    layers, warm_up = 2, 1
    assert launched.has_only("step") and launched.scan_count == layers * (warm_up + frames)
    printed = capsys.readouterr().out
    assert "served by: step (a Triton kernel)" in printed
    assert (" us a frame" in printed) == (device == "cuda")


@pytest.fixture
def from_onnx():
    """Return the example's module. Skip the test without the package onnx."""
    pytest.importorskip("onnx", reason="onnx is not installed; scripts/test installs it")
    return importlib.import_module("from_onnx")


def test_from_onnx_on_a_kernel(from_onnx, device, launched, capsys):
    from_onnx.main(device=device, **{} if device == "cuda" else {"steps": 4, "hidden": 64})
    assert launched.scan_count
    assert "(a Triton kernel)" in capsys.readouterr().out


def test_from_onnx_takes_a_file(from_onnx, tmp_path, capsys):
    from_onnx.onnx.save(from_onnx.make_model(3, 5), tmp_path / "model.onnx")
    from_onnx.main(str(tmp_path / "model.onnx"), "encoder", "cpu")
    printed = capsys.readouterr().out
    assert printed.startswith("triton_gru.GRU(3, 5, reset_after=False)\n") and "ONNX:" not in printed


def test_tune_recorded_on_kernels(device, tables, launched, monkeypatch, tmp_path, capsys):
    """Tune with one candidate of each kernel, in few rounds."""
    for name in ("timing.WARMUP", "timing.LEAST_ROUNDS", "run._SCREENING_ROUNDS"):
        monkeypatch.setattr(f"triton_gru.tuning.{name}", 1)

    def choose_one_of_each_kernel(problem, gpu):
        all_candidates = candidates(problem, gpu)
        return [next(entry for entry in all_candidates if entry.kernel == kernel) for kernel in KERNELS]

    monkeypatch.setattr(run, "candidates", choose_one_of_each_kernel)
    tune_recorded.main(str(tmp_path / "recorded"), 20, device, requests=1, max_steps=3, hidden=16)
    assert {"block_scan", "grid_scan", "step_scan"} <= set(launched)
    assert (tmp_path / "recorded").is_file()
    printed = capsys.readouterr().out
    (table,) = tables.glob("*.json")
    assert f"  kept in {table}\n" in printed and "  winner " in printed
