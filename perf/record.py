"""One measurement is one row of a CSV in long format; speedups are derived from rows, never stored."""

import csv
import dataclasses
import datetime
import pathlib
import subprocess
import uuid
from dataclasses import dataclass
from importlib.metadata import version

import torch

import triton_gru

SCHEMA = 1


@dataclass
class Row:
    """Times in milliseconds per call. ``status`` is "ok", "wrong" (no time then) or "failed" (then see error)."""

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
    batch_first: bool = False
    packed: bool = False
    variant: str = "reset_after"
    mode: str = "eager"
    l2: str = ""
    n: int = 0
    p20_ms: float | str = ""
    p50_ms: float | str = ""
    p80_ms: float | str = ""
    rel_iqr: float | str = ""
    floor_ms: float | str = ""
    peak_mem_mb: float | str = ""
    max_abs_err: float | str = ""
    status: str = "ok"
    error: str = ""


def environment(device: str) -> dict[str, object]:
    """What is the same for all rows of a run: machine, versions, revision."""
    here = {
        "run_id": uuid.uuid4().hex[:12],
        "git_sha": _output("git", "rev-parse", "HEAD"),
        "git_dirty": str(bool(_output("git", "status", "--porcelain"))),
        "torch": torch.__version__,
        "triton": version("triton"),
        "triton_gru": triton_gru.__version__,
        "gpu_name": "none: " + torch.backends.cpu.get_cpu_capability() + " CPU",
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        here |= {
            "gpu_name": properties.name,
            "cc": f"{properties.major}.{properties.minor}",
            "sms": str(properties.multi_processor_count),
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda or "",
            "cudnn": str(torch.backends.cudnn.version()),
        }
    return here


def _output(*command: str) -> str:
    """What the command prints, nothing where there is no such command or it does not apply."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""


class Report:
    """A CSV that grows row by row, so that a run that dies loses none it has made."""

    def __init__(self, path: pathlib.Path, device: str):
        self.path = path
        self._environment = environment(device)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            self._write([field.name for field in dataclasses.fields(Row)])

    def add(self, row: Row) -> None:
        row = dataclasses.replace(
            row,
            **self._environment,
            timestamp_utc=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )
        self._write(dataclasses.astuple(row))

    def _write(self, values) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(values)
