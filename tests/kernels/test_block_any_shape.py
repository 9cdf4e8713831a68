"""The ``block`` kernel against float64 on shapes that nobody chose."""

import pytest
import torch

from ..calls import LAYOUTS, make_gru, make_input, run_checked
from ..oracle import PRECISIONS

pytest.importorskip("hypothesis", reason="a machine lent for its GPU may not have it; scripts/test installs it")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hidden=st.integers(1, 80),
    batch=st.integers(1, 20),
    steps=st.integers(1, 6),
    inputs=st.integers(1, 20),
    precision=st.sampled_from(list(PRECISIONS)),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 2**31),
)
def test_agrees_with_float64_on_any_shape(hidden, batch, steps, inputs, precision, layout, seed, device, launched):
    torch.manual_seed(seed)
    gru = make_gru(inputs, hidden, precision, device, batch_first=layout == "batch_first")
    x = make_input(layout, steps, batch, inputs, PRECISIONS[precision][0], device)
    run_checked(gru, x, None, precision, launched)
