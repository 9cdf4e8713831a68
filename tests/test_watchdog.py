"""Reports of a launch that gave up: raised once, by `raise_if_hung` or by the next call.

Tests on a GPU make launches give up."""

import pytest
import torch

import triton_gru
from triton_gru.launch import hang

from .calls import make_gru


@pytest.fixture
def plant_give_up(device):
    """Yield a function that sets the watchdog's word, as a launch that gives up does."""
    indexed_device = torch.device(device, 0) if device == "cuda" else torch.device(device)

    def set_word():
        hang.get_watchdog(indexed_device)._word.fill_(1)

    set_word.seconds = hang.get_watchdog(indexed_device)._seconds
    yield set_word
    hang.get_watchdog(indexed_device)._word.zero_()


def test_raise_if_hung_raises_once(plant_give_up):
    triton_gru.raise_if_hung()
    plant_give_up()
    with pytest.raises(RuntimeError, match=f"gave up: for {plant_give_up.seconds:g} s .* TRITON_GRU_TIMEOUT"):
        triton_gru.raise_if_hung()
    triton_gru.raise_if_hung()


def test_old_name_check_warns(plant_give_up):
    plant_give_up()
    with pytest.warns(DeprecationWarning, match="raise_if_hung"), pytest.raises(RuntimeError, match="gave up"):
        triton_gru.check()


@pytest.mark.parametrize("kernel", ["block", "grid", "step"])
def test_next_call_raises_and_the_one_after_works(kernel, plant_give_up, device, launched):
    gru, x = make_gru(3, 16, "fp16", device, kernel), torch.randn(2, 1, 3, device=device).half()
    plant_give_up()
    with pytest.raises(RuntimeError, match="gave up"):
        gru(x)
    assert not launched
    assert gru(x)[0].isfinite().all()
    triton_gru.raise_if_hung()


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf", ""])
def test_invalid_timeout_is_refused(text, monkeypatch):
    monkeypatch.setenv("TRITON_GRU_TIMEOUT", text)
    with pytest.raises(ValueError, match="TRITON_GRU_TIMEOUT must be a number of seconds above 0"):
        hang.Watchdog(torch.device("cpu"))


def test_kernels_get_nanoseconds_and_the_address_of_the_word(monkeypatch):
    monkeypatch.delenv("TRITON_GRU_TIMEOUT", raising=False)
    assert hang.Watchdog(torch.device("cpu")).watch[0].item() == 10_000_000_000
    monkeypatch.setenv("TRITON_GRU_TIMEOUT", "1.5")
    watchdog = hang.Watchdog(torch.device("cpu"))
    assert watchdog.watch.tolist() == [1_500_000_000, watchdog._word.data_ptr()]
