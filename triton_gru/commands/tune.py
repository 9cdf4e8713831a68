"""``triton-gru tune``: measure what is fastest on this GPU, and keep it."""

import argparse
import itertools
import re
import sys
import time
import warnings

import torch

from ..plan.device import KNOWN_DEVICES, Device, find_device, limit_sms, no_device_reason, read_max_sms
from ..plan.heuristic import heuristic
from ..plan.problem import Problem
from ..plan.tables import store
from ..tuning.shapes import Recorded, shapes_of
from ..tuning.standard import standard_problems
from ..tuning.tuner import merge_problems, tune
from . import rehearsal
from .arguments import DTYPES, TUNED_DTYPES, build_problem, call_by_name, choose_device, parse_positive_int
from .screen import format_listing, format_summary, show_progress

# What is said of a shape, and of it what a model does not say itself.
_BESIDE_A_MODEL = ("batch", "steps", "dtype")
_FORM = ("input", "layers", "precision", "bidirectional", "reset_before", "layout")
_ASSUMED = "H200"  # where there is no GPU


def add_parser(commands, form: argparse.ArgumentParser) -> None:
    """Add the command to the main parser's; ``form`` is what `make_problem_parser` returns."""
    parser = commands.add_parser(
        "tune",
        parents=[form],
        help="measure what is fastest on this GPU, and keep it",
        description="Measures every kernel's configurations and nn.GRU, and keeps what is fastest where GRUs "
        "find it from then on. Without --hidden, --model or --recorded it tunes a standard list of shapes, the most "
        "valuable first. What is in the table already is not measured again: the same command goes on where it was.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--hidden", type=parse_positive_int, nargs="+", metavar="H", help="hidden sizes, with all of the sizes below"
    )
    which.add_argument(
        "--model", metavar="MODULE:FUNCTION", help="the GRUs of what this function returns, an nn.Module"
    )
    which.add_argument("--recorded", metavar="FILE", help="the shapes of a run: what record_shapes' save() wrote")
    parser.add_argument(
        "--input", type=parse_positive_int, nargs="+", metavar="I", help="input sizes (default: the hidden size)"
    )
    parser.add_argument(
        "--batch", type=parse_positive_int, nargs="+", metavar="B", help="up to a power of two each (default: 1)"
    )
    parser.add_argument("--steps", type=parse_positive_int, nargs="+", metavar="T", help="default: 1 100")
    parser.add_argument("--layers", type=parse_positive_int, nargs="+", metavar="N", help="default: 1")
    parser.add_argument("--dtype", choices=TUNED_DTYPES, nargs="+", help="default: fp32, or the model's")
    parser.add_argument(
        "--budget", type=seconds, metavar="TIME",
        help="in all: seconds, or 90s, 10m, 2h (default: no limit; of a rehearsal, 60s)",
    )  # fmt: skip
    parser.add_argument("--remeasure", "--anew", action="store_true", help="measure again what is in the table, too")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--list", action="store_true", help="only list what would be tuned, in order")
    how.add_argument(
        "--rehearse", action="store_true",
        help="go through it in a small form on the CPU, from a checkout. The table is thrown away, unless "
        "TRITON_GRU_CONFIG_DIR names a folder for it",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=KNOWN_DEVICES, help=f"list for this GPU, where there is none (default: {_ASSUMED})"
    )
    parser.set_defaults(refuse=parser.error)


def seconds(text: str) -> float:
    """Return a time of the command line in seconds: a number of them, or of the unit s, m or h behind it."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip(), re.ASCII)
    value = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a time above 0, such as 90, 90s, 10m or 2h, got {text!r}")
    return value


def run(options) -> int:
    """Return 0 if something was tuned or listed, 1 if nothing was found or kept, 2 if it could not be begun."""
    refuse_contradictions(options)
    try:
        if options.rehearse and not rehearsal.is_emulated():
            rehearsal.run_in_emulator(options.arguments)
        device = find_device(torch.device("cpu") if options.rehearse else choose_device())
        if device is not None and options.device and not options.list:
            options.refuse(f"--device is for --list here: there is a GPU, {device.name}, and that is tuned for")
        if options.list or device is None:
            return _list(options, device)
        problems = _problems(options, device)
        return (
            rehearsal.rehearse(problems, _tune, options)
            if options.rehearse
            else _tune(problems, choose_device(), options)
        )
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        print(f"triton-gru tune: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"triton-gru tune: interrupted{_what_is_kept(options)}", file=sys.stderr)
        return rehearsal.INTERRUPTED


def _what_is_kept(options) -> str:
    """Return what to say of a run that was interrupted."""
    if options.list or (options.rehearse and not rehearsal.is_table_kept()):
        return ""
    kept = "; what was found is kept (`triton-gru table show`)"
    return kept if options.remeasure else f"{kept}, and the same command goes on"


def refuse_contradictions(options) -> None:
    """End with a usage error if options contradict each other."""
    given = [name for name in (*_BESIDE_A_MODEL, *_FORM) if getattr(options, name) is not None]
    named = [f"--{name.replace('_', '-')}" for name in given]
    if given and options.recorded:
        options.refuse(f"{', '.join(named)}: not with --recorded, whose file says all sizes")
    if given and not (options.hidden or options.model):
        options.refuse(f"{', '.join(named)}: only with --hidden or --model, which say whose sizes these are")
    of_model = [flag for name, flag in zip(given, named) if name in _FORM]
    if of_model and options.model:
        options.refuse(f"{', '.join(of_model)}: not with --model, whose modules say it")
    if options.device and options.rehearse:
        options.refuse("--device: not with --rehearse, which emulates one GPU alone")


def _problems(options, device: Device) -> list[Problem]:
    """Return what is to be tuned, in order."""
    if options.recorded:
        found = list(Recorded.load(options.recorded))
    elif options.model:
        found = _problems_of_model(options)
    elif options.hidden:
        found = _problems_of_sizes(options)
    else:
        found = standard_problems(device)
        if not found:
            problem = standard_problems(KNOWN_DEVICES[_ASSUMED])[0]
            raise ValueError(
                f"no kernel serves the standard shapes on {device.name}: {heuristic('step', problem, device)}"
            )
    if not found:
        none = "no call was recorded" if options.recorded else "it has no GRU, or none of a dtype that kernels serve"
        raise ValueError(f"there is no shape in {options.recorded or options.model}: {none}")
    return list(merge_problems(found).values())


def _problems_of_model(options) -> list[Problem]:
    model = call_by_name(options.model)
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{options.model} returned no nn.Module but {type(model).__name__}")
    sizes = options.batch or [1], options.steps or [1, 100]
    dtypes = [DTYPES[name] for name in options.dtype or ()] or [None]
    return [each for dtype in dtypes for each in shapes_of(model, *sizes, dtype)]


def _problems_of_sizes(options) -> list[Problem]:
    dtypes = [DTYPES[name] for name in options.dtype or ["fp32"]]
    sizes = itertools.product(
        dtypes, options.hidden, options.batch or [1], options.steps or [1, 100], options.layers or [1],
        options.input or [None],
    )  # fmt: skip
    return [build_problem(options, *each) for each in sizes]


def _list(options, device: Device | None) -> int:
    """List what would be tuned. It is an error if that was not all that was asked for."""
    known = limit_sms(KNOWN_DEVICES[options.device or _ASSUMED], read_max_sms())
    planned = known if options.device or device is None else device
    print(format_listing(_problems(options, planned), planned))
    if options.list:
        return 0
    listed = f"The list is for the GPU {planned.name}; --device names another"
    rehearses = "From a checkout, `python -m triton_gru tune --rehearse` goes through it in small sizes on this CPU"
    print(f"triton-gru tune: nothing was tuned here: {no_device_reason()}. {listed}. {rehearses}", file=sys.stderr)
    return 2


def _tune(problems: list[Problem], on: torch.device, options) -> int:
    _refuse_what_cannot_be_kept()
    start = time.monotonic()
    with show_progress() as say, warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: say(f"warning: {message}")
        budget = options.budget or float("inf")
        tuned = tune(problems, device=on, budget=budget, remeasure=options.remeasure, report=say)
    print(f"\n{format_summary(tuned, len(problems), time.monotonic() - start, not options.rehearse)}")
    return 0 if tuned and all(each.table_path for each in tuned) else 1


def _refuse_what_cannot_be_kept() -> None:
    """Raise OSError if nothing could be kept: then what was found would be gone with this process."""
    folder, another = store.user_directory(), "a folder in TRITON_GRU_CONFIG_DIR"
    if folder is None:
        raise OSError(f"there is no home to keep what is found: name {another}")
    try:
        store.check_writable(folder)
    except OSError as error:
        raise OSError(
            f"nothing could be kept in {folder}: {error.strerror or error}. Mend that, or name {another}"
        ) from None
