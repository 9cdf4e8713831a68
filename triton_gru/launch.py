"""Runs a planned call: memory, the order of launches, and what each kernel is given."""

from collections.abc import Iterator

import torch
from torch import Tensor

from . import reference, watchdog
from .arguments import Call
from .config import BlockConfig, GridConfig, StepConfig, projection_config
from .device import Device
from .kernels.projection import input_projection
from .plan import Config, Plan, Problem
from .reference import Weights
from .scans import Launch, Mailbox, Scan, block_launches, grid_launches, step_launches

# Cap on the workspace of a call: the input projection is made for as many time steps at once as fit (at least
# one), so that memory does not grow with T, and what the scan reads was written a moment ago, into the L2.
WORKSPACE_BYTES = 32 << 20


def run(call: Call, plan: Plan) -> tuple[Tensor, Tensor]:
    """``output`` [T, B, H] (or [B, T, H]) and ``h_n`` [layers, B, H] of a call planned on a kernel or the reference.

    The kernels have no backward: where grad mode would record one, it raises what cuDNN raises there.
    """
    if plan.kernel == "reference":
        return _run_reference(call)
    if torch.is_grad_enabled():
        tensors = [t for t in (call.input, call.hx, *(w for layer in call.weights for w in layer)) if t is not None]
        if any(t.requires_grad for t in tensors):
            return _ForwardOnly.apply(call, plan, *tensors)
    return _run_kernels(call, plan)


def _run_reference(call: Call) -> tuple[Tensor, Tensor]:
    output, h_n = reference.gru(
        call.input,
        call.initial_state(),
        call.weights,
        reset_after=call.problem.reset_after,
        bidirectional=call.problem.bidirectional,
        dropout=call.dropout,
    )
    return output.transpose(0, 1) if call.batch_first else output, h_n


class _ForwardOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, plan, *tensors):
        return _run_kernels(call, plan)

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(
            "cudnn RNN backward can only be called in training mode (triton_gru's kernels are for inference: "
            "call train() on the module, or set its backend to 'torch')"
        )


def _run_kernels(call: Call, plan: Plan) -> tuple[Tensor, Tensor]:
    problem, device = call.problem, call.input.device
    watchdog.raise_if_given_up(device)
    first, second = problem.steps, problem.batch_size
    if call.batch_first:
        first, second = second, first
    output = call.input.new_empty(first, second, problem.hidden_size)
    h_n = call.input.new_empty(problem.num_layers, problem.batch_size, problem.hidden_size)
    if output.numel() > 0:
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                _start(launches(call, plan.config, plan.device, output, h_n))
        else:
            _start(launches(call, plan.config, plan.device, output, h_n))
    return output, h_n


def _start(launches: Iterator[Launch]) -> None:
    for kernel, grid, args, constants in launches:
        kernel[grid](*args, **constants)


def launches(call: Call, config: Config, device: Device, output: Tensor, h_n: Tensor) -> Iterator[Launch]:
    """The launches of a call, in stream order: chunks of time steps, in each the layers, in each projection and scan.

    The state is carried from chunk to chunk in fp32, so that results do not depend on where the cuts fall. What
    goes between two launches is cleared as the iteration comes to it: to be started one by one.
    """
    problem = call.problem
    hidden, batch = problem.hidden_size, problem.batch_size
    weights = [tuple(None if w is None else w.contiguous() for w in layer) for layer in call.weights]
    hx = call.hx
    chunk = _steps_per_chunk(problem, config)
    carry = output.new_empty(2, *h_n.shape, dtype=torch.float32)
    shared = {"H": hidden, "PRECISION": problem.precision, "ISA": device.isa}
    if isinstance(config, BlockConfig):
        scan_launches, scratch = block_launches, ()
    elif isinstance(config, GridConfig):
        mailbox = Mailbox(config, batch, output.dtype, output.device, device)
        scan_launches, scratch = grid_launches, (mailbox,)
        chunk = min(chunk, mailbox.longest)
    else:
        rounded = carry if output.dtype == torch.float32 else torch.empty_like(carry, dtype=output.dtype)
        scan_launches, scratch = step_launches, (rounded,)
    if hx is not None:
        hx = hx.contiguous() if isinstance(config, StepConfig) else _with_unit_stride(hx)

    gi = output.new_empty(chunk, -(-batch // config.batch), 3, config.padded_hidden, config.rows)
    between = output.new_empty(chunk, batch, hidden) if problem.num_layers > 1 else None
    output_t, output_b = (hidden, problem.steps * hidden) if call.batch_first else (batch * hidden, hidden)
    parity = 0
    for start in range(0, problem.steps, chunk):
        steps = min(chunk, problem.steps - start)
        source, source_start = call.input, start
        for layer, (_, w_hh, _, b_hh) in enumerate(weights):
            yield _projection(source, source_start, steps, weights[layer], gi, config, shared)
            last_layer = layer == problem.num_layers - 1
            target, target_start = (output, start) if last_layer else (between, 0)
            target_t, target_b = (output_t, output_b) if last_layer else (batch * hidden, hidden)
            scan = Scan(
                gi, w_hh, b_hh, hx, carry, parity, target, target_start, target_t, target_b, h_n, layer, steps, batch,
                first=start == 0, last=start + steps == problem.steps,
            )  # fmt: skip
            yield from scan_launches(scan, config, shared, *scratch)
            source, source_start = between, 0
        parity ^= {BlockConfig: 0, GridConfig: 1, StepConfig: steps & 1}[type(config)]


def _projection(
    x: Tensor, x_start: int, steps: int, weights: Weights, gi: Tensor, config: Config, shared: dict
) -> Launch:
    """The launch that fills ``gi`` from ``steps`` steps of x [time, B, I]; ``shared`` are constants of all kernels."""
    w_ih, _, b_ih, b_hh = weights
    hidden, batch, inputs = shared["H"], x.size(1), x.size(2)
    # A dimension of one has no stride to speak of; zero keeps it from deciding what is compiled.
    x_t = x.stride(0) if x.size(0) > 1 else 0
    x_b = x.stride(1) if batch > 1 else 0
    vector = 16 // x.element_size()
    unit = vector if inputs % vector == 0 and x_t % vector == 0 and x_b % vector == 0 else 1
    tile = projection_config(hidden, x.dtype, shared["PRECISION"], aligned=unit > 1 and x.stride(2) == 1)
    cols = steps * gi.size(1) * config.rows
    return Launch(
        input_projection,
        (-(-cols // tile.cols), -(-3 * config.padded_hidden // tile.rows)),
        (
            x, w_ih, w_ih if b_ih is None else b_ih, w_ih if b_hh is None else b_hh, gi,
            steps, x_start, batch, x_t // unit, x_b // unit, x.stride(2) if inputs > 1 else 1,
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
            "HAS_BIAS": b_ih is not None,
            "num_warps": tile.num_warps,
            "num_stages": tile.num_stages,
        },
    )  # fmt: skip


def _steps_per_chunk(problem: Problem, config: Config) -> int:
    per_step = -(-problem.batch_size // config.batch) * config.rows * 3 * config.padded_hidden
    if problem.num_layers > 1:
        per_step += problem.batch_size * problem.hidden_size
    return max(1, min(problem.steps, WORKSPACE_BYTES // (per_step * problem.dtype.itemsize)))


def _with_unit_stride(hx: Tensor) -> Tensor:
    return hx if hx.stride(2) == 1 or hx.size(2) == 1 else hx.contiguous()
