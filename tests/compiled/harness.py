"""Compiles the launches of a call for a GPU that need not be present, and reads the machine code."""

import dataclasses
import functools
import os
import pathlib
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from unittest import mock

import pytest
import torch
import triton
from torch.nn.utils.rnn import pack_padded_sequence
from triton.runtime import driver

import triton_gru
from triton_gru.accuracy import PRECISIONS, set_precision
from triton_gru.call.bind import bind_gru
from triton_gru.launch import execute
from triton_gru.launch.kernel_launch import Launch
from triton_gru.plan.config import GridConfig
from triton_gru.plan.device import KNOWN_DEVICES
from triton_gru.plan.heuristic import HEURISTICS
from triton_gru.tuning.compile_pool import MAX_STACK_BYTES, set_compile_target

# Line info changes no instruction, and writing it takes a tenth of the time.
os.environ["TRITON_DISABLE_LINE_INFO"] = "1"

_BIN = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_LABEL = re.compile(r"^([\w.$]+):")  # of a branch target, or of a function: newer compilers call functions
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?\S+\s+)?(.*?);")

# The first known device of each architecture. A later entry of the dict replaces an earlier one, hence `reversed`.
ARCHITECTURES = list({device.arch: device for device in reversed(KNOWN_DEVICES.values())}.values())


def cases(on_sm_90: Iterable[tuple], elsewhere: Iterable[tuple]) -> list:
    """Return pytest's parameters: a device, a kernel, a precision, a hidden size and a batch size.

    The arguments are tuples of the last four, for devices of sm_90 and for all others. Cases that the heuristic does
    not serve are left out. If several cases of an architecture have the same kernel, precision, hidden size and
    configuration, only the first stays. The dropped cases differ by device or batch size.
    """
    params = {}
    for device in KNOWN_DEVICES.values():
        for kernel, precision, hidden_size, batch_size in on_sm_90 if device.arch == "sm_90" else elsewhere:
            config = HEURISTICS[kernel](hidden_size, batch_size, 1, *PRECISIONS[precision], device)
            if isinstance(config, GridConfig):
                config = dataclasses.replace(config, copies=0)  # the number of copies is not compiled in
            if not isinstance(config, str):
                name = f"{device.name}-{kernel}-{precision}-H{hidden_size}-B{batch_size}"
                param = pytest.param(device, kernel, precision, hidden_size, batch_size, id=name)
                params.setdefault((device.arch, kernel, precision, hidden_size, config), param)
    return list(params.values())


def kernel_launches(
    kernel,
    device,
    precision,
    hidden_size,
    batch_size,
    *,
    steps=2,
    inputs=16,
    config=None,
    odd_address=False,
    hx=False,
    bidirectional=False,
    layout="dense",
    resets=False,
    reset_after=True,
    reverse=False,
):
    """Return the launches that the library would make for a call on ``device``, with uninitialized CPU tensors.

    They can be compiled, but not started.

    Args:
        config: the kernel's configuration, or None for the heuristic's choice.
        odd_address: whether the input begins one element after an aligned address.
        hx: whether the call has an initial state.
        layout: ``"dense"``, ``"packed"`` or ``"lengths"``.
    """
    dtype, fp32_precision = set_precision(precision), PRECISIONS[precision][1]
    options = {"bidirectional": bidirectional, "reset_after": reset_after, "reverse": reverse}
    # Weights are not initialized: for 4096 units that takes longer than to compile.
    gru = triton_gru.GRU(inputs, hidden_size, dtype=dtype, device="meta", **options).to_empty(device="cpu").eval()
    x = torch.empty(steps * batch_size * inputs + odd_address, dtype=dtype)[odd_address:]
    x = x.view(steps, batch_size, inputs)
    hx = torch.empty(1 + bidirectional, batch_size, hidden_size, dtype=dtype) if hx else None
    lengths = torch.full((batch_size,), steps)
    if layout == "packed":
        x = pack_padded_sequence(x, lengths)
    call = bind_gru(
        gru, x, hx, lengths if layout == "lengths" else None,
        torch.zeros(steps, batch_size, dtype=torch.bool) if resets else None,
    )  # fmt: skip
    directions = call.problem.directions
    config = config or HEURISTICS[kernel](hidden_size, batch_size, directions, dtype, fp32_precision, device)
    assert not isinstance(config, str), config
    return list(execute.launches(call, config, device, *execute.allocate(call)))


def count_variants(launches: Iterable[Launch]) -> dict[str, int]:
    """Return how often Triton would compile each kernel for ``launches`` on the active device, by the kernel's name."""
    launches = list(launches)
    kernels = {launch.kernel.__name__: launch.kernel for launch in launches}
    with mock.patch("triton.compiler.compile"):  # a kernel with an empty cache calls this
        for kernel in kernels.values():
            kernel.device_caches.clear()
        for launch in launches:
            launch.compile()
    device = driver.active.get_current_device()
    counts = {name: len(kernel.device_caches[device][0]) for name, kernel in kernels.items()}
    for kernel in kernels.values():
        kernel.device_caches.clear()
    return counts


# The largest number of bytes of stack. Before its loop, when it loads all weights, a kernel may store values there.
STACK_LIMIT = MAX_STACK_BYTES
# The version of Triton for which tables have numbers of instructions. With any other version, a step may take 5 % more.
PINNED_TRITON = "3.6.0"
INSTRUCTION_SLACK = 1 if triton.__version__ == PINNED_TRITON else 1.05


class KernelStats:
    """The resources of a compiled kernel, and the work of a warp in an iteration of its innermost loop with products.

    Attributes:
        shared, stack: bytes of a program's shared memory, and of a thread's stack.
    """

    def __init__(self, compiled):
        self.shared, self._compiled = compiled.metadata.shared, compiled
        if "cubin" in compiled.asm:
            self.stack = int(re.findall(r"STACK:(\d+)", self._read_by("cuobjdump", "--dump-resource-usage"))[-1])
        else:
            self.stack = self._read_amd_field("private_segment_fixed_size")

    @functools.cached_property
    def spills(self) -> int:
        """Return the number of loads and stores of the stack in the loop, or in all code if there is no loop.

        For an AMD GPU, return the number of spilled vector registers.
        """
        if "cubin" not in self._compiled.asm:
            return self._read_amd_field("vgpr_spill_count")  # spilled scalars go to a vector register
        if self.stack == 0:
            return 0
        counts = self.loop or _count_names(self._instructions)
        return counts["LDL"] + counts["STL"]

    @functools.cached_property
    def loop(self) -> Counter:
        """Return the number of the loop's instructions by name."""
        return _count_names(self._loop)

    @property
    def executed(self) -> int:
        """Return how many of the loop's instructions an iteration executes if all that it waits for is there."""
        return _count_executed(self._loop)

    @property
    def shared_bytes_read(self) -> int:
        """Return the bytes that a warp reads from shared memory in an iteration."""
        return sum(_shared_bytes(text) for _, text in self._loop)

    @functools.cached_property
    def _instructions(self) -> list[tuple[int, str]]:
        """Return the address and text of each instruction. Disassembly is slow, so use this only if needed."""
        instructions, labels, addresses = [], [], {}
        for line in self._read_by("nvdisasm", "--print-code", "--no-dataflow").splitlines():
            if match := _LABEL.match(line):
                labels.append(match[1])
            elif match := _INSTRUCTION.match(line):
                instructions.append((int(match[1], 16), match[2]))
                addresses |= dict.fromkeys(labels, match[1])
                labels.clear()
        return [
            (address, re.sub(r"`\((\S+)\)", lambda label: f"0x{addresses[label[1]]}", text))
            for address, text in instructions
        ]

    @functools.cached_property
    def _loop(self) -> list[tuple[int, str]]:
        """Return the address and text of the loop's instructions, empty if no loop has products."""
        return _innermost_loop_with_products(self._instructions)

    def _read_by(self, tool: str, *options: str) -> str:
        """Return the output of one of NVIDIA's tools for the kernel's machine code."""
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self._compiled.asm["cubin"])
            file.flush()
            return subprocess.run([_BIN / tool, *options, file.name], capture_output=True, text=True, check=True).stdout

    def _read_amd_field(self, field: str) -> int:
        """Return the value of a field of the metadata in the assembly for an AMD GPU."""
        return int(re.findall(rf"\.{field}:\s+(\d+)", self._compiled.asm["amdgcn"])[-1])

    def __repr__(self) -> str:
        known = ("shared", "stack", "spills", "loop")
        return f"KernelStats({', '.join(f'{name}={vars(self)[name]}' for name in known if name in vars(self))})"


def _count_names(instructions: list[tuple[int, str]]) -> Counter:
    """Return how often each instruction occurs, by its name without modifiers: ``LDG`` for ``LDG.E.128``."""
    return Counter(text.split()[0].split(".")[0] for _, text in instructions)


def _branch_target(text: str) -> int | None:
    """Return the target address of a branch, or None for any other instruction."""
    match = re.search(r"0x([0-9a-f]+)", text) if text.startswith("BRA") else None
    return int(match[1], 16) if match else None


_MIN_PRODUCTS = 6  # of the loop over time steps: other loops have fewer


def _innermost_loop_with_products(instructions: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Return the shortest loop with at least `_MIN_PRODUCTS` instructions that multiply and add, empty if none has."""
    position = {address: i for i, (address, _) in enumerate(instructions)}
    loops = []
    for i, (address, text) in enumerate(instructions):
        target = _branch_target(text)
        if target in position and target < address:
            loops.append(instructions[position[target] : i + 1])
    products = ("HMMA", "HGMMA", "FFMA")
    with_products = [loop for loop in loops if sum(text.startswith(products) for _, text in loop) >= _MIN_PRODUCTS]
    return min(with_products, key=len, default=[])


# Instructions that ptxas inserts as padding. From version 13 on, ptxas uses the latter two.
_PADDING = ("NOP", "UIADD3 URZ, URZ, URZ, URZ", "UIADD3 URZ, UPT, UPT, URZ, URZ, URZ")


def _count_executed(loop: list[tuple[int, str]]) -> int:
    """Return the number of instructions, without padding and without code that only an unfinished wait executes.

    A branch skips that code, which reads the clock.
    """
    count, i = 0, 0
    while i < len(loop):
        address, text = loop[i]
        count, i = count + (not text.strip().startswith(_PADDING)), i + 1
        target = _branch_target(text)
        if target is not None and address < target <= loop[-1][0]:
            after = next(j for j in range(i, len(loop)) if loop[j][0] >= target)
            if any("GLOBALTIMER" in skipped for _, skipped in loop[i:after]):
                i = after
    return count


def _shared_bytes(text: str) -> int:
    """Return the bytes that a warp reads from shared memory by an instruction."""
    name = text.split()[0]
    if name.startswith("LDSM"):  # 8 x 8 matrices of 16-bit numbers
        return 128 * int(match[1]) if (match := re.search(r"\.(\d)$", name)) else 128
    if name.startswith("LDS"):
        bytes_per_lane = 16 if ".128" in name else 8 if ".64" in name else 4
        return 32 * bytes_per_lane
    return 0


__all__ = [
    "ARCHITECTURES",
    "INSTRUCTION_SLACK",
    "KNOWN_DEVICES",
    "PINNED_TRITON",
    "STACK_LIMIT",
    "KernelStats",
    "cases",
    "count_variants",
    "kernel_launches",
    "set_compile_target",
]
