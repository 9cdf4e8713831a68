"""What a device offers to a kernel."""

import functools
import os
import re
from dataclasses import dataclass, replace

import torch
from triton import knobs
from triton.runtime import driver


@dataclass(frozen=True)
class Device:
    """The facts a plan depends on.

    Attributes:
        name: what the driver calls it.
        arch: ``"sm_90"`` for compute capability 9.0.
        sms: streaming multiprocessors.
        shared_memory: bytes of shared memory that one program may have.
        clock_ghz: of a multiprocessor, at most.
        memory_gbs: bandwidth of the device's memory, gigabytes a second.
        l2_bytes: size of the L2.
    """

    name: str
    arch: str
    sms: int
    shared_memory: int
    clock_ghz: float
    memory_gbs: float
    l2_bytes: int

    @property
    def compute_capability(self) -> int:
        """90 for sm_90."""
        return int(self.arch[3:])


# Devices that a plan can be made for without having one: as their makers describe them. Shared memory is what a program
# may opt in to, by the CUDA C++ Programming Guide. The driver's figures are those that deviceQuery prints.
KNOWN_DEVICES = {
    device.name: device
    for device in (
        Device("A100", "sm_80", 108, 166912, clock_ghz=1.41, memory_gbs=2039, l2_bytes=40 << 20),
        # L40S data sheet: 18176 units for fp32 (128 an SM), 864 GB/s. The driver: 2520 MHz and an L2 of 96 MiB.
        Device("L40S", "sm_89", 142, 101376, clock_ghz=2.52, memory_gbs=864, l2_bytes=96 << 20),
        # Ada GPU architecture whitepaper, GeForce RTX 4090: its L2 has 73728 KB of the chip's 98304. The driver agrees.
        Device("RTX 4090", "sm_89", 128, 101376, clock_ghz=2.52, memory_gbs=1008, l2_bytes=72 << 20),
        Device("H200", "sm_90", 132, 232448, clock_ghz=1.98, memory_gbs=4800, l2_bytes=50 << 20),
        # H100 data sheet and architecture whitepaper, SXM5: 132 SMs, 3.35 TB/s, 50 MB. The driver: 1980 MHz.
        Device("H100", "sm_90", 132, 232448, clock_ghz=1.98, memory_gbs=3350, l2_bytes=50 << 20),
        # GH200 data sheet, the variant with 96 GB of HBM3: 4 TB/s. The driver: 132 SMs, 1980 MHz and an L2 of 60 MiB.
        Device("GH200", "sm_90", 132, 232448, clock_ghz=1.98, memory_gbs=4000, l2_bytes=60 << 20),
        Device("B200", "sm_100", 148, 232448, clock_ghz=1.965, memory_gbs=7700, l2_bytes=126 << 20),
        Device("RTX 5090", "sm_120", 170, 101376, clock_ghz=2.41, memory_gbs=1792, l2_bytes=96 << 20),
    )
}


def match_device(name: str, sms: int | None = None) -> Device | None:
    """Return the device of `KNOWN_DEVICES` that a driver names by that word (a GH200 is no H200), if all of it is there.

    ``sms`` is None if it is not known how many multiprocessors there are.
    """
    named = (device for device in KNOWN_DEVICES.values() if re.search(rf"\b{re.escape(device.name)}\b", name))
    return next((device for device in named if sms in (None, device.sms)), None)


# Whether Triton was told to interpret the kernels, in place of compiling them, when they were made.
_INTERPRETED = knobs.runtime.interpret
# The device on which kernels take CPU tensors to lie: none, unless one is emulated.
emulated_device: Device | None = None


def find_device(device: torch.device) -> Device | None:
    """The `Device` behind a torch device, None where no kernel can run."""
    if _INTERPRETED:
        return None
    if device.type == "cpu":
        return emulated_device
    if device.type != "cuda" or torch.version.hip:
        return None
    return _find_gpu(torch.cuda.current_device() if device.index is None else device.index)


def list_gpus() -> list[Device]:
    """Return this machine's GPUs on which kernels run."""
    return [found for i in range(torch.cuda.device_count()) if (found := find_device(torch.device("cuda", i)))]


def no_device_reason() -> str:
    """Return why there may be no `Device` behind a torch device."""
    if _INTERPRETED:
        return "the kernels run compiled only, and TRITON_INTERPRET was set when they were imported: unset it"
    if torch.version.hip:
        return "the kernels need an NVIDIA GPU, and this PyTorch is for AMD GPUs"
    return "the kernels need an NVIDIA GPU of compute capability 8.0 or later"


def is_on_other_gpu(device: torch.device) -> bool:
    """Whether another GPU is the current one, on which a kernel would start."""
    return device.type == "cuda" and device.index != torch.cuda.current_device()


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the current stream of a device that is there."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def limit_sms(device: Device, sms: int | None) -> Device:
    """Return ``device`` as one of ``sms`` multiprocessors, if it has more: another device, with tables of its own."""
    if sms is None or sms >= device.sms:
        return device
    return replace(device, name=f"{device.name}, {sms} SMs", sms=sms)


def read_max_sms() -> int | None:
    """Return how many multiprocessors programs that wait for each other may take: TRITON_GRU_MAX_SMS, or None for all.

    Raises:
        ValueError: it is no whole number above 0.
    """
    text = os.environ.get("TRITON_GRU_MAX_SMS", "").strip()
    if text and not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ValueError(f"TRITON_GRU_MAX_SMS must be a whole number above 0, got {text!r}: unset it to use all")
    return int(text) if text else None


@functools.cache
def _find_gpu(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    limits = driver.active.utils.get_device_properties(index)
    # Some drivers tell no clocks (0): then those of a middling GPU, so that estimates are rough, but finite.
    clock_ghz = limits["sm_clock_rate"] / 1e6 or 1.5
    memory_gbs = 2 * limits["mem_clock_rate"] * limits["mem_bus_width"] / 8e6 or 1000.0
    whole = Device(
        properties.name, f"sm_{properties.major}{properties.minor}", properties.multi_processor_count,
        limits["max_shared_mem"], clock_ghz, memory_gbs, properties.L2_cache_size,
    )  # fmt: skip
    return limit_sms(whole, read_max_sms())
