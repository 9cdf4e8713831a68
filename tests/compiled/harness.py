"""Compiles the launches of a call for a GPU that is not there, and reads what came out."""

import pathlib
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import triton_gru
from triton_gru import launch
from triton_gru.accuracy import PRECISIONS, set_precision
from triton_gru.arguments import bind_gru
from triton_gru.device import KNOWN, Device
from triton_gru.plan import HEURISTICS

_BIN = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?\S+\s+)?(.*?);")


class _AbsentDriver:
    """Stands where Triton looks for a GPU. Each architecture is a device of its own, for the kernels' caches."""

    def __init__(self, device: Device):
        self.device = device

    def get_current_target(self) -> GPUTarget:
        if self.device.isa == "ptx":
            return GPUTarget("cuda", self.device.compute_capability, 32)
        return GPUTarget("hip", self.device.arch, 64)

    def get_current_device(self) -> str:
        return self.device.name

    def get_current_stream(self, device=None) -> int:
        return 0


def pretend(device: Device) -> None:
    """From here on Triton compiles for ``device``."""
    driver.set_active(_AbsentDriver(device))


def kernel_launches(
    kernel, device, precision, hidden_size, batch_size, *, steps=1, inputs=16, config=None, odd_address=False, hx=False
):
    """The launches the library would make for a call on ``device``, on tensors that merely say what they are."""
    dtype, fp32_precision = set_precision(precision), PRECISIONS[precision][1]
    gru = triton_gru.GRU(inputs, hidden_size, dtype=dtype).eval()
    x = torch.empty(steps * batch_size * inputs + odd_address, dtype=dtype)[odd_address:]
    hx = torch.empty(1, batch_size, hidden_size, dtype=dtype) if hx else None
    call = bind_gru(gru, x.view(steps, batch_size, inputs), hx)
    config = config or HEURISTICS[kernel](hidden_size, batch_size, dtype, fp32_precision, device)
    assert not isinstance(config, str), config
    output = torch.empty(steps, batch_size, hidden_size, dtype=dtype)
    h_n = torch.empty(1, batch_size, hidden_size, dtype=dtype)
    return list(launch.launches(call, config, device, output, h_n))


def compiled_variants(kernel) -> int:
    """How many times ``kernel`` was compiled for the device in force."""
    return len(kernel.device_caches[driver.active.get_current_device()][0])


@dataclass
class Facts:
    """What one compiled kernel takes, and what its innermost loop with products does per iteration (per warp).

    ``loop`` counts all of the loop's instructions by their names; ``executed`` only those of an iteration that has
    nothing to wait for.
    """

    shared: int
    stack: int
    spills: int
    loop: Counter
    executed: int = 0
    shared_bytes_read: int = 0


def facts(compiled) -> Facts:
    return _nvidia_facts(compiled) if "cubin" in compiled.asm else _amd_facts(compiled)


def _nvidia_facts(compiled) -> Facts:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        sass = _run("cuobjdump", "-sass", file.name)
    stack = int(re.findall(r"STACK:(\d+)", usage)[-1])
    instructions = []
    for line in sass.splitlines():
        if match := _INSTRUCTION.match(line):
            instructions.append((int(match[1], 16), match[2]))
    loop = _innermost_loop_with_products(instructions)
    names = Counter(text.split()[0].split(".")[0] for _, text in loop)
    everything = Counter(text.split()[0].split(".")[0] for _, text in instructions)
    spills = everything["LDL"] + everything["STL"]
    shared_bytes = sum(_shared_bytes(text) for _, text in loop)
    return Facts(compiled.metadata.shared, stack, spills, names, _executed(loop), shared_bytes)


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([_BIN / tool, *arguments], capture_output=True, text=True, check=True).stdout


def _target(text: str) -> int | None:
    """Where a branch goes."""
    match = re.search(r"0x([0-9a-f]+)", text) if text.startswith("BRA") else None
    return int(match[1], 16) if match else None


def _innermost_loop_with_products(instructions: list[tuple[int, str]]) -> list[tuple[int, str]]:
    position = {address: i for i, (address, _) in enumerate(instructions)}
    loops = []
    for i, (address, text) in enumerate(instructions):
        target = _target(text)
        if target in position and target < address:
            loops.append(instructions[position[target] : i + 1])
    with_products = [loop for loop in loops if sum(text.startswith(("HMMA", "HGMMA", "FFMA")) for _, text in loop) >= 6]
    return min(with_products, key=len, default=[])


def _executed(loop: list[tuple[int, str]]) -> int:
    """Without what a branch goes past that looks at the clock: it is where a wait has found something missing."""
    count, i = 0, 0
    while i < len(loop):
        address, text = loop[i]
        count, i = count + 1, i + 1
        target = _target(text)
        if target is not None and address < target <= loop[-1][0]:
            after = next(j for j in range(i, len(loop)) if loop[j][0] >= target)
            if any("GLOBALTIMER" in skipped for _, skipped in loop[i:after]):
                i = after
    return count


def _shared_bytes(text: str) -> int:
    """Bytes a warp reads from shared memory by one instruction."""
    name = text.split()[0]
    if name.startswith("LDSM"):  # matrices of 8 x 8 16-bit numbers
        return 128 * int(match[1]) if (match := re.search(r"\.(\d)$", name)) else 128
    if name.startswith("LDS"):
        return 32 * (16 if ".128" in name else 8 if ".64" in name else 4)
    return 0


def _amd_facts(compiled) -> Facts:
    text = compiled.asm["amdgcn"]

    def count(field: str) -> int:
        return int(re.findall(rf"\.{field}:\s+(\d+)", text)[-1])

    spills = count("vgpr_spill_count") + count("sgpr_spill_count")
    return Facts(compiled.metadata.shared, count("private_segment_fixed_size"), spills, Counter())


__all__ = ["KNOWN", "Facts", "compiled_variants", "facts", "kernel_launches", "pretend"]
