"""Tests of the kernels on input with strides so large that offsets exceed 32 bits."""

import pytest
import torch

from ..calls import make_gru, run_checked

# A stride for which the last of three elements is more than 2**31 elements from the first.
FAR = 2**30 + 8


def far_apart(shape, dim, device):
    """Return a float16 input [T, B, I] with stride ``FAR`` in ``dim``. Most of its memory is never touched."""
    size = shape[dim]
    near = [1 if i == dim else length for i, length in enumerate(shape)]
    memory = torch.empty((size - 1) * FAR + torch.Size(near).numel(), dtype=torch.float16, device=device)
    strides = list(torch.empty(near).stride())
    strides[dim] = FAR
    x = memory.as_strided(shape, strides)
    x.copy_(torch.randn(shape))
    return x


@pytest.mark.parametrize(
    "kernel, steps, dim", [("block", 3, 0), ("block", 3, 1), ("block", 3, 2), ("step", 1, 1), ("step", 1, 2)]
)
def test_input_with_a_large_stride_agrees_with_float64(kernel, steps, dim, device, launched):
    gru = make_gru(3, 16, "fp16", device, kernel)
    run_checked(gru, far_apart((steps, 3, 3), dim, device), None, "fp16", launched)
