"""``triton-gru info``: the kernels that run on this machine's GPUs, the tuned tables, and the next commands."""

import bisect
import functools
import platform
from collections import Counter

import torch
import triton

from .._version import __version__
from ..accuracy import PRECISIONS
from ..call.options import Options
from ..call.torch_state import fp32_precision
from ..plan.config import report_name
from ..plan.device import Device, list_gpus, no_device_reason
from ..plan.heuristic import HEURISTICS
from ..plan.planner import choose
from ..plan.tables import lookup
from ..plan.validity import too_old_reason
from ..units import format_bytes, format_count

# The rows of the printed table.
_HIDDEN_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
# The columns of that table: title -> (dtype, batch size, steps).
_CALLS = {
    "fp16 B=1": (torch.float16, 1, 100),
    "fp16 B=64": (torch.float16, 64, 100),
    "fp32 B=1": (torch.float32, 1, 100),
    "fp32 B=64": (torch.float32, 64, 100),
    "one step": (torch.float16, 1, 1),
}
_LARGEST = 4096  # hidden units; a kernel that serves this many is reported as serving any


def add_parser(commands) -> None:
    """Add ``info`` to the commands of the main parser."""
    commands.add_parser("info", help="show which kernels run on this machine's GPUs, what is tuned, and next commands")


def run(options) -> int:
    """Print the report. Return 0, or 1 if TRITON_GRU_MAX_SMS is not a number above 0."""
    python = ".".join(platform.python_version_tuple()[:2])
    versions = f"torch {torch.__version__}, Triton {triton.__version__}, Python {python}, {platform.system()}"
    print(f"triton-gru {__version__} ({versions})")
    try:
        devices = Counter(list_gpus())
    except ValueError as error:  # TRITON_GRU_MAX_SMS
        print(f"\n{error}")
        return 1
    for device, number in devices.items():
        print(f"\n{_describe_device(device, number)}")
        reason = too_old_reason(device)
        print(f"No kernel runs on this GPU: each kernel {reason}." if reason else _describe_service(device))
    served = [device for device in devices if not too_old_reason(device)]
    if not devices:
        print(f"\nNo kernel runs here: {no_device_reason()}.")
    if not served:
        print("triton_gru.accelerate(model) works here, and every call goes to nn.GRU, as fast as before.")
    print("\nNext")
    for purpose, command in _next_steps(served):
        print(f"  {purpose:26}  triton-gru {command}")
    return 0


def _describe_device(device: Device, number: int) -> str:
    name = device.name if number == 1 else f"{number} x {device.name}"
    memory = format_bytes(device.shared_memory)
    return f"{name}: {device.arch}, {device.sms} multiprocessors, {memory} of shared memory each"


def _describe_service(device: Device) -> str:
    """Return lines about the implementations that serve calls on a device, the kernels' limits, and tuned tables."""
    rows = [["H", *_CALLS]]
    for hidden in _HIDDEN_SIZES:
        problems = (Options(hidden, hidden).to_problem(steps, batch, dtype) for dtype, batch, steps in _CALLS.values())
        rows.append([str(hidden), *(report_name(choose(problem, device).implementation) for problem in problems)])
    precision = "TF32" if fp32_precision() == "tf32" else "ieee"
    sizes = "; ".join(f"{kernel} {_largest_sizes(kernel, device)}" for kernel in HEURISTICS)
    setting = "torch.backends.cudnn.rnn.fp32_precision"
    lines = [
        "",
        "The implementation that serves a GRU in eval(): 100 steps; last column: one step (GRUCell, stream), fp16, B=1",
        *(f"  {row[0]:6}" + "".join(f"{cell:14}" for cell in row[1:]).rstrip() for row in rows),
        f"fp32 is {precision} here ({setting}). Training and float64 go to nn.GRU.",
        f"Largest H in 16 bits, TF32, ieee: {sizes}.",
        "",
        *_describe_tables(device),
    ]
    return "\n".join(lines)


def _largest_sizes(kernel: str, device: Device) -> str:
    """Return the largest hidden sizes that a kernel serves in fp16, TF32 and ieee."""
    largest = []
    for precision in ("fp16", "tf32", "fp32"):
        is_unsupported = functools.partial(_is_unsupported, kernel, device, *PRECISIONS[precision])
        largest.append(bisect.bisect(range(1, _LARGEST + 1), False, key=is_unsupported))
    return "any" if set(largest) == {_LARGEST} else ", ".join(map(str, largest))


def _is_unsupported(kernel: str, device: Device, dtype: torch.dtype, precision: str, hidden_size: int) -> bool:
    return isinstance(HEURISTICS[kernel](hidden_size, 1, 1, dtype, precision, device), str)


def _describe_tables(device: Device) -> list[str]:
    """Return lines about the tuned tables of a device, in the order in which plans read them."""
    lines = []
    for source in filter(lambda source: source.entries, lookup.sources(device)):
        stale = [entry.stale_reason for entry in source.entries if entry.stale_reason]
        stale_text = f", {len(stale)} of them stale ({stale[0]})" if stale else ""
        lines.append(f"Tuned: {source.name}: {format_count(len(source.entries), 'shape')}{stale_text}")
    return [*lines, "All other shapes are estimated." if lines else "Tuned: no shape yet. All shapes are estimated."]


def _next_steps(devices: list[Device]) -> list[tuple[str, str]]:
    """Return pairs of a purpose and the command for it. Kernels run on all of ``devices``."""
    explain = "explain --hidden 512 --batch 16 --dtype fp16"
    if not devices:
        return [
            ("show a plan for an H200", f"{explain} --device H200"),
            ("list the shapes to tune", "tune --list --device H200"),
        ]
    tuned = [
        [entry for source in lookup.sources(device) if source.is_from_user for entry in source.entries]
        for device in devices
    ]
    steps = [("check the results", "check")]
    if not all(tuned):
        steps.append(("tune", "tune --budget 10m"))
    elif any(entry.stale_reason for entries in tuned for entry in entries):
        steps.append(("tune stale shapes again", "tune --budget 10m"))
    steps.append(("show the plan of a GRU", explain))
    if any(tuned):
        steps.append(("show tuned shapes", "table show"))
    return [(f"{number}. {purpose}", command) for number, (purpose, command) in enumerate(steps, 1)]
