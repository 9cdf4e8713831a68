"""Prepared calls: the launches of a call, which are started again with the same weights and other data pointers.

To replay a launch, each of its tensors is located once. It is in a buffer of the call, such as the input, or at an
address that stays, such as a weight's. A later call has other buffers, but a tensor's offset in its buffer is the same.
"""

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

# Calls with more launches are not prepared. Most of them are calls of ``step`` with many steps, whose launches take the
# GPU longer than the host.
MAX_LAUNCHES = 64


class ModuleWeights:
    """The identities and memory layouts of a module's weights, which tell whether a prepared call is still valid.

    This class holds no reference to a weight. A reference would keep the weight alive. A weak reference would keep
    torch from swapping the parameter.
    """

    def __init__(self, module):
        self._names = tuple(getattr(module, "_flat_weights_names", WEIGHT_NAMES))
        tensors = self.tensors_of(module)
        self._present_names = [name for name, tensor in zip(self._names, tensors) if tensor is not None]
        self._identities = [*map(id, tensors), *map(type, tensors)]
        # A weight without readable memory has no data pointer. Then there are no layouts.
        is_unreadable = any(w is not None and unreadable_reason(w) for w in tensors)
        self._layouts = None if is_unreadable else _memory_layouts(tensors)

    def tensors_of(self, module) -> list[Tensor | None]:
        """Return the module's weight parameters in torch's order.

        None stands for a bias that a cell lacks, and for a weight that is no parameter.
        """
        return list(map(module._parameters.get, self._names))

    def name_of(self, weight: Tensor) -> str | None:
        """Return the name of the module's weight that has the data pointer and layout of ``weight``, or None."""
        (wanted,) = _memory_layouts([weight])
        names = (name for name, layout in zip(self._present_names, self._layouts or []) if layout == wanted)
        return next(names, None)

    def has_all(self, module, used: list[Layer]) -> bool:
        """Return whether all weights that a call uses are parameters of the module, not computed for each call."""
        return sum(w is not None for w in self.tensors_of(module)) == len(flatten_weights(used))

    def is_unchanged(self, module) -> bool:
        """Return whether the module still has the same weights, with the same data pointers and layouts.

        Return False also if one of the weights is not readable.
        """
        weights = self.tensors_of(module)
        # A new weight may have the id of one that was freed. So types are compared, too: a tensor subclass may have no
        # data pointer to compare.
        is_same = [*map(id, weights), *map(type, weights)] == self._identities
        return is_same and self._layouts is not None and _memory_layouts(weights) == self._layouts


def _memory_layouts(weights: list[Tensor | None]) -> list:
    """Return the data pointer and layout of each weight that is not None. Both may change while the id stays."""
    return [(w.data_ptr(), w.stride(), w.dtype, w.is_neg()) for w in weights if w is not None]


# Indices of a call's buffers: the tensors whose addresses differ from call to call. See `Memory.add_packed_offsets`.
_INPUT, _HX, _OUTPUT, _H_N, _WORKSPACE, _PACKED_OFFSETS = range(6)
# Bytes to which each part of the workspace is aligned. Triton compiled the launches for addresses that are multiples of
# 16, as those of new tensors are.
_WORKSPACE_ALIGNMENT = 256


# The addresses of a call's buffers by index (0 for an absent buffer), and the buffers as tensors. Among these, None
# stands for an absent buffer and for the packed offsets.
_Addresses = tuple[int, ...]
_Buffers = tuple[Tensor | None, ...]


class _ReplayedLaunch(NamedTuple):
    """A launch whose addresses in buffers are filled in for each call.

    Attributes:
        starter: what `Launch.make_starter` returned. It takes ``args``.
        args: the launch's ``args``, with addresses in place of tensors. A tensor in a buffer has its offset instead,
            until the call's address is filled in.
        address_slots: (index in ``args``, index of the buffer, bytes from the buffer's start) of each argument that
            depends on the call.
        fill: (index of the first word, index behind the last word, value) of the words of the workspace that are
            filled with the value before the launch. None if there are none.
    """

    starter: Callable[..., None]
    args: list
    address_slots: list[tuple[int, int, int]]
    fill: tuple[int, int, int] | None

    def start(self, addresses: _Addresses, buffers: _Buffers, module) -> None:
        """Start the launch. `make_starters` would do, but this is faster, and every call waits for it."""
        starter, args, address_slots, fill = self
        if fill is not None:
            begin, end, value = fill
            buffers[_WORKSPACE][begin:end].fill_(value)
        starter(*_fill_addresses(args, address_slots, addresses))

    def make_starters(self, addresses: _Addresses, buffers: _Buffers, module) -> Iterator[Callable[[], object]]:
        """Yield functions without arguments that together, called in order, do what `start` does."""
        if self.fill is not None:
            begin, end, value = self.fill
            yield functools.partial(buffers[_WORKSPACE][begin:end].fill_, value)
        yield functools.partial(self.starter, *_fill_addresses(self.args, self.address_slots, addresses))


def _fill_addresses(args: list, address_slots: list[tuple[int, int, int]], addresses: _Addresses) -> list:
    """Return a copy of ``args`` of a `_ReplayedLaunch` in which the addresses are those of a call's buffers."""
    args = args.copy()
    for index, buffer, offset in address_slots:
        args[index] = addresses[buffer] + offset
    return args


class _BufferView(NamedTuple):
    """The location and layout of a tensor that lies in a buffer.

    Attributes:
        buffer: index of the buffer.
        offset: bytes from the buffer's start.
        shape, stride, dtype: those of the tensor.
    """

    buffer: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def resolve(self, buffers: _Buffers) -> Tensor:
        """Return the tensor in the buffers of a call."""
        tensor = buffers[self.buffer]
        tensor = tensor if tensor.dtype == self.dtype else tensor.view(self.dtype)
        return tensor.as_strided(self.shape, self.stride, tensor.storage_offset() + self.offset // self.dtype.itemsize)


class _ReplayedProduct(NamedTuple):
    """A `Product` whose tensors are found again for each call.

    Attributes:
        x, out: location of the product's input and result in the call's buffers.
        weight_name: name of the module's parameter that the input is multiplied with.
    """

    x: _BufferView
    weight_name: str
    out: _BufferView

    def start(self, addresses: _Addresses, buffers: _Buffers, module) -> None:
        """Start the product. ``addresses`` are not used: a product takes tensors, and `_ReplayedLaunch` addresses."""
        for starter in self.make_starters(addresses, buffers, module):
            starter()

    def make_starters(self, addresses: _Addresses, buffers: _Buffers, module) -> Iterator[Callable[[], object]]:
        """Yield one function without arguments that starts the product."""
        weight = module._parameters[self.weight_name]
        yield Product(self.x.resolve(buffers), weight, self.out.resolve(buffers)).start


class PreparedCall:
    """The launches of a call on a module's weights. A prepared call is called with the module, input and hx.

    A call allocates its results and its workspace: the memory by which a launch passes data to later launches.

    Attributes:
        weights: identities and layouts of the weights that the launches read.
        device: the device that the launches run on.
    """

    def __init__(self, steps: list[_ReplayedLaunch | _ReplayedProduct], weights: ModuleWeights, memory: "Memory"):
        self._steps, self.weights, self.device = steps, weights, memory.device
        self._kept_alive, self._workspace_words = memory.kept_alive, memory.workspace_words
        self._output_shape, self._h_n_shape = memory.output_shape, memory.h_n_shape

    def __call__(self, module, input: Tensor | PackedSequence, hx: Tensor | None):
        """Return the results of ``module.forward(input, hx)``."""
        if not isinstance(input, PackedSequence):
            return self._launch(module, input, hx)
        data, hx, sequences = unpack_input(module, input, hx)
        # `bind_gru` makes the same copy. Dense input needs none: a call whose state has to be copied is not prepared.
        results = self._launch(module, data, materialize(hx), sequences.offsets.data_ptr())
        return pack_results(module, input, *results)

    def _launch(self, module, input: Tensor, hx: Tensor | None, packed_offsets: int = 0):
        """Start all launches, and return the results. ``packed_offsets`` is the address of the buffer of this name."""
        hang.raise_if_hung(input.device)
        addresses, buffers, results = self._allocate(input, hx, packed_offsets)
        for step in self._steps:
            step.start(addresses, buffers, module)
        return results

    def _allocate(self, input: Tensor, hx: Tensor | None, packed_offsets: int):
        """Return the addresses of a call's buffers, the buffers, and the results in the shape that the call returns."""
        h_n = input.new_empty(self._h_n_shape)
        # The first dimension is the input's, because calls with different numbers of packed rows share this object.
        output = h_n if self._output_shape is None else input.new_empty(input.size(0), *self._output_shape)
        # The workspace is not kept, because calls on two streams would share it.
        workspace = input.new_empty(self._workspace_words, dtype=torch.int64) if self._workspace_words else None
        addresses = (
            input.data_ptr(),
            0 if hx is None else hx.data_ptr(),
            output.data_ptr(),
            h_n.data_ptr(),
            0 if workspace is None else workspace.data_ptr(),
            packed_offsets,
        )
        buffers = (input, hx, output, h_n, workspace, None)
        return addresses, buffers, h_n if self._output_shape is None else (output, h_n)

    def bind(self, module, input: Tensor, hx: Tensor | None) -> tuple[object, list[Callable[[], object]], tuple]:
        """Return the results of a call, functions that start its launches in order, and the buffers that they use.

        Packed input is not allowed. The caller must keep the buffers as long as it calls the functions. Each function
        may be called several times. So launches can be timed without the rest of a call.
        """
        addresses, buffers, results = self._allocate(input, hx, 0)
        starters = [starter for step in self._steps for starter in step.make_starters(addresses, buffers, module)]
        return results, starters, buffers


def prepare(launches: Iterable[Launch | Product], weights: ModuleWeights, memory: "Memory") -> PreparedCall | None:
    """Return the launches of a call as a prepared call, or None if the call cannot be prepared.

    A call cannot be prepared if it has too many launches, or if its memory is ambiguous (`Memory.is_ambiguous`). Nor
    can it if a launch reads a tensor that was made for this call only, such as a copy of its state.

    Args:
        launches: the launches, as `execute.launches` yields them.
        weights: the module's weights.
        memory: the call's buffers. `Memory.new` must have made the workspace of ``launches``.
    """
    launches = list(itertools.islice(launches, MAX_LAUNCHES + 1))
    if len(launches) > MAX_LAUNCHES:
        return None
    steps = [
        _prepare_product(launch, weights, memory) if isinstance(launch, Product) else _prepare_launch(launch, memory)
        for launch in launches
    ]
    return None if memory.is_ambiguous or None in steps else PreparedCall(steps, weights, memory)


def _prepare_product(product: Product, weights: ModuleWeights, memory: "Memory") -> _ReplayedProduct | None:
    """Return a product of cuBLAS in a form that later calls can start, or None if the call cannot be prepared.

    The call cannot be prepared if the weight is not the memory of a parameter, or if input or result are in no buffer.
    """
    weight_name = weights.name_of(product.w)
    x, out = _locate(product.x, memory), _locate(product.out, memory)
    return None if None in (weight_name, x, out) else _ReplayedProduct(x, weight_name, out)


def _locate(tensor: Tensor, memory: "Memory") -> _BufferView | None:
    """Return the location and layout of a tensor in the call's buffers, or None if it is in no buffer."""
    location = memory.find(tensor)
    if location is None or location[0] is None:
        return None
    return _BufferView(*location, tensor.shape, tensor.stride(), tensor.dtype)


def _prepare_launch(launch: Launch, memory: "Memory") -> _ReplayedLaunch | None:
    """Return a launch in a form that later calls can start, or None if it reads a tensor made for this call only."""
    args, address_slots = list(launch.args), []
    for index, arg in enumerate(args):
        if isinstance(arg, Tensor):
            location = memory.find(arg)
            if location is None:
                return None
            buffer, offset = location
            args[index] = offset
            if buffer is not None:
                address_slots.append((index, buffer, offset))
    fill = None
    if launch.fill is not None:
        words, value = launch.fill
        _, offset = memory.find(words)  # only workspace is filled
        begin = offset // words.itemsize
        fill = begin, begin + words.numel(), value
    return _ReplayedLaunch(launch.make_starter(), args, address_slots, fill)


class Memory:
    """A map from the tensors of a call's launches to the call's buffers. It also lays out the workspace.

    Args:
        input: the call's input. Packed input is its data [N, I].
        hx: the call's initial state, or None.
        output, h_n: the call's results. Both are one tensor [1, B, H] if the caller gets one result only.
        weights: the weights that the launches read. None entries are ignored.
        kept_alive: other tensors that the launches read or write, which must not be freed.

    Attributes:
        device: the device of ``input``.
        kept_alive: as the argument.
        output_shape: shape of ``output`` without its first dimension, which is the input's. None if the caller gets
            ``h_n`` only.
        h_n_shape: shape of ``h_n``. If the caller gets ``h_n`` only, [B, H].
        workspace_words: size of the workspace in 64-bit words.
        is_ambiguous: whether the input, the state or a result begins at the address of another tensor, so that `find`
            cannot tell them apart. In another call their addresses may differ. Exception: ``output`` may be ``h_n``.
    """

    def __init__(
        self,
        input: Tensor,
        hx: Tensor | None,
        output: Tensor,
        h_n: Tensor,
        weights: list[Tensor | None],
        kept_alive: list[Tensor],
    ):
        has_one_result = output is h_n
        shapes = (None, h_n.shape[1:]) if has_one_result else (output.shape[1:], h_n.shape)
        self.output_shape, self.h_n_shape = shapes
        self.device, self.kept_alive, self.workspace_words, self.is_ambiguous = input.device, kept_alive, 0, False
        fixed_tensors = (*kept_alive, *(w for w in weights if w is not None))
        # Results of `find` by the address of a tensor.
        self._locations: dict[int, tuple[int | None, int]] = {
            tensor.data_ptr(): (None, tensor.data_ptr()) for tensor in fixed_tensors
        }
        call_tensors = [(input, _INPUT), (output, _OUTPUT), (h_n, _H_N)] + ([] if hx is None else [(hx, _HX)])
        for tensor, buffer in call_tensors:
            self.is_ambiguous |= tensor.data_ptr() in self._locations and tensor is not output
            self._locations[tensor.data_ptr()] = buffer, 0
        # (address, address behind the last byte, index of the buffer) of each tensor that the caller gives or gets
        self._call_ranges = [(tensor.data_ptr(), _end_address(tensor), buffer) for tensor, buffer in call_tensors]
        self._workspace_parts: list[tuple[Tensor, int]] = []  # each with its offset in the workspace, in bytes

    def add_packed_offsets(self, sequences: Sequences) -> None:
        """Add the buffer that holds the offset of each time step in packed rows, then the length of each sequence."""
        offsets = sequences.offsets
        self._locations |= {
            offsets.data_ptr(): (_PACKED_OFFSETS, 0),
            sequences.lengths.data_ptr(): (_PACKED_OFFSETS, offsets.nbytes),
        }

    def new(self, like: Tensor, *shape: int, **options) -> Tensor:
        """Return a new tensor, as `Tensor.new_empty` does, and reserve its bytes in the workspace."""
        part = like.new_empty(*shape, **options)
        self._workspace_parts.append((part, 8 * self.workspace_words))
        self.workspace_words += -(-part.nbytes // _WORKSPACE_ALIGNMENT) * _WORKSPACE_ALIGNMENT // 8
        return part

    def find(self, tensor: Tensor) -> tuple[int | None, int] | None:
        """Return the index of the buffer that holds a tensor, and the tensor's offset there in bytes.

        Return (None, address) for a tensor whose address stays, such as a weight, and (None, 0) for an empty tensor.
        Return None for any other tensor: it was made for this call only, so that the call cannot be prepared.
        """
        address = tensor.data_ptr()
        if tensor.numel() == 0:  # no launch reads it, so any address will do
            return None, 0
        if address in self._locations:
            return self._locations[address]
        for part, offset in self._workspace_parts:
            if part.data_ptr() <= address < part.data_ptr() + part.nbytes:
                return _WORKSPACE, offset + address - part.data_ptr()
        for start, end, buffer in self._call_ranges:
            if start <= address < end:
                return buffer, address - start
        return None


def _end_address(tensor: Tensor) -> int:
    """Return the address behind a tensor's last byte."""
    last_element = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return tensor.data_ptr() + (last_element + 1) * tensor.element_size()
