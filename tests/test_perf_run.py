"""Running sweeps: resuming after a kill or a lost GPU, the values of the sweeps, the command line."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch.nn.utils.rnn import pad_packed_sequence

from perf import measure, providers, sweeps
from perf import run as perf_run
from perf.__main__ import main
from perf.case import Case, Ragged
from perf.measure import Conditions
from perf.report import load
from triton_gru.plan.problem import LAYOUTS

from .perf_calls import KNOWN_FLOORS, TINY, plant_provider, read_csv, read_finished_rows

pytestmark = pytest.mark.usefixtures("few_calls")


def test_run_resumes_in_a_new_process_when_the_gpu_is_lost(two_cases, tmp_path, monkeypatch):
    """The new process leaves the culprit out, or the whole case if the baseline is the culprit."""
    started = []
    monkeypatch.setattr("os.execv", lambda path, arguments: started.append(arguments))
    monkeypatch.setattr(measure, "is_gpu_lost", lambda: True)
    plant_provider(monkeypatch, "handwritten", lambda gru, x: 1 / 0)
    assert run(tmp_path, "--minutes", "5") == 2
    assert started[0][1:3] == ["-m", "perf"]
    arguments = started[0][3:]
    assert 4.9 < float(arguments[-1]) < 5
    assert [row["provider"] for row in read_finished_rows(tmp_path / "smoke-cpu.csv")] == ["handwritten"]

    plant_provider(monkeypatch, "torch.nn.GRU", lambda gru, x: 1 / 0)
    assert main(arguments) == main(arguments) == 2
    assert main(arguments) == 0
    rows = read_finished_rows(tmp_path / "smoke-cpu.csv")
    assert [(row["provider"], row["B"], row["status"]) for row in rows] == [
        ("handwritten", "2", "failed"), ("torch.nn.GRU", "3", "failed"), ("torch.nn.GRU", "2", "failed"),
    ]  # fmt: skip


@pytest.fixture
def two_cases(monkeypatch):
    """Replace the sweep "smoke" by one of two cases, and measured floors by known ones."""
    cases = TINY, dataclasses.replace(TINY, batch=3)
    sweep = sweeps.Sweep("smoke", "?", 1, ("handwritten",), cases)
    monkeypatch.setitem(sweeps.SWEEPS, "smoke", sweep)
    monkeypatch.setattr("perf.run.load_or_measure", lambda *_: KNOWN_FLOORS)


def run(out, *more):
    """Run the sweep "smoke" into the folder ``out``, and return the exit status."""
    return main(["run", "--sweep", "smoke", "--out", str(out), "--seconds", "0.02", *more])


def test_resumed_run_measures_only_missing_rows(two_cases, tmp_path, capsys):
    assert run(tmp_path) == 0
    path = tmp_path / "smoke-cpu.csv"
    complete = path.read_bytes()
    assert [(row["provider"], row["B"]) for row in read_finished_rows(path)] == [
        ("torch.nn.GRU", "2"), ("handwritten", "2"), ("torch.nn.GRU", "3"), ("handwritten", "3"),
    ]  # fmt: skip
    assert all(float(row["floor_ms"]) > 0 for row in read_finished_rows(path))

    lines = complete.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:50])  # killed while it wrote the second case's first row
    assert run(tmp_path, "--resume") == 0
    rows = read_finished_rows(path)
    assert path.read_bytes().startswith(b"".join(lines[:5]))
    assert [(row["provider"], row["B"]) for row in rows[2:]] == [("torch.nn.GRU", "3"), ("handwritten", "3")]
    assert rows[2]["run_id"] == rows[3]["run_id"] != rows[0]["run_id"]

    capsys.readouterr()
    assert run(tmp_path, "--resume") == 0
    assert "0 of 2 cases" in capsys.readouterr().out
    assert read_finished_rows(path) == rows


def test_case_that_killed_the_process_is_measured_last(two_cases, tmp_path, monkeypatch):
    with monkeypatch.context() as dying:
        dying.setattr("perf.run.measure", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            run(tmp_path)
    path = tmp_path / "smoke-cpu.csv"
    assert [(row["B"], row["status"], row["n"]) for row in read_csv(path)] == [("2", "begun", "0")]
    assert run(tmp_path, "--resume") == 0
    assert [row["B"] for row in read_csv(path)[1:] if row["status"] != "begun"] == ["3", "3", "2", "2"]
    assert len(load([path])) == 4  # the report leaves out rows with status "begun"
    assert run(tmp_path, "--resume") == 0
    assert len(read_csv(path)) == 7


def test_added_provider_is_measured_with_the_baseline(two_cases, tmp_path):
    assert run(tmp_path) == 0
    assert run(tmp_path, "--resume", "--provider", "triton_gru.block", "handwritten") == 0
    added = read_finished_rows(tmp_path / "smoke-cpu.csv")[4:]
    assert [row["provider"] for row in added] == ["torch.nn.GRU", "triton_gru.block"] * 2


def test_without_resume_all_is_measured_again(two_cases, tmp_path):
    assert run(tmp_path) == run(tmp_path) == 0
    rows = read_finished_rows(tmp_path / "smoke-cpu.csv")
    assert [row["provider"] for row in rows] == ["torch.nn.GRU", "handwritten"] * 4
    assert len({row["run_id"] for row in rows}) == 2


def test_no_case_begins_after_the_time_limit(two_cases, tmp_path, capsys):
    assert run(tmp_path, "--minutes", "0") == 0
    assert "2 cases left" in capsys.readouterr().out
    assert read_finished_rows(tmp_path / "smoke-cpu.csv") == []


def test_killed_process_has_written_every_finished_case(tmp_path):
    arguments = ["-m", "perf", "run", "--sweep", "smoke", "--out", str(tmp_path), "--provider", "handwritten"]
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, env=os.environ)
    for line in process.stdout:
        if line.startswith("[2/"):
            break
    process.kill()
    process.communicate()
    rows = read_finished_rows(tmp_path / "smoke-cpu.csv")
    assert len(rows) >= 2
    assert {row["status"] for row in rows} <= {"ok", "noisy"}


def test_sweeps_hold_their_documented_values():
    """The most telling cases of "heart" come first. By its guess, each sweep takes less than three minutes."""
    heart = sweeps.SWEEPS["heart"].cases
    assert heart[:9] == tuple(Case("fp16", h, b, 512) for h in (512, 1024, 256) for b in (1, 16, 64))
    assert {case.precision for case in heart} == {"fp16", "tf32", "bf16"}
    assert {case.hidden for case in sweeps.SWEEPS["heart-small"].cases} == {64, 128, 192}
    assert {case.steps for case in sweeps.SWEEPS["t1"].cases} == {1}
    assert sweeps.SWEEPS["t1-cold"].cases == sweeps.SWEEPS["t1"].cases
    assert {sweep.l2 for sweep in sweeps.SWEEPS.values() if sweep.name != "t1-cold"} == {"warm"}
    assert sweeps.SWEEPS["t1-cold"].l2 == "cold"
    assert {case.steps for case in sweeps.SWEEPS["overhead"].cases} == {1, 16}
    assert sweeps.SWEEPS["overhead"].modes == ("host",)
    assert {case.hidden for case in sweeps.SWEEPS["large"].cases} == {4096, 8192}
    assert {case.layers for case in sweeps.SWEEPS["layers"].cases} == {2, 4}
    assert {case.steps for case in sweeps.SWEEPS["long"].cases} == {4096, 16384}
    assert {case.batch for case in sweeps.SWEEPS["throughput"].cases} == {256, 1024}
    assert not any(case.reset_after for case in sweeps.SWEEPS["reset-before"].cases)
    packed, bidirectional = sweeps.SWEEPS["packed"].cases, sweeps.SWEEPS["bidirectional"].cases
    assert all(case.layout == "packed" and case.steps == 256 for case in packed)
    assert bidirectional[1::2] == tuple(dataclasses.replace(case, directions=1) for case in bidirectional[::2])
    assert {case.directions for case in bidirectional[::2]} == {2}
    frames = sweeps.SWEEPS["streaming"]
    assert {(case.steps, case.is_streaming, case.layers) for case in frames.cases} == {(1, True, 1), (1, True, 2)}
    rounds = {sweep.name: sweep.rounds for sweep in sweeps.SWEEPS.values() if sweep.rounds}
    assert rounds == {"streaming": 1000, "step-breakdown": 50}
    steps = sweeps.SWEEPS["step-breakdown"]
    assert steps.modes == ("graph",) and {case.steps for case in steps.cases} == {512} and len(steps.cases) == 16
    assert set(sweeps.SWEEPS["tuned"].cases) < set(heart)
    for name, sweep in sweeps.SWEEPS.items():
        if any(case.precision == "bf16" for case in sweep.cases):
            assert "cudnn.standard" in sweep.providers, "torch compacts bf16 weights on every call"
        providers.require_known(sweep.providers)
        assert sweep is not frames or set(sweep.providers) <= set(providers.STREAMING_PROVIDERS)
        assert len(set(sweep.cases)) == len(sweep.cases) <= 48 and sweep.seconds <= 170
        assert f"  {name} " in sweeps.describe_sweeps()


def test_sweep_on_a_cpu_is_in_fp32_without_graphs():
    sweep = sweeps.fit_to_cpu(sweeps.SWEEPS["cells"])
    assert {case.precision for case in sweep.cases} == {"fp32"}
    assert len(sweep.cases) == 8
    assert sweep.modes == sweeps.fit_to_cpu(sweeps.SWEEPS["step-breakdown"]).modes == ("eager",)


@pytest.mark.parametrize("arguments, message", [
    (["run", "--sweep", "heart"], "needs a GPU"),
    (["report", "nothing.csv"], "nothing.csv"),
])  # fmt: skip
def test_bad_arguments_are_reported_in_a_line(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("layout", LAYOUTS)
def test_drawn_inputs_have_the_lengths_of_the_case(layout):
    """Lengths are between a quarter of T and T, and the same in every draw."""
    case = Case("fp32", hidden=4, batch=300, steps=41, layout=layout, input_size=3)
    first, again = case.draw_inputs("cpu")[:2]
    if layout == "dense":
        assert first.shape == (41, 300, 3) and set(case.lengths) == {41}
        assert case.total_steps == 41 * 300
        return
    if layout == "packed":
        assert len(first.data) == case.total_steps
        first, again = (Ragged(*pad_packed_sequence(packed)) for packed in (first, again))
    assert first.padded.shape == (41, 300, 3) and not torch.equal(first.padded, again.padded)
    lengths = first.lengths.tolist()
    assert lengths == case.lengths == again.lengths.tolist() == sorted(lengths, reverse=True)
    assert set(lengths) == set(range(11, 42))  # a quarter of 41 steps, rounded up, to 41


def test_name_and_row_of_a_case_hold_all_its_fields():
    case = Case("fp16", 8, 2, 1, layers=2, directions=2, layout="packed", is_streaming=True, input_size=5)
    assert str(case) == "fp16 H=8 B=2 T=1 I=5 layers=2 directions=2 packed streaming"
    row = case.make_row()
    assert (row.I, row.layers, row.directions, row.layout, row.variant) == (5, 2, 2, "packed", "streaming")
    assert str(Case("fp16", 8, 2, 1)) == str(Case("fp16", 8, 2, 1, input_size=8)) == "fp16 H=8 B=2 T=1"
    before = Case("fp16", 8, 2, 1, reset_after=False, layout="lengths")
    assert str(before) == "fp16 H=8 B=2 T=1 lengths reset before" and before.make_row().variant == "reset_before"
    module = case.make_gru("cpu")
    assert (module.input_size, module.hidden_size, module.bidirectional) == (5, 8, True)


REHEARSED_BY = {  # sweep: the provider that rehearses it instead of "handwritten"
    "layers": "triton_gru.step",
    "packed": "triton_gru",
    "lengths": "triton_gru",
    "bidirectional": "triton_gru",
    "streaming": "triton_gru.stream",
}


def test_sweep_sets_the_rounds_except_in_a_rehearsal(monkeypatch):
    taken = []
    monkeypatch.setattr("perf.__main__.run", lambda sweep, names, conditions, *_: taken.append(conditions.rounds))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for arguments in (["streaming"], ["streaming", "--rehearse"], ["smoke"]):
        assert main(["run", "--sweep", *arguments]) == 0
    assert taken == [1000, 0, 0]


def test_every_sweep_can_be_rehearsed(tmp_path, kernels_on_cpu, monkeypatch):
    monkeypatch.setattr("perf.run.load_or_measure", lambda *_: KNOWN_FLOORS)
    for name in sweeps.SWEEPS:
        provider = REHEARSED_BY.get(name, "handwritten")
        options = ["--out", str(tmp_path), "--rehearse", "--seconds", "0.02", "--provider", provider]
        assert main(["run", "--sweep", name, *options]) == 0
        rows = read_finished_rows(tmp_path / f"{name}-cpu.csv")
        assert len(rows) == 2 * (2 if name == "bidirectional" else 1)
        assert {row["variant"] for row in rows} == {
            {"streaming": "streaming", "reset-before": "reset_before"}.get(name, "reset_after")
        }
        assert {row["provider"] for row in rows} == {"torch.nn.GRU", provider}
        assert {row["mode"] for row in rows} == ({"host"} if name == "overhead" else {"eager"})
        assert all(row["status"] in ("ok", "noisy") and "emulated H200 on" in row["gpu_name"] for row in rows)


@pytest.mark.parametrize(
    "precision, ends_in", [("bf16", contextlib.nullcontext()), ("fp16", pytest.raises(UserWarning))]
)
def test_warning_about_copied_weights_is_an_error_except_in_bf16(precision, ends_in, tmp_path, monkeypatch):
    def measure(*args):
        warnings.warn("RNN module weights are not part of single contiguous chunk of memory.", stacklevel=1)
        return []

    monkeypatch.setattr("perf.run.measure", measure)
    monkeypatch.setattr("perf.run.load_or_measure", lambda *_: KNOWN_FLOORS)
    sweep = sweeps.Sweep("smoke", "?", 1, (), (dataclasses.replace(TINY, precision=precision),))
    conditions = Conditions("cpu", ("eager",), "warm", 0.01)
    with ends_in:
        perf_run.run(sweep, (), conditions, tmp_path)
