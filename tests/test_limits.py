"""Sizes at the limits of launches and of 32-bit counts in kernels: served within both, or refused with a reason.

Nothing is allocated. tests/kernels/test_limits.py and tests/ptx/test_limits.py check the addresses in memory.
"""

import dataclasses
import itertools
import math

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

import triton_gru
from triton_gru.accuracy import set_precision
from triton_gru.call.bind import bind_gru
from triton_gru.launch import execute
from triton_gru.launch.kernel_launch import Launch
from triton_gru.plan.config import CUBLAS
from triton_gru.plan.device import KNOWN_DEVICES
from triton_gru.plan.planner import KERNELS, choose
from triton_gru.plan.validity import MAX_LAUNCH_GRID, MAX_SIZE, unsupported_projection_reason

from .pairwise import pairwise

H200 = KNOWN_DEVICES["H200"]
# Sizes on both sides of four limits: the programs of a dimension, weights of 2**31 elements, the elements of a tile of
# gate inputs, and `MAX_SIZE`.
SIZES = pairwise(
    (1, 70_000, 64 * 65_535, 64 * 65_535 + 1, 111_059_956, MAX_SIZE, MAX_SIZE + 1, 2**31),  # batch
    (1, 32, 128, 512, 26_752, 33_024, 16 * 65_535, 16 * 65_535 + 1, 32 * 65_535 + 1, 12_000_000),  # hidden
    (1, 80, 32_768, MAX_SIZE + 1),  # inputs
    (1, 2, MAX_SIZE, MAX_SIZE + 1),  # steps
    (False, True),  # both directions
    ("dense", "lengths"),
    ("fp16", "fp32"),
    (True, False),  # reset after
)


def make_call(batch, hidden, inputs, steps, bidirectional=False, layout="dense", precision="fp16", reset_after=True):
    """Return a call of tensors on the meta device, which have sizes and no memory."""
    dtype = set_precision(precision)
    with torch.device("meta"):
        options = {"bidirectional": bidirectional, "reset_after": reset_after, "dtype": dtype}
        gru = triton_gru.GRU(inputs, hidden, **options).eval()
        x = torch.empty(steps, batch, inputs, dtype=dtype)
        lengths = torch.empty(batch, dtype=torch.int64) if layout == "lengths" else None
        return bind_gru(gru, x, None, lengths)


def list_first_launches(call, plan, projection=None):
    """Return the kernel launches among the first four of a call. A call may have 2**31 launches."""
    results = execute.allocate(call)
    launches = execute.launches(call, plan.config, plan.device, *results, projection=projection)
    return [launch for launch in itertools.islice(launches, 4) if isinstance(launch, Launch)]


def assert_launch_fits(launch):
    """Assert that a launch can start, and that the 32-bit counts of its kernel fit."""
    grid = (*launch.programs, 1, 1)[:3]
    assert all(0 < size <= limit for size, limit in zip(grid, MAX_LAUNCH_GRID)), launch
    assert math.prod(grid) < 2**31, launch  # otherwise Triton would start nothing
    cut = launch.constants["cut"]
    parameters = dict(zip(launch.kernel.arg_names, launch.args)) | launch.constants
    parameters |= {field.name: getattr(cut, field.name).value for field in dataclasses.fields(cut)}
    integers = {name: value for name, value in parameters.items() if isinstance(value, int)}
    strides = {"x_t", "x_b", "x_i", "out_t", "out_b", "hx_l", "hx_b"}
    assert all(-(2**31) <= value < 2**31 for name, value in integers.items() if name not in strides), integers
    tile_rows = parameters["COLUMNS"] if "COLUMNS" in parameters else parameters["BATCH"]
    rows = -(-parameters["batch"] // tile_rows) * tile_rows
    tile = (
        3 * (parameters.get("PADDED_H") or -(-parameters["H"] // parameters["UNITS"]) * parameters["UNITS"]) * tile_rows
    )
    # Counts that kernels compute, with the largest step that each can go beyond its end.
    largest_counts = parameters.get("total", 1) + 16, rows, tile, parameters["H"] + 32, parameters.get("I", 0) + 128
    assert max(largest_counts) < 2**31, parameters
    name = launch.kernel.__name__
    if name in ("input_projection", "arrange_products"):
        assert grid[0] * parameters["BLOCK_N"] < 2**31 and grid[1] * parameters["BLOCK_M"] < 2**31, parameters
    elif name in ("block_scan", "grid_scan"):
        assert 3 * parameters["H"] ** 2 < 2**31, parameters


@pytest.mark.parametrize("device", KNOWN_DEVICES.values(), ids=lambda device: device.name)
def test_sizes_are_served_within_limits_or_refused(device):
    served, refused = set(), {}
    for sizes in SIZES:
        batch, hidden, inputs, steps, *_ = sizes
        if steps * batch * max(inputs, 2 * hidden) >= 2**60:  # torch itself has no such tensor
            continue
        call = make_call(*sizes)
        for backend in ("auto", *KERNELS):
            try:
                plan = choose(call.problem, device, backend)
            except RuntimeError as error:
                refused[sizes, backend] = str(error)
                continue
            if plan.config is not None:
                served.add(sizes)
                by_cublas = unsupported_projection_reason(CUBLAS, plan.config, call.problem, device) == ""
                for projection in (None, CUBLAS) if by_cublas else (None,):
                    for launch in list_first_launches(call, plan, projection):
                        assert_launch_fits(launch)
    assert len(served) > 10 and len(refused) > 10
    assert all("too large" in reason for reason in refused.values())


@pytest.mark.parametrize("hidden", [32, 128, 512])
def test_batches_of_graph_nodes_are_served(hidden):
    """A batch may be all nodes of a graph dataset: ogbn-papers100M has 111059956."""
    for batch, steps, backend in itertools.product((4_300_000, 111_059_956, MAX_SIZE), (1, 3), KERNELS):
        call = make_call(batch, hidden, hidden, steps)
        if backend == "block" and hidden > 256:
            continue
        for launch in list_first_launches(call, choose(call.problem, H200, backend)):
            assert_launch_fits(launch)
        if hidden == 32:
            assert choose(call.problem, H200).kernel in ("block", "step")


@pytest.mark.parametrize(
    "sizes, reason",
    [
        ((2**31, 1, 1, 1), f"batch_size {2**31} is too large: kernels count in 32 bits, up to {MAX_SIZE}"),
        ((1, 1, 1, 2**31), f"steps {2**31} is too large"),
        ((1, 1, 2**31, 1), f"input_size {2**31} is too large"),
        ((1, 1_500_000, 1, 1), r"would have 1 x \d{5} x 1 programs, and may have 2147483647 x 65535 x 65535"),
        ((2**29, 100_000, 1, 1), r"programs, and may have .* at most 2147483647 in all"),
    ],
)
def test_refuses_too_large_sizes_with_a_reason(sizes, reason):
    problem = make_call(*sizes).problem
    with pytest.raises(RuntimeError, match=reason):
        choose(problem, H200, "step")
    assert choose(problem, H200).kernel == "torch"


def test_refuses_too_many_packed_rows():
    with torch.device("meta"):
        gru = triton_gru.GRU(1, 1, dtype=torch.float16).eval()
    for steps in (2**15 - 1, 2**15):
        batch_sizes = torch.full((steps,), 2**16)
        data = torch.empty(steps * 2**16, 1, dtype=torch.float16, device="meta")
        problem = bind_gru(gru, PackedSequence(data, batch_sizes), None).problem
        if steps == 2**15:
            assert choose(problem, H200).kernel == "torch"
            with pytest.raises(RuntimeError, match="packed data of 2147483648 rows is too large"):
                choose(problem, H200, "block")
        else:
            assert choose(problem, H200, "block").kernel == "block"
