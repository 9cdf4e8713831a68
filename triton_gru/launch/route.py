"""Who serves a call: a call kept before, torch's own module, the operator, a gap between two graphs, or kernels.

A route is a function that is called as the module is, and is chosen here alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from ..call.bind import Call, bind_cell, bind_gru, weights_of_cell
from ..call.options import Options, has_only_nn_gru_attributes
from ..call.sequences import pack_results
from ..call.torch_state import records_gradient
from ..plan import device as devices
from ..plan.device import find_device
from ..plan.planner import Plan, choose
from . import call_cache, execute, operator

_nn_gru, _nn_cell = nn.GRU.forward, nn.GRUCell.forward


def find_gru_route(gru, input: Tensor | PackedSequence, hx: Tensor | None) -> Callable | None:
    """Return what serves ``gru(input, hx)`` without a look at anything else, None if that has to be found out.

    That is torch's own on a CPU, where calls are a matter of microseconds; or what served the call before.
    """
    plain = type(input) is Tensor and input.is_cpu and gru.backend == "auto" and gru.reset_after and not gru.reverse
    if plain and devices.emulated_device is None and not torch.compiler.is_compiling():
        return _nn_gru
    return call_cache.find_route(gru, input, hx)


def find_cell_route(cell, input: Tensor, hx: Tensor | None) -> Callable | None:
    """Return what serves ``cell(input, hx)`` without a look at anything else, as `find_gru_route`."""
    plain = type(input) is Tensor and input.is_cpu and cell.backend == "auto" and cell.reset_after
    return _nn_cell if plain and devices.emulated_device is None else call_cache.find_route(cell, input, hx)


def route_gru(gru, input: Tensor | PackedSequence, hx: Tensor | None, lengths, resets) -> Callable:
    """Return what serves ``gru(input, hx, lengths, resets)``, called with the same arguments."""
    if isinstance(input, Proxy):
        return run_traced
    is_torchs = lengths is None and resets is None and _is_torchs(gru, input)
    if is_torchs and not _is_in_graph():
        return run_nn_gru
    # At what torch serves a graph stops, as at any nn.GRU.
    if _is_unknown_to_graph(input) or (is_torchs and not _is_graph_whole()):
        return run_outside_graph
    return operator.run_gru if _is_operator_needed(input) else run_kernels


def route_cell(cell, input: Tensor, hx: Tensor | None) -> Callable:
    """Return what serves ``cell(input, hx)``, called with the same arguments."""
    if isinstance(input, Proxy):
        return run_traced
    # torch's cell has a backward in eval(), where its GRU on a GPU has none.
    if _is_torchs(cell, input, (input, hx, *weights_of_cell(cell))):
        return _nn_cell
    return operator.run_cell if _is_operator_needed(input) else run_cell_kernels


def run_traced(module, *inputs) -> Proxy:
    """Return what torch.fx.symbolic_trace puts in the place of a call: one of the module whole, as of torch's own."""
    tracer = inputs[0].tracer
    input, hx, *more = inputs
    more = {name: value for name, value in zip(("lengths", "resets"), more) if value is not None}
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input, hx), more)


def run_nn_gru(gru, input, hx, lengths, resets):
    """Run torch's own GRU."""
    return _nn_gru(gru, input, hx)


@torch._disable_dynamo
def run_outside_graph(gru, *arguments):
    """Run the module between two graphs of torch.compile."""
    return gru.forward(*arguments)


def run_kernels(gru, input: Tensor | PackedSequence, hx: Tensor | None, lengths, resets):
    """Run what the plan of a call says, and keep it for calls to come."""
    call = bind_gru(gru, input, hx, lengths, resets)
    plan = plan_call(call)
    if plan.kernel == "torch" and lengths is None and not gru.reverse:
        results = _nn_gru(gru, input, hx)
        call_cache.keep_nn_gru_route(gru, input, hx, _nn_gru)
        return results
    output, h_n = execute.run(call, plan)
    if isinstance(input, Tensor) and input.dim() == 2:
        return output.squeeze(0 if gru.batch_first else 1), h_n.squeeze(1)
    if lengths is None and resets is None:
        call_cache.keep_route(gru, input, hx, call, plan, output, h_n)
    return pack_results(gru, input, output, h_n) if isinstance(input, PackedSequence) else (output, h_n)


def run_cell_kernels(cell, input: Tensor, hx: Tensor | None) -> Tensor:
    """Run what the plan of a cell's call says, and keep it for calls to come."""
    call = bind_cell(cell, input, hx)
    plan = plan_call(call)
    if plan.kernel == "torch":
        h = _nn_cell(cell, input, hx)
        call_cache.keep_nn_gru_route(cell, input, hx, _nn_cell)
        return h
    h_n = execute.run(call, plan)[1]
    h = h_n.squeeze(0)
    if input.dim() == 1:
        return h.squeeze(0)
    call_cache.keep_route(cell, input, hx, call, plan, h_n, h_n)
    return h


def plan_call(call: Call) -> Plan:
    """Return the plan of a call on the device of its input."""
    return choose(call.problem, find_device(call.input.device), call.options.backend)


def stops_compiler(gru) -> bool:
    """Return whether torch.compile is to refuse a GRU as it does any `nn.GRU`: where torch serves its calls."""
    served = (
        gru.backend == "torch" or Options.from_module(gru).is_training_call or _has_no_kernels(gru.weight_ih_l0.device)
    )
    return served and gru.backend in ("auto", "torch") and not _is_graph_whole()


def _is_torchs(module, input: Tensor | PackedSequence, differentiable: tuple[Tensor | None, ...] = ()) -> bool:
    """Return whether torch's own module serves the call whatever its sizes: then no plan is made.

    So it does where autograd records a call of the tensors ``differentiable``.
    """
    options = Options.from_module(module)
    if options.backend not in ("auto", "torch") or options.unsupported_by_nn_gru:
        return False
    # A trace would not show a kernel; and a model that is compiled in training is to train.
    if options.backend == "torch" or torch.jit.is_tracing() or options.is_training_call:
        return True
    is_left_out = not (_is_operator_needed(input) or _is_unknown_to_graph(input))
    if torch.compiler.is_exporting():
        # An accelerated model goes to those who may not have this package.
        return has_only_nn_gru_attributes(module) or is_left_out
    if torch.compiler.is_compiling() and is_left_out:
        return True
    device = (input.data if isinstance(input, PackedSequence) else input).device
    return _has_no_kernels(device) or records_gradient(differentiable)


def _has_no_kernels(device: torch.device) -> bool:
    # A CUDA device may be one that a fake tensor says it is on: there is none to be found.
    return device.type != "cuda" and find_device(device) is None


def _is_operator_needed(input: Tensor | PackedSequence) -> bool:
    """Return whether a call has to go by the operator: in graphs and under dispatch modes."""
    if isinstance(input, PackedSequence) or _is_transformed():
        return False
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def _is_unknown_to_graph(input: Tensor | PackedSequence) -> bool:
    """Return whether a graph is made that cannot know the sizes of the input: packed ones."""
    return isinstance(input, PackedSequence) and torch.compiler.is_dynamo_compiling()


def _is_transformed() -> bool:
    """Return whether a transform of torch.func looks inside. torch.compile, too, can answer how deep they are."""
    return torch._C._functorch.get_dynamic_layer_stack_depth() > 0


def _is_in_graph() -> bool:
    """Return whether torch.compile makes a graph of the call for this process."""
    compiles = torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting()
    return compiles and not _is_transformed()


def _is_graph_whole() -> bool:
    """Return whether the graph that is being made may have no gap: with fullgraph=True."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        maker = InstructionTranslator.current_tx()
    except AttributeError:  # a graph is compiled, and none is made
        return True
    return maker.one_graph or getattr(maker, "error_on_graph_break", False)


# As torch.compiler.assume_constant_result, which takes a second to import.
_is_graph_whole._dynamo_marked_constant = True
