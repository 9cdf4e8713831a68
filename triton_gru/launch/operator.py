"""The GRU as one operator, for torch.compile, torch.export and dispatch modes: they see it whole and look no further.

What runs is planned when the operator runs, with the sizes of that call: any T and B are served by what was compiled
or exported once. Outside of these, modules call the kernels past the operator.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from ..call.bind import (
    as_one_step,
    autocast,
    batched,
    bind_dense,
    check_cell,
    check_gru,
    flat,
    grouped,
    weights_of_cell,
    weights_of_gru,
)
from ..plan import device as devices
from ..plan.device import find
from ..plan.planner import choose
from ..reference import Weights
from . import execute

_ARGUMENTS = (
    "Tensor input, Tensor? hx, Tensor[] weights, Tensor? lengths, Tensor? resets, "
    "bool bias, bool bidirectional, bool batch_first, bool reverse, bool reset_after, str backend, bool training"
)
_library = torch.library.Library("triton_gru", "DEF")
_library.define(f"gru({_ARGUMENTS}) -> (Tensor, Tensor)")
_library.define(f"gru_backward(Tensor grad_output, Tensor grad_h_n, {_ARGUMENTS}) -> Tensor[]")


def wanted(input: Tensor | PackedSequence) -> bool:
    """Whether a call has to go by the operator."""
    if isinstance(input, PackedSequence) or _is_transformed():
        return False
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def _is_transformed() -> bool:
    """Whether a transform of torch.func looks inside. (How deep they are is what torch.compile, too, can answer.)"""
    return torch._C._functorch.get_dynamic_layer_stack_depth() > 0


def unseen(input: Tensor | PackedSequence) -> bool:
    """Whether a call has to go by `outside`."""
    return isinstance(input, PackedSequence) and torch.compiler.is_dynamo_compiling()


def in_graph() -> bool:
    """Whether torch.compile makes a graph of the call for this process."""
    compiles = torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting()
    return compiles and not _is_transformed()


def graph_is_whole() -> bool:
    """Whether the graph that is being made may have no gap: with fullgraph=True."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        maker = InstructionTranslator.current_tx()
    except AttributeError:  # a graph is compiled, and none is made
        return True
    return maker.one_graph or getattr(maker, "error_on_graph_break", False)


# As torch.compiler.assume_constant_result, which takes a second to import.
graph_is_whole._dynamo_marked_constant = True


@torch._disable_dynamo
def outside(module, *arguments):
    """``module(*arguments)`` between two graphs of torch.compile.

    So it is with packed input, whose sizes no graph can know; and with what torch serves, as with any `nn.GRU`.
    """
    return module.forward(*arguments)


def gru(module, input: Tensor, hx: Tensor | None, lengths: Tensor | None, resets: Tensor | None):
    """``module(input, hx, lengths, resets)`` of a `triton_gru.GRU`, by the operator; not of packed input."""
    check_gru(module, input, hx, lengths, resets)
    unbatched = input.dim() == 2
    input, hx, resets = batched(module, input, hx, resets)
    weights = weights_of_gru(module)
    options = (lengths, resets, module.bidirectional, module.batch_first, module.reverse)
    if module.training and module.dropout > 0:
        output, h_n = _dropping_out(module, input, hx, weights, *options)
    else:
        output, h_n = _operate(module, input, hx, weights, *options)
    return (output.squeeze(0 if module.batch_first else 1), h_n.squeeze(1)) if unbatched else (output, h_n)


def cell(module, input: Tensor, hx: Tensor | None) -> Tensor:
    """``module(input, hx)`` of a `triton_gru.GRUCell`, by the operator."""
    check_cell(module, input, hx)
    h = _operate(module, *as_one_step(input, hx), [weights_of_cell(module)])[1].squeeze(0)
    return h.squeeze(0) if input.dim() == 1 else h


def _dropping_out(module, input: Tensor, hx: Tensor | None, weights: list[Weights], *options) -> tuple[Tensor, Tensor]:
    """Layer by layer, for a graph to see what torch drops out between them: it remembers that for a backward."""
    directions = 2 if module.bidirectional else 1
    states = []
    for first in range(0, len(weights), directions):
        layer = slice(first, first + directions)
        if first > 0:
            input = F.dropout(input, module.dropout)
        input, h_n = _operate(module, input, None if hx is None else hx[layer], weights[layer], *options)
        states.append(h_n)
    return input, torch.cat(states)


def _operate(
    module,
    input: Tensor,
    hx: Tensor | None,
    weights: list[Weights],
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    bidirectional: bool = False,
    batch_first: bool = False,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    input, hx, weights = autocast(input, hx, weights)
    trains = module.training and torch.is_grad_enabled()
    options = (module.bias, bidirectional, batch_first, reverse, module.reset_after, module.backend, trains)
    return torch.ops.triton_gru.gru(input, hx, flat(weights), lengths, resets, *options)


@dataclass(frozen=True)
class _Module:
    """What `bind_dense` asks of a module."""

    weights: list[Tensor]
    bias: bool
    bidirectional: bool
    batch_first: bool
    reverse: bool
    reset_after: bool
    backend: str
    training: bool
    dropout: float = 0.0

    @property
    def input_size(self) -> int:
        return self.weights[0].size(1)

    @property
    def hidden_size(self) -> int:
        return self.weights[1].size(1)

    @property
    def num_layers(self) -> int:
        return len(self.weights) // (4 if self.bias else 2) // (2 if self.bidirectional else 1)


def _run(grad: bool, input, hx, weights, lengths, resets, bias, *options) -> tuple[Tensor, Tensor]:
    """What the operator does, so that it can be differentiated if ``grad``."""
    module = _Module(weights, bias, *options)
    # Its arguments are in the dtype they are to be in, whatever autocast there is by now.
    with torch.autocast(input.device.type, enabled=False):
        with torch.enable_grad():  # as it was where `training` is set
            call = bind_dense(module, input, hx, grouped(weights, bias), lengths, resets)
        plan = choose(call.problem, find(input.device), module.backend)
        with torch.set_grad_enabled(grad):
            return execute.run(call, plan)


def _gru(*arguments) -> tuple[Tensor, Tensor]:
    output, h_n = _on_cpu(*arguments) or _run(False, *arguments)
    return output.contiguous(), h_n.contiguous()


def _on_cpu(
    input, hx, weights, lengths, resets, bias, bidirectional, batch_first, reverse, reset_after, backend, training
) -> tuple[Tensor, Tensor] | None:
    """What torch's GRU gives on a CPU, where calls take microseconds; None if something else serves the call."""
    if not input.is_cpu or devices.on_cpu is not None or backend != "auto" or reverse or not reset_after:
        return None
    if lengths is not None or resets is not None or torch._C._is_any_autocast_enabled():
        return None
    layers = len(weights) // (4 if bias else 2)
    if hx is None:
        hx = input.new_zeros(layers, input.size(0 if batch_first else 1), weights[1].size(1))
    layers //= 2 if bidirectional else 1
    return torch.gru(input, hx, weights, bias, layers, 0.0, training, bidirectional, batch_first)


def _gru_fake(input, hx, weights, lengths, resets, bias, bidirectional, batch_first, *_) -> tuple[Tensor, Tensor]:
    directions, hidden = (2 if bidirectional else 1), weights[1].size(1)
    layers = len(weights) // (4 if bias else 2)
    output = input.new_empty(input.size(0), input.size(1), directions * hidden)
    return output, input.new_empty(layers, input.size(0 if batch_first else 1), hidden)


def _gru_backward(grad_output, grad_h_n, input, hx, weights, *options) -> list[Tensor]:
    """That of what serves the call, which runs once more for it; of a kernel, an error (`execute.run`)."""
    variables = [t.detach().requires_grad_() for t in (input, hx, *weights) if t is not None]
    rest = iter(variables)
    # A dispatch mode calls operators where autograd no longer looks, nor at what is written through a view.
    visible, key = torch._C._SetExcludeDispatchKeyGuard, torch._C.DispatchKey
    with visible(key.AutogradFunctionality, False), visible(key.ADInplaceOrView, False):
        results = _run(True, next(rest), None if hx is None else next(rest), list(rest), *options)
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
