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
from ..plan.config import format_implementation
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
_LARGEST_CHECKED = 4096  # hidden size; the report says "any" of a kernel that serves this size in all precisions


def add_parser(commands) -> None:
    """Add ``info`` to the commands of the main parser."""
    commands.add_parser("info", help="show which kernels run on this machine's GPUs, what is tuned, and next commands")


def run(options) -> int:
    """Print the report. Return 0, or 1 if TRITON_GRU_MAX_SMS is not a whole number above 0 and there is a GPU."""
    python = ".".join(platform.python_version_tuple()[:2])
    versions = f"torch {torch.__version__}, Triton {triton.__version__}, Python {python}, {platform.system()}"
    print(f"triton-gru {__version__} ({versions})")
    try:
        devices = Counter(list_gpus())
    except ValueError as error:  # TRITON_GRU_MAX_SMS
        print(f"\n{error}")
        return 1
    for device, count in devices.items():
        print(f"\n{_describe_device(device, count)}")
        reason = too_old_reason(device)
        print(f"No kernel runs on this GPU: each kernel {reason}." if reason else _describe_implementations(device))
    served = [device for device in devices if not too_old_reason(device)]
    if not devices:
        print(f"\nNo kernel runs here: {no_device_reason()}.")
    if not served:
        print("triton_gru.accelerate(model) works here, and every call goes to nn.GRU, as fast as before.")
    print("\nNext")
    for purpose, command in _list_next_steps(served):
        print(f"  {purpose:26}  triton-gru {command}")
    return 0


def _describe_device(device: Device, count: int) -> str:
    """Return a line on ``count`` GPUs of the same kind."""
    name = device.name if count == 1 else f"{count} x {device.name}"
    memory = format_bytes(device.shared_memory)
    return f"{name}: {device.arch}, {device.sms} multiprocessors, {memory} of shared memory each"


def _describe_implementations(device: Device) -> str:
    """Return the report on a device: a table of the implementation that serves each hidden size in each of `_CALLS`.

    The precision of fp32, the largest hidden sizes of the kernels and the tuned tables follow.
    """
    rows = [["H", *_CALLS]]
    for hidden_size in _HIDDEN_SIZES:
        options = Options(hidden_size, hidden_size)
        problems = (options.to_problem(steps, batch, dtype) for dtype, batch, steps in _CALLS.values())
        names = (format_implementation(choose(problem, device).implementation) for problem in problems)
        rows.append([str(hidden_size), *names])
    precision = "TF32" if fp32_precision() == "tf32" else "ieee"
    sizes = "; ".join(f"{kernel} {_largest_sizes(kernel, device)}" for kernel in HEURISTICS)
    setting = "torch.backends.cudnn.rnn.fp32_precision"
    lines = [
        "",
        "The implementation that serves a GRU in eval(): 100 steps; last column: one step (GRUCell, stream), fp16, B=1",
        *(f"  {title:6}" + "".join(f"{name:14}" for name in names).rstrip() for title, *names in rows),
        f"fp32 is {precision} here ({setting}). Training and float64 go to nn.GRU.",
        f"Largest H in 16 bits, TF32, ieee: {sizes}.",
        "",
        *_describe_tables(device),
    ]
    return "\n".join(lines)


def _largest_sizes(kernel: str, device: Device) -> str:
    """Return the largest hidden sizes that a kernel serves in fp16, TF32 and ieee, or "any".

    Sizes above `_LARGEST_CHECKED` are not tried. If all three reach it, the text is "any".
    """
    largest = []
    for precision in ("fp16", "tf32", "fp32"):
        # Kernels serve all hidden sizes up to a limit, so `bisect` finds the limit.
        is_unsupported = functools.partial(_is_unsupported, kernel, device, *PRECISIONS[precision])
        largest.append(bisect.bisect(range(1, _LARGEST_CHECKED + 1), False, key=is_unsupported))
    return "any" if set(largest) == {_LARGEST_CHECKED} else ", ".join(map(str, largest))


def _is_unsupported(kernel: str, device: Device, dtype: torch.dtype, precision: str, hidden_size: int) -> bool:
    """Return whether a kernel cannot serve one direction and B = 1 at a hidden size."""
    config_or_reason = HEURISTICS[kernel](hidden_size, 1, 1, dtype, precision, device)
    return isinstance(config_or_reason, str)


def _describe_tables(device: Device) -> list[str]:
    """Return lines about the tuned tables of a device, in the order in which plans read them, and about the rest.

    Tables without entries are left out.
    """
    lines = []
    for source in lookup.sources(device):
        if not source.entries:
            continue
        stale_reasons = [entry.stale_reason for entry in source.entries if entry.stale_reason]
        stale_text = f", {len(stale_reasons)} of them stale ({stale_reasons[0]})" if stale_reasons else ""
        lines.append(f"Tuned: {source.name}: {format_count(len(source.entries), 'shape')}{stale_text}")
    return [*lines, "All other shapes are estimated." if lines else "Tuned: no shape yet. All shapes are estimated."]


def _list_next_steps(devices: list[Device]) -> list[tuple[str, str]]:
    """Return pairs of a purpose and a command. ``devices`` are this machine's GPUs on which kernels run."""
    explain = "explain --hidden 512 --batch 16 --dtype fp16"
    if not devices:
        return [
            ("show a plan for an H200", f"{explain} --device H200"),
            ("list the shapes to tune", "tune --list --device H200"),
        ]
    entries_by_device = [
        [entry for source in lookup.sources(device) if source.is_from_user for entry in source.entries]
        for device in devices
    ]
    steps = [("check the results", "check")]
    if not all(entries_by_device):
        steps.append(("tune", "tune --budget 10m"))
    elif any(entry.stale_reason for entries in entries_by_device for entry in entries):
        steps.append(("tune stale shapes again", "tune --budget 10m"))
    steps.append(("show the plan of a GRU", explain))
    if any(entries_by_device):
        steps.append(("show tuned shapes", "table show"))
    return [(f"{number}. {purpose}", command) for number, (purpose, command) in enumerate(steps, 1)]
