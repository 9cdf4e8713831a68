"""torch's global settings that change how a call is served."""

import os
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

# NVIDIA's libraries never use TF32 if this variable is 0, whatever torch asks for. They read it once as well.
_TF32_FORBIDDEN = os.environ.get("NVIDIA_TF32_OVERRIDE") == "0"
# Memory with which cuBLAS gives the same result in every run. Without, torch refuses it where that is asked for. cuBLAS
# reads the variable once as well.
_DETERMINISTIC_CUBLAS = ":4096:8", ":16:8"


class TorchState(NamedTuple):
    """The settings in force for a call. They are read once a call, and are part of what a kept call is found by.

    Attributes:
        is_grad_enabled: grad mode.
        is_cudnn_enabled: `torch.backends.cudnn.enabled`.
        fp32_precision: as `fp32_precision`.
        matmul_precision, is_fp16_accumulation_allowed, is_cublas_refused: what else `cublas_unsupported_reason` asks for.
        autocast: as `autocast_dtype`.
        is_tracing: whether torch.jit.trace is active.
        is_wrapping: whether a transform of torch.func or a dispatch mode is active. Tensors are wrappers then.
        is_forward_ad_on: whether forward-mode differentiation is active.
    """

    is_grad_enabled: bool
    is_cudnn_enabled: bool
    fp32_precision: str
    matmul_precision: str
    is_fp16_accumulation_allowed: bool
    is_cublas_refused: bool
    autocast: torch.dtype | None
    is_tracing: bool
    is_wrapping: bool
    is_forward_ad_on: bool

    @classmethod
    def current(cls, device: torch.device) -> "TorchState":
        """Return the settings in force for tensors on ``device``.

        Every call asks, so that no property of torch's in Python is used where there is a function in C.
        """
        values = (
            torch.is_grad_enabled(),
            torch._C._get_cudnn_enabled(),
            fp32_precision(),
            torch._C._get_fp32_precision_getter("cuda", "matmul"),
            torch._C._get_cublas_allow_fp16_accumulation(),
            torch._C._get_deterministic_algorithms() and _is_cublas_refused(),
            autocast_dtype(device),
            torch._C._is_tracing(),
            is_wrapping(),
            torch.autograd.forward_ad._current_level >= 0,
        )
        return tuple.__new__(cls, values)  # faster than cls(...), whose __new__ is in Python

    def unsupported_reason(self, backend: str) -> str:
        """Return why no kernel serves a call in this state, whatever its arguments; empty if one can."""
        if backend == "auto" and not self.is_cudnn_enabled:
            return "torch.backends.cudnn.enabled is False"
        if self.is_tracing:
            return "torch.jit.trace is active, and a trace cannot record Triton kernels"
        if self.is_wrapping:
            return "a torch.func transform or a dispatch mode is active"
        return (
            "forward-mode differentiation is active, and the kernels are for inference" if self.is_forward_ad_on else ""
        )


def is_wrapping() -> bool:
    """Return whether torch shows tensors that stand for others: under torch.func and dispatch modes."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch._C._len_torch_dispatch_stack() > 0


def fp32_precision() -> str:
    """Return how torch multiplies fp32 numbers in recurrent networks on this machine: ``"tf32"`` or ``"ieee"``."""
    if _TF32_FORBIDDEN:
        return "ieee"
    return "tf32" if torch._C._get_fp32_precision_getter("cuda", "rnn") == "tf32" else "ieee"


def cublas_unsupported_reason(dtype: torch.dtype, precision: str) -> str:
    """Return why torch's settings keep cuBLAS from the input projection; empty if they do not.

    ``precision`` is that of fp32 products in the recurrent network.
    """
    if torch._C._get_deterministic_algorithms() and _is_cublas_refused():
        return "torch.use_deterministic_algorithms is on, and CUBLAS_WORKSPACE_CONFIG is not :4096:8"
    if dtype == torch.float16 and torch._C._get_cublas_allow_fp16_accumulation():
        return "torch.backends.cuda.matmul.allow_fp16_accumulation is True"
    asked = torch._C._get_fp32_precision_getter("cuda", "matmul")
    of_matrices = "tf32" if asked == "tf32" and not _TF32_FORBIDDEN else "ieee"
    if dtype == torch.float32 and of_matrices != precision:
        return f"torch multiplies matrices in {of_matrices}, and in recurrent networks in {precision}"
    return ""


def _is_cublas_refused() -> bool:
    """Return whether torch refuses cuBLAS where results have to be the same in every run."""
    return os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in _DETERMINISTIC_CUBLAS


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype of torch.autocast on the device, None where autocast is off."""
    if not torch._C._is_any_autocast_enabled():
        return None  # early: every call asks
    enabled = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if enabled else None


def records_gradient(tensors: Iterable[Tensor | None]) -> bool:
    """Return whether autograd would record a call of these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
