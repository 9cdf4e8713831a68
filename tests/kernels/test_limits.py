"""Tests of ``block`` and ``step`` on input with a stride so large that offsets exceed 2**31 elements."""

import pytest
import torch

from ..calls import make_gru, run_checked

# A stride in elements. The third of three elements is then more than 2**31 elements after the first.
FAR = 2**30 + 8


def make_spread_input(shape, dim, device):
    """Return a float16 input [T, B, I] with stride ``FAR`` in ``dim``. Most of its memory is never touched."""
    count = shape[dim]
    without_dim = [1 if i == dim else size for i, size in enumerate(shape)]  # elements with the same index in `dim`
    memory = torch.empty((count - 1) * FAR + torch.Size(without_dim).numel(), dtype=torch.float16, device=device)
    strides = list(torch.empty(without_dim).stride())
    strides[dim] = FAR
    x = memory.as_strided(shape, strides)
    x.copy_(torch.randn(shape))
    return x


@pytest.mark.parametrize(
    "kernel, steps, dim", [("block", 3, 0), ("block", 3, 1), ("block", 3, 2), ("step", 1, 1), ("step", 1, 2)]
)
def test_input_with_a_large_stride_agrees_with_float64(kernel, steps, dim, device, launched):
    gru = make_gru(3, 16, "fp16", device, kernel)
    run_checked(gru, make_spread_input((steps, 3, 3), dim, device), None, "fp16", launched)
