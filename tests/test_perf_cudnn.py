"""cuDNN through ctypes: calls recorded by a fake library, and results of the real one on a GPU."""

import contextlib
import ctypes
import gc
import itertools
from ctypes import CFUNCTYPE, byref, c_int, c_size_t, c_uint, c_void_p

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from perf.measure import PEERS_SLACK
from perf.providers import cudnn
from perf.providers.cudnn import PROTOTYPES, Algorithm, CudnnError, Gru, Handle, Library, Math, math_type
from perf.providers.interface import Unavailable
from triton_gru.accuracy import PRECISIONS, compute_error_bound, compute_exact, set_precision

NOT_SUPPORTED = 3000
WORKSPACE = 96  # bytes, of the standard algorithm
STANDARD, STATIC, DYNAMIC, SMALL_H = Algorithm
DTYPES = {number: dtype for dtype, number in cudnn.DATA_TYPES.items()}


def memory(address: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Return the tensor at ``address``, as pointers given to cuDNN point to the CPU's memory here."""
    size = dtype.itemsize * torch.Size(shape).numel()
    return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=dtype).view(shape)


def write_description(description, dtype, rank, sizes, strides):
    """Write the contents of a tensor descriptor to C pointers."""
    dtype[0], rank[0], *lists = description
    for pointer, values in zip((sizes, strides), lists):
        for i, value in enumerate(values):
            pointer[i] = value


class FakeLibrary:
    """A library with cuDNN's function names and prototypes, called as C functions are, that records its calls.

    It stores the contents of descriptors, and computes GRUs by the formulas and gate numbers in cuDNN's documentation.
    Its layout of weights differs from cuDNN's, so that tests fail if a provider assumes a layout. A method like
    `SetRNNDescriptor_v8` does the work of the function with the prefix "cudnn". The method takes the arguments of the
    function, and writes results to pointers.

    Attributes:
        calls: the name and the arguments of each call.
        alive: the contents of each handle and descriptor that is not destroyed, by address.
        failing: the name of a function that returns an error, or "".
        falls_back: whether all algorithms have the workspace of the standard algorithm.
    """

    def __init__(self, failing: str = "", falls_back: bool = False):
        self.calls, self.alive, self.failing, self.falls_back = [], {}, failing, falls_back
        self.addresses = itertools.count(0x1000, 0x10)
        for name, (result, arguments) in PROTOTYPES.items():
            if name != "cudnnGetErrorString":
                setattr(self, name, CFUNCTYPE(result, *arguments)(self._recording(name)))
        # Not a CFUNCTYPE: a string that Python returns to C would leak.
        self.cudnnGetErrorString = lambda status: {NOT_SUPPORTED: b"CUDNN_STATUS_NOT_SUPPORTED"}[status]

    def _recording(self, name: str):
        """Return a function that records a call of ``name``, and returns a status.

        Functions that create or destroy a descriptor or handle do so. Any other function runs the method whose name
        lacks "cudnn", if there is one. The function named `failing` does nothing.
        """

        def function(*arguments):
            self.calls.append((name, *arguments))
            if name == self.failing:
                return NOT_SUPPORTED
            if name.startswith("cudnnCreate"):
                arguments[0][0] = address = next(self.addresses)
                self.alive[address] = [name.removeprefix("cudnnCreate")]
                return 0
            if name.startswith("cudnnDestroy"):
                assert self.alive.pop(arguments[0])[0] == name.removeprefix("cudnnDestroy")
                return 0
            return getattr(self, name.removeprefix("cudnn"), lambda *_: 0)(*arguments) or 0

        return function

    def find_calls(self, name: str) -> list[list]:
        """Return the arguments of each call of a function."""
        return [arguments for called, *arguments in self.calls if called == name]

    def GetVersion(self):
        return 91900

    def GetLastErrorString(self, text, size):
        ctypes.memmove(text, b"hiddenSize > 192\n at: x\0", 24)

    def SetTensorNdDescriptor(self, tensor, dtype, rank, sizes, strides):
        self.alive[tensor][1:] = dtype, rank, sizes[:rank], strides[:rank]

    def GetTensorNdDescriptor(self, tensor, max_rank, dtype, rank, sizes, strides):
        write_description(self.alive[tensor][1:], dtype, rank, sizes, strides)

    def SetRNNDataDescriptor(self, data, dtype, layout, steps, batch, width, lengths, fill):
        self.alive[data][1:] = dtype, layout, steps, batch, width, lengths[:batch], fill

    def SetRNNDescriptor_v8(self, rnn, *settings):
        self.alive[rnn][1:] = settings

    def GetRNNTempSpaceSizes(self, handle, rnn, mode, x_like, work, reserve):
        assert self.alive[x_like][0] == "RNNDataDescriptor"
        work[0] = WORKSPACE + 32 * (self.alive[rnn][1] != STANDARD and not self.falls_back)

    def _weights(self, rnn):
        """Return {(layer, number): (matrix offset, rows, columns, bias offset or None)} and the number of elements."""
        biases, two_directions, inputs, hidden, layers = (self.alive[rnn][i] for i in (3, 4, 9, 10, 12))
        layout, offset = {}, 0
        for layer, number in reversed([*itertools.product(range(layers * (1 + two_directions)), range(6))]):
            width = inputs if layer < 1 + two_directions else hidden * (1 + two_directions)
            columns = width if number < 3 else hidden
            layout[layer, number] = offset, hidden, columns, offset + hidden * columns if biases else None
            offset += hidden * (columns + 1) + 7
        return layout, offset

    def GetRNNWeightSpaceSize(self, handle, rnn, size):
        size[0] = self._weights(rnn)[1] * DTYPES[self.alive[rnn][6]].itemsize

    def GetRNNWeightParams(self, handle, rnn, layer, size, space, number, matrix, matrix_address, bias, bias_address):
        dtype = self.alive[rnn][6]
        layout, total = self._weights(rnn)
        assert size == total * DTYPES[dtype].itemsize
        offset, rows, columns, bias_offset = layout[layer, number]
        matrix_address[0] = space + offset * DTYPES[dtype].itemsize
        self.alive[matrix][1:] = dtype, 3, [1, rows, columns], [rows * columns, columns, 1]
        bias_address[0] = None if bias_offset is None else space + bias_offset * DTYPES[dtype].itemsize
        self.alive[bias][1:] = (
            (0, 0, [0] * 3, [0] * 3) if bias_offset is None else (dtype, 3, [1, rows, 1], [rows, 1, 1])
        )

    def RNNForward(
        self, handle, rnn, mode, lengths, x_like, x, y_like, y, state, hx, hy, cell, cx, cy, size, space,
        work_size, work, reserve_size, reserve,
    ):  # fmt: skip
        dtype, _, steps, batch, inputs, *_ = self.alive[x_like][1:]
        kind, (layout, total) = DTYPES[dtype], self._weights(rnn)
        weights = memory(space, kind, total)
        last = memory(hy, kind, *self.alive[state][3])
        lengths = torch.tensor(self.alive[x_like][6])
        is_active = torch.arange(steps).unsqueeze(1) < lengths  # selects packed data, in its order
        outputs = torch.zeros(steps, batch, inputs)
        outputs[is_active] = memory(x, kind, int(is_active.sum()), inputs).float()
        directions = 1 + self.alive[rnn][4]
        for layer in range(len(last)):
            direction = layer % directions
            if not direction:
                below, of_layer = outputs, []
            h, outputs = torch.zeros(last[0].shape), []
            for step, row_is_active in zip(below.flip(0), is_active.flip(0)) if direction else zip(below, is_active):
                parts = []
                for number, source in enumerate([step] * 3 + [h] * 3):
                    offset, rows, columns, bias_offset = layout[layer, number]
                    bias = 0 if bias_offset is None else weights[bias_offset:][:rows].float()
                    parts.append(source @ weights[offset:][: rows * columns].view(rows, columns).float().t() + bias)
                reset, update = torch.sigmoid(parts[0] + parts[3]), torch.sigmoid(parts[1] + parts[4])
                new = (1 - update) * torch.tanh(parts[2] + reset * parts[5]) + update * h
                h = torch.where(row_is_active.unsqueeze(1), new, h)
                outputs.append(h)
            last[layer] = h
            of_layer.append(torch.stack(outputs[::-1] if direction else outputs))
            outputs = torch.cat(of_layer, dim=2)
        memory(y, kind, int(is_active.sum()), outputs.size(2)).copy_(outputs[is_active])


def make_call(fake: FakeLibrary, algorithm=STANDARD, dtype=torch.float32, math=Math.CUDNN_FMA_MATH, layers=2, **more):
    """Return a Gru of 5 inputs and 3 hidden units on the fake library, the module and an input [4, 2, 5]."""
    torch.manual_seed(0)
    gru = nn.GRU(5, 3, layers, dtype=dtype, **more).eval()
    x = torch.randn(4, 2, 5).to(dtype)
    with torch.inference_mode():
        return Gru(Handle(Library(fake), lambda: 0), gru, x, algorithm, math), gru, x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_descriptors_hold_the_settings_of_the_call(precision, algorithm, bias):
    dtype = set_precision(precision)
    data_type = {"fp32": 0, "tf32": 0, "fp16": 2, "bf16": 9}[precision]
    math = {"fp32": 3, "tf32": 0, "fp16": 1, "bf16": 1}[precision]
    fake = FakeLibrary()
    call, _, x = make_call(fake, algorithm, dtype, math_type(dtype), bias=bias)
    call(x)
    handle, rnn, mode, lengths, x_like, _, y_like, _, state, *_ = fake.find_calls("cudnnRNNForward")[0]
    assert (fake.alive[handle], mode, lengths) == ([""], 0, None)
    biases = 2 if bias or algorithm != STANDARD else 0
    assert fake.alive[rnn] == ["RNNDescriptor", algorithm, 3, biases, 0, 0, data_type, 0, math, 5, 3, 3, 2, None, 0]
    assert fake.alive[x_like] == ["RNNDataDescriptor", data_type, 1, 4, 2, 5, [4, 4], None]
    assert fake.alive[y_like] == ["RNNDataDescriptor", data_type, 1, 4, 2, 3, [4, 4], None]
    assert fake.alive[state] == ["TensorDescriptor", data_type, 3, [2, 2, 3], [6, 3, 1]]
    assert fake.find_calls("cudnnBuildRNNDynamic") == ([[handle, rnn, 2]] if algorithm == DYNAMIC else [])


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("algorithm", [STANDARD, STATIC])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_are_copied_to_cudnns_layout(precision, algorithm, bias, layers):
    fake = FakeLibrary()
    call, gru, x = make_call(fake, algorithm, PRECISIONS[precision][0], layers=layers, bias=bias)
    with torch.inference_mode():
        theirs = gru(x)
    for ours, expected in zip(call(x), theirs):
        assert ours.shape == expected.shape
        torch.testing.assert_close(ours, expected, rtol=0, atol=compute_error_bound(0, precision))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("algorithm", [STANDARD, STATIC])
def test_two_directions_agree_with_nn_gru(algorithm, layers):
    fake = FakeLibrary()
    call, gru, x = make_call(fake, algorithm, layers=layers, bidirectional=True)
    with torch.inference_mode():
        torch.testing.assert_close(call(x), gru(x))
    _, rnn, _, _, x_like, _, y_like, _, state, *_ = fake.find_calls("cudnnRNNForward")[0]
    assert fake.alive[rnn][4] == 1 and fake.alive[rnn][12] == layers
    assert (fake.alive[x_like][5], fake.alive[y_like][5]) == (5, 6)
    assert fake.alive[state][3:] == [[2 * layers, 2, 3], [6, 3, 1]]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("algorithm", [STANDARD, STATIC])
def test_packed_input_agrees_with_nn_gru(algorithm, bidirectional):
    """The call returns the packed data and the last state of each sequence."""
    fake = FakeLibrary()
    torch.manual_seed(0)
    gru = nn.GRU(5, 3, 2, bidirectional=bidirectional).eval()
    x = pack_padded_sequence(torch.randn(4, 3, 5), [4, 2, 1])
    with torch.inference_mode():
        call = Gru(Handle(Library(fake), lambda: 0), gru, x, algorithm, Math.CUDNN_FMA_MATH)
        output, h_n = call(x.data)
        theirs, their_h_n = gru(x)
    torch.testing.assert_close((output, h_n), (theirs.data, their_h_n))
    _, _, _, _, x_like, _, y_like, *_ = fake.find_calls("cudnnRNNForward")[0]
    assert fake.alive[x_like] == ["RNNDataDescriptor", 0, 1, 4, 3, 5, [4, 2, 1], None]
    assert fake.alive[y_like][5:7] == [3 + 3 * bidirectional, [4, 2, 1]]


def test_provider_passes_the_data_of_packed_input(monkeypatch):
    monkeypatch.setattr(cudnn, "handle_of", lambda device: Handle(Library(FakeLibrary()), lambda: 0))
    gru, x = nn.GRU(5, 3).eval(), pack_padded_sequence(torch.randn(4, 3, 5), [4, 2, 1])
    with torch.inference_mode():
        ready = cudnn.PROVIDERS["cudnn.standard"](gru, x)
        torch.testing.assert_close(ready.call(ready.lay_out(x))[0], gru(x)[0].data)


def test_arguments_of_two_calls_differ_only_in_the_input():
    fake = FakeLibrary()
    call, _, x = make_call(fake, STATIC)
    other_x = x + 1
    results, other_results = call(x), call(other_x)
    assert [result.data_ptr() for result in results] == [result.data_ptr() for result in other_results]
    first_arguments, second_arguments = fake.find_calls("cudnnRNNForward")
    handle, rnn, _, lengths, x_like, x_pointer, y_like, y, state, hx, hy, cell, cx, cy, *spaces = first_arguments
    assert x_pointer == x.data_ptr()
    assert second_arguments == [*first_arguments[:5], other_x.data_ptr(), *first_arguments[6:]]
    assert len({handle, rnn, x_like, y_like, state}) == 5
    assert [y, hy] == [result.data_ptr() for result in results]
    assert [lengths, hx, cell, cx, cy] == [None] * 5
    size, space, work_size, work, reserve_size, reserve = spaces
    (*_, asked_size, asked_space, number, _, _, _, _) = fake.find_calls("cudnnGetRNNWeightParams")[0]
    assert (size, space, number) == (asked_size, asked_space, 0)
    assert (work_size, reserve_size, reserve) == (WORKSPACE + 32, 0, None)
    memory(work, torch.uint8, work_size).fill_(1)


def test_handle_follows_the_stream():
    fake, streams = FakeLibrary(), iter([0, 0, 7, 7, 0])
    handle = Handle(Library(fake), lambda: next(streams))
    for _ in range(5):
        handle.follow()
    assert fake.find_calls("cudnnSetStream") == [[handle.pointer.value, stream] for stream in (None, 7, None)]


def test_descriptors_are_destroyed_with_the_call():
    fake = FakeLibrary()
    call, *_ = make_call(fake, STATIC)
    assert len(fake.alive) > 1
    del call
    gc.collect()
    assert not fake.alive


WITHOUT_STATUS = {"cudnnGetVersion", "cudnnGetErrorString", "cudnnGetLastErrorString"}
DESTROYING = {name for name in PROTOTYPES if name.startswith("cudnnDestroy")}  # called after a failure, too


@pytest.mark.parametrize("name", [name for name in PROTOTYPES if name not in WITHOUT_STATUS | DESTROYING])
def test_failing_function_is_reported_and_undone(name, monkeypatch):
    fake = FakeLibrary(failing=name)
    monkeypatch.setattr(cudnn, "handle_of", lambda device: Handle(Library(fake), lambda: 0))
    with pytest.raises(Unavailable) as error:
        cudnn.PROVIDERS["cudnn.persist_dynamic"](nn.GRU(5, 3), torch.zeros(4, 2, 5))
    assert str(error.value) == f"{name}: CUDNN_STATUS_NOT_SUPPORTED: hiddenSize > 192 at: x"
    del error
    gc.collect()
    assert not fake.alive


@pytest.mark.parametrize("name, falls_back", [("persist_static", True), ("persist_static", False), ("standard", True)])
def test_config_tells_that_the_standard_algorithm_may_run_instead(name, falls_back, monkeypatch):
    fake = FakeLibrary(falls_back=falls_back)
    monkeypatch.setattr(cudnn, "handle_of", lambda device: Handle(Library(fake), lambda: 0))
    ready = cudnn.PROVIDERS[f"cudnn.{name}"](nn.GRU(5, 3), torch.zeros(4, 2, 5))
    assert ("may run that algorithm instead" in ready.config) == (falls_back and name != "standard")


@pytest.mark.parametrize("wrong", [(2, 3, [1, 3, 5], [15, 5, 1]), (0, 3, [1, 5, 3], [15, 3, 1])])
def test_unexpected_weight_descriptors_are_refused(wrong, monkeypatch):
    def describe(self, tensor, max_rank, *results):
        write_description(wrong, *results)

    monkeypatch.setattr(FakeLibrary, "GetTensorNdDescriptor", describe)
    with pytest.raises(CudnnError, match="cudnnGetRNNWeightParams"):
        make_call(FakeLibrary())


@pytest.mark.parametrize("shift", [-4, 2, 1 << 20])
def test_invalid_addresses_of_weights_are_refused(shift, monkeypatch):
    original = FakeLibrary.GetRNNWeightParams

    def return_wrong_address(self, *arguments):
        original(self, *arguments)
        space, matrix_address = arguments[4], arguments[7]
        matrix_address[0] = space + shift  # before the space, between elements, or after the space

    monkeypatch.setattr(FakeLibrary, "GetRNNWeightParams", return_wrong_address)
    with pytest.raises(CudnnError, match="cudnnGetRNNWeightParams"):
        make_call(FakeLibrary())


def test_unsupported_inputs_are_refused():
    handle, gru = Handle(Library(FakeLibrary()), lambda: 0), nn.GRU(5, 3)
    for x in (torch.zeros(4, 2, 5).double(), torch.zeros(2, 4, 5).transpose(0, 1)):
        with pytest.raises(CudnnError, match="contiguous"):
            Gru(handle, gru, x, STANDARD, Math.CUDNN_FMA_MATH)
    with pytest.raises(CudnnError, match=r"must be below 2\*\*31"):
        Gru(handle, gru, torch.zeros(2**31, 2, 0), STANDARD, Math.CUDNN_FMA_MATH)


def test_providers_agree_with_nn_gru(monkeypatch):
    fake = FakeLibrary()
    monkeypatch.setattr(cudnn, "handle_of", lambda device: Handle(Library(fake), lambda: 0))
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    gru, x = nn.GRU(5, 3).eval(), torch.randn(4, 2, 5)
    configs = []
    with torch.inference_mode():
        for prepare in cudnn.PROVIDERS.values():
            ready = prepare(gru, x)
            assert ready.kernel == "cudnn"
            torch.testing.assert_close(ready.call(x), gru(x))
            configs.append(ready.config)
    assert configs == [f"algo={algorithm.name} math=CUDNN_DEFAULT_MATH cudnn=91900" for algorithm in Algorithm]


def test_without_a_gpu_or_cudnn_providers_are_unavailable(monkeypatch):
    with pytest.raises(Unavailable, match="needs a CUDA device, the input is on cpu"):
        cudnn.PROVIDERS["cudnn.standard"](nn.GRU(5, 3), torch.zeros(4, 2, 5))
    monkeypatch.setattr(cudnn, "LIBRARY", "libcudnn.so.0")
    with pytest.raises(CudnnError, match=r"libcudnn\.so\.0 cannot be loaded: "):
        cudnn.handle_of(torch.device("cuda"))


@pytest.fixture
def real() -> ctypes.CDLL:
    """Return the real library of cuDNN."""
    return ctypes.CDLL(cudnn.LIBRARY)


@pytest.mark.gpu
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_cudnn_reads_back_the_rnn_descriptor(real, precision, algorithm, bias):
    dtype, fake, library = set_precision(precision), FakeLibrary(), Library(real)
    make_call(fake, algorithm, dtype, math_type(dtype), bias=bias)
    _, *settings = fake.find_calls("cudnnSetRNNDescriptor_v8")[0]
    rnn, numbers, dropout, flags = c_void_p(), [c_int(-1) for _ in range(12)], c_void_p(), c_uint(9)
    library.call("cudnnCreateRNNDescriptor", byref(rnn))
    try:
        library.call("cudnnSetRNNDescriptor_v8", rnn, *settings)
        assert real.cudnnGetRNNDescriptor_v8(rnn, *map(byref, numbers), byref(dropout), byref(flags)) == 0
        assert [*(number.value for number in numbers), dropout.value, flags.value] == settings
    finally:
        library.call("cudnnDestroyRNNDescriptor", rnn)


@pytest.mark.gpu
def test_error_holds_cudnns_message(real):
    with pytest.raises(CudnnError, match="cudnnGetRNNWeightSpaceSize: CUDNN_STATUS_BAD_PARAM: .*handle"):
        Library(real).call("cudnnGetRNNWeightSpaceSize", None, None, byref(c_size_t()))


@contextlib.contextmanager
def run_on_another_stream():
    """Run the block on a new stream, after the work of the current stream and before its later work."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "layers, bias, bidirectional", [(1, True, False), (2, True, False), (1, False, False), (2, True, True)]
)
@pytest.mark.parametrize("hidden, batch", [(64, 1), (128, 8), (512, 4), (1024, 16)])
@pytest.mark.parametrize("name", cudnn.PROVIDERS)
@pytest.mark.parametrize("precision", PRECISIONS)
@torch.inference_mode()
def test_providers_are_right_eagerly_and_in_a_graph(precision, name, hidden, batch, layers, bias, bidirectional):
    """Exception: cuDNN may refuse a case with any algorithm other than the standard one."""
    torch.manual_seed(0)
    dtype = set_precision(precision)
    gru = nn.GRU(hidden, hidden, layers, bias=bias, bidirectional=bidirectional, device="cuda", dtype=dtype).eval()
    x, other_x = torch.randn(2, 40, batch, hidden, device="cuda").to(gru.weight_hh_l0.dtype)
    reason = ""
    try:
        call = cudnn.PROVIDERS[name](gru, x).call
    except Unavailable as error:
        reason = str(error)
    if reason:  # cuDNN's message, after the name of the function that failed
        assert name != "cudnn.standard"
        assert reason.startswith("cudnn")
        return

    def check(results, x):
        for ours, theirs, expected in zip(results, gru(x), compute_exact(gru, x, None)):
            allowed = PEERS_SLACK * compute_error_bound((theirs.double() - expected).abs().max().item(), precision)
            assert (ours.double() - expected).abs().max().item() <= allowed

    check(call(x), x)
    check(call(other_x), other_x)
    with run_on_another_stream():
        results = call(x)
    check(results, x)
    with run_on_another_stream():
        call(other_x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call(other_x)
    for _ in range(2):
        for result in results:
            result.fill_(float("nan"))
        graph.replay()
        check(results, other_x)
    check(call(x), x)
