"""What becomes of a ``grid`` launch whose programs wait for each other in vain: an error, late, instead of a hang.

A program that has waited for too long goes on with NaNs (kernels/exchange.py) and sets a word in the host's memory.
Nothing waits for that word: the next call that starts a kernel on the device raises, and so does `raise_if_hung`.
"""

import ctypes
import os
import warnings

import torch


def raise_if_hung(device: torch.device | None = None) -> None:
    """Raise if a call that has run so far gave up waiting; its results are NaN.

        triton_gru.raise_if_hung()

    A call still running may yet give up. For a definite answer synchronise first (``torch.cuda.synchronize()``). Each
    failure is raised once, here or in the next call of a kernel on the same device.

    Args:
        device: the device asked about, with its index; all if not given.

    Raises:
        RuntimeError: a launch gave up.
    """
    if device is None:
        for watchdog in list(_watchdogs.values()):
            watchdog.check()
    elif device in _watchdogs:  # every call of a kernel asks
        _watchdogs[device].check()


def check() -> None:
    """Do what `raise_if_hung` does. Deprecated: the command ``triton-gru check`` is something else."""
    warnings.warn(
        "triton_gru.check() is named triton_gru.raise_if_hung() now, and will go with the next version",
        DeprecationWarning,
        stacklevel=2,
    )
    raise_if_hung()


class Watchdog:
    """One device's.

    Attributes:
        watch: int64 [2] on the device: how long to wait in nanoseconds, and the host word's address.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._seconds = _timeout()
        self._word = torch.zeros(1, dtype=torch.int32, device="cpu", pin_memory=device.type == "cuda")
        self._seen = ctypes.c_int32.from_address(self._word.data_ptr())
        self.watch = torch.tensor([int(self._seconds * 1e9), self._word.data_ptr()], device=device)

    def check(self) -> None:
        if self._seen.value:
            self._seen.value = 0
            raise RuntimeError(
                f"a grid launch on {self._device} gave up: for {self._seconds:g} s one of its programs did not get "
                "what others had to hand over, and its results are NaN from there on. Under a debugger or sanitizer "
                "allow more seconds in TRITON_GRU_TIMEOUT; otherwise this is a fault in triton_gru, please report it"
            )


_watchdogs: dict[torch.device, Watchdog] = {}


def get_watchdog(device: torch.device) -> Watchdog:
    """The device's watchdog, made at the first call, which copies to the device: not to be captured in a graph."""
    if device not in _watchdogs:
        with torch.inference_mode(False):  # it outlives the mode of the call
            _watchdogs[device] = Watchdog(device)
    return _watchdogs[device]


def _timeout() -> float:
    """Seconds that a program waits at most: those in the environment variable TRITON_GRU_TIMEOUT, or 10."""
    text = os.environ.get("TRITON_GRU_TIMEOUT", "10")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise ValueError(f"TRITON_GRU_TIMEOUT must be a number of seconds above 0, got {text!r}")
    return seconds
