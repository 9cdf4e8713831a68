"""Lengths, packed input, resets and two directions on a GPU. Threads, streams, devices, autocast and Inductor."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import triton_gru
from triton_gru.call import sequences
from triton_gru.plan.device import find_device
from triton_gru.plan.heuristic import HEURISTICS
from triton_gru.plan.planner import KERNELS

from .calls import make_gru, run_checked
from .oracle import PRECISIONS, assert_accurate
from .test_gpu import EACH_KERNEL, no_synchronisation

pytestmark = pytest.mark.gpu

KINDS = (
    "packed", "lengths", "resets", "bidirectional", "bidirectional lengths", "reset before", "reset before, lengths",
    "reset before, resets", "reset before, bidirectional", "reset before, packed", "reverse", "reverse lengths",
)  # fmt: skip


def make_call(kind, kernel, hidden, precision="fp16", steps=64, batch=20, layers=2):
    """Return a GRU of this kind, an input, hx, and the arguments ``lengths`` or ``resets``."""
    options = {"reset_after": "reset before" not in kind, "reverse": "reverse" in kind}
    gru = make_gru(
        64, hidden, precision, "cuda", kernel, num_layers=layers, bidirectional="bidirectional" in kind, **options
    )
    dtype = gru.weight_hh_l0.dtype
    x = torch.randn(steps, batch, 64, device="cuda").to(dtype)
    hx = torch.randn(layers * (1 + gru.bidirectional), batch, hidden, device="cuda").to(dtype)
    lengths = torch.randint(1, steps + 1, (batch,))
    lengths[3] = steps  # the longest sequence has all steps
    sequence_options = {}
    if "lengths" in kind:
        sequence_options["lengths"] = lengths.cuda()
    if "resets" in kind:
        sequence_options["resets"] = torch.rand(steps, batch, device="cuda") < 0.1
    if "packed" in kind:
        x = pack_padded_sequence(x, lengths, enforce_sorted=False)
    return gru, x, hx, sequence_options


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "packed" not in kind])
@pytest.mark.parametrize(
    "kernel, hidden, batch",
    [("block", 100, 40), ("block", 128, 9), ("grid", 256, 4), ("grid", 600, 40), ("grid", 1024, 64), ("step", 600, 40)],
)
def test_full_sizes(kind, kernel, hidden, batch, precision, launched):
    gru, x, hx, sequence_options = make_call(kind, kernel, hidden, precision, 100, batch, layers=1)
    config = HEURISTICS[kernel](hidden, batch, 1 + gru.bidirectional, *PRECISIONS[precision], find_device(x.device))
    if isinstance(config, str):  # the largest sizes, on smaller GPUs
        with pytest.raises(RuntimeError, match="too large"):
            gru(x, hx, **sequence_options)
        return
    run_checked(gru, x, hx, precision, launched, **sequence_options)
    triton_gru.raise_if_hung()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
@EACH_KERNEL
def test_packed_full_sizes(kernel, hidden, precision, bidirectional, launched):
    gru = make_gru(64, hidden, precision, "cuda", kernel, num_layers=2, bidirectional=bidirectional)
    lengths = torch.randint(1, 101, (33,))
    packed = pack_padded_sequence(torch.randn(100, 33, 64), lengths, enforce_sorted=False)
    packed = packed.to("cuda", gru.weight_hh_l0.dtype)
    double = nn.GRU(64, hidden, 2, bidirectional=bidirectional, dtype=torch.float64).eval()
    double.load_state_dict(gru.state_dict())
    with torch.no_grad():
        actual, h_n = gru(packed)
        theirs, their_h_n = nn.GRU.forward(gru, packed)
        expected, expected_h_n = double(packed.cpu().to(torch.float64))
    assert launched.has_only(kernel)
    assert_accurate(actual.data, theirs.data, expected.data, precision)
    assert_accurate(h_n, their_h_n, expected_h_n, precision)


@EACH_KERNEL
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_synchronises(kind, kernel, hidden, launched):
    gru, x, hx, sequence_options = make_call(kind, kernel, hidden)
    with torch.no_grad():
        gru(x, hx, **sequence_options)
        with no_synchronisation():
            gru(x, hx, **sequence_options)
    if "lengths" in kind:
        on_cpu = sequence_options["lengths"].cpu()
        with torch.no_grad(), no_synchronisation():
            gru(x, hx, lengths=on_cpu)
    assert launched.has_only(kernel)


@EACH_KERNEL
@pytest.mark.parametrize("kind", KINDS)
def test_graph_replays_see_new_inputs(kind, kernel, hidden):
    gru, x, hx, sequence_options = make_call(kind, kernel, hidden)
    data = x.data if "packed" in kind else x
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            gru(x, hx, **sequence_options)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output, h_n = gru(x, hx, **sequence_options)
        for _ in range(10):
            data.copy_(torch.randn_like(data))
            for tensor in sequence_options.values():  # other lengths, other resets
                tensor.copy_(tensor[torch.randperm(len(tensor), device="cuda")])
            # The host keeps packed layouts for later captures. A replay must not need them.
            sequences._recent_tables.clear()
            graph.replay()
            expected, expected_h_n = gru(x, hx, **sequence_options)
            if "packed" in kind:
                assert torch.equal(output.data, expected.data)
            else:
                assert torch.equal(output, expected)
            assert torch.equal(h_n, expected_h_n)
    triton_gru.raise_if_hung()


def test_capture_refuses_calls_that_it_cannot_record():
    gru, x, hx, _ = make_call("packed", "grid", 512)
    padded = torch.randn(64, 20, 64, device="cuda").half()
    with torch.no_grad():
        gru(padded, hx)  # compiled, but with other sequences
        for call, sequence_options, message in (
            (x, {}, "make a call with the same batch_sizes"),
            (padded, {"lengths": torch.full((20,), 3)}, "lengths must be on cuda"),
        ):
            with pytest.raises(RuntimeError, match=message), torch.cuda.graph(torch.cuda.CUDAGraph()):
                gru(call, hx, **sequence_options)


@EACH_KERNEL
def test_two_threads_at_once(kernel, hidden):
    """The threads call one module, each on its own stream."""
    gru, x, hx, _ = make_call("bidirectional", kernel, hidden)
    packed = pack_padded_sequence(x, torch.randint(1, 65, (20,)), enforce_sorted=False)
    with torch.no_grad():
        expected = gru(x, hx)[0], gru(packed, hx)[0].data
    torch.cuda.synchronize()
    differs = []

    def call_on_a_new_stream(call, expected_output):
        """Call the module twenty times on a new stream. Note whether each output differs from the expected."""
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                output = gru(call, hx)[0]
                output = output if torch.is_tensor(output) else output.data
                torch.cuda.current_stream().synchronize()
                differs.append(not torch.equal(output, expected_output))

    threads = [
        threading.Thread(target=call_on_a_new_stream, args=arguments) for arguments in zip((x, packed), expected)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert differs == [False] * 40
    triton_gru.raise_if_hung()


@EACH_KERNEL
def test_other_stream_than_the_default(kernel, hidden):
    """Kernels run on the current stream, after the work that was queued before them."""
    gru, x, hx, _ = make_call("bidirectional", kernel, hidden)
    with torch.no_grad():
        expected = gru(x, hx)[0]
        late_input = torch.empty_like(x)
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(50_000_000)
            late_input.copy_(x)
            output = gru(late_input, hx)[0]
            torch.cuda.current_stream().synchronize()
    assert torch.equal(output, expected)


@EACH_KERNEL
def test_second_device(kernel, hidden):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    gru, x, hx, _ = make_call("bidirectional", kernel, hidden)
    with torch.no_grad():
        expected = gru(x, hx)[0]
        moved_gru = gru.to("cuda:1")
        with torch.cuda.device(0):
            actual = moved_gru(x.to("cuda:1"), hx.to("cuda:1"))[0]
    assert actual.device.index == 1
    torch.testing.assert_close(actual.cpu(), expected.cpu(), rtol=0, atol=4e-3)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("cell", [False, True])
def test_autocast_agrees_with_torch(cell, precision, launched):
    nn_class, ours = (nn.GRUCell, triton_gru.GRUCell) if cell else (nn.GRU, triton_gru.GRU)
    theirs = nn_class(40, 64, device="cuda").eval()
    ours = ours(40, 64, device="cuda").eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(*((9,) if cell else (30, 9)), 40, device="cuda")
    dtype = PRECISIONS[precision][0]
    with torch.autocast("cuda", dtype), torch.no_grad():
        assert ours.plan(x).kernel in KERNELS
        expected, actual = theirs(x), ours(x)
    assert launched
    with torch.no_grad():
        exact = copy.deepcopy(theirs).double()(x.double())
    for our_result, their_result, exact_result in zip(
        *((result,) if cell else result for result in (actual, expected, exact))
    ):
        assert our_result.dtype == dtype
        assert their_result.dtype == dtype or not cell  # cuDNN's GRU ignores autocast's dtype: float16 (torch 2.11)
        assert_accurate(our_result, their_result, exact_result.cpu(), precision)


@pytest.mark.parametrize("kernel", ["block", "grid", "step"])
def test_compiled_by_inductor(kernel):
    """Inductor compiles the code around the operator, with lengths, for any T and B."""
    gru, _, _, _ = make_call("bidirectional", kernel, 100, "fp32")
    compiled = torch.compile(gru, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for steps, batch in ((30, 4), (50, 7)):
            x, lengths = torch.randn(steps, batch, 64, device="cuda"), torch.randint(0, steps, (batch,), device="cuda")
            for actual, expected in zip(compiled(x, None, lengths), gru(x, None, lengths)):
                assert torch.equal(actual, expected)


def test_packed_input_needs_no_padded_copy():
    """The memory of a call besides its results does not grow with the longest sequence."""
    gru = make_gru(64, 512, "fp16", "cuda", "grid")
    lengths = torch.tensor([100_000] + [1] * 63)
    packed = pack_padded_sequence(torch.randn(1, 64, 64).expand(100_000, 64, 64), lengths).to("cuda", torch.float16)
    with torch.no_grad():
        gru(packed)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        bytes_before = torch.cuda.memory_allocated()
        output, _ = gru(packed)
        torch.cuda.synchronize()
        extra_bytes = torch.cuda.max_memory_allocated() - bytes_before - output.data.nbytes
    assert extra_bytes < triton_gru.launch.execute.WORKSPACE_BYTES + triton_gru.launch.grid.MAILBOX_BYTES + (8 << 20)
