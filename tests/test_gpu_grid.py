"""``grid`` and ``step`` on a GPU: programs that wait for each other, full sizes, failures, graphs, NaN payloads."""

import dataclasses
import time

import pytest
import torch

import triton_gru
from triton_gru.launch import execute, grid, hang
from triton_gru.plan import planner
from triton_gru.plan.config import HANDOVERS
from triton_gru.plan.device import find_device
from triton_gru.plan.heuristic import grid_config

from .calls import make_gru, run_checked, use_config
from .conftest import poison_memory
from .oracle import PRECISIONS

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("hidden", [256, 400, 512, 600, 1024, 2048])
@pytest.mark.parametrize("batch", [1, 17, 64, 300])
@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
def test_full_sizes(precision, hidden, batch, reset_after, launched):
    gru = make_gru(40, hidden, precision, "cuda", "grid", reset_after=reset_after)
    # Many rows and fp32 have fewer steps: their baseline takes gigabytes, or one launch a product.
    steps = 64 if precision == "fp32" else 512 if batch <= 64 else 128
    x = torch.randn(steps, batch, 40, device="cuda").to(gru.weight_hh_l0.dtype)
    hx = torch.randn(1, batch, hidden, device="cuda").to(x.dtype)
    config = grid_config(hidden, batch, 1, *PRECISIONS[precision], find_device(x.device))
    if isinstance(config, str):  # tests/compiled asserts the largest sizes
        assert "too large" in config
        return
    run_checked(gru, x, hx, precision, launched)


@pytest.mark.parametrize("handover", HANDOVERS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tiles", [1, 2])
@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
def test_every_handover(precision, handover, tiles, reset_after, launched):
    config = grid_config(200, 33, 1, *PRECISIONS[precision], find_device(torch.device("cuda")))
    config = dataclasses.replace(config, handover=handover, tiles=tiles, register_tiles=0)
    with use_config("grid", config):
        gru = make_gru(30, 200, precision, "cuda", "grid", num_layers=2, reset_after=reset_after)
        run_checked(gru, torch.randn(70, 33, 30, device="cuda").to(gru.weight_hh_l0.dtype), None, precision, launched)


@pytest.fixture
def short_timeout(monkeypatch):
    """Let launches give up after a second. Hide their reports from other tests.

    If processes share a GPU, a launch also waits tens of milliseconds while others run.
    """
    torch.cuda.synchronize()
    watchdogs_before = dict(hang._watchdogs)
    monkeypatch.setenv("TRITON_GRU_TIMEOUT", "1")
    hang._watchdogs.clear()
    yield
    torch.cuda.synchronize()
    hang._watchdogs.clear()
    hang._watchdogs.update(watchdogs_before)


make_launches = grid.launches  # tests patch grid.launches


def yield_launches_with_too_few_programs(*args):
    """Yield the launches of `grid`, each with one program fewer: the others wait for its part of the state."""
    for launch in make_launches(*args):
        yield launch._replace(programs=(launch.programs[0] - 1,))


@pytest.mark.parametrize("handover", HANDOVERS)
@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_missing_producer_times_out_and_the_next_call_works(precision, handover, short_timeout, monkeypatch):
    device = find_device(torch.device("cuda"))
    config = dataclasses.replace(
        grid_config(512, 4, 1, *PRECISIONS[precision], device), handover=handover, register_tiles=0
    )
    with use_config("grid", config), torch.no_grad(), poison_memory():
        gru = make_gru(16, 512, precision, "cuda", "grid")
        x = torch.randn(100, 4, 16, device="cuda").to(gru.weight_hh_l0.dtype)
        expected_output, _ = gru(x)
        torch.cuda.synchronize()
        with monkeypatch.context() as planted:
            planted.setattr(grid, "launches", yield_launches_with_too_few_programs)
            start = time.monotonic()
            output, h_n = gru(x)
            torch.cuda.synchronize()
            assert 0.9 < time.monotonic() - start < 20, "each of a hundred steps waited, or none did"
        # Otherwise later calls would repeat the prepared second call, which has too few programs.
        planner.clear_plan_cache()
        assert output.isnan().all()
        assert h_n.isnan().all()
        with pytest.raises(RuntimeError, match="gave up: for 1 s"):
            gru(x)
        assert torch.equal(gru(x)[0], expected_output)
        torch.cuda.synchronize()
        triton_gru.raise_if_hung()


def test_oversized_grid_fails_at_launch(monkeypatch):
    gru = make_gru(16, 512, "fp16", "cuda", "grid")
    x = torch.randn(10, 4, 16, device="cuda").half()

    def yield_launches_with_too_many_programs(*args):
        for launch in make_launches(*args):
            yield launch._replace(programs=(launch.programs[0] * 100,))

    with torch.no_grad():
        expected_output, _ = gru(x)
        with monkeypatch.context() as planted:
            planted.setattr(grid, "launches", yield_launches_with_too_many_programs)
            with pytest.raises(RuntimeError, match="cooperative"):
                gru(x)
        assert torch.equal(gru(x)[0], expected_output)


@pytest.mark.parametrize("handover", HANDOVERS)
def test_ten_thousand_replays_see_new_inputs(handover):
    config = grid_config(512, 12, 1, torch.float16, "ieee", find_device(torch.device("cuda")))
    with use_config("grid", dataclasses.replace(config, handover=handover)), torch.no_grad():
        gru = make_gru(16, 512, "fp16", "cuda", "grid", num_layers=2)
        inputs = torch.randn(7, 20, 12, 16, device="cuda").half()
        expected = [gru(x)[0] for x in inputs]
        x = inputs[0].clone()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output, _ = gru(x)
        wrong_replays = torch.zeros((), dtype=torch.int64, device="cuda")
        for i in range(10_000):
            x.copy_(inputs[i % 7])
            graph.replay()
            wrong_replays += (output != expected[i % 7]).any()
        assert wrong_replays.item() == 0
    triton_gru.raise_if_hung()


@pytest.mark.parametrize("planted_in", ["hx", "x"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_nan_of_every_payload_stays_in_its_row(planted_in, precision, launched):
    gru = make_gru(16, 256, precision, "cuda", "grid")
    dtype = gru.weight_hh_l0.dtype
    bits = 8 * dtype.itemsize
    integer = {16: torch.int16, 32: torch.int32}[bits]
    # Every value of the upper 16 bits, with lower bits of 0, 1 and all ones.
    patterns = torch.arange(1 << 16, device="cuda") << (bits - 16)
    patterns = torch.cat([patterns, patterns + 1, patterns + (1 << (bits - 16)) - 1]).unique()
    patterns = torch.where(patterns >= 1 << (bits - 1), patterns - (1 << bits), patterns).to(integer)
    payloads = patterns[patterns.view(dtype).isnan()]
    batch = 2 * len(payloads)  # every other row is clean
    x = torch.randn(3, batch, 16, device="cuda").to(dtype)
    hx = torch.randn(1, batch, 256, device="cuda").to(dtype)
    planted_rows = hx[0, ::2] if planted_in == "hx" else x[1, ::2]
    unit = torch.arange(len(payloads), device="cuda") % planted_rows.size(1)
    planted_rows.view(integer)[torch.arange(len(payloads), device="cuda"), unit] = payloads
    output, _ = run_checked(gru, x, hx, precision, launched)
    assert output[1 if planted_in == "x" else 0 :, ::2].isnan().all()
    assert output[:, 1::2].isfinite().all()
    triton_gru.raise_if_hung()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("payload", [-1, 0x7FFF, -0x3F])
def test_nan_weights(precision, payload, launched):
    """An element of -1 in the mailbox means "not written yet". No NaN weight, of any pattern here, may produce one."""
    gru = make_gru(16, 256, precision, "cuda", "grid")
    dtype = gru.weight_hh_l0.dtype
    pattern = payload if dtype.itemsize == 2 else (payload << 16) | 0xFFFF
    with torch.no_grad():
        for weight in (gru.weight_hh_l0, gru.weight_ih_l0, gru.bias_hh_l0):
            weight.view({2: torch.int16, 4: torch.int32}[dtype.itemsize])[77] = pattern
    x = torch.randn(20, 5, 16, device="cuda").to(dtype)
    output, _ = run_checked(gru, x, None, precision, launched)
    assert output[..., 77].isnan().all()
    torch.cuda.synchronize()
    triton_gru.raise_if_hung()


@pytest.mark.parametrize("kernel", ["grid", "step"])
def test_results_do_not_depend_on_the_chunks_at_full_size(kernel, monkeypatch):
    gru = make_gru(64, 600, "fp16", "cuda", kernel, num_layers=2)
    x = torch.randn(300, 20, 64, device="cuda").half()
    with torch.no_grad():
        expected, expected_h_n = gru(x)
        monkeypatch.setattr(execute, "WORKSPACE_BYTES", 3 << 20)
        actual, actual_h_n = gru(x)
    assert torch.equal(expected, actual)
    assert torch.equal(expected_h_n, actual_h_n)


@pytest.mark.parametrize("batch_first", [False, True])
def test_offsets_beyond_32_bits(batch_first):
    """In outputs of 2.1e9 elements, the last steps agree with a run that starts shortly before them."""
    gru = make_gru(2, 256, "fp16", "cuda", "grid", batch_first=batch_first)
    steps = (1 << 17) + 100
    shape = (64, steps, 2) if batch_first else (steps, 64, 2)
    x = torch.randn(shape, device="cuda").half()
    time_axis = 1 if batch_first else 0
    with torch.no_grad():
        output, h_n = gru(x)
        assert output.numel() > 2**31
        tail, tail_h_n = gru(x.narrow(time_axis, steps - 400, 400))
        last_outputs = output.narrow(time_axis, steps - 20, 20)
    torch.testing.assert_close(last_outputs, tail.narrow(time_axis, 380, 20), rtol=0, atol=8e-3)
    torch.testing.assert_close(h_n, tail_h_n, rtol=0, atol=8e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("hidden", [256, 1024, 2500, 4096])
@pytest.mark.parametrize("batch", [1, 64, 300])
def test_step_at_full_sizes(precision, hidden, batch, launched):
    gru = make_gru(40, hidden, precision, "cuda", "step")
    x = torch.randn(20 if precision == "fp32" else 60, batch, 40, device="cuda").to(gru.weight_hh_l0.dtype)
    hx = torch.randn(1, batch, hidden, device="cuda").to(x.dtype)
    run_checked(gru, x, hx, precision, launched)
    launched.clear()
    run_checked(gru, x[:1], hx, precision, launched)
    assert launched == ["whole_step"]


@pytest.mark.parametrize("steps", [1, 2])
def test_step_of_more_batch_tiles_than_65535(steps, launched):
    """CUDA takes at most 65535 programs in the grid's dimensions y and z. Here the batch has more tiles."""
    gru = make_gru(8, 16, "fp16", "cuda", "step")
    x = torch.randn(steps, 64 * 65_536 + 3, 8, device="cuda").half()
    assert x.size(1) > 65_535 * gru.plan(x).config.batch
    with torch.no_grad():
        output, h_n = gru(x)
        assert launched.has_only("step")
        for rows in (slice(200), slice(-200, None)):
            expected, expected_h_n = gru(x[:, rows].contiguous())
            torch.testing.assert_close(output[:, rows], expected, rtol=0, atol=8e-3)
            torch.testing.assert_close(h_n[:, rows], expected_h_n, rtol=0, atol=8e-3)
