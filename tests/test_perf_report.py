"""Reports and comparisons of planted CSVs: ratios, losses by name, and regressions apart from noise."""

import csv
import dataclasses
import math
import pathlib
import re
import statistics

import numpy as np
import pandas as pd
import pytest
import torch

from perf import compare, report
from perf.__main__ import main
from perf.record import COLUMNS, Row
from perf.tables import format_table

RESULTS = pathlib.Path(report.__file__).with_name("results")
BASE = Row(gpu_name="GPU", run_id="1", dtype="float16", T=512, B=4, I=512, H=512, l2="warm")


def row(provider, ms, **more):
    """Return a row of ``provider`` with the median ``ms`` and a small spread.

    If ``ms`` is a text, the row has no times, and the text is its status. A name that ends in "+graph" sets the mode.
    ``more`` has further columns. Without I, the input size is H.
    """
    mode = {"mode": "graph"} if provider.endswith("+graph") else {}
    mode |= {"I": more["H"]} if "H" in more else {}
    if isinstance(ms, str):
        return dataclasses.replace(BASE, provider=provider, status=ms, error="because", **mode | more)
    times = {"n": 20, "p20_ms": 0.995 * ms, "p50_ms": ms, "p80_ms": 1.005 * ms, "p99_ms": 3 * ms, "rel_iqr": 0.01}
    return dataclasses.replace(BASE, provider=provider, **times | mode | more)


def write_csv(path, rows):
    """Write rows as a sweep does, and return the path."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(dataclasses.astuple(row) for row in rows)
    return path


@pytest.fixture
def load_rows(tmp_path):
    """Return a function that writes rows to a CSV, and returns what `report.load` makes of it."""
    return lambda rows: report.load([write_csv(tmp_path / "rows.csv", rows)])


def squeeze_spaces(lines):
    """Return the lines without the spaces that align them."""
    return [" ".join(line.split()) for line in lines]


def find_table(rows, title):
    """Return the report's table with this title."""
    return dict(report.make_sections(rows))[title]


HEADLINE = "Times faster than the faster of torch.nn.GRU eager and in a graph (bf16: or of cudnn.standard)"


def test_headline_is_against_the_faster_of_eager_and_graph(load_rows):
    rows = load_rows([
        row("torch.nn.GRU", 8.0), row("torch.nn.GRU+graph", 6.0), row("triton_gru", 2.0, kernel="grid"),
        row("triton_gru+graph", 1.5, kernel="grid"),
        row("torch.nn.GRU", 3.0, B=16), row("torch.nn.GRU+graph", 4.0, B=16),
        row("triton_gru", 4.0, B=16, kernel="torch"),
    ])  # fmt: skip
    headline = find_table(rows, HEADLINE).set_index("mode")
    eager = headline.loc["eager"]
    assert (eager["cases"], eager["min"], eager["max"], eager["by own kernel"]) == (2, 0.75, 3.0, 1)
    assert eager["geomean"] == pytest.approx(math.sqrt(3.0 * 0.75))
    assert headline.loc["graph"]["geomean"] == pytest.approx(4.0)
    every = find_table(rows, "Every case")
    assert every[["B", "mode", "times faster", "95 %"]].to_numpy().tolist() == [
        [4, "eager", 3.0, ""], [4, "graph", 4.0, ""], [16, "eager", 0.75, ""],
    ]  # fmt: skip
    lost = find_table(rows, "Below 1.0: 1 of 3")
    assert lost[["H", "B", "T", "mode", "kernel"]].to_numpy().tolist() == [[512, 16, 512, "eager", "torch"]]


def test_in_bf16_cudnn_with_flat_weights_is_the_baseline(load_rows):
    """`nn.GRU` copies its weights on every bf16 call. In fp16 cuDNN is a peer like others."""
    times = {"torch.nn.GRU": 9.0, "cudnn.standard": 4.0, "cudnn.persist_static": 1.0, "triton_gru": 2.0}
    for dtype, expected in (("bfloat16", 2.0), ("float16", 4.5)):
        rows = load_rows([row(name, ms, dtype=dtype) for name, ms in times.items()])
        assert find_table(rows, HEADLINE)["geomean"].tolist() == pytest.approx([expected])


def sampled(provider, samples, **more):
    """Return a row of ``provider`` with the samples and their median."""
    return row(provider, statistics.median(samples), samples_ms=" ".join(f"{ms:.5g}" for ms in samples), **more)


@pytest.fixture
def compare_samples(load_rows):
    """Return a function that returns the ratio of two rows of samples and the ends of its interval."""

    def compare_samples(theirs, ours):
        speedups = report.compare_with_nn_gru(load_rows([sampled("torch.nn.GRU", theirs), sampled("triton_gru", ours)]))
        return speedups.loc[0, ["times faster", "low", "high"]].tolist()

    return compare_samples


def test_drift_of_the_machine_leaves_the_paired_ratio_exact(compare_samples):
    """The machine slows down round by round, and one round of ours is an outlier: medians would give 1.87, not 2."""
    drift = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8]
    theirs, ours = [2 * ms for ms in drift], [9.0, *drift[1:]]
    assert statistics.median(theirs) / statistics.median(ours) == pytest.approx(2.8 / 1.5)
    assert compare_samples(theirs, ours) == [2.0, 2.0, 2.0]


def test_faster_mode_of_nn_gru_is_paired_round_by_round(load_rows):
    """`nn.GRU` is faster in a graph, so both modes of ours are compared with that.

    Ours is 3, 2, 6, 2 and 4 times faster eagerly, and 3, 4, 6, 2 and 8 times in a graph.
    """
    rows = load_rows([
        sampled("torch.nn.GRU", [9.0, 9.0, 9.0, 9.0, 9.0]), sampled("torch.nn.GRU+graph", [3.0, 4.0, 6.0, 2.0, 8.0]),
        sampled("triton_gru", [1.0, 2.0, 1.0, 1.0, 2.0]), sampled("triton_gru+graph", [1.0, 1.0, 1.0, 1.0, 1.0]),
    ])  # fmt: skip
    assert find_table(rows, "Every case")["times faster"].tolist() == [3.0, 4.0]
    assert find_table(rows, HEADLINE)["geomean"].tolist() == pytest.approx([3.0, 4.0])


def test_rows_without_shared_rounds_have_the_ratio_of_medians_and_no_interval(load_rows):
    for ours in (row("triton_gru", 2.0), sampled("triton_gru", [1.0, 2.0, 2.0, 2.0])):
        every = find_table(load_rows([sampled("torch.nn.GRU", [4.0, 5.0, 9.0]), ours]), "Every case")
        assert every[["times faster", "95 %"]].to_numpy().tolist() == [[2.5, ""]]


def test_interval_of_five_rounds_spans_all_of_them(compare_samples):
    """Three or more of five draws are the least round with a chance of 5.8 %, above 2.5 %, and so for the greatest."""
    assert compare_samples([2.0, 5.0, 1.0, 4.0, 3.0], [1.0] * 5) == [3.0, 1.0, 5.0]


@pytest.mark.parametrize("rounds", [20, 200])
def test_interval_holds_the_true_ratio_in_94_of_100_draws(rounds):
    """Thousands of draws gave 94 of 100. That is 282 of 300, give or take three times sqrt(300 * 0.94 * 0.06)."""
    random = np.random.default_rng(0)
    intervals_with_truth = 0
    for _ in range(300):
        drift = np.cumsum(random.uniform(0, 0.1, rounds)) + 1
        theirs, ours = (drift * random.lognormal(0, 0.05, rounds) for _ in range(2))
        ratio, low, high = report._compare_rounds(" ".join(map(str, 1.5 * theirs)), " ".join(map(str, ours)), 0.0)
        assert low <= ratio <= high
        intervals_with_truth += low <= 1.5 <= high
    assert 282 - 12 <= intervals_with_truth <= 282 + 12


def test_interval_width_follows_the_noise_and_is_reproducible(compare_samples):
    """Theory gives 2 * 1.96 * 1.25 / sqrt(n) standard deviations for a median: 2.7 % for noise of 5 %, n = 80."""
    noise, ours = np.random.default_rng(0).normal(0, 0.05, 80), [1.0] * 80
    ratio, low, high = compare_samples(2 * np.exp(noise), ours)
    assert 0.5 < (high - low) / 2 / 0.027 < 2
    _, wide_low, wide_high = compare_samples(2 * np.exp(4 * noise), ours)
    assert (wide_high - wide_low) / (high - low) == pytest.approx(4, rel=0.2)
    report._draw_median_ranks.cache_clear()
    assert compare_samples(2 * np.exp(noise), ours) == [ratio, low, high]


def test_case_whose_interval_holds_1_is_neither_lost_nor_won(load_rows):
    """B = 3 is lost by its median and B = 4 won. B = 5 has no interval."""
    ratios_around_1 = np.array([0.94, 1.06, 0.96, 1.04, 0.95, 1.05, 0.97, 1.03, 0.98, 1.02, 1.0])
    rows = [row("torch.nn.GRU", 0.99, B=5), row("triton_gru", 1.0, B=5)]
    for batch, ratio in enumerate((1.3, 0.8, 0.99, 1.01), 1):
        rows += [sampled("torch.nn.GRU", ratio * ratios_around_1, B=batch), sampled("triton_gru", [1.0] * 11, B=batch)]
    lost = find_table(load_rows(rows), "Below 1.0: 2 of 5; neither lost nor won, with 1.0 in their interval: 2")
    assert lost[["B", "95 %"]].to_numpy().tolist() == [[2, "0.768 to 0.832"], [5, ""]]
    assert find_table(load_rows(rows), "Every case")["95 %"].tolist()[0] == "1.25 to 1.35"


def test_every_case_is_listed_in_order_of_its_shape(load_rows):
    shapes = [(64, 8, t) for t in range(20, 0, -1)] + [(512, 1, 1), (64, 1, 100), (64, 1, 1), (1024, 1, 1)]
    rows = [row(name, 1.0, H=h, B=b, T=t) for h, b, t in shapes for name in ("torch.nn.GRU", "triton_gru")]
    listed = find_table(load_rows(rows), "Every case")[["H", "B", "T"]].to_numpy()
    assert [tuple(shape) for shape in listed] == sorted(shapes)


def test_ratios_are_between_rows_of_one_run(load_rows):
    """A later run measured only `nn.GRU`, when the machine was twice as slow."""
    rows = load_rows([row("torch.nn.GRU", 4.0), row("triton_gru", 2.0), row("torch.nn.GRU", 8.0, run_id="2")])
    assert find_table(rows, HEADLINE)["geomean"].tolist() == [2.0]
    assert find_table(rows, "Times faster than each peer, in the same mode")["geomean"].tolist() == [2.0]


def test_last_of_repeated_measurements_is_reported(load_rows):
    rows = load_rows([
        row("torch.nn.GRU", 4.0), row("triton_gru", 2.0), row("torch.nn.GRU", 4.0, run_id="2"),
        row("triton_gru", 1.0, run_id="2"),
    ])  # fmt: skip
    assert find_table(rows, HEADLINE)[["cases", "geomean"]].to_numpy().tolist() == [[1, 4.0]]


def test_peers_are_compared_in_the_same_mode_and_cudnn_by_its_best(load_rows):
    rows = load_rows([
        row("torch.nn.GRU", 8.0), row("triton_gru", 2.0), row("triton_gru+graph", 1.0), row("torchrl", 4.0),
        row("torchrl+graph", 0.5), row("cudnn.standard", 6.0), row("cudnn.persist_static", 3.0),
        row("cudnn.persist_dynamic", "unavailable"), row("cudnn.small_h", "wrong"),
    ])  # fmt: skip
    peers = find_table(rows, "Times faster than each peer, in the same mode").set_index(["base", "mode"])
    assert peers.loc["torchrl", "eager"]["geomean"] == 2.0
    assert peers.loc["torchrl", "graph"]["geomean"] == 0.5
    assert peers.loc["torchrl", "graph"]["below 1"] == 1
    assert peers.loc["cudnn, the best forced", "eager"]["geomean"] == 1.5
    assert ("cudnn.small_h", "eager") not in peers.index


def test_regimes_and_precisions_are_separate(load_rows):
    shapes = [
        {"H": 192, "B": 64, "T": 1}, {"H": 193, "B": 65, "T": 2}, {"H": 1025},
        {"dtype": "float32", "precision": "tf32"}, {"dtype": "float32", "precision": "ieee"}, {"l2": "cold"},
    ]  # fmt: skip
    rows = load_rows(
        [row(name, ms, **shape) for shape in shapes for name, ms in (("torch.nn.GRU", 2.0), ("triton_gru", 1.0))]
    )
    headline = find_table(rows, HEADLINE)
    assert sorted(zip(headline["precision"], headline["regime"])) == [
        ("float16", "H <= 1024, B <= 64, T > 1"), ("float16", "H <= 1024, B > 64, T > 1"),
        ("float16", "H <= 192, B <= 64, T = 1"), ("float16", "H > 1024, B <= 64, T > 1"),
        ("fp32 ieee", "H <= 1024, B <= 64, T > 1"), ("fp32 tf32", "H <= 1024, B <= 64, T > 1"),
    ]  # fmt: skip
    assert headline["cases"].tolist() == [1] * 6


def test_regime_names_direction_layout_and_streaming(load_rows):
    shapes = [{}, {"directions": 2}, {"layout": "packed", "I": 80}, {"variant": "streaming", "T": 1}]
    rows = load_rows(
        [row(name, ms, **shape) for shape in shapes for name, ms in (("torch.nn.GRU", 2.0), ("triton_gru", 1.0))]
    )
    assert list(find_table(rows, HEADLINE)["regime"]) == [
        "H <= 1024, B <= 64, T > 1", "H <= 1024, B <= 64, T > 1, bidirectional",
        "H <= 1024, B <= 64, T > 1, packed",
        "H <= 1024, B <= 64, T = 1, streaming",
    ]  # fmt: skip
    assert set(find_table(rows, "Every case")["I"]) == {512, 80}
    assert list(find_table(rows, "Every case").sort_values("form")["form"]) == [
        "",
        "bidirectional",
        "packed",
        "streaming",
    ]


def test_second_direction_is_compared_within_one_run(load_rows):
    """Both times of a ratio are from one run, though a later run measured `nn.GRU` again with one direction.

    Rows without a time of the other number of directions do not appear.
    """
    rows = load_rows([
        row("triton_gru", 1.2, directions=2), row("triton_gru", 1.0), row("triton_gru", 3.0, directions=2, B=8),
        row("triton_gru", 2.0, B=8), row("triton_gru+graph", 1.0, directions=2), row("triton_gru+graph", "failed"),
        row("torch.nn.GRU", 4.0, directions=2), row("torch.nn.GRU", 2.0), row("torch.nn.GRU", 1.0, run_id="2"),
    ])  # fmt: skip
    added = find_table(rows, "Two directions: time over the time of one direction").set_index(["base", "mode"])
    assert set(added.index) == {("triton_gru", "eager"), ("torch.nn.GRU", "eager")}
    assert added.loc["triton_gru", "eager"][["cases", "min", "max"]].tolist() == [2, 1.2, 1.5]
    assert added.loc["torch.nn.GRU", "eager"]["geomean"] == 2.0


def test_frames_are_reported_in_microseconds(load_rows):
    frame = {"T": 1, "variant": "streaming"}
    rows = load_rows([
        row("torch.nn.GRU", 0.05, **frame), row("torch.nn.GRU+graph", 0.04, **frame),
        row("triton_gru.stream", 0.0123, **frame), row("triton_gru.stream", "failed", layers=2, **frame),
        row("torch.nn.GRU", 2.0, layers=2, **frame), row("torch.nn.GRU", 7.0, T=1),
    ])  # fmt: skip
    frames = find_table(rows, "Microseconds a frame, median and 99th percentile").set_index("layers")
    assert list(frames) == ["precision", "H", "B", "torch.nn.GRU", "torch.nn.GRU+graph", "triton_gru.stream"]
    assert frames.iloc[:, 3:].to_numpy().tolist() == [["50, 150", "40, 120", "12.3, 36.9"], ["2000, 6000", "", ""]]


def test_committed_results_are_read():
    paths = [*RESULTS.glob("*.csv"), *RESULTS.glob("NVIDIA-H200/*/core-*.csv")]
    assert len(paths) >= 4 and len(report.load(paths)) > 500
    with RESULTS.joinpath("cells-cpu.csv").open() as file:
        assert next(csv.reader(file)) == COLUMNS


def test_time_over_the_floor(load_rows):
    rows = load_rows([row("triton_gru", 3.0, floor_ms=1.5), row("triton_gru", 8.0, floor_ms=1.0, B=8)])
    over_floor = find_table(rows, "Time over the lower bound")
    assert over_floor[["geomean", "min", "max"]].to_numpy().tolist() == [[4.0, 2.0, 8.0]]


def test_outcomes_of_each_provider_are_counted(load_rows):
    rows = load_rows([
        row("torch.nn.GRU", 1.0), row("triton_gru", "wrong"), row("triton_gru", "failed", B=8),
        dataclasses.replace(row("torch.nn.GRU", 1.0, B=8), status="noisy"),
    ])  # fmt: skip
    outcomes = find_table(rows, "Outcomes of each provider's cases").set_index("base")
    assert outcomes.loc["torch.nn.GRU"][["ok", "noisy", "wrong"]].tolist() == [1, 1, 0]
    assert outcomes.loc["triton_gru"][["wrong", "failed", "most frequent error"]].tolist() == [1, 1, "because"]
    assert HEADLINE not in dict(report.make_sections(rows))


def test_cells_are_counted(load_rows):
    """Expected numbers are by hand: H = I = 3 in fp16. An LSTM has 4 gates of 3 x 6 weights and two biases."""
    cell = {"I": 3, "H": 3, "B": 1, "T": 10}
    names = ["triton_gru", "torch.nn.GRU", "torch.nn.LSTM", "torch.nn.RNN"]
    rows = [row(name, i + 1.0, **cell) for i, name in enumerate(names)]
    rows = load_rows([*rows, row("torch.nn.GRU", 1.0), row("triton_gru", 1.0)])  # of a shape without RNN and LSTM
    cells = find_table(rows, "RNN, LSTM, GRU").set_index("cell")
    assert list(cells.index) == ["torch.nn.RNN", "torch.nn.LSTM", "torch.nn.GRU", "triton_gru"]
    assert cells["gates"].tolist() == [1, 4, 3, 3]
    assert cells["parameters"].tolist() == [24, 96, 72, 72]
    assert cells.loc["torch.nn.LSTM"]["kFLOP a step and row"] == pytest.approx(0.144)
    assert cells.loc["torch.nn.LSTM"]["weight KB a step"] == pytest.approx(0.072)
    assert cells.loc["torch.nn.LSTM"]["us a step"] == pytest.approx(300.0)


def test_parameter_counts_match_torch_modules(load_rows):
    modules = {f"torch.nn.{name}": getattr(torch.nn, name)(5, 7) for name in ("RNN", "GRU", "LSTM")}
    cells = find_table(load_rows([row(name, 1.0, I=5, H=7) for name in modules]), "RNN, LSTM, GRU").set_index("cell")
    assert cells["parameters"].to_dict() == {
        name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()
    }  # fmt: skip


def test_report_as_text_and_as_markdown(tmp_path, capsys):
    path = write_csv(tmp_path / "core.csv", [row("torch.nn.GRU", 1.0), row("triton_gru", 2.0, kernel="grid")])
    assert main(["report", str(path)]) == 0
    plain = capsys.readouterr().out
    assert "Below 1.0: 1 of 1\nprecision" in plain
    assert main(["report", "--markdown", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| float16 | 512 | 512 | 4 | 512 | 1 | | warm | eager | grid | 0.5 | | 0.01 |" in squeeze_spaces(lines)
    heads = [i for i, line in enumerate(lines) if line.startswith("|:")]
    assert len(heads) > 4 and all(lines[i].count("|") == lines[i - 1].count("|") for i in heads)


def test_tables_align_words_left_and_numbers_of_three_digits_right():
    frame = pd.DataFrame({"a word": ["x|y", "1.23456"], "n": [1, 12345], "ratio": [0.0123456, 12345.6]})
    assert format_table(frame).splitlines() == [
        "a word       n   ratio", "x/y          1  0.0123", "1.23456  12345   12346",
    ]  # fmt: skip
    assert format_table(frame, "pipe").splitlines() == [
        "| a word  |     n |  ratio |", "|:--------|------:|-------:|", "| x/y     |     1 | 0.0123 |",
        "| 1.23456 | 12345 |  12346 |",
    ]  # fmt: skip
    assert format_table(frame[:0]) == "none"


def test_report_without_rows_is_no_error(tmp_path, capsys):
    assert main(["report", str(write_csv(tmp_path / "core.csv", []))]) == 0
    assert main(["report", str(write_csv(tmp_path / "core.csv", [row("triton_gru", "failed")]))]) == 0
    assert "because" in capsys.readouterr().out


def test_csv_with_other_columns_is_refused(tmp_path, capsys):
    """Exception: beside the CSV of a sweep, it is skipped with a message."""
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert main(["report", str(tmp_path / "other.csv")]) == 2
    assert "no CSVs of sweeps" in capsys.readouterr().err
    report_of_torch = write_csv(tmp_path / "rows.csv", [row("torch.nn.GRU", 1.0)])
    assert main(["report", str(tmp_path / "other.csv"), str(report_of_torch)]) == 0
    out, err = capsys.readouterr()
    assert "torch.nn.GRU" in out and "skipped" in err and "other.csv" in err and "rows.csv" not in err
    (tmp_path / "empty.csv").write_text("")
    assert main(["report", str(tmp_path / "empty.csv")]) == 2


def run_compare(tmp_path, before, after):
    """Write two lists of rows to the files 0.csv and 1.csv, and return the exit status of `perf compare`."""
    paths = [write_csv(tmp_path / f"{i}.csv", rows) for i, rows in enumerate((before, after))]
    return main(["compare", *map(str, paths)])


@pytest.mark.parametrize("factor, status, verdict", [(1.05, 1, "slower"), (1.02, 0, "same"), (0.9, 0, "faster")])
def test_compare_finds_a_planted_regression(factor, status, verdict, tmp_path, capsys):
    before = [row("triton_gru", 1.0), row("triton_gru", 1.0, B=8), row("torch.nn.GRU", 5.0)]
    after = [row("triton_gru", 1.0), row("triton_gru", factor, B=8), row("torch.nn.GRU", 5.0)]
    assert run_compare(tmp_path, before, after) == status
    out = capsys.readouterr().out
    assert f"'{verdict}'" in out
    assert (re.search(rf" 8 +512 .*{verdict}", out) is not None) == (verdict != "same")


def test_compare_ignores_changes_within_the_spread(tmp_path):
    noisy = {"rel_iqr": 0.3, "status": "noisy"}
    assert run_compare(tmp_path, [row("a", 1.0, **noisy)], [row("a", 1.2)]) == 0
    assert run_compare(tmp_path, [row("a", 1.0)], [row("a", 1.2, **noisy)]) == 0
    assert run_compare(tmp_path, [row("a", 1.0)], [row("a", 1.2)]) == 1


@pytest.mark.parametrize("status", ["wrong", "failed", "unavailable"])
def test_row_that_lost_its_time_is_broken(status, tmp_path, capsys):
    assert run_compare(tmp_path, [row("a", 1.0)], [row("a", status)]) == 1
    assert "broken" in capsys.readouterr().out
    assert run_compare(tmp_path, [row("a", status), row("b", 1.0)], [row("a", 1.0), row("b", 1.0)]) == 0


def test_different_cases_are_not_compared(tmp_path, capsys):
    for other in ({"gpu_name": "another"}, {"mode": "graph"}, {"B": 5}, {"l2": "cold"}):
        assert run_compare(tmp_path, [row("a", 1.0)], [row("a", 2.0, **other)]) == 2
        assert "in common" in capsys.readouterr().err


def test_compare_takes_the_last_row_of_each_case(tmp_path):
    again = [row("a", 1.0), row("a", 2.0, run_id="2")]
    assert run_compare(tmp_path, again, [row("a", 2.0)]) == 0
    assert isinstance(
        compare.compare_rows(report.load([tmp_path / "0.csv"]), report.load([tmp_path / "1.csv"])), pd.DataFrame
    )
