"""The choice of a route: the function that serves a call.

A route is a prepared call, `nn.GRU` or `nn.GRUCell`, the operator, a break between two graphs of torch.compile, a node
of torch.fx, or `run_planned`. It is called with the module and the module's arguments. A cached route is called without
lengths and resets. Only this file chooses routes.
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


def find_cached_gru_route(gru, input: Tensor | PackedSequence, hx: Tensor | None) -> Callable | None:
    """Return the route of ``gru(input, hx)`` if it is known without checking the call, or None.

    A plain call on a CPU has `nn.GRU` without a look-up in the cache, because such a call may take only microseconds,
    less than the look-up. A call is not plain with packed input, another backend than "auto", or an option that nn.GRU
    lacks. Nor is it plain in torch.compile. Any other call has the cached route of its signature, if there is one.
    """
    is_plain_cpu_call = (
        type(input) is Tensor and input.is_cpu and gru.backend == "auto" and gru.reset_after and not gru.reverse
    )
    if is_plain_cpu_call and devices.emulated_device is None and not torch.compiler.is_compiling():
        return _nn_gru
    return call_cache.find_route(gru, input, hx)


def find_cached_cell_route(cell, input: Tensor, hx: Tensor | None) -> Callable | None:
    """Return the route of ``cell(input, hx)``, as `find_cached_gru_route` does for a GRU, or None.

    A cell's call on a CPU is also plain in torch.compile.
    """
    is_plain_cpu_call = type(input) is Tensor and input.is_cpu and cell.backend == "auto" and cell.reset_after
    if is_plain_cpu_call and devices.emulated_device is None:
        return _nn_cell
    return call_cache.find_route(cell, input, hx)


def route_gru(gru, input: Tensor | PackedSequence, hx: Tensor | None, lengths, resets) -> Callable:
    """Return the route of ``gru(input, hx, lengths, resets)``, to be called with the GRU and the same arguments."""
    if isinstance(input, Proxy):
        return run_traced
    is_nn_gru_call = lengths is None and resets is None and _is_nn_gru_call(gru, input)
    if is_nn_gru_call and not _is_compile_tracing():
        return run_nn_gru
    # If nn.GRU serves the call, the graph breaks here, as it does at any nn.GRU. It breaks at packed input, too.
    # Exception: if it may not break at nn.GRU, the operator serves the call.
    if _is_unknown_to_graph(input) or (is_nn_gru_call and not _is_full_graph()):
        return run_outside_graph
    return operator.run_gru if _is_operator_needed(input) else run_planned


def route_cell(cell, input: Tensor, hx: Tensor | None) -> Callable:
    """Return the route of ``cell(input, hx)``, to be called with the cell and the same arguments."""
    if isinstance(input, Proxy):
        return run_traced
    # nn.GRUCell has a backward in eval(), unlike nn.GRU on a GPU. So it serves calls that autograd records.
    if _is_nn_gru_call(cell, input, (input, hx, *weights_of_cell(cell))):
        return _nn_cell
    return operator.run_cell if _is_operator_needed(input) else run_planned_cell


def run_traced(module, *inputs) -> Proxy:
    """Return the node of torch.fx.symbolic_trace for a call: one call of the module, as for `nn.GRU`."""
    tracer = inputs[0].tracer
    input, hx, *ends = inputs
    ends = {name: value for name, value in zip(("lengths", "resets"), ends) if value is not None}
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input, hx), ends)


def run_nn_gru(gru, input, hx, lengths, resets):
    """Run `nn.GRU`. It has no lengths and resets, which are None here."""
    return _nn_gru(gru, input, hx)


@torch._disable_dynamo
def run_outside_graph(gru, *arguments):
    """Run the module between two graphs of torch.compile."""
    return gru.forward(*arguments)


def run_planned(gru, input: Tensor | PackedSequence, hx: Tensor | None, lengths, resets):
    """Plan a call and run it by its plan: by kernels, `nn.GRU` or plain torch. Cache its route for later calls.

    Exception: some calls are planned each time. These are calls with lengths or resets, which signatures do not have,
    calls of plain torch, and calls of `nn.GRU` with ``reverse``. So are unbatched calls of kernels, because prepared
    calls return batched results.
    """
    call = bind_gru(gru, input, hx, lengths, resets)
    plan = plan_call(call)
    # `execute.run` handles lengths and reverse around nn.GRU, which has neither.
    if plan.kernel == "torch" and lengths is None and not gru.reverse:
        results = _nn_gru(gru, input, hx)
        call_cache.cache_nn_gru_route(gru, input, hx, _nn_gru)
        return results
    output, h_n = execute.run(call, plan)
    if isinstance(input, Tensor) and input.dim() == 2:
        return output.squeeze(0 if gru.batch_first else 1), h_n.squeeze(1)
    if lengths is None and resets is None:
        call_cache.cache_route(gru, input, hx, call, plan, output, h_n)
    return pack_results(gru, input, output, h_n) if isinstance(input, PackedSequence) else (output, h_n)


def run_planned_cell(cell, input: Tensor, hx: Tensor | None) -> Tensor:
    """Plan a cell's call and run it by its plan. Cache its route for later calls.

    Exception: unbatched calls of kernels, and calls of plain torch, are planned each time.
    """
    call = bind_cell(cell, input, hx)
    plan = plan_call(call)
    if plan.kernel == "torch":
        h = _nn_cell(cell, input, hx)
        call_cache.cache_nn_gru_route(cell, input, hx, _nn_cell)
        return h
    h_n = execute.run(call, plan)[1]
    h = h_n.squeeze(0)
    if input.dim() == 1:
        return h.squeeze(0)
    call_cache.cache_route(cell, input, hx, call, plan, h_n, h_n)
    return h


def plan_call(call: Call) -> Plan:
    """Return the plan of a call on the device of its input."""
    return choose(call.problem, find_device(call.input.device), call.options.backend)


def stops_compiler(gru) -> bool:
    """Return whether torch.compile should break the graph at a GRU, as at any `nn.GRU`, because `nn.GRU` serves it.

    Return False if the graph may not break.
    """
    is_nn_gru_call = (
        gru.backend == "torch" or Options.from_module(gru).is_training_call or _has_no_kernels(gru.weight_ih_l0.device)
    )
    return is_nn_gru_call and gru.backend in ("auto", "torch") and not _is_full_graph()


def _is_nn_gru_call(module, input: Tensor | PackedSequence, differentiable: tuple[Tensor | None, ...] = ()) -> bool:
    """Return whether `nn.GRU` or `nn.GRUCell` serves the call at any size, so that no plan is made.

    One of several causes is that autograd records a call that reads the tensors ``differentiable``.
    """
    options = Options.from_module(module)
    if options.backend not in ("auto", "torch") or options.unsupported_by_nn_gru:
        return False
    # torch.jit.trace cannot record Triton kernels, and kernels cannot train.
    if options.backend == "torch" or torch.jit.is_tracing() or options.is_training_call:
        return True
    has_no_operator = not (_is_operator_needed(input) or _is_unknown_to_graph(input))
    if torch.compiler.is_exporting():
        # Whoever receives an exported model may not have this package. So accelerated modules export as nn.GRU.
        return has_only_nn_gru_attributes(module) or has_no_operator
    if torch.compiler.is_compiling() and has_no_operator:
        return True
    device = (input.data if isinstance(input, PackedSequence) else input).device
    return _has_no_kernels(device) or records_gradient(differentiable)


def _has_no_kernels(device: torch.device) -> bool:
    """Return whether no kernel can run on a device. Return False for any CUDA device, which plans check."""
    # A fake tensor may name a CUDA device that this machine lacks, so do not look up CUDA devices.
    return device.type != "cuda" and find_device(device) is None


def _is_operator_needed(input: Tensor | PackedSequence) -> bool:
    """Return whether a call has to use the operator, as in graphs and under dispatch modes.

    Exception: packed input and transforms of torch.func cannot use the operator.
    """
    if isinstance(input, PackedSequence) or _is_transformed():
        return False
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def _is_unknown_to_graph(input: Tensor | PackedSequence) -> bool:
    """Return whether Dynamo traces a call with packed input, whose sizes a graph cannot know."""
    return isinstance(input, PackedSequence) and torch.compiler.is_dynamo_compiling()


def _is_transformed() -> bool:
    """Return whether a transform of torch.func is active. torch.compile can trace this function."""
    return torch._C._functorch.get_dynamic_layer_stack_depth() > 0


def _is_compile_tracing() -> bool:
    """Return whether torch.compile traces the call, outside of torch.export and of torch.func's transforms."""
    is_compiling = torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting()
    return is_compiling and not _is_transformed()


def _is_full_graph() -> bool:
    """Return whether the graph that Dynamo traces may not break, as with fullgraph=True.

    Return True also if a graph is being compiled but Dynamo does not trace.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        translator = InstructionTranslator.current_tx()
    except AttributeError:  # Dynamo does not trace
        return True
    return translator.one_graph or getattr(translator, "error_on_graph_break", False)


# Do what torch.compiler.assume_constant_result does, which takes a second to import.
_is_full_graph._dynamo_marked_constant = True
