"""Running sweeps: resuming after a kill or a lost GPU, the values of the sweeps, the command line."""

import contextlib
import dataclasses
import itertools
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
from perf.providers.interface import Ready
from perf.report import load
from triton_gru.plan.problem import LAYOUTS

from .perf_calls import KNOWN_FLOORS, TINY, plant_provider, read_csv, read_finished_rows

pytestmark = pytest.mark.usefixtures("few_calls")


class Replaced(BaseException):
    """An exception in place of a new process, with the arguments of the new process."""


class PlantedGpu:
    """A stand-in for a GPU that a provider can take from the process. Each new process has the GPU again.

    Attributes:
        is_lost: whether this process has lost the GPU.
        has_failed: whether work has failed without an error yet. Waiting for the GPU raises the error.
        doing: "capture" or "replay" while a CUDA graph is captured or replayed, or else "call".
    """

    def __init__(self, monkeypatch):
        monkeypatch.setattr(sweeps, "fit_to_cpu", lambda sweep: sweep)  # keep the mode "graph"
        for module in (measure, perf_run):
            monkeypatch.setattr(module, "is_gpu_lost", lambda: self.is_lost)
        monkeypatch.setattr(measure, "wait_for_gpu", lambda: self.has_failed and self.lose())
        monkeypatch.setattr(measure, "capture_graph", self._capture)
        monkeypatch.setattr("torch.cuda.graph_pool_handle", lambda: None)
        monkeypatch.setattr("os.execv", self._replace)

    def lose(self):
        """Take the GPU from the process, and raise an error of CUDA."""
        self.is_lost = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def fail_later(self):
        """Let work fail without an error yet."""
        self.has_failed = True

    def run(self, out, *more):
        """Run the sweep "smoke" in as many processes as it takes. Return their number and the last exit status."""
        arguments = ["run", "--sweep", "smoke", "--out", str(out), "--seconds", "0.02", *more]
        for number in range(1, 20):
            self.is_lost, self.has_failed, self.doing = False, False, "call"
            try:
                return number, main(arguments)
            except Replaced as replaced:
                (arguments,) = replaced.args
        raise AssertionError("the sweep restarts without end")

    def _replace(self, path, command):
        assert path == command[0] == sys.executable and command[1:3] == ["-m", "perf"]
        raise Replaced(command[3:])

    def _capture(self, function, pool=None):
        self.doing = "capture"
        result = tuple(part.clone() for part in function())
        self.doing = "call"

        def replay():
            self.doing = "replay"
            for part, new_part in zip(result, function()):
                part.copy_(new_part)
            self.doing = "call"

        return replay, result


@pytest.fixture
def gpu(monkeypatch, two_cases):
    """Return a `PlantedGpu` on which the sweep of `two_cases` runs."""
    return PlantedGpu(monkeypatch)


def plant_killer(monkeypatch, gpu, name, is_fatal):
    """Plant a provider that loses the GPU in each call for which ``is_fatal(number of calls before, gpu)`` is true."""

    def prepare(gru, x):
        calls = itertools.count()
        return Ready(lambda x: gpu.lose() if is_fatal(next(calls), gpu) else gru(x))

    plant_provider(monkeypatch, name, prepare)


def read_outcomes(out):
    """Return the last outcomes in the CSV of "smoke": batch size -> provider -> status, or "timed" with a time."""
    outcomes = {}
    for row in read_csv(out / "smoke-cpu.csv"):
        outcomes.setdefault(row["B"], {})[row["provider"]] = "timed" if int(row["n"]) else row["status"]
    return outcomes


TIMED = {
    f"{name}{mode}": "timed" for name in ("torch.nn.GRU", "handwritten", "torch.nn.RNN") for mode in ("", "+graph")
}


@pytest.mark.parametrize(
    "killer, is_fatal, outcomes",
    [
        ("handwritten", lambda number, gpu: True, TIMED | {"handwritten": "failed", "handwritten+graph": "failed"}),
        ("handwritten", lambda number, gpu: gpu.doing == "capture", TIMED | {"handwritten+graph": "failed"}),
        (
            "handwritten",
            lambda number, gpu: gpu.doing == "replay" and gpu.fail_later(),
            TIMED | {"handwritten+graph": "failed"},
        ),
        ("torch.nn.GRU", lambda number, gpu: gpu.doing == "capture", TIMED | {"torch.nn.GRU+graph": "failed"}),
        ("torch.nn.GRU", lambda number, gpu: True, {"torch.nn.GRU": "failed", "torch.nn.GRU+graph": "failed"}),
        # Five calls of a provider are made before the rounds. In the rounds, the culprit is unknown.
        ("handwritten", lambda number, gpu: number >= 5, dict.fromkeys(TIMED, "failed")),
        ("handwritten", lambda number, gpu: number >= 5 and gpu.fail_later(), dict.fromkeys(TIMED, "failed")),
    ],
    ids=["call", "capture", "replay", "baseline-capture", "baseline-call", "rounds", "after-rounds"],
)
def test_new_process_leaves_out_what_lost_the_gpu(killer, is_fatal, outcomes, gpu, tmp_path, monkeypatch):
    """Each of the two cases loses the GPU once. All that could be measured has a time."""
    plant_killer(monkeypatch, gpu, killer, is_fatal)
    assert gpu.run(tmp_path, "--provider", "handwritten", "torch.nn.RNN") == (3, 0)
    assert read_outcomes(tmp_path) == {"2": outcomes, "3": outcomes}
    assert gpu.run(tmp_path, "--provider", "handwritten", "torch.nn.RNN", "--resume") == (1, 0)


def test_restarts_are_limited_in_number_and_time(gpu, tmp_path, monkeypatch, capsys):
    plant_killer(monkeypatch, gpu, "handwritten", lambda number, gpu: True)
    assert gpu.run(tmp_path, "--restarts", "1") == (2, 2)
    assert "lost the GPU, and no restart is left" in capsys.readouterr().err
    with monkeypatch.context() as slow:
        slow.setattr("time.monotonic", itertools.count(step=100).__next__)
        assert gpu.run(tmp_path, "--minutes", "5") == (1, 2)
    assert "lost the GPU, and time is over" in capsys.readouterr().err


def test_new_process_measures_what_only_an_earlier_run_has(gpu, tmp_path, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr("perf.record.timestamp", lambda: "2026-01-02T03:04:05+00:00")
        assert gpu.run(tmp_path) == (1, 0)
    plant_killer(monkeypatch, gpu, "handwritten", lambda number, gpu: gpu.doing == "capture")
    assert gpu.run(tmp_path) == (3, 0)
    assert [outcomes["handwritten+graph"] for outcomes in read_outcomes(tmp_path).values()] == ["failed", "failed"]


def test_new_process_continues_after_the_floors_lose_the_gpu(gpu, tmp_path, monkeypatch):
    processes = itertools.count()

    def load_or_measure(out, device):
        gpu.is_lost = next(processes) == 0
        return KNOWN_FLOORS

    monkeypatch.setattr(perf_run, "load_or_measure", load_or_measure)
    assert gpu.run(tmp_path) == (2, 0)
    assert set(read_outcomes(tmp_path)["3"].values()) == {"timed"}


def test_nothing_is_written_if_the_gpu_fails_before(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(perf_run, "is_gpu_lost", lambda: True)
    assert gpu.run(tmp_path) == (1, 2)
    assert "the GPU fails before anything is measured" in capsys.readouterr().err and not list(tmp_path.iterdir())


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
