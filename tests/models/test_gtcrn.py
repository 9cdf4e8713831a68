"""GTCRN (Rong et al. 2024; MIT): speech enhancement frame by frame, by 14 small GRUs that reset after.

Four of them, bidirectional, run along the 33 bands of a frame. Ten take one step a frame, from states that the caller
hands on.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnx", reason="a machine lent for its GPU may not have it; scripts/test installs it")
import onnx

import triton_gru

from . import GTCRN, NOISE, WRONG, difference, load_in_onnxruntime, noisy_speech, package_file, set_reset_before
from .onnx_model import grus_of, torch_model

Arrays = tuple[np.ndarray, ...]


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(package_file(*GTCRN))


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """[20, 1, 257, 1, 2]: real and imaginary parts of windows of 32 ms, one every 16 ms."""
    windows = np.lib.stride_tricks.sliding_window_view(noisy_speech(0.336, 0), 512)[::256] * np.sqrt(np.hanning(512))
    bands = np.fft.rfft(windows)
    return np.stack([bands.real, bands.imag], -1).astype(np.float32).reshape(20, 1, 257, 1, 2)


def no_states(model: onnx.ModelProto) -> Arrays:
    """What the first frame has."""
    sizes = ([size.dim_value for size in each.type.tensor_type.shape.dim] for each in model.graph.input)
    return tuple(np.zeros(size, np.float32) for size in sizes)[1:]


def stream(one_frame: Callable[[Arrays], Arrays], frames: np.ndarray, states: Arrays) -> list[Arrays]:
    """What ``one_frame`` gives of each frame, and of the states after the one before: its output, and new states."""
    results = []
    for frame in frames:
        results.append(one_frame((frame, *states)))
        states = results[-1][1:]
    return results


@pytest.fixture(scope="module")
def expected(model, frames) -> list[Arrays]:
    """By onnxruntime alone."""
    return stream(load_in_onnxruntime(model), frames, no_states(model))


def made(model: onnx.ModelProto, frames: np.ndarray) -> nn.Module:
    return torch_model(model, tuple(map(torch.from_numpy, (frames[0], *no_states(model))))).eval()


def of_frame(module: nn.Module, device: str = "cpu") -> Callable[[Arrays], Arrays]:
    def one_frame(inputs: Arrays) -> Arrays:
        with torch.no_grad():
            outputs = module.to(device)(*(torch.from_numpy(each).to(device) for each in inputs))
        return tuple(each.cpu().numpy() for each in outputs)

    return one_frame


def largest_difference(actual: list[Arrays], expected: list[Arrays]) -> float:
    """Of the output and of the states, over all frames."""
    pairs = [pair for frame in zip(actual, expected, strict=True) for pair in zip(*frame, strict=True)]
    return float(np.max([difference(*pair) for pair in pairs]))


def test_whole(model, frames, expected):
    module, start = made(model, frames), no_states(model)
    assert len(grus_of(module)) == 14 and sum(gru.bidirectional for gru in grus_of(module)) == 4
    assert largest_difference(stream(of_frame(module), frames, start), expected) <= NOISE
    triton_gru.accelerate(module)
    assert largest_difference(stream(of_frame(module), frames[:5], start), expected[:5]) <= NOISE
    assert largest_difference(stream(of_frame(set_reset_before(module)), frames[:5], start), expected[:5]) > WRONG


def test_kernel(model, frames, expected, device, launched):
    """From the sixth frame on, so that all states are there: on the CPU no further."""
    end = 6 if device == "cpu" else len(frames)
    module = triton_gru.accelerate(made(model, frames))
    for gru in grus_of(module):
        gru.backend = "block"
    actual = stream(of_frame(module, device), frames[5:end], expected[4][1:])
    assert launched.has_only("block")
    assert largest_difference(actual, expected[5:end]) <= NOISE
