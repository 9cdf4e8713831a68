"""The kernels on input whose parts lie further apart than 32 bits count."""

import pytest
import torch

from ..calls import make_gru, run_checked

# More than 2**31 elements from the first to the last of three.
FAR = 2**30 + 8


def far_apart(shape, dim, device):
    """A float16 input [T, B, I] with ``FAR`` elements from one to the next along ``dim``; memory mostly untouched."""
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
def test_input_may_lie_far_apart(kernel, steps, dim, device, launched):
    gru = make_gru(3, 16, "fp16", device, kernel)
    run_checked(gru, far_apart((steps, 3, 3), dim, device), None, "fp16", launched)
