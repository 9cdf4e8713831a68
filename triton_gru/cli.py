"""The command ``triton-gru``: show what runs on this machine and why, check the kernels, and tune them."""

import argparse
import sys

from .accuracy import RESULT_HEADER, check_kernels
from .commands import info, table, tune
from .commands.arguments import DTYPES, build_problem, choose_device, make_problem_parser, parse_positive_int
from .plan.device import KNOWN_DEVICES, find_device, limit_sms, list_gpus, no_device_reason, read_max_sms
from .plan.planner import BACKENDS, choose


def main(arguments: list[str] | None = None) -> int:
    """Run a command line, by default that of the process, and return the exit status."""
    parser = argparse.ArgumentParser(prog="triton-gru", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    info.add_parser(commands)
    commands.add_parser("check", help="compare every kernel with float64 on this GPU")
    problem_parser = make_problem_parser()
    explain = commands.add_parser(
        "explain", parents=[problem_parser], help="show the plan for a shape: kernel, configuration, and why"
    )
    explain.add_argument("--hidden", type=parse_positive_int, required=True, metavar="H", help="hidden_size")
    explain.add_argument("--input", type=parse_positive_int, metavar="I", help="input_size (default: hidden_size)")
    explain.add_argument("--batch", type=parse_positive_int, default=1, metavar="B", help="batch size (default: 1)")
    explain.add_argument("--steps", type=parse_positive_int, default=100, metavar="T", help="time steps (default: 100)")
    explain.add_argument(
        "--layers", type=parse_positive_int, default=1, metavar="N", help="number of layers (default: 1)"
    )
    explain.add_argument("--dtype", choices=DTYPES, default="fp32", help="default: fp32")
    explain.add_argument("--backend", choices=BACKENDS, default="auto", help="default: auto")
    explain.add_argument("--device", choices=KNOWN_DEVICES, help="plan for this GPU (default: the one in this machine)")
    explain.add_argument("--max-sms", type=parse_positive_int, metavar="N", help="plan as with TRITON_GRU_MAX_SMS=N")
    tune.add_parser(commands, problem_parser)
    table.add_parser(commands)
    arguments = sys.argv[1:] if arguments is None else arguments
    # "tune --rehearse" runs the same arguments again in an emulator.
    options = parser.parse_args(arguments, argparse.Namespace(arguments=arguments))
    run = {"info": info.run, "check": _check, "explain": _explain, "tune": tune.run, "table": table.run}
    return run[options.command](options)


def _explain(options: argparse.Namespace) -> int:
    """Run ``triton-gru explain``: print the plan for a shape. Return 1 if there is no plan, and print why."""
    dtype = DTYPES[options.dtype]
    problem = build_problem(options, dtype, options.hidden, options.batch, options.steps, options.layers, options.input)
    try:
        device = KNOWN_DEVICES[options.device] if options.device else next(iter(list_gpus()), None)
        # Without a GPU, `device` is None, and the plan has no kernel.
        device = device and limit_sms(device, options.max_sms or read_max_sms())
        print(choose(problem, device, options.backend))
    except (RuntimeError, ValueError) as error:
        print(error)
        return 1
    if device is None:
        print("To plan for another machine, name its GPU: --device H200")
    return 0


def _check(options: argparse.Namespace) -> int:
    """Run ``triton-gru check``: print a row for each check. Return 1 if nothing was checked or a kernel is wrong."""
    device = find_device(choose_device())
    if device is None:
        print(f"Nothing was checked: {no_device_reason()}.")
        return 1
    print(f"Largest errors against float64 on {device.name}, ours and nn.GRU's (plain PyTorch's if reset_after=False)")
    print(RESULT_HEADER, flush=True)
    results = []
    for result in check_kernels(choose_device()):
        print(result, flush=True)
        results.append(result)
    judged = [result for result in results if result.is_judged]
    if not judged:
        print(f"Nothing was checked: no kernel serves any of these shapes on {device.name}.")
        return 1
    num_wrong = sum(result.status == "WRONG" for result in judged)
    unserved_text = f"; {len(results) - len(judged)} not served" if len(judged) < len(results) else ""
    print(f"{f'{num_wrong} wrong of' if num_wrong else 'all right:'} {len(judged)} checked{unserved_text}")
    return 1 if num_wrong else 0
