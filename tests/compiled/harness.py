"""Compiles the launches of a call for a GPU that is not there, and reads what came out."""

import pathlib
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass

import torch
import triton
from torch.nn.utils.rnn import pack_padded_sequence
from triton.runtime import driver

import triton_gru
from triton_gru import launch
from triton_gru.accuracy import PRECISIONS, set_precision
from triton_gru.arguments import bind_gru
from triton_gru.device import KNOWN
from triton_gru.heuristic import HEURISTICS
from triton_gru.tuning.compiling import pretend

_BIN = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?\S+\s+)?(.*?);")


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
    """The launches the library would make for a call on ``device``, on tensors that merely say what they are."""
    dtype, fp32_precision = set_precision(precision), PRECISIONS[precision][1]
    options = {"bidirectional": bidirectional, "reset_after": reset_after, "reverse": reverse}
    gru = triton_gru.GRU(inputs, hidden_size, dtype=dtype, **options).eval()
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
    return list(launch.launches(call, config, device, *launch.allocate(call)))


def compiled_variants(kernel) -> int:
    """How many times ``kernel`` was compiled for the device in force."""
    return len(kernel.device_caches[driver.active.get_current_device()][0])


# Bytes of stack for what may be put away for the time of the loop.
STACK = 32


@dataclass
class Facts:
    """What one compiled kernel takes, and what its innermost loop with products does per iteration (per warp).

    ``spills`` are the loop's loads and stores of its stack: what is put away before it and fetched after it is not.
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
    names, everything = (Counter(text.split()[0].split(".")[0] for _, text in each) for each in (loop, instructions))
    counted = names if loop else everything
    spills = counted["LDL"] + counted["STL"]
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

    # Scalars that are spilled go to a vector register.
    return Facts(
        compiled.metadata.shared, count("private_segment_fixed_size"), count("vgpr_spill_count"), Counter()
    )  # fmt: skip


__all__ = ["KNOWN", "STACK", "Facts", "compiled_variants", "facts", "kernel_launches", "pretend"]
