"""The GRU as one opaque operator, for torch.compile, torch.export and dispatch modes.

The operator plans when it runs, with the sizes of that call. So a graph that was compiled or exported once serves any T
and B. Exception: on a CPU no plan is made. Outside of graphs and dispatch modes, modules call the kernels without the
operator.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..call.bind import (
    bind_dense,
    cast_for_autocast,
    flatten_weights,
    group_weights,
    to_gru_arguments,
    weights_of_cell,
    weights_of_gru,
)
from ..call.checks import add_batch_dim, check_cell, check_gru
from ..call.options import Options
from ..call.torch_state import records_gradient
from ..plan import device as devices
from ..plan.device import find_device
from ..plan.planner import choose
from ..reference import LayerWeights
from . import execute

_ARGUMENTS = (
    "Tensor input, Tensor? hx, Tensor[] weights, Tensor? lengths, Tensor? resets, bool records_grad, "
    "bool bias, bool bidirectional, bool batch_first, bool reverse, bool reset_after, str backend, bool training"
)
_library = torch.library.Library("triton_gru", "DEF")
_library.define(f"gru({_ARGUMENTS}) -> (Tensor, Tensor)")
_library.define(f"gru_backward(Tensor grad_output, Tensor grad_h_n, {_ARGUMENTS}) -> Tensor[]")


def run_gru(gru, input: Tensor, hx: Tensor | None, lengths: Tensor | None, resets: Tensor | None):
    """Run a `triton_gru.GRU` by the operator. Packed input is not allowed."""
    check_gru(gru, input, hx, lengths, resets)
    unbatched = input.dim() == 2
    input, hx, resets = add_batch_dim(gru.batch_first, input, hx, resets)
    options, weights = Options.from_module(gru), weights_of_gru(gru)
    call = _call_operator_by_layers if gru.training and gru.dropout > 0 else _call_operator
    output, h_n = call(options, input, hx, weights, lengths, resets)
    return (output.squeeze(0 if gru.batch_first else 1), h_n.squeeze(1)) if unbatched else (output, h_n)


def run_cell(cell, input: Tensor, hx: Tensor | None) -> Tensor:
    """Run a `triton_gru.GRUCell` by the operator."""
    check_cell(cell, input, hx)
    arguments = (*to_gru_arguments(input, hx), [weights_of_cell(cell)], None, None)
    _, h_n = _call_operator(Options.from_module(cell), *arguments)
    h = h_n.squeeze(0)
    return h.squeeze(0) if input.dim() == 1 else h


def _call_operator_by_layers(
    options: Options, input: Tensor, hx: Tensor | None, weights: list[LayerWeights], lengths, resets
) -> tuple[Tensor, Tensor]:
    """Call the operator for each layer, with dropout between layers in the graph, which keeps its mask for a backward.

    Each call of the operator is of one layer.
    """
    directions, states = options.directions, []
    for first_state in range(0, len(weights), directions):
        layer = slice(first_state, first_state + directions)
        if first_state > 0:
            input = F.dropout(input, options.dropout)
        layer_hx = None if hx is None else hx[layer]
        input, h_n = _call_operator(options, input, layer_hx, weights[layer], lengths, resets)
        states.append(h_n)
    return input, torch.cat(states)


def _call_operator(
    options: Options, input: Tensor, hx: Tensor | None, weights: list[LayerWeights], lengths, resets
) -> tuple[Tensor, Tensor]:
    """Return ``output`` and ``h_n`` of the operator. Under autocast, its arguments are cast first."""
    input, hx, weights = cast_for_autocast(input, hx, weights)
    flat_weights = flatten_weights(weights)
    settings = options.bias, options.bidirectional, options.batch_first, options.reverse, options.reset_after
    settings += options.backend, options.is_training_call
    records_grad = records_gradient((input, hx, *flat_weights))
    return torch.ops.triton_gru.gru(input, hx, flat_weights, lengths, resets, records_grad, *settings)


def _make_options(
    weights: list[Tensor], bias, bidirectional, batch_first, reverse, reset_after, backend, training
) -> Options:
    """Return the `Options` of the operator's arguments. Sizes and layers are those of ``weights``."""
    weights_per_direction = 4 if bias else 2
    layers = len(weights) // weights_per_direction // (2 if bidirectional else 1)
    return Options(
        weights[0].size(1), weights[1].size(1), layers, bias, batch_first, 0.0, bidirectional, reset_after, reverse,
        backend, training,
    )  # fmt: skip


def _run(options: Options, records_grad: bool, arguments: tuple) -> tuple[Tensor, Tensor]:
    """Plan and run a call in the current grad mode, and return ``output`` and ``h_n``.

    Args:
        records_grad: whether autograd recorded the call when it was made or traced. The operator runs below autograd,
            and cannot ask.
        arguments: input, hx, weights, lengths and resets of the operator.
    """
    input, hx, weights, lengths, resets = arguments
    # `_call_operator` has cast the arguments, so an autocast that is active now must not cast them again.
    with torch.autocast(input.device.type, enabled=False):
        # The operator's ``training`` is the caller's `is_training_call`. It is the same here only with grad mode on.
        with torch.enable_grad():
            layers = group_weights(weights, options.bias)
            call = bind_dense(options, input, hx, layers, lengths, resets, records_grad)
        return execute.run(call, choose(call.problem, find_device(input.device), options.backend))


def _gru(input, hx, weights, lengths, resets, records_grad, *settings) -> tuple[Tensor, Tensor]:
    """Return ``output`` and ``h_n``, contiguous. This implements the operator ``gru`` on every device."""
    options = _make_options(weights, *settings)
    arguments = input, hx, weights, lengths, resets
    with torch.no_grad():
        output, h_n = _run_on_cpu(options, *arguments) or _run(options, records_grad, arguments)
    return output.contiguous(), h_n.contiguous()


def _run_on_cpu(options: Options, input, hx, weights, lengths, resets) -> tuple[Tensor, Tensor] | None:
    """Return the results of torch.gru on a CPU. No plan is made, because a call may take only microseconds.

    Return None if the call is not on a CPU, if a GPU is emulated, or if the backend is not "auto". Return None also if
    torch.gru cannot serve the call, or if autocast is enabled.
    """
    if (
        not input.is_cpu
        or devices.emulated_device is not None
        or options.backend != "auto"
        or options.unsupported_by_nn_gru
    ):
        return None
    if lengths is not None or resets is not None or torch._C._is_any_autocast_enabled():
        return None
    if hx is None:
        states = options.num_layers * options.directions
        hx = input.new_zeros(states, input.size(0 if options.batch_first else 1), options.hidden_size)
    return torch.gru(
        input, hx, weights, options.bias, options.num_layers, 0.0, options.training, options.bidirectional,
        options.batch_first,
    )  # fmt: skip


def _gru_fake(input, hx, weights, lengths, resets, records_grad, *settings) -> tuple[Tensor, Tensor]:
    """Return empty tensors of the shapes of ``output`` and ``h_n``, by which a tracer knows them."""
    options = _make_options(weights, *settings)
    output = input.new_empty(input.size(0), input.size(1), options.directions * options.hidden_size)
    batch = input.size(0 if options.batch_first else 1)
    return output, input.new_empty(options.num_layers * options.directions, batch, options.hidden_size)


def _gru_backward(grad_output, grad_h_n, input, hx, weights, lengths, resets, records_grad, *settings) -> list[Tensor]:
    """Run the call again under autograd, and return the gradients of input, hx (unless None) and weights.

    If a kernel serves the call, the backward raises an error (`execute.run`).
    """
    variables = [t.detach().requires_grad_() for t in (input, hx, *weights) if t is not None]
    # Under a dispatch mode, operators run with the dispatch keys of autograd and of views excluded. Include them.
    set_excluded, key = torch._C._SetExcludeDispatchKeyGuard, torch._C.DispatchKey
    with set_excluded(key.AutogradFunctionality, False), set_excluded(key.ADInplaceOrView, False):
        options = _make_options(weights, *settings)
        input_variable, *weight_variables = variables
        hx_variable = None if hx is None else weight_variables.pop(0)
        arguments = input_variable, hx_variable, weight_variables, lengths, resets
        with torch.enable_grad():
            results = _run(options, records_grad, arguments)
        grads = torch.autograd.grad(results, variables, (grad_output, grad_h_n))
    return [grad.contiguous() for grad in grads]


def _gru_backward_fake(grad_output, grad_h_n, input, hx, weights, *settings) -> list[Tensor]:
    """Return empty tensors of the shapes that `_gru_backward` returns."""
    return [t.new_empty(t.shape) for t in (input, hx, *weights) if t is not None]


def _save_for_backward(ctx, inputs, output) -> None:
    """Save the operator's arguments in ``ctx`` for `_backward`, and which optional tensors they have."""
    input, hx, weights, lengths, resets, *ctx.settings = inputs
    ctx.has_optional = hx is not None, lengths is not None, resets is not None
    ctx.save_for_backward(input, *weights, *(t for t in (hx, lengths, resets) if t is not None))


def _backward(ctx, grad_output, grad_h_n):
    """Return a gradient, or None, for each argument of the operator ``gru``."""
    has_hx, has_lengths, has_resets = ctx.has_optional
    saved = list(ctx.saved_tensors)  # as `_save_for_backward` ordered them; take the optional tensors from the end
    resets = saved.pop() if has_resets else None
    lengths = saved.pop() if has_lengths else None
    hx = saved.pop() if has_hx else None
    input, *weights = saved
    arguments = (input, hx, weights, lengths, resets, *ctx.settings)
    grad_input, *grads = torch.ops.triton_gru.gru_backward(grad_output, grad_h_n, *arguments)
    grad_hx = grads.pop(0) if has_hx else None
    return grad_input, grad_hx, grads, None, None, *(None for _ in ctx.settings)


def _backward_twice(ctx, *grads):
    """Raise, because the operator has no second derivative."""
    raise RuntimeError(
        "triton_gru::gru can be differentiated once, and has no second derivative: call the module outside of "
        "torch.compile, with backend='torch'"
    )


_library.impl("gru", _gru, "CompositeExplicitAutograd")
_library.impl("gru_backward", _gru_backward, "CompositeExplicitAutograd")
torch.library.register_fake("triton_gru::gru", _gru_fake, lib=_library)
torch.library.register_fake("triton_gru::gru_backward", _gru_backward_fake, lib=_library)
torch.library.register_autograd("triton_gru::gru", _backward, setup_context=_save_for_backward, lib=_library)
torch.library.register_autograd("triton_gru::gru_backward", _backward_twice, lib=_library)
