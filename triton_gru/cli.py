"""The command ``triton-gru``: what this machine can do, what a shape would run, whether it is right; and tuning."""

import argparse
import bisect
import importlib
import itertools
import os
import platform
import sys

import torch
import triton

from ._version import __version__
from .accuracy import PRECISIONS, check
from .plan.device import KNOWN, Device, find, limited, most_sms, why_none
from .plan.heuristic import HEURISTICS
from .plan.planner import BACKENDS, choose
from .plan.problem import LAYOUTS, Problem
from .plan.tables import lookup, store
from .tuning.shapes import shapes_of
from .tuning.tuner import tune

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
TUNED_DTYPES = [name for name in DTYPES if name != "fp64"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="triton-gru", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="devices, what the kernels serve on them, and where configurations come from")
    commands.add_parser("check", help="run every kernel against float64 on this GPU")
    form = argparse.ArgumentParser(add_help=False)
    form.add_argument("--precision", choices=("tf32", "ieee"), default="tf32", help="of fp32 products")
    form.add_argument("--bidirectional", action="store_true")
    form.add_argument("--reset-before", action="store_true", help="reset before the recurrent product")
    form.add_argument("--layout", choices=LAYOUTS, default="dense", help="of the sequences")
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
    tune = commands.add_parser(
        "tune",
        parents=[form],
        help="measure what is fastest on this GPU for some shapes, and keep it",
        description="Measures every kernel's configurations and torch's own GRU for all combinations of the sizes "
        "given, or for the GRUs of a model, and keeps what is fastest where GRUs find it from then on. What is in the "
        "table already is not measured again, so a run that was interrupted goes on where it was.",
    )
    tune.add_argument("--hidden", type=positive, nargs="+", default=[], metavar="H", help="hidden sizes")
    tune.add_argument("--input", type=positive, nargs="+", metavar="I", help="input sizes (default: the hidden size)")
    tune.add_argument("--model", metavar="MODULE:FUNCTION", help="the GRUs of what this function returns, an nn.Module")
    tune.add_argument("--batch", type=positive, nargs="+", default=[1], metavar="B", help="up to a power of two each")
    tune.add_argument("--steps", type=positive, nargs="+", default=[1, 100], metavar="T", help="default: 1 100")
    tune.add_argument("--layers", type=positive, nargs="+", default=[1])
    tune.add_argument("--dtype", choices=TUNED_DTYPES, nargs="+", help="default: fp32, or the model's")
    tune.add_argument(
        "--budget", type=float, default=float("inf"), metavar="SECONDS", help="in all (default: no limit)"
    )
    tune.add_argument("--anew", action="store_true", help="what is in the table, too")
    options = parser.parse_args(arguments)
    if options.command == "tune" and not options.hidden and not options.model:
        tune.error("one of --hidden and --model is required")
    return {"info": _info, "check": _check, "explain": _explain, "tune": _tune}[options.command](options)


def positive(text: str) -> int:
    """Return a number of the command line that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def imported(name: str):
    """Return what ``module:attribute`` names. The module may be in the current folder.

    Raises what importing it raises, or AttributeError.
    """
    module, _, attribute = name.partition(":")
    if sys.path[0] != (here := os.getcwd()):
        sys.path.insert(0, here)
    return getattr(importlib.import_module(module), attribute)


_NONE = "there is no GPU for the kernels"


def _place() -> torch.device:
    """Return where tensors lie for the kernels: on the current GPU, or on the CPU, where one may be emulated."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _here() -> list[Device]:
    """Return the GPUs on which kernels run."""
    return [found for i in range(torch.cuda.device_count()) if (found := find(torch.device("cuda", i)))]


def _info(options) -> int:
    print(f"triton-gru {__version__}, torch {torch.__version__}, triton {triton.__version__}, {platform.platform()}")
    devices = _here()
    if not devices:
        print(f"{_NONE} ({why_none()}): GRUs run as torch's own")
    for device in devices:
        print(f"\n{device.name}: {device.arch}, {device.sms} SMs, {device.shared_memory} bytes of shared memory")
        for kernel in HEURISTICS:
            for precision, (dtype, fp32_precision) in PRECISIONS.items():
                print(f"  {kernel:5} {precision:5} {_served(kernel, device, dtype, fp32_precision)}")
        print(_tables(device))
    print(f"\ntables of this user: {store.user_directory() or 'nowhere, there is no home'}")
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
    problem = _problem(options, dtype, options.hidden, options.batch, options.steps, options.layers, options.input)
    try:
        device = KNOWN[options.device] if options.device else next(iter(_here()), None)
        device = device and limited(device, options.max_sms or most_sms())
        print(choose(problem, device, options.backend))
    except (RuntimeError, ValueError) as refusal:
        print(refusal)
        return 1
    return 0


def _tune(options) -> int:
    try:
        problems = _problems(options)
        tuned = tune(problems, device=_place(), budget=options.budget, anew=options.anew, say=_say)
    except (RuntimeError, ValueError, ImportError, AttributeError, TypeError) as error:
        print(f"triton-gru tune: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("triton-gru tune: interrupted; what was found is kept, and the same command goes on", file=sys.stderr)
        return 130
    for each in tuned:
        print(f"\n{each}")
    files = {str(each.kept) for each in tuned if each.kept}
    print(f"\n{len(tuned)} of {len(problems)} shapes tuned, kept in {', '.join(files) or 'no file'}")
    return 0


def _problems(options) -> list[Problem]:
    """Those of "tune", in the order of the command line."""
    dtypes = [DTYPES[name] for name in options.dtype or ()]
    if options.model:
        model = imported(options.model)()
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"{options.model} returned no nn.Module but {type(model).__name__}")
        found = [each for dtype in dtypes or [None] for each in shapes_of(model, options.batch, options.steps, dtype)]
        return list(dict.fromkeys(found))
    sizes = itertools.product(
        dtypes or [torch.float32], options.hidden, options.batch, options.steps, options.layers, options.input or [None]
    )
    return [_problem(options, *each) for each in sizes]


def _problem(
    options, dtype: torch.dtype, hidden: int, batch: int, steps: int, layers: int, inputs: int | None
) -> Problem:
    """Of these sizes, in the form that the options say."""
    return Problem(
        steps=steps,
        batch_size=batch,
        input_size=inputs or hidden,
        hidden_size=hidden,
        num_layers=layers,
        bidirectional=options.bidirectional,
        dtype=dtype,
        precision=options.precision if dtype == torch.float32 else "ieee",
        reset_after=not options.reset_before,
        layout=options.layout,
    )


def _say(text: str) -> None:
    print(text, flush=True)


def _check(options) -> int:
    device = find(_place())
    if device is None:
        print(f"{_NONE} ({why_none()}): nothing was checked")
        return 1
    print(f"checking on {device.name}", flush=True)
    wrong = 0
    for result in check(_place()):
        print(result, flush=True)
        wrong += result.status == "WRONG"
    print(f"{wrong} wrong" if wrong else "all right")
    return 1 if wrong else 0
