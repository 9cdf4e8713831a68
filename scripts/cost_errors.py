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
from triton_gru.plan.config import Config, Projection, ProjectionConfig, split_implementation
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
# The columns of the tables of losses and of errors: title -> how pandas computes it for a group.
_LOSSES = {"entries": "size", "geomean": geomean, "median": "median", "max": "max"}
_ERRORS = {
    "cases": "size",
    "estimate over measured": geomean,
    "median off by": lambda ratios: np.exp(np.log(ratios).abs().median()),
    "at most off by": lambda ratios: np.exp(np.log(ratios).abs().max()),
}
# A case is a timed implementation in a configuration, for one problem. Cases are grouped by the columns `_GROUP`. The
# columns `_ARGUMENTS` are the arguments of `estimate_call_cost`.
_GROUP = ["kernel", "precision", "source"]
_ARGUMENTS = ["problem", "config", "device", "in_graph", "projection"]
_MAX_LOSS = 1.15  # a choice is within 15 % if it takes at most this many times as long as the fastest
_WORST = 10  # choices that the report lists


def main(arguments: list[str] | None = None) -> int:
    """Print the report's tables, and return 0. Return 2 if a file cannot be read, or a .json file is no tuned table.

    Of the other files, those that are no CSVs of sweeps are skipped. Return 2 if all of them are skipped.
    """
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
    filled = [(title, table) for title, table in build_sections(report.keep_latest(rows), tables) if len(table)]
    print(join_tables(filled, options.markdown) or "the files have no time that the cost model estimates")
    return 0


def load(paths: list[pathlib.Path]) -> Tables:
    """Return the tuned tables in files. Raise ValueError if a file is not a tuned table."""
    tables = {}
    for path in paths:
        try:
            tables[path] = store.load(path)
        except store.UnusableTableError as error:
            raise ValueError(f"{path} is not a tuned table: {error}") from None
    return tables


def build_sections(latest_rows: pd.DataFrame, tables: Tables) -> list[tuple[str, pd.DataFrame]]:
    """Return the report as (title, table) pairs, from the latest rows of CSVs and from tuned tables.

    A table is empty if the files have no data for it.
    """
    cases = pd.concat([_list_cases_of_tables(tables), _list_cases_of_rows(latest_rows)], ignore_index=True)
    cases = cases.astype({"ms": float, "heuristic_ms": float})  # needed if there are no cases
    heuristic_losses = cases.assign(loss=cases["heuristic_ms"] / cases["ms"]).dropna(subset="loss")
    # An estimate needs a problem that a kernel serves, a device with known rates, and a configuration
    # (nn.GRU has none).
    is_configured = cases["config"].notna() | (cases["kernel"] == "torch")
    estimable = cases[is_configured].dropna(subset=["problem", "device"])
    estimated_us = [
        estimate_call_cost(*arguments).total for arguments in zip(*(estimable[name] for name in _ARGUMENTS))
    ]
    ratios = estimable.assign(ratio=estimated_us / (1e3 * estimable["ms"])).sort_values(_GROUP)
    choices = _choose_by_estimate(estimable.dropna(subset="entry"))
    is_fastest = choices["chosen"] == choices["fastest"]
    worst = choices[~is_fastest].sort_values("loss", ascending=False, kind="stable").head(_WORST)
    flags = {"is fastest": is_fastest, "timed as tuned": choices["timed as tuned"]}
    return [
        ("Tuned tables", _describe_tables(tables)),
        ("The cost model against measurement", summarize_groups(ratios, _GROUP, "ratio", _ERRORS)),
        (
            "Which kernel: the heuristic's choice against the fastest measured",
            _summarize_losses(choices, "precision", **flags),
        ),
        (f"The worst {_WORST} choices of a kernel", worst[["problem", "device", "chosen", "fastest", "loss"]]),
        ("Heuristic over tuned", _summarize_losses(heuristic_losses, "kernel")),
    ]


def _summarize_losses(table: pd.DataFrame, by: str, **flags: pd.Series) -> pd.DataFrame:
    """Return statistics of the column "loss" for each value of the column ``by``.

    A loss is a time over the time of the best choice. The result also counts the rows for which a flag is true.
    """
    flags = {"within 15 %": table["loss"] <= _MAX_LOSS} | flags
    return summarize_groups(table.sort_values(by), [by], "loss", _LOSSES, **flags)


def problem_of_key(key: Key) -> Problem | None:
    """Return the problem of a key, or None if no kernel serves the problem."""
    try:
        return key.to_problem()
    except ValueError:
        return None


def problem_of_row(row: pd.Series) -> Problem | None:
    """Return the problem of a row of `report.load`, or None if no kernel serves it.

    Return None also for streams, for ``reset_after=False`` and for whole models.
    """
    if row["variant"] != Row.variant:
        return None
    precision = "tf32" if row["precision"] == "fp32 tf32" else "ieee"
    sizes = row[["H", "I", "B", "T", "layers", "directions", "dtype"]]
    return problem_of_key(Key(*sizes, precision, True, row["layout"]))


def device_of(name: str, sms: str) -> Device | None:
    """Return the known device of a row of `report.load`, or None. The row's ``sms`` may be empty."""
    return match_device(name, int(sms) if sms else None)


def _device_of_table(table: store.Table) -> Device | None:
    """Return the known device that a tuned table was measured on, or None."""
    return match_device(table.device["name"], table.device["sms"])


def configs_of(implementation: str, text: str) -> tuple[Config | None, Projection | None]:
    """Return the kernel's configuration and the projection of a row, from the text of `describe_plan` in perf/.

    The text is the configuration in JSON. With a measured tile of our own projection, that of the tile follows. Both
    are None for nn.GRU, and if the text is anything else.
    """
    if implementation == "torch":
        return None, None
    kernel, projection = split_implementation(implementation)
    try:
        raw_config, end = json.JSONDecoder().raw_decode(text)
        config = entries.parse_config(kernel, raw_config)
        return config, _parse_tile(json.loads(text[end:])) if text[end:] else projection
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None, None


def _parse_tile(raw: dict) -> ProjectionConfig:
    """Return a tile of our own projection from JSON.

    Raises:
        ValueError, TypeError, AttributeError: ``raw`` is not the mapping of a tile's fields to sizes.
    """
    if not all(type(size) is int and 0 < size < 1 << 31 for size in raw.values()):
        raise ValueError(f"a tile must have whole numbers from 1, got {raw}")
    return ProjectionConfig(**raw)


def _describe_tables(tables: Tables) -> pd.DataFrame:
    """Return a line for each tuned table, with the known device whose rates the estimates use."""
    lines = []
    for path, table in tables.items():
        # A file may have any text here. Limit it to one short line.
        recorded = {name: " ".join(str(table.device.get(name)).split())[:60] for name in ("name", "cc", "sms")}
        estimated_as = getattr(_device_of_table(table), "name", "unknown")
        numbers = {"entries": len(table.entries), "not understood": len(table.skipped)}
        lines.append({"table": path.name, **recorded, "estimated as": estimated_as, **numbers})
    return pd.DataFrame(lines)


def _list_cases_of_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the cases of CSV rows. The time of a case is that in a CUDA graph, or else the eager one."""
    is_nn_gru = rows["base"] == BASELINE
    is_timed = rows["base"].isin(_PROVIDERS) & (rows["n"] > 0) & rows["mode"].isin(["eager", "graph"])
    # Rows of ours that fell back to nn.GRU are left out, because nn.GRU has separate rows.
    timed = rows[is_timed & (is_nn_gru | rows["kernel"].isin(IMPLEMENTATIONS))]
    timed = timed.assign(kernel=timed["kernel"].mask(is_nn_gru, "torch"), ms=timed["p50_ms"])
    configs = [*map(configs_of, timed["kernel"], timed["config"])]
    timed["config"], timed["projection"] = zip(*configs) if configs else ([], [])
    # Several providers may run the same kernel in the same configuration. That is one case.
    case_columns = [name for name in (*KEY, "kernel", "config", "projection") if name not in ("provider", "mode")]
    timed = timed.sort_values("mode", kind="stable")  # "eager" before "graph"
    timed = timed.drop_duplicates(case_columns, keep="last")
    cases = timed.assign(
        source=np.where(timed["l2"] == "cold", "CSV, cold L2", "CSV"),  # estimates are for a warm L2
        problem=[problem_of_row(row) for _, row in timed.iterrows()],
        device=[*map(device_of, timed["gpu_name"], timed["sms"])],
        in_graph=timed["mode"] == "graph",
    )
    return cases[[*_GROUP, *_ARGUMENTS, "ms"]]


def _list_cases_of_tables(tables: Tables) -> pd.DataFrame:
    """Return the cases of tables' entries. If two entries have the same device and key, the last one is used.

    Cases of the same entry have the same number in the column "entry".
    """
    last = {(str(table.device), entry.key): (entry, table) for table in tables.values() for entry in table.entries}
    cases = [
        (implementation, f"fp32 {key.precision}" if key.dtype == "float32" else key.dtype, "table",
         problem_of_key(key), result.config, _device_of_table(table), bool(result.graph_ms),
         split_implementation(implementation)[1] or result.tile, result.ms, result.heuristic_ms, number, str(key))
        for number, ((_, key), (entry, table)) in enumerate(last.items())
        for implementation, result in entry.results.items()
    ]  # fmt: skip
    return pd.DataFrame(cases, columns=[*_GROUP, *_ARGUMENTS, "ms", "heuristic_ms", "entry", "key"])


def _choose_by_estimate(cases: pd.DataFrame) -> pd.DataFrame:
    """Return for each entry the implementation with the lowest estimate, in the heuristic's configuration.

    The column "loss" is the measured time of this implementation over that of the fastest one. The column "timed as
    tuned" is True if the heuristic's configuration was not timed. Then the time of the tuned configuration is used. An
    entry without any estimate is left out.
    """
    estimated_us = []
    for implementation, problem, device in cases[["kernel", "problem", "device"]].itertuples(index=False):
        kernel, projection = split_implementation(implementation)
        config = None if kernel == "torch" else heuristic(kernel, problem, device)
        is_served = not isinstance(config, str)
        cost = estimate_call_cost(problem, config, device, projection=projection).total if is_served else np.nan
        estimated_us.append(cost)
    fastest = cases.sort_values("ms", kind="stable").groupby("entry")[["kernel", "ms"]].transform("first")
    cases = cases.assign(estimated_us=estimated_us, fastest=fastest["kernel"], fastest_ms=fastest["ms"])
    chosen = cases.dropna(subset="estimated_us").sort_values(["entry", "estimated_us"]).drop_duplicates("entry")
    return pd.DataFrame({
        "precision": chosen["precision"], "problem": chosen["key"],
        "device": [device.name for device in chosen["device"]],
        "chosen": chosen["kernel"], "fastest": chosen["fastest"],
        "loss": chosen["heuristic_ms"].fillna(chosen["ms"]) / chosen["fastest_ms"],
        "timed as tuned": (chosen["kernel"] != "torch") & chosen["heuristic_ms"].isna(),
    })  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
