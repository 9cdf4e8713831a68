"""The report on the cost model and the heuristic, from planted times that differ from estimates by known factors."""

import dataclasses
import math
import pathlib
import sys

import pytest
import torch

from perf import report
from perf.case import Case
from perf.providers.ours import describe_plan
from perf.record import config_text
from triton_gru.plan.config import CUBLAS, GridConfig, ProjectionConfig
from triton_gru.plan.cost import estimate_call_cost
from triton_gru.plan.device import KNOWN_DEVICES
from triton_gru.plan.heuristic import heuristic
from triton_gru.plan.planner import choose
from triton_gru.plan.tables import store
from triton_gru.plan.tables.entries import Entry, TimedResult

from .planted import change_problem
from .test_perf_report import row, squeeze_spaces, write_csv

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "scripts"))

import cost_errors
from cost_errors import main

H200, A100 = KNOWN_DEVICES["H200"], KNOWN_DEVICES["A100"]
GRID = change_problem(steps=512, batch_size=4)  # the problem of `row`
UNKNOWN = dataclasses.replace(H200, name="NVIDIA Unheard-of", sms=7)

ERRORS = "The cost model against measurement"
CHOICES = "Which kernel: the heuristic's choice against the fastest measured"
WORST = "The worst 10 choices of a kernel"
OVER_TUNED = "Heuristic over tuned"


def make_config(kernel, problem=GRID, device=H200):
    """Return the heuristic's configuration, a text with the reason if there is none, or None for "torch"."""
    return None if kernel == "torch" else heuristic(kernel, problem, device)


def estimate_ms(kernel, problem=GRID, device=H200, in_graph=True):
    """Return the estimated milliseconds of a call."""
    return estimate_call_cost(problem, make_config(kernel, problem, device), device, in_graph).total / 1000


def make_result(kernel, ms, problem=GRID, heuristic_ms=None):
    """Return a result of ``ms`` in a graph, and three times as long in eager calls."""
    times = [(0.9 * p50, p50, 1.1 * p50) for p50 in (3 * ms, ms)]
    return TimedResult(make_config(kernel, problem), "revision", *times, heuristic_ms)


def make_entry(problem=GRID, **results):
    """Return a table's entry with these results by kernel. The fastest kernel wins."""
    winner = min(results, key=lambda kernel: results[kernel].ms)
    return Entry(problem.key(), winner, results, 9, {}, {}, "2026-01-01")


def make_off_by(factor, problem=GRID, kernel="grid"):
    """Return an entry of a kernel that takes ``factor`` times its estimate."""
    return make_entry(problem, **{kernel: make_result(kernel, factor * estimate_ms(kernel, problem), problem)})


@pytest.fixture
def save_table(tmp_path):
    """Return a function that saves entries as a table, and returns its path."""
    return lambda *entries, device=H200: store.save(list(entries), device, tmp_path)


def make_row(ms, kernel="grid", gpu_name="NVIDIA H200", **fields):
    """Return a CSV row of our GRU on ``kernel``, or of nn.GRU for "torch". ``fields`` replaces fields of the row."""
    provider = "torch.nn.GRU" if kernel == "torch" else "triton_gru"
    provider += "+graph" if fields.get("mode") == "graph" else ""
    config = config_text(make_config(kernel))
    return dataclasses.replace(row(provider, ms, gpu_name=gpu_name, kernel=kernel, config=config), **fields)


def make_sections(*tables, rows=None):
    """Return the sections of the report by their titles."""
    rows = report.load([]) if rows is None else rows
    return dict(cost_errors.build_sections(report.keep_latest(rows), cost_errors.load(tables)))


@pytest.fixture
def errors(tmp_path):
    """Return a function of CSV rows and tables. It returns the model's errors by kernel, precision and source."""

    def report_errors(rows, *tables):
        section = make_sections(*tables, rows=report.load([write_csv(tmp_path / "rows.csv", rows)]))[ERRORS]
        return section.set_index(["kernel", "precision", "source"]) if len(section) else section

    return report_errors


def test_table_errors_are_grouped_by_kernel_and_precision(errors, save_table):
    ieee = dataclasses.replace(GRID, dtype=torch.float32)
    tf32 = dataclasses.replace(ieee, precision="tf32")
    problems = [dataclasses.replace(GRID, batch_size=batch) for batch in (1, 2, 4)]
    table = save_table(
        *(make_off_by(factor, problem) for factor, problem in zip((2.0, 0.25, 1.1), problems)),
        make_off_by(1.5, ieee, "step"), make_off_by(1.0, tf32, "torch"),
        make_off_by(3.0, dataclasses.replace(GRID, hidden_size=64), "block"),
    )  # fmt: skip
    model_errors = errors([], table)
    assert list(model_errors.index) == [
        ("block", "float16", "table"), ("grid", "float16", "table"), ("step", "fp32 ieee", "table"),
        ("torch", "fp32 tf32", "table"),
    ]  # fmt: skip
    grid = model_errors.loc["grid", "float16", "table"].tolist()
    assert grid == pytest.approx([3, (2.0 * 0.25 * 1.1) ** (-1 / 3), 2.0, 4.0])
    assert model_errors.loc["step", "fp32 ieee", "table"].tolist() == pytest.approx([1, 1 / 1.5, 1.5, 1.5])
    assert model_errors.loc["torch", "fp32 tf32", "table"].tolist() == pytest.approx([1, 1.0, 1.0, 1.0])
    assert model_errors.loc["block", "float16", "table"].tolist() == pytest.approx([1, 1 / 3, 3.0, 3.0])


def test_row_errors_are_listed_with_table_errors(errors, save_table):
    rows = [
        make_row(1.25 * estimate_ms("grid")), make_row(0.5 * estimate_ms("torch", in_graph=False), "torch"),
        make_row(estimate_ms("step", in_graph=False), "step", provider="triton_gru.step"),
    ]  # fmt: skip
    model_errors = errors(rows, save_table(make_off_by(2.0)))
    assert model_errors.loc["grid", "float16", "CSV"].tolist() == pytest.approx([1, 0.8, 1.25, 1.25])
    assert model_errors.loc["torch", "float16", "CSV"].tolist() == pytest.approx([1, 2.0, 2.0, 2.0])
    assert model_errors.loc["step", "float16", "CSV"].tolist() == pytest.approx([1, 1.0, 1.0, 1.0])
    assert model_errors.loc["grid", "float16", "table"].tolist() == pytest.approx([1, 0.5, 2.0, 2.0])
    assert len(model_errors) == 4


def test_each_case_has_one_time_and_graph_times_take_precedence(errors):
    """A kernel called by name is the same case. Host times and earlier runs are left out."""
    expected = estimate_ms("grid")
    rows = [
        make_row(4.0 * expected, mode="graph"), make_row(2.0 * expected, mode="graph", run_id="2"),
        make_row(9.0 * expected),
        make_row(9.0 * expected, provider="triton_gru.grid"), make_row(9.0 * expected, mode="host"),
        make_row(9.0 * estimate_ms("torch"), "torch"), make_row(estimate_ms("torch"), "torch", mode="graph"),
    ]  # fmt: skip
    model_errors = errors(rows)
    assert model_errors.loc["grid", "float16", "CSV"].tolist() == pytest.approx([1, 0.5, 2.0, 2.0])
    assert model_errors.loc["torch", "float16", "CSV"].tolist() == pytest.approx([1, 1.0, 1.0, 1.0])


def test_cold_l2_is_a_separate_source(errors):
    model_errors = errors([make_row(estimate_ms("grid")), make_row(2.0 * estimate_ms("grid"), l2="cold")])
    assert model_errors["estimate over measured"].to_dict() == pytest.approx({
        ("grid", "float16", "CSV"): 1.0, ("grid", "float16", "CSV, cold L2"): 0.5
    })  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"gpu_name": "none: AVX512 CPU"}, {"gpu_name": "NVIDIA GB200"}, {"gpu_name": "NVIDIA L4"},
        {"sms": "16"}, {"variant": "streaming", "T": 1}, {"dtype": "float64"}, {"n": 0, "status": "wrong"},
        {"config": ""}, {"config": "GridConfig(units=16)"}, {"config": '{"units": 16}'},
        {"kernel": "block"}, {"kernel": "torch"}, {"provider": "triton_gru.grid.probe"}, {"provider": "torchrl"},
    ],
    ids=str,
)  # fmt: skip
def test_skips_rows_that_cannot_be_estimated(fields, errors):
    assert len(errors([make_row(1.0)])) == 1
    assert len(errors([dataclasses.replace(make_row(1.0), **fields)])) == 0


@pytest.mark.parametrize(
    "name, sms, device",
    [
        ("NVIDIA H200", "132", H200), ("NVIDIA A100-SXM4-80GB", "108", A100), ("NVIDIA A100-SXM4-80GB", "", A100),
        ("NVIDIA GeForce RTX 5090", "170", KNOWN_DEVICES["RTX 5090"]),
        ("NVIDIA GeForce RTX 5090 Laptop GPU", "82", None),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", "42", None), ("NVIDIA GB200", "148", None),
        ("NVIDIA H100 80GB HBM3", "132", KNOWN_DEVICES["H100"]), ("NVIDIA H100 PCIe", "114", None),
        ("NVIDIA GH200 480GB", "132", KNOWN_DEVICES["GH200"]), ("NVIDIA H800", "132", None),
        ("NVIDIA GeForce RTX 4090", "128", KNOWN_DEVICES["RTX 4090"]), ("NVIDIA GeForce RTX 4090 D", "114", None),
        ("NVIDIA L40S", "142", KNOWN_DEVICES["L40S"]), ("NVIDIA L40", "142", None),
    ],
)  # fmt: skip
def test_devices_are_found_by_driver_name(name, sms, device):
    assert cost_errors.device_of(name, sms) is device


def test_table_is_estimated_for_the_device_it_names(save_table):
    """Other devices have the same architecture and number of multiprocessors."""
    devices = (dataclasses.replace(H200, name=name) for name in ("NVIDIA H200", "NVIDIA GH200 480GB", "NVIDIA H800"))
    section = make_sections(*(save_table(make_off_by(1.0), device=device) for device in devices))["Tuned tables"]
    assert section["estimated as"].tolist() == ["H200", "GH200", "unknown"]


@pytest.mark.parametrize("kernel", ["block", "grid", "step"])
def test_configurations_survive_a_round_trip(kernel):
    config = make_config(kernel, dataclasses.replace(GRID, hidden_size=64))
    assert cost_errors.configs_of(kernel, config_text(config)) == (config, None)


# A configuration of ``step`` as the CSVs have it.
JSON = '{"units": 16, "programs": 4, "batch": 16, "depth": 64, "num_warps": 4, "num_stages": 3}'


@pytest.mark.parametrize(
    "text",
    [
        "", "16", "StepConfig()", "(" * 9999, "[" * 99999, "\0",
        "StepConfig(units=16, programs=4, batch=16, depth=64, num_warps=4, num_stages=3)",
        *(
            JSON.replace("16", value, 1)
            for value in ("0", "-16", "16.0", "True", "true", "1" * 40, "1" * 9999, "print()", '"16"', "null", "NaN")
        ),
        JSON.replace("units", "others"), JSON.replace("}", ', "more": 1}'), JSON[:-1], f"[{JSON}]", JSON * 2,
    ],
)  # fmt: skip
def test_other_texts_are_no_configuration(text):
    assert cost_errors.configs_of("step", JSON) != (None, None)
    assert cost_errors.configs_of("step", text) == (None, None)


def test_unknown_hand_over_is_no_configuration():
    text = config_text(make_config("grid"))
    config, _ = cost_errors.configs_of("grid", text)
    assert isinstance(config, GridConfig)
    assert cost_errors.configs_of("grid", text.replace("flag", "hearsay")) == (None, None)


TILE = ProjectionConfig(256, 256, depth=64, num_warps=8, num_stages=2)


@pytest.mark.parametrize("projection", [TILE, CUBLAS])
def test_call_is_estimated_with_its_projection(projection, errors, save_table):
    """Check rows as perf/ writes them, and entries of tables."""
    plan = dataclasses.replace(choose(GRID, H200, "grid"), projection=projection)
    cost = estimate_call_cost(GRID, plan.config, H200, in_graph=True, projection=projection)
    assert cost != estimate_call_cost(GRID, plan.config, H200, in_graph=True)
    rows = [dataclasses.replace(make_row(0.5e-3 * cost.total, mode="graph"), **describe_plan(plan))]
    tile = projection if projection == TILE else None
    result = dataclasses.replace(make_result("grid", 0.25e-3 * cost.total), config=plan.config, tile=tile)
    model_errors = errors(rows, save_table(make_entry(**{plan.implementation: result})))
    assert model_errors.loc[plan.implementation, "float16", "CSV"]["estimate over measured"] == pytest.approx(2.0)
    assert model_errors.loc[plan.implementation, "float16", "table"]["estimate over measured"] == pytest.approx(4.0)


@pytest.mark.parametrize("bad", ['{"rows": 64}', "[]", config_text(TILE).replace("64", "0"), config_text(TILE) * 2])
def test_other_texts_are_no_tile(bad):
    assert cost_errors.configs_of("step", f"{JSON} {config_text(TILE)}")[1] == TILE
    assert cost_errors.configs_of("step", f"{JSON} {bad}") == (None, None)


def test_problems_are_read_from_keys_and_rows(tmp_path):
    packed = change_problem(
        steps=7,
        batch_size=8,
        input_size=96,
        hidden_size=96,
        num_layers=3,
        bidirectional=True,
        dtype=torch.bfloat16,
        layout="packed",
    )
    tf32 = dataclasses.replace(packed, dtype=torch.float32, precision="tf32", layout="dense", bidirectional=False)
    for problem in (packed, tf32, dataclasses.replace(tf32, precision="ieee", reset_after=False, layout="lengths")):
        assert cost_errors.problem_of_key(problem.key()) == problem
    assert cost_errors.problem_of_key(dataclasses.replace(packed.key(), dtype="float64")) is None
    assert cost_errors.problem_of_key(dataclasses.replace(packed.key(), directions=3)) is None
    cases = [Case("bf16", 96, 8, 7, 3, 2, layout="packed"), Case("tf32", 96, 8, 7, 3), Case("fp32", 96, 8, 7, 3)]
    rows = report.load([write_csv(tmp_path / "rows.csv", [case.make_row() for case in cases])])
    wanted = [packed, tf32, dataclasses.replace(tf32, precision="ieee")]
    assert [cost_errors.problem_of_row(row) for _, row in rows.iterrows()] == wanted


def test_chosen_kernel_is_compared_with_the_fastest(save_table):
    """The model chooses grid for three entries: grid is fastest, step is faster, only the tuned grid was timed."""
    assert estimate_ms("grid") < estimate_ms("step")
    problems = [dataclasses.replace(GRID, steps=steps) for steps in (64, 128, 256)]
    right, wrong, untimed = (
        make_entry(
            problem, grid=make_result("grid", grid_ms, heuristic_ms=heuristic_ms), step=make_result("step", step_ms)
        )
        for problem, grid_ms, heuristic_ms, step_ms in zip(problems, (1.0, 1.0, 1.2), (1.1, 1.2, None), (2.0, 0.8, 0.5))
    )
    sections = make_sections(save_table(right, wrong, untimed))
    (choices,) = sections[CHOICES].to_dict("records")
    assert choices == {
        # Time of the chosen kernel over the fastest: 1.1 / 1.0, 1.2 / 0.8 and 1.2 / 0.5.
        "precision": "float16", "entries": 3, "geomean": pytest.approx((1.1 * 1.5 * 2.4) ** (1 / 3)),
        "median": pytest.approx(1.5), "max": pytest.approx(2.4), "within 15 %": 1, "is fastest": 1, "timed as tuned": 1,
    }  # fmt: skip
    assert sections[WORST].to_numpy().tolist() == [
        [str(untimed.key), "H200", "grid", "step", pytest.approx(2.4)],
        [str(wrong.key), "H200", "grid", "step", pytest.approx(1.5)],
    ]


def test_kernel_without_a_heuristic_configuration_is_not_chosen(save_table):
    """The table has block for 512 hidden units, and the heuristic has not."""
    assert isinstance(make_config("block"), str)
    small = heuristic("block", dataclasses.replace(GRID, hidden_size=64), H200)
    block = dataclasses.replace(make_result("torch", 1.0), config=small)
    with_torch, only_block = (
        make_entry(block=block, torch=make_result("torch", 3.0)),
        make_entry(dataclasses.replace(GRID, steps=9), block=block),
    )
    sections = make_sections(save_table(with_torch, only_block))
    assert sections[WORST][["chosen", "fastest", "loss"]].to_numpy().tolist() == [
        ["torch", "block", pytest.approx(3.0)]
    ]
    assert sections[CHOICES][["entries", "timed as tuned"]].to_numpy().tolist() == [[1, 0]]


def test_times_of_heuristic_configurations_over_tuned_ones(save_table):
    problems = [dataclasses.replace(GRID, batch_size=batch) for batch in (1, 2, 4)]
    entries = [
        make_entry(problem, grid=make_result("grid", 2.0, heuristic_ms=2.0 * ratio), torch=make_result("torch", 1.0))
        for problem, ratio in zip(problems, (1.0, 1.125, 2.0))
    ]
    entries.append(make_entry(dataclasses.replace(GRID, batch_size=8), grid=make_result("grid", 2.0)))
    section = make_sections(save_table(*entries))[OVER_TUNED]
    assert section.to_dict("records") == [{
        "kernel": "grid", "entries": 3, "geomean": pytest.approx(2.25 ** (1 / 3)), "median": 1.125, "max": 2.0,
        "within 15 %": 2,
    }]  # fmt: skip


def test_later_table_takes_precedence_for_equal_keys(errors, tmp_path):
    tables = [store.save([make_off_by(factor)], H200, tmp_path / str(factor)) for factor in (4.0, 2.0)]
    assert errors([], *tables).loc["grid", "float16", "table"].tolist() == pytest.approx([1, 0.5, 2.0, 2.0])


def test_nothing_is_estimated_for_an_unknown_device(save_table):
    table = save_table(make_entry(grid=make_result("grid", 1.0, heuristic_ms=1.1)), device=UNKNOWN)
    sections = make_sections(table)
    assert [title for title in sections if len(sections[title])] == ["Tuned tables", OVER_TUNED]
    assert sections["Tuned tables"].to_dict("records") == [{
        "table": "NVIDIA-Unheard-of.json", "name": "NVIDIA Unheard-of", "cc": "90", "sms": "7",
        "estimated as": "unknown", "entries": 1, "not understood": 0,
    }]  # fmt: skip


@pytest.mark.parametrize("files", ["csv", "json", "csv json", "json csv"])
def test_csvs_and_tables_are_reported_in_any_mix(files, tmp_path, save_table, capsys):
    rows = [make_row(1.25 * estimate_ms("grid")), make_row(2.0, "torch")]
    paths = {"csv": write_csv(tmp_path / "rows.csv", rows), "json": save_table(make_off_by(2.0))}
    assert main([*(str(paths[kind]) for kind in files.split())]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines if line.startswith("grid ") and "float16" in line] == [
        *["grid float16 CSV 1 0.8 1.25 1.25"] * ("csv" in files), *["grid float16 table 1 0.5 2 2"] * ("json" in files)
    ]  # fmt: skip
    assert ("Tuned tables" in lines) == ("json" in files)


def test_tables_in_markdown(save_table, capsys):
    ours = make_result("grid", 2.0 * estimate_ms("grid"), heuristic_ms=2.2 * estimate_ms("grid"))
    assert main(["--markdown", str(save_table(make_entry(grid=ours)))]) == 0
    lines = squeeze_spaces(capsys.readouterr().out.splitlines())
    assert f"**{ERRORS}**" in lines and f"**{CHOICES}**" in lines and f"**{WORST}**" not in lines
    assert "| H200.json | H200 | 90 | 132 | H200 | 1 | 0 |" in lines
    assert "| grid | float16 | table | 1 | 0.5 | 2 | 2 |" in lines
    assert "| grid | 1 | 1.1 | 1.1 | 1.1 | 1 |" in lines


def test_refuses_files_that_are_no_tables(tmp_path, save_table, capsys):
    good, bad = save_table(make_off_by(1.0)), tmp_path / "bad.json"
    for text in ("", "{}", "[" * 99999, '{"schema": 1, "device": 1, "entries": []}', "schema,run_id\n"):
        bad.write_text(text)
        assert main([str(good), str(bad)]) == 2
        out, err = capsys.readouterr()
        assert not out and f"{bad} is not a tuned table: it " in err
    bad.unlink()
    assert main([str(bad)]) == 2
    assert "bad.json" in capsys.readouterr().err


def test_counts_entries_that_are_not_understood(save_table):
    path = save_table(make_off_by(1.0))
    path.write_text(path.read_text().replace('"entries": [', '"entries": [{"key": "of another version"},'))
    (line,) = make_sections(path)["Tuned tables"].to_dict("records")
    assert (line["entries"], line["not understood"]) == (1, 1)


def test_empty_table_has_no_errors(save_table, capsys):
    assert main([str(save_table())]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "Tuned tables"


def test_reports_a_csv_without_estimates(tmp_path, capsys):
    assert main([str(write_csv(tmp_path / "rows.csv", [row("torchrl", 1.0)]))]) == 0
    assert capsys.readouterr().out == "the files have no time that the cost model estimates\n"


def test_error_factors_are_symmetric(errors, save_table):
    model_errors = errors([], save_table(make_off_by(1.3, dataclasses.replace(GRID, steps=8)), make_off_by(1 / 1.3)))
    line = model_errors.loc["grid", "float16", "table"]
    assert line["median off by"] == pytest.approx(1.3) and math.isclose(line["estimate over measured"], 1.0)
