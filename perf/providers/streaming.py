"""Providers of streams: a call computes one frame, from the state that the previous call left.

A caller of `nn.GRU` or `nn.GRUCell` passes the new state to the next call. A CUDA graph reads the same memory in every
replay, so a graph also copies the new state over the old state.

Each function ``_prepare_*`` becomes a `Prepare` once an argument before ``gru``, if any, is bound. The returned `Ready`
has the weights of ``gru``, takes frames like ``x``, and starts from a state of zeros.
"""

import copy
import functools
import operator
from collections.abc import Callable

from torch import Tensor, nn

import triton_gru
from triton_gru.plan.planner import KERNELS

from .interface import Prepare, Ready
from .ours import BackendProvider, describe_plan
from .torch_modules import find_kernel_name

_drop_time = operator.itemgetter(0)  # [1, B, I] -> [B, I]
# (frame, state) -> (output, new state). A state has a part [B, H] for each layer, in one tensor or in a list.
_State = Tensor | list[Tensor]
_Step = Callable[[Tensor, _State], tuple[Tensor, _State]]


def _prepare_nn_gru(gru: nn.GRU, x: Tensor) -> Ready:
    """Prepare ``gru`` itself, an `nn.GRU`."""
    return _carry_state(gru, _make_zero_state(gru, x), kernel=find_kernel_name(gru))


def _prepare_backend(provider: BackendProvider, gru: nn.GRU, x: Tensor) -> Ready:
    """Prepare our GRU with the provider's backend, called for one frame at a time."""
    ours = provider.make_gru(gru)
    return _carry_state(ours, _make_zero_state(gru, x), **describe_plan(provider.plan(ours, x)))


def _prepare_cells(cell_class: type[nn.RNNCellBase], gru: nn.GRU, x: Tensor) -> Ready:
    """Prepare a stack of GRU cells, one for each layer, which share ``gru``'s Parameters.

    ``cell_class`` is `nn.GRUCell` or our `GRUCell`.
    """
    cells = []
    for layer, names in enumerate(gru._all_weights):
        inputs = gru.hidden_size if layer else gru.input_size
        cell = cell_class(inputs, gru.hidden_size, device="meta", dtype=x.dtype).eval()
        for name in names:
            setattr(cell, name.removesuffix(f"_l{layer}"), getattr(gru, name))
        cells.append(cell)

    def step(x: Tensor, states: _State) -> tuple[Tensor, list[Tensor]]:
        new_states = []
        for cell, state in zip(cells, states):
            x = cell(x, state)
            new_states.append(x)
        return x, new_states

    zeros, description = _make_zero_state(gru, x), {"kernel": "torch"}
    if cell_class is triton_gru.GRUCell:  # the row shows the plan of the first layer's cell
        description = describe_plan(cells[0].plan(x[0], zeros[0]))
    return _carry_state(step, [*zeros], lay_out=_drop_time, **description)


def _prepare_stream(gru: nn.GRU, x: Tensor) -> Ready:
    """Prepare our `Stream`, which keeps the state itself."""
    stream = BackendProvider("auto").make_gru(gru).stream(x.size(1))
    reason = "the stream replays its own CUDA graphs"
    return Ready(
        stream, lay_out=_drop_time, reset=stream.reset, no_graph_reason=reason, **describe_plan(stream.plan(x[0]))
    )


def _carry_state(step: _Step, zeros: _State, **ready_fields) -> Ready:
    """Return a `Ready` whose calls run ``step``, each from the state that the previous call left.

    An eager call passes the new state on to the next call. A captured call copies the new state into memory that all
    replays share. Both begin from ``zeros``. ``ready_fields`` are further fields of the `Ready`.
    """
    eager_state, graph_state = zeros, copy.deepcopy(zeros)

    def call(x: Tensor) -> Tensor:
        nonlocal eager_state
        output, eager_state = step(x, eager_state)
        return output

    def captured(x: Tensor) -> Tensor:
        output, new_state = step(x, graph_state)
        pairs = zip(graph_state, new_state) if isinstance(graph_state, list) else [(graph_state, new_state)]
        for part, new_part in pairs:
            part.copy_(new_part)
        return output

    def reset() -> None:
        nonlocal eager_state
        eager_state = zeros
        for part in graph_state:
            part.zero_()

    return Ready(call, reset=reset, captured=captured, **ready_fields)


def _make_zero_state(gru: nn.GRU, x: Tensor) -> Tensor:
    """Return a state of zeros, [layers, B, H], with the dtype and the device of ``x`` [1, B, I]."""
    return x.new_zeros(gru.num_layers, x.size(1), gru.hidden_size)


PROVIDERS: dict[str, Prepare] = {
    "torch.nn.GRU": _prepare_nn_gru,
    "torch.nn.GRUCell": functools.partial(_prepare_cells, nn.GRUCell),
    "triton_gru.stream": _prepare_stream,
    "triton_gru.GRUCell": functools.partial(_prepare_cells, triton_gru.GRUCell),
    **{
        provider.name: functools.partial(_prepare_backend, provider)
        for provider in map(BackendProvider, ("auto", *KERNELS))
    },
}
