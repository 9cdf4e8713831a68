"""`perf run` on a shape from the command line, and on the GRUs that a model calls."""

import sys

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import triton_gru
from perf.__main__ import main, parse
from perf.case import Case
from perf.providers import PROVIDERS
from perf.shapes import build_sweep
from perf.sweeps import EVERYONE

from .perf_calls import KNOWN_FLOORS, read_finished_rows


def make_cases(*arguments):
    """Return the cases that `perf run` makes of its arguments."""
    return build_sweep(parse(["run", *map(str, arguments)])).cases


def test_options_define_the_case():
    assert make_cases("--hidden", 256) == (Case("tf32", 256, 1, 100),)
    options = "--input 80 --batch 8 --steps 200 --layers 2 --bidirectional --reset-before --layout lengths --dtype bf16"
    assert make_cases("--hidden", 256, *options.split()) == (
        Case("bf16", 256, 8, 200, 2, 2, "lengths", reset_after=False, input_size=80),
    )
    assert make_cases("--hidden", 8, "--precision", "ieee") == (Case("fp32", 8, 1, 100),)


def test_sizes_are_combined_in_order():
    combined = make_cases(
        *["--hidden", "8", "16", "--batch", "1", "4", "--steps", "5", "--dtype", "fp16", "fp32", "fp16"]
    )
    assert combined == tuple(Case(p, h, b, 5) for p in ("fp16", "tf32") for h in (8, 16) for b in (1, 4))


@pytest.mark.parametrize("arguments", [
    [], ["--hidden", "0"], ["--hidden", "8", "--sweep", "smoke"], ["--hidden", "8", "--model", "a:b"],
    ["--hidden", "8", "--layout", "ragged"], ["--hidden", "8", "--steps", "-1"], ["--hidden", "8", "--dtype", "fp64"],
])  # fmt: skip
def test_invalid_shapes_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        parse(["run", *arguments])
    assert "usage" in capsys.readouterr().err


def test_own_shape_runs_all_providers():
    assert {"triton_gru", "cudnn.standard", "torchrl", "gru_qat.scan", "flashrnn", "flax.scan"} <= set(EVERYONE)
    assert set(EVERYONE) <= set(PROVIDERS)
    assert build_sweep(parse(["run", "--hidden", "8"])).providers == EVERYONE


@pytest.fixture
def run_own(tmp_path, monkeypatch):
    """Return a function that runs `perf run` with the given arguments, and returns the rows of its CSV."""
    monkeypatch.setattr("perf.run.load_or_measure", lambda *_: KNOWN_FLOORS)

    def run_own(*arguments):
        options = ["--seconds", "0.02", "--out", str(tmp_path), "--provider", "triton_gru"]
        assert main(["run", *map(str, arguments), *options]) == 0
        return read_finished_rows(tmp_path / "own-cpu.csv")

    return run_own


@pytest.mark.parametrize("layout", ["dense", "lengths", "packed"])
def test_own_shape_is_timed_in_every_layout(layout, run_own, kernels_on_cpu):
    rows = run_own("--hidden", 20, "--input", 7, "--batch", 3, "--steps", 5, "--reset-before", "--layout", layout)
    assert [row["provider"] for row in rows] == ["torch.nn.GRU", "triton_gru"]
    for row in rows:
        assert (row["I"], row["H"], row["B"], row["T"], row["layout"]) == ("7", "20", "3", "5", layout)
        assert (row["variant"], row["dtype"], row["status"] in ("ok", "noisy")) == ("reset_before", "float32", True)
    assert rows[1]["kernel"] == "block"


@pytest.mark.usefixtures("few_calls")
def test_grus_of_a_model_are_timed_at_the_shapes_of_its_calls(run_own, monkeypatch, capsys):
    """`perf run` times a shape once, the most frequent first. It leaves out a GRU that is never called, and resets."""

    def serve():
        gru, other = nn.GRU(3, 4, 2, batch_first=True, bidirectional=True).eval(), nn.GRU(9, 9)
        for steps in (5, 7, 7):
            gru(torch.randn(2, steps, 3))
        ours = triton_gru.GRU(3, 6).eval()
        ours(pack_padded_sequence(torch.randn(9, 2, 3), [9, 1]))
        ours(torch.randn(9, 2, 3), resets=torch.zeros(9, 2, dtype=torch.bool))
        return other

    serving = type(sys)("serving")
    serving.serve = serve
    monkeypatch.setitem(sys.modules, "serving", serving)
    rows = [row for row in run_own("--model", "serving:serve") if row["provider"] == "triton_gru"]
    shapes = [tuple(row[name] for name in ("I", "H", "B", "T", "layers", "directions", "layout")) for row in rows]
    assert shapes == [
        ("3", "4", "2", "7", "2", "2", "dense"), ("3", "4", "2", "5", "2", "2", "dense"),
        ("3", "6", "2", "9", "1", "1", "packed"),
    ]  # fmt: skip
    assert "skipped" in capsys.readouterr().err


@pytest.mark.parametrize("name, message", [
    ("nothing_called_this:f", "No module named"), ("os:nothing", "has no attribute"), ("os", "MODULE:FUNCTION"),
    ("os:getcwd", "called no GRU"),
])  # fmt: skip
def test_model_that_cannot_be_called_is_reported_in_a_line(name, message, capsys):
    assert main(["run", "--model", name]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--sweep", "smoke"], ["--model", "os:getcwd"]])
def test_sizes_without_a_hidden_size_are_refused(arguments, capsys):
    assert main(["run", *arguments, "--batch", "8", "--reset-before"]) == 2
    assert "--batch --reset-before would have no effect: add --hidden" in capsys.readouterr().err


def test_16_bits_on_a_cpu_are_refused(capsys):
    assert main(["run", "--hidden", "8", "--dtype", "fp16"]) == 2
    assert "only fp32" in capsys.readouterr().err
