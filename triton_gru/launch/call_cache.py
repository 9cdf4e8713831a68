"""A call made again without binding and planning it anew, as long as all stays as it was in the calls before.

To check, bind and plan a call and to take its launches through Triton takes the host longer than it takes the GPU to
run them. So what a module's calls have found out is kept, by the form of a call: all that decides how it is served.
The next call of that form only asks whether it still holds, and passes on the addresses that are new.
"""

import itertools
import operator
import threading
import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..call.bind import Call, autocast_dtype, flat, places, records_gradient, surroundings
from ..call.readable import is_plain, materialize, unreadable_reason
from ..call.sequences import Sequences, as_packed, unpacked
from ..plan.device import elsewhere
from ..plan.planner import Plan
from ..plan.validity import why_too_many_rows
from ..reference import WEIGHT_NAMES
from . import hang
from .execute import launches
from .scans import Launch

# Forms that are kept of a module, the latest ones.
FORMS = 32
# Nothing is kept of a call with more launches: many steps of ``step``, which take the GPU longer than the host.
LAUNCHES = 64
# A form met once. Most of those of input whose lengths vary are never met again: only the second time is it prepared.
_MET = False

# Of each module what serves a call of each form, oldest first: `_MET` if that is to be prepared yet, None if it cannot.
_kept: weakref.WeakKeyDictionary[nn.Module, dict] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def found(module, input, hx: Tensor | None) -> Callable | None:
    """What serves ``module(input, hx)`` and is called as ``module.forward`` is; None if that has to be found out.

    ``module`` is a `triton_gru.GRU` or `triton_gru.GRUCell`.
    """
    # What is compiled or traced is to see no more of this.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    forms = _kept.get(module)
    if forms is None:
        return None
    serves = forms.get(_form(module, input, hx))
    if type(serves) is not Prepared:
        return serves or None
    if not serves.weights.hold(module):
        _kept.pop(module, None)
        return None
    return None if elsewhere(_data(input).device) else serves


def keep(module, input, hx: Tensor | None, call: Call, plan: Plan, output: Tensor, h_n: Tensor) -> None:
    """Keeps that ``module(input, hx)`` was bound and planned so; of the results of a kernel, where it has left them.

    ``output`` and ``h_n`` as `launch.run` returns them, or one and the same [1, B, H] where the caller gets but one.
    """
    data = _data(input)
    if plan.config is None or h_n.numel() == 0 or elsewhere(data.device):
        return
    if records_gradient((data, hx, *flat(call.weights))):
        return
    form = _form(module, input, hx)
    forms = _kept.get(module, {})
    if form not in forms:
        _add(module, form, _MET)
    elif forms[form] is _MET:
        weights = _Weights(module)
        tensors = [w for w in weights.of(module) if w is not None]
        if len(tensors) == len(flat(call.weights)):  # none is made anew for each call
            if isinstance(input, PackedSequence) and input.sorted_indices is not None and hx is not None:
                # The launches read the state in the order of the packed rows.
                hx = call.hx if autocast_dtype(data.device) is None else None
            made = _prepared(data, hx, weights, tensors, call, plan, output, h_n) if weights.hold(module) else None
            _add(module, form, made)


def keep_torchs(module, input, hx: Tensor | None, forward: Callable) -> None:
    """Keeps that torch's own ``forward(module, input, hx)`` serves the call.

    It has done so once, and asks for the weights itself: whatever becomes of them, the answer is torch's.
    """
    _add(module, _form(module, input, hx), forward)


def forget() -> None:
    """Everything kept: for when calls may be planned otherwise from here on."""
    _kept.clear()


def _add(module, form: tuple | None, serves) -> None:
    if form is None:
        return
    with _lock:
        forms = _kept.setdefault(module, {})
        forms[form] = serves
        if len(forms) > FORMS:
            del forms[next(iter(forms))]


_OF_CELLS = operator.attrgetter("input_size", "hidden_size")
_OF_GRUS = operator.attrgetter(
    "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "reverse"
)


def _form(module, input, hx: Tensor | None) -> tuple | None:
    """All that decides how a call is served beside the weights; None where the tensors are not what they seem."""
    data = _data(input)
    if not is_plain(data) or (hx is not None and not is_plain(hx)):
        return None
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return None
    lie = _lie(data) if data is input else _lie_packed(module, input)
    return lie and (
        _OF_GRUS(module) if isinstance(module, nn.RNNBase) else _OF_CELLS(module),
        surroundings(module, data),
        torch.is_grad_enabled(),
        torch.is_grad_enabled() and records_gradient((data, hx, *module._parameters.values())),
        lie,
        None if hx is None else _lie(hx),
    )


def _data(input) -> Tensor:
    return input.data if isinstance(input, PackedSequence) else input


def _lie(tensor: Tensor) -> tuple:
    """How it lies in memory; of the address only what a kernel was compiled for, and that there is one."""
    address = tensor.data_ptr()
    alignment = address % 16 if address else None
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.is_neg(), alignment


def _lie_packed(gru, input: PackedSequence) -> tuple | None:
    """All that decides how packed input is served, but not where its sequences end; None where that cannot be told.

    Nor how many rows it has, unless layers write by turns into the output and into room of as many rows.
    """
    sizes, order = input.batch_sizes, input.sorted_indices
    plain = is_plain(sizes) and (order is None or is_plain(order))
    if not plain or sizes.device.type != "cpu" or len(sizes) == 0 or not isinstance(gru, nn.RNNBase):
        return None
    (rows, *features), *lie = _lie(input.data)
    if not (gru.bidirectional and gru.num_layers > 1):
        # A single row has no stride that counts.
        rows = rows > 1, why_too_many_rows(rows)
    return len(sizes), int(sizes[0]), rows, *features, *lie, None if order is None else order.shape


class _Weights:
    """Which weights a module has, and where they lie.

    Nothing here refers to a weight: it would live on, and torch does not swap parameters that have weak references.
    """

    def __init__(self, module):
        self._names = tuple(module._flat_weights_names) if isinstance(module, nn.RNNBase) else WEIGHT_NAMES
        tensors = self.of(module)
        self._identities = _identities(tensors)
        # Elsewhere than in memory a weight has no place.
        self._places = None if any(w is not None and unreadable_reason(w) for w in tensors) else places(tensors)

    def of(self, module) -> list[Tensor | None]:
        """Return the weights that are the module's own, in torch's order; None for others and in place of biases."""
        return list(map(module._parameters.get, self._names))

    def hold(self, module) -> bool:
        """Return whether the module has the same weights yet, and they lie where they did."""
        now = self.of(module)
        return _identities(now) == self._identities and self._places is not None and places(now) == self._places


def _identities(tensors: list[Tensor | None]) -> list:
    """Return what tells tensors from others. One that is gone may leave its id to another, so that the type counts."""
    return [*map(id, tensors), *map(type, tensors)]


# What has another address in each call.
_INPUT, _HX, _OUTPUT, _H_N, _ROOM, _TABLE = range(6)
# Between one part of the room and the next: bytes, a multiple of what the allocator itself aligns to for Triton's sake.
_ALIGNED = 256


class _Step(NamedTuple):
    """A launch, of which some arguments are still open.

    Attributes:
        start: of `Launch.prepared`, for ``args``.
        open: (which of them, of which memory, how many bytes from its start).
        clear: words of the room, from and to, and what they are set to before.
    """

    start: Callable[..., None]
    args: list
    open: list[tuple[int, int, int]]
    clear: tuple[int, int, int] | None


class Prepared:
    """The launches of a call, and how much memory they take: for the results, and room for what goes between.

    Args:
        weights: those that the launches read.
        held: what else they read, not to be freed.
        room: in 64-bit words.
        output, h_n: shapes, of ``output`` without the first dimension, which is the input's; None where the caller
            gets but one result.
    """

    def __init__(
        self,
        steps: list[_Step],
        weights: _Weights,
        held: list[Tensor],
        room: int,
        output: torch.Size | None,
        h_n: torch.Size,
    ):
        self._steps, self.weights, self._held = steps, weights, held
        self._room, self._output, self._h_n = room, output, h_n

    def __call__(self, module, input: Tensor | PackedSequence, hx: Tensor | None):
        if not isinstance(input, PackedSequence):
            return self._launched(input, hx)
        data, hx, sequences = unpacked(module, input, hx)
        results = self._launched(data, materialize(hx), sequences.offsets.data_ptr())
        return as_packed(module, input, *results)

    def _launched(self, input: Tensor, hx: Tensor | None, table: int = 0):
        """``table`` is the address of what packed input needs: offsets, and lengths behind them."""
        hang.raise_if_given_up(input.device)
        memory, room, results = self._made(input, hx, table)
        for start, args, open, clear in self._steps:
            if clear is not None:
                first, end, value = clear
                room[first:end].fill_(value)
            start(*_filled(args, open, memory))
        return results

    def _made(self, input: Tensor, hx: Tensor | None, table: int = 0) -> tuple[tuple[int, ...], Tensor | None, object]:
        """Memory for a call: where each of them begins, the room, and what the call returns."""
        h_n = input.new_empty(self._h_n)
        # Packed data has as many rows as it may.
        output = h_n if self._output is None else input.new_empty(input.size(0), *self._output)
        # Not kept: calls on two streams would share it.
        room = input.new_empty(self._room, dtype=torch.int64) if self._room else None
        memory = (
            input.data_ptr(),
            0 if hx is None else hx.data_ptr(),
            output.data_ptr(),
            h_n.data_ptr(),
            0 if room is None else room.data_ptr(),
            table,
        )
        return memory, room, h_n if self._output is None else (output, h_n)

    def on_one_memory(self, input: Tensor, hx: Tensor | None) -> Callable[[], object]:
        """The launches of a call and nothing else, made again at each call into the same results, which it returns.

        For measuring what else a call costs.
        """
        memory, room, results = self._made(input, hx)
        steps = []
        for start, args, open, clear in self._steps:
            cleared = None if clear is None else (room[clear[0] : clear[1]], clear[2])
            steps.append((start, _filled(args, open, memory), cleared))

        def launch(held: tuple = (input, hx, room)):  # which has to stay
            for start, args, cleared in steps:
                if cleared is not None:
                    cleared[0].fill_(cleared[1])
                start(*args)
            return results

        return launch


def _filled(args: list, open: list[tuple[int, int, int]], memory: tuple[int, ...]) -> list:
    """A `_Step`'s arguments, with where the memory of this call begins."""
    args = args.copy()
    for at, which, offset in open:
        args[at] = memory[which] + offset
    return args


def _prepared(
    input: Tensor,
    hx: Tensor | None,
    weights: _Weights,
    tensors: list[Tensor],
    call: Call,
    plan: Plan,
    output: Tensor,
    h_n: Tensor,
) -> Prepared | None:
    """None if there are too many launches, or they read what was made for this call (a copy of its state, say)."""
    between: list[Tensor] = []

    def new(like: Tensor, *shape: int, **options) -> Tensor:
        between.append(like.new_empty(*shape, **options))
        return between[-1]

    made = list(itertools.islice(launches(call, plan.config, plan.device, output, h_n, new), LAUNCHES + 1))
    if len(made) > LAUNCHES:
        return None
    held = [hang.of(input.device).watch] if plan.kernel == "grid" else []
    memory = _Memory(input, hx, output, h_n, [*held, *tensors], between)
    if call.sequences.layout == "packed":
        memory.know_table(call.sequences)
    steps = [_step(launch, memory) for launch in made]
    if memory.ambiguous or None in steps:
        return None
    alone = output is h_n
    return Prepared(steps, weights, held, memory.room, None if alone else output.shape[1:], h_n.shape[alone:])


def _step(launch: Launch, memory: "_Memory") -> _Step | None:
    args, open = list(launch.args), []
    for at, arg in enumerate(args):
        if isinstance(arg, Tensor):
            place = memory.find(arg)
            if place is None:
                return None
            which, offset = place
            args[at] = offset
            if which is not None:
                open.append((at, which, offset))
    clear = None
    if launch.clear is not None:
        words, value = launch.clear
        first = memory.find(words)[1] // words.itemsize
        clear = first, first + words.numel(), value
    return _Step(launch.prepared(), args, open, clear)


class _Memory:
    """Tells of what a call's tensors are part.

    Attributes:
        room: 64-bit words for all that goes between the launches.
        ambiguous: what lies where another call's input or state may not: it begins where something else does.
    """

    def __init__(self, input, hx, output: Tensor, h_n: Tensor, fixed: list[Tensor], between: list[Tensor]):
        self._starts = {each.data_ptr(): (None, each.data_ptr()) for each in fixed}
        given = [(input, _INPUT), (output, _OUTPUT), (h_n, _H_N)] + ([] if hx is None else [(hx, _HX)])
        self.ambiguous = False
        for tensor, which in given:
            self.ambiguous |= tensor.data_ptr() in self._starts and tensor is not output
            self._starts[tensor.data_ptr()] = which, 0
        self._parts, size = [], 0
        for part in between:
            self._parts.append((part.data_ptr(), part.nbytes, size))
            size += -(-part.nbytes // _ALIGNED) * _ALIGNED
        self.room = size // 8

    def know_table(self, sequences: Sequences) -> None:
        offsets = sequences.offsets
        self._starts |= {offsets.data_ptr(): (_TABLE, 0), sequences.lengths.data_ptr(): (_TABLE, offsets.nbytes)}

    def find(self, tensor: Tensor) -> tuple[int | None, int] | None:
        """(of which memory, how many bytes from its start), (None, address) of what stays; None of what is neither."""
        address = tensor.data_ptr()
        if tensor.numel() == 0:
            return None, 0
        if address in self._starts:
            return self._starts[address]
        for start, size, offset in self._parts:
            if start <= address < start + size:
                return _ROOM, offset + address - start
        return None
