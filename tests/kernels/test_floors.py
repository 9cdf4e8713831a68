"""A test of the kernel that measures the floor of a step."""

import torch

from perf.floors_kernel import smallest_steps
from triton_gru.launch.kernel_launch import Launch


def test_the_smallest_step_computes_a_step_of_a_gru(device):
    w, h = torch.randn(16, 16, device=device).half(), torch.ones(16, 8, device=device)
    result = torch.full_like(h, float("nan"))
    steps = 3
    Launch(smallest_steps, (1,), (w, result, steps), {"num_warps": 1}).start()
    for _ in range(steps):
        products = w.double() @ h.half().double()
        gate = products.sigmoid()
        new = (gate * products).tanh()
        h = new + gate * (h - new)
    # tanh.approx has an error of 2^-11 in the gate and the candidate, and a state may round to the next fp16 number.
    torch.testing.assert_close(result.double(), h.double(), rtol=0, atol=8e-3)
