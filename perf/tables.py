"""Tables of a report: statistics of groups of rows, and formatting."""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
import tabulate

tabulate.MIN_PADDING = 0  # columns are no wider than their contents


def summarize_groups(
    rows: pd.DataFrame, by: Iterable[str], column: str, statistics: dict[str, str | Callable], **counted: pd.Series
) -> pd.DataFrame:
    """Return a line for each group of ``rows``, in the order of their first rows.

    Args:
        statistics: the table's columns after ``by``, each with its statistic of ``column``.
        counted: further columns, each with a condition. The table has the number of a group's rows that meet it.
    """
    aggregated = {name: (column, statistic) for name, statistic in statistics.items()}
    aggregated |= {name: (name, "sum") for name in counted}
    return rows.assign(**counted).groupby(list(by), sort=False).agg(**aggregated).reset_index()


def geomean(ratios: pd.Series) -> float:
    return np.exp(np.log(ratios).mean())


def join_tables(titled: Iterable[tuple[str, pd.DataFrame]], markdown: bool = False) -> str:
    """Return the text of titled tables, for a terminal or in Markdown."""
    title, form = ("**{}**\n\n{}", "pipe") if markdown else ("{}\n{}", "plain")
    return "\n\n".join(title.format(name, format_table(table, form)) for name, table in titled)


def format_table(table: pd.DataFrame, form: str = "plain") -> str:
    """Return the table's text in a format of tabulate, "plain" or "pipe" (Markdown). Numbers are aligned right."""
    if table.empty:
        return "none"
    sides = ["right" if pd.api.types.is_numeric_dtype(table[name]) else "left" for name in table]
    return table.map(format_value).to_markdown(index=False, tablefmt=form, colalign=sides, disable_numparse=True)


def format_value(value) -> str:
    """Return a cell's text. A float has three significant digits, or its whole part from 1000 on."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value).replace("|", "/")
