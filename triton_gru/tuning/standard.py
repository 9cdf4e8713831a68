"""The shapes that are tuned where nobody names any."""

import itertools

import torch

from ..plan.device import Device
from ..plan.heuristic import HEURISTICS, heuristic
from ..plan.problem import Problem

# Dtype and the precision of products: what the library is made for, and what is asked for less.
_FP16, _TF32, _BF16 = (torch.float16, "ieee"), (torch.float32, "tf32"), (torch.bfloat16, "ieee")
_MAIN = _FP16, _TF32
_SIZES = 512, 1024, 256  # hidden sizes, the most asked for first
_LONG = 64


def standard_problems(device: Device) -> list[Problem]:
    """Return the standard shapes that a kernel serves on ``device``, the most valuable first.

    All have one layer and as many inputs as hidden units. A verdict holds for inputs within a factor of four. What was
    measured at 64 steps holds for 32 and more.

    The list goes by rounds, so that any beginning of it is useful:

    1. What the library is made for: fp16 and TF32, hidden sizes 512, 1024 and 256, batches of 1 and 16, 64 steps.
    2. The same in a single step, as a cell or a stream makes it.
    3. Batches of 4 and 64.
    4. The next smaller and larger hidden sizes, 128 and 2048.
    5. bf16.
    6. Packed sequences, then both directions, whose verdicts do not follow from the rounds before.

    Example:
        >>> from triton_gru.plan.device import KNOWN_DEVICES
        >>> str(standard_problems(KNOWN_DEVICES["H200"])[0].key())
        'float16 H=512 I=512 B<=1 T=64'
    """
    rounds = (
        _round(_SIZES, _MAIN, (1, 16)),
        _round(_SIZES, _MAIN, (1, 16), steps=1),
        _round(_SIZES, _MAIN, (4, 64)),
        _round((128, 2048), _MAIN, (1, 16)),
        _round(_SIZES, (_BF16,), (1, 16)),
        _round(_SIZES, _MAIN, (16,), layout="packed"),
        _round(_SIZES, _MAIN, (1, 16), bidirectional=True),
    )
    return [each for each in itertools.chain(*rounds) if _is_served(each, device)]


def _round(hidden_sizes, precisions, batches, steps=_LONG, layout="dense", bidirectional=False) -> list[Problem]:
    return [
        Problem(
            steps, batch, hidden, hidden, num_layers=1, bidirectional=bidirectional, dtype=dtype,
            precision=precision, reset_after=True, layout=layout,
        )
        for hidden, batch, (dtype, precision) in itertools.product(hidden_sizes, batches, precisions)
    ]  # fmt: skip


def _is_served(problem: Problem, device: Device) -> bool:
    return any(not isinstance(heuristic(kernel, problem, device), str) for kernel in HEURISTICS)
