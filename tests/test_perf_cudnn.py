"""cuDNN through ctypes: what reaches the library, told by one that is none; and, on a GPU, what it computes."""

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
WORKSPACE = 96  # bytes of the standard algorithm's
STANDARD, STATIC, DYNAMIC, SMALL_H = Algorithm
DTYPES = {number: dtype for dtype, number in cudnn.DATA_TYPES.items()}


def memory(address: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """What lies there: cuDNN's pointers point to the CPU's memory here."""
    size = dtype.itemsize * torch.Size(shape).numel()
    return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=dtype).view(shape)


def tell(description, dtype, rank, sizes, strides):
    """Writes a tensor descriptor's contents to C pointers."""
    dtype[0], rank[0], *lists = description
    for pointer, values in zip((sizes, strides), lists):
        for i, value in enumerate(values):
            pointer[i] = value


class Fake:
    """Functions of cuDNN's names and prototypes, called as C functions are, that record their calls.

    It knows what its descriptors were set to, lays weights out in an order of its own and computes GRUs by the
    formulas and gate numbers in cuDNN's documentation.
    """

    def __init__(self, refuse: str = "", falls_back: bool = False):
        self.calls, self.alive, self.refuse, self.falls_back = [], {}, refuse, falls_back
        self.addresses = itertools.count(0x1000, 0x10)
        for name, (result, arguments) in PROTOTYPES.items():
            if name != "cudnnGetErrorString":
                setattr(self, name, CFUNCTYPE(result, *arguments)(self._recording(name)))
        # A string that Python gave to C would leak.
        self.cudnnGetErrorString = lambda status: {NOT_SUPPORTED: b"CUDNN_STATUS_NOT_SUPPORTED"}[status]

    def _recording(self, name: str):
        def function(*arguments):
            self.calls.append((name, *arguments))
            if name == self.refuse:
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

    def named(self, name: str) -> list[tuple]:
        return [arguments for called, *arguments in self.calls if called == name]

    def GetVersion(self):
        return 91900

    def GetLastErrorString(self, text, size):
        ctypes.memmove(text, b"hiddenSize > 192\n at: x\0", 24)

    def SetTensorNdDescriptor(self, tensor, dtype, rank, sizes, strides):
        self.alive[tensor][1:] = dtype, rank, sizes[:rank], strides[:rank]

    def GetTensorNdDescriptor(self, tensor, most, dtype, rank, sizes, strides):
        tell(self.alive[tensor][1:], dtype, rank, sizes, strides)

    def SetRNNDataDescriptor(self, data, dtype, layout, steps, batch, width, lengths, fill):
        self.alive[data][1:] = dtype, layout, steps, batch, width, lengths[:batch], fill

    def SetRNNDescriptor_v8(self, rnn, *settings):
        self.alive[rnn][1:] = settings

    def GetRNNTempSpaceSizes(self, handle, rnn, mode, x_like, work, reserve):
        assert self.alive[x_like][0] == "RNNDataDescriptor"
        work[0] = WORKSPACE + 32 * (self.alive[rnn][1] != STANDARD and not self.falls_back)

    def _weights(self, rnn):
        """{(layer, number): elements to the matrix, rows, columns, elements to the bias or None}, elements in all."""
        biases, ways, inputs, hidden, layers = (self.alive[rnn][i] for i in (3, 4, 9, 10, 12))
        where, at = {}, 0
        for layer, number in reversed([*itertools.product(range(layers * (1 + ways)), range(6))]):
            of_input = inputs if layer < 1 + ways else hidden * (1 + ways)
            columns = of_input if number < 3 else hidden
            where[layer, number] = at, hidden, columns, at + hidden * columns if biases else None
            at += hidden * (columns + 1) + 7
        return where, at

    def GetRNNWeightSpaceSize(self, handle, rnn, size):
        size[0] = self._weights(rnn)[1] * DTYPES[self.alive[rnn][6]].itemsize

    def GetRNNWeightParams(self, handle, rnn, layer, size, space, number, matrix, matrix_at, bias, bias_at):
        dtype = self.alive[rnn][6]
        where, total = self._weights(rnn)
        assert size == total * DTYPES[dtype].itemsize
        at, rows, columns, to_bias = where[layer, number]
        matrix_at[0] = space + at * DTYPES[dtype].itemsize
        self.alive[matrix][1:] = dtype, 3, [1, rows, columns], [rows * columns, columns, 1]
        bias_at[0] = None if to_bias is None else space + to_bias * DTYPES[dtype].itemsize
        self.alive[bias][1:] = (0, 0, [0] * 3, [0] * 3) if to_bias is None else (dtype, 3, [1, rows, 1], [rows, 1, 1])

    def RNNForward(
        self, handle, rnn, mode, lengths, x_like, x, y_like, y, state, hx, hy, cell, cx, cy, size, space,
        work_size, work, reserve_size, reserve,
    ):  # fmt: skip
        dtype, _, steps, batch, inputs, *_ = self.alive[x_like][1:]
        kind, (where, total) = DTYPES[dtype], self._weights(rnn)
        weights = memory(space, kind, total)
        last = memory(hy, kind, *self.alive[state][3])
        lengths = torch.tensor(self.alive[x_like][6])
        there = torch.arange(steps).unsqueeze(1) < lengths  # of packed data, in its order
        outputs = torch.zeros(steps, batch, inputs)
        outputs[there] = memory(x, kind, int(there.sum()), inputs).float()
        ways = 1 + self.alive[rnn][4]
        for layer in range(len(last)):
            way = layer % ways
            if not way:
                below, of_layer = outputs, []
            h, outputs = torch.zeros(last[0].shape), []
            for step, goes_on in zip(below.flip(0), there.flip(0)) if way else zip(below, there):
                of = []
                for number, source in enumerate([step] * 3 + [h] * 3):
                    at, rows, columns, to_bias = where[layer, number]
                    bias = 0 if to_bias is None else weights[to_bias:][:rows].float()
                    of.append(source @ weights[at:][: rows * columns].view(rows, columns).float().t() + bias)
                reset, update = torch.sigmoid(of[0] + of[3]), torch.sigmoid(of[1] + of[4])
                new = (1 - update) * torch.tanh(of[2] + reset * of[5]) + update * h
                h = torch.where(goes_on.unsqueeze(1), new, h)
                outputs.append(h)
            last[layer] = h
            of_layer.append(torch.stack(outputs[::-1] if way else outputs))
            outputs = torch.cat(of_layer, dim=2)
        memory(y, kind, int(there.sum()), outputs.size(2)).copy_(outputs[there])


def made(fake: Fake, algorithm=STANDARD, dtype=torch.float32, math=Math.CUDNN_FMA_MATH, layers=2, **more):
    """A Gru of 5 inputs and 3 hidden units on the fake, the module and an input [4, 2, 5]."""
    torch.manual_seed(0)
    gru = nn.GRU(5, 3, layers, dtype=dtype, **more).eval()
    x = torch.randn(4, 2, 5).to(dtype)
    with torch.inference_mode():
        return Gru(Handle(Library(fake), lambda: 0), gru, x, algorithm, math), gru, x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_descriptors(precision, algorithm, bias):
    dtype = set_precision(precision)
    number = {"fp32": 0, "tf32": 0, "fp16": 2, "bf16": 9}[precision]
    math = {"fp32": 3, "tf32": 0, "fp16": 1, "bf16": 1}[precision]
    fake = Fake()
    call, _, x = made(fake, algorithm, dtype, math_type(dtype), bias=bias)
    call(x)
    handle, rnn, mode, lengths, x_like, _, y_like, _, state, *_ = fake.named("cudnnRNNForward")[0]
    assert (fake.alive[handle], mode, lengths) == ([""], 0, None)
    biases = 2 if bias or algorithm != STANDARD else 0
    assert fake.alive[rnn] == ["RNNDescriptor", algorithm, 3, biases, 0, 0, number, 0, math, 5, 3, 3, 2, None, 0]
    assert fake.alive[x_like] == ["RNNDataDescriptor", number, 1, 4, 2, 5, [4, 4], None]
    assert fake.alive[y_like] == ["RNNDataDescriptor", number, 1, 4, 2, 3, [4, 4], None]
    assert fake.alive[state] == ["TensorDescriptor", number, 3, [2, 2, 3], [6, 3, 1]]
    assert fake.named("cudnnBuildRNNDynamic") == ([[handle, rnn, 2]] if algorithm == DYNAMIC else [])


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("algorithm", [STANDARD, STATIC])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_lie_where_cudnn_wants_them(precision, algorithm, bias, layers):
    fake = Fake()
    call, gru, x = made(fake, algorithm, PRECISIONS[precision][0], layers=layers, bias=bias)
    with torch.inference_mode():
        theirs = gru(x)
    for ours, expected in zip(call(x), theirs):
        assert ours.shape == expected.shape
        torch.testing.assert_close(ours, expected, rtol=0, atol=compute_error_bound(0, precision))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("algorithm", [STANDARD, STATIC])
def test_two_directions(algorithm, layers):
    fake = Fake()
    call, gru, x = made(fake, algorithm, layers=layers, bidirectional=True)
    with torch.inference_mode():
        torch.testing.assert_close(call(x), gru(x))
    _, rnn, _, _, x_like, _, y_like, _, state, *_ = fake.named("cudnnRNNForward")[0]
    assert fake.alive[rnn][4] == 1 and fake.alive[rnn][12] == layers
    assert (fake.alive[x_like][5], fake.alive[y_like][5]) == (5, 6)
    assert fake.alive[state][3:] == [[2 * layers, 2, 3], [6, 3, 1]]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("algorithm", [STANDARD, STATIC])
def test_packed_input(algorithm, bidirectional):
    """What comes back is the packed data, and the last state of each sequence."""
    fake = Fake()
    torch.manual_seed(0)
    gru = nn.GRU(5, 3, 2, bidirectional=bidirectional).eval()
    x = pack_padded_sequence(torch.randn(4, 3, 5), [4, 2, 1])
    with torch.inference_mode():
        call = Gru(Handle(Library(fake), lambda: 0), gru, x, algorithm, Math.CUDNN_FMA_MATH)
        output, h_n = call(x.data)
        theirs, their_h_n = gru(x)
    torch.testing.assert_close((output, h_n), (theirs.data, their_h_n))
    _, _, _, _, x_like, _, y_like, *_ = fake.named("cudnnRNNForward")[0]
    assert fake.alive[x_like] == ["RNNDataDescriptor", 0, 1, 4, 3, 5, [4, 2, 1], None]
    assert fake.alive[y_like][5:7] == [3 + 3 * bidirectional, [4, 2, 1]]


def test_a_provider_hands_on_the_data_of_packed_input(monkeypatch):
    monkeypatch.setattr(cudnn, "handle_of", lambda device: Handle(Library(Fake()), lambda: 0))
    gru, x = nn.GRU(5, 3).eval(), pack_padded_sequence(torch.randn(4, 3, 5), [4, 2, 1])
    with torch.inference_mode():
        ready = cudnn.PROVIDERS["cudnn.standard"](gru, x)
        torch.testing.assert_close(ready.call(ready.lay_out(x))[0], gru(x)[0].data)


def test_a_call_s_arguments():
    fake = Fake()
    call, _, x = made(fake, STATIC)
    another = x + 1
    first = call(x)
    then = call(another)
    assert [each.data_ptr() for each in first] == [each.data_ptr() for each in then]
    of_first, of_then = fake.named("cudnnRNNForward")
    handle, rnn, _, lengths, x_like, at, y_like, y, state, hx, hy, cell, cx, cy, *spaces = of_first
    assert at == x.data_ptr()
    assert of_then == [*of_first[:5], another.data_ptr(), *of_first[6:]]
    assert len({handle, rnn, x_like, y_like, state}) == 5
    assert [y, hy] == [each.data_ptr() for each in first]
    assert [lengths, hx, cell, cx, cy] == [None] * 5
    size, space, work_size, work, reserve_size, reserve = spaces
    (*_, asked_size, asked_space, number, _, _, _, _) = fake.named("cudnnGetRNNWeightParams")[0]
    assert (size, space, number) == (asked_size, asked_space, 0)
    assert (work_size, reserve_size, reserve) == (WORKSPACE + 32, 0, None)
    memory(work, torch.uint8, work_size).fill_(1)


def test_the_handle_follows_the_stream():
    fake, streams = Fake(), iter([0, 0, 7, 7, 0])
    handle = Handle(Library(fake), lambda: next(streams))
    for _ in range(5):
        handle.follow()
    assert fake.named("cudnnSetStream") == [[handle.pointer.value, stream] for stream in (None, 7, None)]


def test_nothing_is_left_behind():
    fake = Fake()
    call, *_ = made(fake, STATIC)
    assert len(fake.alive) > 1
    del call
    gc.collect()
    assert not fake.alive


QUIET = {"cudnnGetVersion", "cudnnGetErrorString", "cudnnGetLastErrorString"}
LAST = {name for name in PROTOTYPES if name.startswith("cudnnDestroy")}


@pytest.mark.parametrize("name", [name for name in PROTOTYPES if name not in QUIET | LAST])
def test_a_refusal_is_reported_and_undone(name, monkeypatch):
    fake = Fake(refuse=name)
    monkeypatch.setattr(cudnn, "handle_of", lambda device: Handle(Library(fake), lambda: 0))
    with pytest.raises(Unavailable) as refusal:
        cudnn.PROVIDERS["cudnn.persist_dynamic"](nn.GRU(5, 3), torch.zeros(4, 2, 5))
    assert str(refusal.value) == f"{name}: CUDNN_STATUS_NOT_SUPPORTED: hiddenSize > 192 at: x"
    del refusal
    gc.collect()
    assert not fake.alive


@pytest.mark.parametrize("name, falls_back", [("persist_static", True), ("persist_static", False), ("standard", True)])
def test_the_standard_algorithm_in_place_of_another_is_told(name, falls_back, monkeypatch):
    fake = Fake(falls_back=falls_back)
    monkeypatch.setattr(cudnn, "handle_of", lambda device: Handle(Library(fake), lambda: 0))
    ready = cudnn.PROVIDERS[f"cudnn.{name}"](nn.GRU(5, 3), torch.zeros(4, 2, 5))
    assert ("may run in its place" in ready.config) == (falls_back and name != "standard")


@pytest.mark.parametrize("wrong", [(2, 3, [1, 3, 5], [15, 5, 1]), (0, 3, [1, 5, 3], [15, 3, 1])])
def test_weights_described_as_other_than_torch_s_are_refused(wrong, monkeypatch):
    def describe(self, tensor, most, *results):
        tell(wrong, *results)

    monkeypatch.setattr(Fake, "GetTensorNdDescriptor", describe)
    with pytest.raises(CudnnError, match="cudnnGetRNNWeightParams"):
        made(Fake())


@pytest.mark.parametrize("shift", [-4, 2, 1 << 20])
def test_weights_outside_of_the_weight_space_are_refused(shift, monkeypatch):
    inside = Fake.GetRNNWeightParams

    def outside(self, *arguments):
        inside(self, *arguments)
        arguments[7][0] = arguments[4] + shift

    monkeypatch.setattr(Fake, "GetRNNWeightParams", outside)
    with pytest.raises(CudnnError, match="cudnnGetRNNWeightParams"):
        made(Fake())


def test_inputs_that_cudnn_does_not_take_are_refused():
    handle, gru = Handle(Library(Fake()), lambda: 0), nn.GRU(5, 3)
    for x in (torch.zeros(4, 2, 5).double(), torch.zeros(2, 4, 5).transpose(0, 1)):
        with pytest.raises(CudnnError, match="contiguous"):
            Gru(handle, gru, x, STANDARD, Math.CUDNN_FMA_MATH)
    with pytest.raises(CudnnError, match="32 bits"):
        Gru(handle, gru, torch.zeros(2**31, 2, 0), STANDARD, Math.CUDNN_FMA_MATH)


def test_providers(monkeypatch):
    fake = Fake()
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


def test_without_cudnn(monkeypatch):
    with pytest.raises(Unavailable, match="needs a CUDA device, the input is on cpu"):
        cudnn.PROVIDERS["cudnn.standard"](nn.GRU(5, 3), torch.zeros(4, 2, 5))
    monkeypatch.setattr(cudnn, "LIBRARY", "libcudnn.so.0")
    with pytest.raises(CudnnError, match=r"libcudnn\.so\.0 cannot be loaded: "):
        cudnn.handle_of(torch.device("cuda"))


@pytest.fixture
def real() -> ctypes.CDLL:
    return ctypes.CDLL(cudnn.LIBRARY)


@pytest.mark.gpu
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_cudnn_takes_the_descriptor_and_reads_it_the_same(real, precision, algorithm, bias):
    dtype, fake, library = set_precision(precision), Fake(), Library(real)
    made(fake, algorithm, dtype, math_type(dtype), bias=bias)
    _, *settings = fake.named("cudnnSetRNNDescriptor_v8")[0]
    rnn, numbers, dropout, flags = c_void_p(), [c_int(-1) for _ in range(12)], c_void_p(), c_uint(9)
    library.call("cudnnCreateRNNDescriptor", byref(rnn))
    try:
        library.call("cudnnSetRNNDescriptor_v8", rnn, *settings)
        assert real.cudnnGetRNNDescriptor_v8(rnn, *map(byref, numbers), byref(dropout), byref(flags)) == 0
        assert [*(each.value for each in numbers), dropout.value, flags.value] == settings
    finally:
        library.call("cudnnDestroyRNNDescriptor", rnn)


@pytest.mark.gpu
def test_cudnn_says_why_in_its_own_words(real):
    with pytest.raises(CudnnError, match="cudnnGetRNNWeightSpaceSize: CUDNN_STATUS_BAD_PARAM: .*handle"):
        Library(real).call("cudnnGetRNNWeightSpaceSize", None, None, byref(c_size_t()))


@contextlib.contextmanager
def on_another_stream():
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


@pytest.mark.gpu
@pytest.mark.parametrize("layers, bias, both", [(1, True, False), (2, True, False), (1, False, False), (2, True, True)])
@pytest.mark.parametrize("hidden, batch", [(64, 1), (128, 8), (512, 4), (1024, 16)])
@pytest.mark.parametrize("name", cudnn.PROVIDERS)
@pytest.mark.parametrize("precision", PRECISIONS)
@torch.inference_mode()
def test_it_computes_the_gru_eagerly_and_in_a_graph(precision, name, hidden, batch, layers, bias, both):
    torch.manual_seed(0)
    dtype = set_precision(precision)
    gru = nn.GRU(hidden, hidden, layers, bias=bias, bidirectional=both, device="cuda", dtype=dtype).eval()
    x, another = torch.randn(2, 40, batch, hidden, device="cuda").to(gru.weight_hh_l0.dtype)
    refusal = ""
    try:
        call = cudnn.PROVIDERS[name](gru, x).call
    except Unavailable as why:
        refusal = str(why)
    if refusal:  # in cuDNN's own words, which begin with the function that refused
        assert name != "cudnn.standard"
        assert refusal.startswith("cudnn")
        return

    def check(results, x):
        for ours, theirs, expected in zip(results, gru(x), compute_exact(gru, x, None)):
            allowed = PEERS_SLACK * compute_error_bound((theirs.double() - expected).abs().max().item(), precision)
            assert (ours.double() - expected).abs().max().item() <= allowed

    check(call(x), x)
    check(call(another), another)
    with on_another_stream():
        results = call(x)
    check(results, x)
    with on_another_stream():
        call(another)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call(another)
    for _ in range(2):
        for each in results:
            each.fill_(float("nan"))
        graph.replay()
        check(results, another)
    check(call(x), x)
