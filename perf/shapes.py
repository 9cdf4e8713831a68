"""One's own shapes: of the command line's sizes, or of the GRUs that a model calls."""

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
    """Add the options that a shape is made of to ``perf run``."""
    size = {"type": parse_positive_int, "nargs": "+"}
    group = command.add_argument_group("beside --hidden", "All combinations of the sizes are timed.")
    added = [
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
    command.set_defaults(beside_hidden=[action.dest for action in added])


def choose_sweep(options: argparse.Namespace) -> Sweep:
    """Return the sweep that ``--sweep`` names, or one's own.

    Raises:
        ValueError: options that go with ``--hidden`` are without it, or see `build_sweep`.
    """
    given = [f"--{name.replace('_', '-')}" for name in options.beside_hidden if getattr(options, name)]
    if given and not options.hidden:
        raise ValueError(f"{' '.join(given)} would be of no effect: they go with --hidden")
    return SWEEPS[options.sweep] if options.sweep else build_sweep(options)


def build_sweep(options: argparse.Namespace) -> Sweep:
    """Return the sweep of the cases that ``--hidden`` and the options beside it, or ``--model``, are of.

    Raises:
        ValueError: the model cannot be called, or calls no GRU that can be timed.
    """
    cases = _called_by(options.model) if options.model else _of_sizes(options)
    return Sweep("own", "How fast is each provider at these shapes?", 0, EVERYONE, tuple(dict.fromkeys(cases)))


def _of_sizes(options: argparse.Namespace) -> list[Case]:
    fp32 = "fp32" if options.precision == "ieee" else "tf32"
    precisions = [fp32 if each == "fp32" else each for each in options.dtype or ["fp32"]]
    batches, steps, inputs = options.batch or [1], options.steps or [100], options.input or [None]
    return [
        Case(
            precision, h, b, t, options.layers or 1, 1 + options.bidirectional, options.layout or "dense",
            reset_after=not options.reset_before, input_size=i,
        )
        for precision, h, i, b, t in itertools.product(precisions, options.hidden, inputs, batches, steps)
    ]  # fmt: skip


def _called_by(name: str) -> list[Case]:
    """Call ``module:function`` and return a case for each kind of call that it makes of GRUs, the most frequent first.

    Raises:
        ValueError: see `build_sweep`.
    """
    try:
        call = import_attribute(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--model {name}: {error}; it has to be MODULE:FUNCTION") from error
    with torch.no_grad(), triton_gru.record_shapes() as shapes:
        call()
    if not shapes.seen:
        raise ValueError(
            f"--model {name}: it called no GRU in 16 or 32 bits; it has to call the model, not only make it"
        )
    found = [(problem, _case(problem)) for problem, _ in shapes.seen.most_common()]
    for problem in (problem for problem, case in found if case is None):
        print(f"left out, as no provider but ours has resets or runs backward alone: {problem}", file=sys.stderr)
    if not any(case for _, case in found):
        raise ValueError(f"--model {name}: none of its GRUs can be timed")
    return [case for _, case in found if case]


def _case(problem: Problem) -> Case | None:
    if problem.resets or problem.reverse:
        return None
    names = {of: name for name, of in PRECISIONS.items()}
    return Case(
        names[problem.dtype, problem.precision], problem.hidden_size, problem.batch_size, problem.steps,
        problem.num_layers, problem.directions, problem.layout, reset_after=problem.reset_after,
        input_size=problem.input_size,
    )  # fmt: skip
