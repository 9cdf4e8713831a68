"""What became slower, or stopped working, from one CSV to another of the same machine."""

import pathlib

import numpy as np
import pandas as pd

from .report import CASE, SHOWN, keep_latest, load
from .tables import format_table

NOISE = 0.03  # a difference up to this, or to the spread of either measurement, is none


def main(before: pathlib.Path, after: pathlib.Path) -> int:
    """Print every case that differs by more than noise. Return 1 if one became slower or stopped working."""
    table = compare_rows(load([before]), load([after]))
    if table.empty:
        raise ValueError("the two have no measurement in common (of the same GPU, provider, shape and mode)")
    shown = ["provider", *SHOWN, "before", "after", "ratio", "verdict"]
    changed = table[table["verdict"] != "same"].sort_values("ratio", ascending=False)
    print(f"{len(table)} measurements in both: {table['verdict'].value_counts().to_dict()}")
    if len(changed):
        print(format_table(changed[shown]))
    return int(table["verdict"].isin(["slower", "broken"]).any())


def compare_rows(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each measurement that both have tried and the first has timed.

    It has the medians, their ratio, and a verdict. That is "slower" or "faster" if the medians differ by more than
    `NOISE` and the rel_iqr of both, "broken" if there is no time any more, else "same".
    """
    key = [*CASE, "provider", "mode"]
    before, after = keep_latest(before), keep_latest(after)
    both = before[before["n"] > 0].merge(after, on=key, suffixes=("", "_after"))
    ratio = both["p50_ms_after"] / both["p50_ms"]
    noise = both[["rel_iqr", "rel_iqr_after"]].max(axis=1).clip(lower=NOISE)
    conditions = [both["n_after"] == 0, ratio > 1 + noise, 1 / ratio > 1 + noise]
    verdict = np.select(conditions, ["broken", "slower", "faster"], "same")
    return both.assign(before=both["p50_ms"], after=both["p50_ms_after"], ratio=ratio, verdict=verdict)
