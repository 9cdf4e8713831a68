"""A user's own shapes: from sizes on the command line, or from the GRUs that a model calls."""

import argparse
import itertools
import sys

import torch

import triton_gru
from triton_gru.accuracy import PRECISIONS
from triton_gru.commands.arguments import import_attribute, parse_positive_int
from triton_gru.plan.problem import LAYOUTS, Problem

from .case import Case
from .sweeps import EVERYONE, SWEEPS, Sweep

DTYPES = ("fp32", "fp16", "bf16")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of a shape to the command ``perf run``. Its default ``shape_options`` has their names."""
    size = {"type": parse_positive_int, "nargs": "+"}
    group = command.add_argument_group("with --hidden", "All combinations of the sizes are timed.")
    actions = [
        group.add_argument("--input", metavar="I", help="input sizes (default: the hidden size)", **size),
        group.add_argument("--batch", metavar="B", help="default: 1", **size),
        group.add_argument("--steps", metavar="T", help="default: 100", **size),
        group.add_argument("--layers", metavar="N", type=parse_positive_int),
        group.add_argument("--bidirectional", action="store_true"),
        group.add_argument("--reset-before", action="store_true", help="reset before the recurrent product"),
        group.add_argument("--layout", choices=LAYOUTS, help="lengths are drawn: T / 4 to T (default: dense)"),
        group.add_argument("--dtype", choices=DTYPES, nargs="+", help="default: fp32"),
        group.add_argument("--precision", choices=("tf32", "ieee"), help="of fp32 products (default: tf32)"),
    ]
    command.set_defaults(shape_options=[action.dest for action in actions])


def choose_sweep(options: argparse.Namespace) -> Sweep:
    """Return the sweep that ``--sweep`` names, or the sweep of the user's own shapes.

    Raises:
        ValueError: options of a shape are given without ``--hidden``, or `build_sweep` raises.
    """
    given = [f"--{name.replace('_', '-')}" for name in options.shape_options if getattr(options, name)]
    if given and not options.hidden:
        raise ValueError(f"{' '.join(given)} would have no effect: add --hidden, or omit them")
    return SWEEPS[options.sweep] if options.sweep else build_sweep(options)


def build_sweep(options: argparse.Namespace) -> Sweep:
    """Return the sweep of the cases that ``--hidden`` with its options, or ``--model``, describes.

    Raises:
        ValueError: the function of ``--model`` cannot be imported, or calls no GRU that can be timed.
    """
    cases = _find_cases_of_model(options.model) if options.model else _combine_sizes(options)
    return Sweep("own", "How fast is each provider at these shapes?", 0, EVERYONE, tuple(dict.fromkeys(cases)))


def _combine_sizes(options: argparse.Namespace) -> list[Case]:
    """Return a case for each combination of the sizes and dtypes on the command line, or of their defaults."""
    fp32_precision = "fp32" if options.precision == "ieee" else "tf32"
    precisions = [fp32_precision if dtype == "fp32" else dtype for dtype in options.dtype or ["fp32"]]
    batches, steps, inputs = options.batch or [1], options.steps or [100], options.input or [None]
    return [
        Case(
            precision, h, b, t, layers=options.layers or 1, directions=1 + options.bidirectional,
            layout=options.layout or "dense", reset_after=not options.reset_before, input_size=i,
        )
        for precision, h, i, b, t in itertools.product(precisions, options.hidden, inputs, batches, steps)
    ]  # fmt: skip


def _find_cases_of_model(name: str) -> list[Case]:
    """Call the function ``name``, given as ``module:function``. Return a case for each shape of its GRU calls.

    The most frequent shape is first. Calls with resets, or that run backward alone, are skipped, and named on
    stderr, because only ours can serve them.

    Raises:
        ValueError: see `build_sweep`.
    """
    try:
        call = import_attribute(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--model {name}: {error}; give MODULE:FUNCTION") from error
    with torch.no_grad(), triton_gru.record_shapes() as shapes:
        call()
    if not shapes.seen:
        raise ValueError(
            f"--model {name}: the function called no GRU in 16 or 32 bits; it must call the model, not only build it"
        )
    cases = []
    for problem, _ in shapes.seen.most_common():
        if problem.resets or problem.reverse:
            print(f"skipped, because only ours has resets or runs backward alone: {problem}", file=sys.stderr)
        else:
            cases.append(_make_case(problem))
    if not cases:
        raise ValueError(f"--model {name}: all its GRUs have resets or run backward alone, which only ours can do")
    return cases


def _make_case(problem: Problem) -> Case:
    """Return the case of a problem without resets that does not run backward alone."""
    names = {precision: name for name, precision in PRECISIONS.items()}
    return Case(
        names[problem.dtype, problem.precision], problem.hidden_size, problem.batch_size, problem.steps,
        layers=problem.num_layers, directions=problem.directions, layout=problem.layout,
        reset_after=problem.reset_after, input_size=problem.input_size,
    )  # fmt: skip
