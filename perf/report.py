"""The report on CSVs of sweeps: ours against torch.nn.GRU, against each peer and the lower bound, and its losses.

All ratios are between rows of one run. "Times faster" is the other's time over ours: below 1 is a loss. Against
torch.nn.GRU it is taken round by round, see `compare_with_nn_gru`. All other ratios are of medians.
"""

import functools
import pathlib
import sys

import numpy as np
import pandas as pd

from .providers import BASELINE, OURS
from .providers.cudnn import STANDARD_PROVIDER
from .record import BEGUN, COLUMNS, KEY, STREAMING, Row
from .tables import format_value, geomean, join_tables, summarize_groups

CASE = [name for name in KEY if name not in ("provider", "mode")]
STAGE_MARK = "-without-"  # in the names of providers in perf/experiments/stages.py, before the stage
_STATUSES = ["ok", "noisy", "wrong", "failed", "unavailable"]
SHOWN = ["precision", "H", "I", "B", "T", "layers", "form", "l2"]


def report(paths: list[pathlib.Path], markdown: bool = False) -> str:
    """Return the report on these CSVs, for a terminal or in Markdown."""
    return join_tables(sections(load(paths)), markdown)


def load(paths: list[pathlib.Path]) -> pd.DataFrame:
    """Return the rows of all CSVs of sweeps. Name other files on stderr, and skip them.

    The added column ``base`` is the provider without its mode. ``form`` has the words bidirectional, packed, lengths,
    streaming and reset_before that apply. ``input`` is the input size if it differs from the hidden size.

    Raises:
        ValueError: no file is a CSV of a sweep.
    """
    frames = {path: pd.read_csv(path, dtype=str, keep_default_na=False) for path in paths}
    others = [path for path, frame in frames.items() if list(frame) != COLUMNS]
    if others:
        print(f"skipped, because these files are no CSVs of sweeps: {', '.join(map(str, others))}", file=sys.stderr)
    if 0 < len(paths) == len(others):
        raise ValueError("no CSV of a sweep was given")
    known = [frame for path, frame in frames.items() if path not in others]
    rows = pd.concat([pd.DataFrame(columns=COLUMNS, dtype=str), *known], ignore_index=True)
    rows = rows.astype(dict.fromkeys(("T", "B", "I", "H", "layers", "directions", "n"), int))
    times = ["p20_ms", "p50_ms", "p80_ms", "p99_ms", "rel_iqr", "floor_ms", "max_abs_err"]
    rows[times] = rows[times].apply(pd.to_numeric, errors="coerce")
    rows = rows[~rows["provider"].str.startswith(("floor.", "hop.")) & (rows["status"] != BEGUN)]
    # In fp32 the precision of products tells cases apart, in 16 bits the dtype.
    rows["precision"] = np.where(rows["dtype"] == "float32", "fp32 " + rows["precision"], rows["dtype"])
    rows["base"] = rows["provider"].str.removesuffix("+graph")
    rows["input"] = rows["I"].astype(str).mask(rows["I"] == rows["H"], "")
    rows["form"] = [_form(*shape) for shape in zip(rows["directions"], rows["layout"], rows["variant"])]
    rows["regime"] = [_regime(*shape) for shape in zip(rows["H"], rows["B"], rows["T"], rows["form"])]
    return rows


def keep_latest(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the last row of each measurement."""
    return rows.drop_duplicates([*CASE, "provider", "mode"], keep="last")


def _form(directions: int, layout: str, variant: str) -> str:
    words = {"bidirectional": directions == 2, layout: layout != Row.layout, variant: variant != Row.variant}
    return ", ".join(word for word, applies in words.items() if applies)


def _regime(hidden: int, batch: int, steps: int, form: str) -> str:
    size = "H <= 192" if hidden <= 192 else "H <= 1024" if hidden <= 1024 else "H > 1024"
    words = [size, "B <= 64" if batch <= 64 else "B > 64", "T = 1" if steps == 1 else "T > 1", form]
    return ", ".join(filter(None, words))


def sections(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return titled tables that have rows. Exception: the table of losses may be empty if `BASELINE` was timed."""
    last, timed, speedups = keep_latest(rows), rows[rows["n"] > 0], compare_with_nn_gru(rows)
    ours = last[(last["base"] == OURS) & (last["n"] > 0) & last["floor_ms"].notna()]
    own_kernel = {"by own kernel": speedups["kernel"] != "torch"}
    by_regime = ["precision", "regime", "mode"]
    tables = [
        ("Machines and versions", _machines(rows)),
        ("Outcomes of each provider's cases", _outcomes(last)),
        (
            f"Times faster than the faster of torch.nn.GRU eager and in a graph (bf16: or of {STANDARD_PROVIDER})",
            _ratios(speedups, by_regime, speedups["times faster"], **own_kernel),
        ),
        ("Time over the lower bound", _ratios(ours, by_regime, ours["p50_ms"] / ours["floor_ms"])),
        ("Times faster than each peer, in the same mode", _peers(timed)),
        ("Two directions: time over the time of one direction", _second_direction(timed)),
        ("Microseconds a frame, median and 99th percentile", _frames(last)),
        ("Stages: microseconds of a step, and microseconds saved without each stage", _stages(timed)),
        ("RNN, LSTM, GRU", cells(last)),
    ]
    tables = [(title, table) for title, table in tables if len(table)]
    if len(speedups):
        shown = [*SHOWN, "mode", "kernel", "times faster", "95 %", "rel_iqr"]
        lost = speedups[speedups["high"].fillna(speedups["times faster"]) < 1].sort_values("times faster")
        undecided = ((speedups["low"] <= 1) & (speedups["high"] >= 1)).sum()
        title = f"Below 1.0: {len(lost)} of {len(speedups)}"
        title += f"; neither lost nor won, with 1.0 in their interval: {undecided}" * bool(undecided)
        tables.append(("Every case", speedups.sort_values([*SHOWN, "mode"])[shown]))
        tables.append((title, lost[shown]))
    return tables


def compare_with_nn_gru(rows: pd.DataFrame) -> pd.DataFrame:
    """Find how many times faster ours is in each mode than the faster of `nn.GRU` eager and in a graph.

    Both are of the same run. In bf16 torch copies its weights on every call, so `cudnn.STANDARD_PROVIDER` counts as
    `nn.GRU` there.

    The ratio is the median of the rounds' ratios. With 95 % confidence it is from ``low`` to ``high``, if the noise of
    rounds is independent. Without samples it is the ratio of the medians, without an interval.
    """
    timed, same = rows[rows["n"] > 0], [*CASE, "run_id"]
    flat = (timed["base"] == STANDARD_PROVIDER) & (timed["dtype"] == "bfloat16")
    theirs = timed[(timed["base"] == BASELINE) | flat]
    theirs = theirs.loc[theirs.groupby(same)["p50_ms"].idxmin()]
    ours = keep_latest(timed[timed["base"] == OURS]).merge(theirs, on=same, suffixes=("", "_theirs"))
    pairs = zip(ours["samples_ms_theirs"], ours["samples_ms"], ours["p50_ms_theirs"] / ours["p50_ms"])
    ours[["times faster", "low", "high"]] = np.array([_paired(*pair) for pair in pairs]).reshape(-1, 3)
    words = [f"{low:#.3g} to {high:#.3g}" if low > 0 else "" for low, high in zip(ours["low"], ours["high"])]
    return ours.assign(**{"95 %": words})


def _paired(theirs: str, ours: str, of_medians: float) -> tuple[float, float, float]:
    """Return the median ratio and the ends of its interval, or ``of_medians`` and NaN without shared rounds."""
    theirs, ours = (np.array(samples.split(), float) for samples in (theirs, ours))
    if not 0 < len(theirs) == len(ours):
        return of_medians, np.nan, np.nan
    ratios = np.sort(theirs / ours)
    return np.median(ratios), *np.quantile(ratios[_middles(len(ratios))].mean(axis=1), [0.025, 0.975])


@functools.cache
def _middles(n: int) -> np.ndarray:
    """Draw n of n rounds with replacement, 2000 times. Return the ranks of the two in the middle of each draw."""
    ranks = np.sort(np.random.default_rng(0).integers(n, size=(2000, n)))
    return ranks[:, [(n - 1) // 2, n // 2]]


def _ratios(rows: pd.DataFrame, by: list[str], ratio: pd.Series, **counted: pd.Series) -> pd.DataFrame:
    statistics = {"cases": "size", "geomean": geomean, "min": "min", "max": "max"}
    return summarize_groups(rows.assign(ratio=ratio), by, "ratio", statistics, **counted)


def _peers(timed: pd.DataFrame) -> pd.DataFrame:
    """Compare ours with every other provider, and with the best of cuDNN's forced algorithms."""
    same = [*CASE, "run_id", "mode"]
    forced = timed[timed["base"].str.startswith("cudnn.")]
    best = forced.loc[forced.groupby(same)["p50_ms"].idxmin()].assign(base="cudnn, the best forced")
    ours = timed.loc[timed["base"] == OURS, [*same, "p50_ms"]]
    # Merge before the last rows are chosen, because a later run may have measured a peer without ours.
    others = pd.concat([timed[timed["base"] != OURS], best]).merge(ours, on=same, suffixes=("", "_ours"))
    others = others.drop_duplicates([*CASE, "base", "mode"], keep="last")
    ratio = others["p50_ms"] / others["p50_ms_ours"]
    return _ratios(others, ["base", "precision", "mode"], ratio, **{"below 1": ratio < 1})


def _second_direction(timed: pd.DataFrame) -> pd.DataFrame:
    """Return for each provider the time with two directions over the time with one, from runs that have both."""
    same = [*(name for name in CASE if name != "directions"), "run_id", "provider"]
    one = timed.loc[timed["directions"] == 1, [*same, "p50_ms"]].drop_duplicates(same, keep="last")
    both = keep_latest(timed[timed["directions"] == 2].merge(one, on=same, suffixes=("", "_of_one")))
    return _ratios(both, ["base", "precision", "mode"], both["p50_ms"] / both["p50_ms_of_one"])


def _frames(last: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each case of a stream, with a column for each provider."""
    timed = last[(last["variant"] == STREAMING) & (last["n"] > 0)]
    words = [
        f"{format_value(1000 * p50)}, {format_value(1000 * p99)}" for p50, p99 in zip(timed["p50_ms"], timed["p99_ms"])
    ]
    table = timed.assign(us=words).pivot(index=CASE, columns="provider", values="us").fillna("").reset_index()
    return table[["precision", "H", "B", "layers", *timed["provider"].unique()]]


def _stages(timed: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each kernel and case of a run, with a column for each stage that was left out."""
    parts, same = compare_stages(timed), [*CASE, "run_id", "mode", "kernel", "step"]
    table = parts.pivot(index=same, columns="stage", values="saved").astype(object).fillna("")
    return table.reset_index()[["kernel", "precision", "H", "B", "T", "step", *parts["stage"].unique()]]


def compare_stages(timed: pd.DataFrame) -> pd.DataFrame:
    """Return the rows without a stage, with the microseconds of the complete ``step`` and those ``saved``."""
    same, stage = [*CASE, "run_id", "mode", "kernel"], timed["base"].str.extract(f"{STAGE_MARK}(.+)", expand=False)
    timed = timed.assign(step=1000 * timed["p50_ms"] / timed["T"], stage=stage)
    whole = timed.loc[timed["base"] == OURS + "." + timed["kernel"], [*same, "step"]]
    parts = timed[timed["stage"].notna()]
    parts = parts.merge(whole.drop_duplicates(same, keep="last"), on=same, suffixes=("_left", ""))
    parts = parts.assign(saved=parts["step"] - parts["step_left"])
    return parts.drop_duplicates([*same, "stage"], keep="last")


def _machines(rows: pd.DataFrame) -> pd.DataFrame:
    where = rows.assign(commit=rows["git_sha"].str[:9] + np.where(rows["git_dirty"] == "True", " (dirty)", ""))
    by = ["gpu_name", "driver", "cuda", "cudnn", "torch", "triton", "commit"]
    return where.groupby(by, sort=False).size().reset_index(name="rows")


def _outcomes(last: pd.DataFrame) -> pd.DataFrame:
    """Count the cases of each status, with the most frequent error."""
    cases = last.groupby(["base", "mode"], sort=False)
    statuses = {name: ("status", lambda column, name=name: (column == name).sum()) for name in _STATUSES}
    reasons = last[last["error"] != ""].groupby(["base", "mode"])["error"].agg(lambda errors: errors.mode()[0][:110])
    return cases.agg(**statuses).join(reasons.rename("most frequent error")).fillna("").reset_index()


# The number of gates, the candidate of the new state included, for each provider in `cells`. Ours computes a GRU.
_GATES = {"torch.nn.RNN": 1, "torch.nn.LSTM": 4, "torch.nn.GRU": 3, OURS: 3, "handwritten": 3}


def cells(last: pd.DataFrame) -> pd.DataFrame:
    """Return gates, parameters, work and times of each cell and shape, if `nn.RNN` or `nn.LSTM` was timed."""
    wanted = last[last["base"].isin(_GATES) & (last["n"] > 0) & (last["layers"] == 1) & (last["form"] == "")]
    others = wanted.loc[wanted["base"].isin(["torch.nn.RNN", "torch.nn.LSTM"]), CASE].drop_duplicates()
    wanted = wanted.merge(others, on=CASE)
    fastest = wanted.loc[wanted.groupby([*CASE, "base"], sort=False)["p50_ms"].idxmin()]
    fastest["cell"] = pd.Categorical(fastest["base"], list(_GATES), ordered=True)
    fastest = fastest.sort_values(["precision", "H", "B", "T", "cell"])
    gates, hidden = fastest["base"].map(_GATES), fastest["H"]
    weights = gates * hidden * (fastest["I"] + hidden)
    numbers = {
        "gates": gates,
        "parameters": weights + 2 * gates * hidden,
        "kFLOP a step and row": 2 * weights / 1000,
        "weight KB a step": gates * hidden**2 * np.where(fastest["dtype"] == "float32", 4, 2) / 1000,
        "ms": fastest["p50_ms"],
        "us a step": 1000 * fastest["p50_ms"] / fastest["T"],
    }
    return fastest.assign(**numbers)[["cell", "precision", "H", "B", "T", *numbers, "mode", "kernel"]]
