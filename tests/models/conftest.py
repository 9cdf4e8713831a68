import pytest
import torch

from ..oracle import set_precision


@pytest.fixture(autouse=True)
def _fp32_on_one_thread():
    """Models as small as these gain next to nothing by a second thread, and wait for it where others run too."""
    set_precision("fp32")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
