"""The command ``triton-gru``: what this machine can do, what a shape would run, and whether it is right."""

import argparse
import os
import platform
import subprocess
import sys
from importlib.metadata import version

import torch

from . import __version__
from .accuracy import PRECISIONS, check
from .device import INTERPRETER, KNOWN, Device, find, interpreting
from .plan import BACKENDS, HEURISTICS, Problem, choose

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="triton-gru", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="devices, what the kernels serve on them, and where configurations come from")
    commands.add_parser("check", help="run every kernel against float64 on this GPU; without one, in the interpreter")
    explain = commands.add_parser("explain", help="the plan for a shape: kernel, configuration, and why")
    explain.add_argument("--hidden", type=_positive, required=True, metavar="H", help="hidden_size")
    explain.add_argument("--input", type=_positive, metavar="I", help="input_size (default: hidden_size)")
    explain.add_argument("--batch", type=_positive, default=1, metavar="B")
    explain.add_argument("--steps", type=_positive, default=100, metavar="T")
    explain.add_argument("--layers", type=_positive, default=1)
    explain.add_argument("--dtype", choices=DTYPES, default="fp32")
    explain.add_argument("--precision", choices=("tf32", "ieee"), default="tf32", help="of fp32 products")
    explain.add_argument("--bidirectional", action="store_true")
    explain.add_argument("--reset-before", action="store_true", help="reset before the recurrent product")
    explain.add_argument("--backend", choices=BACKENDS, default="auto")
    explain.add_argument("--device", choices=KNOWN, help="plan for this GPU (default: the one in this machine)")
    options = parser.parse_args(arguments)
    return {"info": _info, "check": _check, "explain": _explain}[options.command](options)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _here() -> list[Device]:
    return [find(torch.device("cuda", i)) for i in range(torch.cuda.device_count())]


def _info(options) -> int:
    print(f"triton-gru {__version__}, torch {torch.__version__}, triton {version('triton')}, {platform.platform()}")
    devices = _here()
    if not devices:
        print("no GPU: GRUs run as torch's own. `triton-gru check` runs the kernels in Triton's interpreter.")
    for device in devices:
        print(f"\n{device.name}: {device.arch}, {device.sms} SMs, {device.shared_memory} bytes of shared memory")
        for kernel in HEURISTICS:
            for precision, (dtype, fp32_precision) in PRECISIONS.items():
                print(f"  {kernel:5} {precision:5} {_served(kernel, device, dtype, fp32_precision)}")
    print("\nconfigurations: heuristic (no tuned table)")
    return 0


def _served(kernel: str, device: Device, dtype: torch.dtype, precision: str) -> str:
    """The hidden sizes a kernel serves, or why none; the heuristic knows no limit beyond a few thousand."""
    answers = {h: HEURISTICS[kernel](h, 1, 1, dtype, precision, device) for h in range(1, 4097)}
    sizes = [h for h, answer in answers.items() if not isinstance(answer, str)]
    if not sizes:
        return answers[1]
    return "any hidden_size" if len(sizes) == len(answers) else f"hidden_size up to {sizes[-1]}"


def _explain(options) -> int:
    device = KNOWN[options.device] if options.device else next(iter(_here()), None)
    problem = Problem(
        steps=options.steps,
        batch_size=options.batch,
        input_size=options.input or options.hidden,
        hidden_size=options.hidden,
        num_layers=options.layers,
        bidirectional=options.bidirectional,
        dtype=DTYPES[options.dtype],
        precision=options.precision if options.dtype == "fp32" else "ieee",
        reset_after=not options.reset_before,
    )
    try:
        print(choose(problem, device, options.backend))
    except RuntimeError as refusal:
        print(refusal)
        return 1
    return 0


def _check(options) -> int:
    if torch.cuda.is_available():
        device, name = "cuda", _here()[0].name
    elif interpreting():
        device, name = "cpu", INTERPRETER.name
    else:
        print("no GPU: checking the kernels in Triton's interpreter, on the CPU", flush=True)
        command = [sys.executable, "-m", "triton_gru", "check"]
        return subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, check=False).returncode
    print(f"checking on {name}", flush=True)
    wrong = 0
    for result in check(device):
        print(result, flush=True)
        wrong += result.status == "WRONG"
    print(f"{wrong} wrong" if wrong else "all right")
    return 1 if wrong else 0
