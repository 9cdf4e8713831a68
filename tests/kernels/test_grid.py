"""Tests of the ``grid`` kernel against float64: shapes, every kind of configuration, every hand-over."""

import dataclasses

import pytest
import torch

from triton_gru.launch import grid
from triton_gru.plan.config import HANDOVERS, GridConfig
from triton_gru.plan.device import find_device
from triton_gru.plan.heuristic import grid_config

from ..calls import FACTORS, case_id, make_call, make_gru, run_checked, use_config
from ..oracle import PRECISIONS
from ..pairwise import pairwise

SMALL = pairwise((1, 25, 40), (1, 9), (1, 4), *FACTORS)
LARGE = [
    (96, 9, 3, "tf32", "batch_first", False, 1, True, False),
    (96, 3, 3, "bf16", "time_first", True, 2, False, True),
    (200, 17, 3, "fp16", "time_first", True, 1, True, False),
    (256, 9, 3, "tf32", "odd_offset", True, 1, True, True),
    (200, 1, 2, "fp32", "transposed", True, 1, False, False),
    (600, 3, 2, "fp16", "odd_offset", True, 1, True, True),
]


@pytest.mark.parametrize(
    "hidden, batch, steps, precision, layout, bias, layers, with_hx, reset_after",
    SMALL + LARGE,
    ids=[case_id(*case) for case in SMALL + LARGE],
)
def test_agrees_with_float64(
    hidden, batch, steps, precision, layout, bias, layers, with_hx, reset_after, device, launched
):
    gru, x, hx = make_call("grid", hidden, batch, steps, precision, layout, bias, layers, with_hx, reset_after, device)
    output, _ = run_checked(gru, x, hx, precision, launched)
    assert output.is_contiguous()


# 40 hidden units fill two and a half programs, and one slice of 32 units and a quarter of another.
CONFIG = GridConfig(16, programs=3, batch=8, rows=8, tiles=1, copies=1, slices=4, register_tiles=3)
CONFIGS = {
    "one tile after the other": CONFIG,
    "two copies": dataclasses.replace(CONFIG, copies=2),
    "two tiles in flight": dataclasses.replace(CONFIG, tiles=2),
    "three tiles in flight, two copies": dataclasses.replace(CONFIG, tiles=3, copies=2),
    "wider tiles": dataclasses.replace(CONFIG, batch=16, rows=16, tiles=2),
    "widest tiles": dataclasses.replace(CONFIG, batch=32, rows=32),
    "eight slices": dataclasses.replace(CONFIG, slices=8, register_tiles=0),
    "one slice": dataclasses.replace(CONFIG, slices=1, register_tiles=6),
    "32 units": dataclasses.replace(CONFIG, units=32, programs=2),
}


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize(
    "name, handover", [*((name, "flag") for name in CONFIGS), ("three tiles in flight, two copies", "probe")]
)
def test_every_configuration_agrees_with_float64(name, handover, reset_after, device, launched):
    config = dataclasses.replace(CONFIGS[name], handover=handover)
    with use_config("grid", config):
        gru = make_gru(5, 40, "fp16", device, "grid", reset_after=reset_after)
        # Five tiles of eight rows, of which the last is not full. Groups of two or three tiles have a tail as well.
        x, hx = torch.randn(3, 33, 5, device=device).half(), torch.randn(1, 33, 40, device=device).half()
        assert gru.plan(x, hx).config == config
        run_checked(gru, x, hx, "fp16", launched)


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("handover", HANDOVERS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_handover_carries_every_precision(precision, handover, reset_after, device, launched):
    with use_config("grid", dataclasses.replace(CONFIG, handover=handover, register_tiles=0)):
        gru = make_gru(5, 40, precision, device, "grid", reset_after=reset_after)
        x, hx = torch.randn(3, 3, 5, device=device), torch.randn(1, 3, 40, device=device)
        # Values that a hand-over must not change. Row 1 becomes NaN by its input, and row 2 by its state.
        x[0, 1, 2] = hx[0, 2, 33] = float("nan")
        hx[0, 0, 7] = float("inf")
        dtype = PRECISIONS[precision][0]
        run_checked(gru, x.to(dtype), hx.to(dtype), precision, launched)


@pytest.mark.parametrize("hidden, batch", [(25, 3), (1000, 17), (2048, 64), (512, 4096)])
@pytest.mark.parametrize("handovers", [1, 2])
def test_the_mailbox_is_bounded(hidden, batch, handovers, device):
    """Check that the mailbox has at most `MAILBOX_BYTES`, or the hand-overs of one time step and the first state."""
    properties = find_device(torch.device(device))
    config = grid_config(hidden, batch, 1, torch.float16, "ieee", dataclasses.replace(properties, sms=132))
    mailbox = grid.Mailbox(config, batch, handovers, torch.float16)
    words = mailbox.count_words(min(mailbox.max_steps, 10**6))  # of 8 bytes
    rows = -(-batch // (config.batch * config.tiles)) * config.tiles * config.batch
    # The last term is more than the header.
    one_step_bytes = (1 + handovers) * rows * config.padded_hidden * 2 + 1024 * rows
    assert 8 * words <= max(grid.MAILBOX_BYTES, one_step_bytes)
    assert mailbox.count_words(1) <= words
