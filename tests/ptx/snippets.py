"""Builds kernels of a few PTX instructions, and executes them on numpy arrays."""

import math
import struct
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch

from .machine import Outcome, Schedule, execute

_REGISTERS = {"bool": "pred", "uint16": "b16", "uint32": "b32", "uint64": "b64"}


def kernel(body: str, parameters: int) -> str:
    """Return the PTX of a kernel that takes ``parameters`` pointers.

    ``body`` has the pointers in ``%d0``, ``%d1``..., the lane in ``%lane``, and the thread in ``%thread``. ``%smem`` is
    the first address of shared memory. ``body`` may use ``%h`` (16 bits), ``%r`` (32 bits), ``%d`` from ``%d10`` on (64
    bits) and ``%p`` (predicates), with numbers up to 249.
    """
    named = ",\n".join(f"  .param .u64 .ptr .global .align 1 p{i}" for i in range(parameters))
    pointers = "\n".join(f"  ld.param.b64 %d{i}, [p{i}];" for i in range(parameters))
    return f"""
.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 global_smem[];
.visible .entry snippet(
{named}
) {{
  .reg .b16 %h<300>;
  .reg .b32 %r<300>;
  .reg .b64 %d<300>;
  .reg .pred %p<300>;
  .reg .b32 %lane, %thread, %smem;
{pointers}
  mov.u32 %lane, %laneid;
  mov.u32 %thread, %tid.x;
  mov.b32 %smem, global_smem;
  {body}
  ret;
}}
"""


def lanewise(body: str, out: type, *sources: type) -> str:
    """Return a kernel in which thread i computes ``%out`` from ``%a``, ``%b``... and stores it as element i.

    The first parameter points to the results and the others to the sources. Every CTA has one warp. The types are
    numpy's bool or unsigned integers. A bool is a predicate in ``body`` and has 32 bits in memory.
    """
    # %r299 is the index of the element, %r298 a bool in memory, and %d299, %d298... the addresses of the elements.
    lines, final_lines = ["mov.u32 %r299, %ctaid.x;", "mad.lo.s32 %r299, %r299, 32, %lane;"], []
    for i, (name, dtype) in enumerate(zip(["out", "a", "b", "c", "e"], map(np.dtype, (out, *sources)))):
        register, is_bool = _REGISTERS[dtype.name], dtype.name == "bool"
        moved, bits = ("%r298", 32) if is_bool else (f"%{name}", 8 * dtype.itemsize)
        lines += [f".reg .{register} %{name};", f"mad.wide.u32 %d{299 - i}, %r299, {bits // 8}, %d{i};"]
        if name == "out":
            final_lines = ["selp.b32 %r298, 1, 0, %out;"] * is_bool + [f"st.global.b{bits} [%d299], {moved};"]
        else:
            lines.append(f"ld.global.b{bits} {moved}, [%d{299 - i}];")
            lines += [f"setp.ne.s32 %{name}, %r298, 0;"] * is_bool
    return kernel("\n  ".join([*lines, body, *final_lines]), 1 + len(sources))


def vector(first: int, count: int, kind: str = "r") -> str:
    """Return an operand of ``count`` registers from number ``first`` on, in braces if there are several."""
    names = ", ".join(f"%{kind}{first + i}" for i in range(count))
    return f"{{{names}}}" if count > 1 else names


def fragments(move: str, pointer: str, first: int, count: int, threads: int = 32) -> str:
    """Return PTX that loads (``move`` is "ld") or stores ("st") ``count`` registers from number ``first`` on.

    Row i of the array at ``pointer`` has register ``first + i`` of all threads.
    """
    lines = [f"mad.wide.u32 %d30, %thread, 4, {pointer};"]
    for i in range(count):
        register, address = f"%r{first + i}", f"[%d30+{4 * threads * i}]"
        to, source = (register, address) if move == "ld" else (address, register)
        lines.append(f"{move}.global.b32 {to}, {source};")
    return "\n".join(lines)


def compute(body: str, out: type, *sources: np.ndarray, **schedule) -> np.ndarray:
    """Return the results of ``body`` for the elements of the sources. ``body`` is as in `lanewise`.

    ``schedule`` is as in `launch`.
    """
    size = sources[0].size
    padded = -(-size // 32) * 32  # to full warps
    inputs = [np.resize(source, padded).astype(_in_memory(source.dtype)) for source in sources]
    results = np.zeros(padded, _in_memory(out))
    text = lanewise(body, out, *(source.dtype for source in sources))
    launch(text, results, *inputs, grid=(padded // 32, 1, 1), **schedule)
    return results[:size].astype(out)


def launch(text: str, *arguments, grid=(1, 1, 1), warps=1, shared=0, ranges=(), forgiven=(), **schedule) -> Outcome:
    """Execute a `kernel` under a schedule drawn from torch's seed.

    Args:
        arguments: the kernel's arguments. An array stands for its address, and the kernel may touch all of it.
        ranges: (first address, end) of the memory that the kernel may touch, if not the arrays.
        forgiven: as in `execute`.
        schedule: fields of `Schedule` that are fixed.
    """
    arrays = [argument for argument in arguments if isinstance(argument, np.ndarray)]
    assert all(array.flags.c_contiguous for array in arrays)
    values = [argument.ctypes.data if isinstance(argument, np.ndarray) else argument for argument in arguments]
    ranges = ranges or [(array.ctypes.data, array.ctypes.data + array.nbytes) for array in arrays]
    drawn = Schedule.draw(int(torch.randint(1 << 31, ())), cooperative=False, **schedule)
    memory = {f"range {i}": extent for i, extent in enumerate(ranges)}
    return execute(text, values, memory, grid, warps, shared, drawn, forgiven=forgiven)


def _in_memory(dtype: type) -> np.dtype:
    """Return the type in memory of a source or a result of `lanewise`."""
    return np.dtype(np.uint32 if np.dtype(dtype).name == "bool" else dtype)


class Operand:
    """A matrix of wgmma in shared memory, in the canonical layouts of the manual, with gaps between the atoms.

    ``depth`` is the size of the dimension that a product sums over. ``itemsize`` is in bytes. ``swizzle`` is a code: 0
    for none, and 1, 2 or 3 for rows of 128, 64 or 32 bytes. With ``depth_first``, elements with neighbouring depth
    indices are neighbours in memory (the manual's K-major).

    The index of a row is split into digits, and so is the depth index. An element's offset is a sum over all digits.
    `row_digits` and `depth_digits` have a pair for each digit, lowest first: the number of its values, and the bytes
    between neighbouring values.
    """

    def __init__(self, rows: int, depth: int, itemsize: int, swizzle: int, depth_first: bool):
        per_unit = 16 // itemsize  # elements in a unit of 16 bytes
        units = 16 >> swizzle if swizzle else 1  # units in a row of an atom
        atom = 128 * units  # bytes: an atom has eight rows
        rest = 1 << 30  # the last digit has all remaining values
        self.units, self.swizzle, self.depth_first = units, swizzle, depth_first
        # leading and stride: the two distances of the descriptor, in bytes. Each gap is as large as an atom.
        if depth_first:
            self.leading, self.stride = (16, 2 * atom) if swizzle else (128, 128 * (depth // per_unit + 1))
            unit_distance = 16 if swizzle else self.leading
            self.row_digits = [(8, 16 * units), (rest, self.stride)]
            self.depth_digits = [(per_unit, itemsize), (rest, unit_distance)]
        else:
            near, far = atom, atom * ((depth // 8 if swizzle else rows // per_unit) + 1)
            self.leading, self.stride = far, near
            self.row_digits = [(per_unit, itemsize), (units, 16), (rest, far if swizzle else near)]
            self.depth_digits = [(8, 16 * units), (rest, near if swizzle else far)]

    def byte_offset(self, row, depth):
        """Return the offset of an element in bytes, before units are exchanged. Both indices may be arrays."""
        offset = 0
        for index, digits in ((row, self.row_digits), (depth, self.depth_digits)):
            for value_count, distance in digits:
                offset, index = offset + index % value_count * distance, index // value_count
        return offset

    def put(self, image: np.ndarray, base: int, matrix: np.ndarray) -> None:
        """Write a matrix, [rows, depth], into the bytes ``image`` of shared memory, from offset ``base`` on.

        With a swizzle, units of 16 bytes in a row are exchanged. The index of a unit becomes its XOR with the index of
        the block of 128 bytes around the unit.
        """
        offsets = base + self.byte_offset(*np.indices(matrix.shape))
        offsets ^= (offsets >> 7 & self.units - 1) << 4
        image[offsets[..., None] + np.arange(matrix.itemsize)] = np.ascontiguousarray(matrix)[..., None].view(np.uint8)

    def descriptor(self, base: int, depth: int) -> int:
        """Return the descriptor of the part of a matrix at offset ``base`` that begins at depth index ``depth``.

        It assumes that shared memory begins at address 0.
        """
        start = base + self.byte_offset(0, depth)
        return start >> 4 | self.leading >> 4 << 16 | self.stride >> 4 << 32 | self.swizzle << 62


class Format(NamedTuple):
    """A floating-point format of IEEE 754, or bfloat16.

    Attributes:
        bits: the number of bits of a number.
        precision: the number of bits of the significand, the hidden bit included.
        min_exponent: 2 ** ``min_exponent`` is the smallest normal number. 2 ** (1 - ``min_exponent``) is the largest
            power of two that is finite.
        code: the format of `struct` for a number of this format followed by ``appended_zeros`` zero bits.
    """

    bits: int
    precision: int
    min_exponent: int
    code: str
    appended_zeros: int = 0

    def decode(self, bits: int) -> float:
        """Return the number that ``bits`` represent."""
        padded = (bits << self.appended_zeros).to_bytes(struct.calcsize(self.code), "little")
        return struct.unpack(self.code, padded)[0]

    def encode(self, number: float) -> int:
        """Return the bits of a number that the format can represent. A NaN becomes the canonical NaN."""
        if math.isnan(number):
            return (1 << self.bits - 1) - 1
        return int.from_bytes(struct.pack(self.code, number), "little") >> self.appended_zeros

    def round(self, exact: Fraction) -> float:
        """Return the number of the format that is nearest to ``exact``, which is not 0. Ties go to the even number.

        An infinity is returned beyond the largest finite number.
        """
        magnitude = abs(exact)
        # 2 ** exponent is the largest power of two that is not above the magnitude.
        exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
        if Fraction(2) ** exponent > magnitude:
            exponent -= 1
        # The distance of neighbouring numbers. Subnormal numbers have the distance of the smallest normal ones.
        spacing = Fraction(2) ** (max(exponent, self.min_exponent) - self.precision + 1)
        rounded = round(magnitude / spacing) * spacing
        overflows = rounded >= Fraction(2) ** (2 - self.min_exponent)
        return math.copysign(math.inf if overflows else float(rounded), exact)

    def fma(self, a: float, b: float, c: float) -> float:
        """Return a * b + c, rounded once to this format."""
        # A product of two numbers of 24 bits is exact in double. Double underflows gradually, so the sum with c is zero
        # only if the exact sum is zero. It is infinite or NaN only if an operand is. So these results are right.
        in_double = a * b + c
        if not math.isfinite(in_double) or in_double == 0:
            return in_double
        return self.round(Fraction(a) * Fraction(b) + Fraction(c))


F32 = Format(bits=32, precision=24, min_exponent=-126, code="<f")
F16 = Format(bits=16, precision=11, min_exponent=-14, code="<e")
BF16 = Format(bits=16, precision=8, min_exponent=-126, code="<f", appended_zeros=16)
