"""Rows of timings: a measurement is a row of a CSV. Speedups are computed from rows, and never stored."""

import csv
import dataclasses
import json
import os
import pathlib
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version

import torch

import triton_gru
from triton_gru.plan.device import find_device
from triton_gru.tuning.timing import quantiles

from .stamp import read_commit, read_output, timestamp

SCHEMA = 5  # version of the columns; a CSV of another version is rejected
BEGUN = "begun"  # the status of a row that only records that its case was begun
# Variants other than "reset_after".
STREAMING = "streaming"  # one frame a call, from the state that the previous call left
RESET_BEFORE = "reset_before"  # the reset gate before the recurrent product
# The columns that identify a measurement. Rows that agree in all of them repeat each other.
KEY = (
    "gpu_name", "provider", "dtype", "precision", "T", "B", "I", "H", "layers", "directions", "layout", "variant",
    "mode", "l2",
)  # fmt: skip


@dataclass
class Row:
    """A measurement: one provider on one case in one mode, with the milliseconds of a call.

    A time covers the GPU and the host. Exception: in mode "host" it covers the host alone. ``precision``, "ieee" or
    "tf32", is the precision of fp32 products. It is "" in 16 bits. ``samples_ms`` has the times of all rounds in their
    order. Rows of one case and run were timed in the same rounds, so their samples can be paired. ``status`` is one of
    these:

    - "ok", or "noisy" if the spread of the times is above timing.MAX_QUIET_SPREAD;
    - without times: "wrong" if the results are too far from float64, "failed", or "unavailable" (see ``error``);
    - "begun" in a row that only records that its case was begun.
    """

    schema: int = SCHEMA
    run_id: str = ""
    timestamp_utc: str = ""
    git_sha: str = ""
    git_dirty: str = ""
    gpu_name: str = ""
    cc: str = ""
    sms: str = ""
    driver: str = ""
    cuda: str = ""
    cudnn: str = ""
    torch: str = ""
    triton: str = ""
    triton_gru: str = ""
    provider: str = ""
    kernel: str = ""
    config: str = ""
    config_source: str = ""
    dtype: str = ""
    precision: str = ""
    T: int = 0
    B: int = 0
    I: int = 0
    H: int = 0
    layers: int = 1
    directions: int = 1
    layout: str = "dense"
    variant: str = "reset_after"
    mode: str = "eager"
    l2: str = ""
    n: int = 0
    p20_ms: float | str = ""
    p50_ms: float | str = ""
    p80_ms: float | str = ""
    p99_ms: float | str = ""
    rel_iqr: float | str = ""
    floor_ms: float | str = ""
    peak_mem_mb: float | str = ""
    max_abs_err: float | str = ""
    status: str = "ok"
    error: str = ""
    samples_ms: str = ""  # the last column, because it is long

    @property
    def provider_name(self) -> str:
        """Return ``provider`` without the suffix "+graph", which the rows of the mode "graph" have."""
        return self.provider.removesuffix("+graph")


COLUMNS = [field.name for field in dataclasses.fields(Row)]


def environment(device: str) -> dict[str, object]:
    """Return the columns that are the same for all rows of a run, by name: run, machine, versions and commit."""
    sha, given_sha = read_commit(), os.environ.get("GIT_SHA")
    # Results are written during a run, and do not make the measured code dirty.
    dirty = (
        "" if given_sha or not sha else str(bool(read_output("git", "status", "--porcelain", "--", ":!perf/results")))
    )
    machine = torch.backends.cpu.get_cpu_capability() + " CPU"
    emulated = find_device(torch.device("cpu"))
    columns = {
        "run_id": uuid.uuid4().hex[:12],
        "git_sha": sha,
        "git_dirty": dirty,
        "torch": torch.__version__,
        "triton": version("triton"),
        "triton_gru": triton_gru.__version__,
        "gpu_name": "none: " + (f"emulated {emulated.name} on " if emulated else "") + machine,
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        columns |= {
            "gpu_name": properties.name,
            "cc": f"{properties.major}.{properties.minor}",
            "sms": str(properties.multi_processor_count),
            "driver": read_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda or "",
            "cudnn": str(torch.backends.cudnn.version()),
        }
    return columns


def machine_name(device: str) -> str:
    """Return the machine's name for use in file names: "cpu", or the GPU's name with dashes."""
    return re.sub(r"[^A-Za-z0-9]+", "-", torch.cuda.get_device_name()) if device == "cuda" else "cpu"


def one_line(error: str) -> str:
    """Return an error's text as one line of at most 1000 characters, because each row of a CSV is a line."""
    return " ".join(error.split())[:1000]


def config_text(config) -> str:
    """Return the JSON of the fields of a kernel's configuration (a dataclass), or "" for None."""
    return json.dumps(dataclasses.asdict(config)) if config else ""


class GrowingCsv:
    """A CSV to which each row is written at once, so that a run that dies loses no finished row.

    Args:
        path: the file. It and its folder are made if they are missing.
        columns: the names of the columns.
        columns_name: what the columns belong to, such as "schema 5". It appears in the error message.

    Raises:
        ValueError: the file exists with other columns than ``columns``.
    """

    def __init__(self, path: pathlib.Path, columns: list[str], columns_name: str):
        self.path, header = path, (",".join(columns) + "\r\n").encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_bytes() if path.exists() else b""
        if header.startswith(text):  # the file is missing, empty, or has a part of the first line
            path.write_bytes(header)
        elif text.startswith(header):
            os.truncate(path, text.rfind(b"\n") + 1)  # drop a row whose writing was interrupted
        else:
            raise ValueError(
                f"{path} has other columns than those of {columns_name}: choose another folder, or move the file"
            )

    def append(self, values: Iterable[object]) -> None:
        """Write a row with these values, and close the file, so that the row is not lost if the process dies."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(values)


class TimingsCsv(GrowingCsv):
    """The CSV of a sweep or of the floors, which may have rows of several machines. Raises what `GrowingCsv` raises."""

    def __init__(self, path: pathlib.Path, device: str):
        super().__init__(path, COLUMNS, f"schema {SCHEMA}")
        self.environment = environment(device)

    def add(self, *rows: Row) -> None:
        """Append the rows, with the columns of `environment` and the current time filled in."""
        for row in rows:
            shared_columns = self.environment | {"timestamp_utc": timestamp(), "error": one_line(row.error)}
            self.append(dataclasses.astuple(dataclasses.replace(row, **shared_columns)))

    def rows(self) -> list[dict[str, str]]:
        """Return all rows of the file, of this run and of earlier runs."""
        return read(self.path.parent, self.path.name)

    def own_rows(self) -> list[dict[str, str]]:
        """Return all rows of this machine."""
        return [row for row in self.rows() if row["gpu_name"] == self.environment["gpu_name"]]

    def last_statuses(self, since: str = "") -> dict[tuple[str, ...], str]:
        """Return the last status of each `row_key` among this machine's rows of the time ``since`` or later."""
        return statuses(row for row in self.own_rows() if row["timestamp_utc"] >= since)


def add_times(row: Row, milliseconds: list[float]) -> Row:
    """Return a copy of the row with the times of all rounds and their quantiles.

    Its status is "ok" or "noisy", by the spread of the times.
    """
    times, samples_ms = quantiles(milliseconds), " ".join(f"{ms:.5g}" for ms in milliseconds)
    return dataclasses.replace(row, status=times.status, samples_ms=samples_ms, **times.columns())


def read(folder: pathlib.Path, pattern: str) -> list[dict[str, str]]:
    """Return the rows of all CSVs in the folder whose names match the glob ``pattern``."""
    rows = []
    for path in sorted(folder.glob(pattern)):
        with path.open(newline="") as file:
            rows += csv.DictReader(file)
    return rows


def row_key(row: Row, key: tuple[str, ...] = KEY[1:]) -> tuple[str, ...]:
    """Return the values of the columns ``key`` as text, as a CSV has them.

    With the default ``key``, these values identify the measurement of ``row`` on one machine.
    """
    return tuple(str(getattr(row, name)) for name in key)


def statuses(rows: Iterable[dict[str, str]], key: tuple[str, ...] = KEY[1:]) -> dict[tuple[str, ...], str]:
    """Return the last status of each `row_key` among ``rows``, which were read from CSVs."""
    return {tuple(row[name] for name in key): row["status"] for row in rows}
