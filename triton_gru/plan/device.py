"""What a device offers to a kernel."""

import functools
import os
from dataclasses import dataclass, replace

import torch
from triton.runtime import driver
from triton.runtime.interpreter import InterpretedFunction

from ..kernels.block import block_scan
from ..triton_versions import mend_interpreter


@dataclass(frozen=True)
class Device:
    """The facts a plan depends on.

    Attributes:
        name: what the driver calls it.
        arch: ``"sm_90"``, ``"gfx942"``, or ``"interpreter"``.
        isa: which form of the kernels' primitives it takes: ``"ptx"``, ``"plain"`` or ``"interpreter"``.
        sms: streaming multiprocessors (compute units on AMD).
        shared_memory: bytes of shared memory (LDS on AMD) that one program may have.
        clock_ghz: of a multiprocessor, at most.
        memory_gbs: bandwidth of the device's memory, gigabytes a second.
        l2_bytes: size of the L2.
    """

    name: str
    arch: str
    isa: str
    sms: int
    shared_memory: int
    clock_ghz: float
    memory_gbs: float
    l2_bytes: int

    @property
    def compute_capability(self) -> int:
        """90 for sm_90; 0 where that has no meaning."""
        return int(self.arch[3:]) if self.isa == "ptx" else 0


INTERPRETER = Device("Triton interpreter", "interpreter", "interpreter", 64, 1 << 62, 1.0, 1000.0, 50 << 20)

# Devices that a plan can be made for without having one: as their makers describe them. Shared memory is what a program
# may opt in to, by the CUDA C++ Programming Guide. The driver's figures are those that deviceQuery prints.
KNOWN = {
    device.name: device
    for device in (
        Device("A100", "sm_80", "ptx", 108, 166912, clock_ghz=1.41, memory_gbs=2039, l2_bytes=40 << 20),
        # L40S data sheet: 18176 units for fp32 (128 an SM), 864 GB/s. The driver: 2520 MHz and an L2 of 96 MiB.
        Device("L40S", "sm_89", "ptx", 142, 101376, clock_ghz=2.52, memory_gbs=864, l2_bytes=96 << 20),
        # Ada GPU architecture whitepaper, GeForce RTX 4090: its L2 has 73728 KB of the chip's 98304. The driver agrees.
        Device("RTX 4090", "sm_89", "ptx", 128, 101376, clock_ghz=2.52, memory_gbs=1008, l2_bytes=72 << 20),
        Device("H200", "sm_90", "ptx", 132, 232448, clock_ghz=1.98, memory_gbs=4800, l2_bytes=50 << 20),
        # H100 data sheet and architecture whitepaper, SXM5: 132 SMs, 3.35 TB/s, 50 MB. The driver: 1980 MHz.
        Device("H100", "sm_90", "ptx", 132, 232448, clock_ghz=1.98, memory_gbs=3350, l2_bytes=50 << 20),
        # GH200 data sheet, the variant with 96 GB of HBM3: 4 TB/s. The driver: 132 SMs, 1980 MHz and an L2 of 60 MiB.
        Device("GH200", "sm_90", "ptx", 132, 232448, clock_ghz=1.98, memory_gbs=4000, l2_bytes=60 << 20),
        Device("B200", "sm_100", "ptx", 148, 232448, clock_ghz=1.965, memory_gbs=7700, l2_bytes=126 << 20),
        Device("RTX 5090", "sm_120", "ptx", 170, 101376, clock_ghz=2.41, memory_gbs=1792, l2_bytes=96 << 20),
        Device("MI300X", "gfx942", "plain", 304, 65536, clock_ghz=2.1, memory_gbs=5300, l2_bytes=256 << 20),
    )
}


def find(device: torch.device) -> Device | None:
    """The `Device` behind a torch device, None where no kernel can run."""
    if device.type == "cuda":
        return _find_gpu(torch.cuda.current_device() if device.index is None else device.index)
    return on_cpu if device.type == "cpu" else None


def elsewhere(device: torch.device) -> bool:
    """Whether another GPU is the current one, on which a kernel would start."""
    return device.type == "cuda" and device.index != torch.cuda.current_device()


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the current stream of a device that is there."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def interpreting() -> bool:
    """Whether the kernels were defined under ``TRITON_INTERPRET=1``, so that they run on CPU tensors."""
    return isinstance(block_scan, InterpretedFunction)


def limited(device: Device, sms: int | None) -> Device:
    """Return ``device`` as one of ``sms`` multiprocessors, if it has more: another device, with tables of its own."""
    if sms is None or sms >= device.sms:
        return device
    return replace(device, name=f"{device.name}, {sms} SMs", sms=sms)


def most_sms() -> int | None:
    """Return how many multiprocessors programs that wait for each other may take: TRITON_GRU_MAX_SMS, or None for all.

    Raises:
        ValueError: it is no whole number above 0.
    """
    text = os.environ.get("TRITON_GRU_MAX_SMS", "").strip()
    if text and not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ValueError(f"TRITON_GRU_MAX_SMS must be a whole number above 0, got {text!r}: unset it to use all")
    return int(text) if text else None


# The device that runs kernels on CPU tensors; None if they have none.
on_cpu = INTERPRETER if interpreting() else None
if interpreting():
    mend_interpreter()


@functools.cache
def _find_gpu(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    limits = driver.active.utils.get_device_properties(index)
    if torch.version.hip:
        arch, isa = properties.gcnArchName.split(":")[0], "plain"
    else:
        arch, isa = f"sm_{properties.major}{properties.minor}", "ptx"
    # Some drivers tell no clocks (0): then those of a middling GPU, so that estimates are rough, but finite.
    clock_ghz = limits["sm_clock_rate"] / 1e6 or 1.5
    memory_gbs = 2 * limits["mem_clock_rate"] * limits["mem_bus_width"] / 8e6 or 1000.0
    whole = Device(
        properties.name, arch, isa, properties.multi_processor_count, limits["max_shared_mem"],
        clock_ghz, memory_gbs, properties.L2_cache_size,
    )  # fmt: skip
    return limited(whole, most_sms())
