"""Random calls of compiled kernels, for as long as one likes: ``python -m tests.ptx NAME SEED SECONDS``.

Each campaign is a function of a random generator and of the emulated GPU, which runs one case. It raises an error if
the result is wrong, and returns a description of the case. The tests run a few cases of each campaign.
"""

import contextlib
import dataclasses
import random
from unittest import mock

import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import triton_gru
from triton_gru.accuracy import PRECISIONS
from triton_gru.call.bind import bind_gru
from triton_gru.launch import execute, grid, hang
from triton_gru.plan.config import HANDOVERS, BlockConfig, GridConfig, Projection, StepConfig
from triton_gru.plan.planner import KERNELS, choose
from triton_gru.plan.problem import Problem
from triton_gru.plan.validity import unsupported_config_reason
from triton_gru.tuning.space import projections

from ..calls import LAYOUTS, check_results, make_call, make_gru, run_checked, use_config, use_projection
from ..conftest import poison_memory
from .device import EmulatedGpu


class Skipped(Exception):
    """An exception for a drawn case that the kernel does not serve."""


# Hidden sizes, batch sizes and input sizes around the edges of tiles, words and chunks.
HIDDEN = {
    "block": (1, 3, 16, 25, 64, 96, 100, 128, 192),
    "grid": (1, 3, 16, 25, 64, 96, 128, 200, 256),
    "step": (1, 3, 16, 25, 64, 96, 128, 200, 256),
}
BATCH, STEPS, INPUTS = (1, 3, 8, 17, 40), (1, 2, 3, 5), (1, 7, 16, 40, 130)
VALUES = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf"), "large": 6e4}


def matrix(draw: random.Random, gpu: EmulatedGpu) -> str:
    """Check a call whose kernel, sizes, precision, layout, ends, configuration and odd numbers are all drawn."""
    kernel, precision = draw.choice(KERNELS), draw.choice((*PRECISIONS, "fp16"))
    hidden, batch, inputs = (_draw_size(draw, sizes) for sizes in (HIDDEN[kernel], BATCH, INPUTS))
    steps = draw.choice(STEPS)
    directions = draw.choice(("forward", "reverse", "both"))
    ends = draw.choice(("dense", "dense", "lengths", "packed", "resets", "lengths and resets"))
    if directions != "forward" and "resets" in ends:
        ends = "lengths"
    gru, x, hx = make_call(
        kernel, hidden, batch, steps, precision, draw.choice(LAYOUTS), draw.random() < 0.7, draw.choice((1, 1, 2, 3)),
        draw.random() < 0.6, draw.random() < 0.6, "cpu", inputs=inputs, directions=directions,
    )  # fmt: skip
    if hx is not None and draw.random() < 0.2:
        hx = _off_by_one(hx)
    if draw.random() < 0.15:
        for name, parameter in list(gru.named_parameters()):
            setattr(gru, name, torch.nn.Parameter(_off_by_one(parameter.detach())))
    value = draw.choice(("", "", "", *VALUES))
    if value:
        target = draw.choice([x, gru.weight_hh_l0.detach(), *([] if hx is None else [hx])])
        target[tuple(draw.randrange(size) for size in target.shape)] = VALUES[value]
    config = _draw_config(draw, kernel, hidden, batch, precision, directions) if draw.random() < 0.75 else None
    chunks = draw.random() < 0.3 and (draw.choice((1, 100_000)), draw.choice((1, 8 << 20)))
    description = f"{gru}, {precision}, T={steps}, B={batch}, {ends}, {value}, chunks {chunks}, {config}"
    with contextlib.ExitStack() as stack:
        if chunks:
            stack.enter_context(mock.patch.object(execute, "WORKSPACE_BYTES", chunks[0]))
            stack.enter_context(mock.patch.object(grid, "MAILBOX_BYTES", chunks[1]))
        call = _draw_ends(draw, ends, gru, x)
        if config is not None:
            reason = unsupported_config_reason(config, bind_gru(gru, call[0], hx, **call[1]).problem, gpu.device)
            if reason:
                raise Skipped(reason)
            stack.enter_context(use_config(kernel, config))
        projection = _draw_projection(draw, gru, bind_gru(gru, call[0], hx, **call[1]).problem, gpu)
        stack.enter_context(use_projection(projection))
        description += f", {projection}"
        _check_call(gpu, gru, x, hx, precision, ends, *call)
        if draw.random() < 0.3:  # the second call of a signature is prepared
            _check_call(gpu, gru, x, hx, precision, ends, *call)
    return description


def _draw_size(draw: random.Random, edges: tuple[int, ...]) -> int:
    """Return one of ``edges``, or any number up to the last edge."""
    return draw.choice((draw.choice(edges), draw.randint(1, edges[-1])))


def _check_call(gpu, gru, x, hx, precision, ends, input, options) -> None:
    try:
        gru.plan(input, hx, **options)
    except RuntimeError as reason:
        raise Skipped(str(reason)) from reason
    if ends != "packed":
        run_checked(gru, x, hx, precision, gpu.launched, **options)
        return
    gpu.launched.clear()
    with torch.no_grad(), poison_memory():
        output, h_n = gru(input, hx)
    assert gpu.launched.has_only(gru.backend)
    output, lengths = pad_packed_sequence(output, gru.batch_first, total_length=x.size(1 if gru.batch_first else 0))
    check_results(gru, x, hx, precision, output, h_n, lengths=lengths)


def _draw_ends(draw: random.Random, ends: str, gru, x: torch.Tensor) -> tuple:
    """Return the input as the call takes it, and the call's other arguments."""
    batch, steps = x.shape[:2] if gru.batch_first else (x.size(1), x.size(0))
    if ends == "packed":
        lengths = torch.tensor([steps, *(draw.randint(1, steps) for _ in range(batch - 1))])
        return pack_padded_sequence(x, lengths, gru.batch_first, enforce_sorted=False), {}
    options = {}
    if "lengths" in ends:
        lengths = [draw.randint(0, steps) for _ in range(batch)]
        lengths[batch // 2] = steps + 7
        options["lengths"] = torch.tensor(lengths, dtype=draw.choice((torch.int64, torch.int32, torch.uint8)))
    if "resets" in ends:
        options["resets"] = torch.rand(x.shape[:2]) < 0.3
    return x, options


def _draw_projection(draw: random.Random, gru, problem: Problem, gpu: EmulatedGpu) -> Projection | None:
    """Return a projection of the inputs: half of the time the default (None), else cuBLAS or another tile."""
    try:
        config = choose(problem, gpu.device, gru.backend).config
    except RuntimeError:
        return None
    choices = projections(problem, config, gpu.device)
    return draw.choice([None, None, *choices[:1], *([draw.choice(choices)] if choices else [])])


def _draw_config(draw: random.Random, kernel: str, hidden: int, batch: int, precision: str, directions: str):
    itemsize, ieee = PRECISIONS[precision][0].itemsize, precision == "fp32"
    if kernel == "grid":
        return _draw_grid_config(draw, hidden, batch, precision, directions)
    if kernel == "block":
        units = draw.choice([units for units in (16, 32, 64, 128) if -(-hidden // units) <= 4])
        tiles = -(-hidden // units)
        in_registers = 0 if ieee else draw.choice((0, 3 * tiles**2, draw.randint(0, 3 * tiles**2)))
        return BlockConfig(units, tiles, draw.choice((2, 2, 8, 16)), draw.choice((1, 1, 2, 4)), in_registers,
                           draw.choice((1, 2, 4, 8)))  # fmt: skip
    units = draw.choice((16, 32))
    return StepConfig(units, -(-hidden // units), draw.choice((16, 32, 64)), draw.choice((64, 128, 256)) // itemsize,
                      draw.choice((4, 8)), draw.choice((1, 2, 3, 4)))  # fmt: skip


def _draw_grid_config(draw: random.Random, hidden: int, batch: int, precision: str, directions: str) -> GridConfig:
    ieee = precision == "fp32"
    units = 16 if ieee else draw.choice((16, 16, 32))
    rows = columns = draw.choice((8, 8, 16))
    tiles = draw.choice((1, 2, 3))
    if tiles == 1 and columns >= batch and draw.random() < 0.6:
        rows = 1 << (batch - 1).bit_length()
    config = GridConfig(
        units, -(-hidden // units), columns, rows, tiles, draw.choice((1, 1, 2, 3)), draw.choice((4, 8)), 0,
        draw.choice(HANDOVERS), 2 if directions == "both" and draw.random() < 0.7 else 1,
    )  # fmt: skip
    weight_tiles = config.weight_tiles(PRECISIONS[precision][0].itemsize)
    return dataclasses.replace(config, register_tiles=draw.choice((0, weight_tiles, weight_tiles)))


def _off_by_one(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy whose data pointer is one element past an aligned address."""
    copied = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
    return copied.copy_(tensor)


def stress(draw: random.Random, gpu: EmulatedGpu, schedules: int = 30) -> str:
    """Check that a call of ``grid`` is right, and the same to the bit under many schedules."""
    precision, hidden = draw.choice(list(PRECISIONS)), draw.choice((16, 25, 40, 64, 96, 130))
    batch, steps = draw.choice((1, 8, 9, 17, 33)), draw.choice((4, 6, 9))
    directions, reset_after = draw.choice(("forward", "both")), draw.random() < 0.6
    config = _draw_grid_config(draw, hidden, batch, precision, directions)
    gru, x, hx = make_call(
        "grid", hidden, batch, steps, precision, "time_first", True, 1, True, reset_after, "cpu", inputs=8,
        directions=directions,
    )  # fmt: skip
    ends = {"lengths": torch.randint(0, steps + 1, (batch,))} if draw.random() < 0.3 else {}
    workspace = 240 * config.padded_hidden if draw.random() < 0.3 else execute.WORKSPACE_BYTES
    description = f"{gru}, {precision}, T={steps}, B={batch}, {ends}, workspace {workspace}, {config}"
    reason = unsupported_config_reason(config, bind_gru(gru, x, hx, **ends).problem, gpu.device)
    if reason:
        raise Skipped(reason)
    with use_config("grid", config), mock.patch.object(execute, "WORKSPACE_BYTES", workspace):
        first = run_checked(gru, x, hx, precision, gpu.launched, **ends)
        for _ in range(schedules - 1):
            with torch.no_grad(), poison_memory():
                again = gru(x, hx, **ends)
            assert all(torch.equal(a, b) for a, b in zip(first, again)), "another schedule gives another result"
    triton_gru.raise_if_hung()
    return description


def payloads(draw: random.Random, gpu: EmulatedGpu, kernel: str | None = None) -> str:
    """Check that NaNs of any payload, in the input or the initial state, stay in their rows as NaNs."""
    kernel = kernel or draw.choice(KERNELS)
    precision, reset_after, handover = draw.choice(list(PRECISIONS)), draw.random() < 0.5, draw.choice(HANDOVERS)
    dtype = PRECISIONS[precision][0]
    integer, mantissa = {
        torch.float16: (torch.int16, 10), torch.bfloat16: (torch.int16, 7), torch.float32: (torch.int32, 23),
    }[dtype]  # fmt: skip
    patterns = [1, (1 << mantissa) - 1, 1 << mantissa - 1, *(draw.randrange(1, 1 << mantissa) for _ in range(5))]
    infinity = torch.tensor([float("inf")], dtype=dtype).view(integer).item()
    nans = torch.tensor([infinity | pattern for pattern in patterns], dtype=integer)
    nans = torch.cat([nans, nans | torch.iinfo(integer).min]).view(dtype)  # of both signs: one has the bits of -1
    assert nans.isnan().all()
    gru = make_gru(16, 64, precision, "cpu", kernel, reset_after=reset_after)
    x, hx = torch.randn(3, 2 * len(nans), 16).to(dtype), torch.randn(1, 2 * len(nans), 64).to(dtype)
    target = draw.choice(("x", "hx"))
    for i, nan in enumerate(nans):
        row = (x[draw.randrange(2)] if target == "x" else hx[0])[2 * i]
        row[draw.randrange(len(row))] = nan
    config = GridConfig(16, 4, 8, 8, 1, 1, 4, 0, handover)
    with use_config("grid", config) if kernel == "grid" else contextlib.nullcontext():
        output, _ = run_checked(gru, x, hx, precision, gpu.launched)
    assert output[-1, ::2].isnan().any(dim=1).all()
    return f"{kernel}, {precision}, {target}, reset_after={reset_after}, {handover}"


def timeouts(draw: random.Random, gpu: EmulatedGpu, case: tuple | None = None) -> str:
    """Check that a ``grid`` launch without its last program gives NaN and an error, and that the next call is right."""
    precision, handover, reset_after, tiles = case or (
        draw.choice(list(PRECISIONS)), draw.choice(HANDOVERS), draw.random() < 0.5, draw.choice((1, 2))
    )  # fmt: skip

    launches = grid.launches

    def drop_last_program(*args):
        for launch in launches(*args):
            yield launch._replace(programs=(launch.programs[0] - 1,))

    gru = make_gru(16, 64, precision, "cpu", "grid", reset_after=reset_after)
    config, batch = GridConfig(16, 4, 8, 8, tiles, 1, 4, 0, handover), 17
    if precision == "fp32" and tiles == 1:  # lanes compute the products
        config, batch = dataclasses.replace(config, rows=2, register_tiles=config.weight_tiles(4)), 2
    x = torch.randn(3, batch, 16).to(gru.weight_hh_l0.dtype)
    with use_config("grid", config):
        limit = hang.get_watchdog(x.device).watch[0].item()
        # The time limit is reached after half a million instructions of all warps.
        with (
            mock.patch.object(grid, "launches", drop_last_program),
            mock.patch.dict(gpu.fixed_schedule, ns_per_instruction=limit / 500_000),
            torch.no_grad(),
            poison_memory(),
        ):
            output, h_n = gru(x)
        try:
            triton_gru.raise_if_hung()
        except RuntimeError as error:
            assert "gave up" in str(error)  # noqa: PT017 (the `else` below is part of this check)
        else:
            raise AssertionError("no error was raised")
        # The three programs that ran need the state of the missing one.
        assert output[:, :, :48].isnan().all() and h_n[:, :, :48].isnan().all()
        assert gpu.outcomes[-1].executed < 5_000_000, "programs waited again at every step"
        run_checked(gru, x, None, precision, gpu.launched)
    triton_gru.raise_if_hung()
    return f"{precision}, {handover}, reset_after={reset_after}, {tiles} tiles"


CAMPAIGNS = {campaign.__name__: campaign for campaign in (matrix, stress, timeouts, payloads)}
