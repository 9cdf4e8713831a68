"""NSNet2 (arXiv:2008.06412; CC-BY-4.0): a noise suppressor with two GRUs of 400 units (``reset_after=True``)."""

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnx", reason="a machine lent for its GPU may not have it; scripts/test installs it")
import onnx

import triton_gru

from . import (
    NSNET2,
    ROUNDING_NOISE,
    WRONG_VARIANT,
    compute_difference,
    load_in_onnxruntime,
    make_noisy_speech,
    package_file,
    set_reset_before,
)
from .onnx_model import grus_of, torch_model


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(package_file(*NSNET2))


def compute_log_spectrum(sound: np.ndarray) -> np.ndarray:
    """Return the logarithm of the power in windows of 20 ms, one every 10 ms, [frames, 161]."""
    windows = np.lib.stride_tricks.sliding_window_view(sound, 320)[::160] * np.sqrt(np.hanning(320))
    return np.log10(np.maximum(np.abs(np.fft.rfft(windows)) ** 2, 1e-12)).astype(np.float32)


@pytest.fixture(scope="module")
def sounds() -> np.ndarray:
    """Return the log spectra of two sounds, [2, frames, 161]."""
    return np.stack([compute_log_spectrum(make_noisy_speech(1.0, seed)) for seed in range(2)])


def compute_gains(module: nn.Module, sounds: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Return the model's result: the factor by which each band of each frame is multiplied."""
    with torch.no_grad():
        return module.to(device)(torch.from_numpy(sounds).to(device))[0].cpu().numpy()


def test_model_agrees_with_onnxruntime_without_kernels(model, sounds):
    """Check the model before and after accelerate(), and that it disagrees with the wrong ``reset_after``."""
    module, (expected,) = torch_model(model, (torch.from_numpy(sounds),)), load_in_onnxruntime(model)((sounds,))
    assert len(grus_of(module)) == 2
    assert expected.min() < 0.1 and expected.max() > 0.5, "nothing is suppressed, or everything"
    assert compute_difference(compute_gains(module, sounds), expected) <= ROUNDING_NOISE
    assert compute_difference(compute_gains(triton_gru.accelerate(module), sounds), expected) <= ROUNDING_NOISE
    assert compute_difference(compute_gains(set_reset_before(module), sounds), expected) > WRONG_VARIANT


@pytest.mark.parametrize(
    "device, kernel",
    [
        ("cpu", "step"),
        pytest.param("gpu", "step", marks=pytest.mark.gpu),
        pytest.param("gpu", "grid", marks=pytest.mark.gpu),
    ],
    indirect=["device"],
)
def test_model_agrees_with_onnxruntime_on_kernels(model, sounds, device, kernel, launched):
    if device == "cpu":
        sounds = sounds[:, :2]  # two frames
    module = triton_gru.accelerate(torch_model(model, (torch.from_numpy(sounds),)).eval())
    for gru in grus_of(module):
        gru.backend = kernel
    actual = compute_gains(module, sounds, device)
    assert launched.has_only(kernel)
    assert compute_difference(actual, load_in_onnxruntime(model)((sounds,))[0]) <= ROUNDING_NOISE
