"""Errors, in place of hangs, for ``grid`` launches whose programs time out while they wait for each other.

A program that has waited for too long gives up: it continues with NaNs (kernels/exchange.py), and sets a word in the
host's memory. No call waits for this word. The next call that starts a kernel on the device raises, or `raise_if_hung`
does if it is called before.
"""

import ctypes
import os
import warnings

import torch


def raise_if_hung(device: torch.device | None = None) -> None:
    """Raise if a call gave up waiting. The results of such a call are NaN from the step on at which it gave up.

        triton_gru.raise_if_hung()

    A call that is still running may give up later. For a definite answer, call ``torch.cuda.synchronize()`` first. Each
    failure is raised once, here or in the next call of a kernel on the same device.

    Args:
        device: the device to check, with its index. Without the index nothing is checked. All devices if not given.

    Raises:
        RuntimeError: a launch gave up.
    """
    if device is None:
        for watchdog in list(_watchdogs.values()):
            watchdog.check()
    elif device in _watchdogs:  # This runs on every call, so do not loop.
        _watchdogs[device].check()


def check() -> None:
    """Do what `raise_if_hung` does. Deprecated, because the command ``triton-gru check`` is something else."""
    warnings.warn(
        "triton_gru.check() is deprecated and will be removed in the next version: call triton_gru.raise_if_hung()",
        DeprecationWarning,
        stacklevel=2,
    )
    raise_if_hung()


class Watchdog:
    """The watchdog of a device: a word in the host's memory that a program sets when it gives up.

    Attributes:
        watch: int64 [2] on the device: the longest wait in nanoseconds, and the address of the host's word.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._seconds = _read_timeout()
        self._word = torch.zeros(1, dtype=torch.int32, device="cpu", pin_memory=device.type == "cuda")
        self._seen = ctypes.c_int32.from_address(self._word.data_ptr())
        self.watch = torch.tensor([int(self._seconds * 1e9), self._word.data_ptr()], device=device)

    def check(self) -> None:
        """Raise RuntimeError if a program has given up since the last check."""
        if self._seen.value:
            self._seen.value = 0
            raise RuntimeError(
                f"triton_gru's grid launch on {self._device} gave up: for {self._seconds:g} s one of its programs did "
                "not receive the state from the others, and its results are NaN from that step on. Under a debugger "
                "or sanitizer, or if another process uses the GPU, set TRITON_GRU_TIMEOUT to more seconds. Otherwise "
                "this is a fault in triton_gru, please report it"
            )


_watchdogs: dict[torch.device, Watchdog] = {}


def get_watchdog(device: torch.device) -> Watchdog:
    """Return the device's watchdog.

    The first call for a device makes the watchdog and copies to the device, which a CUDA graph cannot capture.
    """
    if device not in _watchdogs:
        with torch.inference_mode(False):  # the watchdog outlives the inference mode of this call
            _watchdogs[device] = Watchdog(device)
    return _watchdogs[device]


def _read_timeout() -> float:
    """Return the most seconds that a program waits: the environment variable TRITON_GRU_TIMEOUT, or 10 if it is unset.

    Raises:
        ValueError: the variable is not a number of seconds above 0 and below 1e9.
    """
    text = os.environ.get("TRITON_GRU_TIMEOUT", "10")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise ValueError(f"TRITON_GRU_TIMEOUT must be a number of seconds above 0 and below 1e9, got {text!r}")
    return seconds
