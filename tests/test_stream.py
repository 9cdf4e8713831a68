"""Streams: a GRU frame by frame, compared with the same GRU over the whole sequence."""

import contextlib
import copy
import dataclasses
from unittest import mock

import pytest
import torch
from torch import nn

import triton_gru
from triton_gru.launch.kernel_launch import Launch
from triton_gru.plan.planner import clear_plan_cache
from triton_gru.plan.tables import lookup
from triton_gru.stream import Stream
from triton_gru.tuning.space import candidates

from .calls import make_gru
from .oracle import PRECISIONS, assert_accurate, compute_baseline, compute_error_bound, compute_exact
from .planted import H200, PlantedBench, make_entry, plant_times


def run_frames(gru, x, stream=None):
    """Return the outputs [T, B, H] of the frames of ``x``, and the stream that ran: a new one unless it is given."""
    stream = stream or gru.stream(x.size(1))
    return torch.stack([stream(frame) for frame in x]), stream


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "layers, bias, reset_after", [(1, True, True), (2, True, True), (3, False, True), (2, True, False)]
)
def test_stream_agrees_with_the_sequence(precision, layers, bias, reset_after, device, launched):
    gru = make_gru(7, 20, precision, device, "step", num_layers=layers, bias=bias, reset_after=reset_after)
    x = torch.randn(6, 5, 7, device=device).to(gru.weight_hh_l0.dtype)
    output, stream = run_frames(gru, x)
    launches_per_frame = layers if reset_after else 2 * layers
    assert launched.count("whole_step") == 6 * launches_per_frame
    expected, expected_h_n = compute_exact(gru, x, None)
    baseline, baseline_h_n = compute_baseline(gru, x, None, precision)
    assert_accurate(output, baseline, expected, precision)
    assert_accurate(stream.state, baseline_h_n, expected_h_n, precision)
    assert not output.requires_grad and output.dtype == x.dtype
    assert stream.state.dtype == torch.float32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_error_does_not_grow_over_many_frames(precision, device):
    """The state is kept in float32, though outputs are rounded to their dtype. Only a GPU runs a thousand frames."""
    torch.manual_seed(0)
    gru = make_gru(4, 16, precision, device, "step")
    steps = 1000 if device == "cuda" else 200 if precision == "fp16" else 40
    x = torch.randn(steps, 2, 4, device=device).to(gru.weight_hh_l0.dtype)
    output, _ = run_frames(gru, x)
    expected = compute_exact(gru, x, None)[0]
    baseline = compute_baseline(gru, x, None, precision)[0].double().cpu()
    for frames in (slice(0, steps // 10), slice(-steps // 10, None)):
        error, baseline_error = (
            (output.double().cpu() - expected)[frames].abs().max(),
            (baseline - expected).abs().max().item(),
        )
        assert error <= compute_error_bound(baseline_error, precision)


def test_state_is_set_read_and_reset(device):
    gru = make_gru(4, 16, "fp16", device, "step", num_layers=2)
    x = torch.randn(6, 3, 4, device=device).half()
    expected, stream = run_frames(gru, x)
    assert stream.state.shape == (2, 3, 16)
    stream.reset()
    assert (stream.state == 0).all()
    assert torch.equal(run_frames(gru, x, stream)[0], expected)
    # A mask resets only some rows, and no NaN is left in them.
    stream.state = torch.full((2, 3, 16), float("nan"))
    stream.reset(torch.tensor([True, False, True], device=device))
    output = run_frames(gru, x, stream)[0]
    assert torch.equal(output[:, ::2], expected[:, ::2])
    assert output[:, 1].isnan().all()
    # `state` is a copy: changes to it, or to the output of a frame, do not change the stream.
    stream.reset()
    first = stream(x[0])
    first_copy, state = first.clone(), stream.state
    state.fill_(7)
    second = stream(x[1])
    assert torch.equal(first, first_copy) and torch.equal(second, expected[1])
    # The stream starts from a state that is set.
    stream.state = state = torch.randn(2, 3, 16, device=device)
    output_from_state = stream(x[0])
    stream.state = state
    assert torch.equal(stream(x[0]), output_from_state) and not torch.equal(output_from_state, expected[0])


def test_changed_weights_and_options_are_noticed(device):
    gru = make_gru(4, 16, "fp32", device, "step")
    x = torch.randn(3, 2, 4, device=device)
    stream = gru.stream(2)
    first_output = stream(x[0])
    with torch.no_grad():
        gru.weight_ih_l0.mul_(2)  # in place
    stream.reset()
    changed_output = stream(x[0])
    assert not torch.equal(first_output, changed_output)
    gru.weight_hh_l0 = nn.Parameter(gru.weight_hh_l0.detach().clone() * 2)  # a new Parameter
    expected = run_frames(copy.deepcopy(gru), x)[0]
    stream.reset()
    assert torch.equal(run_frames(gru, x, stream)[0], expected)
    gru.reset_after = False
    expected_reset_before = run_frames(copy.deepcopy(gru), x)[0]
    assert not torch.equal(expected_reset_before[1:], expected[1:])
    stream.reset()
    assert torch.equal(run_frames(gru, x, stream)[0], expected_reset_before)


def test_parametrized_weights_are_read_in_each_frame(device, launched):
    gru = make_gru(4, 16, "fp32", device, "step")
    nn.utils.parametrizations.weight_norm(gru, "weight_hh_l0")
    x = torch.randn(4, 2, 4, device=device)
    with torch.no_grad():
        for factor in (1, 3):
            gru.parametrizations.weight_hh_l0.original0.mul_(factor)
            torch.testing.assert_close(run_frames(gru, x)[0], gru(x)[0], rtol=0, atol=1e-5)
    assert launched.has_only("step")


def test_unusual_modules_are_served(device, launched):
    """One row, one unit, `batch_first` and a non-contiguous weight."""
    gru = make_gru(4, 1, "fp32", device, "step", batch_first=True)
    x = torch.randn(3, 1, 4, device=device)
    with torch.no_grad():
        expected = gru(x.transpose(0, 1))[0].transpose(0, 1)
    torch.testing.assert_close(run_frames(gru, x)[0], expected, rtol=0, atol=1e-3)
    gru.weight_ih_l0 = nn.Parameter(torch.stack([gru.weight_ih_l0.detach()] * 2, dim=2)[..., 0])
    assert not gru.weight_ih_l0.is_contiguous()
    outputs, stream = run_frames(gru, x)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-3)
    with torch.no_grad():
        gru.weight_ih_l0.zero_()  # in place
        expected = gru(x.transpose(0, 1))[0].transpose(0, 1)
    stream.reset()
    torch.testing.assert_close(run_frames(gru, x, stream)[0], expected, rtol=0, atol=1e-3)
    assert launched.has_only("step") or device == "cuda"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("backend, reset_after", [("auto", True), ("torch", True), ("auto", False)])
@pytest.mark.parametrize("training", [False, True])
def test_streams_without_a_kernel_agree(dtype, backend, reset_after, training, launched):
    gru = triton_gru.GRU(4, 6, 2, dtype=dtype, backend=backend, reset_after=reset_after).train(training)
    x = torch.randn(5, 3, 4).to(dtype)
    output, stream = run_frames(gru, x)
    expected = gru(x)[0].detach()
    torch.testing.assert_close(output, expected, rtol=0, atol=3e-2 if dtype == torch.bfloat16 else 1e-5)
    stream.reset(torch.tensor([False, True, False]))
    assert (stream.state[:, 1] == 0).all() and (stream.state[:, 0] != 0).any()
    assert not launched


def test_autocast_decides_the_dtype_of_a_frame(device):
    gru = make_gru(4, 16, "fp32", device, "step")
    x = torch.randn(3, 2, 4, device=device)
    with torch.autocast(device, torch.bfloat16):
        output, stream = run_frames(gru, x)
    assert output.dtype == torch.bfloat16
    without_autocast = run_frames(gru, x, stream)[0]  # the same stream, in the module's dtype again
    assert without_autocast.dtype == torch.float32


def test_invalid_streams_and_frames_are_refused(kernels_on_cpu):
    with pytest.raises(ValueError, match="a bidirectional GRU needs the whole sequence"):
        triton_gru.GRU(4, 5, bidirectional=True).stream(2)
    with pytest.raises(ValueError, match="a reverse GRU needs the whole sequence"):
        triton_gru.GRU(4, 5, reverse=True).stream(2)
    gru = triton_gru.GRU(4, 5, backend="step").eval()
    for batch_size in (0, -1, 2.0, None):
        with pytest.raises(ValueError, match="batch_size must be a positive integer"):
            gru.stream(batch_size)
    stream = gru.stream(2)
    for frame in (torch.randn(4), torch.randn(3, 4), torch.randn(2, 5), torch.randn(1, 2, 4)):
        with pytest.raises(ValueError, match=r"a frame must be of shape \[2, 4\]"):
            stream(frame)
    stream(torch.randn(2, 4))
    with pytest.raises((ValueError, RuntimeError), match="dtype|float16"):
        stream(torch.randn(2, 4).half())
    with pytest.raises((ValueError, RuntimeError), match="meta"):
        stream(torch.empty(2, 4, device="meta"))
    with pytest.raises(ValueError, match=r"of shape \[1, 2, 5\]"):
        stream.state = torch.zeros(2, 5)
    for mask in (torch.zeros(2), torch.zeros(3, dtype=torch.bool)):
        with pytest.raises(ValueError, match="mask must be bool"):
            stream.reset(mask)
    gru.double()
    with pytest.raises(RuntimeError, match="the module is now torch.float64 on cpu"):
        stream(torch.randn(2, 4).double())
    gru.float()
    for kernel in ("block", "grid"):
        gru.backend = kernel
        with pytest.raises(RuntimeError, match="cannot serve a stream"):
            stream(torch.randn(2, 4))


@pytest.mark.parametrize("backend", ["step", "auto"])
def test_stream_moves_in_and_out_of_inference_mode(backend, device):
    gru = make_gru(4, 16, "fp16", device, backend)
    x = torch.randn(4, 2, 4, device=device).half()
    expected = run_frames(gru, x)[0]
    with torch.inference_mode():
        stream = gru.stream(2)
        outputs = [stream(frame) for frame in x[:2]]
    outputs += [stream(frame) for frame in x[2:]]
    assert torch.equal(torch.stack(outputs), expected)
    stream.reset()
    with torch.inference_mode():
        assert torch.equal(stream(x[0]), expected[0])


def test_frames_after_the_second_are_prepared(device, launched):
    """Two frames, one for each of the two buffers of the state, are planned, and later frames are not.

    On a GPU no later frame synchronises. A CUDA graph cannot capture a stream.
    """
    gru = make_gru(64, 128, "fp16", device, "step", num_layers=2)
    stream = gru.stream(4)
    x = torch.randn(8, 4, 64, device=device).half()
    first_outputs = [stream(frame) for frame in x[:2]]
    assert launched == ["whole_step"] * 4
    with mock.patch.object(Stream, "plan", side_effect=AssertionError), refuse_synchronisation(device):
        outputs = torch.stack(first_outputs + [stream(frame) for frame in x[2:]])
    assert launched == ["whole_step"] * 16
    with torch.no_grad():
        torch.testing.assert_close(outputs, gru(x)[0], rtol=0, atol=5e-3)
    if device == "cuda":
        for any_stream in (stream, gru.stream(4)):
            with (
                pytest.raises(RuntimeError, match="a stream cannot be captured"),
                torch.cuda.graph(torch.cuda.CUDAGraph()),
            ):
                any_stream(x[0])


@contextlib.contextmanager
def refuse_synchronisation(device):
    """Make torch raise at each call that waits for the GPU, inside the context. Do nothing on a CPU."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def test_frames_of_any_layout_are_read(device, launched):
    """The frames differ in strides and alignment, and one is a lazy negation."""
    gru = make_gru(6, 16, "fp32", device, "step")
    x = torch.randn(3, 2, 6, device=device)
    expected = run_frames(gru, x)[0]
    stream = gru.stream(2)
    wide = torch.randn(2, 12, device=device)
    wide[:, ::2] = x[0]
    odd = torch.randn(13, device=device)
    odd[1:] = x[1].flatten()
    negated = torch.complex(x[2], -x[2]).conj().imag
    assert negated.is_neg()
    frames = wide[:, ::2], odd[1:].view(2, 6), negated
    assert torch.equal(torch.stack([stream(frame) for frame in frames]), expected)
    stream.reset()
    assert torch.equal(torch.stack([stream(frame) for frame in frames]), expected)
    assert launched.has_only("step")


@pytest.mark.parametrize("winner", ["step", "torch"])
def test_stream_follows_the_tuning_of_its_recorded_frames(winner, tables, kernels_on_cpu, monkeypatch):
    """The stream takes the fastest configuration of `step`, also if `nn.GRU` is faster."""
    gru = make_gru(8, 20, "fp32", "cpu", "auto")
    x = torch.randn(6, 3, 8)
    stream, prepare_frame, configs = gru.stream(3), Stream._prepare_frame, []
    monkeypatch.setattr(Stream, "_prepare_frame", lambda *args: configs.append(args[-1].config) or prepare_frame(*args))
    with triton_gru.record_shapes() as shapes:
        outputs = [run_frames(gru, x[:3], stream)[0]]
    untuned = stream.plan(x[0]).config
    fastest = [
        candidate for candidate in candidates(shapes[0], H200)
        if candidate.kernel == "step" and candidate.config != untuned
    ][-1]  # fmt: skip
    ms = {"step": 0.5, "torch": 2.0}[winner]  # `nn.GRU` takes 1, and all other candidates take 3
    bench = PlantedBench(plant_times(lambda candidate: ms if candidate == fastest else 3.0))
    (tuned,) = triton_gru.tune(shapes, bench=bench)
    assert tuned.entry.winner == winner
    outputs.append(run_frames(gru, x[3:], stream)[0])
    # Frames are prepared once for each of the two buffers of the state.
    assert configs == [untuned] * 2 + [fastest.config] * 2
    torch.testing.assert_close(torch.cat(outputs), nn.GRU.forward(gru, x)[0], rtol=0, atol=5e-3)


def test_plan_that_failed_is_not_run_again_if_the_frame_cannot_be_prepared(tables, kernels_on_cpu, monkeypatch):
    """The launch of the first layer fails. A weight of the second layer is copied for each frame."""
    gru = make_gru(7, 20, "fp32", "cpu", "step", num_layers=2)
    gru.weight_ih_l1 = nn.Parameter(torch.stack([gru.weight_ih_l1.detach()] * 2, dim=2)[..., 0])
    stream, frame = gru.stream(3), torch.randn(3, 7)
    plan = stream.plan(frame)
    broken = dataclasses.replace(plan.config, num_stages=2)
    assert broken != plan.config
    lookup.add_process_entries(H200, [make_entry(plan.problem, "step", step=(broken, 0.5), torch=(None, 1.0))])
    clear_plan_cache()
    make_starter = Launch.make_starter

    def make_starter_or_fail(launch):
        if launch.constants["num_stages"] == 2:
            raise RuntimeError("PassManager::run failed")
        return make_starter(launch)

    monkeypatch.setattr(Launch, "make_starter", make_starter_or_fail)
    monkeypatch.setattr(Launch, "start", lambda launch: launch.make_starter()(*launch.args))
    with pytest.warns(UserWarning, match="step does not run as StepConfig") as caught:
        output = stream(frame)
    assert len(caught) == 1
    torch.testing.assert_close(output, nn.GRU.forward(gru, frame[None])[0][0], rtol=0, atol=5e-3)
