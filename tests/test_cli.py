"""The command line, as a user calls it."""

import dataclasses
import subprocess
import sys

import pytest
import torch

import triton_gru
from triton_gru import accuracy, cli
from triton_gru.accuracy import check
from triton_gru.plan.device import KNOWN
from triton_gru.plan.planner import KERNELS


def test_info_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    assert triton_gru.__version__ in printed
    assert torch.__version__ in printed
    assert "there is no GPU for the kernels (the kernels need an NVIDIA GPU of compute capability 8.0" in printed


def test_info_lists_what_is_served(monkeypatch, capsys):
    monkeypatch.setattr(cli, "gpus", lambda: [KNOWN["H200"], dataclasses.replace(KNOWN["A100"], arch="sm_75")])
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "block fp16  hidden_size up to 192" in printed
    assert "block fp32  hidden_size up to 128" in printed
    assert "grid  bf16  hidden_size up to 2112" in printed
    assert "step  tf32  any hidden_size" in printed
    assert "needs compute capability 8.0" in printed


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (("--hidden", "64", "--dtype", "fp16", "--device", "H200"), "block: W_hh fits in one program"),
        (("--hidden", "2048", "--dtype", "fp16", "--device", "H200"), "not block  hidden_size 2048 is too large"),
        (("--hidden", "2048", "--dtype", "fp16", "--device", "H200"), "grid: W_hh fits the chip"),
        (("--hidden", "4096", "--dtype", "fp16", "--device", "H200"), "not grid   hidden_size 4096 is too large"),
        (("--hidden", "512", "--steps", "1", "--dtype", "fp16", "--device", "H200"), "step: "),
        (("--hidden", "64", "--dtype", "fp64", "--device", "A100"), "not block, grid, step  no kernel for float64"),
        (("--hidden", "64", "--bidirectional", "--device", "A100"), "1 layer, bidirectional, float32 (TF32)\n"),
        (("--hidden", "64", "--reset-before", "--device", "A100"), "float32 (TF32), reset_after=False\n"),
        (("--hidden", "64", "--reset-before", "--dtype", "fp64", "--device", "A100"), "reference: "),
        (("--hidden", "64", "--precision", "ieee", "--backend", "block", "--device", "H200"), "register_tiles=0"),
        (("--hidden", "64", "--precision", "ieee", "--device", "H200"), "torch: nn.GRU serves the call"),
        (("--hidden", "1024", "--dtype", "fp16", "--device", "H200", "--max-sms", "64"), "H200, 64 SMs"),
    ],
)
def test_explain(arguments, expected, capsys):
    assert cli.main(["explain", *arguments]) == 0
    assert expected in capsys.readouterr().out


def test_explain_what_cannot_be_served(capsys):
    assert cli.main(["explain", "--hidden", "512", "--device", "H200", "--backend", "block"]) == 1
    assert "backend='block' cannot serve this call: hidden_size 512 is too large" in capsys.readouterr().out


def test_explain_for_a_part_of_the_chip_that_is_none(capsys, monkeypatch):
    monkeypatch.setenv("TRITON_GRU_MAX_SMS", "all")
    assert cli.main(["explain", "--hidden", "512", "--device", "H200"]) == 1
    assert "TRITON_GRU_MAX_SMS must be a whole number above 0, got 'all'" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [(), ("explain",), ("explain", "--hidden", "0"), ("tune", "--batch", "1")])
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(list(arguments))
    assert exit.value.code == 2
    assert "usage: triton-gru" in capsys.readouterr().err


def test_explain_from_a_shell():
    command = [sys.executable, "-W", "error::UserWarning", "-m", "triton_gru", "explain"]
    command += ["--hidden", "100", "--dtype", "fp16", "--device", "B200"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("block: ")
    assert not done.stderr


def test_check_without_a_gpu_has_checked_nothing(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["check"]) == 1
    why = "the kernels need an NVIDIA GPU of compute capability 8.0 or later"
    assert capsys.readouterr().out == f"Nothing was checked: {why}.\n"


def test_check_finds_all_right(device, launched, monkeypatch):
    monkeypatch.setattr(accuracy, "HIDDEN_SIZES", {"block": (25,), "grid": (16,), "step": (25,)})
    if device == "cpu":
        monkeypatch.setattr(accuracy, "STEPS", 2)
    results = list(check(device))
    assert {result.precision for result in results} == set(accuracy.PRECISIONS)
    checked = [result for result in results if not result.status.startswith("not served")]
    assert [result.status for result in checked] == ["right"] * len(checked)
    assert len(checked) >= len(results) * 3 // 4
    assert launched.count("input_projection") == 2 * len(checked)
    assert {name for name in launched if name.endswith("_scan")} == {f"{kernel}_scan" for kernel in KERNELS}


@pytest.mark.parametrize("part, planted", [(0, 1.0), (0, float("nan")), (1, float("nan"))])
def test_check_finds_a_wrong_kernel(part, planted, device, monkeypatch, capsys):
    run_right = triton_gru.launch.execute.run

    def run_wrong(call, plan):
        results = run_right(call, plan)
        if call.problem.hidden_size == 25 and plan.kernel == "block":
            results[part][-1, 0, -1] += planted
        return results

    monkeypatch.setattr(triton_gru.launch.execute, "run", run_wrong)
    monkeypatch.setattr(accuracy, "HIDDEN_SIZES", {"block": (16, 25), "grid": (), "step": ()})
    if device == "cpu":
        monkeypatch.setattr(accuracy, "STEPS", 2)
    monkeypatch.setattr(accuracy, "PRECISIONS", {name: accuracy.PRECISIONS[name] for name in ("tf32", "fp16")})
    before = torch.backends.cudnn.rnn.fp32_precision
    assert cli.main(["check"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split() == ["kernel", "precision", "shape", "reset_after", "error", "nn.GRU"]
    assert printed[-1] == "6 wrong of 12 checked"
    assert sum("WRONG" in line for line in printed) == 6
    assert all("H=25 " in line for line in printed if "WRONG" in line)
    assert torch.backends.cudnn.rnn.fp32_precision == before
