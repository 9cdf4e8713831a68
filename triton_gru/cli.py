"""The command ``triton-gru``: what runs on this machine and why, whether it is right, and tuning."""

import argparse
import sys

from .accuracy import COLUMNS, check
from .commands import info, table, tune
from .commands.arguments import DTYPES, form_parser, place, positive, problem_of
from .plan.device import KNOWN, find, gpus, limited, most_sms, why_none
from .plan.planner import BACKENDS, choose


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="triton-gru", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    info.add_parser(commands)
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
    run = {"info": info.run, "check": _check, "explain": _explain, "tune": tune.run, "table": table.run}
    return run[options.command](options)


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
