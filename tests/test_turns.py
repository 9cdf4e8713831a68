"""Programs that wait for each other take turns in Triton's interpreter."""

import pytest
import torch
from triton.runtime.errors import InterpreterError

from triton_gru.launch import grid
from triton_gru.plan.config import HANDOVERS, GridConfig

from .calls import configured, make_gru


@pytest.mark.parametrize("handover", HANDOVERS)
@pytest.mark.parametrize("reset_after", [True, False])
def test_a_missing_program_is_waited_for_in_vain(handover, reset_after, monkeypatch):
    """The others raise an error. What compiled programs do is in tests/ptx/test_timeouts.py."""
    launches = grid.launches

    def without_the_last(*args):
        for each in launches(*args):
            yield each._replace(grid=(each.grid[0] - 1,))

    monkeypatch.setattr("triton_gru.launch.grid.launches", without_the_last)
    gru = make_gru(5, 40, "fp16", "cpu", "grid", reset_after=reset_after)
    config = GridConfig(16, 3, 8, 8, 1, 1, 4, 0, handover)
    with configured("grid", config), torch.no_grad(), pytest.raises(InterpreterError, match="waits for another"):
        gru(torch.randn(2, 3, 5).half())
