"""Kernels without a stage of a step, hand-overs and cuts, timed as providers: only the changed kernel runs."""

import dataclasses
import json
import pathlib
import re

import pytest
import torch
from torch import nn

from perf import report, sweeps
from perf.__main__ import main
from perf.case import Case
from perf.experiments import hand_overs, projections, stages
from perf.experiments.stages_kernel import STAGES, load_scan_without
from perf.tables import format_table
from triton_gru.kernels import exchange, grid, isa
from triton_gru.launch import execute
from triton_gru.plan.device import limit_sms

from .perf_calls import KNOWN_FLOORS, measure_rows, plant_provider, read_finished_rows
from .planted import H200
from .ptx.device import emulate_gpu
from .test_perf_report import find_table, row, squeeze_spaces, write_csv

pytestmark = pytest.mark.usefixtures("few_calls", "kernels_on_cpu")
STAGES_MODULE = "perf.experiments.stages:"  # before the names of the providers
# Providers that cannot serve fp32 without TF32, and a part of their error.
UNAVAILABLE_IN_IEEE = {
    f"{STAGES_MODULE}grid-without-{stage}": "in 16 bits and TF32"
    for stage in ("products-but-the-first", "sums", "gate-inputs")
} | {f"{STAGES_MODULE}block-without-gate-inputs": "where a program has two rows"}
NAMES = [STAGES_MODULE + name for name in stages.PROVIDERS]


@pytest.fixture
def started(monkeypatch):
    """Return the set of kernels that the library has started."""
    kernels, start = set(), execute.start

    def recorded(launches):
        for launch in launches:
            kernels.add(launch.kernel)
            yield launch

    monkeypatch.setattr(execute, "start", lambda launches: start(recorded(launches)))
    return kernels


@pytest.mark.parametrize("kernel, hidden", [("grid", 40), ("block", 20)])
def test_each_stage_is_timed_by_its_kernel_and_not_judged(kernel, hidden, started):
    case = Case("fp16", hidden, batch=2, steps=2)
    for stage in STAGES[kernel]:
        started.clear()
        _, timed = measure_rows([f"{STAGES_MODULE}{kernel}-without-{stage}"], case).values()
        assert load_scan_without(kernel, stage) in started and stages.SCANS[kernel] not in started
        assert timed.status in ("ok", "noisy") and timed.n and timed.max_abs_err == "", timed
        assert timed.kernel == kernel and '"units"' in timed.config


def test_kernel_without_a_stage_computes_something_else(monkeypatch):
    """The accuracy gate would stop such a kernel if it judged the results."""
    name = "grid-without-activations"
    prepare = stages.PROVIDERS[name]
    plant_provider(monkeypatch, "judged", lambda gru, x: dataclasses.replace(prepare(gru, x), is_judged=True))
    _, timed = measure_rows(["judged"], Case("fp16", 40, 2, 2)).values()
    assert timed.status == "wrong"


def test_projection_is_timed_with_the_first_kernel_that_can_serve():
    """Check that ``grid`` is tried after ``block``. "auto" takes nn.GRU here, and H is too large for ``block``."""
    gru = nn.GRU(8, 1600, dtype=torch.float16).eval()
    provider, plan = projections._choose_plan(None, gru, torch.zeros(2, 64, 8, dtype=torch.float16))
    assert provider.name == "triton_gru.grid" and plan.kernel == "grid"


def test_step_breakdown_can_be_rehearsed(tmp_path, monkeypatch, started):
    monkeypatch.setattr("perf.run.load_or_measure", lambda *_: KNOWN_FLOORS)
    arguments = ["run", "--sweep", "step-breakdown", "--rehearse", "--out", str(tmp_path), "--seconds", "0.01"]
    assert main(arguments) == 0
    rows = {row["provider"]: row for row in read_finished_rows(tmp_path / "step-breakdown-cpu.csv")}
    assert list(rows) == ["torch.nn.GRU", "triton_gru.grid", "triton_gru.block", *NAMES]
    assert {name for name, row in rows.items() if row["status"] == "unavailable"} == {*UNAVAILABLE_IN_IEEE}
    assert all(message in rows[name]["error"] for name, message in UNAVAILABLE_IN_IEEE.items())
    timed = [row for name, row in rows.items() if name not in UNAVAILABLE_IN_IEEE]
    assert all(row["status"] in ("ok", "noisy") and row["mode"] == "eager" for row in timed)
    kernels = [load_scan_without(*name.removeprefix(STAGES_MODULE).split("-without-")) for name in NAMES]
    assert len({*kernels} & started) == len(NAMES) - len(UNAVAILABLE_IN_IEEE)


def test_unsupported_case_is_unavailable_with_a_reason():
    with emulate_gpu(limit_sms(H200, 64), 1):
        _, timed = measure_rows([f"{STAGES_MODULE}grid-without-output"], Case("fp32", 1040, 1, 1)).values()
    assert timed.status == "unavailable" and "it takes 65 programs at once" in timed.error


def test_modules_of_the_package_stay_unchanged():
    modules = (exchange, grid, isa)
    before = [dict(vars(module)) for module in modules]
    for kernel, names in STAGES.items():
        scans = {stages.SCANS[kernel], *(load_scan_without(kernel, stage) for stage in names)}
        assert len(scans) == 1 + len(names)
    assert [dict(vars(module)) for module in modules] == before


def test_report_shows_the_time_of_each_stage(tmp_path):
    def timed(provider, microseconds, **more):
        return row(f"{provider}+graph", 512 * microseconds / 1000, kernel="grid", **more)

    rows = [
        timed("triton_gru.grid", 0.8), timed(f"{STAGES_MODULE}grid-without-sums", 0.7),
        timed(f"{STAGES_MODULE}grid-without-waiting", 0.3),
        timed("triton_gru.grid", 1.0, B=16), timed(f"{STAGES_MODULE}grid-without-waiting", 0.75, B=16),
        timed(f"{STAGES_MODULE}grid-without-sums", 0.5, B=16, run_id="another"), timed("triton_gru", 0.1),
    ]  # fmt: skip
    loaded = report.load([write_csv(tmp_path / "rows.csv", rows)])
    shown = find_table(loaded, "Stages: microseconds of a step, and microseconds saved without each stage")
    assert squeeze_spaces(format_table(shown).splitlines()) == [
        "kernel precision H B T step sums waiting",
        "grid float16 512 4 512 0.8 0.1 0.5",
        "grid float16 512 16 512 1 0.25",
    ]


@pytest.mark.parametrize("name", hand_overs.PROVIDERS)
def test_named_hand_over_or_cut_runs(name, launched):
    _, timed = measure_rows([f"perf.experiments.hand_overs:{name}"], Case("fp16", 40, 3, 3)).values()
    assert timed.status in ("ok", "noisy") and timed.kernel == "grid", timed
    config = json.loads(timed.config)
    cut = "x".join(str(config[field]) for field in ("units", "batch", "tiles"))
    assert name in (config["handover"], cut) and "grid_scan" in launched


def test_sweeps_name_every_experiment():
    """Sweeps name experiments by strings: no other file of perf/ imports the modules."""
    assert [*sweeps.SWEEPS["step-breakdown"].providers] == ["triton_gru.grid", "triton_gru.block", *NAMES]
    expected = [f"perf.experiments.hand_overs:{name}" for name in hand_overs.PROVIDERS]
    assert [*sweeps.SWEEPS["hand-overs"].providers] == ["triton_gru", *expected]
    perf = pathlib.Path(report.__file__).parent
    files = [path for path in perf.rglob("*.py") if path.parent.name != "experiments"]
    assert not any(re.search(r"import .*experiments|from .*experiments", path.read_text()) for path in files)
