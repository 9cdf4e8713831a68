"""The timing of scans without one of their stages: its rehearsal, its table, and that the library stays as it is."""

import dataclasses
import pathlib
import sys

import pytest

from perf.experiments import stages
from perf.experiments.stages_kernel import STAGES, without
from perf.record import Row
from triton_gru.kernels import exchange, grid, isa

from .perf_calls import read, rows_of


def test_a_rehearsal_goes_through_every_stage(tmp_path, capsys):
    stages.PROGRAM.main("", ["--rehearse", "--out", str(tmp_path)])
    rows = rows_of(tmp_path / "stages-cpu.v4.csv")
    assert [(row["kernel"], row["variant"], row["status"], row["n"]) for row in rows] == [
        (kernel, variant, "ok", "0")
        for kernel in ("grid", "block")
        for variant in ("whole", *(f"without {stage}" for stage in STAGES[kernel]))
    ]
    assert "no times" in capsys.readouterr().out
    stages.PROGRAM.main("", ["--rehearse", "--out", str(tmp_path)])
    assert rows_of(tmp_path / "stages-cpu.v4.csv") == rows  # there is nothing left to do
    assert stages.PROGRAM.owed(rows, True) == []


def test_a_cell_that_took_the_process_with_it_comes_last(tmp_path, monkeypatch):
    measured = []

    def measure(cell, device):
        measured.append(cell[0])
        return sys.exit("killed") if len(measured) == 1 else stages.measure(cell, device)

    program = dataclasses.replace(stages.PROGRAM, measure=measure)
    arguments = ["--rehearse", "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        program.main("", arguments)
    assert [cell[0] for cell, _ in program.owed(read(tmp_path / "stages-cpu.v4.csv"), True)] == ["block", "grid"]
    program.main("", arguments)
    assert measured == ["grid", "block", "grid"]
    assert program.owed(read(tmp_path / "stages-cpu.v4.csv"), True) == []


def test_nothing_else_of_perf_imports_an_experiment():
    folder = pathlib.Path(stages.__file__).parents[1]
    core = [path for path in folder.rglob("*.py") if path.parent.name != "experiments"]
    assert len(core) > 20 and not [path for path in core if "experiments" in path.read_text()]


def test_the_librarys_own_kernels_stay_as_they_are():
    modules = (exchange, grid, isa)
    before = [dict(vars(module)) for module in modules]
    for kernel, of_kernel in STAGES.items():
        scans = {stages.SCANS[kernel], *(without(kernel, stage) for stage in of_kernel)}
        assert len(scans) == 1 + len(of_kernel)
    assert [dict(vars(module)) for module in modules] == before


def test_the_table_says_what_each_stage_adds():
    rows = [
        Row(variant=variant, T=512, n=1, p50_ms=512 * microseconds / 1000)
        for variant, microseconds in (("whole", 0.8), ("without sums", 0.7), ("without waiting", 0.3))
    ]
    assert stages.table(rows).splitlines() == [
        "      0.800 us a step", "      0.100 less without sums", "      0.500 less without waiting",
    ]  # fmt: skip
    assert stages.table([Row(variant="whole", status="failed", error="gave up")]) == "    gave up"
