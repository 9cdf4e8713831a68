"""Comparison of each kernel with float64 on this machine. The baseline is nn.GRU.

A kernel's error may exceed that of nn.GRU in the same precision by at most `MARGIN`. The unit of the margin is the last
place of 1.0, which is the scale of a GRU's outputs. The margin covers the kernels' own activations. These are accurate
to 2.5 units in fp32 (two hardware approximations each), and to half a unit in 16 bits. The recurrence feeds
errors back into later steps. In fp32 the order of sums adds to the margin (`compute_error_bound`).
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

# Name of a precision -> its dtype and its torch.backends.cudnn.rnn.fp32_precision.
PRECISIONS = {
    "fp32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "fp16": (torch.float16, "ieee"),
    "bf16": (torch.bfloat16, "ieee"),
}
# Kernel -> the hidden sizes at which `check_kernels` runs it. The kernel is made for these sizes.
HIDDEN_SIZES = {"block": (1, 25, 64, 100, 128, 192), "grid": (25, 200, 256, 400, 1024, 2048), "step": (1, 400, 4096)}
STEPS = 300  # time steps of each check
_INPUT_SIZE = 40  # of each check
MARGIN = {"fp32": 4, "tf32": 2, "fp16": 2, "bf16": 2}  # in units of the last place of 1.0 (TF32: 2^-10)
# `compute_exact` gives the reference slices of the batch with at most this many output elements. Otherwise the
# reference's temporary tensors may exceed the memory.
_MAX_OUTPUT_ELEMENTS = 1 << 27

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
    def for_call(cls, gru: nn.RNNBase, x: Input, hx: Tensor | None, precision: str, **extra_inputs: Tensor) -> "Judge":
        """Return the judge of ``gru(x, hx, **extra_inputs)``. ``extra_inputs`` may be lengths and resets."""
        with torch.no_grad():
            return cls(
                compute_exact(gru, x, hx, **extra_inputs),
                compute_baseline(gru, x, hx, **extra_inputs),
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
        """Return the largest error of ``results``, or NaN if a result contains NaN or does not have the exact shape."""
        pairs = [(result.data, exact) for result, exact in zip(results, self._exact)]
        if any(result.shape != exact.shape for result, exact in pairs):
            return math.nan
        return torch.stack([(result - exact).abs_().max() for result, exact in pairs]).max().item()


def compute_error_bound(baseline_error: float, precision: str, scale: float = 1.0, num_products: int = 0) -> float:
    """Return the largest error allowed.

    Args:
        baseline_error: the largest error of nn.GRU in the same precision.
        precision: a key of `PRECISIONS`.
        scale: largest magnitude of the exact results. Above 1, the margin grows with the scale.
        num_products: number of products K in a sum, if torch may add them in another order than the kernels. Else 0.

            The kernels add fp32 products one after another. Each addition rounds by at most half a unit of the sum so
            far, at random. Five standard deviations of K additions are eps sqrt(K) of the whole sum S. An activation f
            passes on at most half of that, as |S| f'(S) < 0.45. In TF32 and 16 bits, rounding the operands costs far
            more, and ``num_products`` is ignored.
    """
    last_place = 2.0**-10 if precision == "tf32" else torch.finfo(PRECISIONS[precision][0]).eps
    order_margin = math.sqrt(num_products) / 2 if precision == "fp32" else 0.0
    return baseline_error + (MARGIN[precision] + order_margin) * last_place * max(scale, 1.0)


def count_summed_products(gru: nn.RNNBase) -> int:
    """Return the number of products in the longest sum of a step: the most columns of any weight matrix."""
    return max(weight.size(1) for weight in gru.parameters() if weight.dim() == 2)  # a bias has one dimension


def compute_exact(
    gru: nn.RNNBase, x: Input, hx: Tensor | None, lengths: Tensor | None = None, resets: Tensor | None = None
) -> tuple[Input, Tensor]:
    """Return the output and h_n of ``gru(x, hx, lengths, resets)`` in float64, on the device of ``x``.

    The reference computes them. ``x`` is batched (three dimensions) or packed, never unbatched.
    """
    if isinstance(x, PackedSequence):
        hx = None if hx is None else gru.permute_hidden(hx, x.sorted_indices)
        padded, lengths = pad_packed_sequence(PackedSequence(x.data, x.batch_sizes), gru.batch_first)
        output, h_n = compute_exact(gru, padded, hx, lengths.to(padded.device))
        return pack_results(gru, x, pack_padded_sequence(output, lengths, gru.batch_first).data, h_n)
    # Without biases, a layer has two names: fill up with None to four entries, as in LayerWeights.
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
    rows_at_once = max(1, _MAX_OUTPUT_ELEMENTS // (steps * output.size(2)))
    for rows in (slice(start, start + rows_at_once) for start in range(0, batch, rows_at_once)):
        output[:, rows], h_n[:, rows] = reference.compute_gru(
            x[:, rows].double(), hx[:, rows].double(), weights,
            reset_after=options.reset_after, bidirectional=options.bidirectional, reverse=options.reverse,
            lengths=None if lengths is None else lengths[rows], resets=None if resets is None else resets[:, rows],
        )  # fmt: skip
    return output.transpose(0, 1) if gru.batch_first else output, h_n


def compute_baseline(
    gru: nn.RNNBase, x: Input, hx: Tensor | None, **extra_inputs: Tensor | None
) -> tuple[Input, Tensor]:
    """Return the output and h_n that nn.GRU computes for ``gru(x, hx, **extra_inputs)``.

    Exception: `compute_by_reference` computes a call that nn.GRU cannot serve: one with lengths or resets, or with an
    option that nn.GRU lacks.
    """
    if Options.from_module(gru).unsupported_by_nn_gru or any(tensor is not None for tensor in extra_inputs.values()):
        return compute_by_reference(gru, x, hx, **extra_inputs)
    return nn.GRU.forward(gru, x, hx)


def compute_by_reference(
    gru: nn.RNNBase, x: Input, hx: Tensor | None, **extra_inputs: Tensor | None
) -> tuple[Input, Tensor]:
    """Return the output and h_n that plain torch computes for ``gru(x, hx, **extra_inputs)``.

    The reference multiplies matrices by torch.matmul. So torch's precision of matrix products is set to that of
    recurrent networks meanwhile.
    """
    reference_gru = copy.copy(gru)
    reference_gru.backend = "reference"
    previous_precision = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.rnn.fp32_precision
    try:
        return reference_gru(x, hx, **extra_inputs)
    finally:
        torch.backends.cuda.matmul.fp32_precision = previous_precision


@dataclass(frozen=True)
class CheckResult:
    """The result of one check: a kernel at one shape in one precision.

    ``str(result)`` is a row of the table with the header `RESULT_HEADER`. ``error`` is the kernel's largest error.
    ``status`` is "right", "WRONG", or "not served: " and the reason. The errors of a shape that is not served are NaN.
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
        """Return whether the kernel serves the shape, so that its results were compared with float64."""
        return self.status in ("right", "WRONG")


_ROW = "{:6}  {:9}  {:18}  {:11}  {:>7}  {:>7}  {}"
# The column "nn.GRU" has the baseline's error. With reset_after=False, the baseline is plain PyTorch.
RESULT_HEADER = _ROW.format("kernel", "precision", "shape", "reset_after", "error", "nn.GRU", "").rstrip()


def check_kernels(device: torch.device | str) -> Iterator[CheckResult]:
    """Yield a `CheckResult` for each kernel, precision and shape, with random inputs.

    ``device`` is a GPU. While the results are iterated, torch's precision for recurrent networks is changed. At the end
    it is restored.
    """
    previous_precision = torch.backends.cudnn.rnn.fp32_precision
    try:
        for kernel, precision in itertools.product(KERNELS, PRECISIONS):
            dtype = set_precision(precision)
            batch_sizes_and_reset_after = ((1, True), (17, True), (17, False))  # 17 rows do not fill their last tile
            shapes = itertools.product(HIDDEN_SIZES[kernel], batch_sizes_and_reset_after)
            for hidden_size, (batch_size, reset_after) in shapes:
                options = {"num_layers": 2, "reset_after": reset_after, "backend": kernel}
                gru = GRU(_INPUT_SIZE, hidden_size, device=device, dtype=dtype, **options).eval()
                x = torch.randn(STEPS, batch_size, _INPUT_SIZE, device=device).to(dtype)
                hx = torch.randn(2, batch_size, hidden_size, device=device).to(dtype)
                yield _check_one(gru, x, hx, precision)
    finally:
        torch.backends.cudnn.rnn.fp32_precision = previous_precision


def _check_one(gru: GRU, x: Tensor, hx: Tensor, precision: str) -> CheckResult:
    """Return the `CheckResult` of ``gru(x, hx)``. The module's backend names the kernel."""
    shape = (gru.backend, gru.reset_after, precision, gru.hidden_size, x.size(1), x.size(0))
    try:
        gru.plan(x, hx)
    except CannotServe as error:
        return CheckResult(*shape, math.nan, math.nan, f"not served: {error.reason}")
    judge = Judge.for_call(gru, x, hx, precision)
    with torch.no_grad():
        largest_error, is_right = judge(gru(x, hx))
    return CheckResult(*shape, largest_error, judge.baseline_error, "right" if is_right else "WRONG")
