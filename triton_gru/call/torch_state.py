"""torch's global settings that change how a call is served."""

import os
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

# NVIDIA's libraries never use TF32 if this variable is 0, even if torch's settings ask for TF32. We read the variable
# once, like these libraries.
_IS_TF32_FORBIDDEN = os.environ.get("NVIDIA_TF32_OVERRIDE") == "0"
# Values of CUBLAS_WORKSPACE_CONFIG with which cuBLAS gives the same result in every run. With other values, torch
# refuses cuBLAS under torch.use_deterministic_algorithms. cuBLAS reads the variable once, torch at every call.
_DETERMINISTIC_WORKSPACES = ":4096:8", ":16:8"


class TorchState(NamedTuple):
    """The settings of torch that apply to a call. They are a part of the call's signature, and are read at every call.

    Attributes:
        is_grad_enabled: grad mode.
        is_cudnn_enabled: `torch.backends.cudnn.enabled`.
        fp32_precision: result of the function `fp32_precision`.
        matmul_precision, is_fp16_accumulation_allowed, is_cublas_refused: the settings on which the result of
            `cublas_unsupported_reason` depends.
        autocast: result of the function `autocast_dtype`.
        is_tracing: whether torch.jit.trace is active.
        is_wrapping: whether a transform of torch.func or a dispatch mode is active. Tensors may be wrappers then.
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
        """Return the current settings for tensors on ``device``.

        This runs on every call, so it uses torch's functions in C instead of the slower properties in Python.
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
        return tuple.__new__(cls, values)  # faster than cls(*values), whose __new__ is in Python

    def unsupported_reason(self, backend: str) -> str:
        """Return why no kernel can serve any call of this backend in this state, or ''."""
        if backend == "auto" and not self.is_cudnn_enabled:
            return "torch.backends.cudnn.enabled is False"
        if self.is_tracing:
            return "torch.jit.trace is active, and a trace cannot record Triton kernels"
        if self.is_wrapping:
            return "a torch.func transform or a dispatch mode is active"
        if self.is_forward_ad_on:
            return "forward-mode differentiation is active, and the kernels are for inference"
        return ""


def is_wrapping() -> bool:
    """Return whether a torch.func transform or a dispatch mode is active, in which tensors may be wrappers."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch._C._len_torch_dispatch_stack() > 0


def fp32_precision() -> str:
    """Return how torch multiplies fp32 numbers in recurrent networks on this machine: ``"tf32"`` or ``"ieee"``."""
    if _IS_TF32_FORBIDDEN:
        return "ieee"
    return "tf32" if torch._C._get_fp32_precision_getter("cuda", "rnn") == "tf32" else "ieee"


def cublas_unsupported_reason(dtype: torch.dtype, precision: str) -> str:
    """Return why torch's settings forbid cuBLAS for the input projection, or ''.

    ``precision`` is the precision of fp32 products in recurrent networks, as `fp32_precision`.
    """
    if torch._C._get_deterministic_algorithms() and _is_cublas_refused():
        return "torch.use_deterministic_algorithms is on, and CUBLAS_WORKSPACE_CONFIG is not :4096:8 or :16:8"
    if dtype == torch.float16 and torch._C._get_cublas_allow_fp16_accumulation():
        return "torch.backends.cuda.matmul.allow_fp16_accumulation is True"
    setting = torch._C._get_fp32_precision_getter("cuda", "matmul")
    matmul_precision = "tf32" if setting == "tf32" and not _IS_TF32_FORBIDDEN else "ieee"
    if dtype == torch.float32 and matmul_precision != precision:
        return f"torch multiplies matrices in {matmul_precision}, and in recurrent networks in {precision}"
    return ""


def _is_cublas_refused() -> bool:
    """Return whether torch refuses cuBLAS under torch.use_deterministic_algorithms."""
    return os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in _DETERMINISTIC_WORKSPACES


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype of torch.autocast on the device, or None if autocast is off."""
    if not torch._C._is_any_autocast_enabled():
        return None  # Return early: this runs on every call.
    is_enabled = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if is_enabled else None


def records_gradient(tensors: Iterable[Tensor | None]) -> bool:
    """Return whether autograd would record a call of these tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
