"""The scans with one stage of a step left out, for stages.py to time: what such a kernel computes is no GRU.

Each is the library's own kernel, loaded once more with some of the functions it calls replaced by those below. These
take the same arguments, and keep the compiler from leaving out more: what they do not use is kept.
"""

import functools
import importlib
import sys
import types

import triton
import triton.language as tl

from triton_gru import kernels
from triton_gru.kernels import exchange, grid
from triton_gru.plan.device import interpreting

_ON_GPU = tl.constexpr(not interpreting())


# What must not be left out is tested for what it never is.
_TEST = tl.constexpr("{ .reg .pred p; setp.eq.b32 p, $1, 0x7FEDCBA9; @p trap; mov.b32 $0, 0; }")


@triton.jit
def _keep(x):
    """Keep what has 32 bits."""
    if _ON_GPU:
        tl.inline_asm_elementwise(_TEST, "=r,r", [x], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _words_as_they_are(
    pointer, tail, abort, watch, BITS: tl.constexpr, PARTS: tl.constexpr, COUNT: tl.constexpr, STRIDE: tl.constexpr,
    HAS_TAIL: tl.constexpr, ROWS: tl.constexpr, ROW_STRIDE: tl.constexpr, NAN: tl.constexpr, PACK: tl.constexpr,
    PROBE: tl.constexpr, OFFSET: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """In place of isa.wait_words: loaded once, whether they have come or not."""
    return exchange.load_words(pointer, tail, PARTS, COUNT, STRIDE, HAS_TAIL, ROWS, ROW_STRIDE, OFFSET, "ptx")


@triton.jit
def _words_of_nothing(
    pointer, tail, abort, watch, BITS: tl.constexpr, PARTS: tl.constexpr, COUNT: tl.constexpr, STRIDE: tl.constexpr,
    HAS_TAIL: tl.constexpr, ROWS: tl.constexpr, ROW_STRIDE: tl.constexpr, NAN: tl.constexpr, PACK: tl.constexpr,
    PROBE: tl.constexpr, OFFSET: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """In place of isa.wait_words: made of their addresses, which differ from word to word and step to step."""
    words = ()
    for i in tl.static_range(COUNT * ROWS * PARTS):
        words = words + ((pointer + i * STRIDE).to(tl.int64).to(tl.int32),)
    return words


@triton.constexpr_function
def _nothing_is_missing(words, bits) -> bool:
    """In place of turns.missing, by which programs wait in the interpreter."""
    return False


@triton.jit
def _not_sent(pointer, value, mask, OFFSET: tl.constexpr, THREADS: tl.constexpr, ISA: tl.constexpr):
    _keep(value.to(tl.int32))


@triton.jit
def _first_products(
    w, kept, x, PARTS: tl.constexpr, FIRST: tl.constexpr, END: tl.constexpr, UNITS: tl.constexpr, BATCH: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr, ISA: tl.constexpr,
):  # fmt: skip
    """In place of grid._products_of_slices: of the first of the tuple of words."""
    WORDS: tl.constexpr = PARTS * (BATCH // 8) if ISA == "ptx" and PARTS == 4 else PARTS
    return grid._products_of_slices(w, kept, x[:WORDS], PARTS, FIRST, END, UNITS, BATCH, DTYPE, PRECISION, ISA)


@triton.jit
def _not_summed(parts, SLICES: tl.constexpr, UNITS: tl.constexpr, BATCH: tl.constexpr, IN_FRAGMENTS: tl.constexpr):
    """In place of slices.sums, for products in fragments."""
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
def _not_activated(g_r, g_z, g_n, a_r, a_z, a_n, h, DTYPE: tl.constexpr, ISA: tl.constexpr):
    return 0.5 * h + ((g_r.to(tl.float32) + a_r) + (g_z.to(tl.float32) + a_z) + (g_n.to(tl.float32) + a_n))


@triton.jit
def _no_gates_of_grid(
    gi, in_tile, there, UNITS: tl.constexpr, ROW: tl.constexpr, ROWS: tl.constexpr, BATCH: tl.constexpr,
    SLICES: tl.constexpr, ALONG: tl.constexpr, RESET_AFTER: tl.constexpr, ISA: tl.constexpr,
):  # fmt: skip
    """In place of grid._load_gates, but for products by lanes."""
    zero = tl.zeros(in_tile.shape, gi.dtype.element_ty)
    return zero, zero, zero


@triton.jit
def _no_gates_of_block(
    gi, UNITS: tl.constexpr, TILES: tl.constexpr, BATCH: tl.constexpr, WARPS: tl.constexpr,
    IN_FRAGMENTS: tl.constexpr, ISA: tl.constexpr,
):  # fmt: skip
    """In place of block._load_gates, for two rows in a program."""
    gates = ()
    for _ in tl.static_range(3 * TILES):
        gates = gates + (tl.zeros(gi.shape, gi.dtype.element_ty),)
    return gates


@triton.jit
def _not_stored(pointer, value, mask, ISA: tl.constexpr, THREADS: tl.constexpr = 0):
    pass


# For each kernel and stage, what replaces which function. Of ``grid``'s stages "waiting" is a part of "hand-over".
STAGES = {
    "grid": {
        "waiting": {"isa.wait_words": _words_as_they_are, "turns.missing": _nothing_is_missing},
        "hand-over": {"isa.wait_words": _words_of_nothing, "turns.missing": _nothing_is_missing, "isa.send": _not_sent},
        "products-but-the-first": {"grid._products_of_slices": _first_products},
        "sums": {"slices.sums": _not_summed},
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


@functools.cache
def without(kernel: str, stage: str):
    """Return the scan of a kernel without one of its `STAGES`."""
    name = f"{__name__}.{kernel} without {stage}"
    package = types.ModuleType(name)
    package.__path__ = list(kernels.__path__)
    sys.modules[name] = package
    module = importlib.import_module(f"{name}.{kernel}")
    for replaced, replacement in STAGES[kernel][stage].items():
        owner, attribute = replaced.split(".")
        owner = sys.modules[f"{name}.{owner}"]
        assert hasattr(owner, attribute), replaced
        setattr(owner, attribute, replacement)
    return getattr(module, f"{kernel}_scan")
