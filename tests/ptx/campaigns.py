"""Campaigns: random calls of compiled kernels, for any time: ``python -m tests.ptx NAME SEED SECONDS``.

A campaign is a function that draws one case from a random generator and runs the case on the emulated GPU. The function
raises an error if the result is wrong, and returns a description of the case. It raises `Skipped` if the kernel does
not serve the case. The tests run a few cases of each.
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
from triton_gru.launch.prepared import MAX_LAUNCHES, PreparedCall
from triton_gru.plan.config import HANDOVERS, BlockConfig, GridConfig, Projection, StepConfig
from triton_gru.plan.planner import KERNELS, choose
from triton_gru.plan.problem import Problem
from triton_gru.plan.validity import unsupported_config_reason
from triton_gru.tuning.space import projections

from ..calls import LAYOUTS, check_results, make_call, make_gru, run_checked, use_config, use_projection
from ..conftest import poison_memory
from .device import EmulatedGpu

# Instructions of all warps until the time limit of a wait, in `check_timeout`. All other instructions of a launch that
# gives up are fewer. Its 12 warps wait at most 24 times each (3 steps, 2 hand-overs, 2 groups of 2 tiles). A wait sees
# the abort word after 64 rounds of at most 47 instructions, and the first wait has 128 rounds outside the limit. These
# are at most 12 * 26 * 64 * 47 = 940,000 instructions. The rest of such a launch is 41,000.
TIMEOUT_INSTRUCTIONS = 1_000_000


class Skipped(Exception):
    """An exception for a drawn case that the kernel does not serve."""


# Hidden sizes, batch sizes and input sizes around the edges of tiles, words and chunks, and small numbers of steps.
HIDDEN = {
    "block": (1, 3, 16, 25, 64, 96, 100, 128, 192),
    "grid": (1, 3, 16, 25, 64, 96, 128, 200, 256),
    "step": (1, 3, 16, 25, 64, 96, 128, 200, 256),
}
BATCH, STEPS, INPUTS = (1, 3, 8, 17, 40), (1, 2, 3, 5), (1, 7, 16, 40, 130)
# Values planted in an input, a weight or a state. 6e4 is near the largest fp16 number, 65504.
SPECIAL_VALUES = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf"), "large": 6e4}


def check_random_call(draw: random.Random, gpu: EmulatedGpu) -> str:
    """Check one call against float64, and a prepared call of other values if there is one. Return a description.

    The kernel, the sizes, the precision, the layout, the GRU's options, the ends of sequences, the configuration and
    the projection are drawn. A special value in one tensor, unaligned addresses, and limits of the launches' memory are
    drawn, too.
    """
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
        hx = _copy_unaligned(hx)
    if draw.random() < 0.15:
        for name, parameter in list(gru.named_parameters()):
            setattr(gru, name, torch.nn.Parameter(_copy_unaligned(parameter.detach())))
    value = draw.choice(("", "", "", *SPECIAL_VALUES))  # mostly none
    if value:
        target = draw.choice([x, gru.weight_hh_l0.detach(), *([] if hx is None else [hx])])
        target[tuple(draw.randrange(size) for size in target.shape)] = SPECIAL_VALUES[value]
    config = _draw_config(draw, kernel, hidden, batch, precision, directions) if draw.random() < 0.75 else None
    # Limits of the workspace and of the mailbox, in bytes. With a limit of 1, a chunk has a single step.
    limits = draw.random() < 0.3 and (draw.choice((1, 100_000)), draw.choice((1, 8 << 20)))
    description = f"{gru}, {precision}, T={steps}, B={batch}, {ends}, {value}, chunks {limits}, {config}"
    with contextlib.ExitStack() as stack:
        if limits:
            workspace_bytes, mailbox_bytes = limits
            stack.enter_context(mock.patch.object(execute, "WORKSPACE_BYTES", workspace_bytes))
            stack.enter_context(mock.patch.object(grid, "MAILBOX_BYTES", mailbox_bytes))
        input, options = _draw_ends(draw, ends, gru, x)
        problem = bind_gru(gru, input, hx, **options).problem
        if config is not None:
            reason = unsupported_config_reason(config, problem, gpu.device)
            if reason:
                raise Skipped(reason)
            stack.enter_context(use_config(kernel, config))
        projection = _draw_projection(draw, gru, problem, gpu)
        stack.enter_context(use_projection(projection))
        description += f", {projection}"
        try:
            gru.plan(input, hx, **options)
        except RuntimeError as reason:
            raise Skipped(str(reason)) from reason
        # Calls with lengths or resets are never prepared.
        is_prepared = ends in ("dense", "packed") and _count_launches(gru, input, hx) <= MAX_LAUNCHES
        _check_call(gpu, gru, x, hx, precision, input, options)
        if is_prepared:
            _check_prepared_call(draw, gpu, gru, x, hx, precision, input)
            description += ", also prepared"
    return description


def _draw_size(draw: random.Random, edges: tuple[int, ...]) -> int:
    """Return one of ``edges``, or any size from 1 to the last edge."""
    return draw.choice((draw.choice(edges), draw.randint(1, edges[-1])))


def _count_launches(gru, input, hx) -> int:
    """Make a call that starts no launch, and return how many launches it has.

    It is the first call of its signature. So the second call, which `check_random_call` checks, prepares the third.
    """
    launches = []
    with torch.no_grad(), poison_memory(), mock.patch.object(execute, "start", launches.extend):
        gru(input, hx)
    return len(launches)


def _check_call(gpu, gru, x, hx, precision, input, options) -> None:
    """Check a call against float64.

    ``input`` is the call's input, which is ``x`` or holds parts of ``x`` as packed sequences. ``options`` are the
    call's keyword arguments.
    """
    if input is x:
        run_checked(gru, x, hx, precision, gpu.launched, **options)
        return
    gpu.launched.clear()
    with torch.no_grad(), poison_memory():
        output, h_n = gru(input, hx)
    assert gpu.launched.has_only(gru.backend)
    output, lengths = pad_packed_sequence(output, gru.batch_first, total_length=x.size(1 if gru.batch_first else 0))
    check_results(gru, x, hx, precision, output, h_n, lengths=lengths)


def _check_prepared_call(draw: random.Random, gpu, gru, x, hx, precision, input) -> None:
    """Check a call of a prepared signature against float64, on new tensors. Assert that the prepared call is used.

    ``x``, ``hx`` and ``input`` are those of the earlier call, as in `_check_call`.
    """
    is_packed, x, hx = input is not x, _draw_like(x), None if hx is None else _draw_like(hx)
    if not is_packed:
        input = x
    elif gru.bidirectional and gru.num_layers > 1:  # then all calls of a signature have equally many packed rows
        _, lengths = pad_packed_sequence(input)
        input = pack_padded_sequence(x, lengths.flip(0), gru.batch_first, enforce_sorted=False)
    else:
        input, _ = _draw_ends(draw, "packed", gru, x)
    launch = PreparedCall._launch
    with mock.patch.object(PreparedCall, "_launch", autospec=True, side_effect=launch) as prepared_launch:
        _check_call(gpu, gru, x, hx, precision, input, {})
    assert prepared_launch.call_count == 1, "the call was not prepared"


def _draw_like(tensor: torch.Tensor) -> torch.Tensor:
    """Return a new tensor of random values with the shape, the strides and the alignment of ``tensor``."""
    memory = torch.randn(tensor.untyped_storage().nbytes() // tensor.itemsize).to(tensor.dtype)
    return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _draw_ends(draw: random.Random, ends: str, gru, x: torch.Tensor) -> tuple:
    """Return the call's input, and keyword arguments with the lengths and resets that ``ends`` names, drawn.

    The input is ``x``, or is packed with drawn lengths if ``ends`` is ``"packed"``.
    """
    batch, steps = x.shape[:2] if gru.batch_first else (x.size(1), x.size(0))
    if ends == "packed":
        lengths = torch.tensor([steps, *(draw.randint(1, steps) for _ in range(batch - 1))])
        return pack_padded_sequence(x, lengths, gru.batch_first, enforce_sorted=False), {}
    options = {}
    if "lengths" in ends:
        lengths = [draw.randint(0, steps) for _ in range(batch)]
        lengths[batch // 2] = steps + 7  # too large: it is clamped
        options["lengths"] = torch.tensor(lengths, dtype=draw.choice((torch.int64, torch.int32, torch.uint8)))
    if "resets" in ends:
        options["resets"] = torch.rand(x.shape[:2]) < 0.3
    return x, options


def _draw_projection(draw: random.Random, gru, problem: Problem, gpu: EmulatedGpu) -> Projection | None:
    """Return a projection of the inputs. Half of the time it is None, the default, else cuBLAS or another tile.

    None is also returned if the kernel does not serve the problem, or has no other projection for it.
    """
    try:
        config = choose(problem, gpu.device, gru.backend).config
    except RuntimeError:
        return None
    choices = projections(problem, config, gpu.device)
    first_choice = choices[:1]  # cuBLAS where it can serve the problem
    return draw.choice([None, None, *first_choice, *([draw.choice(choices)] if choices else [])])


def _draw_config(draw: random.Random, kernel: str, hidden: int, batch: int, precision: str, directions: str):
    """Return a configuration of ``kernel``, which the device may be too small for."""
    itemsize, is_ieee = PRECISIONS[precision][0].itemsize, precision == "fp32"
    if kernel == "grid":
        return _draw_grid_config(draw, hidden, batch, precision, directions)
    if kernel == "block":
        units = draw.choice([units for units in (16, 32, 64, 128) if -(-hidden // units) <= 4])
        tiles = -(-hidden // units)
        register_tiles = 0 if is_ieee else draw.choice((0, 3 * tiles**2, draw.randint(0, 3 * tiles**2)))
        return BlockConfig(
            units, tiles, batch=draw.choice((2, 2, 8, 16)), ahead=draw.choice((1, 1, 2, 4)),
            register_tiles=register_tiles, num_warps=draw.choice((1, 2, 4, 8)),
        )  # fmt: skip
    units = draw.choice((16, 32))
    return StepConfig(
        units, -(-hidden // units), batch=draw.choice((16, 32, 64)), depth=draw.choice((64, 128, 256)) // itemsize,
        num_warps=draw.choice((4, 8)), num_stages=draw.choice((1, 2, 3, 4)),
    )  # fmt: skip


def _draw_grid_config(draw: random.Random, hidden: int, batch: int, precision: str, directions: str) -> GridConfig:
    """Return a configuration of ``grid``, which the device may be too small for."""
    units = 16 if precision == "fp32" else draw.choice((16, 16, 32))
    rows = columns = draw.choice((8, 8, 16))
    tiles = draw.choice((1, 2))
    if tiles == 1 and columns >= batch and draw.random() < 0.6:
        rows = 1 << (batch - 1).bit_length()  # the only tile sends no padding: rows are the next power of two
    config = GridConfig(
        units, -(-hidden // units), columns, rows, tiles, copies=draw.choice((1, 1, 2, 3)),
        slices=draw.choice((4, 8)), register_tiles=0, handover=draw.choice(HANDOVERS),
        directions=2 if directions == "both" and draw.random() < 0.7 else 1,
    )  # fmt: skip
    weight_tiles = config.weight_tiles(PRECISIONS[precision][0].itemsize)
    return dataclasses.replace(config, register_tiles=draw.choice((0, weight_tiles, weight_tiles)))


def _copy_unaligned(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy whose data pointer is one element past an aligned address."""
    copied = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
    return copied.copy_(tensor)


def check_many_schedules(draw: random.Random, gpu: EmulatedGpu, schedules: int = 30) -> str:
    """Check that a call of ``grid`` is right, and gives the same bits under ``schedules`` schedules."""
    precision, hidden = draw.choice(list(PRECISIONS)), draw.choice((16, 25, 40, 64, 96, 130))
    batch, steps = draw.choice((1, 8, 9, 17, 33)), draw.choice((4, 6, 9))
    directions, reset_after = draw.choice(("forward", "both")), draw.random() < 0.6
    config = _draw_grid_config(draw, hidden, batch, precision, directions)
    gru, x, hx = make_call(
        "grid", hidden, batch, steps, precision, "time_first", True, 1, True, reset_after, "cpu", inputs=8,
        directions=directions,
    )  # fmt: skip
    ends = {"lengths": torch.randint(0, steps + 1, (batch,))} if draw.random() < 0.3 else {}
    # With the small workspace, most calls need several chunks.
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


def check_nan_payloads(draw: random.Random, gpu: EmulatedGpu, kernel: str | None = None) -> str:
    """Check that NaNs of any payload, in the input or the initial state, stay NaNs and stay in their rows.

    ``kernel`` is drawn if it is None.
    """
    kernel = kernel or draw.choice(KERNELS)
    precision, reset_after, handover = draw.choice(list(PRECISIONS)), draw.random() < 0.5, draw.choice(HANDOVERS)
    dtype = PRECISIONS[precision][0]
    integer, mantissa_bits = {
        torch.float16: (torch.int16, 10), torch.bfloat16: (torch.int16, 7), torch.float32: (torch.int32, 23),
    }[dtype]  # fmt: skip
    # The payload is the mantissa of a NaN: the smallest, all ones, only the quiet bit, and random ones.
    end = 1 << mantissa_bits
    patterns = [1, end - 1, end >> 1, *(draw.randrange(1, end) for _ in range(5))]
    infinity = torch.tensor([float("inf")], dtype=dtype).view(integer).item()
    nans = torch.tensor([infinity | pattern for pattern in patterns], dtype=integer)
    nans = torch.cat([nans, nans | torch.iinfo(integer).min]).view(
        dtype
    )  # both signs: one NaN has the bits of -1, a missing element
    assert nans.isnan().all()
    gru = make_gru(16, 64, precision, "cpu", kernel, reset_after=reset_after)
    x, hx = torch.randn(3, 2 * len(nans), 16).to(dtype), torch.randn(1, 2 * len(nans), 64).to(dtype)
    target = draw.choice(("x", "hx"))
    # Even rows of the batch get a NaN, in one of the first two steps or in the initial state. Odd rows get none.
    for i, nan in enumerate(nans):
        row = (x[draw.randrange(2)] if target == "x" else hx[0])[2 * i]
        row[draw.randrange(len(row))] = nan
    config = GridConfig(
        16, programs=4, batch=8, rows=8, tiles=1, copies=1, slices=4, register_tiles=0, handover=handover
    )
    with use_config("grid", config) if kernel == "grid" else contextlib.nullcontext():
        output, _ = run_checked(gru, x, hx, precision, gpu.launched)
    assert output[-1, ::2].isnan().any(dim=1).all()
    return f"{kernel}, {precision}, {target}, reset_after={reset_after}, {handover}"


def check_timeout(draw: random.Random, gpu: EmulatedGpu, case: tuple | None = None) -> str:
    """Check that a ``grid`` launch without its last program gives NaN and an error, and that the next call is right.

    ``case`` is a precision, a hand-over, whether reset is after the product, and the number of tiles. It is drawn if it
    is None.
    """
    precision, handover, reset_after, tiles = case or (
        draw.choice(list(PRECISIONS)), draw.choice(HANDOVERS), draw.random() < 0.5, draw.choice((1, 2))
    )  # fmt: skip

    launches = grid.launches

    def drop_last_program(*args):
        for launch in launches(*args):
            yield launch._replace(programs=(launch.programs[0] - 1,))

    gru = make_gru(16, 64, precision, "cpu", "grid", reset_after=reset_after)
    config, batch = (
        GridConfig(
            16, programs=4, batch=8, rows=8, tiles=tiles, copies=1, slices=4, register_tiles=0, handover=handover
        ),
        17,
    )
    if precision == "fp32" and tiles == 1:  # lanes compute the products
        config, batch = dataclasses.replace(config, rows=2, register_tiles=config.weight_tiles(4)), 2
    x = torch.randn(3, batch, 16).to(gru.weight_hh_l0.dtype)
    with use_config("grid", config):
        limit_ns = hang.get_watchdog(x.device).watch[0].item()
        with (
            mock.patch.object(grid, "launches", drop_last_program),
            mock.patch.dict(gpu.fixed_schedule, ns_per_instruction=limit_ns / TIMEOUT_INSTRUCTIONS),
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
        # The three programs that ran, with 16 units each, need the state of the missing program.
        assert output[:, :, :48].isnan().all() and h_n[:, :, :48].isnan().all()
        # A launch whose programs do not see the abort word waits for the time limit at each of the three steps.
        limits = gpu.outcomes[-1].executed / TIMEOUT_INSTRUCTIONS
        assert 1 <= limits < 2, f"the launch ended after {limits:.2f} time limits, instead of 1 to 2"
        run_checked(gru, x, None, precision, gpu.launched)
    triton_gru.raise_if_hung()
    return f"{precision}, {handover}, reset_after={reset_after}, {tiles} tiles, {limits:.2f} time limits"


# Name on the command line -> campaign.
CAMPAIGNS = {
    "matrix": check_random_call,
    "stress": check_many_schedules,
    "timeouts": check_timeout,
    "payloads": check_nan_payloads,
}
