"""Fixtures of the tests that execute compiled kernels on the CPU."""

import pytest

from triton_gru.plan.device import KNOWN_DEVICES

from ..conftest import seed_of
from .device import emulate_gpu


@pytest.fixture
def seed(request) -> int:
    """Return the seed of a test's schedules."""
    return seed_of(request.node)


@pytest.fixture
def gpu(request, seed):
    """Yield an emulated GPU: an H200, or the device that an indirect parameter names."""
    with emulate_gpu(KNOWN_DEVICES[getattr(request, "param", "H200")], seed) as emulated:
        yield emulated
