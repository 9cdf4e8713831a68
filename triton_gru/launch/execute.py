"""Runs a planned call: memory, the order of launches, and what each kernel is given."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ..call.bind import Call, flatten_weights, make_weights_contiguous
from ..call.torch_state import records_gradient
from ..plan.config import CUBLAS, BlockConfig, Config, GridConfig, Projection, StepConfig
from ..plan.device import Device, is_capturing, is_on_other_gpu
from ..plan.planner import Plan, choose, clear_plan_cache
from ..plan.tables import lookup
from ..plan.validity import is_fused_step
from . import block, fallback, grid, hang, step
from . import projection as inputs
from .kernel_launch import Launch, Product
from .scan import Scan

# Cap on the workspace of a call: the input projection is made for as many time steps at once as fit (at least
# one), so that memory does not grow with T, and what is read was written a moment ago, into the L2.
WORKSPACE_BYTES = 32 << 20


def run(call: Call, plan: Plan) -> tuple[Tensor, Tensor]:
    """Return ``output`` and ``h_n`` of a planned call, shaped as `allocate` says.

    The kernels have no backward: where grad mode would record one, it raises what cuDNN raises there.
    """
    if plan.config is None:
        return fallback.run(call, plan.kernel)
    tensors = [t for t in (call.input, call.hx, *flatten_weights(call.weights)) if t is not None]
    if records_gradient(tensors):
        return _ForwardOnly.apply(call, plan, *tensors)
    return _run_kernels(call, plan)


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
    hang.raise_if_hung(device)
    output, h_n = allocate(call)
    with torch.cuda.device(device) if is_on_other_gpu(device) else contextlib.nullcontext():
        try:
            start(launches(call, plan.config, plan.device, output, h_n, projection=plan.projection))
        except Exception as failure:
            plan = replace_failing_plan(plan, failure, device)
            start(launches(call, plan.config, plan.device, output, h_n, projection=plan.projection))
    return output, h_n


def replace_failing_plan(plan: Plan, failure: Exception, device: torch.device) -> Plan:
    """What to go on with where a configuration from a table does not run, as after an upgrade of Triton.

    Warns, and the table is not asked for it again. Raises ``failure`` if that is not about a table's configuration: not
    what fails for want of memory, nor what fails while a graph is captured, for which it was to be loaded before.
    """
    if not plan.is_tuned or isinstance(failure, torch.OutOfMemoryError) or is_capturing(device):
        raise failure
    lookup.exclude_config(plan.device, plan.config)
    clear_plan_cache()
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


def start(launches: Iterable[Launch | Product]) -> None:
    """Start launches one by one, as they come."""
    for each in launches:
        each.start()


def launches(
    call: Call,
    config: Config,
    device: Device,
    output: Tensor,
    h_n: Tensor,
    new: Callable[..., Tensor] = Tensor.new_empty,
    projection: Projection | None = None,
) -> Iterator[Launch | Product]:
    """Yield the launches of a call, in stream order: layers, in each chunks of time steps, in each projection and scan.

    A layer reads what the one before it has written into ``output`` and writes its own over it, chunk by chunk; into a
    second tensor by turns with two directions, which begin at both ends, and where one launch reads and writes. The
    state is carried from chunk to chunk in fp32, so that results do not depend on where the cuts fall. All memory
    for what goes between launches is made by ``new``, which is called as `Tensor.new_empty` is. An empty batch takes no
    launch.
    """
    problem = call.problem
    if problem.batch_size == 0:
        return
    weights = make_weights_contiguous(call.weights)
    layers = [weights[i : i + problem.directions] for i in range(0, len(weights), problem.directions)]
    hx = call.hx
    if hx is not None:
        hx = hx.contiguous() if isinstance(config, StepConfig) else _with_unit_stride(hx)
    whole = is_fused_step(config, problem)
    targets = [output]
    if (problem.bidirectional or whole) and len(layers) > 1:
        other = new(output, *output.shape)
        targets = [output, other] if len(layers) % 2 else [other, output]
    if call.batch_first:
        targets = [target.transpose(0, 1) for target in targets]
    # The state comes from outside and goes there in the one step of a whole call.
    carry = new(output, 2, *((0,) if whole else h_n.shape), dtype=torch.float32)
    scan = Scan(problem, call.sequences, hx, carry, h_n, call.resets)

    tiles = -(-problem.batch_size // config.rows)
    gate_inputs = problem.directions * tiles * config.rows * 3 * config.padded_hidden  # numbers of a time step
    multiplied = copied = 0
    if projection == CUBLAS:  # whose products are laid out anew, and whose input may be copied first
        multiplied = problem.directions * problem.batch_size * 3 * problem.hidden_size
        if not call.input.is_contiguous():
            copied = problem.batch_size * max(size for size, _ in problem.input_sizes)
    chunk = max(1, min(problem.steps, WORKSPACE_BYTES // ((gate_inputs + multiplied + copied) * output.itemsize)))
    if isinstance(config, BlockConfig):
        scan_launches = functools.partial(block.launches, scan, config)
    elif isinstance(config, GridConfig):
        mailbox = grid.Mailbox(config, problem.batch_size, 1 if problem.reset_after else 2, output.dtype)
        chunk = min(chunk, mailbox.longest)
        words = new(output, mailbox.size(chunk), dtype=torch.int64)
        scan_launches = functools.partial(grid.launches, scan, config, mailbox, words)
    else:
        rounded = carry if output.dtype == torch.float32 else new(output, *carry.shape)
        states = step.States(problem, carry, rounded, new)
        scan_launches = functools.partial(step.launches, scan, config, states)
    if not whole:
        gi = new(output, problem.directions, chunk, tiles, 3, config.padded_hidden, config.rows)
        products = new(output, chunk * multiplied) if multiplied else None
    source = call.input
    for index, layer in enumerate(layers):
        out = targets[index % len(targets)]
        scan.begin_layer(index, layer, out)
        if whole:
            yield from step.fused_step_launches(scan, source[0], config, states)
        else:
            for first in range(0, problem.steps, chunk):
                scan.move_to_chunk(gi, first, min(chunk, problem.steps - first))
                yield from inputs.launches(source, scan, config, projection, products)
                yield from scan_launches()
        source = out


def _with_unit_stride(hx: Tensor) -> Tensor:
    return hx if hx.stride(2) == 1 or hx.size(2) == 1 else hx.contiguous()
