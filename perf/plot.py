"""Draw figures from the CSVs of sweeps and of `count`: legible in grey, and the same bytes from the same rows."""

import pathlib
import re

import numpy as np
import pandas as pd
from matplotlib import colormaps, patches, rc_context, ticker
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


def main(paths: list[pathlib.Path], out: pathlib.Path, before: list[pathlib.Path]) -> None:
    """Draw every figure that the CSVs have rows for. Print the paths written, and which figures have no rows."""
    counted = {path: load_counts(path) for path in paths if "busiest" in pd.read_csv(path, nrows=0)}
    rows = load([path for path in paths if path not in counted])
    drawn = dict.fromkeys((step_over_hidden, speedup, step_breakdown, streaming), rows)
    drawn |= {before_after: compare_rows(load(before), rows), counts: pd.concat([rows[:0], *counted.values()])}
    out.mkdir(parents=True, exist_ok=True)
    with rc_context(_LOOK):
        for draw, rows in drawn.items():
            figures = {}
            if len(rows):
                draw(rows, figures)
            for words, figure in figures.items():
                stem = re.sub("[^A-Za-z0-9.]+", "-", f"{draw.__name__} {words}").strip("-")
                for suffix in ("png", "svg"):
                    figure.savefig(path := out / f"{stem}.{suffix}", metadata={"Date": None}, bbox_inches="tight")
                    print(path)
            if not figures:
                print(f"{draw.__name__.replace('_', '-')}: not drawn, because no row fits. {draw.__doc__}")


def step_over_hidden(rows: pd.DataFrame, figures: dict[str, Figure]) -> None:
    """Draw the time of a step over H by provider, and its lower bound, for plain sequences with T > 1."""
    rows = rows[(rows["n"] > 0) & (rows["T"] > 1) & (rows["form"] == "") & (rows["mode"] != "host")]
    rows = keep_latest(rows[~rows["base"].str.contains(STAGE_MARK)]).sort_values("H", kind="stable")
    rows = rows.assign(us=1000 * rows["p50_ms"] / rows["T"], bound=1000 * rows["floor_ms"] / rows["T"])
    texts = ("Microseconds a step", "hidden size H", "µs a step")
    for axes, panel in _panels(figures, rows, [*_SETTING, "mode"], ("precision", "B"), (1.9, 1.8), texts):
        for base, line in panel.groupby("base", sort=False):
            (colour, marker, _), face = style(base), "none" if base.startswith(f"{OURS}.") else None
            axes.plot("H", "us", data=line, c=colour, marker=marker, mfc=face, label=base, zorder=2 + (base == OURS))
        bound = panel.dropna(subset="bound").groupby("H")["bound"].min()
        axes.plot(bound.index, bound, "k:", label="lower bound" if len(bound) else None)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")


def speedup(rows: pd.DataFrame, figures: dict[str, Figure]) -> None:
    """Draw how many times faster ours is than the faster of nn.GRU eager and in a graph, in the same run."""
    rows = compare_with_nn_gru(rows)
    ratio, even = rows["times faster"], (rows["low"] <= 1) & (rows["high"] >= 1)
    words = [f"({value:.2f})" if is_even else f"{value:.2f}" for value, is_even in zip(ratio, even)]
    rows = rows.assign(shade=(np.log2(ratio) + 1) / 4, word=words, marked=ratio < 1, down=rows["H"], across=rows["B"])
    title = f"{OURS}: times faster than the faster of nn.GRU's modes\nHatched: slower. (n): 1 is in n's 95 % interval"
    _heat(_panels(figures, rows, _SETTING, ("precision", "mode"), (2.8, 1.9), (title, "batch B", "hidden size H")))


def step_breakdown(rows: pd.DataFrame, figures: dict[str, Figure]) -> None:
    """Draw the microseconds that a step saves without each stage of a kernel, from sweep step-breakdown."""
    rows = compare_stages(rows[rows["n"] > 0])
    share, across = rows["saved"] / rows["step"], rows["stage"].str.replace("-", "\n")
    words = [f"{saved:.2f} ({part:.0%})" for saved, part in zip(rows["saved"], share)]
    down = [f"{row.precision}, H = {row.H}, B = {row.B}, {row.kernel}: {row.step:.2f} µs" for row in rows.itertuples()]
    rows = rows.assign(shade=2 * share, word=words, marked=share < 0, down=down, across=across)
    title = "Microseconds that a step has less without a stage. Stages overlap: sums mean nothing. Hatched: it has more"
    _heat(_panels(figures, rows, [], ("mode", "l2"), (8, 0.6 + 0.2 * len(set(down))), (title, "without", "")))


def streaming(rows: pd.DataFrame, figures: dict[str, Figure]) -> None:
    """Draw the histogram of the times of each provider's frames, with p50 and p99, for streams with samples."""
    rows = keep_latest(rows[(rows["variant"] == STREAMING) & (rows["n"] > 0) & (rows["samples_ms"] != "")])
    rows = rows.assign(place=rows["provider"].rank(method="dense", ascending=False))
    texts = ("Times of frames. Solid line: p50. Dotted: p99", "µs a frame", "")
    for axes, panel in _panels(figures, rows, [*_SETTING, "B"], ("precision", "H"), (1.9, 2.2), texts):
        samples = [1000 * np.array(text.split(), float) for text in panel["samples_ms"]]
        edges = np.geomspace(min(map(min, samples)) / 1.02, max(map(max, samples)) * 1.02, 121)
        for base, place, times in zip(panel["base"], panel["place"], samples):
            tops = place + 0.7 * (n := np.histogram(times, edges)[0]) / n.max()
            axes.stairs(tops, edges, baseline=place, fill=True, color=style(base)[0])
        for quantile, dashes in (("p50_ms", "-"), ("p99_ms", ":")):
            axes.vlines(1000 * panel[quantile], panel["place"], panel["place"] + 0.85, "black", dashes, lw=1)
        axes.set(xscale="log", yticks=panel["place"] + 0.4, yticklabels=panel["provider"])


def before_after(rows: pd.DataFrame, figures: dict[str, Figure]) -> None:
    """Draw the ratio of the time after to the time before for each case that the CSVs of --before have, too."""
    texts = ("Time after over time before. Grey: noise. Named: slower", "ms before", "time after / time before")
    for axes, panel in _panels(figures, rows[rows["ratio"].notna()], [], ("precision", "l2"), (6, 2.5), texts):
        for base, dots in panel.groupby("base"):
            colour, marker, _ = style(base)
            axes.plot("before", "ratio", marker, data=dots, color=colour, mec="white", mew=0.4, label=base)
        axes.axhspan(1 / (1 + NOISE), 1 + NOISE, color="0.85", zorder=0)
        slower = panel[panel["verdict"] == "slower"].sort_values("ratio", ascending=False)
        for place, row in enumerate(slower.head(12).itertuples()):
            word = f"{row.ratio:.2f} {row.provider} H={row.H} B={row.B} T={row.T} {row.form}"
            at, lead = (1.03, 1 - place / 12), {"arrowstyle": "-", "color": "0.6", "lw": 0.6, "relpos": (0, 0.5)}
            axes.annotate(word, (row.before, row.ratio), at, "data", "axes fraction", arrowprops=lead, va="top")
        axes.set(xscale="log", yscale="log")


def counts(rows: pd.DataFrame, figures: dict[str, Figure]) -> None:
    """Draw the bytes that a step reads and the instructions of its busiest warp, from CSVs of `count`."""
    numbers, case = ["H", "B", "read", "read_w_hh", "busiest"], ["gpu_name", "precision", "H", "B", "kind"]
    rows = rows[rows["status"] == "ok"]
    precision = (rows["dtype"].replace("float32", "fp32") + " " + rows["precision"]).str.strip()
    rows = rows.assign(precision=precision, gpu_name=rows["device"] + ", emulated")
    rows[numbers] = rows[numbers].apply(pd.to_numeric)
    kinds = {"bytes read": ("read", "read_w_hh"), "instructions, busiest warp": ("busiest", "busiest")}
    rows = pd.concat([rows.assign(kind=kind, all=rows[a], part=rows[b]) for kind, (a, b) in kinds.items()])
    rows = rows.drop_duplicates([*case, "provider"], keep="last").sort_values("H", kind="stable")
    rows = rows.merge(rows.loc[rows["provider"] == OURS, [*case, "all"]], "left", case, suffixes=("", "_ours"))
    title = "Work of a step, counted: not time. Bytes of W_hh are solid, others light. Numbers: times ours"
    for axes, panel in _panels(figures, rows, ["precision"], ("kind", "B"), (3.5, 1.5), (title, "hidden size H", "")):
        sizes, every = sorted(panel["H"].unique()), list(panel.groupby("provider", sort=False))
        for place, (name, bars) in enumerate(every):
            (colour, _, hatch), wide = style(name), 0.84 / len(every)
            x = np.searchsorted(sizes, bars["H"]) + (place + 0.5) * wide - 0.42
            axes.bar(x, bars["all"], wide, color=(colour, 0.3), edgecolor=colour, lw=0.4)
            axes.bar(x, bars["part"], wide, color=colour, hatch=hatch, edgecolor="white", lw=0, label=name)
            for at, top, times in zip(x, bars["all"], bars["all"] / bars["all_ours"]):
                word = f"{float(f'{times:.2g}'):g}x" if name != OURS and times > 0 else ""
                axes.text(at, top * 1.2, word, ha="center", va="bottom", rotation=90)
        axes.set(yscale="log", ymargin=0.5, xticks=range(len(sizes)), xticklabels=sizes)
        axes.yaxis.set_major_formatter(ticker.EngFormatter(sep=""))


def style(base: str) -> tuple[str, str, str]:
    """Return the colour, the marker and the hatch of a provider, the same in every figure."""
    n, colours = sum(base.encode()), ("#56B4E9", "#D55E00", "#CC79A7", "#009E73", "#E69F00")
    return _STYLES.get(base, (colours[n % 5], "<>hH*pv^8"[n % 9], "/" * (1 + n % 4)))


def _panels(figures: dict[str, Figure], rows: pd.DataFrame, by: list[str], across: tuple[str, str], size, texts):
    """Add a figure to ``figures`` for each GPU and combination of ``by``. Yield each panel's axes and rows."""
    for (gpu, *which), group in rows.groupby(["gpu_name", *by]):
        ys, xs = (sorted(group[column].unique()) for column in across)
        figure = Figure((0.7 + size[0] * len(xs), 0.5 + size[1] * len(ys)), layout="constrained")
        shared = {"sharex": "col", "sharey": "row"} if "shade" not in rows else {}
        for (y, x), axes in np.ndenumerate(figure.subplots(len(ys), len(xs), squeeze=False, **shared)):
            axes.set_title(f"{ys[y]}, {across[1]} = {xs[x]}")
            panel = group[(group[across[0]] == ys[y]) & (group[across[1]] == xs[x])]
            if len(panel):
                yield axes, panel
        figure.supxlabel(texts[1])
        figure.supylabel(texts[2])
        words = ", ".join(f"{name} = {value}" for name, value in zip(by, which) if value)
        named = {label: each for axes in figure.axes for each, label in zip(*axes.get_legend_handles_labels())}
        looks = {"ncols": int(figure.get_figwidth() / 1.6), "title_fontproperties": {"weight": "bold"}}
        looks |= {"bbox_to_anchor": (0, 1), "loc": "lower left", "alignment": "left", "frameon": False}
        figure.legend(named.values(), named, title=f"{texts[0]}\n{words}".strip(), **looks)
        after = [f"after: {built}" for built in _built(group, "_after")] if "git_sha_after" in group else []
        figure.text(0.01, 0, "\n".join([gpu, *_built(group), *after]), va="top")
        figures[f"{words} {gpu}"] = figure


def _built(rows: pd.DataFrame, end: str = "") -> np.ndarray:
    commit = rows[f"git_sha{end}"].str[:7] + rows[f"git_dirty{end}"].map({"True": " (dirty)"}).fillna("")
    torch = (", torch " + rows[f"torch{end}"]).fillna("")  # empty for counts, which have no torch
    return ("commit " + commit + torch + ", triton " + rows[f"triton{end}"]).unique()


def _heat(panels) -> None:
    """Draw cells over the columns ``down`` and ``across``. Numbers are sorted, and words keep the order of the rows."""
    for axes, panel in panels:
        names = (panel[name].unique() for name in ("down", "across"))
        downs, acrosses = (list(values) if isinstance(values[0], str) else sorted(values) for values in names)
        for row in panel.itertuples():
            x, y, shade = acrosses.index(row.across), downs.index(row.down), colormaps["cividis"](row.shade)
            axes.add_patch(patches.Rectangle((x, y), 1, 1, fc=shade, ec="white", hatch="////" * row.marked))
            looks = {"bbox": {"fc": "white", "pad": 1, "lw": 0}} if row.marked else {"c": "kw"[row.shade < 0.55]}
            axes.text(x + 0.5, y + 0.5, row.word, ha="center", va="center", **looks)
        axes.set(xlim=(0, len(acrosses)), xticks=np.arange(len(acrosses)) + 0.5, xticklabels=acrosses)
        axes.set(ylim=(len(downs), 0), yticks=np.arange(len(downs)) + 0.5, yticklabels=downs)
