"""Whether the kernels are right on this machine: each against float64, with torch's own GRU as the yardstick.

A kernel may be wronger than torch in the same precision by `MARGIN` units of the last place of 1.0, the scale of
a GRU's outputs, and no more. The margin is what the kernels' own activations cost: fp32 ones are good to 2.5
units (two hardware approximations each), 16-bit ones to half a unit, and the recurrence feeds errors back.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import reference
from .call.options import Options
from .modules import GRU
from .plan.planner import KERNELS

# name: (dtype, torch.backends.cudnn.rnn.fp32_precision)
PRECISIONS = {
    "fp32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "fp16": (torch.float16, "ieee"),
    "bf16": (torch.bfloat16, "ieee"),
}
# Of a check: what each kernel is for on a GPU, and what the interpreter gets through in a minute.
HIDDEN_SIZES = {
    "cuda": {"block": (1, 25, 64, 100, 128, 192), "grid": (25, 200, 256, 400, 1024, 2048), "step": (1, 400, 4096)},
    "cpu": {"block": (1, 25, 64, 100, 128), "grid": (1, 25, 100), "step": (1, 25, 100)},
}
STEPS = {"cuda": 300, "cpu": 2}
MARGIN = {"fp32": 4, "tf32": 2, "fp16": 2, "bf16": 2}


def set_precision(name: str) -> torch.dtype:
    """Sets torch's precision for recurrent networks to that of ``name`` and returns the dtype that goes with it."""
    dtype, torch.backends.cudnn.rnn.fp32_precision = PRECISIONS[name]
    return dtype


def bound(torchs_error: float, precision: str, scale: float = 1.0, summed: int = 0) -> float:
    """Return the largest error allowed.

    Args:
        torchs_error: torch's own in the same precision.
        scale: how large the numbers are.
        summed: how many products a sum has, if torch may have added them in another order. The kernels add fp32
            products one after another. Each addition rounds by half a unit of the sum so far at most, at random, and
            five standard deviations of K of them are eps sqrt(K) of the whole sum S. An activation f passes on at
            most half of that, as |S| f'(S) < 0.45. In TF32 and 16 bits the operands' rounding is far larger.
    """
    unit = 2.0**-10 if precision == "tf32" else torch.finfo(PRECISIONS[precision][0]).eps
    order = math.sqrt(summed) / 2 if precision == "fp32" else 0.0
    return torchs_error + (MARGIN[precision] + order) * unit * max(scale, 1.0)


def summed(gru: nn.RNNBase) -> int:
    """Return how many products the longest sum of a step has."""
    return max(weight.size(1) for weight in gru.parameters() if weight.dim() == 2)


def exact(
    gru: nn.RNNBase, x: Tensor, hx: Tensor | None, lengths: Tensor | None = None, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``gru(x, hx, lengths, resets)`` in float64 by the reference, computed and given where ``x`` is; it is batched."""
    weights = []
    for names in gru._all_weights:
        parameters = [getattr(gru, name).detach().double() for name in names]
        weights.append((*parameters, None, None)[:4])
    if gru.batch_first:
        x, resets = x.transpose(0, 1), None if resets is None else resets.transpose(0, 1)
    x = x.double()
    hx = x.new_zeros(len(weights), x.size(1), gru.hidden_size) if hx is None else hx.double()
    output, h_n = reference.gru(
        x,
        hx,
        weights,
        reset_after=getattr(gru, "reset_after", True),
        bidirectional=gru.bidirectional,
        reverse=getattr(gru, "reverse", False),
        lengths=lengths,
        resets=resets,
    )
    return output.transpose(0, 1) if gru.batch_first else output, h_n


def torchs_own(
    gru: nn.RNNBase, x: Tensor, hx: Tensor | None, lengths: Tensor | None = None, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same call by torch's own GRU; where it has no such GRU, `by_reference`."""
    if lengths is None and resets is None and not Options.of(gru).beyond_torch:
        return nn.GRU.forward(gru, x, hx)
    return by_reference(gru, x, hx, lengths, resets)


def by_reference(
    gru: nn.RNNBase, x: Tensor, hx: Tensor | None, lengths: Tensor | None = None, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same call by plain torch, in the same precision."""
    plain = copy.copy(gru)
    plain.backend = "reference"
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.rnn.fp32_precision
    try:
        return plain(x, hx, lengths=lengths, resets=resets)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@dataclass(frozen=True)
class Result:
    """One shape checked. ``status`` is "right", "WRONG", or why the kernel does not serve the shape."""

    kernel: str
    reset_after: bool
    precision: str
    hidden_size: int
    batch_size: int
    steps: int
    error: float
    torchs_error: float
    status: str

    def __str__(self) -> str:
        kind = f"{self.kernel:6} reset {'after' if self.reset_after else 'before':6} {self.precision:5}"
        shape = f"{kind} H={self.hidden_size:<4} B={self.batch_size:<4} T={self.steps:<4}"
        errors = (
            "" if self.status not in ("right", "WRONG") else f"error {self.error:.1e}, torch {self.torchs_error:.1e}"
        )
        return f"{shape} {errors:32} {self.status}"


def check(device: torch.device | str) -> Iterator[Result]:
    """Runs every kernel on fresh random numbers over sizes, precisions and odd shapes, one `Result` each.

    ``device`` is a GPU, or the CPU under ``TRITON_INTERPRET=1``. torch's precision for recurrent networks is
    changed while the generator runs, and put back.
    """
    kind = torch.device(device).type
    before = torch.backends.cudnn.rnn.fp32_precision
    try:
        for kernel in KERNELS:
            for precision in PRECISIONS:
                dtype = set_precision(precision)
                for hidden_size in HIDDEN_SIZES[kind][kernel]:
                    for batch_size, reset_after in ((1, True), (17, True), (17, False)):
                        options = {"num_layers": 2, "reset_after": reset_after, "backend": kernel}
                        gru = GRU(40, hidden_size, device=device, dtype=dtype, **options).eval()
                        x = torch.randn(STEPS[kind], batch_size, 40, device=device).to(dtype)
                        hx = torch.randn(2, batch_size, hidden_size, device=device).to(dtype)
                        yield _check_one(gru, x, hx, kernel, precision)
    finally:
        torch.backends.cudnn.rnn.fp32_precision = before


def _check_one(gru: GRU, x: Tensor, hx: Tensor, kernel: str, precision: str) -> Result:
    shape = (kernel, gru.reset_after, precision, gru.hidden_size, x.size(1), x.size(0))
    try:
        gru.plan(x, hx)
    except RuntimeError as refusal:
        return Result(*shape, float("nan"), float("nan"), f"not served: {refusal}")
    expected = exact(gru, x, hx)
    with torch.no_grad():
        actual, torchs = gru(x, hx), torchs_own(gru, x, hx)
    error, torchs_error = (
        max((a.double() - b).abs().max().item() for a, b in zip(results, expected)) for results in (actual, torchs)
    )
    right = error <= bound(torchs_error, precision, summed=summed(gru))  # False for NaN
    return Result(*shape, error, torchs_error, "right" if right else "WRONG")
