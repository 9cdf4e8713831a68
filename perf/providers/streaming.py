"""Frame by frame: what computes a step from the state that its last call has left.

A caller of torch's modules hands the new state to the next call. A CUDA graph reads the same memory every time, so
that in one the new state is copied to where the old one was.
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

_without_time = operator.itemgetter(0)  # of a frame
# (frame, state) -> (output, state). A state has a part [B, H] for each layer, in one tensor or in a list.
_State = Tensor | list[Tensor]
_Step = Callable[[Tensor, _State], tuple[Tensor, _State]]


def _torch(gru: nn.GRU, x: Tensor) -> Ready:
    return _carrying(gru, _zeros(gru, x), kernel=kernel_name(gru))


def _ours(variant: BackendProvider, gru: nn.GRU, x: Tensor) -> Ready:
    ours = variant.module(gru)
    return _carrying(ours, _zeros(gru, x), **describe_plan(variant.plan(ours, x)))


def _cells(cell: type[nn.RNNCellBase], gru: nn.GRU, x: Tensor) -> Ready:
    """Make a cell for each layer ready, with ``gru``'s own Parameters."""
    cells = []
    for layer, names in enumerate(gru._all_weights):
        inputs = gru.hidden_size if layer else gru.input_size
        cells.append(cell(inputs, gru.hidden_size, device="meta", dtype=x.dtype).eval())
        for name in names:
            setattr(cells[-1], name.removesuffix(f"_l{layer}"), getattr(gru, name))

    def step(x: Tensor, states: _State) -> tuple[Tensor, list[Tensor]]:
        after = []
        for cell, state in zip(cells, states):
            x = cell(x, state)
            after.append(x)
        return x, after

    zeros, about = _zeros(gru, x), {"kernel": "torch"}
    if cell is triton_gru.GRUCell:  # of two cells of one size the plans are the same
        about = describe_plan(cells[0].plan(x[0], zeros[0]))
    return _carrying(step, [*zeros], lay_out=_without_time, **about)


def _stream(gru: nn.GRU, x: Tensor) -> Ready:
    stream = BackendProvider("auto").module(gru).stream(x.size(1))
    own = "it replays CUDA graphs of its own"
    return Ready(
        stream, lay_out=_without_time, reset=stream.reset, no_graph_reason=own, **describe_plan(stream.plan(x[0]))
    )


def _carrying(step: _Step, zeros: _State, **about) -> Ready:
    """Make ``step`` ready, with its state kept. ``about`` is what else is known of it."""
    handed_on, kept = zeros, copy.deepcopy(zeros)

    def call(x: Tensor) -> Tensor:
        nonlocal handed_on
        output, handed_on = step(x, handed_on)
        return output

    def captured(x: Tensor) -> Tensor:
        output, after = step(x, kept)
        for state, new in zip(kept, after) if isinstance(kept, list) else [(kept, after)]:
            state.copy_(new)
        return output

    def reset() -> None:
        nonlocal handed_on
        handed_on = zeros
        for state in kept:
            state.zero_()

    return Ready(call, reset=reset, captured=captured, **about)


def _zeros(gru: nn.GRU, x: Tensor) -> Tensor:
    return x.new_zeros(gru.num_layers, x.size(1), gru.hidden_size)


PROVIDERS: dict[str, Prepare] = {
    "torch.nn.GRU": _torch,
    "torch.nn.GRUCell": functools.partial(_cells, nn.GRUCell),
    "triton_gru.stream": _stream,
    "triton_gru.GRUCell": functools.partial(_cells, triton_gru.GRUCell),
    **{variant.name: functools.partial(_ours, variant) for variant in map(BackendProvider, ("auto", *KERNELS))},
}
