"""Draw figures from the CSVs of sweeps and of `count`: legible in grey, and the same bytes from the same rows."""

import pathlib
import re
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
from matplotlib import colormaps, patches, rc_context, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .compare import NOISE, compare_rows
from .count import load as load_counts
from .providers import BASELINE, OURS
from .record import STREAMING
from .report import STAGE_MARK, compare_stages, compare_with_nn_gru, keep_latest, load

_LOOK = {"axes.titlesize": 8, "figure.dpi": 200, "svg.hashsalt": OURS, "axes.formatter.min_exponent": 15}
_LOOK |= {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "lines.markersize": 4.5}
_STYLES = {  # provider: colour (Okabe and Ito's, or grey), marker, hatch
    OURS: ("#0072B2", "o", ""), f"{OURS}.block": ("#56B4E9", "s", "oo"), f"{OURS}.grid": ("#56B4E9", "d", "**"),
    BASELINE: ("#000000", "s", "---"), "cudnn.standard": ("#777777", "v", "|||"), "torchrl": ("#D55E00", "X", "////"),
    "cudnn.persist_static": ("#E69F00", "^", "++"), "cudnn.persist_dynamic": ("#CC79A7", "D", "..."),
    "cudnn.small_h": ("#009E73", "P", "xx"), "gru_qat.scan": ("#E69F00", ">", "...."),
    "gru_qat.persistent": ("#009E73", "<", "xxxx"),
}  # fmt: skip
_SETTING = ["T", "input", "form", "layers", "l2"]  # each combination has its own figures
_MAX_LABELS = 12  # labels of cases that became slower, in a panel
_STREAMING_BINS = 120
_BAR_HEIGHT = 0.7  # of the highest bin of a histogram, if the histograms are 1 apart


def main(paths: list[pathlib.Path], out: pathlib.Path, before: list[pathlib.Path]) -> None:
    """Draw every figure that the CSVs have rows for. Print the paths written, and which figures have no rows."""
    count_frames = {path: load_counts(path) for path in paths if "busiest" in pd.read_csv(path, nrows=0)}
    timings = load([path for path in paths if path not in count_frames])
    rows_of = dict.fromkeys(FIGURES, timings)
    rows_of["before-after"] = compare_rows(load(before), timings)
    rows_of["counts"] = pd.concat([timings[:0], *count_frames.values()])
    out.mkdir(parents=True, exist_ok=True)
    with rc_context(_LOOK):
        for name, draw in FIGURES.items():
            figures = {}
            if len(rows_of[name]):
                draw(rows_of[name], figures)
            for title, figure in figures.items():
                stem = re.sub("[^A-Za-z0-9.]+", "-", f"{name} {title}").strip("-")
                for suffix in ("png", "svg"):
                    path = out / f"{stem}.{suffix}"
                    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
                    print(path)
            if not figures:
                print(f"{name}: not drawn, because no row fits. {draw.__doc__}")


# Each function ``draw_*`` draws the figures of one kind from rows. The function adds them to ``figures``, by a title
# that names the setting and the GPU. If no row fits, it adds no figure. Then `main` prints the function's docstring,
# which is one line.


def draw_step_over_hidden(rows: pd.DataFrame, figures: dict[str, Figure]) -> None:
    """Draw the time of a step over H by provider, and its lower bound, for plain sequences with T > 1."""
    rows = rows[(rows["n"] > 0) & (rows["T"] > 1) & (rows["form"] == "") & (rows["mode"] != "host")]
    rows = keep_latest(rows[~rows["base"].str.contains(STAGE_MARK)]).sort_values("H", kind="stable")
    rows = rows.assign(us=1000 * rows["p50_ms"] / rows["T"], bound=1000 * rows["floor_ms"] / rows["T"])
    labels = ("Microseconds a step", "hidden size H", "µs a step")
    for axes, panel in _make_panels(figures, rows, [*_SETTING, "mode"], ("precision", "B"), (1.9, 1.8), labels):
        for provider, line in panel.groupby("base", sort=False):
            (colour, marker, _), face = choose_style(provider), "none" if provider.startswith(f"{OURS}.") else None
            z = 2 + (provider == OURS)  # ours in front
            axes.plot("H", "us", data=line, c=colour, marker=marker, mfc=face, label=provider, zorder=z)
        bound = panel.dropna(subset="bound").groupby("H")["bound"].min()
        axes.plot(bound.index, bound, "k:", label="lower bound" if len(bound) else None)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")


def draw_speedup(rows: pd.DataFrame, figures: dict[str, Figure]) -> None:
    """Draw how many times faster ours is than nn.GRU's faster mode (bf16: or cudnn.standard's), in the same run."""
    rows = compare_with_nn_gru(rows)
    ratio, is_undecided = rows["times faster"], (rows["low"] <= 1) & (rows["high"] >= 1)
    texts = [f"({value:.2f})" if in_brackets else f"{value:.2f}" for value, in_brackets in zip(ratio, is_undecided)]
    shade = (np.log2(ratio) + 1) / 4  # from half as fast to eight times as fast
    rows = rows.assign(shade=shade, text=texts, is_hatched=ratio < 1, down=rows["H"], across=rows["B"])
    title = f"{OURS}: times faster than the faster of nn.GRU's modes\nHatched: slower. (n): 1 is in n's 95 % interval"
    labels = (title, "batch B", "hidden size H")
    _draw_heat_maps(_make_panels(figures, rows, _SETTING, ("precision", "mode"), (2.8, 1.9), labels))


def draw_step_breakdown(rows: pd.DataFrame, figures: dict[str, Figure]) -> None:
    """Draw the microseconds that a step saves without each stage of a kernel, from sweep step-breakdown."""
    rows = compare_stages(rows[rows["n"] > 0])
    share, across = rows["saved"] / rows["step"], rows["stage"].str.replace("-", "\n")
    texts = [f"{saved:.2f} ({part:.0%})" for saved, part in zip(rows["saved"], share)]
    down = [f"{row.precision}, H = {row.H}, B = {row.B}, {row.kernel}: {row.step:.2f} µs" for row in rows.itertuples()]
    rows = rows.assign(shade=2 * share, text=texts, is_hatched=share < 0, down=down, across=across)
    title = "Microseconds that a step has less without a stage. Stages overlap: sums mean nothing. Hatched: it has more"
    size, labels = (8, 0.6 + 0.2 * len(set(down))), (title, "without", "")
    _draw_heat_maps(_make_panels(figures, rows, [], ("mode", "l2"), size, labels))


def draw_streaming(rows: pd.DataFrame, figures: dict[str, Figure]) -> None:
    """Draw the histogram of the times of each provider's frames, with p50 and p99, if rows have all frames' times."""
    rows = keep_latest(rows[(rows["variant"] == STREAMING) & (rows["n"] > 0) & (rows["samples_ms"] != "")])
    # ``bottom`` is the height at which a provider's histograms begin. Providers are in the order of names from the top.
    rows = rows.assign(bottom=rows["provider"].rank(method="dense", ascending=False))
    labels = ("Times of frames. Solid line: p50. Dotted: p99", "µs a frame", "")
    for axes, panel in _make_panels(figures, rows, [*_SETTING, "B"], ("precision", "H"), (1.9, 2.2), labels):
        samples = [1000 * np.array(text.split(), float) for text in panel["samples_ms"]]
        edges = np.geomspace(min(map(min, samples)) / 1.02, max(map(max, samples)) * 1.02, _STREAMING_BINS + 1)
        for provider, bottom, times in zip(panel["base"], panel["bottom"], samples):
            frame_counts = np.histogram(times, edges)[0]
            heights = bottom + _BAR_HEIGHT * frame_counts / frame_counts.max()
            axes.stairs(heights, edges, baseline=bottom, fill=True, color=choose_style(provider)[0])
        for quantile, dashes in (("p50_ms", "-"), ("p99_ms", ":")):
            axes.vlines(1000 * panel[quantile], panel["bottom"], panel["bottom"] + 0.85, "black", dashes, lw=1)
        axes.set(xscale="log", yticks=panel["bottom"] + 0.4, yticklabels=panel["provider"])


def draw_before_after(rows: pd.DataFrame, figures: dict[str, Figure]) -> None:
    """Draw the ratio of the time after to the time before for each case that the CSVs of --before have, too."""
    rows, sizes = rows[rows["ratio"].notna()], (6, 2.5)
    labels = ("Time after over time before. Grey: noise. Named: slower", "ms before", "time after / time before")
    for axes, panel in _make_panels(figures, rows, [], ("precision", "l2"), sizes, labels):
        for provider, points in panel.groupby("base"):
            colour, marker, _ = choose_style(provider)
            axes.plot("before", "ratio", marker, data=points, color=colour, mec="white", mew=0.4, label=provider)
        axes.axhspan(1 / (1 + NOISE), 1 + NOISE, color="0.85", zorder=0)
        slower = panel[panel["verdict"] == "slower"].sort_values("ratio", ascending=False)
        for rank, row in enumerate(slower.head(_MAX_LABELS).itertuples()):
            text = f"{row.ratio:.2f} {row.provider} H={row.H} B={row.B} T={row.T} {row.form}"
            # Labels are in a column to the right of the panel, the largest ratio on top, with a line to their points.
            position = (1.03, 1 - rank / _MAX_LABELS)
            line = {"arrowstyle": "-", "color": "0.6", "lw": 0.6, "relpos": (0, 0.5)}
            point = (row.before, row.ratio)
            axes.annotate(text, point, position, "data", "axes fraction", arrowprops=line, va="top")
        axes.set(xscale="log", yscale="log")


def draw_counts(rows: pd.DataFrame, figures: dict[str, Figure]) -> None:
    """Draw the bytes that a step reads and the instructions of its busiest warp, from CSVs of `count`."""
    numeric = ["H", "B", "read", "read_w_hh", "busiest"]
    bar_key = ["gpu_name", "precision", "H", "B", "kind"]  # with the provider, these identify a bar
    rows = rows[rows["status"] == "ok"]
    precision = (rows["dtype"].replace("float32", "fp32") + " " + rows["precision"]).str.strip()
    rows = rows.assign(precision=precision, gpu_name=rows["device"] + ", emulated")
    rows[numeric] = rows[numeric].apply(pd.to_numeric)
    # Each kind of bar shows a total in a light colour, and a part of it in a solid colour.
    kinds = {"bytes read": ("read", "read_w_hh"), "instructions, busiest warp": ("busiest", "busiest")}
    bars_of_kinds = [
        rows.assign(kind=kind, total=rows[total], part=rows[part]) for kind, (total, part) in kinds.items()
    ]
    rows = pd.concat(bars_of_kinds)
    rows = rows.drop_duplicates([*bar_key, "provider"], keep="last").sort_values("H", kind="stable")
    our_totals = rows.loc[rows["provider"] == OURS, [*bar_key, "total"]]
    rows = rows.merge(our_totals, how="left", on=bar_key, suffixes=("", "_ours"))
    title = "Work of a step, counted: not time. Bytes of W_hh are solid, others light. Numbers: times ours"
    size, labels = (3.5, 1.5), (title, "hidden size H", "")
    for axes, panel in _make_panels(figures, rows, ["precision"], ("kind", "B"), size, labels):
        hidden_sizes, providers = sorted(panel["H"].unique()), list(panel.groupby("provider", sort=False))
        # The bars of a hidden size are next to each other, and take 84 % of the distance to the next hidden size.
        width = 0.84 / len(providers)
        for index, (name, bars) in enumerate(providers):
            colour, _, hatch = choose_style(name)
            x = np.searchsorted(hidden_sizes, bars["H"]) + (index + 0.5) * width - 0.42
            axes.bar(x, bars["total"], width, color=(colour, 0.3), edgecolor=colour, lw=0.4)
            axes.bar(x, bars["part"], width, color=colour, hatch=hatch, edgecolor="white", lw=0, label=name)
            for bar_x, total, times_ours in zip(x, bars["total"], bars["total"] / bars["total_ours"]):
                text = f"{float(f'{times_ours:.2g}'):g}x" if name != OURS and times_ours > 0 else ""
                axes.text(bar_x, total * 1.2, text, ha="center", va="bottom", rotation=90)
        axes.set(yscale="log", ymargin=0.5, xticks=range(len(hidden_sizes)), xticklabels=hidden_sizes)
        axes.yaxis.set_major_formatter(ticker.EngFormatter(sep=""))


FIGURES = {
    "step-over-hidden": draw_step_over_hidden, "speedup": draw_speedup, "step-breakdown": draw_step_breakdown,
    "streaming": draw_streaming, "before-after": draw_before_after, "counts": draw_counts,
}  # fmt: skip


def choose_style(provider: str) -> tuple[str, str, str]:
    """Return the colour, the marker and the hatch of a provider, which are the same in every figure.

    A provider without an entry in `_STYLES` gets a style that depends only on its name.
    """
    colours, markers = ("#56B4E9", "#D55E00", "#CC79A7", "#009E73", "#E69F00"), "<>hH*pv^8"
    total = sum(provider.encode())
    return _STYLES.get(provider, (colours[total % 5], markers[total % 9], "/" * (1 + total % 4)))


def _make_panels(
    figures: dict[str, Figure], rows: pd.DataFrame, by: list[str], across: tuple[str, str],
    size: tuple[float, float], labels: tuple[str, str, str],
) -> Iterator[tuple[Axes, pd.DataFrame]]:  # fmt: skip
    """Yield the axes and the rows of each panel that has rows. Add each figure to ``figures`` once it is complete.

    Args:
        by: columns. Each combination of their values on each GPU has its own figure. Its title names the values
            that are not empty.
        across: the columns that differ between the panels of a figure: from top to bottom, and from left to right.
        size: the width and the height of a panel in inches.
        labels: the title of all figures, the label of the x axis, and the label of the y axis.
    """
    for (gpu, *values), group in rows.groupby(["gpu_name", *by]):
        ys, xs = (sorted(group[column].unique()) for column in across)
        figure = Figure((0.7 + size[0] * len(xs), 0.5 + size[1] * len(ys)), layout="constrained")
        shared = {"sharex": "col", "sharey": "row"} if "shade" not in rows else {}  # heat maps have their own labels
        for (y, x), axes in np.ndenumerate(figure.subplots(len(ys), len(xs), squeeze=False, **shared)):
            axes.set_title(f"{ys[y]}, {across[1]} = {xs[x]}")
            panel = group[(group[across[0]] == ys[y]) & (group[across[1]] == xs[x])]
            if len(panel):
                yield axes, panel
        title, x_label, y_label = labels
        figure.supxlabel(x_label)
        figure.supylabel(y_label)
        setting = ", ".join(f"{name} = {value}" for name, value in zip(by, values) if value)
        handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels())}
        looks = {"ncols": int(figure.get_figwidth() / 1.6), "title_fontproperties": {"weight": "bold"}}
        looks |= {"bbox_to_anchor": (0, 1), "loc": "lower left", "alignment": "left", "frameon": False}
        figure.legend(handles.values(), handles, title=f"{title}\n{setting}".strip(), **looks)
        versions = [*_describe_versions(group)]
        if "git_sha_after" in group:
            versions += [f"after: {text}" for text in _describe_versions(group, "_after")]
        figure.text(0.01, 0, "\n".join([gpu, *versions]), va="top")
        figures[f"{setting} {gpu}"] = figure


def _describe_versions(rows: pd.DataFrame, suffix: str = "") -> np.ndarray:
    """Return a text for each combination of commit, torch and Triton among the rows.

    ``suffix`` is the suffix of the columns: "_after" for the second CSVs of a comparison.
    """
    commit = rows[f"git_sha{suffix}"].str[:7] + rows[f"git_dirty{suffix}"].map({"True": " (dirty)"}).fillna("")
    torch = (", torch " + rows[f"torch{suffix}"]).fillna("")  # empty for counts, which have no torch
    return ("commit " + commit + torch + ", triton " + rows[f"triton{suffix}"]).unique()


def _draw_heat_maps(panels: Iterable[tuple[Axes, pd.DataFrame]]) -> None:
    """Draw a rectangle with a text for each row of the panels.

    The columns ``down`` and ``across`` give its position. If such a column has numbers, the numbers are sorted. Texts
    keep the order of the rows. ``shade`` gives the colour, on a scale from 0 to 1, and ``is_hatched`` the
    hatching.
    """
    for axes, panel in panels:
        values = (panel[name].unique() for name in ("down", "across"))
        downs, acrosses = (list(names) if isinstance(names[0], str) else sorted(names) for names in values)
        for row in panel.itertuples():
            x, y, colour = acrosses.index(row.across), downs.index(row.down), colormaps["cividis"](row.shade)
            hatch = "////" * row.is_hatched
            axes.add_patch(patches.Rectangle((x, y), width=1, height=1, fc=colour, ec="white", hatch=hatch))
            # White text is legible on the dark colours, black text on the light ones.
            text_colour = {"c": "white" if row.shade < 0.55 else "black"}
            looks = {"bbox": {"fc": "white", "pad": 1, "lw": 0}} if row.is_hatched else text_colour
            axes.text(x + 0.5, y + 0.5, row.text, ha="center", va="center", **looks)
        axes.set(xlim=(0, len(acrosses)), xticks=np.arange(len(acrosses)) + 0.5, xticklabels=acrosses)
        axes.set(ylim=(len(downs), 0), yticks=np.arange(len(downs)) + 0.5, yticklabels=downs)
