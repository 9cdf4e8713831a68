"""Comparison of two CSVs: which measurements on the same GPU became slower or faster, or stopped working."""

import pathlib

import numpy as np
import pandas as pd

from .report import CASE, SHOWN, keep_latest, load
from .tables import format_table

NOISE = 0.03  # a relative difference up to this, or up to the spread of either measurement, is ignored


def main(before: pathlib.Path, after: pathlib.Path) -> int:
    """Print every measurement that differs between two CSVs by more than noise, or that stopped working.

    Return the exit status: 1 if a measurement became slower or stopped working, or else 0.

    Raises:
        ValueError: a file is not the CSV of a sweep, or no measurement of ``before`` with a time is in ``after``.
    """
    table = compare_rows(load([before]), load([after]))
    if table.empty:
        raise ValueError(f"{before} and {after} have no measurement in common (same GPU, provider, shape and mode)")
    shown = ["provider", *SHOWN, "before", "after", "ratio", "verdict"]
    changed = table[table["verdict"] != "same"].sort_values("ratio", ascending=False)
    print(f"{len(table)} measurements in both: {table['verdict'].value_counts().to_dict()}")
    if len(changed):
        print(format_table(changed[shown]))
    return int(table["verdict"].isin(["slower", "broken"]).any())


def compare_rows(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each measurement that has a time in ``before`` and a row in ``after``.

    A line has the medians, their ratio, and a verdict. The verdict is "broken" if the row in ``after`` has no time. It
    is "slower" or "faster" if the medians differ by more than `NOISE` and by more than both rows' ``rel_iqr``. Else it
    is "same".
    """
    key = [*CASE, "provider", "mode"]
    before, after = keep_latest(before), keep_latest(after)
    pairs = before[before["n"] > 0].merge(after, on=key, suffixes=("", "_after"))
    ratio = pairs["p50_ms_after"] / pairs["p50_ms"]
    noise = pairs[["rel_iqr", "rel_iqr_after"]].max(axis=1).clip(lower=NOISE)
    conditions = [pairs["n_after"] == 0, ratio > 1 + noise, 1 / ratio > 1 + noise]
    verdict = np.select(conditions, ["broken", "slower", "faster"], default="same")
    return pairs.assign(before=pairs["p50_ms"], after=pairs["p50_ms_after"], ratio=ratio, verdict=verdict)
