"""Primitives whose best form depends on the instruction set, each PTX form beside its plain twin.

``ISA`` is a constexpr: ``"ptx"`` on NVIDIA GPUs, ``"plain"`` on any other Triton backend,
``"interpreter"`` under ``TRITON_INTERPRET=1``. All inline assembly of the project is in this file.

Why assembly at all: ``tl.load`` and ``tl.store`` choose a coalesced layout of their own, and moving each
tile between that and the layout of the matrix unit's accumulator costs a trip through shared memory and
two barriers. Element-wise assembly has no layout of its own, so it adopts the accumulator's.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
_STORE_32 = tl.constexpr("{ .reg .pred p; setp.ne.s32 p, $3, 0; @p st.global.b32 [$1], $2; mov.b32 $0, 0; }")
_STORE_16 = tl.constexpr("{ .reg .pred p; setp.ne.s32 p, $3, 0; @p st.global.b16 [$1], $2; mov.b32 $0, 0; }")


@triton.jit
def load_gates(gi, tile_offset, GATE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, ISA: tl.constexpr):
    """The r, z and n inputs of one tile [ROWS, COLS], columns contiguous, gates ``GATE`` elements apart.

    Raw: under PTX a pair of columns is one machine word, so that a prefetched tile costs as few registers
    as it can. `gates_to_float` makes numbers of them. ``GATE`` and ``tile_offset`` are even.
    """
    row = tl.arange(0, ROWS)[:, None]
    if ISA == "ptx":
        pair = tile_offset // 2 + row * (COLS // 2) + tl.arange(0, COLS // 2)[None, :]
        if gi.dtype.element_ty.primitive_bitwidth == 32:
            word = gi.to(tl.pointer_type(tl.int64)) + pair
        else:
            word = gi.to(tl.pointer_type(tl.int32)) + pair
        return _load_word(word), _load_word(word + GATE // 2), _load_word(word + GATE)
    else:
        element = gi + tile_offset + row * COLS + tl.arange(0, COLS)[None, :]
        return tl.load(element), tl.load(element + GATE), tl.load(element + 2 * GATE)


@triton.jit
def _load_word(pointer):
    # Pure: the compiler may keep it in the one layout that is used. Nothing writes gi while it is read.
    if pointer.dtype.element_ty.primitive_bitwidth == 64:
        return tl.inline_asm_elementwise(
            "ld.global.nc.b64 $0, [$1];", "=l,l", [pointer], dtype=tl.int64, is_pure=True, pack=1
        )
    else:
        return tl.inline_asm_elementwise(
            "ld.global.nc.b32 $0, [$1];", "=r,l", [pointer], dtype=tl.int32, is_pure=True, pack=1
        )


@triton.jit
def gates_to_float(raw, DTYPE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, ISA: tl.constexpr):
    """fp32 [ROWS, COLS] of what `load_gates` returned."""
    if ISA == "ptx":
        if DTYPE == tl.float32:
            low = raw.to(tl.int32).to(tl.float32, bitcast=True)
            high = (raw >> 32).to(tl.int32).to(tl.float32, bitcast=True)
        elif DTYPE == tl.bfloat16:
            low = (raw << 16).to(tl.float32, bitcast=True)
            high = (raw & -65536).to(tl.float32, bitcast=True)
        else:
            low = raw.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
            high = (raw >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        return tl.reshape(tl.join(low, high), (ROWS, COLS))
    else:
        return raw.to(tl.float32)


@triton.jit
def store(pointer, value, mask, ISA: tl.constexpr):
    """``tl.store`` that adopts the layout of ``value``."""
    if ISA == "ptx":
        WIDE: tl.constexpr = value.dtype.primitive_bitwidth == 32
        tl.inline_asm_elementwise(
            _STORE_32 if WIDE else _STORE_16,
            "=r,l,r,r" if WIDE else "=r,l,h,r",
            [pointer.to(tl.int64), value, mask.to(tl.int32)],
            dtype=tl.int32,  # assembly has to return something
            is_pure=False,
            pack=1,
        )
    else:
        tl.store(pointer, value, mask=mask)


@triton.jit
def cast(x, DTYPE: tl.constexpr, ISA: tl.constexpr):
    """fp32 to ``DTYPE``, rounded to nearest even. The interpreter would truncate to bf16."""
    if ISA == "interpreter" and DTYPE == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        rounded = tl.where(x == x, rounded, 0x7FC00000)
        return (rounded >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(DTYPE)


@triton.jit
def round_to_tf32(x, ISA: tl.constexpr):
    """fp32 rounded to TF32's 10 mantissa bits. The matrix unit by itself would truncate: twice the error."""
    if ISA == "ptx":
        return tl.inline_asm_elementwise(
            "cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        bits = x.to(tl.int32, bitcast=True)
        rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        return tl.where(x == x, rounded, float("nan"))  # a NaN's payload must not overflow into the sign


@triton.jit
def operand(x, DTYPE: tl.constexpr, PRECISION: tl.constexpr, ISA: tl.constexpr):
    """fp32 ``x`` as an operand of `matmul`: rounded to the precision the matrix unit works in."""
    if PRECISION == "tf32":
        x = round_to_tf32(x, ISA)
    else:
        x = cast(x, DTYPE, ISA)
    if ISA == "ptx":
        # An opaque identity. Without it the search for the best operand layout runs back through the join
        # in gates_to_float, ends in another one than the step before the loop, and W is held twice.
        if x.dtype.primitive_bitwidth == 32:
            return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=1)
        else:
            return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=2)
    else:
        return x


@triton.jit
def matmul(a, b, acc, PRECISION: tl.constexpr, ISA: tl.constexpr):
    """``a @ b + acc`` in fp32. ``PRECISION`` matters for fp32 operands alone: "tf32" or "ieee"."""
    if ISA == "interpreter":
        # Its product of bf16 operands is wrong, and numpy's of fp32 ones may round a column by where it stands.
        product = tl.dot(a.to(tl.float64), b.to(tl.float64), out_dtype=tl.float64)
        return (product + acc).to(tl.float32)
    else:
        return tl.dot(a, b, acc=acc, input_precision=PRECISION)


@triton.jit
def sigmoid(x, DTYPE: tl.constexpr, ISA: tl.constexpr):
    """1 / (1 + e^-x): finite at both infinities. As exact as ``DTYPE`` needs."""
    if ISA == "ptx":
        if DTYPE == tl.float32:
            return _reciprocal(1.0 + _exp2(x * -LOG2_E))
        else:
            return 0.5 * tanh(0.5 * x, DTYPE, ISA) + 0.5
    else:
        return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x, DTYPE: tl.constexpr, ISA: tl.constexpr):
    """Hyperbolic tangent. 16-bit results take the hardware's (2^-11 relative), below their own rounding."""
    if ISA == "ptx":
        if DTYPE == tl.float32:
            return 2.0 * _reciprocal(1.0 + _exp2(x * (-2.0 * LOG2_E))) - 1.0
        else:
            return tl.inline_asm_elementwise(
                "tanh.approx.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
            )
    else:
        return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0


@triton.jit
def _exp2(x):
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _reciprocal(x):
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)
