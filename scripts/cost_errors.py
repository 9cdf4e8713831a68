"""Prints how far the cost model, and the heuristic that uses it, are from measurements.

    python scripts/cost_errors.py CSV... TABLE.json...     # CSVs of sweeps, tables of `triton-gru tune`

An estimate that is off by a factor of 1.3 is 1.3 times the measured time, or the measured time divided by 1.3.
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # perf is not installed

import numpy as np
import pandas as pd

from perf import report
from perf.providers import BASELINE, OURS
from perf.record import KEY, Row
from perf.tables import geomean, join_tables, summarize_groups
from triton_gru.plan.config import Config, split_implementation
from triton_gru.plan.cost import estimate_call_cost
from triton_gru.plan.device import Device, match_device
from triton_gru.plan.heuristic import heuristic
from triton_gru.plan.problem import Key, Problem
from triton_gru.plan.tables import entries, store
from triton_gru.plan.tables.entries import CONFIGS
from triton_gru.tuning.space import IMPLEMENTATIONS

Tables = dict[pathlib.Path, store.Table]
# The cost model has estimates of our kernels, as the package configures them, and of nn.GRU.
_PROVIDERS = (BASELINE, OURS, *(f"{OURS}.{kernel}" for kernel in CONFIGS))
_LOSSES = {"entries": "size", "geomean": geomean, "median": "median", "max": "max"}
_ERRORS = {
    "cells": "size",
    "estimate over measured": geomean,
    "median off by": lambda ratios: np.exp(np.log(ratios).abs().median()),
    "at most off by": lambda ratios: np.exp(np.log(ratios).abs().max()),
}
# A cell is a timed kernel. Cells are grouped by the columns `_CELL`. The columns `_CALL` are the arguments of
# `estimate_call_cost`.
_CELL, _CALL = ["kernel", "precision", "source"], ["problem", "config", "device", "in_graph", "projection"]


def main(arguments: list[str] | None = None) -> int:
    """Print the report's tables. Return 2 if a file is neither a CSV of a sweep nor a tuned table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path, nargs="+", help="a CSV of a sweep, or a tuned table (.json)")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args(arguments)
    try:
        tables = load([path for path in options.file if path.suffix == ".json"])
        rows = report.load([path for path in options.file if path.suffix != ".json"])
    except (OSError, ValueError) as error:
        print(f"cost_errors: {error}", file=sys.stderr)
        return 2
    filled = [(title, table) for title, table in sections(report.keep_latest(rows), tables) if len(table)]
    print(join_tables(filled, options.markdown) or "the files have no time that the cost model estimates")
    return 0


def load(paths: list[pathlib.Path]) -> Tables:
    """Read tuned tables. Raise ValueError for a file that is not one."""
    tables = {}
    for path in paths:
        try:
            tables[path] = store.load(path)
        except store.UnusableTableError as error:
            raise ValueError(f"{path} is not a tuned table: {error}") from None
    return tables


def sections(last: pd.DataFrame, tables: Tables) -> list[tuple[str, pd.DataFrame]]:
    """Return the report's tables with their titles, from the latest rows of CSVs and from tuned tables.

    A table is empty if the files have no data for it.
    """
    cells = pd.concat([_cells_of_tables(tables), _cells_of_rows(last)], ignore_index=True)
    cells = cells.astype({"ms": float, "heuristic_ms": float})  # needed if there are no cells
    over_tuned = cells.assign(loss=cells["heuristic_ms"] / cells["ms"]).dropna(subset="loss")
    # An estimate needs a problem that a kernel serves, a device with known rates, and a configuration.
    known = cells[cells["config"].notna() | (cells["kernel"] == "torch")].dropna(subset=["problem", "device"])
    us = [estimate_call_cost(*call).total for call in zip(*(known[name] for name in _CALL))]
    ratios = known.assign(ratio=us / (1e3 * known["ms"])).sort_values(_CELL)
    choices = _choices(known.dropna(subset="entry"))
    is_right = choices["chosen"] == choices["fastest"]
    worst = choices[~is_right].sort_values("loss", ascending=False, kind="stable").head(10)
    counted = {"that kernel": is_right, "as tuned": choices["as tuned"]}
    return [
        ("Tuned tables", _overview(tables)),
        ("The cost model against measurement", summarize_groups(ratios, _CELL, "ratio", _ERRORS)),
        ("Which kernel: the heuristic's choice against the fastest measured", _losses(choices, "precision", **counted)),
        ("The worst 10 choices of a kernel", worst[["problem", "device", "chosen", "fastest", "loss"]]),
        ("Heuristic over tuned", _losses(over_tuned, "kernel")),
    ]


def _losses(table: pd.DataFrame, by: str, **counted: pd.Series) -> pd.DataFrame:
    close = {"within 15 %": table["loss"] <= 1.15}
    return summarize_groups(table.sort_values(by), [by], "loss", _LOSSES, **close, **counted)


def problem_of_key(key: Key) -> Problem | None:
    """Return the problem of a key, or None if no kernel serves it."""
    try:
        return key.to_problem()
    except ValueError:
        return None


def problem_of_row(row: pd.Series) -> Problem | None:
    """Return the problem of a row of `report.load`, or None if it is not a kernel's call of whole sequences."""
    if row["variant"] != Row.variant:
        return None
    precision = "tf32" if row["precision"] == "fp32 tf32" else "ieee"
    sizes = row[["H", "I", "B", "T", "layers", "directions", "dtype"]]
    return problem_of_key(Key(*sizes, precision, True, row["layout"]))


def device_of(name: str, sms: str) -> Device | None:
    """Return the known device of a row of `report.load`, or None. The row's ``sms`` may be empty."""
    return match_device(name, int(sms) if sms else None)


def _device_of_table(table: store.Table) -> Device | None:
    return match_device(table.device["name"], table.device["sms"])


def config_of(kernel: str, text: str) -> Config | None:
    """Return the configuration of a row, or None if the text is not a configuration of this kernel."""
    if kernel == "torch":
        return None
    try:
        return entries.parse_config(split_implementation(kernel)[0], json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _overview(tables: Tables) -> pd.DataFrame:
    """Return a line for each table, with the device whose rates the estimates use."""
    lines = []
    for path, table in tables.items():
        named = {name: " ".join(str(table.device.get(name)).split())[:60] for name in ("name", "cc", "sms")}
        known = {"estimated as": getattr(_device_of_table(table), "name", "unknown"), "entries": len(table.entries)}
        lines.append({"table": path.name, **named, **known, "not understood": len(table.skipped)})
    return pd.DataFrame(lines)


def _cells_of_rows(last: pd.DataFrame) -> pd.DataFrame:
    """Return the cells of a report's rows. A call in a CUDA graph counts, or else the eager one."""
    is_torch = last["base"] == BASELINE
    # Rows of ours that fell back to nn.GRU are left out, as nn.GRU has rows of its own.
    is_timed = last["base"].isin(_PROVIDERS) & (last["n"] > 0) & last["mode"].isin(["eager", "graph"])
    timed = last[is_timed & (is_torch | last["kernel"].isin(IMPLEMENTATIONS))]
    timed = timed.assign(kernel=timed["kernel"].mask(is_torch, "torch"), ms=timed["p50_ms"])
    timed["config"] = [*map(config_of, timed["kernel"], timed["config"])]
    # A kernel in a configuration is one cell, for all providers that run it.
    same = [name for name in (*KEY, "kernel", "config") if name not in ("provider", "mode")]
    timed = timed.sort_values("mode", kind="stable").drop_duplicates(same, keep="last")  # "graph" comes after "eager"
    source = np.where(timed["l2"] == "cold", "CSV, cold L2", "CSV")  # estimates are for a warm L2
    call = {"problem": [problem_of_row(row) for _, row in timed.iterrows()], "in_graph": timed["mode"] == "graph"}
    call["projection"] = [split_implementation(kernel)[1] for kernel in timed["kernel"]]
    devices = [*map(device_of, timed["gpu_name"], timed["sms"])]
    return timed.assign(source=source, device=devices, **call)[[*_CELL, *_CALL, "ms"]]


def _cells_of_tables(tables: Tables) -> pd.DataFrame:
    """Return the cells of tables' entries. If two entries have the same device and key, the last one counts."""
    last = {(str(table.device), entry.key): (entry, table) for table in tables.values() for entry in table.entries}
    cells = [
        (kernel, f"fp32 {key.precision}" if key.dtype == "float32" else key.dtype, "table",
         problem_of_key(key), result.config, _device_of_table(table), bool(result.graph_ms),
         split_implementation(kernel)[1], result.ms, result.heuristic_ms, number, str(key))
        for number, ((_, key), (entry, table)) in enumerate(last.items()) for kernel, result in entry.results.items()
    ]  # fmt: skip
    return pd.DataFrame(cells, columns=[*_CELL, *_CALL, "ms", "heuristic_ms", "entry", "key"])


def _choices(cells: pd.DataFrame) -> pd.DataFrame:
    """Return for each entry the kernel with the lowest estimate, with all kernels as the heuristic configures them.

    The column "as tuned" is True if the heuristic's configuration was not timed. Then the time of the tuned
    configuration is used. An entry without any estimate is left out.
    """
    us = []
    for kernel, problem, device in cells[["kernel", "problem", "device"]].itertuples(index=False):
        name, projection = split_implementation(kernel)
        config = None if name == "torch" else heuristic(name, problem, device)
        is_served = not isinstance(config, str)
        us.append(estimate_call_cost(problem, config, device, projection=projection).total if is_served else np.nan)
    fastest = cells.sort_values("ms", kind="stable").groupby("entry")[["kernel", "ms"]].transform("first")
    cells = cells.assign(us=us, fastest=fastest["kernel"], least=fastest["ms"]).dropna(subset="us")
    chosen = cells.sort_values(["entry", "us"]).drop_duplicates("entry")
    return pd.DataFrame({
        "precision": chosen["precision"], "problem": chosen["key"],
        "device": [device.name for device in chosen["device"]],
        "chosen": chosen["kernel"], "fastest": chosen["fastest"],
        "loss": chosen["heuristic_ms"].fillna(chosen["ms"]) / chosen["least"],
        "as tuned": (chosen["kernel"] != "torch") & chosen["heuristic_ms"].isna(),
    })  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
