"""Running sweeps: going on after a kill or a lost GPU, the values of the sweeps, the command line."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from torch.nn.utils.rnn import pad_packed_sequence

from perf import measure, providers, sweeps
from perf.__main__ import main
from perf.case import Case

from .perf_calls import KNOWN, TINY, plant, read

pytestmark = pytest.mark.usefixtures("few_calls")


def test_a_run_goes_on_in_a_new_process_when_the_gpu_is_lost(two_cases, tmp_path, monkeypatch):
    """The culprit is left out there; a case whose yardstick is the culprit altogether."""
    started = []
    monkeypatch.setattr("os.execv", lambda path, arguments: started.append(arguments))
    monkeypatch.setattr(measure, "_lost", lambda: True)
    plant(monkeypatch, "handwritten", lambda gru, x: 1 / 0)
    assert run(tmp_path, "--minutes", "5") == 2
    assert started[0][1:3] == ["-m", "perf"]
    arguments = started[0][3:]
    assert 4.9 < float(arguments[-1]) < 5
    assert [row["provider"] for row in read(tmp_path / "smoke-cpu.csv")] == ["handwritten"]

    plant(monkeypatch, "torch.nn.GRU", lambda gru, x: 1 / 0)
    assert main(arguments) == main(arguments) == 2
    assert main(arguments) == 0
    rows = read(tmp_path / "smoke-cpu.csv")
    assert [(row["provider"], row["B"], row["status"]) for row in rows] == [
        ("handwritten", "2", "failed"), ("torch.nn.GRU", "2", "failed"), ("torch.nn.GRU", "3", "failed"),
    ]  # fmt: skip


@pytest.fixture
def two_cases(monkeypatch):
    """A sweep of two cases, whose floors were measured before."""
    cases = TINY, dataclasses.replace(TINY, batch=3)
    sweep = sweeps.Sweep("smoke", "?", "no time", ("handwritten",), (sweeps.Slice("all", cases),))
    monkeypatch.setitem(sweeps.SWEEPS, "smoke", sweep)
    monkeypatch.setattr("perf.run.load_or_measure", lambda *_: KNOWN)


def run(out, *more):
    return main(["run", "--sweep", "smoke", "--out", str(out), "--seconds", "0.02", *more])


def test_a_run_goes_on_where_it_was_killed(two_cases, tmp_path, capsys):
    assert run(tmp_path) == 0
    path = tmp_path / "smoke-cpu.csv"
    whole = path.read_bytes()
    assert [(row["provider"], row["B"]) for row in read(path)] == [
        ("torch.nn.GRU", "2"), ("handwritten", "2"), ("torch.nn.GRU", "3"), ("handwritten", "3"),
    ]  # fmt: skip
    assert all(float(row["floor_ms"]) > 0 for row in read(path))

    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:50])  # killed while it wrote the third row
    assert run(tmp_path, "--resume") == 0
    rows = read(path)
    assert path.read_bytes().startswith(b"".join(lines[:3]))
    assert [(row["provider"], row["B"]) for row in rows[2:]] == [("torch.nn.GRU", "3"), ("handwritten", "3")]
    assert rows[2]["run_id"] == rows[3]["run_id"] != rows[0]["run_id"]

    capsys.readouterr()
    assert run(tmp_path, "--resume") == 0
    assert "0 of 2 cases" in capsys.readouterr().out
    assert read(path) == rows


def test_a_further_provider_is_measured_with_the_yardstick(two_cases, tmp_path):
    assert run(tmp_path) == 0
    assert run(tmp_path, "--resume", "--provider", "triton_gru.block", "handwritten") == 0
    added = read(tmp_path / "smoke-cpu.csv")[4:]
    assert [row["provider"] for row in added] == ["torch.nn.GRU", "triton_gru.block"] * 2


def test_without_resume_all_is_measured_again(two_cases, tmp_path):
    assert run(tmp_path) == run(tmp_path) == 0
    rows = read(tmp_path / "smoke-cpu.csv")
    assert [row["provider"] for row in rows] == ["torch.nn.GRU", "handwritten"] * 4
    assert len({row["run_id"] for row in rows}) == 2


def test_where_memory_is_short_each_provider_is_measured_alone_with_the_yardstick(two_cases, tmp_path, monkeypatch):
    monkeypatch.setattr("perf.case.HUGE", 3 * 3 * 16 * 4)  # the input of the second case
    assert run(tmp_path, "--provider", "handwritten", "triton_gru") == 0
    rows = read(tmp_path / "smoke-cpu.csv")
    assert [row["provider"] for row in rows if row["B"] == "2"] == ["torch.nn.GRU", "handwritten", "triton_gru"]
    assert [row["provider"] for row in rows if row["B"] == "3"] == [
        "torch.nn.GRU", "handwritten", "torch.nn.GRU", "triton_gru",
    ]  # fmt: skip
    assert len({row["run_id"] for row in rows}) == 1


def test_no_case_is_begun_after_the_time(two_cases, tmp_path, capsys):
    assert run(tmp_path, "--minutes", "0") == 0
    assert "2 cases left" in capsys.readouterr().out
    assert read(tmp_path / "smoke-cpu.csv") == []


def test_a_killed_process_has_written_every_case_it_finished(tmp_path):
    arguments = ["-m", "perf", "run", "--sweep", "smoke", "--out", str(tmp_path), "--provider", "handwritten"]
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, env=os.environ)
    for line in process.stdout:
        if line.startswith("[2/"):
            break
    process.kill()
    process.communicate()
    rows = read(tmp_path / "smoke-cpu.csv")
    assert len(rows) >= 2
    assert {row["status"] for row in rows} <= {"ok", "noisy"}


def test_sweeps_have_the_values_they_are_to_have():
    core = sweeps.SWEEPS["core"].cases
    sizes, batches = [64, 128, 192, 256, 400, 512, 1024, 2048], [1, 4, 16, 64, 256, 1024]
    assert len(core) == len(set(core)) == 8 * 6 * 3 * 3
    assert set(core) == {
        Case(p, h, b, t) for p in ("tf32", "fp16", "bf16") for h in sizes for b in batches for t in (1, 64, 512)
    }
    assert core[0].steps == 512 and core[0].hidden > 192 and core[0].batch <= 64  # what counts most comes first
    assert {case.steps for case in sweeps.SWEEPS["overhead"].cases} == {1, 16}
    assert sweeps.SWEEPS["overhead"].modes == ("host",)
    assert {case.hidden for case in sweeps.SWEEPS["large"].cases} == {4096, 8192}
    assert max(case.batch for case in sweeps.SWEEPS["large"].cases) == 16
    assert {case.layers for case in sweeps.SWEEPS["layers"].cases} == {2, 3, 4}
    assert max(case.steps for case in sweeps.SWEEPS["long"].cases) == 16384
    packed, both = sweeps.SWEEPS["packed"].cases, sweeps.SWEEPS["bidirectional"].cases
    assert all(case.packed and case.steps == 256 for case in packed) and len(packed) == 5 * 2 * 2
    assert [case.directions for case in both] == [2, 1] * (6 * 3 * 2)
    assert both[1::2] == [dataclasses.replace(case, directions=1) for case in both[::2]]
    frames = sweeps.SWEEPS["streaming"]
    assert {(case.steps, case.streaming) for case in frames.cases} == {(1, True)} and len(frames.cases) == 5 * 2 * 2 * 2
    assert frames.rounds == 1000
    assert {sweep.rounds for sweep in sweeps.SWEEPS.values() if sweep is not frames} == {0}
    for sweep in sweeps.SWEEPS.values():
        served = providers.STREAMING if sweep is frames else providers.PROVIDERS
        assert set(sweep.providers) <= set(served)
        assert len(set(sweep.cases)) == len(sweep.cases)
    for name in sweeps.SWEEPS:
        assert f"  {name} " in sweeps.described()


def test_on_a_cpu_a_sweep_is_in_fp32_and_without_graphs():
    sweep = sweeps.on_cpu(sweeps.SWEEPS["cells"])
    assert {case.precision for case in sweep.cases} == {"fp32"}
    assert len(sweep.cases) == 8
    assert sweep.modes == ("eager",)


@pytest.mark.parametrize("arguments, message", [
    (["run", "--sweep", "core"], "wants a GPU"),
    (["run", "--sweep", "smoke", "--l2", "cold"], "for what a GPU takes"),
    (["run", "--sweep", "smoke", "--slice", "2"], "slices 1 to 1"),
    (["report", "nothing.csv"], "nothing.csv"),
])  # fmt: skip
def test_bad_arguments_are_said_in_a_line(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("packed", [False, True])
def test_sequences_are_as_long_as_the_case_says(packed):
    """Between a quarter of T and T, the same every time."""
    case = Case("fp32", hidden=4, batch=300, steps=41, packed=packed)
    first, again = case.inputs("cpu")[0], case.inputs("cpu")[1]
    if not packed:
        assert first.shape == (41, 300, 4) and set(case.lengths) == {41}
        assert case.total_steps == 41 * 300 and case.batch_sizes == [300] * 41
        return
    lengths = pad_packed_sequence(first)[1].tolist()
    assert lengths == case.lengths == pad_packed_sequence(again)[1].tolist() == sorted(lengths, reverse=True)
    assert set(lengths) == set(range(11, 42))
    assert len(first.data) == case.total_steps and first.batch_sizes.tolist() == case.batch_sizes
    assert not torch.equal(first.data, again.data)


def test_what_a_case_is_of_stands_in_its_name_and_row():
    case = Case("fp16", 8, 2, 1, layers=2, directions=2, packed=True, streaming=True)
    assert str(case) == "fp16 H=8 B=2 T=1 layers=2 directions=2 packed streaming"
    row = case.row()
    assert (row.layers, row.directions, row.packed, row.variant) == (2, 2, True, "streaming")
    assert str(Case("fp16", 8, 2, 1)) == "fp16 H=8 B=2 T=1"
    assert case.module("cpu").bidirectional


REHEARSED_BY = {
    "layers": "triton_gru.step",
    "packed": "triton_gru",
    "bidirectional": "triton_gru",
    "streaming": "triton_gru.stream",
}


def test_a_sweep_says_how_many_rounds_are_taken_but_for_a_rehearsal(monkeypatch):
    taken = []
    monkeypatch.setattr("perf.__main__.run", lambda sweep, options: taken.append(options.conditions.rounds))
    monkeypatch.setattr("perf.__main__._device", lambda options: "cuda")
    for arguments in (["streaming"], ["streaming", "--rehearse"], ["smoke"]):
        assert main(["run", "--sweep", *arguments]) == 0
    assert taken == [1000, 0, 0]


def test_every_sweep_can_be_rehearsed(tmp_path, monkeypatch):
    monkeypatch.setattr("perf.run.load_or_measure", lambda *_: KNOWN)
    for name, sweep in sweeps.SWEEPS.items():
        provider = REHEARSED_BY.get(name, "handwritten")
        options = ["--out", str(tmp_path), "--rehearse", "--seconds", "0.02", "--provider", provider]
        assert main(["run", "--sweep", name, *options]) == 0
        rows = read(tmp_path / f"{name}-cpu.csv")
        assert len(rows) == 2 * len(sweep.slices) * (2 if name == "bidirectional" else 1)
        assert {row["variant"] for row in rows} == {"streaming" if name == "streaming" else "reset_after"}
        assert {row["provider"] for row in rows} == {"torch.nn.GRU", provider}
        assert {row["mode"] for row in rows} == ({"host"} if name == "overhead" else {"eager"})
        assert all(row["status"] in ("ok", "noisy") and "interpreter" in row["gpu_name"] for row in rows)
