"""One measurement is one row of a CSV in long format; speedups are derived from rows, never stored."""

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

SCHEMA = 5  # of the columns; a CSV of another schema is refused
BEGUN = "begun"  # the status of a row that says no more than that its case was begun
# Variants beside "reset_after".
STREAMING = "streaming"  # one frame a call, from the state that the call before has left
RESET_BEFORE = "reset_before"  # the reset gate before the recurrent product
# What a measurement is of; rows that agree in these are comparable, or one repeats the other.
KEY = (
    "gpu_name", "provider", "dtype", "precision", "T", "B", "I", "H", "layers", "directions", "layout", "variant",
    "mode", "l2",
)  # fmt: skip


@dataclass
class Row:
    """Times in milliseconds per call, of the GPU's work and the host's, or in mode "host" of the host's alone.

    ``precision`` is that of fp32 products, "ieee" or "tf32". ``status`` is "ok"; "noisy" (timed, but with a spread
    above timing.MAX_QUIET_SPREAD); or, without a time, "wrong" (further from float64 than it may be), "failed" or "unavailable"
    (see ``error``). ``samples_ms`` has the times of all rounds in their order. Rows of one case and run share rounds.
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
    samples_ms: str = ""  # the last, as it is long

    @property
    def base(self) -> str:
        """Return the provider without its mode."""
        return self.provider.removesuffix("+graph")


COLUMNS = [field.name for field in dataclasses.fields(Row)]


def environment(device: str) -> dict[str, object]:
    """Return what is the same for all rows of a run: machine, versions, revision."""
    sha, told = read_commit(), os.environ.get("GIT_SHA")
    # What is written here while measuring is not what is measured.
    dirty = "" if told or not sha else str(bool(read_output("git", "status", "--porcelain", "--", ":!perf/results")))
    machine = torch.backends.cpu.get_cpu_capability() + " CPU"
    emulated = find_device(torch.device("cpu"))
    here = {
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
        here |= {
            "gpu_name": properties.name,
            "cc": f"{properties.major}.{properties.minor}",
            "sms": str(properties.multi_processor_count),
            "driver": read_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda or "",
            "cudnn": str(torch.backends.cudnn.version()),
        }
    return here


def machine_name(device: str) -> str:
    """Return "cpu", or the GPU's name with dashes: for names of files."""
    return re.sub(r"[^A-Za-z0-9]+", "-", torch.cuda.get_device_name()) if device == "cuda" else "cpu"


def one_line(error: str) -> str:
    """Return an error as a row has it: a row is a line."""
    return " ".join(error.split())[:1000]


def config_text(config) -> str:
    """Return the JSON of a configuration's fields, and nothing for None."""
    return json.dumps(dataclasses.asdict(config)) if config else ""


class GrowingCsv:
    """A CSV that grows row by row, each written at once, so that a run that dies loses none it has made.

    Raises:
        ValueError: the file is there, and has other columns than those ``of`` names.
    """

    def __init__(self, path: pathlib.Path, columns: list[str], of: str):
        self.path, header = path, (",".join(columns) + "\r\n").encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_bytes() if path.exists() else b""
        if header.startswith(text):  # there is nothing yet, or not all of its first line
            path.write_bytes(header)
        elif text.startswith(header):
            os.truncate(path, text.rfind(b"\n") + 1)  # without a row whose writing was cut off
        else:
            raise ValueError(f"{path} has other columns than those of {of}: name another folder")

    def append(self, values: Iterable[object]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(values)


class TimingsCsv(GrowingCsv):
    """The CSV of a sweep, of this machine and others. Raises what `GrowingCsv` raises."""

    def __init__(self, path: pathlib.Path, device: str):
        super().__init__(path, COLUMNS, f"schema {SCHEMA}")
        self.environment = environment(device)

    def add(self, *rows: Row) -> None:
        for row in rows:
            about = self.environment | {"timestamp_utc": timestamp(), "error": one_line(row.error)}
            self.append(dataclasses.astuple(dataclasses.replace(row, **about)))

    def rows(self) -> list[dict[str, str]]:
        """Return the rows of this run and earlier ones."""
        return read(self.path.parent, self.path.name)

    def last_statuses(self) -> dict[tuple[str, ...], str]:
        """Return the last status of each `row_key` of which there is a row of this machine."""
        return statuses(row for row in self.rows() if row["gpu_name"] == self.environment["gpu_name"])


def add_times(row: Row, milliseconds: list[float]) -> Row:
    """Return the row with what was taken, round by round, and its quantiles."""
    times, each = quantiles(milliseconds), " ".join(f"{ms:.5g}" for ms in milliseconds)
    return dataclasses.replace(row, status=times.status, samples_ms=each, **times.columns())


def read(folder: pathlib.Path, pattern: str) -> list[dict[str, str]]:
    """Return the rows of all CSVs in the folder that match."""
    rows = []
    for path in sorted(folder.glob(pattern)):
        with path.open(newline="") as file:
            rows += csv.DictReader(file)
    return rows


def row_key(row: Row, key: tuple[str, ...] = KEY[1:]) -> tuple[str, ...]:
    """Return what ``row`` is a measurement of, on whatever machine."""
    return tuple(str(getattr(row, name)) for name in key)


def statuses(rows: Iterable[dict[str, str]], key: tuple[str, ...] = KEY[1:]) -> dict[tuple[str, ...], str]:
    """Return the last status of each `row_key` among rows of a CSV."""
    return {tuple(row[name] for name in key): row["status"] for row in rows}
