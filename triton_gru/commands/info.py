"""``triton-gru info``: what runs on this machine's GPUs, what is tuned, and what to do next."""

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

# Of the table that is printed: the rows, and the columns' titles, dtypes, batch sizes and steps.
_HIDDEN_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
_CALLS = {
    "fp16 B=1": (torch.float16, 1, 100),
    "fp16 B=64": (torch.float16, 64, 100),
    "fp32 B=1": (torch.float32, 1, 100),
    "fp32 B=64": (torch.float32, 64, 100),
    "one step": (torch.float16, 1, 1),
}
_LARGEST = 4096  # hidden units: the heuristic knows no limit beyond a few thousand


def add_parser(commands) -> None:
    """Add the command to the main parser's."""
    commands.add_parser("info", help="what runs on this machine's GPUs, what is tuned, and what to do next")


def run(options) -> int:
    """Return 0, or 1 if the environment limits the GPUs by what is no number."""
    python = ".".join(platform.python_version_tuple()[:2])
    versions = f"torch {torch.__version__}, Triton {triton.__version__}, Python {python}, {platform.system()}"
    print(f"triton-gru {__version__} ({versions})")
    try:
        devices = Counter(list_gpus())
    except ValueError as error:  # TRITON_GRU_MAX_SMS
        print(f"\n{error}")
        return 1
    for device, number in devices.items():
        print(f"\n{_device_words(device, number)}")
        old = too_old_reason(device)
        print(f"No kernel runs on it: each {old}." if old else _served(device))
    served = [device for device in devices if not too_old_reason(device)]
    if not devices:
        print(f"\nNo GPU that runs the kernels: {no_device_reason().replace('the kernels', 'they', 1)}.")
    if not served:
        print("triton_gru.accelerate(model) works here, and every call goes to nn.GRU, as fast as before.")
    print("\nNext")
    for what, command in _next_steps(served):
        print(f"  {what:26}  triton-gru {command}")
    return 0


def _device_words(device: Device, number: int) -> str:
    name = device.name if number == 1 else f"{number} x {device.name}"
    memory = format_bytes(device.shared_memory)
    return f"{name}: {device.arch}, {device.sms} multiprocessors, {memory} of shared memory each"


def _served(device: Device) -> str:
    """Return what serves calls on a device."""
    rows = [["H", *_CALLS]]
    for hidden in _HIDDEN_SIZES:
        problems = (Options(hidden, hidden).to_problem(steps, batch, dtype) for dtype, batch, steps in _CALLS.values())
        rows.append([str(hidden), *(report_name(choose(problem, device).implementation) for problem in problems)])
    precision = "TF32" if fp32_precision() == "tf32" else "ieee"
    sizes = "; ".join(f"{kernel} {_largest_sizes(kernel, device)}" for kernel in HEURISTICS)
    setting = "torch.backends.cudnn.rnn.fp32_precision"
    lines = [
        "",
        "In eval(), your GRUs run here as follows: 100 steps; last, a single step (GRUCell, stream) in fp16, B=1",
        *(f"  {row[0]:6}" + "".join(f"{cell:14}" for cell in row[1:]).rstrip() for row in rows),
        f"fp32 is {precision} here ({setting}). Training and float64 go to nn.GRU.",
        f"Largest H in 16 bits, TF32, ieee: {sizes}.",
        "",
        *_tables(device),
    ]
    return "\n".join(lines)


def _largest_sizes(kernel: str, device: Device) -> str:
    """Return the largest hidden sizes that a kernel serves in fp16, TF32 and ieee."""
    largest = []
    for precision in ("fp16", "tf32", "fp32"):
        configure = functools.partial(_is_refused, kernel, device, *PRECISIONS[precision])
        largest.append(bisect.bisect(range(1, _LARGEST + 1), False, key=configure))
    return "any" if set(largest) == {_LARGEST} else ", ".join(map(str, largest))


def _is_refused(kernel: str, device: Device, dtype: torch.dtype, precision: str, hidden_size: int) -> bool:
    return isinstance(HEURISTICS[kernel](hidden_size, 1, 1, dtype, precision, device), str)


def _tables(device: Device) -> list[str]:
    """Return lines about the tuned tables of a device, in the order in which they count."""
    lines = []
    for source in filter(lambda source: source.entries, lookup.sources(device)):
        stale = [entry.stale_reason for entry in source.entries if entry.stale_reason]
        words = f", {len(stale)} of them stale ({stale[0]})" if stale else ""
        lines.append(f"Tuned: {source.name}: {format_count(len(source.entries), 'shape')}{words}")
    return [*lines, "All other shapes are estimated." if lines else "Tuned: nothing yet, so all of this is estimated."]


def _next_steps(devices: list[Device]) -> list[tuple[str, str]]:
    """Return what to do next, each with its command. ``devices`` are those on which kernels run."""
    explain = "explain --hidden 512 --batch 16 --dtype fp16"
    if not devices:
        return [
            ("what an H200 would run", f"{explain} --device H200"),
            ("what tuning would measure", "tune --list --device H200"),
        ]
    tuned = [
        [entry for source in lookup.sources(each) if source.is_from_user for entry in source.entries]
        for each in devices
    ]
    steps = [("is it right here?", "check")]
    if not all(tuned):
        steps.append(("tune it", "tune --budget 10m"))
    elif any(entry.stale_reason for entries in tuned for entry in entries):
        steps.append(("tune again what is stale", "tune --budget 10m"))
    steps.append(("one GRU in detail", explain))
    if any(tuned):
        steps.append(("what was tuned", "table show"))
    return [(f"{number}. {what}", command) for number, (what, command) in enumerate(steps, 1)]
