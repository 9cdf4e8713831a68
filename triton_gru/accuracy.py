"""Comparison of each kernel with float64 on this machine. The baseline is nn.GRU.

A kernel's error may exceed that of nn.GRU in the same precision by at most `MARGIN`. The unit of the margin is the last
place of 1.0, which is the scale of a GRU's outputs. The margin covers the kernels' own activations. These are accurate
to 2.5 units in fp32 (two hardware approximations each), and to half a unit in 16 bits. The recurrence feeds
errors back.
"""

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from . import reference
from .call.options import Options
from .call.sequences import pack_results
from .modules import GRU
from .plan.planner import KERNELS, CannotServe

# name: (dtype, torch.backends.cudnn.rnn.fp32_precision)
PRECISIONS = {
    "fp32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "fp16": (torch.float16, "ieee"),
    "bf16": (torch.bfloat16, "ieee"),
}
# `check_kernels` runs each kernel at these sizes, for which it is made.
HIDDEN_SIZES = {"block": (1, 25, 64, 100, 128, 192), "grid": (25, 200, 256, 400, 1024, 2048), "step": (1, 400, 4096)}
STEPS = 300
MARGIN = {"fp32": 4, "tf32": 2, "fp16": 2, "bf16": 2}
_NUMBERS_AT_ONCE = 1 << 27  # outputs that the reference computes together, which bounds its temporary memory

Input = Tensor | PackedSequence
Results = Sequence[Input]


def set_precision(name: str) -> torch.dtype:
    """Set torch's precision for recurrent networks to that of ``name``, a key of `PRECISIONS`. Return its dtype."""
    dtype, torch.backends.cudnn.rnn.fp32_precision = PRECISIONS[name]
    return dtype


class Judge:
    """A judge of results: it compares their error against float64 with that of a baseline in the same precision.

    Args:
        exact: results in float64.
        baseline: results of the baseline, in ``precision``.
        precision: a key of `PRECISIONS`.
        scale, num_products: as in `compute_error_bound`.

    Attributes:
        baseline_error: the largest error of the baseline.
        allowed: the largest error that right results may have.
    """

    def __init__(self, exact: Results, baseline: Results, precision: str, scale: float = 1.0, num_products: int = 0):
        self._exact = [result.data for result in exact]
        self.baseline_error = self._error(baseline)
        self.allowed = compute_error_bound(self.baseline_error, precision, scale, num_products)

    @classmethod
    def for_call(cls, gru: nn.RNNBase, x: Input, hx: Tensor | None, precision: str, **ends: Tensor) -> "Judge":
        """Return the judge of ``gru(x, hx, **ends)``; ``ends`` are lengths and resets."""
        with torch.no_grad():
            return cls(
                compute_exact(gru, x, hx, **ends),
                compute_baseline(gru, x, hx, **ends),
                precision,
                num_products=count_summed_products(gru),
            )

    def __call__(self, results: Results, slack: float = 1.0) -> tuple[float, bool]:
        """Return the largest error of ``results``, and whether they are right.

        Args:
            results: output and last states, or the output alone. A packed output may be passed as its data.
            slack: factor by which results may exceed the allowed error.
        """
        error = self._error(results)
        return error, error <= slack * self.allowed  # False for NaN

    def _error(self, results: Results) -> float:
        """Return the largest error; NaN if a result has a NaN or another shape."""
        pairs = [(result.data, exact) for result, exact in zip(results, self._exact)]
        if any(result.shape != exact.shape for result, exact in pairs):
            return math.nan
        return torch.stack([(result - exact).abs_().max() for result, exact in pairs]).max().item()


def compute_error_bound(baseline_error: float, precision: str, scale: float = 1.0, num_products: int = 0) -> float:
    """Return the largest error allowed.

    Args:
        baseline_error: the largest error of nn.GRU in the same precision.
        precision: a key of `PRECISIONS`.
        scale: magnitude of the numbers.
        num_products: number of products K in a sum, if torch may have added them in another order. 0 if not.

            The kernels add fp32 products one after another. Each addition rounds by at most half a unit of the sum so
            far, at random. Five standard deviations of K additions are eps sqrt(K) of the whole sum S. An activation f
            passes on at most half of that, as |S| f'(S) < 0.45. In TF32 and 16 bits, rounding the operands costs far
            more.
    """
    unit = 2.0**-10 if precision == "tf32" else torch.finfo(PRECISIONS[precision][0]).eps
    order = math.sqrt(num_products) / 2 if precision == "fp32" else 0.0
    return baseline_error + (MARGIN[precision] + order) * unit * max(scale, 1.0)


def count_summed_products(gru: nn.RNNBase) -> int:
    """Return the number of products in the longest sum of a step."""
    return max(weight.size(1) for weight in gru.parameters() if weight.dim() == 2)


def compute_exact(
    gru: nn.RNNBase, x: Input, hx: Tensor | None, lengths: Tensor | None = None, resets: Tensor | None = None
) -> tuple[Input, Tensor]:
    """Return ``gru(x, hx, lengths, resets)`` in float64, computed by the reference on the device of batched ``x``."""
    if isinstance(x, PackedSequence):
        hx = None if hx is None else gru.permute_hidden(hx, x.sorted_indices)
        padded, lengths = pad_packed_sequence(PackedSequence(x.data, x.batch_sizes), gru.batch_first)
        output, h_n = compute_exact(gru, padded, hx, lengths.to(padded.device))
        return pack_results(gru, x, pack_padded_sequence(output, lengths, gru.batch_first).data, h_n)
    weights = [
        (*(getattr(gru, name).detach().double() for name in names), None, None)[:4] for names in gru._all_weights
    ]
    if gru.batch_first:
        x, resets = x.transpose(0, 1), None if resets is None else resets.transpose(0, 1)
    options, (steps, batch, _) = Options.from_module(gru), x.shape
    if hx is None:
        hx = x.new_zeros(len(weights), batch, gru.hidden_size)
    output = x.new_empty(steps, batch, gru.hidden_size * (1 + gru.bidirectional), dtype=torch.double)
    h_n = torch.empty_like(hx, dtype=torch.double)
    at_once = max(1, _NUMBERS_AT_ONCE // (steps * output.size(2)))
    for rows in (slice(first, first + at_once) for first in range(0, batch, at_once)):
        output[:, rows], h_n[:, rows] = reference.compute_gru(
            x[:, rows].double(), hx[:, rows].double(), weights,
            reset_after=options.reset_after, bidirectional=options.bidirectional, reverse=options.reverse,
            lengths=None if lengths is None else lengths[rows], resets=None if resets is None else resets[:, rows],
        )  # fmt: skip
    return output.transpose(0, 1) if gru.batch_first else output, h_n


def compute_baseline(gru: nn.RNNBase, x: Input, hx: Tensor | None, **ends: Tensor | None) -> tuple[Input, Tensor]:
    """Return the results of the call by nn.GRU. Exception: `compute_by_reference` for what nn.GRU cannot serve."""
    if Options.from_module(gru).unsupported_by_nn_gru or any(tensor is not None for tensor in ends.values()):
        return compute_by_reference(gru, x, hx, **ends)
    return nn.GRU.forward(gru, x, hx)


def compute_by_reference(gru: nn.RNNBase, x: Input, hx: Tensor | None, **ends: Tensor | None) -> tuple[Input, Tensor]:
    """Return the results of the call by plain torch, in the same precision."""
    reference_gru = copy.copy(gru)
    reference_gru.backend = "reference"
    previous_precision = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.rnn.fp32_precision
    try:
        return reference_gru(x, hx, **ends)
    finally:
        torch.backends.cuda.matmul.fp32_precision = previous_precision


@dataclass(frozen=True)
class CheckResult:
    """The result for one shape. Its text is a row of the table with the header `RESULT_HEADER`.

    ``status`` is "right", "WRONG", or why the kernel does not serve the shape.
    """

    kernel: str
    reset_after: bool
    precision: str
    hidden_size: int
    batch_size: int
    steps: int
    error: float
    baseline_error: float
    status: str

    def __str__(self) -> str:
        shape = f"H={self.hidden_size:<4} B={self.batch_size:<2} T={self.steps}"
        errors = [f"{error:.1e}" if self.is_judged else "" for error in (self.error, self.baseline_error)]
        reset_after = "" if self.reset_after else "False"
        return _ROW.format(self.kernel, self.precision, shape, reset_after, *errors, self.status)

    @property
    def is_judged(self) -> bool:
        return self.status in ("right", "WRONG")


_ROW = "{:6}  {:9}  {:18}  {:11}  {:>7}  {:>7}  {}"
# The column "nn.GRU" has the baseline's error. With reset_after=False, the baseline is plain PyTorch.
RESULT_HEADER = _ROW.format("kernel", "precision", "shape", "reset_after", "error", "nn.GRU", "").rstrip()


def check_kernels(device: torch.device | str) -> Iterator[CheckResult]:
    """Run every kernel on random numbers, and yield a `CheckResult` for each size, precision and batch size.

    ``device`` is a GPU. The generator changes torch's precision for recurrent networks, and restores it at its end.
    """
    previous_precision = torch.backends.cudnn.rnn.fp32_precision
    try:
        for kernel, precision in itertools.product(KERNELS, PRECISIONS):
            dtype = set_precision(precision)
            shapes = itertools.product(HIDDEN_SIZES[kernel], ((1, True), (17, True), (17, False)))
            for hidden_size, (batch_size, reset_after) in shapes:
                options = {"num_layers": 2, "reset_after": reset_after, "backend": kernel}
                gru = GRU(40, hidden_size, device=device, dtype=dtype, **options).eval()
                x = torch.randn(STEPS, batch_size, 40, device=device).to(dtype)
                hx = torch.randn(2, batch_size, hidden_size, device=device).to(dtype)
                yield _check_one(gru, x, hx, precision)
    finally:
        torch.backends.cudnn.rnn.fp32_precision = previous_precision


def _check_one(gru: GRU, x: Tensor, hx: Tensor, precision: str) -> CheckResult:
    shape = (gru.backend, gru.reset_after, precision, gru.hidden_size, x.size(1), x.size(0))
    try:
        gru.plan(x, hx)
    except CannotServe as error:
        return CheckResult(*shape, math.nan, math.nan, f"not served: {error.reason}")
    judge = Judge.for_call(gru, x, hx, precision)
    with torch.no_grad():
        largest_error, is_right = judge(gru(x, hx))
    return CheckResult(*shape, largest_error, judge.baseline_error, "right" if is_right else "WRONG")
