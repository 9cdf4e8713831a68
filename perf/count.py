"""Counts of the work of one time step, made by executing compiled PTX on a CPU. Counts are work, not time.

README.md explains the columns.
"""

import itertools
import pathlib
import time

import pandas as pd
import torch

from triton_gru.plan.device import KNOWN_DEVICES

from .case import Case
from .providers import OURS
from .providers.interface import Unavailable
from .record import GrowingCsv, environment, one_line
from .stamp import timestamp

CASE = ["device", "provider", "dtype", "precision", "H", "B"]
COUNTS = ["launches", "programs", "warps", "read", "read_w_hh", "written", "busiest", "matrix", "fma", "barriers"]
COUNTS += ["exchanges"]
COLUMNS = ["timestamp_utc", "git_sha", "git_dirty", "device", "triton", "provider", "version", "kernel", "config"]
COLUMNS += [*CASE[2:], *COUNTS, "max_abs_err", "status", "error"]
TITLE = "One time step as compiled for {}: work, counted in its PTX, not time. KB read, W_hh of them. x: theirs / ours."


def run(cases: list[Case], device: str, names: list[str], out: pathlib.Path, resume: bool, most: int) -> pd.DataFrame:
    """Count each case by each provider into a CSV in the folder ``out``. Return the last row of each case and provider.

    Args:
        names: the providers; empty for all.
        resume: skip cases that the CSV has a row of.
        most: the most instructions that a launch may execute.

    Raises:
        ValueError: the CSV has other columns, or a provider is unknown.
    """
    from tests.ptx.device import emulate_gpu  # an installed package has no tests
    from tests.ptx.providers import PROVIDERS, WrongResult

    if unknown := {*names} - {*PROVIDERS}:
        raise ValueError(f"cannot count {', '.join(sorted(unknown))}: choose from {', '.join(PROVIDERS)}")
    report = GrowingCsv(out / f"counts-{device.replace(' ', '-')}.csv", COLUMNS, "a count")
    done = load(report.path)[CASE].to_numpy().tolist() if resume else []
    machine, todo = environment("cpu"), list(itertools.product(cases, names or PROVIDERS))
    for number, (case, name) in enumerate(todo, 1):
        row = {column: getattr(case.row(name), column, "") for column in COLUMNS} | {"device": device}
        row |= {column: machine[column] for column in ("git_sha", "git_dirty", "triton")}
        if [str(row[column]) for column in CASE] in done:
            continue
        start = time.monotonic()
        torch.manual_seed(0)
        try:
            with emulate_gpu(KNOWN_DEVICES[device], seed=1) as gpu, case.pinned(), torch.no_grad():
                gpu.max_instructions = most
                step, columns = PROVIDERS[name](gpu, case)
            step.update({"read": step["received"], "exchanges": step["launches"]})  # `update` of a Counter adds
            row |= columns | {count: f"{step[count]:.10g}" for count in COUNTS}
        except (Unavailable, ImportError) as reason:
            row |= {"status": "unavailable", "error": str(reason)}
        except WrongResult as wrong:
            row |= {"status": "wrong", "max_abs_err": wrong.args[0]}
        except Exception as failure:
            row |= {"status": "failed", "error": f"{type(failure).__name__}: {failure}"}
        row |= {"timestamp_utc": timestamp(), "error": one_line(row["error"])}
        report.append(row[column] for column in COLUMNS)
        result = f"{row['busiest']} instructions" if row["status"] == "ok" else f"{row['status']} {row['error'][:60]}"
        shape = f"{case.precision} H={case.hidden} B={case.batch}"
        print(f"[{number}/{len(todo)}] {shape} {name}: {result}, {time.monotonic() - start:.1f} s", flush=True)
    return load(report.path).drop_duplicates(CASE, keep="last")


def load(path: pathlib.Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each row with counts, with ratios to the counts of ours for the same case."""
    rows = rows[rows["status"] == "ok"].astype(dict.fromkeys(["H", "B"], int) | dict.fromkeys(COUNTS, float))
    rows = rows.sort_values(["dtype", "precision", "H", "B"], kind="stable")
    shapes = pd.MultiIndex.from_frame(rows[CASE[2:]])
    ours = rows.set_index(CASE[2:])[rows["provider"].to_numpy() == OURS]
    case = rows["dtype"].map({"float16": "fp16", "bfloat16": "bf16"}).fillna(rows["precision"])
    case += " " + rows["H"].astype(str)
    shown = {"H, B": case + ", " + rows["B"].astype(str), "provider": rows["provider"]}
    shown |= {name: rows[name] for name in ("launches", "exchanges", "warps", "matrix", "barriers", "busiest")}
    shown |= {"KB": rows["read"] / 1024, "W_hh": rows["read_w_hh"] / 1024}
    shown |= {f"{x} x": rows[name] / shapes.map(ours[name]) for x, name in (("busiest", "busiest"), ("KB", "read"))}
    return pd.DataFrame(shown)
