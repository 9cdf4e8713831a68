"""cuDNN's GRU forward by an algorithm of one's choice, through ctypes: torch offers only the one it picks itself.

Enumerators and functions have cuDNN's own names; their values and prototypes are those of cudnn_graph.h, cudnn_ops.h
and cudnn_adv.h of cuDNN 9.
"""

import contextlib
import ctypes
import enum
import functools
import operator
import weakref
from collections.abc import Callable
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_uint, c_void_p

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .interface import Prepare, Ready, Unavailable, require_padded

LIBRARY = "libcudnn.so.9"
STANDARD_PROVIDER = "cudnn.standard"  # the algorithm that torch picks, with flat weights in bf16, too


class Algorithm(enum.IntEnum):
    CUDNN_RNN_ALGO_STANDARD = 0
    CUDNN_RNN_ALGO_PERSIST_STATIC = 1
    CUDNN_RNN_ALGO_PERSIST_DYNAMIC = 2
    CUDNN_RNN_ALGO_PERSIST_STATIC_SMALL_H = 3


class Math(enum.IntEnum):
    CUDNN_DEFAULT_MATH = 0  # TF32 for fp32
    CUDNN_TENSOR_OP_MATH = 1  # tensor cores, with nothing converted for their sake
    CUDNN_FMA_MATH = 3  # no tensor cores


DATA_TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 9}
CUDNN_DATA_FLOAT = DATA_TYPES[torch.float32]
CUDNN_GRU = 3
CUDNN_UNIDIRECTIONAL, CUDNN_BIDIRECTIONAL = 0, 1
CUDNN_RNN_NO_BIAS, CUDNN_RNN_DOUBLE_BIAS = 0, 2
CUDNN_RNN_DATA_LAYOUT_SEQ_MAJOR_PACKED = 1
CUDNN_LINEAR_INPUT = CUDNN_FWD_MODE_INFERENCE = CUDNN_RNN_PADDED_IO_DISABLED = 0

_int, _size, _address = POINTER(c_int), POINTER(c_size_t), POINTER(c_void_p)
_CREATED = ("", "TensorDescriptor", "RNNDataDescriptor", "RNNDescriptor")  # "" is the handle
# name: (result, arguments). Enumerations, the statuses among them, are ints; handles and descriptors are pointers.
PROTOTYPES = {
    "cudnnGetVersion": (c_size_t, []),
    "cudnnGetErrorString": (c_char_p, [c_int]),
    "cudnnGetLastErrorString": (None, [POINTER(c_char), c_size_t]),
    **{f"cudnnCreate{kind}": (c_int, [_address]) for kind in _CREATED},
    **{f"cudnnDestroy{kind}": (c_int, [c_void_p]) for kind in _CREATED},
    "cudnnSetStream": (c_int, [c_void_p] * 2),
    "cudnnSetTensorNdDescriptor": (c_int, [c_void_p, c_int, c_int, _int, _int]),
    "cudnnGetTensorNdDescriptor": (c_int, [c_void_p, c_int, _int, _int, _int, _int]),
    "cudnnSetRNNDataDescriptor": (c_int, [c_void_p, *[c_int] * 5, _int, c_void_p]),
    "cudnnSetRNNDescriptor_v8": (c_int, [c_void_p, *[c_int] * 12, c_void_p, c_uint]),
    "cudnnBuildRNNDynamic": (c_int, [c_void_p, c_void_p, c_int]),
    "cudnnGetRNNTempSpaceSizes": (c_int, [c_void_p, c_void_p, c_int, c_void_p, _size, _size]),
    "cudnnGetRNNWeightSpaceSize": (c_int, [c_void_p, c_void_p, _size]),
    "cudnnGetRNNWeightParams": (
        c_int, [c_void_p, c_void_p, c_int, c_size_t, c_void_p, c_int, c_void_p, _address, c_void_p, _address],
    ),
    "cudnnRNNForward": (c_int, [c_void_p, c_void_p, c_int, *[c_void_p] * 11, *[c_size_t, c_void_p] * 3]),
}  # fmt: skip


class CudnnError(Unavailable):
    """cuDNN is not there, or has refused; the message says which function, and why in cuDNN's own words."""


class Library:
    """cuDNN's functions as attributes, with prototypes. ``cdll`` is the loaded library."""

    def __init__(self, cdll):
        for name, (result, arguments) in PROTOTYPES.items():
            function = getattr(cdll, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        self.version: int = self.cudnnGetVersion()

    def call(self, name: str, *arguments) -> None:
        """Raise CudnnError if the function's status is not success."""
        if status := getattr(self, name)(*arguments):
            raise self.error(name, status)

    def error(self, name: str, status: int) -> CudnnError:
        details = ctypes.create_string_buffer(2048)
        self.cudnnGetLastErrorString(details, len(details))
        texts = [name.encode(), self.cudnnGetErrorString(status), details.value]
        return CudnnError(": ".join(" ".join(text.decode(errors="replace").split()) for text in texts if text))


class Handle:
    """A cuDNN handle on the current CUDA device. ``current_stream`` gives the address of torch's stream there."""

    def __init__(self, library: Library, current_stream: Callable[[], int]):
        self.library = library
        self.pointer = c_void_p()
        self._current_stream, self._stream = current_stream, None
        library.call("cudnnCreate", byref(self.pointer))
        weakref.finalize(self, library.call, "cudnnDestroy", self.pointer)

    def follow(self) -> None:
        """Let what is called next run on torch's current stream."""
        if (stream := self._current_stream()) != self._stream:
            self.library.call("cudnnSetStream", self.pointer, stream)
            self._stream = stream


@functools.cache
def handle_of(device: torch.device) -> Handle:
    """Return the device's handle. Making one allocates memory on the device, so it is made once.

    Raises:
        CudnnError: the device is no CUDA device, or cuDNN cannot be loaded or does not work on it.
    """
    if device.type != "cuda":
        raise CudnnError(f"cuDNN needs a CUDA device, the input is on {device}")
    try:
        library = Library(ctypes.CDLL(LIBRARY))  # the one that torch has loaded, where it is built with cuDNN
    except (OSError, AttributeError) as missing:
        raise CudnnError(f"{LIBRARY} cannot be loaded: {missing}") from missing
    with torch.cuda.device(device):
        return Handle(library, functools.partial(torch._C._cuda_getCurrentRawStream, torch.cuda.current_device()))


def math_type(dtype: torch.dtype) -> Math:
    """Return torch's for recurrent networks. Exception: for bf16 that of fp16, as torch's depends on fp32's there."""
    if dtype != torch.float32:
        return Math.CUDNN_TENSOR_OP_MATH
    tf32 = torch.backends.cudnn.rnn.fp32_precision == "tf32"
    return Math.CUDNN_DEFAULT_MATH if tf32 else Math.CUDNN_FMA_MATH


class Gru:
    """A call of cuDNN for inputs like ``x`` ([T, B, I], contiguous, or packed) and a copy of ``gru``'s weights.

    The copy is flat in bf16, too, where torch compacts its weights on every call. The first state is zeros. A call
    takes the input, or the data [N, I] of a packed one. It gives output [T, B, D * H] or [N, D * H] and h_n
    [D * layers, B, H] with D directions, the same tensors every time. A CUDA graph that has captured one reads this
    object's memory. It must not be replayed when the object is gone.

    Attributes:
        has_standard_workspace: another algorithm was asked for, but the workspace is that of the standard one, which cuDNN then
            may run in its place.

    Raises:
        CudnnError: cuDNN refuses, in calls, too.
    """

    def __init__(self, handle: Handle, gru: nn.GRU, x: Tensor | PackedSequence, algorithm: Algorithm, math: Math):
        lengths, x = _lengths(x), x.data
        batch, inputs = len(lengths), x.size(-1)
        hidden, layers, directions = gru.hidden_size, gru.num_layers, 1 + gru.bidirectional
        if x.dtype not in DATA_TYPES or not x.is_contiguous():
            raise CudnnError(f"the input must be contiguous, and fp32, fp16 or bf16; it is {x.dtype}")
        if max(lengths[0], inputs, layers, batch * hidden) >= 2**31:
            raise CudnnError("cuDNN's sizes and strides are 32 bits wide")
        self._handle, self._library, self._type = handle, handle.library, DATA_TYPES[x.dtype]
        handle.follow()
        call = self._library.call
        # Persistent algorithms take two biases or refuse: of a GRU without any, those in the weight space stay zeros.
        standard = Algorithm.CUDNN_RNN_ALGO_STANDARD
        biases = CUDNN_RNN_DOUBLE_BIAS if gru.bias or algorithm != standard else CUDNN_RNN_NO_BIAS
        ways = CUDNN_BIDIRECTIONAL if gru.bidirectional else CUDNN_UNIDIRECTIONAL
        with contextlib.ExitStack() as undo:

            def network(algorithm: Algorithm) -> tuple[c_void_p, c_size_t]:
                """Return the algorithm's descriptor and the size of its workspace in bytes."""
                rnn, size, no_projection, no_dropout = self._create("RNNDescriptor", undo), c_size_t(), hidden, None
                call(
                    "cudnnSetRNNDescriptor_v8", rnn, algorithm, CUDNN_GRU, biases, ways, CUDNN_LINEAR_INPUT,
                    self._type, CUDNN_DATA_FLOAT, math, inputs, hidden, no_projection, layers,
                    no_dropout, CUDNN_RNN_PADDED_IO_DISABLED,
                )  # fmt: skip
                if algorithm == Algorithm.CUDNN_RNN_ALGO_PERSIST_DYNAMIC:
                    call("cudnnBuildRNNDynamic", handle.pointer, rnn, batch)
                no_training = CUDNN_FWD_MODE_INFERENCE
                call("cudnnGetRNNTempSpaceSizes", handle.pointer, rnn, no_training, x_like, byref(size), None)
                return rnn, size

            x_like, y_like = (self._sequences(lengths, width, undo) for width in (inputs, directions * hidden))
            state = self._create("TensorDescriptor", undo)
            sizes, strides = (directions * layers, batch, hidden), (batch * hidden, hidden, 1)
            call("cudnnSetTensorNdDescriptor", state, self._type, 3, (c_int * 3)(*sizes), (c_int * 3)(*strides))
            rnn, size = network(algorithm)
            # cuDNN 9 does not say so when it has no persistent kernel for bf16 or for a newer GPU. It shows in this.
            self.has_standard_workspace = algorithm != standard and size.value == network(standard)[1].value
            self._results = x.new_empty(*x.shape[:-1], directions * hidden), x.new_empty(sizes)
            self._weights = self._weight_space(gru, rnn, x)
            self._workspace = torch.empty(size.value, dtype=torch.uint8, device=x.device)
            self._x = c_void_p()  # of a call's arguments only this changes
            kept = *self._results, self._weights, self._workspace
            y, h_n, weights, workspace = (c_void_p(each.data_ptr()) for each in kept)
            no_lengths = hx = cell = cx = cy = reserve = None  # without hx the first state is zeros
            self._arguments = (
                handle.pointer, rnn, CUDNN_FWD_MODE_INFERENCE, no_lengths, x_like, self._x, y_like, y,
                state, hx, h_n, cell, cx, cy,
                c_size_t(self._weights.nbytes), weights, size, workspace, c_size_t(0), reserve,
            )  # fmt: skip
            weakref.finalize(self, undo.pop_all().close)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._handle.follow()
        self._x.value = x.data_ptr()
        if status := self._library.cudnnRNNForward(*self._arguments):
            raise self._library.error("cudnnRNNForward", status)
        return self._results

    def _create(self, kind: str, undo: contextlib.ExitStack) -> c_void_p:
        descriptor = c_void_p()
        self._library.call(f"cudnnCreate{kind}", byref(descriptor))
        undo.callback(self._library.call, f"cudnnDestroy{kind}", descriptor)
        return descriptor

    def _sequences(self, lengths: list[int], width: int, undo: contextlib.ExitStack) -> c_void_p:
        """Describe packed data of that width: of sequences of one length it is the tensor [T, B, width]."""
        data, batch = self._create("RNNDataDescriptor", undo), len(lengths)
        layout, each, fill = CUDNN_RNN_DATA_LAYOUT_SEQ_MAJOR_PACKED, (c_int * batch)(*lengths), None
        self._library.call("cudnnSetRNNDataDescriptor", data, self._type, layout, lengths[0], batch, width, each, fill)
        return data

    def _weight_space(self, gru: nn.GRU, rnn: c_void_p, x: Tensor) -> Tensor:
        """Return the weights where cuDNN wants them. Its order of gates is torch's: reset, update, new."""
        size, call = c_size_t(), self._library.call
        call("cudnnGetRNNWeightSpaceSize", self._handle.pointer, rnn, byref(size))
        space = torch.zeros(size.value // x.itemsize, dtype=x.dtype, device=x.device)
        with contextlib.ExitStack() as undo:
            matrix, bias = (self._create("TensorDescriptor", undo) for _ in range(2))
            matrix_at, bias_at = c_void_p(), c_void_p()
            # Layers as cuDNN numbers them: of two directions, each is one.
            for layer, parameters in enumerate(gru.all_weights):
                for number in range(6):  # gates' weights of the input, then of the state
                    call(
                        "cudnnGetRNNWeightParams", self._handle.pointer, rnn, layer, space.nbytes, space.data_ptr(),
                        number, matrix, byref(matrix_at), bias, byref(bias_at),
                    )  # fmt: skip
                    of_state, gate = divmod(number, 3)
                    blocks = [each.detach().chunk(3)[gate] for each in parameters[of_state::2]]  # no bias, no second
                    for block, described, address in zip(blocks, (matrix, bias), (matrix_at, bias_at)):
                        self._copy(block.view(len(block), -1), space, described, address)
        return space

    def _copy(self, block: Tensor, space: Tensor, descriptor: c_void_p, address: c_void_p) -> None:
        """Copy a gate's weights, or its bias as one column, to the address in the weight space."""
        type_, rank, sizes, strides = c_int(), c_int(), (c_int * 3)(), (c_int * 3)()
        self._library.call("cudnnGetTensorNdDescriptor", descriptor, 3, byref(type_), byref(rank), sizes, strides)
        described = type_.value, rank.value, [*sizes], [*strides]
        expected = self._type, 3, [1, *block.shape], [block.numel(), block.size(1), 1]
        offset, rest = divmod((address.value or 0) - space.data_ptr(), space.itemsize)
        if described != expected or rest or not 0 <= offset <= len(space) - block.numel():
            raise CudnnError(f"cudnnGetRNNWeightParams: {described} at {offset} in {len(space)}, not {expected}")
        space[offset:][: block.numel()].view_as(block).copy_(block)


def _lengths(x: Tensor | PackedSequence) -> list[int]:
    """Return the steps of each sequence in the order of its rows, the longest first."""
    if isinstance(x, Tensor):
        return [x.size(0)] * x.size(1)
    return [int((x.batch_sizes > i).sum()) for i in range(x.batch_sizes[0])]


def _prepare(algorithm: Algorithm, gru: nn.GRU, x: Tensor | PackedSequence) -> Ready:
    if not isinstance(x, PackedSequence):
        require_padded(x)
    math = math_type(x.data.dtype)
    handle = handle_of(x.data.device)
    call = Gru(handle, gru, x, algorithm, math)
    call(x.data)  # some refusals come no sooner
    config = f"algo={algorithm.name} math={math.name} cudnn={handle.library.version}"
    if call.has_standard_workspace:
        config += " (its workspace is CUDNN_RNN_ALGO_STANDARD's, which may run in its place)"
    return Ready(call, "cudnn", config, "forced", lay_out=operator.attrgetter("data"))


PROVIDERS: dict[str, Prepare] = {
    f"cudnn.{name}": functools.partial(_prepare, algorithm)
    for name, algorithm in zip(("standard", "persist_static", "persist_dynamic", "small_h"), Algorithm)
}
