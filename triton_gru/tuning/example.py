"""An example call of a problem: a GRU with random weights, and random inputs."""

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
    """A module, and the arguments of a call of this module.

    Attributes:
        gru: the module, in eval().
        x: the input.
        keywords: the keyword arguments ``lengths`` and ``resets`` of the call, those that the problem has.
        call: the call, bound by `bind_gru`.
    """

    gru: GRU
    x: Tensor | PackedSequence
    keywords: dict[str, Tensor]
    call: Call


@contextlib.contextmanager
def open_example(problem: Problem, device: torch.device | str) -> Iterator[Example]:
    """Yield an example call of a problem. Within the context, `pin_fp32_precision` sets torch's precision."""
    with pin_fp32_precision(problem.dtype, problem.precision):
        yield _make_example(problem, device)


@contextlib.contextmanager
def pin_fp32_precision(dtype: torch.dtype, precision: str) -> Iterator[None]:
    """Set torch's precision of fp32 products, in recurrent networks and matrix products, and restore it at the end.

    For dtypes other than float32, set TF32, torch's default for recurrent networks. With "ieee", torch also forbids
    cuDNN to use tensor cores for bf16.
    """
    precision = precision if dtype == torch.float32 else "tf32"
    recurrent, products = torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    before = recurrent.fp32_precision, products.fp32_precision
    recurrent.fp32_precision = precision
    products.allow_tf32 = precision == "tf32"  # also sets fp32_precision; reading allow_tf32 raises if the two differ
    try:
        yield
    finally:
        recurrent.fp32_precision, products.allow_tf32 = before[0], before[1] == "tf32"
        products.fp32_precision = before[1]


def shorten_problem(problem: Problem) -> Problem:
    """Return the problem of a short call that compiles the same kernels."""
    # Layers above the first have another number of inputs than the first, so keep two layers. A step in the middle of a
    # call compiles the same kernels as the first and the last step.
    return dataclasses.replace(problem, steps=min(problem.steps, 2), num_layers=min(problem.num_layers, 2))


def _make_example(problem: Problem, device: torch.device | str) -> Example:
    """Return a GRU in eval() of a problem's options, and a call of that GRU."""
    gru = GRU(
        problem.input_size, problem.hidden_size, problem.num_layers, bidirectional=problem.bidirectional,
        reset_after=problem.reset_after, reverse=problem.reverse, device=device, dtype=problem.dtype,
    ).eval()  # fmt: skip
    steps, batch = problem.steps, problem.batch_size
    x = torch.randn(steps, batch, problem.input_size, device=device).to(problem.dtype)
    keywords = {}
    # Lengths from T down to T / 4, evenly spaced. This is a guess: typical lengths are unknown.
    lengths = torch.linspace(steps, max(1, steps // 4), batch, device="cpu").round().long()
    if problem.layout == "packed":
        x = pack_padded_sequence(x, lengths)
    elif problem.layout == "lengths":
        keywords["lengths"] = lengths.to(device)
    if problem.resets:
        keywords["resets"] = torch.rand(steps, batch, device=device) < 1 / 32  # a guess: typical resets are unknown
    return Example(gru, x, keywords, bind_gru(gru, x, None, **keywords))
