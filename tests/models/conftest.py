import pytest

from ..convert_models import use_one_thread
from ..oracle import set_precision


@pytest.fixture(autouse=True)
def _fp32_on_one_thread():
    """Run each test in fp32 without TF32, on one CPU thread."""
    set_precision("fp32")
    with use_one_thread():
        yield
