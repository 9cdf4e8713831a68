"""What a device offers to a kernel."""

import functools
from dataclasses import dataclass

import torch
from triton.runtime import driver
from triton.runtime.interpreter import InterpretedFunction

from .kernels.block import block_scan


@dataclass(frozen=True)
class Device:
    """The facts a plan depends on.

    Attributes:
        name: what the driver calls it.
        arch: ``"sm_90"``, ``"gfx942"``, or ``"interpreter"``.
        isa: which form of the kernels' primitives it takes: ``"ptx"``, ``"plain"`` or ``"interpreter"``.
        sms: streaming multiprocessors (compute units on AMD).
        shared_memory: bytes of shared memory (LDS on AMD) that one program may have.
    """

    name: str
    arch: str
    isa: str
    sms: int
    shared_memory: int

    @property
    def compute_capability(self) -> int:
        """90 for sm_90; 0 where that has no meaning."""
        return int(self.arch[3:]) if self.isa == "ptx" else 0


INTERPRETER = Device("Triton interpreter", "interpreter", "interpreter", sms=64, shared_memory=1 << 62)

# Devices that a plan can be made for without having one. Shared memory is what a program may opt in to.
KNOWN = {
    device.name: device
    for device in (
        Device("A100", "sm_80", "ptx", sms=108, shared_memory=166912),
        Device("H200", "sm_90", "ptx", sms=132, shared_memory=232448),
        Device("B200", "sm_100", "ptx", sms=148, shared_memory=232448),
        Device("RTX 5090", "sm_120", "ptx", sms=170, shared_memory=101376),
        Device("MI300X", "gfx942", "plain", sms=304, shared_memory=65536),
    )
}


def find(device: torch.device) -> Device | None:
    """The `Device` behind a torch device, None where no kernel can run."""
    if device.type == "cuda":
        return _find_gpu(torch.cuda.current_device() if device.index is None else device.index)
    if device.type == "cpu" and interpreting():
        return INTERPRETER
    return None


def elsewhere(device: torch.device) -> bool:
    """Whether another GPU is the current one, on which a kernel would start."""
    return device.type == "cuda" and device.index != torch.cuda.current_device()


def interpreting() -> bool:
    """Whether the kernels were defined under ``TRITON_INTERPRET=1``, so that they run on CPU tensors."""
    return isinstance(block_scan, InterpretedFunction)


@functools.cache
def _find_gpu(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    limits = driver.active.utils.get_device_properties(index)
    if torch.version.hip:
        arch, isa = properties.gcnArchName.split(":")[0], "plain"
    else:
        arch, isa = f"sm_{properties.major}{properties.minor}", "ptx"
    return Device(properties.name, arch, isa, properties.multi_processor_count, limits["max_shared_mem"])
