"""A step of a `GRUCell` without binding and planning it anew, as long as all stays as it was in the call before.

By count, to bind and to plan a call takes the host longer than its launch takes the GPU (neither was timed on one):
what a call has found out is kept, and the next one only asks whether it still holds.
"""

import weakref

import torch
from torch import Tensor

from . import watchdog
from .arguments import Call, places, surroundings, weights_of_cell
from .device import elsewhere
from .launch import launches
from .plan import Plan
from .scans import Launch, room_for_reset_state

# Of each cell by whether the call has a state: in a loop over time the first has none.
_kept: "weakref.WeakKeyDictionary[torch.nn.Module, dict[bool, _Prepared]]" = weakref.WeakKeyDictionary()


def run(cell, input: Tensor, hx: Tensor | None) -> Tensor | None:
    """``cell(input, hx)`` as it was prepared, None if it was not or something is different."""
    prepared = _kept.get(cell, {}).get(hx is None)
    if prepared is None or not prepared.holds(cell, input, hx):
        return None
    watchdog.raise_if_given_up(input.device)
    h = input.new_empty(prepared.shape)
    prepared.launch(input, h if hx is None else hx, h)
    return h


def keep(cell, call: Call, plan: Plan, input: Tensor, hx: Tensor | None) -> None:
    """Prepares calls like ``cell(input, hx)``, which was planned so, if they run on memory as it lies."""
    weights = weights_of_cell(cell)
    tensors = [t for t in (input, hx, *weights) if t is not None]
    if plan.kernel != "step" or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        return
    own = all(cell._parameters.get(name) is w for name, w in zip(_NAMES, weights))
    contiguous = all(t.is_contiguous() for t in tensors)
    if own and contiguous and input.dim() == 2 and call.input.dtype == input.dtype and not elsewhere(input.device):
        _kept.setdefault(cell, {})[hx is None] = _Prepared(cell, call, plan, input, hx)


_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class _Prepared:
    """The launches of a step, of which the input, the state, the result and what goes between them are still open."""

    def __init__(self, cell, call: Call, plan: Plan, input: Tensor, hx: Tensor | None):
        h = call.input.new_empty(1, call.problem.batch_size, call.problem.hidden_size)
        self.shape = h.shape[1:]
        self._problem = call.problem
        self._launches = [_Open(launch) for launch in launches(call, plan.config, plan.device, h, h)]
        self._surroundings = surroundings(cell, input)
        self._weights = weights_of_cell(cell)
        self._places = places(self._weights)
        self._input, self._hx = _form(input), None if hx is None else _form(hx)

    def holds(self, cell, input: Tensor, hx: Tensor | None) -> bool:
        """Whether a call is like the one that this was prepared for. To be quick: the host has little else to do."""
        parameters = cell._parameters
        if any(parameters.get(name) is not weight for name, weight in zip(_NAMES, self._weights)):
            return False
        if torch.is_grad_enabled():
            tensors = (input, hx, *self._weights)
            if any(t is not None and t.requires_grad for t in tensors):
                return False
        return (
            _form(input) == self._input
            and (None if hx is None else _form(hx)) == self._hx
            and places(self._weights) == self._places
            and surroundings(cell, input) == self._surroundings
            and not elsewhere(input.device)
        )

    def launch(self, x: Tensor, hx: Tensor, h: Tensor) -> None:
        # Not kept: calls on two streams would share it.
        between = room_for_reset_state(self._problem, h)
        for each in self._launches:
            each.start(x, hx, h, between)


class _Open:
    """A launch that takes a few of its arguments later."""

    def __init__(self, launch: Launch):
        self.name = launch.kernel.__name__
        names = launch.kernel.arg_names
        self._at = [names.index(name) for name in ("x", "hx", "out", "h_n", "reset_state")]
        self._args = list(launch.args)
        for at in self._at:  # not to be kept from being freed
            self._args[at] = None
        self._start = launch.prepared()

    def start(self, x: Tensor, hx: Tensor, h: Tensor, reset_state: Tensor) -> None:
        args = self._args.copy()
        for at, tensor in zip(self._at, (x, hx, h, h, reset_state)):
            args[at] = tensor
        self._start(*args)


def _form(tensor: Tensor) -> tuple:
    """What a launch depends on; of the address only what was compiled for."""
    return type(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.data_ptr() % 16
