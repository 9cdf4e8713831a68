"""Execution of a planned call: its memory, and the order of its launches."""

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
from .kernel_launch import Launch, Product
from .projection import projection_launches
from .scan import Scan

# Most bytes of a chunk in the workspace of a call, for any T: its gate inputs, and what cuBLAS needs for them. Steps
# are projected in chunks that fit, of at least one step. So the scan reads a chunk while it is still in the L2.
WORKSPACE_BYTES = 32 << 20


def run(call: Call, plan: Plan) -> tuple[Tensor, Tensor]:
    """Return ``output`` and ``h_n`` of a planned call, in the shapes of `allocate`.

    The kernels have no backward. If autograd records a call of kernels, a backward through it raises cuDNN's error.
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
    """A call of kernels that autograd records. Its backward raises an error."""

    @staticmethod
    def forward(ctx, call, plan, *tensors):
        return _run_kernels(call, plan)

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(NO_BACKWARD)


def _run_kernels(call: Call, plan: Plan) -> tuple[Tensor, Tensor]:
    """Return ``output`` and ``h_n`` of a call by kernels. `replace_failing_plan` replaces a plan that fails."""
    device = call.input.device
    hang.raise_if_hung(device)
    output, h_n = allocate(call)
    with torch.cuda.device(device) if is_on_other_gpu(device) else contextlib.nullcontext():
        try:
            start(launches(call, plan.config, plan.device, output, h_n, projection=plan.projection))
        except Exception as failure:  # of any type: a configuration may fail to compile, load or launch
            plan = replace_failing_plan(plan, failure, device)
            start(launches(call, plan.config, plan.device, output, h_n, projection=plan.projection))
    return output, h_n


def replace_failing_plan(plan: Plan, failure: Exception, device: torch.device) -> Plan:
    """Return another plan in place of one whose configuration from a table fails to run, such as with a new Triton.

    The new plan has the same kernel. The configuration is not used again in this process, and a warning reports the
    failure.

    Raises:
        Exception: ``failure``, if the configuration is not from a table, memory was short, or a CUDA graph is being
            captured. A call has to run once before its capture.
    """
    if not plan.is_tuned or isinstance(failure, torch.OutOfMemoryError) or is_capturing(device):
        raise failure
    lookup.exclude_config(plan.device, plan.config)
    clear_plan_cache()
    new_plan = choose(plan.problem, plan.device, plan.kernel)
    first_line = f"{type(failure).__name__}: {failure}".strip().splitlines()[0]
    warnings.warn(
        f"triton_gru's {plan.kernel} does not run as {plan.config} from {plan.source} ({first_line}). "
        f"Using {new_plan.config} from {new_plan.source} instead. To tune again: triton-gru tune",
        stacklevel=2,
    )
    return new_plan


def allocate(call: Call) -> tuple[Tensor, Tensor]:
    """Return memory for the results of a call: ``output``, and ``h_n`` [layers * directions, B, H].

    ``output`` is [T, B, directions * H], or [B, T, directions * H] if batch_first. For packed input it is
    [N, directions * H]. If sequences have lengths, ``output`` is filled with zeros,
    as no kernel writes beyond the ends of sequences.
    """
    problem, x = call.problem, call.input
    features = problem.directions * problem.hidden_size
    h_n = x.new_empty(len(call.weights), problem.batch_size, problem.hidden_size)
    if problem.layout == "packed":
        return x.new_empty(x.size(0), features), h_n
    new = x.new_zeros if problem.layout == "lengths" else x.new_empty
    steps, batch = problem.steps, problem.batch_size
    return new(*((batch, steps) if call.batch_first else (steps, batch)), features), h_n


def start(launches: Iterable[Launch | Product]) -> None:
    """Start each launch as soon as ``launches`` yields it."""
    for launch in launches:
        launch.start()


def launches(
    call: Call,
    config: Config,
    device: Device,
    output: Tensor,
    h_n: Tensor,
    new: Callable[..., Tensor] = Tensor.new_empty,
    projection: Projection | None = None,
) -> Iterator[Launch | Product]:
    """Yield the launches of a call, in stream order.

    Each layer is computed in chunks of time steps. A chunk has a projection, then a scan. Exception: ``step`` computes
    a call of one step without a separate projection. A layer reads the states of the layer below from ``output``. Its
    scan overwrites a chunk of these states after its projection has read the chunk.

    Exception: sometimes that would overwrite states before they are read. Then layers alternate between ``output`` and
    a second tensor of the same shape, so that the last layer writes to ``output``. There are two cases:

    - With two directions, the first chunk of the backward direction is at the end. So each direction would overwrite
      states of the layer below that the other direction reads later.
    - If ``step`` computes a call of one step with its projection, one launch reads and writes that step. Its programs
      do not wait for each other.

    The state is carried from chunk to chunk in fp32, so that results do not depend on the chunks. An empty batch has no
    launch.

    Args:
        call: the bound call.
        config, projection: those of the plan.
        device: not used.
        output, h_n: memory for the results, in the shapes of `allocate`.
        new: a function that makes the tensors of the workspace, with the arguments of `Tensor.new_empty`.
    """
    problem = call.problem
    if problem.batch_size == 0:
        return
    weights = make_weights_contiguous(call.weights)
    layers = [weights[i : i + problem.directions] for i in range(0, len(weights), problem.directions)]
    hx = call.hx
    if hx is not None:
        hx = hx.contiguous() if isinstance(config, StepConfig) else _with_unit_stride(hx)
    is_fused = is_fused_step(config, problem)
    targets = [output]
    if (problem.bidirectional or is_fused) and len(layers) > 1:
        second_output = new(output, *output.shape)
        targets = [output, second_output] if len(layers) % 2 else [second_output, output]
    if call.batch_first:
        targets = [target.transpose(0, 1) for target in targets]
    # Each state of the carry is a tensor of its own, which begins at a multiple of 16 bytes for any size of a state.
    # Triton compiles another kernel for other addresses. A fused step reads hx and writes h_n, so its carry is empty.
    state_shape = (0,) if is_fused else h_n.shape
    carry = [new(output, *state_shape, dtype=torch.float32) for _ in range(1 if isinstance(config, BlockConfig) else 2)]
    scan = Scan(problem, call.sequences, hx, carry, h_n, call.resets)

    tiles = -(-problem.batch_size // config.rows)
    # Elements of a time step: gate inputs, products of cuBLAS before they are arranged, and input that cuBLAS copies.
    gate_elements = problem.directions * tiles * config.rows * 3 * config.padded_hidden
    product_elements = copied_elements = 0
    if projection == CUBLAS:
        product_elements = problem.directions * problem.batch_size * 3 * problem.hidden_size
        if not call.input.is_contiguous():
            copied_elements = problem.batch_size * max(size for size, _ in problem.input_sizes)
    step_bytes = (gate_elements + product_elements + copied_elements) * output.itemsize
    chunk_steps = max(1, min(problem.steps, WORKSPACE_BYTES // step_bytes))
    if isinstance(config, BlockConfig):
        scan_launches = functools.partial(block.launches, scan, config)
    elif isinstance(config, GridConfig):
        handovers = 1 if problem.reset_after else 2
        mailbox = grid.Mailbox(config, problem.batch_size, handovers, output.dtype)
        chunk_steps = min(chunk_steps, mailbox.max_steps)
        words = new(output, mailbox.count_words(chunk_steps), dtype=torch.int64)
        scan_launches = functools.partial(grid.launches, scan, config, mailbox, words)
    else:
        rounded = carry if output.dtype == torch.float32 else [new(output, *state_shape) for _ in carry]
        states = step.States(problem, carry, rounded, new)
        scan_launches = functools.partial(step.launches, scan, config, states)
    if not is_fused:
        gi = new(output, problem.directions, chunk_steps, tiles, 3, config.padded_hidden, config.rows)
        products = new(output, chunk_steps * product_elements) if product_elements else None
    layer_input = call.input
    for index, layer in enumerate(layers):
        out = targets[index % len(targets)]
        scan.begin_layer(index, layer, out)
        if is_fused:
            yield from step.fused_step_launches(scan, layer_input[0], config, states)
        else:
            for first_step in range(0, problem.steps, chunk_steps):
                scan.move_to_chunk(gi, first_step, min(chunk_steps, problem.steps - first_step))
                yield from projection_launches(layer_input, scan, config, projection, products)
                yield from scan_launches()
        layer_input = out


def _with_unit_stride(hx: Tensor) -> Tensor:
    """Return ``hx`` [layers * directions, B, H] with unit stride in H, as a copy only if needed."""
    return hx if hx.stride(2) == 1 or hx.size(2) == 1 else hx.contiguous()
