"""The GRU as one operator, for torch.compile, torch.export and dispatch modes: they see it whole and look no further.

What runs is planned when the operator runs, with the sizes of that call: any T and B are served by what was compiled
or exported once. Outside of these, modules call the kernels past the operator.
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
from ..plan import device as devices
from ..plan.device import find_device
from ..plan.planner import choose
from ..reference import LayerWeights
from . import execute

_ARGUMENTS = (
    "Tensor input, Tensor? hx, Tensor[] weights, Tensor? lengths, Tensor? resets, "
    "bool bias, bool bidirectional, bool batch_first, bool reverse, bool reset_after, str backend, bool training"
)
_library = torch.library.Library("triton_gru", "DEF")
_library.define(f"gru({_ARGUMENTS}) -> (Tensor, Tensor)")
_library.define(f"gru_backward(Tensor grad_output, Tensor grad_h_n, {_ARGUMENTS}) -> Tensor[]")


def run_gru(gru, input: Tensor, hx: Tensor | None, lengths: Tensor | None, resets: Tensor | None):
    """Run a `triton_gru.GRU` by the operator; not on packed input."""
    check_gru(gru, input, hx, lengths, resets)
    unbatched = input.dim() == 2
    input, hx, resets = add_batch_dim(gru.batch_first, input, hx, resets)
    options, weights = Options.from_module(gru), weights_of_gru(gru)
    operate = _operate_by_layers if gru.training and gru.dropout > 0 else _operate
    output, h_n = operate(options, input, hx, weights, lengths, resets)
    return (output.squeeze(0 if gru.batch_first else 1), h_n.squeeze(1)) if unbatched else (output, h_n)


def run_cell(cell, input: Tensor, hx: Tensor | None) -> Tensor:
    """Run a `triton_gru.GRUCell` by the operator."""
    check_cell(cell, input, hx)
    h = _operate(Options.from_module(cell), *to_gru_arguments(input, hx), [weights_of_cell(cell)], None, None)[
        1
    ].squeeze(0)
    return h.squeeze(0) if input.dim() == 1 else h


def _operate_by_layers(
    options: Options, input: Tensor, hx: Tensor | None, weights: list[LayerWeights], *ends
) -> tuple[Tensor, Tensor]:
    """Let a graph see what torch drops out between layers: it remembers that for a backward."""
    directions, states = options.directions, []
    for first in range(0, len(weights), directions):
        layer = slice(first, first + directions)
        if first > 0:
            input = F.dropout(input, options.dropout)
        input, h_n = _operate(options, input, None if hx is None else hx[layer], weights[layer], *ends)
        states.append(h_n)
    return input, torch.cat(states)


def _operate(
    options: Options, input: Tensor, hx: Tensor | None, weights: list[LayerWeights], lengths, resets
) -> tuple[Tensor, Tensor]:
    input, hx, weights = cast_for_autocast(input, hx, weights)
    passed = options.bias, options.bidirectional, options.batch_first, options.reverse, options.reset_after
    passed += options.backend, options.is_training_call
    return torch.ops.triton_gru.gru(input, hx, flatten_weights(weights), lengths, resets, *passed)


def _options(
    weights: list[Tensor], bias, bidirectional, batch_first, reverse, reset_after, backend, training
) -> Options:
    """Return the settings that the operator's arguments say."""
    layers = len(weights) // (4 if bias else 2) // (2 if bidirectional else 1)
    return Options(
        weights[0].size(1), weights[1].size(1), layers, bias, batch_first, 0.0, bidirectional, reset_after, reverse,
        backend, training,
    )  # fmt: skip


def _run(grad: bool, options: Options, input, hx, weights, lengths, resets) -> tuple[Tensor, Tensor]:
    """Do what the operator does, so that it can be differentiated if ``grad``."""
    # Its arguments are in the dtype they are to be in, whatever autocast there is by now.
    with torch.autocast(input.device.type, enabled=False):
        with torch.enable_grad():  # as it was where `training` is set
            call = bind_dense(options, input, hx, group_weights(weights, options.bias), lengths, resets)
        plan = choose(call.problem, find_device(input.device), options.backend)
        with torch.set_grad_enabled(grad):
            return execute.run(call, plan)


def _gru(input, hx, weights, lengths, resets, *passed) -> tuple[Tensor, Tensor]:
    options, given = _options(weights, *passed), (input, hx, weights, lengths, resets)
    output, h_n = _on_cpu(options, *given) or _run(False, options, *given)
    return output.contiguous(), h_n.contiguous()


def _on_cpu(options: Options, input, hx, weights, lengths, resets) -> tuple[Tensor, Tensor] | None:
    """Return what torch's GRU gives on a CPU, where calls take microseconds; None if something else serves the call."""
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


def _gru_fake(input, hx, weights, lengths, resets, *passed) -> tuple[Tensor, Tensor]:
    options = _options(weights, *passed)
    output = input.new_empty(input.size(0), input.size(1), options.directions * options.hidden_size)
    batch = input.size(0 if options.batch_first else 1)
    return output, input.new_empty(options.num_layers * options.directions, batch, options.hidden_size)


def _gru_backward(grad_output, grad_h_n, input, hx, weights, lengths, resets, *passed) -> list[Tensor]:
    """That of what serves the call, which runs once more for it; of a kernel, an error (`execute.run`)."""
    variables = [t.detach().requires_grad_() for t in (input, hx, *weights) if t is not None]
    rest = iter(variables)
    # A dispatch mode calls operators where autograd no longer looks, nor at what is written through a view.
    visible, key = torch._C._SetExcludeDispatchKeyGuard, torch._C.DispatchKey
    with visible(key.AutogradFunctionality, False), visible(key.ADInplaceOrView, False):
        options = _options(weights, *passed)
        results = _run(True, options, next(rest), None if hx is None else next(rest), list(rest), lengths, resets)
        grads = torch.autograd.grad(results, variables, (grad_output, grad_h_n))
    return [grad.contiguous() for grad in grads]


def _gru_backward_fake(grad_output, grad_h_n, input, hx, weights, *options) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (input, hx, *weights) if t is not None]


def _save(ctx, inputs, output) -> None:
    input, hx, weights, lengths, resets, *ctx.options = inputs
    ctx.has = hx is not None, lengths is not None, resets is not None
    ctx.save_for_backward(input, *weights, *(t for t in (hx, lengths, resets) if t is not None))


def _backward(ctx, grad_output, grad_h_n):
    has_hx, has_lengths, has_resets = ctx.has
    saved = list(ctx.saved_tensors)
    resets = saved.pop() if has_resets else None
    lengths = saved.pop() if has_lengths else None
    hx = saved.pop() if has_hx else None
    input, *weights = saved
    given = (input, hx, weights, lengths, resets, *ctx.options)
    grad_input, *grads = torch.ops.triton_gru.gru_backward(grad_output, grad_h_n, *given)
    grad_hx = grads.pop(0) if has_hx else None
    return grad_input, grad_hx, grads, None, None, *(None for _ in ctx.options)


def _backward_twice(ctx, *grads):
    raise RuntimeError(
        "triton_gru::gru can be differentiated once, and not again: for more call the module outside of torch.compile, "
        "with backend='torch'"
    )


_library.impl("gru", _gru, "CompositeExplicitAutograd")
_library.impl("gru_backward", _gru_backward, "CompositeExplicitAutograd")
torch.library.register_fake("triton_gru::gru", _gru_fake, lib=_library)
torch.library.register_fake("triton_gru::gru_backward", _gru_backward_fake, lib=_library)
torch.library.register_autograd("triton_gru::gru", _backward, setup_context=_save, lib=_library)
torch.library.register_autograd("triton_gru::gru_backward", _backward_twice, lib=_library)
