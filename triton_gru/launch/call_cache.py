"""A call made again without binding and planning it anew, as long as all stays as it was in the calls before.

To check, bind and plan a call and to take its launches through Triton takes the host longer than it takes the GPU to
run them. So what a module's calls have found out is kept, by the signature of a call: all that decides how it is
served. The next call of that signature only asks whether it still holds, and passes on the addresses that are new.
"""

import functools
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..call.bind import Call, flat
from ..call.options import Options
from ..call.readable import is_plain, materialize, unreadable_reason
from ..call.sequences import Sequences, as_packed, unpacked
from ..call.torch_state import TorchState, records_gradient
from ..plan.device import elsewhere
from ..plan.planner import Plan
from ..plan.validity import why_too_many_rows
from ..reference import WEIGHT_NAMES
from ..reference import Weights as Layer
from . import hang
from .execute import launches
from .kernel_launch import Launch

# Signatures that are kept of a module, the latest ones.
SIGNATURES = 32
# Nothing is kept of a call with more launches: many steps of ``step``, which take the GPU longer than the host.
LAUNCHES = 64
# Seen once. Inputs of varying length mostly have signatures that never recur: a call is prepared on its second use.
_SEEN_ONCE = False


class Cache:
    """What serves the calls of a module, by signature, oldest first.

    That is a function called as ``module.forward`` is; or `_SEEN_ONCE`; or None where a call cannot be prepared.
    """

    def __init__(self):
        self.served: dict[object, object] = {}
        self._lock = threading.Lock()

    def find(self, module: nn.Module, signature: object) -> Callable | None:
        """Return what serves a call of this signature, None if that has to be found out."""
        serves = self.served.get(signature)
        if type(serves) is not Prepared:
            return serves or None
        if not serves.weights.hold(module):
            self.served.clear()
            return None
        return serves

    def add(self, signature: object, serves: object) -> None:
        """Keep what serves calls of this signature."""
        with self._lock:
            self.served[signature] = serves
            if len(self.served) > SIGNATURES:
                del self.served[next(iter(self.served))]


_caches: weakref.WeakKeyDictionary[nn.Module, Cache] = weakref.WeakKeyDictionary()


def find(module, input, hx: Tensor | None) -> Callable | None:
    """Return what serves ``module(input, hx)`` and is called as ``module.forward`` is; None if nothing is kept.

    ``module`` is a `triton_gru.GRU` or `triton_gru.GRUCell`.
    """
    if torch.compiler.is_compiling():  # no graph is to see more of this
        return None
    cache = _caches.get(module)
    serves = cache and cache.find(module, signature_of(module, input, hx))
    return None if type(serves) is Prepared and elsewhere(serves.device) else serves


def keep(module, input, hx: Tensor | None, call: Call, plan: Plan, output: Tensor, h_n: Tensor) -> None:
    """Keep that ``module(input, hx)`` was bound and planned so; of the results of a kernel, where it has left them.

    ``output`` and ``h_n`` as `execute.run` returns them, or one and the same [1, B, H] where the caller gets but one.
    """
    data = _data(input)
    if plan.config is None or h_n.numel() == 0 or elsewhere(data.device):
        return
    if records_gradient((data, hx, *flat(call.weights))):
        return
    signature = signature_of(module, input, hx)
    if signature is None:
        return
    cache = _caches.setdefault(module, Cache())
    if signature not in cache.served:
        cache.add(signature, _SEEN_ONCE)
        return
    if cache.served.get(signature) is not _SEEN_ONCE:
        return
    weights = Weights(module)
    if not weights.are_all(module, call.weights):
        return
    if isinstance(input, PackedSequence) and input.sorted_indices is not None and hx is not None:
        # The launches read the state in the order of the packed rows.
        hx = call.hx if TorchState.now(data.device).autocast is None else None
    held = [hang.of(data.device).watch] if plan.kernel == "grid" else []
    memory = Memory(data, hx, output, h_n, weights.of(module), held)
    if call.sequences.layout == "packed":
        memory.know_table(call.sequences)
    made = launches(call, plan.config, plan.device, output, h_n, memory.new)
    cache.add(signature, prepare(made, weights, memory) if weights.hold(module) else None)


def keep_torchs(module, input, hx: Tensor | None, forward: Callable) -> None:
    """Keep that torch's own ``forward(module, input, hx)`` serves the call.

    It has done so once, and asks for the weights itself: whatever becomes of them, the answer is torch's.
    """
    if (signature := signature_of(module, input, hx)) is not None:
        _caches.setdefault(module, Cache()).add(signature, forward)


def forget() -> None:
    """Forget everything kept: for when calls may be planned otherwise from here on."""
    _caches.clear()


def signature_of(module, input, hx: Tensor | None) -> tuple | None:
    """Return all that decides how a call is served beside the weights.

    None stands for tensors that are not what they seem, of whose calls nothing is kept.
    """
    data = _data(input)
    if not is_plain(data) or (hx is not None and not is_plain(hx)):
        return None
    state = TorchState.now(data.device)
    if state.wrapped or state.tracing:  # first: wrappers have no memory, and a trace would record what is asked
        return None
    options = Options.of(module)
    layout = _layout(data) if data is input else _packed_layout(options, input)
    if layout is None:
        return None
    records = state.grad and records_gradient((data, hx, *module._parameters.values()))
    return options, state, records, layout, None if hx is None else _layout(hx)


def _data(input) -> Tensor:
    return input.data if isinstance(input, PackedSequence) else input


def _layout(tensor: Tensor) -> tuple:
    """Return how a tensor lies in memory; of its address what a kernel was compiled for, and whether there is one."""
    address = tensor.data_ptr()
    alignment = address % 16 if address else None
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.is_neg(), alignment


def _packed_layout(options: Options, input: PackedSequence) -> tuple | None:
    """Return all that decides how packed input is served, None where that cannot be told.

    Where its sequences end is left out. So are its rows, unless layers write by turns into the output and into room
    of as many rows.
    """
    sizes, order = input.batch_sizes, input.sorted_indices
    plain = is_plain(sizes) and (order is None or is_plain(order))
    if not plain or sizes.device.type != "cpu" or len(sizes) == 0:
        return None
    (rows, *features), *layout = _layout(input.data)
    if not (options.bidirectional and options.num_layers > 1):
        # A single row has no stride that counts.
        rows = rows > 1, why_too_many_rows(rows)
    return len(sizes), int(sizes[0]), rows, *features, *layout, None if order is None else order.shape


class Weights:
    """Which weights a module has, and where they lie.

    Nothing here refers to a weight: it would live on, and torch does not swap parameters that have weak references.
    """

    def __init__(self, module):
        self._names = tuple(getattr(module, "_flat_weights_names", WEIGHT_NAMES))
        tensors = self.of(module)
        self._identities = _identities(tensors)
        # Elsewhere than in memory a weight has no place.
        self._places = None if any(w is not None and unreadable_reason(w) for w in tensors) else _places(tensors)

    def of(self, module) -> list[Tensor | None]:
        """Return the weights that are the module's own, in torch's order; None for others and in place of biases."""
        return list(map(module._parameters.get, self._names))

    def are_all(self, module, used: list[Layer]) -> bool:
        """Return whether the weights that a call uses are the module's own: none is made anew for each call."""
        return sum(w is not None for w in self.of(module)) == len(flat(used))

    def hold(self, module) -> bool:
        """Return whether the module has the same weights yet, and they lie where they did."""
        now = self.of(module)
        return _identities(now) == self._identities and self._places is not None and _places(now) == self._places


def _identities(tensors: list[Tensor | None]) -> list:
    """Return what tells tensors from others. One that is gone may leave its id to another, so that the type counts."""
    return [*map(id, tensors), *map(type, tensors)]


def _places(weights: list[Tensor | None]) -> list:
    """Return where weights lie, and how, which may change in place."""
    return [(w.data_ptr(), w.stride(), w.dtype, w.is_neg()) for w in weights if w is not None]


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
    """The launches of a call on a module's ``weights``, and how much memory they take.

    They fill the results, and room for what goes between launches, on ``device``.
    """

    def __init__(self, steps: list[_Step], weights: Weights, memory: "Memory"):
        self._steps, self.weights, self.device = steps, weights, memory.device
        self._held, self._room = memory.held, memory.room
        self._output, self._h_n = memory.output, memory.h_n

    def __call__(self, module, input: Tensor | PackedSequence, hx: Tensor | None):
        if not isinstance(input, PackedSequence):
            return self._launched(input, hx)
        data, hx, sequences = unpacked(module, input, hx)
        results = self._launched(data, materialize(hx), sequences.offsets.data_ptr())
        return as_packed(module, input, *results)

    def _launched(self, input: Tensor, hx: Tensor | None, table: int = 0):
        hang.raise_if_hung(input.device)
        results, starts, _held = self.bind(input, hx, table)
        for start in starts:
            start()
        return results

    def bind(self, input: Tensor, hx: Tensor | None, table: int = 0) -> tuple[object, Iterator[Callable], tuple]:
        """Make memory for a call, and return its results, what starts its launches, and what they need until then.

        ``table`` is the address of what packed input needs: offsets, and lengths behind them.
        """
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
        return h_n if self._output is None else (output, h_n), self._starts(memory, room), (input, hx, room)

    def _starts(self, memory: tuple[int, ...], room: Tensor | None) -> Iterator[Callable[[], None]]:
        for start, args, open, clear in self._steps:
            args = args.copy()
            for at, which, offset in open:
                args[at] = memory[which] + offset
            if clear is not None:
                yield functools.partial(room[clear[0] : clear[1]].fill_, clear[2])
            yield functools.partial(start, *args)


def prepare(launches: Iterable[Launch], weights: Weights, memory: "Memory") -> Prepared | None:
    """Return launches, for which ``memory`` has made what goes between them, as they can be made again.

    None if there are too many, or they read what was made for this call (a copy of its state, say).
    """
    made = list(itertools.islice(launches, LAUNCHES + 1))
    if len(made) > LAUNCHES:
        return None
    steps = [_step(launch, memory) for launch in made]
    return None if memory.ambiguous or None in steps else Prepared(steps, weights, memory)


def _step(launch: Launch, memory: "Memory") -> _Step | None:
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


class Memory:
    """Tells of what the tensors of a call's launches are part.

    Args:
        output, h_n: the call's results; one and the same [1, B, H] where the caller gets but one.
        weights: those that the launches read, and None.
        held: what else they read, not to be freed.

    Attributes:
        output, h_n: shapes, of ``output`` without the first dimension, which is the input's; None if there is but one.
        room: 64-bit words for all that goes between the launches.
        ambiguous: what lies where another call's input or state may not: it begins where something else does.
    """

    def __init__(
        self,
        input: Tensor,
        hx: Tensor | None,
        output: Tensor,
        h_n: Tensor,
        weights: list[Tensor | None],
        held: list[Tensor],
    ):
        alone = output is h_n
        self.output, self.h_n = None if alone else output.shape[1:], h_n.shape[alone:]
        self.device, self.held, self.room, self.ambiguous = input.device, held, 0, False
        fixed = (*held, *(w for w in weights if w is not None))
        self._starts: dict[int, tuple[int | None, int]] = {each.data_ptr(): (None, each.data_ptr()) for each in fixed}
        given = [(input, _INPUT), (output, _OUTPUT), (h_n, _H_N)] + ([] if hx is None else [(hx, _HX)])
        for tensor, which in given:
            self.ambiguous |= tensor.data_ptr() in self._starts and tensor is not output
            self._starts[tensor.data_ptr()] = which, 0
        self._between: list[tuple[Tensor, int]] = []

    def know_table(self, sequences: Sequences) -> None:
        """Let launches read what packed input needs."""
        offsets = sequences.offsets
        self._starts |= {offsets.data_ptr(): (_TABLE, 0), sequences.lengths.data_ptr(): (_TABLE, offsets.nbytes)}

    def new(self, like: Tensor, *shape: int, **options) -> Tensor:
        """Make a tensor for what goes between launches, as `Tensor.new_empty` does."""
        part = like.new_empty(*shape, **options)
        self._between.append((part, 8 * self.room))
        self.room += -(-part.nbytes // _ALIGNED) * _ALIGNED // 8
        return part

    def find(self, tensor: Tensor) -> tuple[int | None, int] | None:
        """Return of which memory a tensor is part, and how many bytes from its start.

        That is (None, address) of what stays; and None of what is neither.
        """
        address = tensor.data_ptr()
        if tensor.numel() == 0:
            return None, 0
        if address in self._starts:
            return self._starts[address]
        for part, offset in self._between:
            if part.data_ptr() <= address < part.data_ptr() + part.nbytes:
                return _ROOM, offset + address - part.data_ptr()
        return None
