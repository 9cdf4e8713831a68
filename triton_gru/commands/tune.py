"""``triton-gru tune``: measure which implementation of each shape is fastest on this GPU, and keep the results."""

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

# Options that also go with --model, and options that a model's modules determine.
_CALL_OPTIONS = ("batch", "steps", "dtype")
_MODULE_OPTIONS = ("input", "layers", "precision", "bidirectional", "reset_before", "layout")
_DEFAULT_DEVICE = "H200"  # shapes are listed for this GPU on a machine without a GPU


def add_parser(commands, problem_parser: argparse.ArgumentParser) -> None:
    """Add ``tune`` to the commands of the main parser. ``problem_parser`` comes from `make_problem_parser`."""
    parser = commands.add_parser(
        "tune",
        parents=[problem_parser],
        help="measure which implementation is fastest on this GPU, and keep the results",
        description="Measures configurations of the kernels, and nn.GRU, for each shape. Writes the fastest to a "
        "table, which GRUs use from then on. Without --hidden, --model or --recorded it tunes a standard list of "
        "shapes, the most valuable first. Shapes already in the table are not measured again, so the same command "
        "continues an interrupted run.",
    )
    shapes = parser.add_mutually_exclusive_group()
    shapes.add_argument(
        "--hidden", type=parse_positive_int, nargs="+", metavar="H",
        help="hidden sizes, in all combinations with the sizes below",
    )  # fmt: skip
    shapes.add_argument(
        "--model", metavar="MODULE:FUNCTION", help="the GRUs of the nn.Module that this function returns"
    )
    shapes.add_argument("--recorded", metavar="FILE", help="the shapes of a run, as record_shapes' save() wrote them")
    parser.add_argument(
        "--input", type=parse_positive_int, nargs="+", metavar="I", help="input sizes (default: the hidden size)"
    )
    parser.add_argument(
        "--batch", type=parse_positive_int, nargs="+", metavar="B",
        help="batch sizes; a result holds for all with the same next power of two (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=parse_positive_int, nargs="+", metavar="T", help="numbers of time steps (default: 1 100)"
    )
    parser.add_argument(
        "--layers", type=parse_positive_int, nargs="+", metavar="N", help="numbers of layers (default: 1)"
    )
    parser.add_argument("--dtype", choices=TUNED_DTYPES, nargs="+", help="dtypes (default: fp32, or the model's)")
    parser.add_argument(
        "--budget", type=parse_seconds, metavar="TIME",
        help="time for all shapes: seconds, or 90s, 10m, 2h (default: no limit; with --rehearse 60s)",
    )  # fmt: skip
    parser.add_argument(
        "--remeasure", "--anew", action="store_true", help="also measure shapes that are in the table already"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--list", action="store_true", help="only list the shapes to tune, in order")
    mode.add_argument(
        "--rehearse", action="store_true",
        help="tune small sizes on an emulated GPU, on the CPU; needs a checkout. The rehearsal's table is temporary, "
        "unless TRITON_GRU_CONFIG_DIR names a folder for it",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=KNOWN_DEVICES,
        help=f"GPU to list for, with --list or on a machine without a GPU (default there: {_DEFAULT_DEVICE})",
    )  # fmt: skip
    parser.set_defaults(refuse=parser.error)


def parse_seconds(text: str) -> float:
    """Return the seconds of a time from the command line: a number of seconds, or a number with the unit s, m or h.

    Raise ArgumentTypeError for any other text, and for a time of 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip(), re.ASCII)
    value = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a time above 0, such as 90, 90s, 10m or 2h, got {text!r}")
    return value


def run(options) -> int:
    """Run ``triton-gru tune`` and return its exit status.

    The status is 0 if all results were kept or a list was asked for, and 1 if there are none or some were not written.
    It is 2 if tuning could not begin or an error ended it, and 130 if it was interrupted.
    """
    refuse_contradictions(options)
    try:
        if options.rehearse and not rehearsal.is_emulated():
            rehearsal.run_in_emulator(options.arguments)
        device = find_device(torch.device("cpu") if options.rehearse else choose_device())
        if device is not None and options.device and not options.list:
            options.refuse(f"--device needs --list on this machine, as tuning is for its GPU, {device.name}")
        if options.list or device is None:
            return _list(options, device)
        problems = _choose_problems(options, device)
        return (
            rehearsal.rehearse(problems, _tune, options)
            if options.rehearse
            else _tune(problems, choose_device(), options)
        )
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        print(f"triton-gru tune: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"triton-gru tune: interrupted{_describe_kept_results(options)}", file=sys.stderr)
        return rehearsal.INTERRUPTED


def _describe_kept_results(options) -> str:
    """Return a text about the results that an interrupted run has kept, or ''."""
    if options.list or (options.rehearse and not rehearsal.is_table_kept()):
        return ""
    text = "; results so far are kept (`triton-gru table show`)"
    return text if options.remeasure else f"{text}, and the same command continues"


def refuse_contradictions(options) -> None:
    """End with a usage error if options contradict each other, or lack an option that they need."""
    given = [name for name in (*_CALL_OPTIONS, *_MODULE_OPTIONS) if getattr(options, name) is not None]
    flags = [f"--{name.replace('_', '-')}" for name in given]
    if given and options.recorded:
        options.refuse(f"{', '.join(flags)}: not allowed with --recorded, as the file has these for each shape")
    if given and not (options.hidden or options.model):
        options.refuse(f"{', '.join(flags)}: only allowed with --hidden or --model")
    module_flags = [flag for name, flag in zip(given, flags) if name in _MODULE_OPTIONS]
    if module_flags and options.model:
        options.refuse(f"{', '.join(module_flags)}: not allowed with --model, as its modules have these")
    if options.device and options.rehearse:
        options.refuse("--device: not allowed with --rehearse, which always emulates the same GPU")


def _choose_problems(options, device: Device) -> list[Problem]:
    """Return the problems to tune, in order: from a recorded run, a model, the sizes given, or the standard list.

    Problems with the same table key are merged, as they are tuned together.

    Raises:
        ValueError: there is no problem to tune, or the recorded file or the function's name is invalid.
        OSError: the recorded file cannot be read.
        TypeError, RuntimeError: the function does not return a model, or fails.
    """
    if options.recorded:
        problems = list(Recorded.load(options.recorded))
    elif options.model:
        problems = _list_model_problems(options)
    elif options.hidden:
        problems = _combine_sizes(options)
    else:
        problems = standard_problems(device)
        if not problems:
            example = standard_problems(KNOWN_DEVICES[_DEFAULT_DEVICE])[0]
            reason = heuristic("step", example, device)  # no configuration, as `step` does not serve the example
            raise ValueError(f"no kernel serves the standard shapes on {device.name}: {reason}")
    if not problems:
        reason = "no call was recorded" if options.recorded else "it has no GRU of a dtype that kernels serve"
        raise ValueError(f"no shape to tune in {options.recorded or options.model}: {reason}")
    return list(merge_problems(problems).values())


def _list_model_problems(options) -> list[Problem]:
    """Return the problems of the GRUs of the model that --model names, for all sizes and dtypes given.

    Raises:
        TypeError: the function does not return an nn.Module.
    """
    model = call_by_name(options.model)
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{options.model} must return an nn.Module, got {type(model).__name__}")
    batch_sizes, steps = options.batch or [1], options.steps or [1, 100]
    dtypes = [DTYPES[name] for name in options.dtype or ()] or [None]  # by default (None) that of the parameters
    return [problem for dtype in dtypes for problem in shapes_of(model, batch_sizes, steps, dtype)]


def _combine_sizes(options) -> list[Problem]:
    """Return a problem for each combination of the sizes and dtypes on the command line."""
    dtypes = [DTYPES[name] for name in options.dtype or ["fp32"]]
    sizes = itertools.product(
        dtypes, options.hidden, options.batch or [1], options.steps or [1, 100], options.layers or [1],
        options.input or [None],
    )  # fmt: skip
    return [build_problem(options, *size) for size in sizes]


def _list(options, device: Device | None) -> int:
    """Print the shapes to tune, for the GPU that --device names, else for ``device``, else for the default GPU.

    ``device`` is None if there is no GPU here.

    Return the exit status: 0 with --list, else 2, because tuning was asked for and there is no GPU.
    """
    known_device = limit_sms(KNOWN_DEVICES[options.device or _DEFAULT_DEVICE], read_max_sms())
    listed_device = known_device if options.device or device is None else device
    print(format_listing(_choose_problems(options, listed_device), listed_device))
    if options.list:
        return 0
    advice = (
        f"The list is for the GPU {listed_device.name}; --device names another. In a checkout, "
        "`python -m triton_gru tune --rehearse` tunes small sizes on this CPU"
    )
    print(f"triton-gru tune: nothing was tuned: {no_device_reason()}. {advice}", file=sys.stderr)
    return 2


def _tune(problems: list[Problem], device: torch.device, options) -> int:
    """Tune, show the progress, and print a summary. Return 0 if there are results and all were written, else 1.

    Raises:
        OSError: the table cannot be written.
    """
    _check_writable()
    start = time.monotonic()
    with show_progress() as report, warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: report(f"warning: {message}")
        budget = options.budget or float("inf")
        results = tune(problems, device=device, budget=budget, remeasure=options.remeasure, report=report)
    seconds = time.monotonic() - start
    print(f"\n{format_summary(results, len(problems), seconds, shows_table=not options.rehearse)}")
    return 0 if results and all(result.table_path for result in results) else 1


def _check_writable() -> None:
    """Raise OSError if nothing can be written to the user's folder of tables.

    Otherwise results would be lost when this process ends.
    """
    folder = store.user_directory()
    if folder is None:
        raise OSError("no home folder to keep results in: set TRITON_GRU_CONFIG_DIR to a folder")
    try:
        store.check_writable(folder)
    except OSError as error:
        raise OSError(
            f"cannot keep results in {folder}: {error.strerror or error}. "
            "Fix that, or set TRITON_GRU_CONFIG_DIR to another folder"
        ) from None
