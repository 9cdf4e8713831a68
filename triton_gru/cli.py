"""The command ``triton-gru``: what runs on this machine and why, whether it is right, and tuning."""

import argparse
import bisect
import functools
import platform
import sys
from collections import Counter

import torch
import triton

from ._version import __version__
from .accuracy import COLUMNS, PRECISIONS, check
from .call.options import Options
from .call.torch_state import fp32_precision
from .commands import table, tune
from .commands.arguments import DTYPES, form_parser, place, positive, problem_of
from .plan.config import report_name
from .plan.device import KNOWN, Device, find, gpus, limited, most_sms, why_none
from .plan.heuristic import HEURISTICS
from .plan.planner import BACKENDS, choose
from .plan.tables import lookup
from .plan.validity import too_old
from .units import byte_size, counted


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="triton-gru", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="what runs on this machine's GPUs, what is tuned, and what to do next")
    commands.add_parser("check", help="run every kernel against float64 on this GPU")
    form = form_parser()
    explain = commands.add_parser(
        "explain", parents=[form], help="the plan for a shape: kernel, configuration, and why"
    )
    explain.add_argument("--hidden", type=positive, required=True, metavar="H", help="hidden_size")
    explain.add_argument("--input", type=positive, metavar="I", help="input_size (default: hidden_size)")
    explain.add_argument("--batch", type=positive, default=1, metavar="B", help="batch size (default: 1)")
    explain.add_argument("--steps", type=positive, default=100, metavar="T", help="time steps (default: 100)")
    explain.add_argument("--layers", type=positive, default=1, metavar="N", help="default: 1")
    explain.add_argument("--dtype", choices=DTYPES, default="fp32", help="default: fp32")
    explain.add_argument("--backend", choices=BACKENDS, default="auto", help="default: auto")
    explain.add_argument("--device", choices=KNOWN, help="plan for this GPU (default: the one in this machine)")
    explain.add_argument("--max-sms", type=positive, metavar="N", help="as with TRITON_GRU_MAX_SMS=N")
    tune.add_parser(commands, form)
    table.add_parser(commands)
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments, argparse.Namespace(arguments=arguments))
    run = {"info": _info, "check": _check, "explain": _explain, "tune": tune.run, "table": table.run}
    return run[options.command](options)


# Of the table that `info` prints: the rows, and the columns' titles, dtypes, batch sizes and steps.
_HIDDEN_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
_CALLS = {
    "fp16 B=1": (torch.float16, 1, 100),
    "fp16 B=64": (torch.float16, 64, 100),
    "fp32 B=1": (torch.float32, 1, 100),
    "fp32 B=64": (torch.float32, 64, 100),
    "one step": (torch.float16, 1, 1),
}
_LARGEST = 4096  # hidden units: the heuristic knows no limit beyond a few thousand


def _info(options) -> int:
    python = ".".join(platform.python_version_tuple()[:2])
    versions = f"torch {torch.__version__}, Triton {triton.__version__}, Python {python}, {platform.system()}"
    print(f"triton-gru {__version__} ({versions})")
    try:
        devices = Counter(gpus())
    except ValueError as error:  # TRITON_GRU_MAX_SMS
        print(f"\n{error}")
        return 1
    for device, number in devices.items():
        print(f"\n{_device_words(device, number)}")
        old = too_old(device)
        print(f"No kernel runs on it: each {old}." if old else _served(device))
    served = [device for device in devices if not too_old(device)]
    if not devices:
        print(f"\nNo GPU that runs the kernels: {why_none().replace('the kernels', 'they', 1)}.")
    if not served:
        print("triton_gru.accelerate(model) works here, and every call goes to nn.GRU, as fast as before.")
    print("\nNext")
    for what, command in _next_steps(served):
        print(f"  {what:26}  triton-gru {command}")
    return 0


def _device_words(device: Device, number: int) -> str:
    name = device.name if number == 1 else f"{number} x {device.name}"
    memory = byte_size(device.shared_memory)
    return f"{name}: {device.arch}, {device.sms} multiprocessors, {memory} of shared memory each"


def _served(device: Device) -> str:
    """Return what serves calls on a device."""
    rows = [["H", *_CALLS]]
    for hidden in _HIDDEN_SIZES:
        problems = (Options(hidden, hidden).problem(steps, batch, dtype) for dtype, batch, steps in _CALLS.values())
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
        stale = [entry.stale for entry in source.entries if entry.stale]
        words = f", {len(stale)} of them stale ({stale[0]})" if stale else ""
        lines.append(f"Tuned: {source.name}: {counted(len(source.entries), 'shape')}{words}")
    return [*lines, "All other shapes are estimated." if lines else "Tuned: nothing yet, so all of this is estimated."]


def _next_steps(devices: list[Device]) -> list[tuple[str, str]]:
    """Return what to do next, each with its command. ``devices`` are those on which kernels run."""
    explain = "explain --hidden 512 --batch 16 --dtype fp16"
    if not devices:
        return [
            ("what an H200 would run", f"{explain} --device H200"),
            ("what tuning would measure", "tune --list --device H200"),
        ]
    tuned = [[entry for source in lookup.sources(each) if source.own for entry in source.entries] for each in devices]
    steps = [("is it right here?", "check")]
    if not all(tuned):
        steps.append(("tune it", "tune --budget 10m"))
    elif any(entry.stale for entries in tuned for entry in entries):
        steps.append(("tune again what is stale", "tune --budget 10m"))
    steps.append(("one GRU in detail", explain))
    if any(tuned):
        steps.append(("what was tuned", "table show"))
    return [(f"{number}. {what}", command) for number, (what, command) in enumerate(steps, 1)]


def _explain(options) -> int:
    dtype = DTYPES[options.dtype]
    problem = problem_of(options, dtype, options.hidden, options.batch, options.steps, options.layers, options.input)
    try:
        device = KNOWN[options.device] if options.device else next(iter(gpus()), None)
        device = device and limited(device, options.max_sms or most_sms())
        print(choose(problem, device, options.backend))
    except (RuntimeError, ValueError) as refusal:
        print(refusal)
        return 1
    if device is None:
        print("To see what another machine would run, name its GPU: --device H200")
    return 0


def _check(options) -> int:
    device = find(place())
    if device is None:
        print(f"Nothing was checked: {why_none()}.")
        return 1
    print(f"Largest errors against float64 on {device.name}, ours and nn.GRU's (plain PyTorch's if reset_after=False)")
    print(COLUMNS, flush=True)
    results = []
    for result in check(place()):
        print(result, flush=True)
        results.append(result)
    checked = [result for result in results if result.is_judged]
    wrong = sum(result.status == "WRONG" for result in checked)
    unserved = f"; {len(results) - len(checked)} not served" * (len(checked) < len(results))
    print(f"{f'{wrong} wrong of' if wrong else 'all right:'} {len(checked)} checked{unserved}")
    return 1 if wrong else 0
