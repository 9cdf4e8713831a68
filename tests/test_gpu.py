"""Full sizes, 64-bit offsets, streams, graphs, memory and synchronisation, on a GPU."""

import contextlib
import dataclasses

import pytest
import torch

import triton_gru
from triton_gru.launch import call_cache, execute, grid
from triton_gru.plan import device as devices
from triton_gru.plan.device import find_device
from triton_gru.plan.heuristic import HEURISTICS, block_config

from .calls import make_gru, run_checked, use_config
from .oracle import PRECISIONS

pytestmark = pytest.mark.gpu


@contextlib.contextmanager
def no_synchronisation():
    """Make torch raise at each call that waits for the GPU, inside the context."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("hidden", [32, 64, 128, 192])
@pytest.mark.parametrize("batch", [64, 2500])
@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
def test_full_sizes(precision, hidden, batch, reset_after, launched):
    gru = make_gru(hidden, hidden, precision, "cuda", reset_after=reset_after)
    x = torch.randn(128, batch, hidden, device="cuda").to(gru.weight_hh_l0.dtype)
    if isinstance(block_config(hidden, batch, 1, *PRECISIONS[precision], find_device(x.device)), str):
        gru.backend = "auto"  # too large for block. tests/compiled asserts the largest sizes
        assert gru.plan(x).kernel != "block"
        return
    run_checked(gru, x, None, precision, launched)


def test_offsets_beyond_32_bits():
    """In outputs of 2.1e9 elements, the first, a middle and the last row agree with calls of this row alone."""
    torch.manual_seed(0)
    gru = make_gru(2, 128, "fp16", "cuda", batch_first=True)
    x = torch.randn(2050, 8192, 2, device="cuda").half()
    with torch.no_grad():
        output, h_n = gru(x)
        assert output.numel() > 2**31
        for row in (0, 1023, 2049):
            row_output, row_h_n = gru(x[row : row + 1].repeat(8, 1, 1))
            torch.testing.assert_close(output[row], row_output[0], rtol=0, atol=8e-3)
            torch.testing.assert_close(h_n[:, row], row_h_n[:, 0], rtol=0, atol=8e-3)


EACH_KERNEL = pytest.mark.parametrize("kernel, hidden", [("block", 64), ("grid", 512), ("step", 512)])


@EACH_KERNEL
def test_memory_is_bounded_and_released(kernel, hidden):
    gru = make_gru(64, hidden, "fp16", "cuda", kernel, num_layers=3)
    x = torch.randn(5_000 if kernel == "step" else 20_000, 64, 64, device="cuda").half()
    with torch.no_grad():
        gru(x[:10])
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        bytes_before = torch.cuda.memory_allocated()
        output, h_n = gru(x)
        torch.cuda.synchronize()
        result_bytes = torch.cuda.memory_allocated() - bytes_before
        extra_bytes = torch.cuda.max_memory_allocated() - bytes_before - result_bytes
    slack = 4 << 20  # the allocator's rounding
    assert result_bytes <= output.nbytes + h_n.nbytes + slack
    mailbox = grid.MAILBOX_BYTES if kernel == "grid" else 0
    assert extra_bytes <= execute.WORKSPACE_BYTES + mailbox + slack


@EACH_KERNEL
def test_nothing_synchronises(kernel, hidden, launched):
    gru = make_gru(64, hidden, "fp16", "cuda", kernel, num_layers=2)
    x = torch.randn(50, 4, 64, device="cuda").half()
    gru(x)
    with no_synchronisation():
        gru(x)
        gru(x, torch.zeros(2, 4, hidden, device="cuda").half())
    assert launched.count("input_projection") == 6  # three calls of two layers


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kernel, hidden, steps", [("block", 96, 64), ("grid", 400, 64), ("step", 96, 1)])
@pytest.mark.parametrize("warm_up", [1, 2, 3], ids=["recorded in the capture", "prepared before", "used before"])
def test_graph_replays_see_new_inputs(precision, kernel, hidden, steps, warm_up):
    gru = make_gru(48, hidden, precision, "cuda", kernel, num_layers=2)
    x = torch.randn(steps, 9, 48, device="cuda").to(gru.weight_hh_l0.dtype)
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(warm_up):
                gru(x)
        assert (call_cache.find_route(gru, x, None) is not None) == (warm_up > 1)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output, h_n = gru(x)
        for _ in range(20):
            x.copy_(torch.randn_like(x))
            graph.replay()
            expected, expected_h_n = gru(x)
            assert torch.equal(output, expected)
            assert torch.equal(h_n, expected_h_n)


@pytest.mark.parametrize(
    "kernel, hidden, batch, steps",
    [("block", 128, 32, 256), ("grid", 512, 4, 200), ("grid", 1024, 32, 200), ("grid", 2048, 8, 200)],
)
def test_two_streams_at_once(kernel, hidden, batch, steps):
    """Two ``grid`` launches that together exceed the chip run one after the other, and neither hangs."""
    gru = make_gru(64, hidden, "fp16", "cuda", kernel)
    inputs = [torch.randn(steps, batch, 64, device="cuda").half() for _ in range(2)]
    if isinstance(HEURISTICS[kernel](hidden, batch, 1, torch.float16, "ieee", find_device(inputs[0].device)), str):
        pytest.skip("this GPU is too small for this configuration")
    with torch.no_grad():
        expected = [gru(x)[0] for x in inputs]
        streams = [torch.cuda.Stream() for _ in inputs]
        torch.cuda.synchronize()
        for _ in range(20):
            results = []
            for stream, x in zip(streams, inputs):
                with torch.cuda.stream(stream):
                    results.append(gru(x)[0])
            torch.cuda.synchronize()
            assert all(torch.equal(result, output) for result, output in zip(results, expected))
    triton_gru.raise_if_hung()


def test_wider_batch_tile_gives_the_same_results(launched):
    gru = make_gru(16, 32, "bf16", "cuda")
    x = torch.randn(20, 20_000, 16, device="cuda").bfloat16()
    narrow = block_config(32, 8, 1, torch.bfloat16, "ieee", find_device(x.device))
    assert narrow.batch == 8
    with use_config("block", dataclasses.replace(narrow, batch=16, ahead=1)):
        wide, _ = run_checked(gru, x, None, "bf16", launched)
    torch.testing.assert_close(wide[:, :8], gru(x[:, :8])[0], rtol=0, atol=2e-2)


def test_reduce_overhead(launched):
    """torch.compile captures the operator in its CUDA graphs. Replays launch the kernels and see new inputs."""
    gru = triton_gru.GRU(64, 512, batch_first=True, device="cuda", dtype=torch.float16, backend="grid").eval()
    model = torch.nn.Sequential(torch.nn.Linear(64, 64, device="cuda", dtype=torch.float16), gru)
    run = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    with torch.no_grad():
        for _ in range(6):  # calls, then one that is captured, then replays
            x = torch.randn(4, 50, 64, device="cuda").half()
            torch.compiler.cudagraph_mark_step_begin()
            launched.clear()
            output = run(x)[0].clone()
            torch.testing.assert_close(output, model(x)[0], rtol=0, atol=8e-3)
    # One scan, of the eager call: a replay starts its kernels without Python.
    assert launched.scan_count == 1


@pytest.mark.parametrize("started_first", ["gru", "other"])
@pytest.mark.parametrize("hidden", [512, 2048])
def test_beside_a_kernel_that_fills_the_chip(started_first, hidden):
    """``grid`` waits for free multiprocessors, later kernels wait for the end of ``grid``, and neither hangs."""
    gru = make_gru(64, hidden, "fp16", "cuda", "grid")
    x = torch.randn(300, 4, 64, device="cuda").half()
    matrix = torch.randn(8192, 8192, device="cuda").half()
    other_stream = torch.cuda.Stream()
    with torch.no_grad():
        expected, product = gru(x)[0], matrix @ matrix
        torch.cuda.synchronize()
        for _ in range(5):
            for turn in ("gru", "other") if started_first == "gru" else ("other", "gru"):
                if turn == "gru":
                    outputs = [gru(x)[0] for _ in range(3)]
                else:
                    with torch.cuda.stream(other_stream):
                        products = [matrix @ matrix for _ in range(4)]
            torch.cuda.synchronize()
            assert all(torch.equal(output, expected) for output in outputs)
            assert all(torch.equal(result, product) for result in products)
    triton_gru.raise_if_hung()


def test_fewer_multiprocessors_by_the_environment(monkeypatch, launched):
    monkeypatch.setenv("TRITON_GRU_MAX_SMS", "40")
    devices._find_gpu.cache_clear()
    try:
        gru = make_gru(64, 512, "fp16", "cuda", "grid")
        x = torch.randn(50, 40, 64, device="cuda").half()
        plan = gru.plan(x)
        assert plan.device.sms == 40
        assert plan.config.programs * plan.config.copies <= 40
        run_checked(gru, x, None, "fp16", launched)
    finally:
        devices._find_gpu.cache_clear()
