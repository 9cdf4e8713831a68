"""Random weights and inputs for the tests of converters, and the tolerance of results against the other library."""

import contextlib

import numpy as np
import torch

SHAPES = [(7, 3, 5, 25), (1, 1, 4, 1), (7, 1, 3, 96), (1, 3, 2, 25)]  # T, B, I, H


def make_draw(seed: int = 0):
    """Return ``draw(*shape, scale=1.0)``, which returns float32 arrays of normally distributed random values."""
    generator = np.random.default_rng(seed)

    def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (generator.standard_normal(shape) * scale).astype(np.float32)

    return draw


def tensor(array: np.ndarray | None) -> torch.Tensor | None:
    """Return a tensor that shares the memory of ``array``, or None for None."""
    return None if array is None else torch.from_numpy(array)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def assert_agree(actual, expected, atol: float = 5e-6) -> None:
    """Assert that two results, arrays or tensors, differ by at most ``atol`` in each element."""
    actual, expected = (torch.as_tensor(result).detach().cpu() for result in (actual, expected))
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@contextlib.contextmanager
def use_one_thread():
    """Run torch with one thread inside the context.

    At these sizes threads compute nothing faster, and on a busy machine they wait long for each other.
    """
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
