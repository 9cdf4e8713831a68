"""A call that stands for a problem: a GRU with weights and inputs drawn at random."""

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from ..call.bind import Call, bind_gru
from ..modules import GRU
from ..plan.problem import Problem


@dataclasses.dataclass(frozen=True)
class Example:
    """A module and what it is called with.

    Attributes:
        ends: ``lengths`` and ``resets`` of the call, where it has them.
        call: all of it, bound.
    """

    gru: GRU
    x: Tensor | PackedSequence
    ends: dict[str, Tensor]
    call: Call


@contextlib.contextmanager
def open_example(problem: Problem, device: torch.device | str) -> Iterator[Example]:
    """Make an example. Inside, torch's precision of fp32 products is the problem's."""
    with pin_fp32_precision(problem.dtype, problem.precision):
        yield _example(problem, device)


@contextlib.contextmanager
def pin_fp32_precision(dtype: torch.dtype, precision: str) -> Iterator[None]:
    """Set torch's precision of fp32 products, in recurrent networks and everywhere else.

    In 16 bits it is TF32, torch's default for recurrent networks: with "ieee" torch forbids cuDNN the tensor cores for
    bf16, too.
    """
    precision = precision if dtype == torch.float32 else "tf32"
    recurrent, products = torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    before = recurrent.fp32_precision, products.fp32_precision
    recurrent.fp32_precision = precision
    products.allow_tf32 = precision == "tf32"  # sets fp32_precision, too; where they differ reading this one raises
    try:
        yield
    finally:
        recurrent.fp32_precision, products.allow_tf32 = before[0], before[1] == "tf32"
        products.fp32_precision = before[1]


def shorten_problem(problem: Problem) -> Problem:
    """Return the problem of a call as short as one can be that compiles the same."""
    layers = min(problem.num_layers, problem.directions)  # those above the first have as many inputs
    return dataclasses.replace(problem, steps=min(problem.steps, 2), num_layers=layers)


def _example(problem: Problem, device: torch.device | str) -> Example:
    gru = GRU(
        problem.input_size, problem.hidden_size, problem.num_layers, bidirectional=problem.bidirectional,
        reset_after=problem.reset_after, reverse=problem.reverse, device=device, dtype=problem.dtype,
    ).eval()  # fmt: skip
    steps, batch = problem.steps, problem.batch_size
    x = torch.randn(steps, batch, problem.input_size, device=device).to(problem.dtype)
    ends = {}
    # From T down to a quarter of it, evenly: what is typical nobody knows.
    lengths = torch.linspace(steps, max(1, steps // 4), batch, device="cpu").round().long()
    if problem.layout == "packed":
        x = pack_padded_sequence(x, lengths)
    elif problem.layout == "lengths":
        ends["lengths"] = lengths.to(device)
    if problem.resets:
        ends["resets"] = torch.rand(steps, batch, device=device) < 1 / 32
    return Example(gru, x, ends, bind_gru(gru, x, None, **ends))
