"""Options that several commands of ``triton-gru`` share, and functions that interpret them."""

import argparse
import importlib
import os
import re
import sys
import traceback

import torch

from ..call.torch_state import cublas_unsupported_reason
from ..plan.problem import LAYOUTS, Problem

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
TUNED_DTYPES = [name for name in DTYPES if name != "fp64"]


def make_problem_parser() -> argparse.ArgumentParser:
    """Return a parent parser with the options of a problem except sizes and dtype, which each command adds itself.

    An option that is not given is None.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--precision", choices=("tf32", "ieee"), help="precision of fp32 products (default: tf32)")
    parser.add_argument("--bidirectional", action="store_true", default=None, help="both directions")
    parser.add_argument(
        "--reset-before", action="store_true", default=None,
        help="reset_after=False: the reset gate comes before the recurrent product",
    )  # fmt: skip
    parser.add_argument("--layout", choices=LAYOUTS, help="layout of the sequences (default: dense)")
    return parser


def build_problem(
    options, dtype: torch.dtype, hidden: int, batch: int, steps: int, layers: int, inputs: int | None
) -> Problem:
    """Return the problem of this dtype and these sizes. The options of `make_problem_parser` set most other fields.

    ``inputs`` is the hidden size if it is None. torch's settings decide `cublas_unsupported_reason`.
    """
    precision = (options.precision or "tf32") if dtype == torch.float32 else "ieee"
    return Problem(
        steps=steps,
        batch_size=batch,
        input_size=inputs or hidden,
        hidden_size=hidden,
        num_layers=layers,
        bidirectional=bool(options.bidirectional),
        dtype=dtype,
        precision=precision,
        reset_after=not options.reset_before,
        layout=options.layout or "dense",
        cublas_unsupported_reason=cublas_unsupported_reason(dtype, precision),
    )


def parse_positive_int(text: str) -> int:
    """Return a positive whole number from the command line. Raise ArgumentTypeError for any other text."""
    if not re.fullmatch(r"0*[1-9]\d*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {text!r}")
    return int(text)


def import_attribute(name: str):
    """Return the object that ``module:attribute`` names. The module may be in the current folder.

    Raises:
        AttributeError: the module has no such attribute.
        Exception: importing the module raises it.
    """
    module, _, attribute = name.partition(":")
    if sys.path[0] != (folder := os.getcwd()):
        sys.path.insert(0, folder)
    return getattr(importlib.import_module(module), attribute)


def call_by_name(name: str):
    """Return the result of the function ``module:function``.

    Raises:
        ValueError: ``name`` does not have that form.
        RuntimeError: the function cannot be imported or called, or raises.
    """
    if not re.fullmatch(r"[\w.]+:\w+", name):
        raise ValueError(f"name the function as MODULE:FUNCTION, such as mypackage.model:build, got {name!r}")
    try:
        return import_attribute(name)()
    except Exception as error:
        *_, innermost = traceback.extract_tb(error.__traceback__)
        # A name such as "<frozen importlib._bootstrap>" is Python's import system.
        is_in_user_code = innermost.filename != __file__ and not innermost.filename.startswith("<")
        where = f" ({innermost.filename}:{innermost.lineno})" * is_in_user_code
        raise RuntimeError(f"{name} failed with {type(error).__name__}: {error}{where}") from None


def choose_device() -> torch.device:
    """Return the device for the kernels' tensors: the current GPU, or else the CPU, where a GPU may be emulated."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
