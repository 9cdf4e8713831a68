"""Tests of the ``block`` kernel against float64: shapes, and every kind of configuration."""

import pytest
import torch

from triton_gru.plan.config import BlockConfig
from triton_gru.plan.device import find_device
from triton_gru.plan.heuristic import block_config

from ..calls import FACTORS, case_id, make_call, make_gru, run_checked, use_config
from ..oracle import PRECISIONS
from ..pairwise import pairwise

PAIRS = pairwise(
    (1, 3, 25, 64, 96, 128, 200),  # hidden size
    (1, 3, 17),  # batch
    (1, 2, 7),  # steps
    *FACTORS,
    (1, 5, 40),  # input size
)


@pytest.mark.parametrize(
    "hidden, batch, steps, precision, layout, bias, layers, with_hx, reset_after, inputs",
    PAIRS,
    ids=[f"{case_id(*case[:-1])}-I{case[-1]}" for case in PAIRS],
)
def test_agrees_with_float64(
    hidden, batch, steps, precision, layout, bias, layers, with_hx, reset_after, inputs, device, launched
):
    """Check that a hidden size that does not fit raises instead."""
    gru, x, hx = make_call(
        "block", hidden, batch, steps, precision, layout, bias, layers, with_hx, reset_after, device, inputs
    )
    config = block_config(hidden, batch, 1, *PRECISIONS[precision], find_device(gru.weight_ih_l0.device))
    if isinstance(config, str):  # the reason: the largest hidden sizes do not fit
        with pytest.raises(RuntimeError, match="too large"):
            gru(x, hx)
        return
    output, _ = run_checked(gru, x, hx, precision, launched)
    assert output.is_contiguous()
    assert launched.scan_count == layers


CONFIGS = [
    BlockConfig(units=32, tiles=1, batch=2, ahead=1, register_tiles=3, num_warps=2),
    BlockConfig(units=32, tiles=1, batch=2, ahead=4, register_tiles=0, num_warps=1),
    BlockConfig(units=16, tiles=3, batch=2, ahead=2, register_tiles=6, num_warps=1),
    BlockConfig(units=32, tiles=1, batch=8, ahead=1, register_tiles=3, num_warps=2),
    BlockConfig(units=32, tiles=1, batch=8, ahead=2, register_tiles=3, num_warps=2),
    BlockConfig(units=32, tiles=1, batch=8, ahead=4, register_tiles=3, num_warps=2),
    BlockConfig(units=32, tiles=1, batch=16, ahead=1, register_tiles=3, num_warps=2),
    BlockConfig(units=32, tiles=1, batch=8, ahead=1, register_tiles=0, num_warps=2),
    BlockConfig(units=16, tiles=2, batch=8, ahead=1, register_tiles=0, num_warps=1),
    BlockConfig(units=16, tiles=3, batch=8, ahead=1, register_tiles=6, num_warps=1),
    BlockConfig(units=16, tiles=2, batch=16, ahead=2, register_tiles=7, num_warps=1),
]


def config_id(config):
    """Return the id of a test of one configuration."""
    size = f"{config.units}x{config.tiles}-B{config.batch}-ahead{config.ahead}"
    return f"{size}-{config.register_tiles}_in_registers"


@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("config", CONFIGS, ids=config_id)
def test_every_configuration_agrees_with_float64(config, steps, reset_after, device, launched):
    with use_config("block", config):
        gru = make_gru(5, 30, "fp16", device, reset_after=reset_after)
        x, hx = torch.randn(steps, 11, 5, device=device).half(), torch.randn(1, 11, 30, device=device).half()
        assert gru.plan(x, hx).config == config
        run_checked(gru, x, hx, "fp16", launched)
