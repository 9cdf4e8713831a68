"""Runs a planned call: memory, the order of launches, and what each kernel is given."""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from .. import reference
from ..call.bind import Call, flat, records_gradient
from ..kernels.projection import input_projection
from ..plan.config import BlockConfig, Config, GridConfig, StepConfig, projection_config
from ..plan.device import Device, capturing, elsewhere
from ..plan.planner import Plan, choose, forget
from ..plan.problem import Problem
from ..plan.tables import lookup
from . import hang, torch_gru
from .scans import (
    Launch,
    Mailbox,
    Scan,
    block_launches,
    grid_launches,
    room_for_reset_state,
    step_launches,
    whole_step_launches,
)

# Cap on the workspace of a call: the input projection is made for as many time steps at once as fit (at least
# one), so that memory does not grow with T, and what the scan reads was written a moment ago, into the L2.
WORKSPACE_BYTES = 32 << 20


def run(call: Call, plan: Plan) -> tuple[Tensor, Tensor]:
    """``output`` and ``h_n`` of a planned call, shaped as `allocate` says.

    The kernels have no backward: where grad mode would record one, it raises what cuDNN raises there.
    """
    if plan.kernel == "torch":
        return torch_gru.gru(call)
    if plan.kernel == "reference":
        return _run_reference(call)
    tensors = [t for t in (call.input, call.hx, *flat(call.weights)) if t is not None]
    if records_gradient(tensors):
        return _ForwardOnly.apply(call, plan, *tensors)
    return _run_kernels(call, plan)


def _run_reference(call: Call) -> tuple[Tensor, Tensor]:
    x, sequences = call.input, call.sequences
    if sequences.layout == "packed":
        x = torch_gru.padded(x, sequences)
    output, h_n = reference.gru(
        x,
        call.initial_state(),
        call.weights,
        reset_after=call.problem.reset_after,
        bidirectional=call.problem.bidirectional,
        reverse=call.problem.reverse,
        dropout=call.dropout,
        lengths=sequences.lengths,
        resets=call.resets,
    )
    if sequences.layout == "packed":
        return torch_gru.packed(output, sequences), h_n
    return output.transpose(0, 1) if call.batch_first else output, h_n


NO_BACKWARD = (
    "cudnn RNN backward can only be called in training mode (triton_gru's kernels are for inference: "
    "call train() on the module, or set its backend to 'torch')"
)


class _ForwardOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, plan, *tensors):
        return _run_kernels(call, plan)

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(NO_BACKWARD)


def _run_kernels(call: Call, plan: Plan) -> tuple[Tensor, Tensor]:
    device = call.input.device
    hang.raise_if_given_up(device)
    output, h_n = allocate(call)
    with torch.cuda.device(device) if elsewhere(device) else contextlib.nullcontext():
        try:
            start(launches(call, plan.config, plan.device, output, h_n))
        except Exception as failure:
            plan = untuned(plan, failure, device)
            start(launches(call, plan.config, plan.device, output, h_n))
    return output, h_n


def untuned(plan: Plan, failure: Exception, device: torch.device) -> Plan:
    """What to go on with where a configuration from a table does not run, as after an upgrade of Triton.

    Warns, and the table is not asked for it again. Raises ``failure`` if that is not about a table's configuration: not
    what fails for want of memory, nor what fails while a graph is captured, for which it was to be loaded before.
    """
    if not plan.tuned or isinstance(failure, torch.OutOfMemoryError) or capturing(device):
        raise failure
    lookup.distrust(plan.device, plan.config)
    forget()
    instead = choose(plan.problem, plan.device, plan.kernel)
    text = f"{type(failure).__name__}: {failure}".strip().splitlines()[0]
    warnings.warn(
        f"triton_gru's {plan.kernel} does not run as {plan.config}, which {plan.source} says ({text}): "
        f"{instead.config} from {instead.source} is taken in its place. Tune it anew: triton-gru tune",
        stacklevel=2,
    )
    return instead


def allocate(call: Call) -> tuple[Tensor, Tensor]:
    """Memory for the results of a call: output and h_n [layers * directions, B, H].

    output is [T, B, directions * H], [B, T, directions * H] if batch_first, or [N, directions * H] of packed input. It
    is zero where sequences have ended, which no kernel writes.
    """
    problem, x = call.problem, call.input
    features = problem.directions * problem.hidden_size
    h_n = x.new_empty(len(call.weights), problem.batch_size, problem.hidden_size)
    if problem.layout == "packed":
        return x.new_empty(x.size(0), features), h_n
    new = x.new_zeros if problem.layout == "lengths" else x.new_empty
    first, second = problem.steps, problem.batch_size
    return new(*((second, first) if call.batch_first else (first, second)), features), h_n


def start(launches: Iterable[Launch]) -> None:
    """Starts them one by one, as they come."""
    for each in launches:
        each.start()


def launches(
    call: Call,
    config: Config,
    device: Device,
    output: Tensor,
    h_n: Tensor,
    new: Callable[..., Tensor] = Tensor.new_empty,
) -> Iterator[Launch]:
    """The launches of a call, in stream order: layers, in each chunks of time steps, in each projection and scan.

    A layer reads what the one before it has written into ``output`` and writes its own over it, chunk by chunk; into a
    second tensor by turns with two directions, which begin at both ends, and where one launch reads and writes. The
    state is carried from chunk to chunk in fp32, so that results do not depend on where the cuts fall. All memory
    for what goes between launches is made by ``new``, which is called as `Tensor.new_empty` is. An empty batch takes no
    launch.
    """
    problem, sequences = call.problem, call.sequences
    if problem.batch_size == 0:
        return
    weights = [tuple(None if w is None else w.contiguous() for w in layer) for layer in call.weights]
    layers = [weights[i : i + problem.directions] for i in range(0, len(weights), problem.directions)]
    hx = call.hx
    if hx is not None:
        hx = hx.contiguous() if isinstance(config, StepConfig) else _with_unit_stride(hx)
    whole = isinstance(config, StepConfig) and problem.steps == 1 and problem.layout == "dense" and not problem.resets
    targets = [output]
    if (problem.bidirectional or whole) and len(layers) > 1:
        other = new(output, *output.shape)
        targets = [output, other] if len(layers) % 2 else [other, output]
    if call.batch_first:
        targets = [target.transpose(0, 1) for target in targets]
    # The state comes from outside and goes there in the one step of a whole call.
    carry = new(output, 2, *((0,) if whole else h_n.shape), dtype=torch.float32)
    scan = Scan(problem, sequences, hx, carry, h_n, call.resets)
    shared = {"H": problem.hidden_size, "PRECISION": problem.precision, "ISA": device.isa}

    chunk = _steps_per_chunk(problem, config)
    scan_launches, scratch = block_launches, ()
    if isinstance(config, GridConfig):
        handovers = 1 if problem.reset_after else 2
        mailbox = Mailbox(config, problem.batch_size, handovers, output.dtype)
        chunk = min(chunk, mailbox.longest)
        words = new(output, mailbox.size(chunk), dtype=torch.int64)
        scan_launches, scratch = grid_launches, (mailbox, words)
    elif isinstance(config, StepConfig):
        rounded = carry if output.dtype == torch.float32 else new(output, *carry.shape)
        scan_launches, scratch = step_launches, (rounded, room_for_reset_state(problem, output, new))
    tiles = -(-problem.batch_size // config.rows)
    source = call.input
    if not whole:
        gi = new(output, problem.directions, chunk, tiles, 3, config.padded_hidden, config.rows)
    for index, layer in enumerate(layers):
        out = targets[index % len(targets)]
        scan.begin(index, layer, out)
        if whole:
            yield from whole_step_launches(scan, source[0], config, shared, *scratch)
        else:
            for start in range(0, problem.steps, chunk):
                scan.go_on(gi, start, min(chunk, problem.steps - start))
                yield _projection(source, scan, config, shared)
                yield from scan_launches(scan, config, shared, *scratch)
        source = out


def _projection(x: Tensor, scan: Scan, config: Config, shared: dict) -> Launch:
    """Fills the gate inputs of ``scan`` from x, which is as in `Call`; ``shared`` are constants of all kernels."""
    hidden, inputs = shared["H"], x.size(-1)
    # A dimension of one has no stride to speak of; zero keeps it from deciding what is compiled.
    x_t = x.stride(0) if x.size(0) > 1 else 0
    x_b = x.stride(1) if x.dim() == 3 and x.size(1) > 1 else 0
    vector = 16 // x.element_size()
    unit = vector if inputs % vector == 0 and x_t % vector == 0 and x_b % vector == 0 else 1
    tile = projection_config(hidden, x.dtype, shared["PRECISION"], aligned=unit > 1 and x.stride(-1) == 1)
    cols = scan.steps * scan.gi.size(2) * config.rows
    return Launch(
        input_projection,
        tile.launch_grid(cols, config.padded_hidden, len(scan.weights)),
        (
            x, *scan.of_both(0, 2, 3), scan.gi, scan.lengths, scan.offsets,
            scan.steps, scan.start, scan.total, scan.batch, x_t // unit, x_b // unit, x.stride(-1) if inputs > 1 else 1,
        ),
        shared | {
            "I": inputs,
            "PADDED_H": config.padded_hidden,
            "BATCH": config.rows,
            "UNITS_APART": config.rows if isinstance(config, BlockConfig) else 1,
            "BLOCK_M": tile.rows,
            "BLOCK_N": tile.cols,
            "BLOCK_K": tile.depth,
            "X_UNIT": unit,
            "LAYOUT": scan.layout,
            "REVERSE": scan.reverse,
            "RESET_AFTER": scan.reset_after,
            "HAS_BIAS": scan.has_bias,
            "num_warps": tile.num_warps,
            "num_stages": tile.num_stages,
        },
    )  # fmt: skip


def _steps_per_chunk(problem: Problem, config: Config) -> int:
    tiles = -(-problem.batch_size // config.rows)
    per_step = problem.directions * tiles * config.rows * 3 * config.padded_hidden
    return max(1, min(problem.steps, WORKSPACE_BYTES // (per_step * problem.dtype.itemsize)))


def _with_unit_stride(hx: Tensor) -> Tensor:
    return hx if hx.stride(2) == 1 or hx.size(2) == 1 else hx.contiguous()
