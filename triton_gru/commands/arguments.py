"""What the commands of ``triton-gru`` have in common: options, and what is made of them."""

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
    """Return a parser, to be a parent of others, of the options of a problem that are no sizes. Unset ones are None."""
    form = argparse.ArgumentParser(add_help=False)
    form.add_argument("--precision", choices=("tf32", "ieee"), help="of fp32 products (default: tf32)")
    form.add_argument("--bidirectional", action="store_true", default=None)
    form.add_argument("--reset-before", action="store_true", default=None, help="reset before the recurrent product")
    form.add_argument("--layout", choices=LAYOUTS, help="of the sequences (default: dense)")
    return form


def build_problem(
    options, dtype: torch.dtype, hidden: int, batch: int, steps: int, layers: int, inputs: int | None
) -> Problem:
    """Return the problem of these sizes, in the form that the options of `make_problem_parser` say."""
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
    """Return a number of the command line that counts something."""
    if not re.fullmatch(r"0*[1-9]\d*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {text!r}")
    return int(text)


def import_attribute(name: str):
    """Return what ``module:attribute`` names. The module may be in the current folder.

    Raises what importing it raises, or AttributeError.
    """
    module, _, attribute = name.partition(":")
    if sys.path[0] != (here := os.getcwd()):
        sys.path.insert(0, here)
    return getattr(importlib.import_module(module), attribute)


def call_by_name(name: str):
    """Return what the function ``module:function`` returns.

    Raises:
        ValueError: that is not how a function is named.
        RuntimeError: it cannot be imported or called, or fails.
    """
    if not re.fullmatch(r"[\w.]+:\w+", name):
        raise ValueError(f"a function is named as MODULE:FUNCTION, such as mypackage.model:build, got {name!r}")
    try:
        return import_attribute(name)()
    except Exception as error:
        *_, last = traceback.extract_tb(error.__traceback__)
        is_theirs = last.filename != __file__ and not last.filename.startswith("<")  # frozen: Python's import
        where = f" ({last.filename}:{last.lineno})" * is_theirs
        raise RuntimeError(f"{name} failed with {type(error).__name__}: {error}{where}") from None


def choose_device() -> torch.device:
    """Return where tensors lie for the kernels: on the current GPU, or on the CPU, where one may be emulated."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
