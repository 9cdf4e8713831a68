"""Time GRU implementations, and report their times. Each command's --help has details.

    python -m perf run --sweep smoke                      # measure (on a CPU: smoke, cells)
    python -m perf run --hidden 256 --input 80 --batch 8 --steps 200 --dtype fp16    # your own shape
    python -m perf report build/perf/smoke-cpu.csv        # ratios, lower bounds, losses
    python -m perf compare before.csv after.csv           # what became slower or broke: exit status 1 if anything did
    python -m perf plot build/perf/smoke-cpu.csv          # figures, as PNG and SVG
    python -m perf floors                                 # bandwidths, rates and latencies of this machine
    python -m perf count                                  # work of a time step, counted on a CPU: not time

scripts/measure runs all sweeps in pieces of at most three minutes.
"""

import argparse
import itertools
import os
import pathlib
import sys
import time

import torch

from triton_gru.accuracy import PRECISIONS
from triton_gru.commands.arguments import parse_positive_int
from triton_gru.plan.device import KNOWN_DEVICES

from . import floors, shapes, sweeps
from .case import Case
from .measure import Conditions, DeviceLost
from .providers import BASELINE, NAMES, require_known
from .run import run
from .stamp import timestamp

_OUT = pathlib.Path("build/perf")
_CPU_SWEEPS = ("smoke", "cells")


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Return its exit status.

    The status is 1 if `compare` finds something slower or broken. It is 2 if the command is interrupted, or raises
    OSError or ValueError. Otherwise it is 0. If the process loses the GPU, a new process takes its place and continues
    the sweep, at most ``--restarts`` times and for ``--minutes`` in all. Otherwise the status is 2.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    start, started_at = time.monotonic(), timestamp()
    try:
        return options.command(options) or 0
    except DeviceLost as lost:
        minutes_left = options.minutes - (time.monotonic() - start) / 60
        if options.restarts > 0 and minutes_left > 0:
            print(f"{lost}: continuing in a new process", flush=True)
            changed = ["--minutes", str(minutes_left), "--restarts", str(options.restarts - 1)]
            if options.since is None:  # rows of earlier runs are no results of this run
                changed += ["--since", started_at]
            os.execv(sys.executable, [sys.executable, "-m", "perf", *arguments, *changed])
        reason = "time is over" if options.restarts > 0 else "no restart is left"
        print(f"perf: {lost}, and {reason}; --resume continues a sweep", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"perf: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("perf: interrupted; --resume continues a sweep", file=sys.stderr)
    return 2


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options of the command line. ``command`` is the function that runs the command with these options."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m perf", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(required=True, metavar="run|report|compare|plot|count|floors")

    command = commands.add_parser(
        "run", help="measure a sweep, or your own shape", formatter_class=raw,
        description="Measure your own shape, the GRUs of a model, or a sweep:\n" + sweeps.describe_sweeps(),
        epilog="Each case is compared with float64 before it is timed, and written when all its providers are done.\n"
        f"providers: {', '.join(NAMES)}; or a function of yours, as module:callable",
    )  # fmt: skip
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--sweep", choices=sweeps.SWEEPS)
    source.add_argument(
        "--hidden", type=parse_positive_int, nargs="+", metavar="H", help="hidden sizes of your own shape"
    )
    model_help = "a function that calls a model: the model's GRUs are timed at the shapes they are called with"
    source.add_argument("--model", metavar="MODULE:FUNCTION", help=model_help)
    shapes.add_arguments(command)
    provider_help = f"time these providers and {BASELINE}, instead of the sweep's"
    command.add_argument("--provider", nargs="+", default=[], help=provider_help, metavar="NAME")
    command.add_argument("--out", type=pathlib.Path, default=_OUT, help="folder of the CSVs")
    resume_help = "skip measurements that the CSV has rows of, failures included"
    command.add_argument("--resume", action="store_const", const="", dest="since", help=resume_help)
    since_help = "like --resume, but only with rows of this time or later, in UTC as in the CSV"
    command.add_argument("--since", metavar="TIME", help=since_help)
    restarts_help = "how often a new process may continue after one has lost the GPU (default: 10)"
    command.add_argument("--restarts", type=int, default=10, metavar="N", help=restarts_help)
    command.add_argument("--minutes", type=float, default=float("inf"), help="begin no case after this many minutes")
    command.add_argument(
        "--seconds", type=float, default=2.0, help="time for the rounds of a case; a few rounds run always"
    )
    command.add_argument(
        "--rehearse",
        action="store_true",
        help="run one or two tiny cases on the CPU (with tests/ptx/rehearse.py it executes kernels)",
    )
    command.set_defaults(command=_run)

    command = commands.add_parser("report", help="print tables of CSVs, for the terminal or in Markdown")
    command.add_argument("file", type=pathlib.Path, nargs="+", help="a CSV of a sweep")
    command.add_argument("--markdown", action="store_true")
    command.set_defaults(command=_report)

    command = commands.add_parser(
        "compare",
        help="print what differs between two CSVs; exit status 1 if anything became slower or stopped working",
    )
    command.add_argument("before", type=pathlib.Path)
    command.add_argument("after", type=pathlib.Path)
    command.set_defaults(command=_compare)

    command = commands.add_parser("plot", help="draw figures of CSVs, as PNG and SVG")
    command.add_argument("file", type=pathlib.Path, nargs="+", help="a CSV of a sweep or of `count`")
    before_help = "CSVs from before a change, to draw what became slower since"
    command.add_argument("--before", type=pathlib.Path, nargs="+", default=[], help=before_help, metavar="FILE")
    command.add_argument("--out", type=pathlib.Path, default=_OUT / "figures", help="folder of the figures")
    command.set_defaults(command=_plot)

    command = commands.add_parser(
        "floors", help="measure this machine's bandwidths, rates and latencies, for lower bounds"
    )
    command.add_argument("--out", type=pathlib.Path, default=_OUT, help="folder of the CSV")
    command.set_defaults(command=_floors)

    count_help = "count the work of one time step in the compiled PTX: work, not time; needs no GPU"
    description = f"C{count_help[1:]}. perf/README.md explains the columns."
    command = commands.add_parser("count", help=count_help, description=description)
    command.add_argument("--hidden", type=parse_positive_int, nargs="+", default=[64, 128, 256, 512, 1024], metavar="H")
    command.add_argument("--batch", type=parse_positive_int, nargs="+", default=[1, 16], metavar="B")
    command.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp16", "tf32"])
    command.add_argument("--device", choices=KNOWN_DEVICES, default="H200", help="GPU to compile for (default: H200)")
    command.add_argument(
        "--provider", nargs="+", default=[], metavar="NAME", help="count these providers (default: all)"
    )
    command.add_argument(
        "--most", type=int, default=100_000_000, metavar="INSTRUCTIONS", dest="max_instructions",
        help="a launch that executes more instructions than this fails",
    )  # fmt: skip
    command.add_argument("--out", type=pathlib.Path, default=_OUT, help="folder of the CSV")
    command.add_argument("--resume", action="store_true", help="skip cases that the CSV has rows of")
    command.add_argument("--markdown", action="store_true")
    command.set_defaults(command=_count)
    return parser.parse_args(arguments)


def _run(options) -> None:
    """Measure the chosen sweep. It is adapted to a CPU if there is no GPU, or shrunk for a rehearsal.

    Raises:
        ValueError: a provider is unknown, options do not fit together, or the sweep or the dtype needs a GPU.
        ValueError: `shapes.build_sweep` raises, or the CSV has another schema.
    """
    require_known(options.provider)
    sweep = shapes.choose_sweep(options)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.rehearse:
        sweep, device = sweeps.shrink_sweep(sweep), "cpu"
    elif device == "cpu":
        if options.sweep and sweep.name not in _CPU_SWEEPS:
            raise ValueError(
                f"sweep {sweep.name} needs a GPU, but torch finds none; on a CPU run {' or '.join(_CPU_SWEEPS)}"
            )
        if not options.sweep and {case.precision for case in sweep.cases} - {"fp32", "tf32"}:
            raise ValueError("on a CPU only fp32 is timed: omit --dtype, or add --rehearse")
        sweep = sweeps.fit_to_cpu(sweep)
    conditions = Conditions(device, sweep.modes, sweep.l2, options.seconds, sweep.rounds)
    run(sweep, options.provider or sweep.providers, conditions, options.out, options.since, options.minutes)


def _report(options) -> None:
    """Print the report on the CSVs."""
    from .report import format_report  # only `report`, `compare`, `plot` and `count` need pandas

    print(format_report(options.file, options.markdown))


def _compare(options) -> int:
    """Print what differs between two CSVs. Return the exit status: 1 if something became slower or broke, else 0."""
    from . import compare

    return compare.main(options.before, options.after)


def _plot(options) -> None:
    """Draw the figures of the CSVs. Raise ValueError if matplotlib or another package is not installed."""
    try:
        from . import plot
    except ModuleNotFoundError as error:
        raise ValueError(f"plot needs {error.name}, which is not installed: pip install -e .[perf]") from error
    plot.main(options.file, options.out, options.before)


def _floors(options) -> None:
    """Measure the rates and latencies of this machine, write them to a CSV, and print them."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(floors.load_or_measure(options.out, device, remeasure=True))


def _count(options) -> None:
    """Count the work of a step for all combinations of the options, and print the table of counts."""
    from . import count, tables

    sizes = itertools.product(options.precision, options.hidden, options.batch)
    cases = [Case(*size, steps=1) for size in sizes]
    rows = count.run(cases, options.device, options.provider, options.out, options.resume, options.max_instructions)
    title = count.TITLE.format(options.device)
    print(tables.join_tables([(title, count.tabulate_counts(rows))], options.markdown))


if __name__ == "__main__":
    sys.exit(main())
