"""Figures of planted timings and counts, read back from the drawn artists."""

import csv
import pathlib
import re
import sys

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib", reason="a machine lent for its GPU may not have it; scripts/test installs it")

from matplotlib.colors import to_hex
from matplotlib.image import imread

from perf import compare, plot, report
from perf.__main__ import main

from .test_perf_report import row, sampled, write_csv

COUNT_COLUMNS = [
    "git_sha", "git_dirty", "device", "triton", "provider", "dtype", "precision", "H", "B", "read", "read_w_hh",
    "busiest", "status", "error",
]  # fmt: skip


@pytest.fixture
def draw_rows(tmp_path):
    """Return a function that draws a kind of figure from planted rows, and returns the figures by title."""

    def draw_rows(draw, rows, before=()):
        loaded, loaded_before = (report.load([write_csv(tmp_path / "rows.csv", table)]) for table in (rows, before))
        figures = {}
        draw(compare.compare_rows(loaded_before, loaded) if draw is plot.draw_before_after else loaded, figures)
        return figures

    return draw_rows


def find_axes(figures):
    """Return the axes of the only figure of ``figures``, by the titles of the axes."""
    (figure,) = figures.values()
    return {axes.get_title(): axes for axes in figure.axes}


def find_line(axes, label):
    """Return the x and y values of the line with this label."""
    (line,) = (line for line in axes.lines if line.get_label() == label)
    return [list(map(float, data)) for data in line.get_data()]


def read_heat_map(axes):
    """Return the text of each rectangle of a heat map and whether it is hatched, by its y label and x label."""
    downs, acrosses = ([label.get_text() for label in axis.get_ticklabels()] for axis in (axes.yaxis, axes.xaxis))
    hatched = {patch.get_xy(): bool(patch.get_hatch()) for patch in axes.patches}
    places = [(int(x), int(y)) for x, y in (text.get_position() for text in axes.texts)]
    return {(downs[y], acrosses[x]): (text.get_text(), hatched[x, y]) for (x, y), text in zip(places, axes.texts)}


def test_step_over_hidden(draw_rows):
    rows = [row("torch.nn.GRU", 5.12, H=h, floor_ms=0.512) for h in (1024, 64)]
    rows += [row("triton_gru", 1.024, H=64, floor_ms=0.256), row("triton_gru", 2.048, H=1024), row("a", 1.0, B=8)]
    rows += [
        row("triton_gru.grid", "failed"),
        row("a", 9.0, T=1),
        row("a", 9.0, directions=2),
        row("a", 9.0, mode="host"),
    ]
    rows += [row("triton_gru.grid-without-sums", 1.0)]
    panels = find_axes(draw_rows(plot.draw_step_over_hidden, rows))
    assert list(panels) == ["float16, B = 4", "float16, B = 8"]
    axes = panels["float16, B = 4"]
    assert find_line(axes, "torch.nn.GRU") == [[64, 1024], pytest.approx([10, 10])]
    assert find_line(axes, "triton_gru") == [[64, 1024], pytest.approx([2, 4])]
    assert find_line(axes, "lower bound") == [[64, 1024], pytest.approx([0.5, 1])]
    assert len(axes.lines) == 3 and axes.get_xscale() == axes.get_yscale() == "log"
    assert [line.get_label() for line in panels["float16, B = 8"].lines if len(line.get_xdata())] == ["a"]


def test_figures_are_separate_by_all_fields_that_panels_lack(draw_rows):
    others = [{}, {"layers": 2}, {"T": 64}, {"I": 80}, {"l2": "cold"}, {"gpu_name": "another GPU"}]
    rows = [row(name, 1.0, **other) for other in others for name in ("torch.nn.GRU", "triton_gru", "triton_gru+graph")]
    figures = draw_rows(plot.draw_step_over_hidden, rows)
    assert len(figures) == 12 and "T = 512, input = 80, layers = 1, l2 = warm, mode = graph GPU" in figures
    assert "T = 512, layers = 2, l2 = warm, mode = eager GPU" in figures
    assert sum("another GPU" in title for title in figures) == 2
    assert len(draw_rows(plot.draw_speedup, rows)) == 6


def test_losses_are_hatched_and_noise_is_in_brackets(draw_rows):
    ratios_around_1 = [0.94, 1.06, 0.96, 1.04, 0.95, 1.05, 0.97, 1.03, 0.98, 1.02, 1.0]
    rows = [row("torch.nn.GRU", 3.0, H=64), row("triton_gru", 2.0, H=64), row("torch.nn.GRU+graph", 1.0, H=64)]
    rows += [row("torch.nn.GRU", 3.0, B=16), row("triton_gru", 1.0, B=16)]
    rows += [sampled("torch.nn.GRU", [0.99 * ratio for ratio in ratios_around_1]), sampled("triton_gru", [1.0] * 11)]
    panels = find_axes(draw_rows(plot.draw_speedup, rows))
    assert read_heat_map(panels["float16, mode = eager"]) == {
        ("64", "4"): ("0.50", True), ("512", "4"): ("(0.99)", True), ("512", "16"): ("3.00", False),
    }  # fmt: skip


def test_step_breakdown(draw_rows):
    rows = [row("triton_gru.grid", 5.12, kernel="grid"), row("triton_gru.block", 2.56, kernel="block", H=64)]
    rows += [row("triton_gru.grid-without-hand-over", 2.56, kernel="grid")]
    rows += [row("triton_gru.grid-without-output", 5.632, kernel="grid")]
    rows += [row("triton_gru.block-without-output", 1.28, kernel="block", H=64)]
    (axes,) = find_axes(draw_rows(plot.draw_step_breakdown, rows)).values()
    grid, block = "float16, H = 512, B = 4, grid: 10.00 µs", "float16, H = 64, B = 4, block: 5.00 µs"
    assert read_heat_map(axes) == {
        (grid, "hand\nover"): ("5.00 (50%)", False), (grid, "output"): ("-1.00 (-10%)", True),
        (block, "output"): ("2.50 (50%)", False),
    }  # fmt: skip


def test_streaming(draw_rows):
    frame = {"T": 1, "variant": "streaming"}
    slow, fast = [0.04] * 90 + [0.08] * 10, [0.01] * 99 + [0.02]
    rows = [sampled("torch.nn.GRU", slow, **frame), sampled("triton_gru.stream", fast, **frame)]
    rows += [row("triton_gru", 0.05, **frame), sampled("triton_gru", [0.05], T=1)]
    (axes,) = find_axes(draw_rows(plot.draw_streaming, rows)).values()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["torch.nn.GRU", "triton_gru.stream"]
    for patch, samples in zip(axes.patches, (slow, fast)):
        tops, edges, baseline = patch.get_data()
        heights = (tops - baseline) / 0.7
        bins = [np.searchsorted(edges, 1000 * ms) - 1 for ms in (min(samples), max(samples))]
        assert heights[bins] == pytest.approx([1.0, samples.count(max(samples)) / samples.count(min(samples))])
        assert np.count_nonzero(heights > 1e-9) == 2
    p50, p99 = ([segment[0][0] for segment in lines.get_segments()] for lines in axes.collections)
    assert (p50, p99) == (pytest.approx([40, 10]), pytest.approx([120, 30]))  # `row` plants a p99 of thrice the median


def test_before_and_after(draw_rows):
    before = [row("triton_gru", 2.0, H=h) for h in (64, 128, 256)] + [row("torch.nn.GRU", 4.0), row("a", 1.0)]
    after = [row("triton_gru", 3.0, H=64), row("triton_gru", 2.0, H=128), row("triton_gru", "failed", H=256)]
    figures = draw_rows(plot.draw_before_after, [*after, row("torch.nn.GRU", 2.0)], before)
    (axes,) = find_axes(figures).values()
    assert find_line(axes, "triton_gru") == [[2, 2], [1.5, 1]] and find_line(axes, "torch.nn.GRU") == [[4], [0.5]]
    assert [text.get_text().split()[:4] for text in axes.texts] == [["1.50", "triton_gru", "H=64", "B=4"]]
    assert axes.texts[0].xy == (2, 1.5)
    (band,) = axes.patches
    assert [band.get_y(), band.get_y() + band.get_height()] == pytest.approx([1 / 1.03, 1.03])


def test_worst_slower_points_are_labelled_without_overlap(draw_rows):
    before = [row("triton_gru", 1.0, H=h) for h in range(1, 21)]
    (axes,) = find_axes(
        draw_rows(plot.draw_before_after, [row("triton_gru", 1 + h / 10, H=h) for h in range(1, 21)], before)
    ).values()
    assert [text.get_text().split()[2] for text in axes.texts] == [f"H={h}" for h in range(20, 8, -1)]
    heights = [text.xyann[1] for text in axes.texts]
    assert heights == sorted(heights, reverse=True) and len(set(heights)) == 12 and heights[-1] > 0


def make_count_row(provider, read=0, of_w_hh=0, busiest=0, **more):
    """Return a row of a CSV of `perf count`."""
    numbers = {"read": read, "read_w_hh": of_w_hh, "busiest": busiest}
    columns = {
        "git_sha": "0123456789",
        "git_dirty": "True",
        "device": "NVIDIA H100",
        "triton": "3.6.0",
        "H": 64,
        "B": 1,
    }
    columns |= {"provider": provider, "dtype": "float16", "status": "ok"}
    return dict.fromkeys(COUNT_COLUMNS, "") | columns | numbers | more


def write_counts(path, rows):
    """Write rows of `make_count_row` to a CSV, and return its path."""
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture
def draw_counts(tmp_path):
    """Return a function that draws counts from planted rows, and returns the figures by title."""

    def draw_counts(rows):
        path = write_counts(tmp_path / "counts.csv", rows)
        count_rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        figures = {}
        plot.draw_counts(pd.concat([report.load([]), count_rows]), figures)
        return figures

    return draw_counts


def test_counts(draw_counts):
    rows = [
        make_count_row("triton_gru", 9, 9, 9),  # replaced by the next row
        make_count_row("triton_gru", 1000, 0, 50),
        make_count_row("torchrl", 4000, 3000, 200),
        make_count_row("triton_gru", 2000, 0, 60, H=256),
        make_count_row("torchrl", "", "", "", H=256, status="failed"),
    ]
    panels = find_axes(draw_counts(rows))
    assert list(panels) == ["bytes read, B = 1", "instructions, busiest warp, B = 1"]
    ours, theirs = (plot.choose_style(name)[0].lower() for name in ("triton_gru", "torchrl"))
    for axes, heights, times in zip(panels.values(), ([0, 3000, 1000, 2000, 4000], [50, 60, 200] * 2), ("4x", "4x")):
        bars = [(bar.get_height(), to_hex(bar.get_facecolor()), bar.get_x() > 0.5) for bar in axes.patches]
        assert sorted(height for height, _, _ in bars if height) == sorted(height for height in heights if height)
        assert {colour for height, colour, _ in bars if height in (1000, 2000, 50, 60)} == {ours}
        assert {colour for height, colour, _ in bars if height in (3000, 4000, 200)} == {theirs}
        assert {height for height, _, second in bars if second} <= {0, 2000, 60}
        assert [text.get_text() for text in axes.texts if text.get_text()] == [times]
        assert list(axes.get_xticks()) == [0, 1]
        low, high = axes.get_ylim()
        assert axes.get_yscale() == "log" and low < min(height for height in heights if height) and high > max(heights)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["64", "256"]  # below the lower panel


def test_counts_are_separate_by_device_and_precision(draw_counts):
    others = [
        {},
        {"dtype": "float32", "precision": "tf32"},
        {"dtype": "float32", "precision": "ieee"},
        {"device": "B200"},
    ]
    figures = draw_counts([make_count_row("triton_gru", 10, 0, 10, **other) for other in others])
    assert set(figures) == {
        f"precision = {name}, emulated"
        for name in ("float16 NVIDIA H100", "fp32 tf32 NVIDIA H100", "fp32 ieee NVIDIA H100", "float16 B200")
    }


def test_provider_has_one_style_of_its_own_in_figures_of_lines(draw_rows):
    names = list(plot._STYLES)
    rows = [row(name, 1.0, H=h) for name in [*names, "unknown"] for h in (64, 128)]
    draws = plot.draw_step_over_hidden, plot.draw_before_after
    first_axes = [next(iter(find_axes(draw_rows(draw, rows, rows)).values())) for draw in draws]
    for name in [*names, "unknown"]:
        lines = [line for axes in first_axes for line in axes.lines if line.get_label() == name]
        assert [(line.get_color(), line.get_marker()) for line in lines] == [plot.choose_style(name)[:2]] * 2
    colours_and_markers, hatches = zip(*((plot.choose_style(name)[:2], plot.choose_style(name)[2]) for name in names))
    assert len({*colours_and_markers}) == len({*hatches}) == len(names)


def test_caption_names_gpu_commits_and_versions(draw_rows):
    about = {"gpu_name": "NVIDIA H200", "torch": "2.11.0", "triton": "3.6.0"}
    rows = [
        row("triton_gru", 1.0, git_sha="a" * 40, git_dirty="True", **about),
        row("a", 1.0, git_sha="b" * 40, **about),
    ]
    (figure,) = draw_rows(plot.draw_step_over_hidden, rows).values()
    built = ["commit aaaaaaa (dirty), torch 2.11.0, triton 3.6.0", "commit bbbbbbb, torch 2.11.0, triton 3.6.0"]
    assert "\n".join(["NVIDIA H200", *built]) in [text.get_text() for text in figure.texts]
    after = row("a", 1.0, git_sha="c" * 40, **about | {"torch": "2.13.0"})
    (figure,) = draw_rows(plot.draw_before_after, [after], rows).values()
    built = [built[1], "after: commit ccccccc, torch 2.13.0, triton 3.6.0"]
    assert "\n".join(["NVIDIA H200", *built]) in [text.get_text() for text in figure.texts]


def test_all_figures_are_written_and_reproducible(monkeypatch, tmp_path, capsys):
    """Only the figure of counts is drawn twice."""
    monkeypatch.setitem(plot._LOOK, "figure.dpi", 40)
    frame = {"T": 1, "variant": "streaming"}
    rows = [row("torch.nn.GRU", 4.0), row("triton_gru", 8.0), sampled("triton_gru.stream", [0.01, 0.02], **frame)]
    rows += [
        row("triton_gru.grid", 5.12, kernel="grid"),
        row("perf.experiments.stages:grid-without-sums", 4.0, kernel="grid"),
    ]
    rows = write_csv(tmp_path / "rows.csv", rows)
    before = write_csv(tmp_path / "before.csv", [row("triton_gru", 2.0)])
    count_rows = [make_count_row("triton_gru", 10, 0, 5), make_count_row("torchrl", 90, 80, 7)]
    counts = write_counts(tmp_path / "counts.csv", count_rows)
    assert main(["plot", str(rows), str(counts), "--before", str(before), "--out", str(tmp_path / "1")]) == 0
    files = sorted((tmp_path / "1").iterdir())
    assert sorted(capsys.readouterr().out.splitlines()) == [str(path) for path in files]
    assert {path.stem for path in files} == {
        "step-over-hidden-T-512-layers-1-l2-warm-mode-eager-GPU", "speedup-T-512-layers-1-l2-warm-GPU",
        "step-breakdown-GPU", "streaming-T-1-form-streaming-layers-1-l2-warm-B-4-GPU", "before-after-GPU",
        "counts-precision-float16-NVIDIA-H100-emulated",
    }  # fmt: skip
    assert {path.suffix for path in files} == {".png", ".svg"} and len(files) == 12
    assert main(["plot", str(counts), "--out", str(tmp_path / "2")]) == 0
    again = list((tmp_path / "2").iterdir())
    assert len(again) == 2 and all(path.read_bytes() == (tmp_path / "1" / path.name).read_bytes() for path in again)
    for path in files:
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")


def test_figures_without_rows_are_reported(tmp_path, capsys):
    assert main(["plot", str(write_csv(tmp_path / "rows.csv", [row("a", 1.0)])), "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    missing = [line.split(":")[0] for line in lines if "not drawn" in line]
    assert missing == ["speedup", "step-breakdown", "streaming", "before-after", "counts"]
    assert all(line.endswith(".") for line in lines if "not drawn" in line) and len(lines) == 7


def test_csv_with_other_columns_is_refused(tmp_path, capsys):
    other = tmp_path / "other.csv"
    with other.open("w", newline="") as file:
        csv.writer(file).writerows([["a", "b"], [1, 2]])
    counts = write_counts(tmp_path / "counts.csv", [make_count_row("triton_gru", 1, 0, 1)])
    for files in ([other], [other, counts]):
        assert main(["plot", *map(str, files), "--out", str(tmp_path / "out")]) == 2
        assert "no CSV of a sweep" in (error := capsys.readouterr().err) and "other.csv" in error
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_the_error_tells_how_to_install_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith("matplotlib.")] + ["perf.plot"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("perf.plot")
    assert main(["plot", str(tmp_path / "rows.csv")]) == 2
    assert re.search(r"plot needs matplotlib.*: pip install -e \.\[perf\]", capsys.readouterr().err)


def test_pictures_of_documents_match_the_committed_csv(tmp_path):
    """Redraw the pictures by ``python -m perf plot perf/results/counts-H200.csv --out perf/figures``."""
    perf = pathlib.Path(plot.__file__).parent
    assert main(["plot", str(perf / "results/counts-H200.csv"), "--out", str(tmp_path)]) == 0
    pictures = list((perf / "figures").iterdir())
    documents = "".join((folder / "README.md").read_text() for folder in (perf, perf.parent))
    named = re.findall(r"\]\(((?:perf/)?figures/.*?)\)", documents)
    assert named and {pathlib.Path(name).name for name in named} <= {path.name for path in pictures}
    for path in pictures:
        drawn, committed = (imread(folder / path.name) for folder in (tmp_path, path.parent))
        assert drawn.shape == committed.shape and abs(drawn - committed).max() < 0.1, path.name
