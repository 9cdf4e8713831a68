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

SHAPE_COLUMNS = ["dtype", "precision", "H", "B"]
KEY_COLUMNS = ["device", "provider", *SHAPE_COLUMNS]  # rows that agree in all of these repeat each other
COUNTS = ["launches", "programs", "warps", "read", "read_w_hh", "written", "busiest", "matrix", "fma", "barriers"]
COUNTS += ["exchanges"]
COLUMNS = ["timestamp_utc", "git_sha", "git_dirty", "device", "triton", "provider", "version", "kernel", "config"]
COLUMNS += [*SHAPE_COLUMNS, *COUNTS, "max_abs_err", "status", "error"]
_PRINTED_ERROR_LENGTH = 60  # characters of an error in the progress output. The CSV has more.
TITLE = "One time step as compiled for {}: work, counted in its PTX, not time. KB read, W_hh of them. x: theirs / ours."


def run(
    cases: list[Case], device: str, names: list[str], out: pathlib.Path, resume: bool, max_instructions: int
) -> pd.DataFrame:
    """Count the work of each provider on each case, and write it to a CSV in the folder ``out``.

    A provider that cannot be counted has a row with the reason. Return the CSV's last row of each case and provider,
    also of earlier runs.

    Args:
        device: the name of the GPU to compile for, a key of `KNOWN_DEVICES`.
        names: the providers; empty for all.
        resume: skip each pair of a case and a provider that has a row in the CSV.
        max_instructions: a launch that executes more fails. Exception: of ours, the check by a whole call is left out.

    Raises:
        ValueError: the CSV has other columns, or a provider is unknown.
    """
    from tests.ptx.device import emulate_gpu  # an installed package has no tests
    from tests.ptx.providers import PROVIDERS, WrongResult

    if unknown := {*names} - {*PROVIDERS}:
        raise ValueError(f"cannot count {', '.join(sorted(unknown))}: choose from {', '.join(PROVIDERS)}")
    report = GrowingCsv(out / f"counts-{device.replace(' ', '-')}.csv", COLUMNS, "a count")
    done = load(report.path)[KEY_COLUMNS].to_numpy().tolist() if resume else []
    machine, todo = environment("cpu"), list(itertools.product(cases, names or PROVIDERS))
    for number, (case, name) in enumerate(todo, 1):
        row = {column: getattr(case.make_row(name), column, "") for column in COLUMNS} | {"device": device}
        row |= {column: machine[column] for column in ("git_sha", "git_dirty", "triton")}
        if [str(row[column]) for column in KEY_COLUMNS] in done:
            continue
        start = time.monotonic()
        torch.manual_seed(0)
        try:
            with emulate_gpu(KNOWN_DEVICES[device], seed=1) as gpu, case.pin_precision(), torch.no_grad():
                gpu.max_instructions = max_instructions
                step, columns = PROVIDERS[name](gpu, case)
            # `Counter.update` adds to the counts. A step's own launch is an exchange, too.
            step.update({"read": step["received"], "exchanges": step["launches"]})
            row |= columns | {count: f"{step[count]:.10g}" for count in COUNTS}
        except (Unavailable, ImportError) as reason:
            row |= {"status": "unavailable", "error": str(reason)}
        except WrongResult as wrong:
            row |= {"status": "wrong", "max_abs_err": wrong.args[0]}
        except Exception as failure:
            row |= {"status": "failed", "error": f"{type(failure).__name__}: {failure}"}
        row |= {"timestamp_utc": timestamp(), "error": one_line(row["error"])}
        report.append(row[column] for column in COLUMNS)
        result = (
            f"{row['busiest']} instructions"
            if row["status"] == "ok"
            else f"{row['status']} {row['error'][:_PRINTED_ERROR_LENGTH]}"
        )
        shape = f"{case.precision} H={case.hidden} B={case.batch}"
        print(f"[{number}/{len(todo)}] {shape} {name}: {result}, {time.monotonic() - start:.1f} s", flush=True)
    return load(report.path).drop_duplicates(KEY_COLUMNS, keep="last")


def load(path: pathlib.Path) -> pd.DataFrame:
    """Return the rows of a CSV of counts, with every value as text."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def tabulate_counts(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the table to print: a line for each row with the status "ok", sorted by shape.

    KB are 1024 bytes. The last two columns, "busiest x" and "KB x", are ratios to our counts for the same shape. They
    are NaN if ours was not counted at this shape.
    """
    rows = rows[rows["status"] == "ok"].astype(dict.fromkeys(["H", "B"], int) | dict.fromkeys(COUNTS, float))
    rows = rows.sort_values(SHAPE_COLUMNS, kind="stable")
    our_counts = rows.set_index(SHAPE_COLUMNS)[rows["provider"].to_numpy() == OURS]
    shape_of_row = pd.MultiIndex.from_frame(rows[SHAPE_COLUMNS])
    precision = rows["dtype"].map({"float16": "fp16", "bfloat16": "bf16"}).fillna(rows["precision"])
    shape_text = precision + " " + rows["H"].astype(str) + ", " + rows["B"].astype(str)
    columns = {"H, B": shape_text, "provider": rows["provider"]}
    columns |= {name: rows[name] for name in ("launches", "exchanges", "warps", "matrix", "barriers", "busiest")}
    columns |= {"KB": rows["read"] / 1024, "W_hh": rows["read_w_hh"] / 1024}
    columns["busiest x"] = rows["busiest"] / shape_of_row.map(our_counts["busiest"])
    columns["KB x"] = rows["read"] / shape_of_row.map(our_counts["read"])
    return pd.DataFrame(columns)
