"""Hashes the PTX of the launches that the heuristic chooses, to check that a change alters no kernel.

    python -m tests.ptx.hashes before.json       # on the tree before the change
    python -m tests.ptx.hashes after.json        # on the tree after it
    python -m tests.ptx.hashes before.json after.json

The last command lists the launches that differ, and exits with status 1 if there is one. A hash depends on names of
kernels and helpers. It does not depend on line numbers and comments. ptxas does not run. With an empty cache, two cores
take a quarter of an hour.
"""

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import pathlib
import re
import sys
import traceback

import torch
from triton.backends.nvidia.compiler import CUDABackend

from ..compiled.harness import HEURISTICS, KNOWN_DEVICES, PRECISIONS, kernel_launches, set_compile_target

# Hidden sizes and batches that the heuristic cuts differently, exact and padded.
SHAPES = {
    "block": ((16, 25, 64, 100, 128, 150, 192), (1, 64, 2000)),
    "grid": ((200, 256, 400, 512, 1024, 1500, 2048), (1, 4, 16, 64)),
    "step": ((25, 300, 512, 1024, 4096), (1, 9, 64)),
}
# A few shapes for the other devices.
ELSEWHERE = {"block": ((100, 128), (1, 64)), "grid": ((200, 512), (1, 16)), "step": ((512,), (1, 64))}
DEVICES = ("H200", "A100", "RTX 4090", "B200", "RTX 5090")
# Options of `kernel_launches` that change what a launch is compiled for. Each shape takes the next options in turn.
CALL_OPTIONS = (
    {},
    {"hx": True},
    {"reset_after": False},
    {"layout": "lengths", "hx": True},
    {"layout": "packed"},
    {"bidirectional": True, "hx": True},
    {"resets": True, "reset_after": False},
    {"reverse": True, "layout": "lengths"},
    {"inputs": 7, "odd_address": True},
    {"steps": 1, "hx": True},
    {"steps": 1, "reset_after": False},
)


def cases() -> list[tuple]:
    """Return a device's name, a kernel, a precision, H, a batch size and options for each call to hash."""
    calls = []
    all_options = itertools.cycle(CALL_OPTIONS)
    for name in DEVICES:
        for kernel, (sizes, batches) in (SHAPES if name == "H200" else ELSEWHERE).items():
            for precision, hidden, batch in itertools.product(PRECISIONS, sizes, batches):
                calls.append((name, kernel, precision, hidden, batch, next(all_options)))
    return calls


def hash_launches(case: tuple) -> dict[str, str]:
    """Return a hash for each launch of one of `cases`, or an empty dict if the kernel does not serve the shape."""
    name, kernel, precision, hidden, batch, options = case
    device, directions = KNOWN_DEVICES[name], 2 if options.get("bidirectional") else 1
    if isinstance(HEURISTICS[kernel](hidden, batch, directions, *PRECISIONS[precision], device), str):
        return {}
    set_compile_target(device)
    options_text = " ".join(f"{key}={value}" for key, value in options.items())
    hashes = {}
    for number, launch in enumerate(kernel_launches(kernel, device, precision, hidden, batch, **options)):
        key = f"{name} {kernel} {precision} H={hidden} B={batch} {options_text} {number}: {launch.kernel.__name__}"
        try:
            text = launch.compile().asm["ptx"]
        except Exception as failure:  # an error is a result, too: hash its message
            text = traceback.format_exception_only(failure)[-1]
        hashes[key] = hashlib.sha256(strip_debug_info(text).encode()).hexdigest()[:16]
    return hashes


def strip_debug_info(ptx: str) -> str:
    """Return PTX without comments, line numbers and debug sections."""
    code = ptx.partition(".section")[0]
    code = re.sub(r"//.*|^\s*\.(loc|file)\b.*|^\$L__tmp\d+:", "", code, flags=re.MULTILINE)
    return re.sub(r"\s+", " ", code)


def _skip_ptxas() -> None:
    """Make Triton stop at PTX, and separate these kernels from complete ones in its cache."""
    original_hash = CUDABackend.hash
    CUDABackend.make_cubin = lambda *args: b""
    CUDABackend.hash = lambda self: f"{original_hash(self)}-without-ptxas"
    torch.set_num_threads(1)


def compare(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return a line for each launch whose hash differs, or that only ``before`` or only ``after`` has."""
    changes = {(True, False): "is gone", (False, True): "is new", (True, True): "differs"}
    return [
        f"{key} {changes[key in before, key in after]}"
        for key in sorted(before | after)
        if before.get(key) != after.get(key)
    ]


def main() -> int:
    """Hash all launches into a file, or compare two files. Return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.ptx.hashes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("after", type=pathlib.Path, nargs="?")
    options = parser.parse_args()
    if options.after:
        before, after = (json.loads(path.read_text()) for path in (options.file, options.after))
        changed = compare(before, after)
        print("\n".join([*changed, f"{len(changed)} of {len(before | after)} differ"]))
        return int(bool(changed))
    hashes = {}
    context = multiprocessing.get_context("spawn")
    with context.Pool(len(os.sched_getaffinity(0)), _skip_ptxas) as pool:
        for number, case_hashes in enumerate(pool.imap_unordered(hash_launches, todo := cases()), 1):
            hashes |= case_hashes
            print(f"\r{number} of {len(todo)}", end="", flush=True)
    options.file.write_text(json.dumps(hashes, indent=0, sort_keys=True))
    print(f"\r{len(hashes)} launches, {len(set(hashes.values()))} of them different: {options.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
