"""How far the cost model, and the heuristic that goes by it, are from what was measured: in CSVs and in tuned tables.

An estimate that is off by a factor of 1.3 is 30 % too high or as far too low.
"""

import json
import pathlib
import re
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch

from triton_gru.plan.config import HANDOVERS, Config
from triton_gru.plan.cost import call_cost
from triton_gru.plan.device import KNOWN, Device
from triton_gru.plan.heuristic import heuristic
from triton_gru.plan.problem import Problem
from triton_gru.plan.tables import store
from triton_gru.plan.tables.entries import CONFIGS, Entry, Key, _fields
from triton_gru.plan.tables.store import Table

from .providers import OURS, YARDSTICK
from .record import KEY, Row
from .tables import geomean, summarized

Tables = dict[pathlib.Path, Table]
_DTYPES = {str(dtype)[6:]: dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}
# The library's kernels as it configures them, and torch's own GRU: what there are estimates of.
_PROVIDERS = (YARDSTICK, OURS, *(f"{OURS}.{kernel}" for kernel in CONFIGS))
_CLOSE = 1.15
_WORST = 10
_CELL = ["kernel", "precision", "source"]
_CHOICE = ["precision", "as tuned", "problem", "device", "chosen", "fastest", "loss"]
_LOSSES = {"entries": "size", "geomean": geomean, "median": "median", "max": "max"}
_ERRORS = {
    "cells": "size",
    "estimate over measured": geomean,
    "median off by": lambda ratios: np.exp(np.log(ratios).abs().median()),
    "at most off by": lambda ratios: np.exp(np.log(ratios).abs().max()),
}


def load(paths: list[pathlib.Path]) -> Tables:
    """Read tuned tables.

    Raises:
        ValueError: a file that is no table.
    """
    tables = {}
    for path in paths:
        try:
            tables[path] = store.load(path)
        except store.Unusable as error:
            raise ValueError(f"{path} is no tuned table: {error}") from None
    return tables


def sections(last: pd.DataFrame, tables: Tables) -> list[tuple[str, pd.DataFrame]]:
    """Return titled tables of rows of which none repeats another, and of tuned tables. Some may be empty."""
    entries = _entries(tables)
    cells = pd.DataFrame([*_of_rows(last), *_of_entries(entries)], columns=[*_CELL, "ratio"]).sort_values(_CELL)
    choices = pd.DataFrame(filter(None, (_choice(*each) for each in entries)), columns=_CHOICE)
    right = choices["chosen"] == choices["fastest"]
    worst = choices[~right].sort_values("loss", ascending=False, kind="stable").head(_WORST)
    over_tuned = pd.DataFrame(
        (
            (kernel, result.heuristic_ms / result.ms)
            for entry, _ in entries
            for kernel, result in entry.results.items()
            if result.heuristic_ms is not None
        ),
        columns=["kernel", "loss"],
    )
    counted = {"that kernel": right, "as tuned": choices["as tuned"]}
    return [
        ("Tuned tables", _overview(tables)),
        ("The cost model against measurement", summarized(cells, _CELL, "ratio", _ERRORS)),
        ("Which kernel: the heuristic's choice against the fastest measured", _losses(choices, "precision", **counted)),
        (f"The worst {_WORST} choices of a kernel", worst[_CHOICE[2:]]),
        ("Heuristic over tuned", _losses(over_tuned, "kernel")),
    ]


def _losses(table: pd.DataFrame, by: str, **counted: pd.Series) -> pd.DataFrame:
    close = {"within 15 %": table["loss"] <= _CLOSE}
    return summarized(table.sort_values(by), [by], "loss", _LOSSES, **close, **counted)


def problem_of_key(key: Key) -> Problem | None:
    """Return the problem that a table's key is of, and None if no kernel serves such."""
    if key.dtype not in _DTYPES or key.directions not in (1, 2):
        return None
    return Problem(
        key.steps, key.batch, key.input_size, key.hidden_size, key.layers, key.directions == 2, _DTYPES[key.dtype],
        key.precision, key.reset_after, layout=key.layout,
    )  # fmt: skip


def problem_of_row(row: pd.Series) -> Problem | None:
    """Return the problem of a row of `report.load`, and None if it is not a kernel's call of whole sequences."""
    if row["variant"] != Row.variant:
        return None
    precision = "tf32" if row["precision"] == "fp32 tf32" else "ieee"
    layout = "packed" if row["packed"] == "True" else "dense"
    return problem_of_key(Key(*row[["H", "I", "B", "T", "layers", "directions", "dtype"]], precision, True, layout))


def device_of(name: str, sms: str) -> Device | None:
    """Return the known device that a driver calls so: as a word, for a GH200 is no H200, and all of it, not a part.

    ``sms`` may be empty, if it is not known how many multiprocessors there are.
    """
    named = (device for device in KNOWN.values() if re.search(rf"\b{device.name}\b", name))
    return next((device for device in named if sms in ("", str(device.sms))), None)


def _device_of_table(table: Table) -> Device | None:
    return device_of(str(table.device.get("name")), str(table.device.get("sms", "")))


def config_of(kernel: str, text: str) -> Config | None:
    """Read the configuration of a row of any schema. Return None if the text is none of the kernel's."""
    if kernel == "torch":
        return None
    kind = CONFIGS[kernel]
    if dataclass_text := re.fullmatch(rf"{kind.__name__}\((.*)\)", text):  # of schemas 1 to 3
        text = "{" + re.sub(r"(\w+)=", r'"\1": ', dataclass_text[1]).replace("'", '"') + "}"
    try:
        config = _fields(json.loads(text), kind)
    except (ValueError, TypeError, RecursionError):
        return None
    return None if getattr(config, "handover", HANDOVERS[0]) not in HANDOVERS else config


def _entries(tables: Tables) -> list[tuple[Entry, Device | None]]:
    """Return the last of entries that measure the same on the same device."""
    found = {}
    for table in tables.values():
        for entry in table.entries:
            found[str(table.device), entry.key] = entry, _device_of_table(table)
    return list(found.values())


def _overview(tables: Tables) -> pd.DataFrame:
    """Return a line for each table, with the device whose rates the estimates are made from."""
    lines = []
    for path, table in tables.items():
        device = _device_of_table(table)
        named = {name: " ".join(str(table.device.get(name)).split())[:60] for name in ("name", "cc", "sms")}
        counted = {"entries": len(table.entries), "not understood": len(table.skipped)}
        lines.append({"table": path.name, **named, "estimated as": device.name if device else "unknown", **counted})
    return pd.DataFrame(lines)


def _of_rows(last: pd.DataFrame) -> Iterator[tuple]:
    """Yield what `_cell` says of each row that can be estimated: of one in a graph if there is one, else eager."""
    timed = last[last["base"].isin(_PROVIDERS) & (last["n"] > 0) & last["mode"].isin(["eager", "graph"])]
    # Where ours falls back to torch's own GRU, that is among the rows by itself.
    torchs = timed["base"] == YARDSTICK
    timed = timed.assign(kernel=timed["kernel"].mask(torchs, "torch"))[torchs | timed["kernel"].isin(CONFIGS)]
    # Texts of different schemas may be the same configuration.
    timed["config"] = [config_of(*written) for written in zip(timed["kernel"], timed["config"])]
    # A kernel in a configuration is one cell, whoever asked for it.
    cell = [name for name in (*KEY, "kernel", "config") if name not in ("provider", "mode")]
    timed = timed.sort_values("mode", kind="stable").drop_duplicates(cell, keep="last")  # "graph" comes after "eager"
    for _, row in timed.iterrows():
        kernel, config, problem = row["kernel"], row["config"], problem_of_row(row)
        device = device_of(row["gpu_name"], row["sms"])
        if problem and device and (config or kernel == "torch"):
            source = "CSV" if row["l2"] != "cold" else "CSV, cold L2"  # the estimate is of a warm one
            yield _cell(kernel, source, problem, config, device, row["p50_ms"], row["mode"] == "graph")


def _of_entries(entries: list[tuple[Entry, Device | None]]) -> Iterator[tuple]:
    for entry, device in entries:
        if device and (problem := problem_of_key(entry.key)):
            for kernel, result in entry.results.items():
                yield _cell(kernel, "table", problem, result.config, device, result.ms, bool(result.graph_ms))


def _cell(
    kernel: str, source: str, problem: Problem, config: Config | None, device: Device, ms: float, in_graph: bool
) -> tuple:
    """Return `_CELL`, and the estimate over what was measured."""
    return kernel, _precision(problem), source, call_cost(problem, config, device, in_graph).total / (1e3 * ms)


def _precision(problem: Problem) -> str:
    """Return the precision as the report names it."""
    return f"fp32 {problem.precision}" if problem.dtype == torch.float32 else str(problem.dtype)[6:]


def _choice(entry: Entry, device: Device | None) -> tuple | None:
    """Return `_CHOICE`: which of the entry's kernels the model takes, each as the heuristic configures it.

    The choice is "as tuned" if the heuristic's own configuration was not timed. Then the tuned one's time stands for
    it. Return None if the model estimates none of the kernels.
    """
    problem = problem_of_key(entry.key)
    if problem is None or device is None:
        return None
    costs = {}
    for kernel in entry.results:
        config = None if kernel == "torch" else heuristic(kernel, problem, device)
        if not isinstance(config, str):
            costs[kernel] = call_cost(problem, config, device).total
    if not costs:
        return None
    chosen = min(costs, key=costs.get)
    fastest = min(entry.results, key=lambda kernel: entry.results[kernel].ms)
    result, best = entry.results[chosen], entry.results[fastest].ms
    as_tuned = chosen != "torch" and result.heuristic_ms is None
    loss = (result.heuristic_ms or result.ms) / best
    return _precision(problem), as_tuned, str(entry.key), device.name, chosen, fastest, loss
