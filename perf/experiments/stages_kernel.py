"""Scans without one stage of a step, which stages.py times. They compute no GRU.

A scan is the library's own kernel, loaded again with some of the functions it calls replaced. The replacements below
have the same parameters. Some keep a value alive by `_keep`, so that the compiler does not leave out its computation.
"""

import functools
import importlib
import sys
import types

import triton
import triton.language as tl

from triton_gru import kernels
from triton_gru.kernels import grid, isa

# Stop the program if the value equals a constant that it never equals. So the compiler must compute the value.
_TRAP_ON_CONSTANT = tl.constexpr("{ .reg .pred p; setp.eq.b32 p, $1, 0x7FEDCBA9; @p trap; mov.b32 $0, 0; }")


@triton.jit
def _keep(x):
    """Make the compiler compute a value of 32 bits, which it could leave out as unused."""
    tl.inline_asm_elementwise(_TRAP_ON_CONSTANT, "=r,r", [x], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _load_words_without_waiting(pointer, tail, abort, watch, OFFSET: tl.constexpr, layout: tl.constexpr):
    """Load the words once, even if they have not arrived. Replaces isa.wait_words."""
    return tl.inline_asm_elementwise(
        _loads_ptx(layout, OFFSET),
        _loads_registers(layout),
        [pointer.to(tl.int64), tail.to(tl.int64)],
        dtype=(tl.int32,) * layout.TENSORS,
        is_pure=True,
        pack=layout.PACK,
    )


@triton.constexpr_function
def _loads_ptx(layout, offset):
    """Return the PTX of the loads of `isa.wait_words`."""
    return "\n".join(isa.wait_loads(layout, offset))


@triton.constexpr_function
def _loads_registers(layout):
    """Return the constraints of `_loads_ptx`: ``PACK`` registers for each result and for each of two addresses."""
    pack = layout.PACK.value
    return ",".join(["=&r"] * layout.TENSORS.value * pack + ["l"] * 2 * pack)


@triton.jit
def _make_words_from_addresses(pointer, tail, abort, watch, OFFSET: tl.constexpr, layout: tl.constexpr):
    """Return the low halves of addresses instead of words, without a load. Replaces isa.wait_words.

    The addresses differ from step to step, so the compiler cannot compute a step only once.
    """
    results = ()
    for i in tl.static_range(layout.TENSORS):
        results = results + ((pointer + i * layout.STRIDE).to(tl.int64).to(tl.int32),)
    return results


@triton.jit
def _send_nothing(pointer, value, mask, OFFSET: tl.constexpr, THREADS: tl.constexpr):
    """Compute the value to send, without a store. Replaces isa.send."""
    _keep(value.to(tl.int32))


@triton.jit
def _products_of_first_segment(w, w_shared, x, FIRST: tl.constexpr, END: tl.constexpr, cut: tl.constexpr):
    """Return the sums of the products with only the first segment of the state. Replaces grid._products_of_slices.

    The time of the other segments' products is then the difference to the complete kernel. ``x`` has the tensors of all
    segments one after the other, and the first ones are passed on.
    """
    SEGMENT_PARTS: tl.constexpr = (
        cut.WORD_LAYOUT.PARTS * (cut.COLUMNS // 8) if cut.IN_FRAGMENTS else cut.WORD_LAYOUT.PARTS
    )
    return grid._products_of_slices(w, w_shared, x[:SEGMENT_PARTS], FIRST, END, cut)


@triton.jit
def _leave_unsummed(
    products, SLICES: tl.constexpr, UNITS: tl.constexpr, BATCH: tl.constexpr, IN_FRAGMENTS: tl.constexpr
):
    """Keep the products alive, without a sum over the slices, and return zeros. Replaces slices.sum_slices.

    Only products in fragments are kept. In fp32 ieee the products are not in fragments, and stages.py refuses it.
    """
    sums = ()
    for i in tl.static_range(len(products)):
        if IN_FRAGMENTS:
            for k in tl.static_range(0, len(products[i]), 4):  # keep four sums at a time, by their XOR
                bits = products[i][k].to(tl.int32, bitcast=True)
                for m in tl.static_range(1, 4):
                    bits = bits ^ products[i][k + m].to(tl.int32, bitcast=True)
                _keep(bits)
        sums = sums + (tl.zeros((BATCH, UNITS), tl.float32),)
    return sums


@triton.jit
def _update_without_activations(g_r, g_z, g_n, a_r, a_z, a_n, h, DTYPE: tl.constexpr):
    """Return a weighted sum of the gates and the state, without sigmoid and tanh. Replaces isa.gru_update."""
    return 0.5 * h + ((g_r.to(tl.float32) + a_r) + (g_z.to(tl.float32) + a_z) + (g_n.to(tl.float32) + a_n))


@triton.jit
def _make_zero_gates_of_grid(gi, gi_offset, has_row, cut: tl.constexpr):
    """Return zeros as gate inputs, without a load. Replaces grid._load_gate_inputs, except for products by lanes."""
    zero = tl.zeros(gi_offset.shape, gi.dtype.element_ty)
    return zero, zero, zero


@triton.jit
def _make_zero_gates_of_block(gi, cut: tl.constexpr):
    """Return zeros as gate inputs, without a load. Replaces block._load_gate_inputs for programs of two rows."""
    gates = ()
    for _ in tl.static_range(3 * cut.UNIT_TILES):
        gates = gates + (tl.zeros(gi.shape, gi.dtype.element_ty),)
    return gates


@triton.jit
def _store_nothing(pointer, value, mask, THREADS: tl.constexpr = 0):
    """Do nothing. Replaces isa.store."""


# kernel: {stage: {replaced function: replacement}}. The stage "waiting" of ``grid`` is a part of "hand-over".
STAGES = {
    "grid": {
        "waiting": {"isa.wait_words": _load_words_without_waiting},
        "hand-over": {"isa.wait_words": _make_words_from_addresses, "isa.send": _send_nothing},
        "products-but-the-first": {"grid._products_of_slices": _products_of_first_segment},
        "sums": {"slices.sum_slices": _leave_unsummed},
        "activations": {"isa.gru_update": _update_without_activations},
        "gate-inputs": {"grid._load_gate_inputs": _make_zero_gates_of_grid},
        "output": {"isa.store": _store_nothing},
    },
    "block": {
        "activations": {"isa.gru_update": _update_without_activations},
        "gate-inputs": {"block._load_gate_inputs": _make_zero_gates_of_block},
        "output": {"isa.store": _store_nothing},
    },
}


def load_copy(name: str, kernel: str) -> types.ModuleType:
    """Return the module of a kernel from a new copy of the package `triton_gru.kernels`.

    The copy has the name ``name`` in `sys.modules`, and replaces an earlier copy of that name. Changes to modules of
    the copy do not affect the library.
    """
    for module_name in [module for module in sys.modules if module == name or module.startswith(f"{name}.")]:
        del sys.modules[module_name]
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
        module_name, function_name = replaced.split(".")
        owner = sys.modules[f"{name}.{module_name}"]
        assert hasattr(owner, function_name), replaced
        setattr(owner, function_name, replacement)
    return getattr(module, f"{kernel}_scan")
