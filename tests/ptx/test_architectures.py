"""Tests of the kernels as compiled for Ampere and consumer Blackwell. tests/kernels tests them for Hopper."""

import pytest
import torch

from triton_gru.accuracy import PRECISIONS
from triton_gru.plan.planner import KERNELS

from ..calls import LAYOUTS, make_call, run_checked
from ..pairwise import pairwise

CASES = pairwise(
    ("A100", "RTX 5090"),
    KERNELS,
    tuple(PRECISIONS),
    (True, False),  # reset after
    ("", "lengths", "resets"),
    LAYOUTS,
    ((25, 3, 2), (40, 17, 3), (64, 9, 1)),  # hidden size, batch, steps
    ("forward", "both"),
)


@pytest.mark.parametrize(
    "gpu, kernel, precision, reset_after, ends, layout, sizes, directions", CASES, indirect=["gpu"],
    ids=["-".join(map(str, case)) for case in CASES],
)  # fmt: skip
def test_agrees_with_float64(gpu, kernel, precision, reset_after, ends, layout, sizes, directions):
    gru, x, hx = make_call(
        kernel, *sizes, precision, layout, True, 1, True, reset_after, "cpu", inputs=40, directions=directions
    )
    options = {}
    if ends == "lengths":
        options["lengths"] = torch.randint(0, sizes[2] + 1, (sizes[1],))
    elif ends == "resets" and directions == "forward":
        options["resets"] = torch.rand(x.shape[:2]) < 0.3
    run_checked(gru, x, hx, precision, gpu.launched, **options)
