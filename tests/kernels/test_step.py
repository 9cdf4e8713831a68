"""Tests of the ``step`` kernel against float64, and of its number of launches."""

import pytest
import torch

from triton_gru.plan.config import StepConfig

from ..calls import FACTORS, case_id, make_call, make_gru, run_checked, use_config
from ..pairwise import pairwise

PAIRS = pairwise(
    (1, 25, 96, 200),  # hidden size
    (1, 3, 40),  # batch
    (1, 2),  # steps
    *FACTORS,
)
LARGE = [
    (400, 17, 1, "tf32", "time_first", True, 1, True, False),
    (600, 3, 2, "fp16", "odd_offset", True, 1, True, True),
]


@pytest.mark.parametrize(
    "hidden, batch, steps, precision, layout, bias, layers, with_hx, reset_after",
    PAIRS + LARGE,
    ids=[case_id(*case) for case in PAIRS + LARGE],
)
def test_agrees_with_float64(
    hidden, batch, steps, precision, layout, bias, layers, with_hx, reset_after, device, launched
):
    gru, x, hx = make_call("step", hidden, batch, steps, precision, layout, bias, layers, with_hx, reset_after, device)
    run_checked(gru, x, hx, precision, launched)
    launches_per_step = 1 if reset_after else 2
    if steps == 1:
        of_layer = ["whole_step"] * launches_per_step
    else:
        of_layer = ["input_projection"] + ["step_scan"] * (launches_per_step * steps)
    assert launched == layers * of_layer


@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("units, batch", [(16, 16), (16, 64), (32, 32), (32, 64)])
def test_every_configuration_agrees_with_float64(units, batch, reset_after, device, launched):
    config = StepConfig(units, -(-40 // units), batch, depth=64, num_warps=4, num_stages=2)
    with use_config("step", config):
        gru = make_gru(5, 40, "fp16", device, "step", reset_after=reset_after)
        x, hx = torch.randn(3, 33, 5, device=device).half(), torch.randn(1, 33, 40, device=device).half()
        assert gru.plan(x, hx).config == config
        run_checked(gru, x, hx, "fp16", launched)
