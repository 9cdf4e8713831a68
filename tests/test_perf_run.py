"""Running sweeps: the gate before any time, rows of what fails, going on after a kill, the values of the sweeps."""

import csv
import dataclasses
import os
import subprocess
import sys

import pytest
import torch

import triton_gru
from perf import floors, measure, providers, sweeps
from perf.__main__ import main
from perf.case import Case
from perf.floors import Floors
from perf.measure import Conditions, DeviceLost, blank_row
from perf.providers.interface import Ready, Unavailable
from perf.run import summary
from triton_gru.plan import KERNELS

CPU = Conditions("cpu", ("eager",), "warm", seconds=0.05)
KNOWN = Floors(memory=1e10, l2=1e11, matrix={("float32", "ieee"): 1e11}, launch={"eager": 1e-6}, l2_bytes=1 << 20)
TINY = Case("fp32", hidden=16, batch=2, steps=3)


@pytest.fixture(autouse=True)
def _few_calls(monkeypatch):
    monkeypatch.setattr("perf.case.ROTATED", 2)
    monkeypatch.setattr("perf.timing.WARMUP", 1)
    monkeypatch.setattr("perf.timing.LEAST_ROUNDS", 3)


def measured(names, case=TINY, conditions=CPU):
    return {row.provider: row for row in measure.measure(case, names, conditions, KNOWN)}


def plant(monkeypatch, name, prepare):
    monkeypatch.setitem(providers.PROVIDERS, name, prepare)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_every_kernel_goes_through_gate_and_clock(precision, launched):
    names = ["triton_gru", *(f"triton_gru.{kernel}" for kernel in KERNELS), "triton_gru.grid.tag"]
    rows = measured(names, dataclasses.replace(TINY, precision=precision))
    assert list(rows) == ["torch.nn.GRU", *names]
    assert [row.kernel for row in rows.values()] == ["torch", "torch", *KERNELS, "grid"]
    assert {f"{kernel}_scan" for kernel in KERNELS} <= set(launched)
    for row in rows.values():
        assert row.status in ("ok", "noisy"), row.error
        assert (row.T, row.B, row.I, row.H, row.mode) == (3, 2, 16, 16, "eager")
        assert row.n >= 3
        assert 0 < row.p20_ms <= row.p50_ms <= row.p80_ms
        assert 0 <= row.max_abs_err < 0.01
    assert "handover='tag'" in rows["triton_gru.grid.tag"].config


@pytest.mark.parametrize("layers", [1, 3])
def test_the_handwritten_loop_and_the_other_cells_are_right(layers):
    rows = measured(["handwritten", "torch.nn.RNN", "torch.nn.LSTM"], dataclasses.replace(TINY, layers=layers))
    assert all(row.status in ("ok", "noisy") and row.max_abs_err < 1e-5 for row in rows.values())


def _spoilt(part, value):
    """torch's own GRU but for one number of its outputs or its last states."""

    def prepare(gru, x):
        def call(x):
            results = [each.clone() for each in gru(x)]
            results[part].view(-1)[-1] += value
            return tuple(results)

        return Ready(call)

    return prepare


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("value", [1e-3, float("nan")])
def test_a_wrong_provider_gets_no_time(part, value, monkeypatch):
    plant(monkeypatch, "wrong", _spoilt(part, value))
    rows = measured(["wrong", "handwritten"])
    assert (rows["wrong"].status, rows["wrong"].n, rows["wrong"].p50_ms) == ("wrong", 0, "")
    assert not rows["wrong"].max_abs_err < 9e-4
    assert rows["handwritten"].n > 0


def test_the_gate_compares_every_row_of_a_batch_that_is_checked_in_parts(monkeypatch):
    plant(monkeypatch, "wrong", _spoilt(0, 1e-3))
    monkeypatch.setattr(measure, "_NUMBERS_AT_ONCE", 16 * 3 * 2)  # two rows
    rows = measured(["wrong", "handwritten"], dataclasses.replace(TINY, batch=5))
    assert rows["wrong"].status == "wrong"
    assert rows["handwritten"].n > 0


def test_ours_has_less_slack_than_peers(monkeypatch):
    """A provider that is as wrong as three times the library's own bound."""
    allowed = 3 * 4 * torch.finfo(torch.float32).eps
    plant(monkeypatch, "peer", _spoilt(0, allowed))
    plant(monkeypatch, "triton_gru.new", _spoilt(0, allowed))
    rows = measured(["peer", "triton_gru.new"])
    assert rows["peer"].n > 0
    assert rows["triton_gru.new"].status == "wrong"


def test_what_cannot_be_measured_is_a_row_that_says_why(monkeypatch):
    def unavailable(gru, x):
        raise Unavailable("the package is not here")

    def failing(gru, x):
        return Ready(lambda x: 1 / 0)

    plant(monkeypatch, "missing", unavailable)
    plant(monkeypatch, "failing", failing)
    rows = measured(["missing", "failing", "triton_gru.grid"], dataclasses.replace(TINY, hidden=1040))
    assert (rows["missing"].status, rows["missing"].error) == ("unavailable", "the package is not here")
    assert (rows["failing"].status, rows["failing"].error) == ("failed", "ZeroDivisionError: division by zero")
    assert rows["triton_gru.grid"].status == "unavailable"
    assert "65 programs have to be on the chip at once" in rows["triton_gru.grid"].error
    said = set()
    assert "the package is not here" in summary(list(rows.values()), said)
    assert "unavailable: missing, triton_gru.grid" in summary(list(rows.values()), said)


def test_a_provider_that_fails_while_it_is_timed_leaves_no_times(monkeypatch):
    def prepare(gru, x):
        calls = iter(range(5))

        def call(x):
            if next(calls, None) is None:
                raise RuntimeError("enough")
            return gru(x)

        return Ready(call)

    plant(monkeypatch, "tired", prepare)
    rows = measured(["tired", "triton_gru.block"])
    assert {row.status for row in rows.values()} == {"failed"}
    assert rows["tired"].error == "RuntimeError: enough"
    assert not any(row.n for row in rows.values())


def test_a_graph_is_judged_by_what_its_replay_writes(monkeypatch):
    """One that captured nothing, as on another stream than torch's, is wrong though the call was right."""

    def graphed(function, pool=None):
        result = tuple(each.clone() for each in function())

        def replay():
            for each, now in zip(result, () if captures_nothing else function()):
                each.copy_(now)

        return replay, result

    monkeypatch.setattr(measure, "graphed", graphed)
    monkeypatch.setattr("torch.cuda.graph_pool_handle", lambda: None)
    both = dataclasses.replace(CPU, modes=("eager", "graph"))
    captures_nothing = False
    rows = measured(["handwritten"], conditions=both)
    assert list(rows) == ["torch.nn.GRU", "torch.nn.GRU+graph", "handwritten", "handwritten+graph"]
    assert all(row.n > 0 for row in rows.values())
    captures_nothing = True
    rows = measured(["handwritten"], conditions=both)
    assert rows["handwritten"].n > 0
    assert (rows["handwritten+graph"].status, rows["handwritten+graph"].n) == ("wrong", 0)


@pytest.mark.parametrize("batch_first", [True, False])
def test_inputs_of_a_provider_that_takes_batches_first_lie_so(batch_first, monkeypatch):
    def prepare(gru, x):
        def call(x):
            assert x.shape == (3, 2, 16) and x.transpose(0, 1).is_contiguous() == batch_first
            return gru(x)

        return Ready(call, batch_first=batch_first)

    plant(monkeypatch, "batch first", prepare)
    assert measured(["batch first"])["batch first"].n > 0


def test_a_lost_gpu_ends_the_run_with_the_culprits_rows(monkeypatch):
    plant(monkeypatch, "killer", lambda gru, x: 1 / 0)
    monkeypatch.setattr(measure, "_lost", lambda: True)
    with pytest.raises(DeviceLost) as lost:
        measured(["killer"])
    assert [(row.provider, row.status) for row in lost.value.rows] == [("killer", "failed")]


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


def test_precision_is_pinned_everywhere_and_put_back():
    backends = torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    before = [backend.fp32_precision for backend in backends]
    for precision, expected in (("tf32", "tf32"), ("fp32", "ieee"), ("fp16", "tf32")):
        with Case(precision, 1, 1, 1).pinned():
            assert [backend.fp32_precision for backend in backends] == [expected] * 2
    assert [backend.fp32_precision for backend in backends] == before


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


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


@pytest.mark.gpu
@pytest.mark.parametrize("l2", ["warm", "cold"])
def test_a_case_on_a_gpu_in_both_modes(l2, monkeypatch):
    """Every provider that is there, right, timed eager and in a graph; the graph is what was timed, not nothing."""
    conditions = Conditions("cuda", ("eager", "graph"), l2, seconds=0.2)
    case = Case("fp16", hidden=256, batch=4, steps=100)
    rows = measured(sweeps.SWEEPS["smoke"].providers, case, conditions)
    for provider in ("torch.nn.GRU", "triton_gru", "triton_gru.grid", "triton_gru.step", "handwritten"):
        for name in (provider, f"{provider}+graph"):
            assert rows[name].status in ("ok", "noisy"), rows[name].error
            assert rows[name].peak_mem_mb > 0
            assert rows[name].p50_ms > 0.02
    assert rows["triton_gru"].kernel == "grid"
    assert {row.status for row in rows.values()} <= {"ok", "noisy", "unavailable"}, {
        row.provider: row.error for row in rows.values() if row.status in ("wrong", "failed")
    }


@pytest.mark.gpu
def test_floors_of_a_gpu(tmp_path):
    measured = floors.load_or_measure(tmp_path, "cuda")
    assert 2e11 < measured.memory < measured.l2 < 1e14
    assert 2e-7 < measured.hop < 1e-5
    assert 1e-9 < measured.barrier < measured.hop
    assert measured.matrix["float16", ""] > measured.matrix["float32", "tf32"] > measured.matrix["float32", "ieee"]
    assert 0 < measured.launch["graph"] < 1e-4
    assert set(measured.launch) == {"eager", "graph", "host"}


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
    for sweep in sweeps.SWEEPS.values():
        assert set(sweep.providers) <= set(providers.PROVIDERS)
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


def test_every_sweep_can_be_rehearsed(tmp_path, monkeypatch):
    monkeypatch.setattr("perf.run.load_or_measure", lambda *_: KNOWN)
    for name, sweep in sweeps.SWEEPS.items():
        provider = "triton_gru.step" if name == "layers" else "handwritten"
        assert main(["run", "--sweep", name, "--out", str(tmp_path), "--rehearse", "--provider", provider]) == 0
        rows = read(tmp_path / f"{name}-cpu.csv")
        assert len(rows) == 2 * len(sweep.slices)
        assert {row["provider"] for row in rows} == {"torch.nn.GRU", provider}
        assert {row["mode"] for row in rows} == ({"host"} if name == "overhead" else {"eager"})
        assert all(row["status"] in ("ok", "noisy") and "interpreter" in row["gpu_name"] for row in rows)


def test_the_floor_counts_launch_work_and_exchange():
    """By hand, for a chip of 4 multiprocessors with 1000 bytes each."""
    chip = Floors(
        memory=1e9, l2=4e9, matrix={("float16", ""): 1e12}, launch={"eager": 5e-6, "graph": 2e-6, "host": 4e-6},
        hop=1e-6, barrier=1e-8, multiprocessors=4, on_chip=1000, l2_bytes=10_000,
    )  # fmt: skip
    small = Case("fp16", hidden=8, batch=2, steps=10)  # W_hh of 384 bytes: one multiprocessor holds it
    state, w_hh = 2 * 8 * 2, 3 * 64 * 2
    moved = 2 * 10 * state + 2 * w_hh + state
    assert chip.of(small, "eager", "warm") == pytest.approx(1e3 * (5e-6 + moved / 4e9))
    assert chip.of(small, "graph", "cold") == pytest.approx(1e3 * (2e-6 + moved / 1e9))
    quick = dataclasses.replace(chip, l2=1e13)
    assert quick.of(small, "graph", "warm") == pytest.approx(1e3 * (2e-6 + 10 * 1e-8))
    assert chip.of(small, "host", "warm") == pytest.approx(4e-3)

    split = Case("fp16", hidden=20, batch=20, steps=10)  # 2400 bytes: three of them, and 8 rows at a time
    quick = dataclasses.replace(chip, memory=1e14)
    assert quick.of(split, "eager", "warm") == pytest.approx(1e3 * (5e-6 + 10 * (1e-6 + 3 * 8 * 40 / 4e9)))

    beyond = Case("fp16", hidden=40, batch=1, steps=10, layers=2)  # 9600 bytes a layer: 15200 are beyond 4000
    moved = 2 * 10 * 80 + 2 * (2 * 9600 + 80) + 9 * 15200
    assert chip.of(beyond, "eager", "warm") == pytest.approx(1e3 * (5e-6 + moved / 1e9))
    assert quick.of(beyond, "eager", "cold") == pytest.approx(1e3 * (5e-6 + 11 * (1e-6 + 4 * 80 / 4e9)))

    busy = dataclasses.replace(chip, matrix={("float16", ""): 1e6})
    flops = 10 * 2 * 2 * 6 * 64
    assert busy.of(small, "eager", "warm") == pytest.approx(1e3 * (5e-6 + flops / 1e6))
    assert chip.of(dataclasses.replace(small, precision="bf16"), "eager", "warm") == ""


def test_floors_are_measured_once_and_read_back(tmp_path):
    first = floors.load_or_measure(tmp_path, "cpu")
    assert 1e7 < first.memory < 1e13  # wide, as others may be at work on the machine
    assert 1e7 < first.l2 < 1e14
    assert 1e7 < first.matrix["float32", "ieee"] < 1e15
    assert 0 < first.launch["eager"] < 1
    path = tmp_path / "floors-cpu.csv"
    written = path.read_bytes()
    assert floors.load_or_measure(tmp_path, "cpu") == first
    assert path.read_bytes() == written
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))  # killed before its end: not to be relied on
    assert floors.load_or_measure(tmp_path, "cpu").memory > 0
    assert len(read(path)) == 2 * len(lines) - 3
    assert floors.load_or_measure(tmp_path, "cpu", anew=True).memory > 0


def test_what_floors_are_measured_by_does_what_it_says():
    from perf.floors_kernel import barriers, read_shared

    numbers = torch.arange(4 * 64, dtype=torch.int32)
    result = torch.zeros(3, dtype=torch.int32)
    read_shared[(3,)](numbers, result, 5, PART=64, PARTS=4)
    assert result.tolist() == [5 * int(numbers.sum())] * 3
    barriers[(1,)](result, 7)
    assert result[0] == 7


def test_a_row_before_it_is_measured_says_what_it_is_of():
    row = blank_row(TINY, "handwritten", "graph", CPU, KNOWN)
    assert (row.provider, row.mode, row.l2, row.H, row.floor_ms) == ("handwritten+graph", "graph", "warm", 16, "")
    assert triton_gru.__version__
