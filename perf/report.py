"""The report on CSVs of sweeps: ours against torch.nn.GRU, against each peer and the lower bound, and its losses.

All ratios are between rows of one run. "Times faster" is the time of the other provider over our time: below 1 is a
loss. Against torch.nn.GRU, the ratio is taken round by round, see `compare_with_nn_gru`. All other ratios are ratios of
medians.
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

CASE = [name for name in KEY if name not in ("provider", "mode")]  # columns in which all rows of a case agree
STAGE_MARK = "-without-"  # before the stage, in the names of the providers of perf/experiments/stages.py
_STATUSES = ["ok", "noisy", "wrong", "failed", "unavailable"]
SHOWN = ["precision", "H", "I", "B", "T", "layers", "form", "l2"]  # columns of a case that tables of all cases show
_RESAMPLES = 2000  # resamples for a bootstrap interval
_PRINTED_ERROR_LENGTH = 110  # characters of an error in the table of outcomes


def format_report(paths: list[pathlib.Path], markdown: bool = False) -> str:
    """Return the text of the report on these CSVs, for a terminal or in Markdown."""
    return join_tables(make_sections(load(paths)), markdown)


def load(paths: list[pathlib.Path]) -> pd.DataFrame:
    """Return the rows of all CSVs of sweeps. Skip other files, and name them on stderr.

    Rows of floors and rows with the status "begun" are left out. In fp32, ``precision`` gets the prefix "fp32"; in 16
    bits it becomes the dtype. These columns are added:

    - ``base``: `Row.provider_name`, the provider without the suffix "+graph".
    - ``form``: those of the words bidirectional, packed, lengths, streaming and reset_before that apply, or "". In CSVs
      of scripts/models.py also the name of the model.
    - ``input``: the input size, or "" if it is the hidden size.
    - ``regime``: the ranges of H, B and T that group the cases of the report, and the form.

    Raises:
        ValueError: files are given, and none of them is a CSV of a sweep.
    """
    frames = {path: pd.read_csv(path, dtype=str, keep_default_na=False) for path in paths}
    skipped = [path for path, frame in frames.items() if list(frame) != COLUMNS]
    if skipped:
        print(f"skipped, because these files are no CSVs of sweeps: {', '.join(map(str, skipped))}", file=sys.stderr)
    if 0 < len(paths) == len(skipped):
        raise ValueError("no CSV of a sweep was given")
    sweeps = [frame for path, frame in frames.items() if path not in skipped]
    rows = pd.concat([pd.DataFrame(columns=COLUMNS, dtype=str), *sweeps], ignore_index=True)
    rows = rows.astype(dict.fromkeys(("T", "B", "I", "H", "layers", "directions", "n"), int))
    times = ["p20_ms", "p50_ms", "p80_ms", "p99_ms", "rel_iqr", "floor_ms", "max_abs_err"]
    rows[times] = rows[times].apply(pd.to_numeric, errors="coerce")
    rows = rows[~rows["provider"].str.startswith("floor.") & (rows["status"] != BEGUN)]
    # Cases in fp32 differ in the precision of products, cases in 16 bits in the dtype.
    rows["precision"] = np.where(rows["dtype"] == "float32", "fp32 " + rows["precision"], rows["dtype"])
    rows["base"] = rows["provider"].str.removesuffix("+graph")
    rows["input"] = rows["I"].astype(str).mask(rows["I"] == rows["H"], "")
    rows["form"] = [_describe_form(*shape) for shape in zip(rows["directions"], rows["layout"], rows["variant"])]
    rows["regime"] = [_describe_regime(*shape) for shape in zip(rows["H"], rows["B"], rows["T"], rows["form"])]
    return rows


def keep_latest(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the last row of each measurement: of each provider and mode on each case."""
    return rows.drop_duplicates([*CASE, "provider", "mode"], keep="last")


def _describe_form(directions: int, layout: str, variant: str) -> str:
    """Return the text of the column ``form``: what distinguishes a case from plain sequences, or ""."""
    applies = {"bidirectional": directions == 2, layout: layout != Row.layout, variant: variant != Row.variant}
    return ", ".join(word for word, does_apply in applies.items() if does_apply)


def _describe_regime(hidden: int, batch: int, steps: int, form: str) -> str:
    """Return the text of the column ``regime``: the ranges that the sizes are in, and the form."""
    hidden_range = "H <= 192" if hidden <= 192 else "H <= 1024" if hidden <= 1024 else "H > 1024"
    texts = [hidden_range, "B <= 64" if batch <= 64 else "B > 64", "T = 1" if steps == 1 else "T > 1", form]
    return ", ".join(filter(None, texts))


def make_sections(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the report's tables, each with its title, from rows of `load`. Leave out tables without rows.

    Exception: if ours and `BASELINE` were timed in one run, the table of losses is present even if it is empty.
    """
    last, timed, speedups = keep_latest(rows), rows[rows["n"] > 0], compare_with_nn_gru(rows)
    ours = last[(last["base"] == OURS) & (last["n"] > 0) & last["floor_ms"].notna()]
    served_by_kernel = {"by own kernel": speedups["kernel"] != "torch"}
    by_regime = ["precision", "regime", "mode"]
    tables = [
        ("Machines and versions", _count_rows_of_machines(rows)),
        ("Outcomes of each provider's cases", _count_outcomes(last)),
        (
            f"Times faster than the faster of torch.nn.GRU eager and in a graph (bf16: or of {STANDARD_PROVIDER})",
            _summarize_ratios(speedups, by_regime, speedups["times faster"], **served_by_kernel),
        ),
        ("Time over the lower bound", _summarize_ratios(ours, by_regime, ours["p50_ms"] / ours["floor_ms"])),
        ("Times faster than each peer, in the same mode", _compare_with_peers(timed)),
        ("Two directions: time over the time of one direction", _compare_directions(timed)),
        ("Microseconds a frame, median and 99th percentile", _tabulate_frames(last)),
        ("Stages: microseconds of a step, and microseconds saved without each stage", _tabulate_stages(timed)),
        ("RNN, LSTM, GRU", compare_cells(last)),
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
    """Return the last row of ours for each case and mode, with added columns that compare ours with `nn.GRU`.

    Rows of ours without a time of `nn.GRU` in the same run are left out.
    "times faster" is the time of the faster of `nn.GRU` eager and in a graph, over the time of ours in the row's mode.
    In bf16 torch copies its weights on every call. Therefore rows of `cudnn.STANDARD_PROVIDER` count as `nn.GRU` there.

    The ratio is the median of the rounds' ratios. Its 95 % confidence interval is from ``low`` to ``high``, and "95 %"
    is the text of the interval. The interval is valid if the noise of rounds is independent. If the rows have no shared
    rounds, the ratio is that of the medians, ``low`` and ``high`` are NaN, and the text is empty.
    """
    timed, pair_key = rows[rows["n"] > 0], [*CASE, "run_id"]
    is_flat_cudnn = (timed["base"] == STANDARD_PROVIDER) & (timed["dtype"] == "bfloat16")
    theirs = timed[(timed["base"] == BASELINE) | is_flat_cudnn]
    theirs = theirs.loc[theirs.groupby(pair_key)["p50_ms"].idxmin()]
    ours = keep_latest(timed[timed["base"] == OURS]).merge(theirs, on=pair_key, suffixes=("", "_theirs"))
    pairs = zip(ours["samples_ms_theirs"], ours["samples_ms"], ours["p50_ms_theirs"] / ours["p50_ms"])
    ours[["times faster", "low", "high"]] = np.array([_compare_rounds(*pair) for pair in pairs]).reshape(-1, 3)
    intervals = [f"{low:#.3g} to {high:#.3g}" if low > 0 else "" for low, high in zip(ours["low"], ours["high"])]
    return ours.assign(**{"95 %": intervals})


def _compare_rounds(their_samples: str, our_samples: str, ratio_of_medians: float) -> tuple[float, float, float]:
    """Return the median of the rounds' ratios of their time to ours, and the ends of its 95 % bootstrap interval.

    Samples are times separated by spaces, in the order of the rounds. If they are missing or differ in number, return
    ``ratio_of_medians``, NaN and NaN.
    """
    their_times, our_times = (np.array(samples.split(), float) for samples in (their_samples, our_samples))
    if not 0 < len(their_times) == len(our_times):
        return ratio_of_medians, np.nan, np.nan
    ratios = np.sort(their_times / our_times)
    resampled_medians = ratios[_draw_median_ranks(len(ratios))].mean(axis=1)
    return np.median(ratios), *np.quantile(resampled_medians, [0.025, 0.975])


@functools.cache
def _draw_median_ranks(rounds: int) -> np.ndarray:
    """Return where the medians of bootstrap resamples are in a sorted list of ``rounds`` values.

    A resample has ``rounds`` values, drawn with replacement. Its median is the mean of its two middle values, which are
    the same value if ``rounds`` is odd. The result [2000, 2] has the ranks of these two values for each resample. It is
    the same in every call, so that reports can be reproduced.
    """
    ranks = np.sort(np.random.default_rng(0).integers(rounds, size=(_RESAMPLES, rounds)))
    return ranks[:, [(rounds - 1) // 2, rounds // 2]]


def _summarize_ratios(rows: pd.DataFrame, by: list[str], ratio: pd.Series, **counted: pd.Series) -> pd.DataFrame:
    """Return a table with a line for each group of ``rows``: the number of cases, and statistics of their ratios.

    Groups are defined by the columns ``by``. ``ratio`` has the ratio of each row. ``counted`` gives further columns, as
    in `summarize_groups`: the number of a group's rows that meet a condition.
    """
    statistics = {"cases": "size", "geomean": geomean, "min": "min", "max": "max"}
    return summarize_groups(rows.assign(ratio=ratio), by, "ratio", statistics, **counted)


def _compare_with_peers(timed: pd.DataFrame) -> pd.DataFrame:
    """Summarize the times of every other provider, and of the best of cuDNN's forced algorithms, over ours."""
    pair_key = [*CASE, "run_id", "mode"]
    forced = timed[timed["base"].str.startswith("cudnn.")]
    best = forced.loc[forced.groupby(pair_key)["p50_ms"].idxmin()].assign(base="cudnn, the best forced")
    ours = timed.loc[timed["base"] == OURS, [*pair_key, "p50_ms"]]
    # Merge before the last rows are chosen, because a later run may have measured a peer without ours.
    peers = pd.concat([timed[timed["base"] != OURS], best]).merge(ours, on=pair_key, suffixes=("", "_ours"))
    peers = peers.drop_duplicates([*CASE, "base", "mode"], keep="last")
    ratio = peers["p50_ms"] / peers["p50_ms_ours"]
    return _summarize_ratios(peers, ["base", "precision", "mode"], ratio, **{"below 1": ratio < 1})


def _compare_directions(timed: pd.DataFrame) -> pd.DataFrame:
    """Summarize for each provider the time with two directions over the time with one, if one run has both times."""
    pair_key = [*(name for name in CASE if name != "directions"), "run_id", "provider"]
    one_direction = timed.loc[timed["directions"] == 1, [*pair_key, "p50_ms"]]
    one_direction = one_direction.drop_duplicates(pair_key, keep="last")
    two_directions = timed[timed["directions"] == 2].merge(one_direction, on=pair_key, suffixes=("", "_of_one"))
    two_directions = keep_latest(two_directions)
    ratio = two_directions["p50_ms"] / two_directions["p50_ms_of_one"]
    return _summarize_ratios(two_directions, ["base", "precision", "mode"], ratio)


def _tabulate_frames(last: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each case of a stream, with a column for each provider: the median and the 99th percentile."""
    timed = last[(last["variant"] == STREAMING) & (last["n"] > 0)]
    texts = [
        f"{format_value(1000 * p50)}, {format_value(1000 * p99)}" for p50, p99 in zip(timed["p50_ms"], timed["p99_ms"])
    ]
    table = timed.assign(us=texts).pivot(index=CASE, columns="provider", values="us").fillna("").reset_index()
    return table[["precision", "H", "B", "layers", *timed["provider"].unique()]]


def _tabulate_stages(timed: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each kernel and case of a run, with the microseconds saved without each stage.

    The column ``step`` has the microseconds of the complete kernel's step. Each stage has its own column.
    """
    stages, line_key = compare_stages(timed), [*CASE, "run_id", "mode", "kernel", "step"]
    table = stages.pivot(index=line_key, columns="stage", values="saved").astype(object).fillna("")
    return table.reset_index()[["kernel", "precision", "H", "B", "T", "step", *stages["stage"].unique()]]


def compare_stages(timed: pd.DataFrame) -> pd.DataFrame:
    """Return the last rows of kernels without a stage, compared with the complete kernel in the same run.

    Added columns: the name of the ``stage``, the microseconds of a ``step`` of the complete kernel, and the
    microseconds that are ``saved`` without the stage. Rows without the complete kernel in their run are left out.
    """
    pair_key = [*CASE, "run_id", "mode", "kernel"]
    stage = timed["base"].str.extract(f"{STAGE_MARK}(.+)", expand=False)  # NaN for other providers
    timed = timed.assign(step=1000 * timed["p50_ms"] / timed["T"], stage=stage)
    complete = timed.loc[timed["base"] == OURS + "." + timed["kernel"], [*pair_key, "step"]]
    complete = complete.drop_duplicates(pair_key, keep="last")
    stages = timed[timed["stage"].notna()].merge(complete, on=pair_key, suffixes=("_without", ""))
    stages = stages.assign(saved=stages["step"] - stages["step_without"])
    return stages.drop_duplicates([*pair_key, "stage"], keep="last")


def _count_rows_of_machines(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each GPU, set of versions and commit, with the number of its rows."""
    rows = rows.assign(commit=rows["git_sha"].str[:9] + np.where(rows["git_dirty"] == "True", " (dirty)", ""))
    by = ["gpu_name", "driver", "cuda", "cudnn", "torch", "triton", "commit"]
    return rows.groupby(by, sort=False).size().reset_index(name="rows")


def _count_outcomes(last: pd.DataFrame) -> pd.DataFrame:
    """Return for each provider and mode the number of cases with each status, and the most frequent error."""
    cases = last.groupby(["base", "mode"], sort=False)
    statuses = {name: ("status", lambda column, name=name: (column == name).sum()) for name in _STATUSES}
    errors = last[last["error"] != ""].groupby(["base", "mode"])["error"]
    most_frequent = errors.agg(lambda texts: texts.mode()[0][:_PRINTED_ERROR_LENGTH])
    return cases.agg(**statuses).join(most_frequent.rename("most frequent error")).fillna("").reset_index()


# Gates of a step, the candidate for the new state included, for each provider in `compare_cells`. Ours computes a GRU.
_GATES = {"torch.nn.RNN": 1, "torch.nn.LSTM": 4, "torch.nn.GRU": 3, OURS: 3, "handwritten": 3}


def compare_cells(last: pd.DataFrame) -> pd.DataFrame:
    """Return gates, parameters, work and times of RNN, LSTM and GRU cells, at shapes where RNN or LSTM was timed.

    A line is a provider at a shape, with the time of its faster mode.
    """
    timed = last[last["base"].isin(_GATES) & (last["n"] > 0) & (last["layers"] == 1) & (last["form"] == "")]
    compared_cases = timed.loc[timed["base"].isin(["torch.nn.RNN", "torch.nn.LSTM"]), CASE].drop_duplicates()
    timed = timed.merge(compared_cases, on=CASE)
    fastest = timed.loc[timed.groupby([*CASE, "base"], sort=False)["p50_ms"].idxmin()]
    fastest["cell"] = pd.Categorical(fastest["base"], list(_GATES), ordered=True)
    fastest = fastest.sort_values(["precision", "H", "B", "T", "cell"])
    gates, hidden = fastest["base"].map(_GATES), fastest["H"]
    weights = gates * hidden * (fastest["I"] + hidden)
    columns = {
        "gates": gates,
        "parameters": weights + 2 * gates * hidden,  # W_ih, W_hh and two biases
        "kFLOP a step and row": 2 * weights / 1000,
        "weight KB a step": gates * hidden**2 * np.where(fastest["dtype"] == "float32", 4, 2) / 1000,
        "ms": fastest["p50_ms"],
        "us a step": 1000 * fastest["p50_ms"] / fastest["T"],
    }
    return fastest.assign(**columns)[["cell", "precision", "H", "B", "T", *columns, "mode", "kernel"]]
