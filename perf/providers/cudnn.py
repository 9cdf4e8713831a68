"""cuDNN's GRU with a chosen algorithm, through ctypes. torch offers only the algorithm that it picks itself.

Enumerators and functions have cuDNN's names. Their values and prototypes are those of cudnn_graph.h, cudnn_ops.h and
cudnn_adv.h of cuDNN 9.
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
STANDARD_PROVIDER = "cudnn.standard"  # what torch picks above H = 192 and if packed, with flat weights even in bf16


class Algorithm(enum.IntEnum):
    """An algorithm of recurrent networks, cudnnRNNAlgo_t."""

    CUDNN_RNN_ALGO_STANDARD = 0
    CUDNN_RNN_ALGO_PERSIST_STATIC = 1
    CUDNN_RNN_ALGO_PERSIST_DYNAMIC = 2
    CUDNN_RNN_ALGO_PERSIST_STATIC_SMALL_H = 3


class Math(enum.IntEnum):
    """A math type, cudnnMathType_t, which decides how products are computed."""

    CUDNN_DEFAULT_MATH = 0  # TF32 for fp32
    CUDNN_TENSOR_OP_MATH = 1  # tensor cores, without conversion of operands
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
# name: (result, arguments). Enumerations, such as statuses, are ints. Handles and descriptors are pointers.
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
    """An error of cuDNN, its absence, or an input that it cannot take.

    The message of a failed call names the function, and has cuDNN's own text.
    """


class Library:
    """The loaded library ``cdll``, with cuDNN's functions as attributes with prototypes."""

    def __init__(self, cdll):
        for name, (result, arguments) in PROTOTYPES.items():
            function = getattr(cdll, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        self.version: int = self.cudnnGetVersion()

    def call(self, name: str, *arguments) -> None:
        """Call the function ``name``. Raise CudnnError if its status is not success."""
        if status := getattr(self, name)(*arguments):
            raise self.error(name, status)

    def error(self, name: str, status: int) -> CudnnError:
        """Return an error with the function's name, the name of the status, and cuDNN's last message, if any."""
        details = ctypes.create_string_buffer(2048)
        self.cudnnGetLastErrorString(details, len(details))
        texts = [name.encode(), self.cudnnGetErrorString(status), details.value]
        return CudnnError(": ".join(" ".join(text.decode(errors="replace").split()) for text in texts if text))


class Handle:
    """A cuDNN handle on the current CUDA device, destroyed with this object.

    ``current_stream`` is a function that returns the address of the current CUDA stream.
    """

    def __init__(self, library: Library, current_stream: Callable[[], int]):
        self.library = library
        self.pointer = c_void_p()
        self._current_stream, self._stream = current_stream, None
        library.call("cudnnCreate", byref(self.pointer))
        weakref.finalize(self, library.call, "cudnnDestroy", self.pointer)

    def follow(self) -> None:
        """Let later calls of cuDNN run on torch's current stream."""
        if (stream := self._current_stream()) != self._stream:
            self.library.call("cudnnSetStream", self.pointer, stream)
            self._stream = stream


@functools.cache
def handle_of(device: torch.device) -> Handle:
    """Return the device's handle. Each device has one, because a handle allocates memory on the device.

    Raises:
        CudnnError: the device is no CUDA device, or cuDNN cannot be loaded or does not work on it.
    """
    if device.type != "cuda":
        raise CudnnError(f"cuDNN needs a CUDA device, the input is on {device}")
    try:
        library = Library(ctypes.CDLL(LIBRARY))  # the library that torch has loaded, if torch is built with cuDNN
    except (OSError, AttributeError) as missing:
        raise CudnnError(f"{LIBRARY} cannot be loaded: {missing}") from missing
    with torch.cuda.device(device):
        return Handle(library, functools.partial(torch._C._cuda_getCurrentRawStream, torch.cuda.current_device()))


def math_type(dtype: torch.dtype) -> Math:
    """Return the math type for a dtype: the one that torch passes to cuDNN.

    Exception: for bf16 this function returns that of fp16, whereas torch goes by the precision of fp32 products.
    """
    if dtype != torch.float32:
        return Math.CUDNN_TENSOR_OP_MATH
    tf32 = torch.backends.cudnn.rnn.fp32_precision == "tf32"
    return Math.CUDNN_DEFAULT_MATH if tf32 else Math.CUDNN_FMA_MATH


class Gru:
    """A call of cuDNN for inputs like ``x`` ([T, B, I], contiguous, or packed), with a copy of ``gru``'s weights.

    The copy is flat even in bf16, where torch compacts its weights on every call. The first state is zeros. A call
    takes the input, or the data [N, I] of a packed input. With D directions it returns output [T, B, D * H] or
    [N, D * H], and h_n [D * layers, B, H]. Every call returns the same tensors. A CUDA graph of a call reads this
    object's memory, so this object must outlive the graph's replays.

    Attributes:
        has_standard_workspace: whether a non-standard algorithm has a workspace of the standard size. Then cuDNN may
            run the standard algorithm instead.

    Raises:
        CudnnError: cuDNN reports an error, here or in a call, or ``x`` has an unsupported dtype, layout or size.
    """

    def __init__(self, handle: Handle, gru: nn.GRU, x: Tensor | PackedSequence, algorithm: Algorithm, math: Math):
        lengths, x = _count_steps(x), x.data
        batch, inputs = len(lengths), x.size(-1)
        hidden, layers, directions = gru.hidden_size, gru.num_layers, 1 + gru.bidirectional
        if x.dtype not in DATA_TYPES or not x.is_contiguous():
            raise CudnnError(
                f"the input must be contiguous and fp32, fp16 or bf16, got {x.dtype} with strides {x.stride()}"
            )
        if (largest := max(lengths[0], inputs, layers, batch * hidden)) >= 2**31:
            raise CudnnError(f"cuDNN's sizes and strides must be below 2**31, got {largest}")
        self._handle, self._library, self._type = handle, handle.library, DATA_TYPES[x.dtype]
        handle.follow()
        call = self._library.call
        # Persistent algorithms need two biases. For a GRU without biases, those in the weight space stay zeros.
        standard = Algorithm.CUDNN_RNN_ALGO_STANDARD
        biases = CUDNN_RNN_DOUBLE_BIAS if gru.bias or algorithm != standard else CUDNN_RNN_NO_BIAS
        direction = CUDNN_BIDIRECTIONAL if gru.bidirectional else CUDNN_UNIDIRECTIONAL
        with contextlib.ExitStack() as undo:

            def describe_network(algorithm: Algorithm) -> tuple[c_void_p, c_size_t]:
                """Return the algorithm's descriptor and the bytes of its workspace."""
                rnn, size, no_projection, no_dropout = self._create("RNNDescriptor", undo), c_size_t(), hidden, None
                call(
                    "cudnnSetRNNDescriptor_v8", rnn, algorithm, CUDNN_GRU, biases, direction, CUDNN_LINEAR_INPUT,
                    self._type, CUDNN_DATA_FLOAT, math, inputs, hidden, no_projection, layers,
                    no_dropout, CUDNN_RNN_PADDED_IO_DISABLED,
                )  # fmt: skip
                if algorithm == Algorithm.CUDNN_RNN_ALGO_PERSIST_DYNAMIC:
                    call("cudnnBuildRNNDynamic", handle.pointer, rnn, batch)
                no_training = CUDNN_FWD_MODE_INFERENCE
                call("cudnnGetRNNTempSpaceSizes", handle.pointer, rnn, no_training, x_like, byref(size), None)
                return rnn, size

            widths = inputs, directions * hidden
            x_like, y_like = (self._describe_sequences(lengths, width, undo) for width in widths)
            state = self._create("TensorDescriptor", undo)
            sizes, strides = (directions * layers, batch, hidden), (batch * hidden, hidden, 1)
            call("cudnnSetTensorNdDescriptor", state, self._type, 3, (c_int * 3)(*sizes), (c_int * 3)(*strides))
            rnn, size = describe_network(algorithm)
            # If cuDNN 9 lacks a persistent kernel for bf16 or for a newer GPU, it reports no error. The workspace then
            # has the size of the standard algorithm's.
            _, standard_size = (rnn, size) if algorithm == standard else describe_network(standard)
            self.has_standard_workspace = algorithm != standard and size.value == standard_size.value
            self._results = x.new_empty(*x.shape[:-1], directions * hidden), x.new_empty(sizes)
            self._weights = self._copy_weights(gru, rnn, x)
            self._workspace = torch.empty(size.value, dtype=torch.uint8, device=x.device)
            self._x = c_void_p()  # the only argument that differs between calls
            tensors = *self._results, self._weights, self._workspace
            y, h_n, weights, workspace = (c_void_p(tensor.data_ptr()) for tensor in tensors)
            no_lengths = hx = cell = cx = cy = reserve = None  # without hx the first state is zeros
            self._arguments = (
                handle.pointer, rnn, CUDNN_FWD_MODE_INFERENCE, no_lengths, x_like, self._x, y_like, y,
                state, hx, h_n, cell, cx, cy,
                c_size_t(self._weights.nbytes), weights, size, workspace, c_size_t(0), reserve,
            )  # fmt: skip
            weakref.finalize(self, undo.pop_all().close)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the GRU of an input like that of the constructor, on the current CUDA stream."""
        self._handle.follow()
        self._x.value = x.data_ptr()
        if status := self._library.cudnnRNNForward(*self._arguments):
            raise self._library.error("cudnnRNNForward", status)
        return self._results

    def _create(self, kind: str, undo: contextlib.ExitStack) -> c_void_p:
        """Return a new descriptor of a kind of `_CREATED`, which is destroyed when ``undo`` is closed."""
        descriptor = c_void_p()
        self._library.call(f"cudnnCreate{kind}", byref(descriptor))
        undo.callback(self._library.call, f"cudnnDestroy{kind}", descriptor)
        return descriptor

    def _describe_sequences(self, lengths: list[int], width: int, undo: contextlib.ExitStack) -> c_void_p:
        """Return a new descriptor of packed sequences of these lengths, with ``width`` elements in each step.

        If all lengths are T, packed data is the tensor [T, B, width].
        """
        data, batch = self._create("RNNDataDescriptor", undo), len(lengths)
        layout, steps, fill = CUDNN_RNN_DATA_LAYOUT_SEQ_MAJOR_PACKED, (c_int * batch)(*lengths), None
        self._library.call("cudnnSetRNNDataDescriptor", data, self._type, layout, lengths[0], batch, width, steps, fill)
        return data

    def _copy_weights(self, gru: nn.GRU, rnn: c_void_p, x: Tensor) -> Tensor:
        """Return a copy of ``gru``'s weights in the layout of cuDNN's weight space, in the dtype of ``x``.

        The order of gates is reset, update, new in cuDNN as in torch.
        """
        size, call = c_size_t(), self._library.call
        call("cudnnGetRNNWeightSpaceSize", self._handle.pointer, rnn, byref(size))
        space = torch.zeros(size.value // x.itemsize, dtype=x.dtype, device=x.device)
        with contextlib.ExitStack() as undo:
            matrix, bias = (self._create("TensorDescriptor", undo) for _ in range(2))
            matrix_address, bias_address = c_void_p(), c_void_p()
            # cuDNN numbers each direction of a layer as a layer.
            for layer, parameters in enumerate(gru.all_weights):
                for number in range(6):  # the weights of the input for the three gates, then those of the state
                    call(
                        "cudnnGetRNNWeightParams", self._handle.pointer, rnn, layer, space.nbytes, space.data_ptr(),
                        number, matrix, byref(matrix_address), bias, byref(bias_address),
                    )  # fmt: skip
                    is_recurrent, gate = divmod(number, 3)
                    # The gate's rows of W_ih and b_ih, or of W_hh and b_hh. Without biases, only of the matrix.
                    blocks = [parameter.detach().chunk(3)[gate] for parameter in parameters[is_recurrent::2]]
                    for block, descriptor, address in zip(
                        blocks, (matrix, bias), (matrix_address, bias_address), strict=False
                    ):
                        self._copy_block(block.view(len(block), -1), space, descriptor, address)
        return space

    def _copy_block(self, block: Tensor, space: Tensor, descriptor: c_void_p, address: c_void_p) -> None:
        """Copy a gate's matrix, or its bias as a column, to the address in the weight space that cuDNN gave for it.

        Raises:
            CudnnError: ``descriptor``, cuDNN's description of the block, has another shape or layout.
        """
        type_, rank, sizes, strides = c_int(), c_int(), (c_int * 3)(), (c_int * 3)()
        self._library.call("cudnnGetTensorNdDescriptor", descriptor, 3, byref(type_), byref(rank), sizes, strides)
        described = type_.value, rank.value, [*sizes], [*strides]
        expected = self._type, 3, [1, *block.shape], [block.numel(), block.size(1), 1]
        offset, misalignment = divmod((address.value or 0) - space.data_ptr(), space.itemsize)
        if described != expected or misalignment or not 0 <= offset <= len(space) - block.numel():
            raise CudnnError(
                f"cudnnGetRNNWeightParams: got {described} at {offset} of {len(space)} elements, expected {expected}"
            )
        space[offset:][: block.numel()].view_as(block).copy_(block)


def _count_steps(x: Tensor | PackedSequence) -> list[int]:
    """Return the number of steps of each sequence, the longest first."""
    if isinstance(x, Tensor):
        return [x.size(0)] * x.size(1)
    return [int((x.batch_sizes > i).sum()) for i in range(x.batch_sizes[0])]


def _prepare(algorithm: Algorithm, gru: nn.GRU, x: Tensor | PackedSequence) -> Ready:
    """Return cuDNN's GRU with a forced algorithm, ready for inputs like ``x``, which may be packed."""
    if not isinstance(x, PackedSequence):
        require_padded(x)
    math = math_type(x.data.dtype)
    handle = handle_of(x.data.device)
    call = Gru(handle, gru, x, algorithm, math)
    call(x.data)  # some errors are reported only by a call
    config = f"algo={algorithm.name} math={math.name} cudnn={handle.library.version}"
    if call.has_standard_workspace:
        config += " (its workspace has the size of CUDNN_RNN_ALGO_STANDARD's, so cuDNN may run that algorithm instead)"
    return Ready(call, "cudnn", config, "forced", lay_out=operator.attrgetter("data"))


PROVIDERS: dict[str, Prepare] = {
    f"cudnn.{name}": functools.partial(_prepare, algorithm)
    for name, algorithm in zip(("standard", "persist_static", "persist_dynamic", "small_h"), Algorithm)
}
