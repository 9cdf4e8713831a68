"""NSNet2 (arXiv:2008.06412; CC-BY-4.0): a noise suppressor of two GRUs of 400 units, reset after."""

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnx", reason="a machine lent for its GPU may not have it; scripts/test installs it")
import onnx

import triton_gru

from . import NOISE, NSNET2, WRONG, difference, load_in_onnxruntime, noisy_speech, package_file, set_reset_before
from .onnx_model import grus_of, torch_model


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(package_file(*NSNET2))


def log_spectrum(sound: np.ndarray) -> np.ndarray:
    """[frames, 161]: the logarithm of the power in windows of 20 ms, one every 10 ms."""
    windows = np.lib.stride_tricks.sliding_window_view(sound, 320)[::160] * np.sqrt(np.hanning(320))
    return np.log10(np.maximum(np.abs(np.fft.rfft(windows)) ** 2, 1e-12)).astype(np.float32)


@pytest.fixture(scope="module")
def sounds() -> np.ndarray:
    return np.stack([log_spectrum(noisy_speech(1.0, seed)) for seed in range(2)])


def gains(module: nn.Module, sounds: np.ndarray, device: str = "cpu") -> np.ndarray:
    """What to scale each band of each frame by."""
    with torch.no_grad():
        return module.to(device)(torch.from_numpy(sounds).to(device))[0].cpu().numpy()


def test_whole(model, sounds):
    module, (expected,) = torch_model(model, (torch.from_numpy(sounds),)), load_in_onnxruntime(model)((sounds,))
    assert len(grus_of(module)) == 2
    assert expected.min() < 0.1 and expected.max() > 0.5, "nothing is suppressed, or everything"
    assert difference(gains(module, sounds), expected) <= NOISE
    assert difference(gains(triton_gru.accelerate(module), sounds), expected) <= NOISE
    assert difference(gains(set_reset_before(module), sounds), expected) > WRONG


@pytest.mark.parametrize(
    "device, kernel",
    [
        ("cpu", "step"),
        pytest.param("gpu", "step", marks=pytest.mark.gpu),
        pytest.param("gpu", "grid", marks=pytest.mark.gpu),
    ],
    indirect=["device"],
)
def test_kernel(model, sounds, device, kernel, launched):
    if device == "cpu":
        sounds = sounds[:, :2]
    module = triton_gru.accelerate(torch_model(model, (torch.from_numpy(sounds),)).eval())
    for gru in grus_of(module):
        gru.backend = kernel
    actual = gains(module, sounds, device)
    assert launched.has_only(kernel)
    assert difference(actual, load_in_onnxruntime(model)((sounds,))[0]) <= NOISE
