"""GTCRN (Rong et al. 2024; MIT): speech enhancement frame by frame, with 14 small GRUs (``reset_after=True``).

Four bidirectional GRUs run along the 33 bands of a frame. Ten GRUs take one step a frame, and the caller passes their
states on to the next frame.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnx", reason="a machine lent for its GPU may not have it; scripts/test installs it")
import onnx

import triton_gru

from . import (
    GTCRN,
    ROUNDING_NOISE,
    WRONG_VARIANT,
    compute_difference,
    load_in_onnxruntime,
    make_noisy_speech,
    package_file,
    set_reset_before,
)
from .onnx_model import grus_of, torch_model

Arrays = tuple[np.ndarray, ...]


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(package_file(*GTCRN))


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Return real and imaginary parts of the spectra of windows of 32 ms, one every 16 ms, [20, 1, 257, 1, 2]."""
    windows = np.lib.stride_tricks.sliding_window_view(make_noisy_speech(0.336, 0), 512)[::256] * np.sqrt(
        np.hanning(512)
    )
    bands = np.fft.rfft(windows)
    return np.stack([bands.real, bands.imag], -1).astype(np.float32).reshape(20, 1, 257, 1, 2)


def make_zero_states(model: onnx.ModelProto) -> Arrays:
    """Return the states before the first frame, which are the graph's inputs after the frame."""
    sizes = ([size.dim_value for size in input.type.tensor_type.shape.dim] for input in model.graph.input)
    _frame, *states = (np.zeros(size, np.float32) for size in sizes)
    return tuple(states)


def stream(process_frame: Callable[[Arrays], Arrays], frames: np.ndarray, states: Arrays) -> list[Arrays]:
    """Return the output and the new states of each frame. A frame takes the states of the frame before it."""
    results = []
    for frame in frames:
        output, *states = process_frame((frame, *states))
        results.append((output, *states))
    return results


@pytest.fixture(scope="module")
def expected(model, frames) -> list[Arrays]:
    """Return the results of onnxruntime."""
    return stream(load_in_onnxruntime(model), frames, make_zero_states(model))


def to_torch(model: onnx.ModelProto, frames: np.ndarray) -> nn.Module:
    """Return the model as a torch module for one frame."""
    return torch_model(model, tuple(map(torch.from_numpy, (frames[0], *make_zero_states(model))))).eval()


def wrap_for_arrays(module: nn.Module, device: str = "cpu") -> Callable[[Arrays], Arrays]:
    """Return a function that calls ``module`` on a device with numpy arrays, and returns numpy arrays."""

    def process_frame(inputs: Arrays) -> Arrays:
        with torch.no_grad():
            outputs = module.to(device)(*(torch.from_numpy(array).to(device) for array in inputs))
        return tuple(output.cpu().numpy() for output in outputs)

    return process_frame


def find_largest_difference(actual: list[Arrays], expected: list[Arrays]) -> float:
    """Return the largest `compute_difference` of the output and the states, over all frames."""
    pairs = [pair for frame in zip(actual, expected, strict=True) for pair in zip(*frame, strict=True)]
    return float(np.max([compute_difference(*pair) for pair in pairs]))


def test_model_agrees_with_onnxruntime_without_kernels(model, frames, expected):
    """Check the model before and after accelerate(), and that it disagrees with the wrong ``reset_after``."""
    module, start = to_torch(model, frames), make_zero_states(model)
    assert len(grus_of(module)) == 14 and sum(gru.bidirectional for gru in grus_of(module)) == 4
    assert find_largest_difference(stream(wrap_for_arrays(module), frames, start), expected) <= ROUNDING_NOISE
    triton_gru.accelerate(module)
    assert find_largest_difference(stream(wrap_for_arrays(module), frames[:5], start), expected[:5]) <= ROUNDING_NOISE
    assert (
        find_largest_difference(stream(wrap_for_arrays(set_reset_before(module)), frames[:5], start), expected[:5])
        > WRONG_VARIANT
    )


def test_model_agrees_with_onnxruntime_on_kernels(model, frames, expected, device, launched):
    """Start at the sixth frame, where no state is zero. The CPU computes only this frame."""
    end = 6 if device == "cpu" else len(frames)
    module = triton_gru.accelerate(to_torch(model, frames))
    for gru in grus_of(module):
        gru.backend = "block"
    _output, *states = expected[4]
    actual = stream(wrap_for_arrays(module, device), frames[5:end], states)
    assert launched.has_only("block")
    assert find_largest_difference(actual, expected[5:end]) <= ROUNDING_NOISE
