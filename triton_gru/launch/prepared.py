"""The launches of a call as they can be made again: on the same weights, with other addresses for all else."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..call.bind import flatten_weights
from ..call.readable import materialize, unreadable_reason
from ..call.sequences import Sequences, pack_results, unpack_input
from ..reference import WEIGHT_NAMES
from ..reference import LayerWeights as Layer
from . import hang
from .kernel_launch import Launch, Product

# Nothing is kept of a call with more launches: many steps of ``step``, which take the GPU longer than the host.
MAX_LAUNCHES = 64


class ModuleWeights:
    """Which weights a module has, and where they lie.

    Nothing here refers to a weight: it would live on, and torch does not swap parameters that have weak references.
    """

    def __init__(self, module):
        self._names = tuple(getattr(module, "_flat_weights_names", WEIGHT_NAMES))
        tensors = self.of(module)
        self._there = [name for name, tensor in zip(self._names, tensors) if tensor is not None]
        self._identities = [*map(id, tensors), *map(type, tensors)]
        # Elsewhere than in memory a weight has no place.
        self._places = None if any(w is not None and unreadable_reason(w) for w in tensors) else _places(tensors)

    def of(self, module) -> list[Tensor | None]:
        """Return the weights that are the module's own, in torch's order; None for others and in place of biases."""
        return list(map(module._parameters.get, self._names))

    def name_of(self, weight: Tensor) -> str | None:
        """Return the name of the weight that lies where ``weight`` does; None if there is none."""
        places = self._places or []
        found = (name for name, place in zip(self._there, places) if [place] == _places([weight]))
        return next(found, None)

    def has_all(self, module, used: list[Layer]) -> bool:
        """Return whether the weights that a call uses are the module's own: none is made anew for each call."""
        return sum(w is not None for w in self.of(module)) == len(flatten_weights(used))

    def is_unchanged(self, module) -> bool:
        """Return whether the module has the same weights yet, and they lie where they did."""
        now = self.of(module)
        # A weight that is gone may leave its id to another, so that the type counts.
        same = [*map(id, now), *map(type, now)] == self._identities
        return same and self._places is not None and _places(now) == self._places


def _places(weights: list[Tensor | None]) -> list:
    """Return where weights lie, and how, which may change in place."""
    return [(w.data_ptr(), w.stride(), w.dtype, w.is_neg()) for w in weights if w is not None]


# What has another address in each call.
_INPUT, _HX, _OUTPUT, _H_N, _ROOM, _TABLE = range(6)
# Between one part of the room and the next: bytes, a multiple of what the allocator itself aligns to for Triton's sake.
_ALIGNED = 256


# Where each memory of a call begins, in that order; and the same as tensors, None for what only has an address.
_Starts = tuple[int, ...]
_Tensors = tuple[Tensor | None, ...]


class _Kernel(NamedTuple):
    """A launch, of which some arguments are still open.

    Attributes:
        begin: of `Launch.make_starter`, for ``args``.
        open: (which of them, of which memory, how many bytes from its start).
        clear: words of the room, from and to, and what they are set to before.
    """

    begin: Callable[..., None]
    args: list
    open: list[tuple[int, int, int]]
    clear: tuple[int, int, int] | None

    def start(self, starts: _Starts, tensors: _Tensors, module) -> None:
        """Do what the launch does, at once: every call waits for this."""
        begin, args, open, clear = self
        if clear is not None:
            first, end, value = clear
            tensors[_ROOM][first:end].fill_(value)
        begin(*_filled(args, open, starts))

    def functions(self, starts: _Starts, tensors: _Tensors, module) -> Iterator[Callable[[], object]]:
        """Yield functions that do what the launch does, in order."""
        if self.clear is not None:
            first, end, value = self.clear
            yield functools.partial(tensors[_ROOM][first:end].fill_, value)
        yield functools.partial(self.begin, *_filled(self.args, self.open, starts))


def _filled(args: list, open: list[tuple[int, int, int]], starts: _Starts) -> list:
    """Return a `_Kernel`'s arguments, with where the memory of a call begins."""
    args = args.copy()
    for at, which, offset in open:
        args[at] = starts[which] + offset
    return args


class _View(NamedTuple):
    """A tensor as part of a memory: how many bytes from its start, and how it lies."""

    which: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def of(self, tensors: _Tensors) -> Tensor:
        whole = tensors[self.which]
        whole = whole if whole.dtype == self.dtype else whole.view(self.dtype)
        return whole.as_strided(self.shape, self.stride, whole.storage_offset() + self.offset // self.dtype.itemsize)


class _Product(NamedTuple):
    """A `Product` of the weight of this name."""

    x: _View
    weight: str
    out: _View

    def start(self, starts: _Starts, tensors: _Tensors, module) -> None:
        """Do what the product does, at once."""
        for function in self.functions(starts, tensors, module):
            function()

    def functions(self, starts: _Starts, tensors: _Tensors, module) -> Iterator[Callable[[], object]]:
        """Yield a function that does what the product does."""
        yield Product(self.x.of(tensors), module._parameters[self.weight], self.out.of(tensors)).start


class PreparedCall:
    """The launches of a call on a module's ``weights``, and how much memory they take.

    They fill the results, and room for what goes between launches, on ``device``.
    """

    def __init__(self, steps: list[_Kernel | _Product], weights: ModuleWeights, memory: "Memory"):
        self._steps, self.weights, self.device = steps, weights, memory.device
        self._held, self._room = memory.held, memory.room
        self._output, self._h_n = memory.output, memory.h_n

    def __call__(self, module, input: Tensor | PackedSequence, hx: Tensor | None):
        if not isinstance(input, PackedSequence):
            return self._launched(module, input, hx)
        data, hx, sequences = unpack_input(module, input, hx)
        results = self._launched(module, data, materialize(hx), sequences.offsets.data_ptr())
        return pack_results(module, input, *results)

    def _launched(self, module, input: Tensor, hx: Tensor | None, table: int = 0):
        """``table`` is the address of what packed input needs: offsets, and lengths behind them."""
        hang.raise_if_hung(input.device)
        starts, tensors, results = self._allocate(input, hx, table)
        for step in self._steps:
            step.start(starts, tensors, module)
        return results

    def _allocate(self, input: Tensor, hx: Tensor | None, table: int):
        """Return where each memory of a call begins, the memories themselves, and what the call returns."""
        h_n = input.new_empty(self._h_n)
        # Packed data has as many rows as it may.
        output = h_n if self._output is None else input.new_empty(input.size(0), *self._output)
        # Not kept: calls on two streams would share it.
        room = input.new_empty(self._room, dtype=torch.int64) if self._room else None
        starts = (
            input.data_ptr(),
            0 if hx is None else hx.data_ptr(),
            output.data_ptr(),
            h_n.data_ptr(),
            0 if room is None else room.data_ptr(),
            table,
        )
        return starts, (input, hx, output, h_n, room, None), h_n if self._output is None else (output, h_n)

    def bind(self, module, input: Tensor, hx: Tensor | None) -> tuple[object, list[Callable[[], object]], tuple]:
        """Return the results of a call, functions that start its launches, and what has to live as long as they do.

        The functions may be called again. They are for measuring what else a call costs.
        """
        starts, tensors, results = self._allocate(input, hx, 0)
        functions = [each for step in self._steps for each in step.functions(starts, tensors, module)]
        return results, functions, tensors


def prepare(launches: Iterable[Launch | Product], weights: ModuleWeights, memory: "Memory") -> PreparedCall | None:
    """Return launches, for which ``memory`` has made what goes between them, as they can be made again.

    None if there are too many, or they read what was made for this call (a copy of its state, say).
    """
    made = list(itertools.islice(launches, MAX_LAUNCHES + 1))
    if len(made) > MAX_LAUNCHES:
        return None
    steps = [_product(each, weights, memory) if isinstance(each, Product) else _kernel(each, memory) for each in made]
    return None if memory.ambiguous or None in steps else PreparedCall(steps, weights, memory)


def _product(product: Product, weights: ModuleWeights, memory: "Memory") -> _Product | None:
    weight = weights.name_of(product.w)
    x, out = (_view(each, memory) for each in (product.x, product.out))
    return None if None in (weight, x, out) else _Product(x, weight, out)


def _view(tensor: Tensor, memory: "Memory") -> _View | None:
    place = memory.find(tensor)
    if place is None or place[0] is None:
        return None
    return _View(*place, tensor.shape, tensor.stride(), tensor.dtype)


def _kernel(launch: Launch, memory: "Memory") -> _Kernel | None:
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
    return _Kernel(launch.make_starter(), args, open, clear)


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
        single_result = output is h_n
        self.output, self.h_n = (None, h_n.shape[1:]) if single_result else (output.shape[1:], h_n.shape)
        self.device, self.held, self.room, self.ambiguous = input.device, held, 0, False
        fixed = (*held, *(w for w in weights if w is not None))
        self._starts: dict[int, tuple[int | None, int]] = {each.data_ptr(): (None, each.data_ptr()) for each in fixed}
        given = [(input, _INPUT), (output, _OUTPUT), (h_n, _H_N)] + ([] if hx is None else [(hx, _HX)])
        for tensor, which in given:
            self.ambiguous |= tensor.data_ptr() in self._starts and tensor is not output
            self._starts[tensor.data_ptr()] = which, 0
        self._given = [(tensor.data_ptr(), _end(tensor), which) for tensor, which in given]
        self._between: list[tuple[Tensor, int]] = []

    def add_table(self, sequences: Sequences) -> None:
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
        for start, end, which in self._given:
            if start <= address < end:
                return which, address - start
        return None


def _end(tensor: Tensor) -> int:
    """Return the address behind a tensor's last byte."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return tensor.data_ptr() + (last + 1) * tensor.element_size()
