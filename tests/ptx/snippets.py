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
    """Return the PTX of a kernel with ``parameters`` pointers as its parameters.

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
    lines, last = ["mov.u32 %r299, %ctaid.x;", "mad.lo.s32 %r299, %r299, 32, %lane;"], []
    for i, (name, dtype) in enumerate(zip(["out", "a", "b", "c", "e"], map(np.dtype, (out, *sources)))):
        register, is_bool = _REGISTERS[dtype.name], dtype.name == "bool"
        moved, bits = ("%r298", 32) if is_bool else (f"%{name}", 8 * dtype.itemsize)
        lines += [f".reg .{register} %{name};", f"mad.wide.u32 %d{299 - i}, %r299, {bits // 8}, %d{i};"]
        if name == "out":
            last = ["selp.b32 %r298, 1, 0, %out;"] * is_bool + [f"st.global.b{bits} [%d299], {moved};"]
        else:
            lines.append(f"ld.global.b{bits} {moved}, [%d{299 - i}];")
            lines += [f"setp.ne.s32 %{name}, %r298, 0;"] * is_bool
    return kernel("\n  ".join([*lines, body, *last]), 1 + len(sources))


def vector(first: int, count: int, kind: str = "r") -> str:
    """Return ``count`` registers as an operand, in braces if they are several."""
    names = ", ".join(f"%{kind}{first + i}" for i in range(count))
    return f"{{{names}}}" if count > 1 else names


def fragments(move: str, pointer: str, first: int, count: int, threads: int = 32) -> str:
    """Return loads (``move`` is "ld") or stores of registers. Row i of an array has register i of all threads."""
    lines = [f"mad.wide.u32 %d30, %thread, 4, {pointer};"]
    for i in range(count):
        operands = f"%r{first + i}", f"[%d30+{4 * threads * i}]"
        lines.append(f"{move}.global.b32 {', '.join(operands[:: 1 if move == 'ld' else -1])};")
    return "\n".join(lines)


def compute(body: str, out: type, *sources: np.ndarray, **schedule) -> np.ndarray:
    """Return the result of ``body`` for each element of the sources, by `lanewise`."""
    size = sources[0].size
    padded = -(-size // 32) * 32
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
    return np.dtype(np.uint32 if np.dtype(dtype).name == "bool" else dtype)


class Operand:
    """A matrix of wgmma in shared memory, in the canonical layouts of the manual, with gaps between the atoms.

    An element's offset is a sum over digits of its row and of its depth index. `row` and `depth` have a pair for each
    digit: the number of its values, and the bytes between neighbouring values.
    """

    def __init__(self, rows: int, depth: int, size: int, swizzle: int, depth_first: bool):
        per_unit, units = 16 // size, 16 >> swizzle if swizzle else 1  # elements in a unit of 16 bytes; units in a row
        atom, rest = 128 * units, 1 << 30  # rest: the last digit has all remaining values
        self.units, self.swizzle, self.depth_first = units, swizzle, depth_first
        if depth_first:
            self.leading, self.stride = (16, 2 * atom) if swizzle else (128, 128 * (depth // per_unit + 1))
            step = 16 if swizzle else self.leading
            self.row, self.depth = [(8, 16 * units), (rest, self.stride)], [(per_unit, size), (rest, step)]
        else:
            near, far = atom, atom * ((depth // 8 if swizzle else rows // per_unit) + 1)
            self.leading, self.stride = far, near
            self.row = [(per_unit, size), (units, 16), (rest, far if swizzle else near)]
            self.depth = [(8, 16 * units), (rest, near if swizzle else far)]

    def byte_offset(self, row, depth):
        """Return the offset of an element in bytes, before units are exchanged."""
        total = 0
        for index, digits in ((row, self.row), (depth, self.depth)):
            for count, step in digits:
                total, index = total + index % count * step, index // count
        return total

    def put(self, image: np.ndarray, base: int, matrix: np.ndarray) -> None:
        """Write the elements. Units of 16 bytes are exchanged by the index of their block of 128 bytes."""
        offsets = base + self.byte_offset(*np.indices(matrix.shape))
        offsets ^= (offsets >> 7 & self.units - 1) << 4
        image[offsets[..., None] + np.arange(matrix.itemsize)] = np.ascontiguousarray(matrix)[..., None].view(np.uint8)

    def descriptor(self, base: int, depth: int) -> int:
        """Return the descriptor of the part that begins at ``depth``, if shared memory begins at address 0."""
        start = base + self.byte_offset(0, depth)
        return start >> 4 | self.leading >> 4 << 16 | self.stride >> 4 << 32 | self.swizzle << 62


class Format(NamedTuple):
    """A floating-point format. ``precision`` includes the hidden bit. 2^``least`` is the least normal number."""

    bits: int
    precision: int
    least: int
    code: str  # format of `struct` for the number followed by `zeros` zero bits
    zeros: int = 0

    def decode(self, bits: int) -> float:
        return struct.unpack(self.code, (bits << self.zeros).to_bytes(struct.calcsize(self.code), "little"))[0]

    def encode(self, number: float) -> int:
        """Return the bits of a number that the format can represent. A NaN becomes the canonical NaN."""
        if math.isnan(number):
            return (1 << self.bits - 1) - 1
        return int.from_bytes(struct.pack(self.code, number), "little") >> self.zeros

    def round(self, exact: Fraction) -> float:
        """Return the nearest number of the format, ties to even."""
        size = abs(exact)
        exponent = size.numerator.bit_length() - size.denominator.bit_length()
        exponent -= Fraction(2) ** exponent > size
        step = Fraction(2) ** (max(exponent, self.least) - self.precision + 1)
        rounded = round(size / step) * step
        return math.copysign(math.inf if rounded >= Fraction(2) ** (2 - self.least) else float(rounded), exact)

    def fma(self, a: float, b: float, c: float) -> float:
        approximate = a * b + c  # exact for special numbers and zeros
        if not math.isfinite(approximate) or approximate == 0:
            return approximate
        return self.round(Fraction(a) * Fraction(b) + Fraction(c))


F32, F16, BF16 = Format(32, 24, -126, "<f"), Format(16, 11, -14, "<e"), Format(16, 8, -126, "<f", 16)
