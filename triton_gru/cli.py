"""The command ``triton-gru``: what this machine can do, what a shape would run, whether it is right; and tuning."""

import argparse
import bisect
import platform
import sys

import torch
import triton

from ._version import __version__
from .accuracy import COLUMNS, PRECISIONS, check
from .commands import table, tune
from .commands.arguments import DTYPES, form_parser, place, positive, problem_of
from .plan.device import KNOWN, Device, find, gpus, limited, most_sms, why_none
from .plan.heuristic import HEURISTICS
from .plan.planner import BACKENDS, choose
from .plan.tables import lookup, store


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="triton-gru", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="devices, what the kernels serve on them, and where configurations come from")
    commands.add_parser("check", help="run every kernel against float64 on this GPU")
    form = form_parser()
    explain = commands.add_parser(
        "explain", parents=[form], help="the plan for a shape: kernel, configuration, and why"
    )
    explain.add_argument("--hidden", type=positive, required=True, metavar="H", help="hidden_size")
    explain.add_argument("--input", type=positive, metavar="I", help="input_size (default: hidden_size)")
    explain.add_argument("--batch", type=positive, default=1, metavar="B")
    explain.add_argument("--steps", type=positive, default=100, metavar="T")
    explain.add_argument("--layers", type=positive, default=1)
    explain.add_argument("--dtype", choices=DTYPES, default="fp32")
    explain.add_argument("--backend", choices=BACKENDS, default="auto")
    explain.add_argument("--device", choices=KNOWN, help="plan for this GPU (default: the one in this machine)")
    explain.add_argument("--max-sms", type=positive, metavar="N", help="as with TRITON_GRU_MAX_SMS=N")
    tune.add_parser(commands, form)
    table.add_parser(commands)
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments, argparse.Namespace(arguments=arguments))
    run = {"info": _info, "check": _check, "explain": _explain, "tune": tune.run, "table": table.run}
    return run[options.command](options)


def _info(options) -> int:
    print(f"triton-gru {__version__}, torch {torch.__version__}, triton {triton.__version__}, {platform.platform()}")
    devices = gpus()
    if not devices:
        print(f"there is no GPU for the kernels ({why_none()}): GRUs run as torch's own")
    for device in devices:
        print(f"\n{device.name}: {device.arch}, {device.sms} SMs, {device.shared_memory} bytes of shared memory")
        for kernel in HEURISTICS:
            for precision, (dtype, fp32_precision) in PRECISIONS.items():
                print(f"  {kernel:5} {precision:5} {_served(kernel, device, dtype, fp32_precision)}")
        print(_tables(device))
    print(f"\ntables of this user: {store.user_directory() or 'nowhere, there is no home'} (`triton-gru table show`)")
    return 0


def _tables(device: Device) -> str:
    """The tuned tables of a device, in the order in which they count, and what is stale in them."""
    lines = []
    for source in lookup.sources(device):
        old = [each.stale for each in source.entries if each.stale]
        lines.append(
            f"  {source.name}: {len(source.entries)} shapes, {len(old)} of them stale" + f" ({old[0]})" * bool(old)
        )
    return "\n".join(["configurations:", *lines, "  for other shapes, the heuristic (by count)"])


def _served(kernel: str, device: Device, dtype: torch.dtype, precision: str) -> str:
    """The hidden sizes a kernel serves, or why none; the heuristic knows no limit beyond a few thousand."""

    def refusal(hidden_size: int) -> str:
        answer = HEURISTICS[kernel](hidden_size, 1, 1, dtype, precision, device)
        return answer if isinstance(answer, str) else ""

    served = bisect.bisect(range(1, 4097), False, key=lambda hidden_size: bool(refusal(hidden_size)))
    if served == 0:
        return refusal(1)
    return "any hidden_size" if served == 4096 else f"hidden_size up to {served}"


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
