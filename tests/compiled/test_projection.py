"""Tests of the compiled input projection: it fits into shared memory, and spills little enough for tuning to try it."""

import dataclasses
import random

import pytest
import torch

from triton_gru.kernels.projection import arrange_products
from triton_gru.plan.config import CUBLAS
from triton_gru.plan.heuristic import heuristic
from triton_gru.tuning.compile_pool import compile_candidate, list_launches
from triton_gru.tuning.space import Candidate, projections

from ..planted import PROBLEM
from .harness import KNOWN_DEVICES, KernelStats, set_compile_target

DEVICES = {device.arch: device for device in KNOWN_DEVICES.values()}


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_a_tile_takes_no_more_shared_memory_than_estimated(device):
    """Check a random tile of the input projection in a random precision."""
    draw = random.Random(torch.initial_seed())
    precision = draw.choice(["fp16", "tf32", "fp32"])
    dtype = torch.float16 if precision == "fp16" else torch.float32
    fields = {"dtype": dtype, "precision": "tf32" if precision == "tf32" else "ieee", "batch_size": 8}
    problem = dataclasses.replace(PROBLEM, hidden_size=128, **fields)
    set_compile_target(device)
    config = heuristic("grid", problem, device)
    tiles = [projection for projection in projections(problem, config, device) if projection != CUBLAS]
    assert len(tiles) > 3
    tile = draw.choice(tiles)
    assert compile_candidate(problem, device, Candidate("grid", config, tile)) == ""
    set_compile_target(device)
    projection, _ = list_launches(problem, Candidate("grid", config, tile), device)
    assert KernelStats(projection.compile()).shared <= tile.shared_memory(dtype.itemsize)


@pytest.mark.parametrize("kernel", ["block", "grid"])
@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_arranging_products_of_cublas_spills_nothing(kernel, device):
    problem = dataclasses.replace(PROBLEM, hidden_size=64, input_size=64, batch_size=64)
    set_compile_target(device)
    config = heuristic(kernel, problem, device)
    if kernel == "block":
        config = dataclasses.replace(config, batch=8, ahead=1)
    arranging, _ = list_launches(problem, Candidate(kernel, config, CUBLAS), device)
    assert arranging.kernel is arrange_products
    stats = KernelStats(arranging.compile())
    assert stats.stack == 0 and stats.shared <= 64 * 64 * 4 + 1024  # a tile in fp32, and padding
