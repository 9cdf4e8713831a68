"""The standard shapes, which ``triton-gru tune`` tunes if no shapes are named."""

import itertools

import torch

from ..plan.device import Device
from ..plan.heuristic import HEURISTICS, heuristic
from ..plan.problem import Problem

# (dtype, precision of products). The library is made for fp16 and TF32.
_FP16, _TF32, _BF16 = (torch.float16, "ieee"), (torch.float32, "tf32"), (torch.bfloat16, "ieee")
_MAIN_PRECISIONS = _FP16, _TF32
_MAIN_SIZES = 512, 1024, 256  # hidden sizes, the most used first
_SEQUENCE_STEPS = 64  # steps of all shapes except the single steps


def standard_problems(device: Device) -> list[Problem]:
    """Return the standard shapes that a kernel serves on ``device``, the most valuable first.

    All have one layer and I = H. A result holds for I within a factor of four. A result at 64 steps holds for 32 and
    more.

    The list goes in rounds, so that a run with little time tunes the most useful shapes:

    1. The shapes that the library is made for: fp16 and TF32, H = 512, 1024 and 256, B = 1 and 16, 64 steps.
    2. The same with a single step, as in a cell or a stream.
    3. As 1, with B = 4 and 64.
    4. As 1, with the next smaller and larger hidden sizes, 128 and 2048.
    5. As 1, in bf16.
    6. As 1, with packed sequences and B = 16, then with both directions. Their results do not follow from earlier
       rounds.

    Example:
        >>> from triton_gru.plan.device import KNOWN_DEVICES
        >>> str(standard_problems(KNOWN_DEVICES["H200"])[0].key())
        'float16 H=512 I=512 B<=1 T=64'
    """
    rounds = (
        _list_round(_MAIN_SIZES, _MAIN_PRECISIONS, (1, 16)),
        _list_round(_MAIN_SIZES, _MAIN_PRECISIONS, (1, 16), steps=1),
        _list_round(_MAIN_SIZES, _MAIN_PRECISIONS, (4, 64)),
        _list_round((128, 2048), _MAIN_PRECISIONS, (1, 16)),
        _list_round(_MAIN_SIZES, (_BF16,), (1, 16)),
        _list_round(_MAIN_SIZES, _MAIN_PRECISIONS, (16,), layout="packed"),
        _list_round(_MAIN_SIZES, _MAIN_PRECISIONS, (1, 16), bidirectional=True),
    )
    return [problem for problem in itertools.chain(*rounds) if _is_served(problem, device)]


def _list_round(
    hidden_sizes, precisions, batch_sizes, steps=_SEQUENCE_STEPS, layout="dense", bidirectional=False
) -> list[Problem]:
    """Return the problems of all combinations of sizes and precisions, with the hidden size varying slowest."""
    return [
        Problem(
            steps, batch_size, input_size=hidden_size, hidden_size=hidden_size, num_layers=1,
            bidirectional=bidirectional, dtype=dtype, precision=precision, reset_after=True, layout=layout,
        )
        for hidden_size, batch_size, (dtype, precision) in itertools.product(hidden_sizes, batch_sizes, precisions)
    ]  # fmt: skip


def _is_served(problem: Problem, device: Device) -> bool:
    """Return whether the heuristic has a configuration of at least one kernel."""
    return any(not isinstance(heuristic(kernel, problem, device), str) for kernel in HEURISTICS)
