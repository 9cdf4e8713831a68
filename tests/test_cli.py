"""Commands of `triton-gru`, called as a user calls them."""

import dataclasses
import subprocess
import sys

import pytest
import torch

import triton_gru
from triton_gru import accuracy, cli
from triton_gru.accuracy import check_kernels
from triton_gru.commands import info
from triton_gru.plan import device as devices
from triton_gru.plan.device import limit_sms
from triton_gru.plan.heuristic import heuristic
from triton_gru.plan.planner import KERNELS, choose, clear_plan_cache
from triton_gru.plan.tables import lookup, store

from .planted import H200, PROBLEM, T4, change_problem, make_entry

EXPLAIN = "triton-gru explain --hidden 512 --batch 16 --dtype fp16"


def run_info(monkeypatch, capsys, *gpus):
    """Return the lines of ``triton-gru info`` on a machine with these GPUs, without the first line (versions)."""
    monkeypatch.setattr(info, "list_gpus", lambda: list(gpus))
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"triton-gru {triton_gru.__version__} (torch {torch.__version__}, Triton ")
    assert all(len(line) <= 120 for line in printed.splitlines() if not line.startswith("Tuned: table /"))
    return printed.splitlines()[1:]


def test_info_without_a_gpu(monkeypatch, capsys):
    assert run_info(monkeypatch, capsys) == [
        "",
        "No kernel runs here: the kernels need an NVIDIA GPU of compute capability 8.0 or later.",
        "triton_gru.accelerate(model) works here, and every call goes to nn.GRU, as fast as before.",
        "",
        "Next",
        f"  show a plan for an H200     {EXPLAIN} --device H200",
        "  list the shapes to tune     triton-gru tune --list --device H200",
    ]


@pytest.mark.parametrize(
    "interpreted, hip, reason",
    [(True, None, "TRITON_INTERPRET was set"), (False, "6.4", "this PyTorch is for AMD GPUs")],
)
def test_info_reports_why_no_kernel_runs(interpreted, hip, reason, monkeypatch, capsys):
    monkeypatch.setattr(devices, "_INTERPRETED", interpreted)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert reason in run_info(monkeypatch, capsys)[1]


def test_info_reports_a_kernel_for_each_size_and_next_steps(tables, monkeypatch, capsys):
    lines = run_info(monkeypatch, capsys, H200)
    assert lines[:4] == [
        "",
        "H200: sm_90, 132 multiprocessors, 227 KiB of shared memory each",
        "",
        "The implementation that serves a GRU in eval(): 100 steps; last column: one step (GRUCell, stream), fp16, B=1",
    ]
    assert lines[4].split("  ")[1] == "H" and len(lines) <= 30  # short enough for one screen
    problem = change_problem(batch_size=64, input_size=2048, hidden_size=2048)
    assert choose(problem, H200).kernel == "torch"
    rows = [line.split() for line in lines[5:12]]
    assert [row[0] for row in rows] == ["64", "128", "256", "512", "1024", "2048", "4096"]
    assert rows[0][1:] == ["block"] * 4 + ["step"]
    assert rows[5][:3] == ["2048", "grid", "nn.GRU"]
    assert lines[12:] == [
        "fp32 is TF32 here (torch.backends.cudnn.rnn.fp32_precision). Training and float64 go to nn.GRU.",
        "Largest H in 16 bits, TF32, ieee: block 192, 128, 128; grid 2112, 1664, 1024; step any.",
        "",
        "Tuned: no shape yet. All shapes are estimated.",
        "",
        "Next",
        "  1. check the results        triton-gru check",
        "  2. tune                     triton-gru tune --budget 10m",
        f"  3. show the plan of a GRU   {EXPLAIN}",
    ]


def test_info_reports_tuned_tables(tables, monkeypatch, capsys):
    """Check that measured times decide, and that stale entries are to be measured again."""
    problem = change_problem(batch_size=1, input_size=64, hidden_size=64)
    fresh = make_entry(problem, "torch", block=(heuristic("block", problem, H200), 2.0), torch=(None, 1.0))
    stale = dataclasses.replace(fresh, key=PROBLEM.key(), env=fresh.env | {"triton": "3.5.1"})
    path = store.save([fresh], H200, tables)
    lines = run_info(monkeypatch, capsys, H200)
    assert lines[5].split()[:3] == ["64", "nn.GRU", "block"]
    assert lines[15:17] == [f"Tuned: table {path}: 1 shape", "All other shapes are estimated."]
    assert lines[-3:] == [
        "  1. check the results        triton-gru check",
        f"  2. show the plan of a GRU   {EXPLAIN}",
        "  3. show tuned shapes        triton-gru table show",
    ]
    store.save([stale], H200, tables)
    lookup.clear_table_cache()
    clear_plan_cache()
    lines = run_info(monkeypatch, capsys, H200)
    assert lines[15].startswith(f"Tuned: table {path}: 2 shapes, 1 of them stale (made with triton 3.5, this is ")
    assert "  2. tune stale shapes again  triton-gru tune --budget 10m" in lines


def test_info_of_several_gpus(tables, monkeypatch, capsys):
    lines = run_info(monkeypatch, capsys, H200, T4, H200)
    heads = [line for line in lines if ": sm_" in line]
    assert heads == [
        "2 x H200: sm_90, 132 multiprocessors, 227 KiB of shared memory each",
        "T4: sm_75, 132 multiprocessors, 227 KiB of shared memory each",
    ]
    reason = "No kernel runs on this GPU: each kernel needs compute capability 8.0 or later, T4 has 7.5."
    assert lines[lines.index(heads[1]) + 1] == reason
    t4_lines = run_info(monkeypatch, capsys, T4)
    assert t4_lines[2] == reason and t4_lines[3].endswith("every call goes to nn.GRU, as fast as before.")
    assert "triton-gru tune --list --device H200" in t4_lines[-1]


def test_info_refuses_an_invalid_max_sms(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(devices, "find_device", lambda device: limit_sms(H200, devices.read_max_sms()))
    monkeypatch.setenv("TRITON_GRU_MAX_SMS", "all")
    assert cli.main(["info"]) == 1
    assert "TRITON_GRU_MAX_SMS must be a whole number above 0, got 'all'" in capsys.readouterr().out


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
        (
            ("--hidden", "64", "--precision", "ieee", "--device", "H200"),
            "torch: nn.GRU serves the call",
        ),
        (("--hidden", "1024", "--dtype", "fp16", "--device", "H200", "--max-sms", "64"), "H200, 64 SMs"),
    ],
)
def test_explain(arguments, expected, capsys):
    assert cli.main(["explain", *arguments]) == 0
    assert expected in capsys.readouterr().out


def test_explain_reports_a_call_that_a_kernel_cannot_serve(capsys):
    assert cli.main(["explain", "--hidden", "512", "--device", "H200", "--backend", "block"]) == 1
    assert "backend='block' cannot serve this call: hidden_size 512 is too large" in capsys.readouterr().out


def test_explain_refuses_an_invalid_max_sms(capsys, monkeypatch):
    monkeypatch.setenv("TRITON_GRU_MAX_SMS", "all")
    assert cli.main(["explain", "--hidden", "512", "--device", "H200"]) == 1
    assert "TRITON_GRU_MAX_SMS must be a whole number above 0, got 'all'" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [(), ("explain",), ("explain", "--hidden", "0"), ("tune", "--batch", "1")])
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(list(arguments))
    assert exit.value.code == 2
    assert "usage: triton-gru" in capsys.readouterr().err


def test_explain_without_a_gpu_tells_how_to_name_one(monkeypatch, capsys):
    monkeypatch.setattr(cli, "list_gpus", list)
    assert cli.main(["explain", "--hidden", "512"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("torch: nn.GRU serves the call, as it is not on a GPU")
    assert printed.endswith("name its GPU: --device H200\n")


def test_explain_from_a_shell():
    command = [sys.executable, "-W", "error::UserWarning", "-m", "triton_gru", "explain"]
    command += ["--hidden", "100", "--dtype", "fp16", "--device", "B200"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("block: ")
    assert not done.stderr


def test_check_without_a_gpu_checks_nothing(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["check"]) == 1
    reason = "the kernels need an NVIDIA GPU of compute capability 8.0 or later"
    assert capsys.readouterr().out == f"Nothing was checked: {reason}.\n"


def test_check_on_a_gpu_without_kernels_checks_nothing(old_gpu_on_cpu, monkeypatch, capsys):
    monkeypatch.setattr(accuracy, "HIDDEN_SIZES", {"block": (16,), "grid": (), "step": ()})
    assert cli.main(["check"]) == 1
    *_, row, last = capsys.readouterr().out.splitlines()
    assert row.endswith("not served: needs compute capability 8.0 or later, T4 has 7.5")
    assert last == "Nothing was checked: no kernel serves any of these shapes on T4."


def test_check_reports_right_kernels(device, launched, monkeypatch):
    monkeypatch.setattr(accuracy, "HIDDEN_SIZES", {"block": (25,), "grid": (16,), "step": (25,)})
    if device == "cpu":
        monkeypatch.setattr(accuracy, "STEPS", 2)
    results = list(check_kernels(device))
    assert {result.precision for result in results} == set(accuracy.PRECISIONS)
    checked = [result for result in results if not result.status.startswith("not served")]
    assert [result.status for result in checked] == ["right"] * len(checked)
    assert len(checked) >= len(results) * 3 // 4
    assert launched.count("input_projection") == 2 * len(checked)
    assert {name for name in launched if name.endswith("_scan")} == {f"{kernel}_scan" for kernel in KERNELS}


@pytest.mark.parametrize("index, added_error", [(0, 1.0), (0, float("nan")), (1, float("nan"))])
def test_check_reports_a_wrong_kernel(index, added_error, device, monkeypatch, capsys):
    run_right = triton_gru.launch.execute.run

    def run_wrong(call, plan):
        """Run the call. Add the error to one element of a result if ``block`` serves H = 25."""
        results = run_right(call, plan)
        if call.problem.hidden_size == 25 and plan.kernel == "block":
            results[index][-1, 0, -1] += added_error
        return results

    monkeypatch.setattr(triton_gru.launch.execute, "run", run_wrong)
    monkeypatch.setattr(accuracy, "HIDDEN_SIZES", {"block": (16, 25), "grid": (), "step": ()})
    if device == "cpu":
        monkeypatch.setattr(accuracy, "STEPS", 2)
    monkeypatch.setattr(accuracy, "PRECISIONS", {name: accuracy.PRECISIONS[name] for name in ("tf32", "fp16")})
    precision_before = torch.backends.cudnn.rnn.fp32_precision
    assert cli.main(["check"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split() == ["kernel", "precision", "shape", "reset_after", "error", "nn.GRU"]
    # 12 checks: two hidden sizes, two precisions, and three pairs of a batch size and reset_after. H = 25 is wrong.
    assert printed[-1] == "6 wrong of 12 checked"
    assert sum("WRONG" in line for line in printed) == 6
    assert all("H=25 " in line for line in printed if "WRONG" in line)
    assert torch.backends.cudnn.rnn.fp32_precision == precision_before
