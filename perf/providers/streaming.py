"""Providers of streams: a call computes one frame, from the state that the previous call left.

A caller of `nn.GRU` or `nn.GRUCell` passes the new state to the next call. A CUDA graph reads the same memory every
time, so a graph also copies the new state over the old state.
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
from .torch_modules import kernel_name

_drop_time = operator.itemgetter(0)  # [1, B, I] -> [B, I]
# (frame, state) -> (output, state). A state has a part [B, H] for each layer, in one tensor or in a list.
_State = Tensor | list[Tensor]
_Step = Callable[[Tensor, _State], tuple[Tensor, _State]]


def _torch(gru: nn.GRU, x: Tensor) -> Ready:
    return _carry_state(gru, _zeros(gru, x), kernel=kernel_name(gru))


def _ours(variant: BackendProvider, gru: nn.GRU, x: Tensor) -> Ready:
    ours = variant.module(gru)
    return _carry_state(ours, _zeros(gru, x), **describe_plan(variant.plan(ours, x)))


def _cells(cell: type[nn.RNNCellBase], gru: nn.GRU, x: Tensor) -> Ready:
    """Prepare a cell for each layer, with ``gru``'s own Parameters."""
    cells = []
    for layer, names in enumerate(gru._all_weights):
        inputs = gru.hidden_size if layer else gru.input_size
        cells.append(cell(inputs, gru.hidden_size, device="meta", dtype=x.dtype).eval())
        for name in names:
            setattr(cells[-1], name.removesuffix(f"_l{layer}"), getattr(gru, name))

    def step(x: Tensor, states: _State) -> tuple[Tensor, list[Tensor]]:
        new_states = []
        for cell, state in zip(cells, states):
            x = cell(x, state)
            new_states.append(x)
        return x, new_states

    zeros, fields = _zeros(gru, x), {"kernel": "torch"}
    if cell is triton_gru.GRUCell:  # cells of one size have the same plan
        fields = describe_plan(cells[0].plan(x[0], zeros[0]))
    return _carry_state(step, [*zeros], lay_out=_drop_time, **fields)


def _stream(gru: nn.GRU, x: Tensor) -> Ready:
    stream = BackendProvider("auto").module(gru).stream(x.size(1))
    reason = "the stream replays its own CUDA graphs"
    return Ready(
        stream, lay_out=_drop_time, reset=stream.reset, no_graph_reason=reason, **describe_plan(stream.plan(x[0]))
    )


def _carry_state(step: _Step, zeros: _State, **fields) -> Ready:
    """Prepare ``step`` so that its state is kept between calls. ``fields`` are further fields of the `Ready`."""
    passed_on, kept = zeros, copy.deepcopy(zeros)

    def call(x: Tensor) -> Tensor:
        nonlocal passed_on
        output, passed_on = step(x, passed_on)
        return output

    def captured(x: Tensor) -> Tensor:
        output, new_state = step(x, kept)
        for state, new in zip(kept, new_state) if isinstance(kept, list) else [(kept, new_state)]:
            state.copy_(new)
        return output

    def reset() -> None:
        nonlocal passed_on
        passed_on = zeros
        for state in kept:
            state.zero_()

    return Ready(call, reset=reset, captured=captured, **fields)


def _zeros(gru: nn.GRU, x: Tensor) -> Tensor:
    return x.new_zeros(gru.num_layers, x.size(1), gru.hidden_size)


PROVIDERS: dict[str, Prepare] = {
    "torch.nn.GRU": _torch,
    "torch.nn.GRUCell": functools.partial(_cells, nn.GRUCell),
    "triton_gru.stream": _stream,
    "triton_gru.GRUCell": functools.partial(_cells, triton_gru.GRUCell),
    **{variant.name: functools.partial(_ours, variant) for variant in map(BackendProvider, ("auto", *KERNELS))},
}
