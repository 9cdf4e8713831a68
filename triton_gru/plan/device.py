"""Facts about GPUs that plans depend on."""

import functools
import os
import re
from dataclasses import dataclass, replace

import torch
from triton import knobs
from triton.runtime import driver


@dataclass(frozen=True)
class Device:
    """The facts about a GPU that a plan depends on.

    Attributes:
        name: the driver's name of the GPU.
        arch: ``"sm_90"`` for compute capability 9.0.
        sms: streaming multiprocessors.
        shared_memory: bytes of shared memory that one program may have.
        clock_ghz: highest clock of a multiprocessor, in GHz.
        memory_gbs: bandwidth of the device's memory, in gigabytes per second.
        l2_bytes: size of the L2 cache, in bytes.
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
        """Return the compute capability as a number: 90 for sm_90."""
        return int(self.arch[3:])


# Devices that a plan can be made for without having one, mostly by NVIDIA's documents. Shared memory is what a program
# may opt in to, from the CUDA C++ Programming Guide. "The driver" stands for the figures that deviceQuery prints.
KNOWN_DEVICES = {
    device.name: device
    for device in (
        Device("A100", "sm_80", 108, 166912, clock_ghz=1.41, memory_gbs=2039, l2_bytes=40 << 20),
        # L40S data sheet: 18176 units for fp32 (128 per SM), 864 GB/s. The driver: 2520 MHz and an L2 of 96 MiB.
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
    """Return the device of `KNOWN_DEVICES` whose name is a whole word of the driver's ``name``, or None.

    So the driver's "GH200" does not match H200. If ``sms`` is given, the number of multiprocessors must match, too.
    """
    named = (device for device in KNOWN_DEVICES.values() if re.search(rf"\b{re.escape(device.name)}\b", name))
    return next((device for device in named if sms in (None, device.sms)), None)


# True if TRITON_INTERPRET was set when this package was imported: Triton then interprets kernels and compiles none.
_INTERPRETED = knobs.runtime.interpret
# While a test emulates a GPU: the device that `find_device` returns for CPU tensors. Otherwise None.
emulated_device: Device | None = None


def find_device(device: torch.device) -> Device | None:
    """Return the `Device` behind a torch device, or None if it is no NVIDIA GPU or Triton interprets kernels.

    A GPU that is too old for the kernels is returned, too (see `validity.too_old_reason`). So is `emulated_device`.
    """
    if _INTERPRETED:
        return None
    if device.type == "cpu":
        return emulated_device
    if device.type != "cuda" or torch.version.hip:
        return None
    return _find_gpu(torch.cuda.current_device() if device.index is None else device.index)


def list_gpus() -> list[Device]:
    """Return this machine's NVIDIA GPUs, also those too old for the kernels. Empty if Triton interprets kernels."""
    return [gpu for i in range(torch.cuda.device_count()) if (gpu := find_device(torch.device("cuda", i)))]


def no_device_reason() -> str:
    """Return the most likely reason why `find_device` returned None."""
    if _INTERPRETED:
        return "the kernels run compiled only, and TRITON_INTERPRET was set when they were imported: unset it"
    if torch.version.hip:
        return "the kernels need an NVIDIA GPU, and this PyTorch is for AMD GPUs"
    return "the kernels need an NVIDIA GPU of compute capability 8.0 or later"


def is_on_other_gpu(device: torch.device) -> bool:
    """Return whether ``device`` is a GPU but not the current one, on which a kernel would start."""
    return device.type == "cuda" and device.index != torch.cuda.current_device()


def is_capturing(device: torch.device) -> bool:
    """Return whether ``device`` is a GPU, and the current GPU's current stream is being captured in a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def limit_sms(device: Device, sms: int | None) -> Device:
    """Return ``device`` with at most ``sms`` multiprocessors. None sets no limit.

    A limited device is a different device: its name ends in the number of multiprocessors, and its tables are separate.
    """
    if sms is None or sms >= device.sms:
        return device
    return replace(device, name=f"{device.name}, {sms} SMs", sms=sms)


def read_max_sms() -> int | None:
    """Return the environment variable TRITON_GRU_MAX_SMS, or None if it is unset or empty.

    The variable is the most multiprocessors that the programs of ``grid``, which wait for each other, may take. Plans
    assume that the GPU has no more (see `limit_sms`).

    Raises:
        ValueError: the variable is not a whole number above 0.
    """
    text = os.environ.get("TRITON_GRU_MAX_SMS", "").strip()
    if text and not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ValueError(f"TRITON_GRU_MAX_SMS must be a whole number above 0, got {text!r}: unset it to use all")
    return int(text) if text else None


@functools.cache
def _find_gpu(index: int) -> Device:
    """Return the `Device` of the GPU with this CUDA index, by what the driver reports and TRITON_GRU_MAX_SMS."""
    properties = torch.cuda.get_device_properties(index)
    limits = driver.active.utils.get_device_properties(index)
    # Some drivers report clocks of 0. Replace those by a middling GPU's, so that estimates are rough, but finite.
    # 1e6: the clock is in kHz. 2 / 8e6: memory transfers twice per cycle, and the bus width is in bits.
    clock_ghz = limits["sm_clock_rate"] / 1e6 or 1.5
    memory_gbs = 2 * limits["mem_clock_rate"] * limits["mem_bus_width"] / 8e6 or 1000.0
    gpu = Device(
        properties.name, f"sm_{properties.major}{properties.minor}", properties.multi_processor_count,
        limits["max_shared_mem"], clock_ghz, memory_gbs, properties.L2_cache_size,
    )  # fmt: skip
    return limit_sms(gpu, read_max_sms())
