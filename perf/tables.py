"""Tables of a report: statistics of groups of rows, and formatting."""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
import tabulate

tabulate.MIN_PADDING = 0  # columns are no wider than their contents


def summarize_groups(
    rows: pd.DataFrame, by: Iterable[str], column: str, statistics: dict[str, str | Callable], **counted: pd.Series
) -> pd.DataFrame:
    """Return a table with a line for each group of ``rows``. Groups are in the order of their first rows.

    Args:
        by: the columns that define the groups. They are the first columns of the table.
        column: the column of ``rows`` to summarize.
        statistics: the next columns of the table, by name: a statistic of ``column``, as `DataFrame.agg` takes it.
        counted: the last columns of the table, by name: a condition on each row. The table has the number of a group's
            rows that meet the condition.
    """
    aggregated = {name: (column, statistic) for name, statistic in statistics.items()}
    aggregated |= {name: (name, "sum") for name in counted}
    return rows.assign(**counted).groupby(list(by), sort=False).agg(**aggregated).reset_index()


def geomean(ratios: pd.Series) -> float:
    """Return the geometric mean."""
    return np.exp(np.log(ratios).mean())


def join_tables(titled: Iterable[tuple[str, pd.DataFrame]], markdown: bool = False) -> str:
    """Return the text of pairs of a title and a table, for a terminal or in Markdown."""
    template, table_format = ("**{}**\n\n{}", "pipe") if markdown else ("{}\n{}", "plain")
    return "\n\n".join(template.format(title, format_table(table, table_format)) for title, table in titled)


def format_table(table: pd.DataFrame, table_format: str = "plain") -> str:
    """Return the table's text, or "none" if it has no rows. Numbers are aligned right, texts left.

    ``table_format`` is a format of the package tabulate: "plain", or "pipe" for Markdown.
    """
    if table.empty:
        return "none"
    alignments = ["right" if pd.api.types.is_numeric_dtype(table[name]) else "left" for name in table]
    return table.map(format_value).to_markdown(
        index=False, tablefmt=table_format, colalign=alignments, disable_numparse=True
    )


def format_value(value) -> str:
    """Return the text of a table's entry. A float has three significant digits, or from 1000 on no decimals.

    In other values "/" replaces "|", which separates columns in Markdown.
    """
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value).replace("|", "/")
