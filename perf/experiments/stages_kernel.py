"""Scans without one stage of a step, which stages.py times. They compute no GRU.

A scan is the library's own kernel, loaded again with some of the functions it calls replaced. The replacements below
have the same parameters. They keep their unused arguments alive, so that the compiler leaves out nothing else.
"""

import functools
import importlib
import sys
import types

import triton
import triton.language as tl

from triton_gru import kernels
from triton_gru.kernels import grid, isa

# A trap if the value is a number that it never is. So the compiler must compute the value.
_TEST = tl.constexpr("{ .reg .pred p; setp.eq.b32 p, $1, 0x7FEDCBA9; @p trap; mov.b32 $0, 0; }")


@triton.jit
def _keep(x):
    """Keep a value of 32 bits, which the compiler could leave out as unused."""
    tl.inline_asm_elementwise(_TEST, "=r,r", [x], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _words_as_they_are(pointer, tail, abort, watch, OFFSET: tl.constexpr, words: tl.constexpr):
    """Load words once, even if they have not come. Replaces isa.wait_words."""
    return tl.inline_asm_elementwise(
        _loads_text(words, OFFSET),
        _loads_registers(words),
        [pointer.to(tl.int64), tail.to(tl.int64)],
        dtype=(tl.int32,) * words.TENSORS,
        is_pure=True,
        pack=words.PACK,
    )


@triton.constexpr_function
def _loads_text(words, offset):
    return "\n".join(isa.wait_loads(words, offset))


@triton.constexpr_function
def _loads_registers(words):
    pack = words.PACK.value
    return ",".join(["=&r"] * words.TENSORS.value * pack + ["l"] * 2 * pack)


@triton.jit
def _words_of_nothing(pointer, tail, abort, watch, OFFSET: tl.constexpr, words: tl.constexpr):
    """Make words from their addresses, which differ from step to step. Replaces isa.wait_words."""
    results = ()
    for i in tl.static_range(words.TENSORS):
        results = results + ((pointer + i * words.STRIDE).to(tl.int64).to(tl.int32),)
    return results


@triton.jit
def _not_sent(pointer, value, mask, OFFSET: tl.constexpr, THREADS: tl.constexpr):
    _keep(value.to(tl.int32))


@triton.jit
def _first_products(w, kept, x, FIRST: tl.constexpr, END: tl.constexpr, cut: tl.constexpr):
    """Make only the products of the first words of the tuple. Replaces grid._products_of_slices."""
    WORDS: tl.constexpr = cut.WORD_LAYOUT.PARTS * (cut.COLUMNS // 8) if cut.IN_FRAGMENTS else cut.WORD_LAYOUT.PARTS
    return grid._products_of_slices(w, kept, x[:WORDS], FIRST, END, cut)


@triton.jit
def _not_summed(parts, SLICES: tl.constexpr, UNITS: tl.constexpr, BATCH: tl.constexpr, IN_FRAGMENTS: tl.constexpr):
    """Keep the products, which are in fragments, and return zeros. Replaces slices.sum_slices."""
    sums = ()
    for part in tl.static_range(len(parts)):
        if IN_FRAGMENTS:
            for k in tl.static_range(0, len(parts[part]), 4):
                bits = parts[part][k].to(tl.int32, bitcast=True)
                for i in tl.static_range(1, 4):
                    bits = bits ^ parts[part][k + i].to(tl.int32, bitcast=True)
                _keep(bits)
        sums = sums + (tl.zeros((BATCH, UNITS), tl.float32),)
    return sums


@triton.jit
def _not_activated(g_r, g_z, g_n, a_r, a_z, a_n, h, DTYPE: tl.constexpr):
    return 0.5 * h + ((g_r.to(tl.float32) + a_r) + (g_z.to(tl.float32) + a_z) + (g_n.to(tl.float32) + a_n))


@triton.jit
def _no_gates_of_grid(gi, in_tile, there, cut: tl.constexpr):
    """Return zeros. Replaces grid._load_gates. Exception: products by lanes have other gates."""
    zero = tl.zeros(in_tile.shape, gi.dtype.element_ty)
    return zero, zero, zero


@triton.jit
def _no_gates_of_block(gi, cut: tl.constexpr):
    """Return zeros. Replaces block._load_gates for programs of two rows."""
    gates = ()
    for _ in tl.static_range(3 * cut.UNIT_TILES):
        gates = gates + (tl.zeros(gi.shape, gi.dtype.element_ty),)
    return gates


@triton.jit
def _not_stored(pointer, value, mask, THREADS: tl.constexpr = 0):
    pass


# For each kernel and stage, functions and their replacements. The stage "waiting" of ``grid`` is a part of "hand-over".
STAGES = {
    "grid": {
        "waiting": {"isa.wait_words": _words_as_they_are},
        "hand-over": {"isa.wait_words": _words_of_nothing, "isa.send": _not_sent},
        "products-but-the-first": {"grid._products_of_slices": _first_products},
        "sums": {"slices.sum_slices": _not_summed},
        "activations": {"isa.gru_update": _not_activated},
        "gate-inputs": {"grid._load_gates": _no_gates_of_grid},
        "output": {"isa.store": _not_stored},
    },
    "block": {
        "activations": {"isa.gru_update": _not_activated},
        "gate-inputs": {"block._load_gates": _no_gates_of_block},
        "output": {"isa.store": _not_stored},
    },
}


def load_copy(name: str, kernel: str) -> types.ModuleType:
    """Return the module of a kernel in a new copy of the package of kernels, named ``name``."""
    for loaded in [module for module in sys.modules if module == name or module.startswith(f"{name}.")]:
        del sys.modules[loaded]
    package = types.ModuleType(name)
    package.__path__ = list(kernels.__path__)
    sys.modules[name] = package
    return importlib.import_module(f"{name}.{kernel}")


@functools.cache
def load_scan_without(kernel: str, stage: str):
    """Return the scan of a kernel without one of its `STAGES`."""
    name = f"{__name__}.{kernel} without {stage}"
    module = load_copy(name, kernel)
    for replaced, replacement in STAGES[kernel][stage].items():
        owner, attribute = replaced.split(".")
        owner = sys.modules[f"{name}.{owner}"]
        assert hasattr(owner, attribute), replaced
        setattr(owner, attribute, replacement)
    return getattr(module, f"{kernel}_scan")
