"""Tests of single instructions against NVIDIA's manual of the PTX ISA, with results that Python computes."""

import itertools
import math
import operator
import random
import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
import torch

from . import translate
from .machine import Fault
from .snippets import BF16, F16, F32, Format, Operand, compute, fragments, kernel, lanewise, launch, vector

# The sources have NaNs and infinities, of which numpy warns.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")

# Instructions of one lane, on integers


class Source(NamedTuple):
    """A source of an instruction, whose values are ``edges`` and random bits. ``format`` is None for integers."""

    bits: int
    edges: tuple[int, ...]
    format: Format | None = None

    def draw(self, generator: random.Random) -> int:
        """Return random bits. Half of the floating-point numbers have magnitudes from 2^-6 to 2^7: sums may cancel."""
        bits = generator.getrandbits(self.bits)
        if self.format and generator.random() < 0.5:
            mantissa_bits = self.format.precision - 1
            biased_exponent = generator.randint(-6, 6) - self.format.min_exponent + 1
            bits &= ~(-1 << mantissa_bits) | 1 << self.bits - 1  # only the mantissa and the sign remain
            bits |= biased_exponent << mantissa_bits
        return bits


def _make_integer(bits: int) -> Source:
    """Return a source with integers of ``bits`` bits."""
    return Source(bits, tuple({0, 1, (1 << bits) - 1, (1 << bits - 1) - 1, 1 << bits - 1, 3}) if bits > 1 else (0, 1))


def _make_float(form: Format) -> Source:
    """Return a source with numbers of a floating-point format."""
    one, least_normal, infinity = form.encode(1.0), 1 << form.precision - 1, form.encode(math.inf)
    # infinity + 1 is a NaN.
    edges = 0, 1, least_normal - 1, least_normal, one, one + 1, infinity - 1, infinity, infinity + 1
    negative_edges = (edge | 1 << form.bits - 1 for edge in edges)
    return Source(form.bits, (*edges, *negative_edges), form)


def _make_shift_count(bits: int) -> Source:
    """Return a source with positions and numbers of bits in a number of ``bits`` bits, also beyond its end."""
    return Source(32, (0, 1, 7, bits - 1, bits, bits + 1, 64, 255, 256, 1 << 31, (1 << 32) - 1))


class Case(NamedTuple):
    """A snippet that computes one lane's ``%out`` from ``%a``, ``%b``...

    Attributes:
        bits: the number of bits of the result. For an instruction on pairs of numbers, those of one number.
        expect: a function from the bits of the sources to the bits of the result. It returns None where the manual
            defines no result.
        extra_values: tuples of bits, one for each source, to test in addition to drawn ones.
    """

    body: str
    bits: int
    sources: tuple[Source, ...]
    expect: Callable
    extra_values: tuple = ()


CASES: dict[str, Case] = {}


def _add_case(
    name: str, bits: int, sources: list[Source], expect: Callable, body: str | None = None, extra_values=()
) -> None:
    """Add a case to `CASES`. If ``body`` is None, it is the instruction ``name``."""
    body = body or f"{name} {', '.join(('%out', '%a', '%b', '%c')[: 1 + len(sources)])};"
    CASES[name] = Case(body, bits, tuple(sources), expect, extra_values)


def _to_signed(bits: int, value: int) -> int:
    """Return the number that the low ``bits`` bits of ``value`` represent in two's complement."""
    value &= (1 << bits) - 1
    return value - (value >> bits - 1 << bits)


def _divide(bits: int, a: int, b: int) -> int | None:
    """Return a / b rounded towards zero. Return None if b is 0 or if the quotient overflows."""
    overflows = (a, b) == (-1 << bits - 1, -1)
    return None if b == 0 or overflows else int(Fraction(a, b))


def _compute_remainder(bits: int, a: int, b: int) -> int | None:
    """Return the remainder of `_divide`, or None if there is no quotient."""
    quotient = _divide(bits, a, b)
    return quotient if quotient is None else a - quotient * b


def _extract_field(bits: int, a: int, first: int, count: int, is_signed: bool) -> int:
    """Return the field of ``count`` bits of ``a`` from bit ``first`` on, as bfe does.

    The field is extended by zeros or, if it is signed, by its highest bit.
    """
    first, count = first & 255, count & 255  # only eight bits of both count
    filling = is_signed and count > 0 and a >> min(first + count - 1, bits - 1) & 1
    field = [a >> first + i & 1 if i < count and first + i < bits else filling for i in range(bits)]
    return sum(bit << i for i, bit in enumerate(field))


def _permute_bytes(a: int, b: int, selector: int) -> int:
    """Return four bytes of ``a`` and ``b``, picked by the four nibbles of ``selector``, as prmt does."""
    all_bytes, result = [*a.to_bytes(4, "little"), *b.to_bytes(4, "little")], []
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = all_bytes[nibble & 7]
        result.append((byte >> 7) * 255 if nibble & 8 else byte)  # the high bit replicates the byte's sign
    return int.from_bytes(bytes(result), "little")


_BIT, _WORD = _make_integer(1), _make_integer(32)
# Names, widths, the layout of the result and the sources, and the definition: a function of the width and the sources
# as numbers. Numbers are signed if the name ends with s. Letters of a layout: N is as wide as the name says, W twice as
# wide, s a `_make_shift_count`, p a predicate, and i has 32 bits.
for _names, _widths, _layout, _define in [
    ("add.s add.u", "16 32 64", "N NN", lambda n, a, b: a + b),
    ("sub.s sub.u", "16 32 64", "N NN", lambda n, a, b: a - b),
    ("mul.lo.s mul.lo.u", "16 32 64", "N NN", lambda n, a, b: a * b),
    ("mad.lo.s mad.lo.u", "16 32 64", "N NNN", lambda n, a, b, c: a * b + c),
    ("mul.hi.s mul.hi.u", "16 32 64", "N NN", lambda n, a, b: a * b >> n),
    ("mul.wide.s mul.wide.u", "16 32", "W NN", lambda n, a, b: a * b),
    ("mad.wide.s mad.wide.u", "16 32", "W NNW", lambda n, a, b, c: a * b + c),
    ("div.s div.u", "16 32 64", "N NN", _divide),
    ("rem.s rem.u", "16 32 64", "N NN", _compute_remainder),
    ("min.s min.u", "16 32 64", "N NN", lambda n, a, b: min(a, b)),
    ("max.s max.u", "16 32 64", "N NN", lambda n, a, b: max(a, b)),
    ("max.relu.s", "32", "N NN", lambda n, a, b: max(a, b, 0)),
    ("neg.s", "16 32 64", "N N", lambda n, a: -a),
    ("and.b", "pred 16 32 64", "N NN", lambda n, a, b: a & b),
    ("or.b", "pred 16 32 64", "N NN", lambda n, a, b: a | b),
    ("xor.b", "pred 16 32 64", "N NN", lambda n, a, b: a ^ b),
    ("not.b", "pred 16 32 64", "N N", lambda n, a: ~a),
    ("mov.b", "pred 16 32 64", "N N", lambda n, a: a),
    ("mov.s mov.u", "16 32 64", "N N", lambda n, a: a),
    ("mov.f", "32", "N N", lambda n, a: a),
    ("selp.b selp.s selp.u", "16 32 64", "N NNp", lambda n, a, b, p: a if p else b),
    ("selp.f", "32", "N NNp", lambda n, a, b, p: a if p else b),
    ("shl.b", "16 32 64", "N Ns", lambda n, a, by: a << min(by, n)),
    ("shr.b shr.u shr.s", "16 32 64", "N Ns", lambda n, a, by: a >> min(by, n)),
    ("bfe.s", "32 64", "N Nss", lambda n, a, first, count: _extract_field(n, a, first, count, True)),
    ("bfe.u", "32 64", "N Nss", lambda n, a, first, count: _extract_field(n, a, first, count, False)),
    ("prmt.b", "32", "N NNi", lambda n, *values: _permute_bytes(*values)),
]:  # fmt: skip
    for _name, _width in itertools.product(_names.split(), _widths.split()):
        _bits = 1 if _width == "pred" else int(_width)
        _kinds = {
            "N": _make_integer(_bits),
            "W": _make_integer(2 * _bits),
            "s": _make_shift_count(_bits),
            "p": _BIT,
            "i": _WORD,
        }

        def _expect(*values, bits=_bits, layout=_layout, define=_define, name=_name):
            wide, signed = {"N": bits, "W": 2 * bits}, name.endswith("s")
            source_kinds = layout[2:]  # after the result and a space
            numbers = [_to_signed(wide[k], v) if signed and k in wide else v for k, v in zip(source_kinds, values)]
            result = define(bits, *numbers)
            return result if result is None else result & (1 << wide[layout[0]]) - 1

        _name = _name[:-1] + _width if _width == "pred" else _name + _width
        _add_case(_name, _kinds[_layout[0]].bits, [_kinds[kind] for kind in _layout[2:]], _expect)

_add_case("max.u16x2", 16, [_make_integer(16)] * 2, max)

_BITS = 8, 16, 32, 64
_INTEGERS = [f"{sign}{bits}" for sign in "su" for bits in _BITS]
# A conversion of integers extends by the signedness of the source. A result that is narrower than its register is
# extended by the signedness of the result.
for _to, _source in itertools.product(_INTEGERS, repeat=2):

    def _expect(value, to=_to, source=_source):
        value = _to_signed(int(source[1:]), value) if source[0] == "s" else value & (1 << int(source[1:])) - 1
        value = _to_signed(int(to[1:]), value) if to[0] == "s" else value & (1 << int(to[1:])) - 1
        return value & (1 << max(16, int(to[1:]))) - 1

    if _to[1:] not in (_source[1:], "8"):  # the translator knows no conversion to 8 bits
        _add_case(f"cvt.{_to}.{_source}", max(16, int(_to[1:])), [_make_integer(max(16, int(_source[1:])))], _expect)

ORDERS = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
for (_name, _order), _kind, _bits in itertools.product(ORDERS.items(), "bsu", (16, 32, 64)):

    def _expect(a, b, order=_order, kind=_kind, bits=_bits):
        return int(order(_to_signed(bits, a), _to_signed(bits, b)) if kind == "s" else order(a, b))

    if _kind != "b" or _name in ("eq", "ne"):
        _add_case(f"setp.{_name}.{_kind}{_bits}", 1, [_make_integer(_bits)] * 2, _expect)
_FLOAT_COMPARISONS = [*((name, 0) for name in ORDERS), *((name + "u", 1) for name in ORDERS), ("num", 0), ("nan", 1)]
for _name, _result_of_nan in _FLOAT_COMPARISONS:

    def _expect(a, b, name=_name, result_of_nan=_result_of_nan):
        a, b = F32.decode(a), F32.decode(b)
        if math.isnan(a) or math.isnan(b):
            return result_of_nan
        order = ORDERS.get(name[:2])  # without the "u" of a comparison that is true for NaN
        return int(order(a, b)) if order else 1 - result_of_nan

    _add_case(f"setp.{_name}.f32", 1, [_make_float(F32)] * 2, _expect)


# Sums and products of floating-point numbers, one or two in a register

_DEFINED = {
    "add": lambda f, a, b: f.fma(a, 1.0, b),
    "sub": lambda f, a, b: f.fma(b, -1.0, a),
    "mul": lambda f, a, b: f.fma(a, b, -0.0),
    "fma": lambda f, a, b, c: f.fma(a, b, c),
}
# Products halfway between two bf16 numbers: 7 * 37 = 259 has nine bits. A third operand decides the rounding. Some are
# too small for a double's sum.
_HALFWAY = tuple(
    tuple(BF16.encode(number) for number in (sign_a * 7, 37 / 256, sign_c * 1.5 * 2.0**-exponent))
    for sign_a, sign_c, exponent in itertools.product((1, -1), (1, -1), range(45, 60))
)
for _operation, _define in _DEFINED.items():
    for (_type, _format), _pair in itertools.product({"f32": F32, "f16": F16, "bf16": BF16}.items(), ("", "x2")):
        for _mode in ("", ".rn") if _operation != "fma" else (".rn",):
            _source = _make_float(_format)
            if _format != F32 and _operation in ("sub", "mul"):
                continue  # the translator does not know these

            def _expect(*values, f=_format, define=_define):
                return f.encode(define(f, *map(f.decode, values)))

            _sources = [_source] * (3 if _operation == "fma" else 2)
            _extra_values = _HALFWAY if (_operation, _type) == ("fma", "bf16") else ()
            _add_case(
                f"{_operation}{_mode}.{_type}{_pair}", _source.bits, _sources, _expect, extra_values=_extra_values
            )


def _flush(number: float) -> float:
    """Return the number, or a zero of the same sign if the number is subnormal."""
    return math.copysign(0, number) if abs(number) < 2.0**F32.min_exponent else number


for _name, _arguments, _define in (("fma.rn.ftz.f32", 3, F32.fma), ("abs.ftz.f32", 1, abs)):

    def _expect(*values, define=_define):
        return F32.encode(_flush(define(*(_flush(F32.decode(value)) for value in values))))

    _add_case(_name, 32, [_make_float(F32)] * _arguments, _expect)

# Moves between registers of different widths, immediates, and guards

for _body, _bits, _widths, _define in [
    ("mov.b32 %out, {%a, %b};", 32, (16, 16), lambda a, b: a | b << 16),
    ("mov.b64 %out, {%a, %b};", 64, (32, 32), lambda a, b: a | b << 32),
    ("mov.b64 %out, {%a, %b, %c, %e};", 64, (16,) * 4, lambda a, b, c, e: a | b << 16 | c << 32 | e << 48),
    ("mov.b32 {%out, %h1}, %a;", 16, (32,), lambda a: a & 0xFFFF),
    ("mov.b32 {_, %out}, %a;", 16, (32,), lambda a: a >> 16),
    ("{ .reg .b32 low, %a1; mov.b64 {low, %out}, %a; }", 32, (64,), lambda a: a >> 32),
    ("mov.b64 {%h0, %h1, %out, %h3}, %a;", 16, (64,), lambda a: a >> 32 & 0xFFFF),
    ("mov.b32 %r1, %a; mov.b32 {%h0, %h1}, %r1; mov.b32 %out, {%h1, %h0};", 32, (32,), lambda a: a << 16 | a >> 16),
    ("mov.b32 %out, 0f3F800000;", 32, (32,), lambda a: 0x3F800000),
    ("add.s64 %out, %a, -3;", 64, (64,), lambda a: a - 3),
    ("add.s16 %out, %a, 0xFFFFU;", 16, (16,), lambda a: a - 1),
    ("selp.b16 %out, %a, %b, %c;", 16, (16, 16, 1), lambda a, b, c: a if c else b),
    ("mov.b32 %out, 7; @%a mov.b32 %out, 9;", 32, (1,), lambda a: 9 if a else 7),
    ("mov.b32 %out, 7; @!%a mov.b32 %out, 9;", 32, (1,), lambda a: 7 if a else 9),
    ("mov.b32 %out, 7; @%a bra $L_end; mov.b32 %out, 9; $L_end:", 32, (1,), lambda a: 7 if a else 9),
    ("and.b32 %r1, %a, 15; mov.b32 %out, 0; again: add.s32 %out, %out, %r1; sub.s32 %r1, %r1, 1;"
     "setp.ge.s32 %p1, %r1, 0; @!%p1 bra done; bra.uni again; done:", 32, (32,), lambda a: sum(range(1 + a % 16))),
]:  # fmt: skip
    _expect = lambda *values, bits=_bits, define=_define: define(*values) & (1 << bits) - 1  # noqa: E731
    _add_case(_body, _bits, [_make_integer(width) for width in _widths], _expect, _body)


def _numpy_type(bits: int) -> np.dtype:
    return np.dtype({1: np.bool_, 16: np.uint16, 32: np.uint32, 64: np.uint64}[bits])


def _types(name: str) -> list[type]:
    """Return the types of the result and the sources of a case. Instructions on pairs of numbers double the widths."""
    widths = [CASES[name].bits, *(source.bits for source in CASES[name].sources)]
    return [_numpy_type(bits * (1 + name.endswith("x2"))) for bits in widths]


def _draw_values(case: Case) -> list[list[int]]:
    """Draw a list of values for each source: up to 700 combinations of edges, extra values, and 256 of random bits."""
    generator = random.Random(int(torch.randint(1 << 62, ())))
    edges = list(itertools.product(*(source.edges for source in case.sources)))
    rows = generator.sample(edges, min(len(edges), 700)) + list(case.extra_values)
    rows += [tuple(source.draw(generator) for source in case.sources) for _ in range(256)]
    return [list(column) for column in zip(*rows)]


@pytest.mark.parametrize("name", CASES)
def test_computes(name):
    case, (result_type, *source_types) = CASES[name], _types(name)
    # The numbers in the low halves of registers and, for instructions on pairs, those in the high halves.
    halves = [_draw_values(case) for _ in range(1 + name.endswith("x2"))]
    registers = [
        sum(np.array(values, np.uint64) << i * case.bits for i, values in enumerate(of_source))
        for of_source in zip(*halves)
    ]
    sources = [register.astype(to) for register, to in zip(registers, source_types)]
    results = compute(case.body, result_type, *sources)
    for i, values in enumerate(halves):
        for result, *row in zip(results.astype(np.uint64) >> i * case.bits, *values):
            expected, result = case.expect(*row), int(result) & (1 << case.bits) - 1
            assert expected is None or result == expected, (name, [hex(v) for v in row], hex(result), hex(expected))


# Conversions of floating-point numbers, and instructions of a whole warp


def _draw_bits(bits: int, size: int = 1024) -> np.ndarray:
    """Return ``size`` random numbers of ``bits`` bits."""
    generator = random.Random(int(torch.randint(1 << 62, ())))
    return np.frombuffer(generator.randbytes(bits // 8 * size), _numpy_type(bits))


# The least fp32 numbers that overflow f16 and bf16, and their neighbours.
_OVERFLOW = np.array([0x477FF000 + i for i in (-1, 0, 1)] + [0x7F7F8000 + i for i in (-1, 0, 1)], np.uint32)
_HALVES = np.arange(1 << 16, dtype=np.uint16)


def _widen(bits: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Return 16-bit numbers of ``dtype`` as fp32 numbers."""
    return torch.from_numpy(bits.view(np.int16)).view(dtype).float().numpy()


def _narrow(bits: np.ndarray, to: torch.dtype) -> np.ndarray:
    """Round fp32 numbers to 16 bits as torch does. Return the bits, with the canonical NaN."""
    narrow = torch.from_numpy(bits.view(np.float32).copy()).to(to).view(torch.int16).numpy().view(np.uint16)
    return _canonicalize(narrow, {torch.float16: F16, torch.bfloat16: BF16}[to])


def _draw_around_halves(dtype: torch.dtype) -> np.ndarray:
    """Return bits of fp32 numbers: every 16-bit number, midpoints of neighbours, and numbers next to these midpoints.

    `_OVERFLOW` and random bits follow.
    """
    low, high = _widen(_HALVES, dtype), _widen(_HALVES + np.uint16(1), dtype)
    middle = (low / 2 + high / 2).view(np.uint32)
    return np.concatenate([low.view(np.uint32), middle - 1, middle, middle + 1, _OVERFLOW, _draw_bits(32, 1 << 14)])


def _to_tf32(bits: np.ndarray) -> np.ndarray:
    """Round fp32 numbers to nearest, ties away from zero. The low bits of a NaN become zero, as on an H200."""
    numbers = bits.view(np.float32).astype(np.float64)
    finite = np.where(np.isfinite(numbers), numbers, 0)
    # TF32 has ten mantissa bits, and the exponents of fp32. frexp's exponent is larger by one than that of 1.xxx.
    _, exponent = np.frexp(finite)
    spacing = 2.0 ** (np.maximum(exponent, -125) - 11)
    rounded = np.copysign(np.floor(np.abs(finite) / spacing + 0.5) * spacing, finite).astype(np.float32).view(np.uint32)
    return np.where(np.isfinite(numbers), rounded, bits & 0xFFFFE000)


def _draw_around_tf32() -> np.ndarray:
    """Return bits of fp32 numbers: random ones, midpoints of TF32 numbers, numbers just below these, and edges."""
    bits = _draw_bits(32, 4096)
    edges = np.array(_make_float(F32).edges, np.uint32)
    return np.concatenate([bits, bits & 0xFFFFE000 | 0x1000, bits & 0xFFFFE000 | 0xFFF, edges])


def _by_warp(compute_warp: Callable) -> Callable:
    """Return a function that applies ``compute_warp`` to the 32 lanes of each warp."""

    def compute_all(*sources: np.ndarray) -> np.ndarray:
        warps = zip(*(source.reshape(-1, 32) for source in sources))
        return np.concatenate([compute_warp(*rows) for rows in warps])

    return compute_all


_LANE = np.arange(32)
_DRAW_TWO_WORDS = lambda: [_draw_bits(32), _draw_bits(32)]  # noqa: E731
# Instruction -> the bits of the result, a function that draws the sources, and a function from the sources to the
# result.
VECTORS = {
    "cvt.f32.f16": (32, lambda: [_HALVES], lambda a: _widen(a, torch.float16).view(np.uint32)),
    "cvt.f32.bf16": (32, lambda: [_HALVES], lambda a: _widen(a, torch.bfloat16).view(np.uint32)),
    **{
        f"add.rn.f32.{name}": (
            32, lambda: [_HALVES, _draw_around_halves(torch.float16)[-(1 << 16) :]],
            lambda a, b, of=of: _canonicalize((_widen(a, of) + b.view(np.float32)).view(np.uint32), F32),
        ) for name, of in (("f16", torch.float16), ("bf16", torch.bfloat16))
    },
    "cvt.rn.f16.f32": (16, lambda: [_draw_around_halves(torch.float16)], lambda a: _narrow(a, torch.float16)),
    "cvt.rn.bf16.f32": (16, lambda: [_draw_around_halves(torch.bfloat16)], lambda a: _narrow(a, torch.bfloat16)),
    **{
        f"cvt.rn.{name}x2.f32": (
            32, lambda of=of: [_draw_around_halves(of)[::5], _draw_around_halves(of)[::-5]],
            lambda a, b, of=of: _narrow(a, of).astype(np.uint32) << 16 | _narrow(b, of),
        ) for name, of in (("f16", torch.float16), ("bf16", torch.bfloat16))
    },
    "cvt.rna.tf32.f32": (32, lambda: [_draw_around_tf32()], _to_tf32),
    "cvt.rn.f16.u32": (
        16, lambda: [np.concatenate([np.arange(70000, dtype=np.uint32), _draw_bits(32)])],
        lambda a: a.astype(np.float64).astype(np.float16).view(np.uint16),
    ),
    **{
        f"shfl.sync.bfly.b32 %out, %a, {mask}, 31, -1;": (
            32, lambda: [_draw_bits(32)], _by_warp(lambda a, mask=mask: a[_LANE ^ mask]),
        ) for mask in (1, 2, 4, 8, 16, 31)
    },
    "shfl.sync.bfly.b32 %out, %a, %b, 0x1f, -1;": (32, _DRAW_TWO_WORDS, _by_warp(lambda a, b: a[_LANE ^ b % 32])),
    "shfl.sync.idx.b32 %out, %a, %b, 31, -1;": (32, _DRAW_TWO_WORDS, _by_warp(lambda a, b: a[b % 32])),
    "movmatrix.sync.aligned.m8n8.trans.b16 %out, %a;": (
        32, lambda: [_draw_bits(32)],
        _by_warp(lambda a: np.ascontiguousarray(a.view(np.uint16).reshape(8, 8).T).reshape(64).view(np.uint32)),
    ),
    "redux.sync.add.s32 %out, %a, -1;": (32, _DRAW_TWO_WORDS, _by_warp(lambda a, b: a.sum(dtype=np.uint32).repeat(32))),
    "redux.sync.max.s32 %out, %a, -1;": (  # all numbers of the second half of the warps are negative
        32, lambda: [_draw_bits(32) | (np.arange(1024, dtype=np.uint32) >> 9 << 31)],
        _by_warp(lambda a: a.view(np.int32).max().repeat(32).view(np.uint32)),
    ),
    "setp.ge.s32 %p1, %a, 0; vote.sync.any.pred %p1, %p1, -1; mov.b32 %out, 0; @%p1 mov.b32 %out, 1;": (
        32, lambda: [_draw_bits(32) | (np.arange(1024, dtype=np.uint32) >> 9 << 31)],
        _by_warp(lambda a: (a.view(np.int32) >= 0).any().repeat(32).astype(np.uint32)),
    ),
}  # fmt: skip


def _canonicalize(bits: np.ndarray, form: Format) -> np.ndarray:
    """Return the bits of numbers of a format, with the canonical NaN for every NaN."""
    nan = (bits & (1 << form.bits - 1) - 1) > form.encode(math.inf)
    return np.where(nan, np.array(form.encode(math.nan), bits.dtype), bits)


def _make_body(name: str, sources: int) -> str:
    """Return the body of a snippet. ``name`` is the snippet, or the name of an instruction of ``sources`` sources."""
    return name if name.endswith(";") else f"{name} {', '.join(('%out', '%a', '%b')[: 1 + sources])};"


@pytest.mark.parametrize("name", VECTORS)
def test_computes_vectors(name):
    bits, draw, expect = VECTORS[name]
    sources = draw()
    actual, expected = compute(_make_body(name, len(sources)), _numpy_type(bits), *sources), expect(*sources)
    if name.startswith("cvt.f32"):  # the manual does not define which NaN results
        actual, expected = _canonicalize(actual, F32), _canonicalize(expected, F32)
    wrong = np.flatnonzero(actual != expected)[:5]
    assert not wrong.size, [(*(hex(s[i]) for s in sources), hex(actual[i]), hex(expected[i])) for i in wrong]


# Instruction -> the function, the allowed relative error, the range of sources' exponents, and tuples of special
# sources and their result. _TINY is subnormal, and _HUGE the largest power of two.
_INF, _NAN, _TINY, _HUGE = math.inf, math.nan, 2.0**-140, 2.0**127
APPROXIMATIONS = {
    "ex2.approx.f32": (
        np.exp2, 2.0**-22, (-12, 6.9), [(-_INF, 0.0), (_INF, _INF), (-0.0, 1.0), (-140.0, _TINY), (-200.0, 0.0)],
    ),
    "ex2.approx.ftz.f32": (
        np.exp2, 2.0**-22, (-12, 6.9), [(-_INF, 0.0), (_INF, _INF), (_TINY, 1.0), (-140.0, 0.0), (128.0, _INF)],
    ),
    "rcp.approx.ftz.f32": (
        lambda a: 1 / a, 2.0**-23, (-120, 120),
        [(0.0, _INF), (-0.0, -_INF), (1 / _HUGE, _INF), (-1 / _HUGE, -_INF), (_INF, 0.0), (_HUGE, 0.0), (-_HUGE, -0.0)],
    ),
    "tanh.approx.f32": (
        np.tanh, 2.0**-11, (-60, 3.3),
        [(0.0, 0.0), (-0.0, -0.0), (_INF, 1.0), (-_INF, -1.0), (11.0, 1.0), (-80.0, -1.0)],
    ),
    "div.full.f32": (
        np.divide, 2.0**-23, (-40, 40),
        [(1.0, 0.0, _INF), (0.0, 0.0, _NAN), (_INF, -2.0, -_INF), (1.0, -_INF, -0.0), (_INF, _INF, _NAN)],
    ),
}  # fmt: skip


def _arity(name: str) -> int:
    """Return the number of sources of one of `APPROXIMATIONS`."""
    return 1 + name.startswith("div")


@pytest.mark.parametrize("error", [0.0, 1.0])
@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_approximates(name, error):
    """Compare with numpy. With ``error=0``, only the error of rounding remains.

    With ``error=1``, the largest error is more than 0.9 of the allowed error, and at most that plus two roundings.
    """
    function, bound, (lowest, highest), _ = APPROXIMATIONS[name]
    arity = _arity(name)
    exponents = torch.rand(arity, 8192, dtype=torch.float64) * (highest - lowest) + lowest
    sources = (2**exponents * torch.randn(arity, 8192).sign()).float().numpy()
    exact = function(*sources.astype(np.float64))
    actual = compute(_make_body(name, arity), np.uint32, *sources.view(np.uint32), error=error)
    relative = np.abs(actual.view(np.float32) / exact - 1)
    rounding = 2.0**-24
    assert (relative < error * (bound + rounding) + rounding * 1.001).all()
    assert error == 0 or relative.max() > 0.9 * bound


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_approximates_special_numbers(name):
    *_, special = APPROXIMATIONS[name]
    special = [*special, (_NAN,) * (1 + _arity(name))]  # NaN gives NaN
    *sources, expected = np.array(special, np.float32).view(np.uint32).T
    actual = compute(_make_body(name, _arity(name)), np.uint32, *sources, error=0.0)
    assert (actual == _canonicalize(expected, F32)).all(), actual.view(np.float32)


# Arguments, special registers, memory


# No kernel loads an argument of eight bits.
@pytest.mark.parametrize("kind", [kind for kind in _INTEGERS if kind not in ("s8", "u8")] + ["b16", "b32", "b64"])
def test_loads_arguments(kind):
    bits, out = int(kind[1:]), np.zeros(1, np.uint64)
    text = kernel(f"ld.param.{kind} %d10, [p1]; st.global.b64 [%d0], %d10;", 2)
    for argument in (0x0123456789ABCDEF, 0xFEDCBA9876543210, 0x8000800080008000):
        launch(text, out, argument)
        expected = _to_signed(bits, argument) if kind[0] == "s" else argument & (1 << bits) - 1
        assert int(out[0]) == expected & (1 << 64) - 1


# Arguments at an address that the lane chooses. Newer compilers choose between two pointers in this way.
CHOSEN_ARGUMENT = {
    bits: f"""setp.lt.u32 %p1, %lane, 9; mov.b{bits} %{r}40, p2; mov.b{bits} %{r}41, p1;
    selp.b{bits} %{r}42, %{r}40, %{r}41, %p1; ld.param.KIND %d10, [%{r}42];
    mad.wide.u32 %d11, %lane, 8, %d0; st.global.b64 [%d11], %d10;"""
    for bits, r in ((32, "r"), (64, "d"))  # the bits of an address, and the letter of its registers in snippets.py
}


@pytest.mark.parametrize("bits", CHOSEN_ARGUMENT)
@pytest.mark.parametrize("kind", ["b32", "s32", "u16", "b64"])
def test_loads_arguments_by_address(bits, kind):
    out, arguments = np.zeros(32, np.uint64), (0x8123456789ABCDEF, 0xFEDCBA98F6543210)
    launch(kernel(CHOSEN_ARGUMENT[bits].replace("KIND", kind), 3), out, *arguments)
    n = int(kind[1:])
    values = [_to_signed(n, argument) if kind[0] == "s" else argument & (1 << n) - 1 for argument in arguments]
    expected = [values[1 if lane < 9 else 0] & (1 << 64) - 1 for lane in range(32)]
    assert out.tolist() == expected


@pytest.mark.parametrize(
    "change, fault",
    [
        ("add.s64 %d42, %d42, 4;", "OUT_OF_BOUNDS"),
        ("add.s64 %d42, %d42, 8;", "OUT_OF_BOUNDS"),
        ("sub.s64 %d42, %d42, 16;", "OUT_OF_BOUNDS"),
        ("mov.b64 %d42, %d60;", "UNDEFINED"),
    ],
)
def test_loading_from_an_address_of_no_argument_is_a_fault(change, fault):
    text = CHOSEN_ARGUMENT[64].replace("ld.param.KIND", f"{change} ld.param.b64")
    with pytest.raises(Fault, match=fault):
        launch(kernel(text, 3), np.zeros(32, np.uint64), 1, 2)


def test_special_registers():
    names = [f"{name}.{axis}" for name in ("tid", "ctaid", "ntid", "nctaid") for axis in "xyz"]
    names += ["laneid", "warpid", "dynamic_smem_size"]
    rows = [f"mov.u32 %r{10 + i}, %{name};" for i, name in enumerate(names)]
    out = np.full((2, 3, 4, 64, 15), 0xFFFFFFFF, np.uint32)
    thread_index = "%r9, %ctaid.z, 3, %ctaid.y; mad.lo.s32 %r9, %r9, 4, %ctaid.x; mad.lo.s32 %r9, %r9, 64, %thread;"
    rows += [f"mad.lo.s32 {thread_index} mad.wide.u32 %d10, %r9, 60, %d0;"]
    rows += [f"st.global.b32 [%d10+{4 * i}], %r{10 + i};" for i in range(15)]
    launch(kernel("\n".join(rows), 1), out, grid=(4, 3, 2), warps=2, shared=1040)
    z, y, x, thread = np.indices(out.shape[:4])
    by_name = {
        "tid": (thread, 0, 0), "ctaid": (x, y, z), "ntid": (64, 1, 1), "nctaid": (4, 3, 2),
        "others": (thread % 32, thread // 32, 1040),
    }  # fmt: skip
    expected = [np.broadcast_to(value, x.shape) for values in by_name.values() for value in values]
    assert (out == np.stack(expected, -1)).all()


# The loads and stores of global memory, without vector and type.
GLOBAL = [
    ("ld.global", "st.global"), ("ld.global.nc", "st.global"), ("ld.global.cg", "st.global"),
    ("ld.relaxed.gpu.global", "st.relaxed.gpu.global"), ("ld.relaxed.sys.global", "st.relaxed.sys.global"),
]  # fmt: skip
# The bits of an element, and the number of elements of a vector.
WIDTHS = [(bits, count) for bits in _BITS[1:] for count in (1, 2, 4) if bits * count <= 128]


_REGISTER_LETTERS = {16: "h", 32: "r", 64: "d"}  # as in snippets.py


def _global_text(load: str, store: str, bits: int, count: int, offset: int) -> str:
    """Return a kernel in which lane i copies vector i + ``offset`` of one array to vector i - ``offset`` of another."""
    names, size = vector(20, count, _REGISTER_LETTERS[bits]), bits * count // 8
    suffix = f"{f'.v{count}' if count > 1 else ''}.{'bu'[bits == 32]}{bits}"
    return kernel(
        f"""mad.wide.u32 %d10, %lane, {size}, %d0; mad.wide.u32 %d11, %lane, {size}, %d1;
        {load}{suffix} {names}, [%d11+{offset * size}]; {store}{suffix} [%d10 + {-offset * size}], {names};""", 2,
    )  # fmt: skip


def _shared_text(bits: int, count: int) -> str:
    """Return a kernel whose lanes exchange a vector with their neighbours through shared memory."""
    names, size = vector(20, count, _REGISTER_LETTERS[bits]), bits * count // 8
    suffix = f"{f'.v{count}' if count > 1 else ''}.b{bits}"
    return kernel(
        f"""mad.wide.u32 %d10, %lane, {size}, %d0; mad.wide.u32 %d11, %lane, {size}, %d1;
        mad.lo.s32 %r5, %lane, {size}, %smem; xor.b32 %r6, %lane, 1; mad.lo.s32 %r6, %r6, {size}, %smem;
        ld.global{suffix} {names}, [%d11]; st.shared{suffix} [%r5+64], {names}; add.s32 %r6, %r6, 128;
        bar.warp.sync -1; ld.shared{suffix} {names}, [%r6+-64]; st.global{suffix} [%d10], {names};""", 2,
    )  # fmt: skip


@pytest.mark.parametrize("bits, count", WIDTHS)
def test_moves_through_memory(bits, count):
    size = bits * count // 8
    # 40 vectors: one for each of the 32 lanes, and four before and after.
    source = _draw_bits(64, 5 * size).view(np.uint8).reshape(-1, size)
    for (load, store), offset in itertools.product(GLOBAL, (-3, 0, 2)):
        out = np.zeros_like(source)
        extents = [(array.ctypes.data, array.ctypes.data + array.nbytes) for array in (out, source)]
        addresses = [first + 4 * size for first, _ in extents]
        launch(_global_text(load, store, bits, count, offset), *addresses, ranges=extents)
        expected = np.zeros_like(source)
        expected[4 - offset :][:32] = source[4 + offset :][:32]
        assert (out == expected).all(), (load, offset)
    out = np.zeros_like(source)
    launch(_shared_text(bits, count), out, source, shared=32 * size + 64)  # the kernel uses an offset of 64 bytes
    assert (out[:32] == source[:32].reshape(16, 2, size)[:, ::-1].reshape(32, size)).all()


# Lanes store four bytes as two pairs, in each of which the bytes are swapped. They load the bytes of the neighbouring
# lane.
PAIRS = kernel(
    """mad.wide.u32 %d10, %lane, 4, %d0; mad.wide.u32 %d11, %lane, 4, %d1; mad.lo.s32 %r5, %lane, 4, %smem;
    ld.global.v4.b8 {%h1, %h2, %h3, %h4}, [%d11]; st.shared.v4.b8 [%r5], {%h2, %h1, %h4, %h3}; bar.warp.sync -1;
    xor.b32 %r5, %r5, 4; ld.shared.v2.b8 {%h5, %h6}, [%r5]; ld.shared.b16 %h7, [%r5+2];
    st.global.b16 [%d10], %h5; st.global.b16 [%d10+2], %h7;""", 2,
)  # fmt: skip


def test_moves_bytes_through_shared_memory_in_pairs():
    source, out = _draw_bits(32, 32), np.zeros((32, 2), np.uint16)
    launch(PAIRS, out, source, shared=128)
    # Neighbouring lanes are swapped, and the two bytes of each pair.
    swapped = source.view(np.uint8).reshape(16, 2, 2, 2)[:, ::-1, :, ::-1].reshape(32, 4)
    assert np.array_equal(out[:, 0], swapped[:, 0])
    assert np.array_equal(out[:, 1], swapped[:, 2] + swapped[:, 3] * np.uint16(256))


# Lanes store their number as a byte, and load the byte of the neighbouring lane.
BYTES = kernel(
    """add.s32 %r5, %lane, %smem; xor.b32 %r6, %lane, 1; mad.wide.u32 %d10, %lane, 2, %d0; add.s32 %r6, %r6, %smem;
    cvt.u16.u32 %h1, %lane; st.shared.b8 [%r5], %h1; bar.warp.sync -1; ld.shared.b8 %h2, [%r6];
    st.global.b16 [%d10], %h2;""", 1,
)  # fmt: skip


def test_moves_bytes_through_shared_memory():
    out = np.zeros(32, np.uint16)
    with pytest.raises(translate.UnknownInstruction, match="st.shared.b8"):
        launch(BYTES, out, shared=32)
    launch(BYTES, out, shared=32, forgiven={"RACE_BETWEEN_CTAS"})  # allows instructions of other libraries
    assert np.array_equal(out, np.arange(32) ^ 1)


CLOCK = kernel("mov.u64 %d10, %globaltimer; mov.u64 %d11, %globaltimer; st.global.v2.b64 [%d0], {%d10, %d11};", 1)


def test_clock_increases():
    out = np.zeros(2, np.uint64)
    launch(CLOCK, out)
    assert 0 < out[0] < out[1]


# Each thread stores its number, and loads the number of the opposite thread, 127 - i.
BARRIER = kernel(
    """mad.lo.s32 %r5, %thread, 4, %smem; st.shared.b32 [%r5], %thread; bar.sync 0;
    xor.b32 %r6, %thread, 127; mad.lo.s32 %r5, %r6, 4, %smem; ld.shared.b32 %r7, [%r5];
    mad.wide.u32 %d10, %thread, 4, %d0; st.global.b32 [%d10], %r7;""", 1,
)  # fmt: skip


def test_barrier_waits_for_all_warps():
    out = np.zeros(128, np.uint32)
    launch(BARRIER, out, warps=4, shared=512, quantum=1, sleeps=True)
    assert (out == np.arange(128)[::-1]).all()


def _async_copy_text(cache: str, size: int) -> str:
    """Return a kernel in which each lane makes three asynchronous copies (cp.async) of ``size`` bytes.

    Each copy is a group, and the kernel waits for one group after the other. The last parameter has the number of bytes
    that each copy reads. Exception: the third copy reads all bytes, because its instruction lacks this operand.
    """
    lines = [f"mad.lo.s32 %r5, %lane, {3 * size}, %smem;", f"mad.wide.u32 %d11, %lane, {3 * size}, %d1;"]
    lines += [f"mad.wide.u32 %d10, %lane, {3 * size}, %d0; mad.wide.u32 %d12, %lane, 12, %d2;"]
    for i in range(3):
        lines.append(f"ld.global.b32 %r{10 + i}, [%d12+{4 * i}];")
        short = "" if i == 2 else f", %r{10 + i}"
        lines.append(f"cp.async.{cache}.shared.global [%r5 + {i * size}], [%d11 + {i * size}], {hex(size)}{short};")
        lines.append("cp.async.commit_group;")
    for i, word in itertools.product(range(3), range(0, size, 4)):
        lines.append(f"cp.async.wait_group {2 - i}; ld.shared.b32 %r20, [%r5+{i * size + word}];")
        lines.append(f"st.global.b32 [%d10+{i * size + word}], %r20;")
    return kernel("\n".join(lines), 3)


ASYNC = {(cache, size): _async_copy_text(cache, size) for cache, size in [("ca", 4), ("ca", 8), ("ca", 16), ("cg", 16)]}


@pytest.mark.parametrize("form", ["ld.shared{}.v2.b32 {{%r1, %r2}}, [%r3+8]", "st.shared{}.b16 [%r3], %h1"])
def test_shared_cta_is_the_same_as_shared(form):
    programs = (translate.translate(kernel(f"{form.format(name)};", 1)) for name in ("::cta", ""))
    named, plain = (program.instructions[-2] for program in programs)  # the last is ret
    assert named._replace(text=plain.text) == plain


@pytest.mark.parametrize("cache, size", ASYNC)
def test_copies_asynchronously(cache, size):
    source, out = _draw_bits(16, 48 * size).view(np.uint8).reshape(32, 3, size), np.zeros((32, 3, size), np.uint8)
    sizes = torch.randint(size + 1, (32, 3)).numpy().astype(np.uint32)
    sizes[0] = 0  # a copy that reads nothing
    launch(ASYNC[cache, size], out, source, sizes, shared=96 * size)
    sizes[:, 2] = size  # the third copy reads all
    assert (out == np.where(np.arange(size) < sizes[..., None], source, 0)).all()


# The matrix unit


# ldmatrix and stmatrix take the address of each row. The kernels add 32 to the addresses, to test the constant offset.
_MATRIX_OFFSET = 32


def _matrix_moves_text(store: bool, count: int, transposed: str) -> str:
    """Return a kernel that moves ``count`` tiles of 8 x 8 between registers and rows of 16 bytes in shared memory.

    The kernel first fills the 32 rows from its second parameter. The third has the addresses of the tiles' rows,
    without `_MATRIX_OFFSET`. Without ``store``, ldmatrix loads tiles, and the first parameter gets the registers. With
    it, stmatrix stores the registers of the fourth parameter, and the first gets all rows.
    """
    tiles, row = vector(40, count) if count > 1 else "{%r40}", vector(20, 4)
    form = f"sync.aligned.m8n8.x{count}{transposed}.shared.b16"
    row_addresses = "mad.lo.s32 %r5, %lane, 16, %smem; mad.wide.u32 %d12, %lane, 16"
    lines = [f"{row_addresses}, %d1; ld.global.v4.b32 {row}, [%d12]; st.shared.v4.b32 [%r5], {row};"]
    lines += [fragments("ld", "%d2", 6, 1), "add.s32 %r6, %r6, %smem; bar.warp.sync -1;"]
    if store:
        lines += [
            fragments("ld", "%d3", 40, count),
            f"stmatrix.{form} [%r6 + {_MATRIX_OFFSET}], {tiles}; bar.warp.sync -1;",
        ]
        lines += [f"{row_addresses}, %d0; ld.shared.v4.b32 {row}, [%r5]; st.global.v4.b32 [%d12], {row};"]
    else:
        lines += [f"ldmatrix.{form} {tiles}, [%r6+{_MATRIX_OFFSET}];", fragments("st", "%d0", 40, count)]
    return kernel("\n".join(lines), 4)


MATRIX_MOVES = {case: _matrix_moves_text(*case) for case in itertools.product((False, True), (1, 2, 4), ("", ".trans"))}


@pytest.mark.parametrize("store, count, transposed", MATRIX_MOVES)
def test_ldmatrix_and_stmatrix_move_tiles(store, count, transposed):
    rows, order = _draw_bits(16, 256).reshape(32, 8).copy(), torch.randperm(32).numpy()
    addresses = (16 * order - _MATRIX_OFFSET).astype(np.uint32)
    addresses[8 * count :] = 0xDEADBEEF  # each tile takes eight addresses: these are not used
    tiles = rows[order].reshape(4, 8, 8)[:count] if not store else _draw_bits(16, 64 * count).reshape(count, 8, 8)
    # Lane l holds two neighbours of row l / 4, or of column l / 4.
    registers = np.ascontiguousarray(tiles.swapaxes(1, 2) if transposed else tiles).view(np.uint32).reshape(count, 32)
    out = np.zeros((32, 4) if store else (count, 32), np.uint32)
    launch(MATRIX_MOVES[store, count, transposed], out, rows, addresses, registers, shared=512)
    if store:
        rows[order[: 8 * count]] = tiles.reshape(-1, 8)
        registers = rows.view(np.uint32)
    assert (out == registers).all()


# Element type -> its bytes, and a function from fp32 numbers to the bits of elements.
ELEMENTS = {
    "f16": (2, lambda a: a.astype(np.float16).view(np.uint16)),
    "bf16": (2, lambda a: (a.view(np.uint32) >> 16).astype(np.uint16)),
    "tf32": (4, lambda a: a.view(np.uint32)),
}


def _draw_exact_numbers(*shape: int) -> np.ndarray:
    """Draw numbers that every format can represent, and whose sums of products are exact."""
    return torch.randint(-32, 33, shape).float().numpy() / 8


_GROUP, _MEMBER = _LANE // 4, _LANE % 4  # the manual's groupID and threadID_in_group


def _pack_registers(bits: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the registers of an operand from the indices of each lane's elements, [elements, 32].

    A register has one or two elements that follow each other.
    """
    elements, per_register = bits[rows, columns].astype(np.uint32), 4 // bits.itemsize
    return sum(elements[i::per_register] << 16 * i for i in range(per_register))


def _left_registers(bits: np.ndarray) -> np.ndarray:
    """Return the registers of A as in the manual's figures of mma.m16n8k16 and m16n8k8."""
    per_register = 4 // bits.itemsize
    i = np.arange(4 * per_register)[:, None]  # the index of a lane's element, the manual's a0, a1...
    register, part = i // per_register, i % per_register
    rows = _GROUP + 8 * (register % 2)
    return _pack_registers(bits, rows, per_register * (_MEMBER + 4 * (register // 2)) + part)


def _right_registers(bits: np.ndarray) -> np.ndarray:
    """Return the registers of B as in the manual's figures of mma."""
    per_register = 4 // bits.itemsize
    i = np.arange(2 * per_register)[:, None]
    register, part = i // per_register, i % per_register
    return _pack_registers(bits, per_register * (_MEMBER + 4 * register) + part, _GROUP)


def _sum_registers(c: np.ndarray) -> np.ndarray:
    """Return the registers of C in mma and of D in wgmma, as in the manual's figures. A warp has 16 rows."""
    lane, bits = np.arange(2 * c.shape[0]), np.ascontiguousarray(c).view(np.uint32)
    row, member = lane // 32 * 16 + lane % 32 // 4, lane % 4
    return np.stack([bits[row + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * member + i % 2] for i in range(c.shape[1] // 2)])


def _mma_text(element: str) -> str:
    """Return a kernel of one mma. Its parameters are D, A, B and C of D = A B + C, as registers."""
    form = f"m16n8k{32 // ELEMENTS[element][0]}.row.col.f32.{element}.{element}.f32"
    loads = [fragments("ld", f"%d{1 + i}", 10 + 10 * i, count) for i, count in enumerate((4, 2, 4))]
    operands = ", ".join(vector(first, count) for first, count in ((40, 4), (10, 4), (20, 2), (30, 4)))
    return kernel("\n".join([*loads, f"mma.sync.aligned.{form} {operands};", fragments("st", "%d0", 40, 4)]), 4)


MMA = {element: _mma_text(element) for element in ELEMENTS}


@pytest.mark.parametrize("element", MMA)
def test_multiplies_in_a_warp(element):
    itemsize, encode = ELEMENTS[element]
    depth, out = 32 // itemsize, np.zeros((4, 32), np.uint32)
    a, b, c = _draw_exact_numbers(16, depth), _draw_exact_numbers(depth, 8), _draw_exact_numbers(16, 8)
    launch(MMA[element], out, _left_registers(encode(a)), _right_registers(encode(b)), _sum_registers(c))
    assert (out == _sum_registers(a @ b + c)).all()


def _wgmma_text(
    element: str, columns: int, a: Operand | None, b: Operand, depth: int, b_offset: int, image_size: int
) -> str:
    """Return the kernel of a warpgroup's product, with one wgmma for each 32 bytes of the depth.

    First its 128 threads copy the image to shared memory, each 16 bytes at a time.

    Its parameters are the result, the image of shared memory, the sums to add to, the registers of the left operand,
    and whether to add. If ``a`` is None, the left operand is in registers. Otherwise it begins the image. The right
    operand begins at ``b_offset``.
    """
    step, row, sums = 32 // ELEMENTS[element][0], vector(20, 4), vector(100, columns // 2)
    lines = [
        f"""mad.lo.s32 %r5, %thread, 16, %smem; mad.wide.u32 %d10, %thread, 16, %d1; mov.b32 %r6, 0;
        copy: ld.global.v4.b32 {row}, [%d10]; st.shared.v4.b32 [%r5], {row}; add.s64 %d10, %d10, 2048;
        add.s32 %r5, %r5, 2048; add.s32 %r6, %r6, 2048; setp.lt.u32 %p1, %r6, {image_size}; @%p1 bra copy;
        fence.proxy.async.shared::cta; bar.sync 0; shr.u32 %r5, %smem, 4; cvt.u64.u32 %d11, %r5;
        ld.param.b32 %r6, [p4]; setp.ne.s32 %p1, %r6, 0; setp.eq.s32 %p2, %r6, %r6;""",
        fragments("ld", "%d2", 100, columns // 2, 128),
        "" if a else fragments("ld", "%d3", 50, 4 * depth // step, 128),
        "wgmma.fence.sync.aligned;",
    ]
    form = f"wgmma.mma_async.sync.aligned.m64n{columns}k{step}.f32.{element}.{element}"
    transposed = "" if element == "tf32" else "".join(f", {int(not side.depth_first)}" for side in (a, b) if side)
    for i in range(depth // step):
        lines.append(f"add.s64 %d12, %d11, {hex(a.descriptor(0, i * step))};" if a else "")
        lines.append(f"add.s64 %d13, %d11, {hex(b.descriptor(b_offset, i * step))};")
        left, adds = "%d12" if a else vector(50 + 4 * i, 4), "%p2" if i else "%p1"
        lines.append(f"{form} {sums}, {left}, %d13, {adds}, 1, 1{transposed}; wgmma.commit_group.sync.aligned;")
    lines += ["wgmma.wait_group.sync.aligned 1;", "wgmma.wait_group.sync.aligned 0;"]
    return kernel("\n".join([*lines, fragments("st", "%d0", 100, columns // 2, 128)]), 5)


# Element type, swizzle, and the layouts of the left and the right operand. In layout K, neighbours in a sum are
# neighbours in memory. In layout MN, neighbouring rows or columns are. TF32 has only layout K.
WGMMA_CASES = [
    (element, swizzle, a, b)
    for element, swizzle, a, b in itertools.product(ELEMENTS, range(4), ("K", "MN", "registers"), ("K", "MN"))
    if element != "tf32" or (a != "MN" and b == "K")
]


class WgmmaTest(NamedTuple):
    """A kernel of one of `WGMMA_CASES`, and how shared memory has its operands."""

    text: str
    left: Operand | None
    right: Operand
    depth: int
    right_offset: int
    image_size: int


def _make_wgmma_test(element: str, swizzle: int, a: str, b: str, columns: int) -> WgmmaTest:
    """Return the test of a case. Both operands begin at multiples of 2048 bytes, as the kernel copies them."""
    itemsize, _ = ELEMENTS[element]
    depth = (256 >> swizzle if swizzle else 64) // itemsize
    left = None if a == "registers" else Operand(64, depth, itemsize, swizzle, depth_first=a == "K")
    right = Operand(columns, depth, itemsize, swizzle, depth_first=b == "K")
    right_offset = 0 if left is None else -(-left.byte_offset(63, depth - 1) // 2048) * 2048
    image_size = right_offset + -(-right.byte_offset(columns - 1, depth - 1) // 2048) * 2048
    text = _wgmma_text(element, columns, left, right, depth, right_offset, image_size)
    return WgmmaTest(text, left, right, depth, right_offset, image_size)


@pytest.mark.parametrize("element, swizzle, a, b", WGMMA_CASES)
def test_multiplies_in_a_warpgroup(element, swizzle, a, b):
    columns = (8, 24, 64, 128)[int(torch.randint(4, ()))]
    text, left, right, depth, right_offset, image_size = _make_wgmma_test(element, swizzle, a, b, columns)
    itemsize, encode = ELEMENTS[element]
    step = 32 // itemsize  # the depth of one wgmma
    x, y, c = _draw_exact_numbers(64, depth), _draw_exact_numbers(columns, depth), _draw_exact_numbers(64, columns)
    image, registers = np.zeros(image_size, np.uint8), np.zeros((1, 1), np.uint32)
    right.put(image, right_offset, encode(y))
    if left is None:
        parts = encode(x).reshape(4, 16, -1, step).swapaxes(1, 2)  # [warps, steps, 16 rows, step]
        registers = np.concatenate([np.concatenate([_left_registers(part) for part in warp]) for warp in parts], 1)
    else:
        left.put(image, 0, encode(x))
    for adds in (0, 1):
        out = np.zeros((columns // 2, 128), np.uint32)
        launch(text, out, image, _sum_registers(c), registers, adds, warps=4, shared=image_size)
        assert (out == _sum_registers(x @ y.T + c * adds)).all()


@pytest.mark.parametrize("load", ["ld.global.b8", "ld.global.nc.u8"])
def test_loads_bytes(load):
    source, out = _draw_bits(64, 8).view(np.uint8), np.zeros(32, np.uint16)
    text = kernel(
        f"""cvt.u64.u32 %d10, %lane; add.u64 %d10, %d10, %d1; mad.wide.u32 %d11, %lane, 2, %d0;
        {load} %h20, [%d10+3]; st.global.b16 [%d11], %h20;""", 2,
    )  # fmt: skip
    extents = [(array.ctypes.data, array.ctypes.data + array.nbytes) for array in (out, source)]
    addresses = [first for first, _ in extents]
    launch(text, *addresses, ranges=extents)
    assert np.array_equal(out, source[3:35])  # the kernel adds three to the lane's number


# Unknown instructions raise an error

_REGISTERS = ", ".join(f"{{{vector(1, count)}}}" for count in (4, 4, 2, 4))
_MMA = f"mma.sync.aligned.m16n8k{{}}.row.col.f32.{{}}.f32 {_REGISTERS}"
_WGMMA = "wgmma.mma_async.sync.aligned.m64n{}.f32.{} {{%r1, %r2, %r3, %r4}}, %d1, %d2, %p1, 1, {}"
UNKNOWN = [
    "popc.b32 %r1, %r2", "add.sat.s32 %r1, %r2, %r3", "add.f64 %d1, %d2, %d3", "add.rz.f32 %r1, %r2, %r3",
    "mul.ftz.f32 %r1, %r2, %r3", "cvt.rz.f16.f32 %h1, %r1", "cvt.rn.f32.s32 %r1, %r2", "ex2.approx.ftz.f16 %h1, %h2",
    "bfe.u32 %r1, %r2, 3", "prmt.b32.f4e %r1, %r2, %r3, %r4", "min.f32 %r1, %r2, %r3", "setp.lt.f64 %p1, %d1, %d2",
    "setp.ltu.s32 %p1, %r1, %r2", "setp.foo.s32 %p1, %r1, %r2", "setp.lt.and.s32 %p1, %r1, %r2, %p2",
    "mov.b32 %r1, nothing", "ld.volatile.global.b32 %r1, [%d1]", "ld.acquire.gpu.global.b32 %r1, [%d1]",
    "ld.local.b32 %r1, [%d1]", "ld.global.L1::evict_first.b32 %r1, [%d1]", "st.release.gpu.global.b32 [%d1], %r1",
    "ld.param.b32 %r1, [p7]", "atom.global.add.u32 %r1, [%d1], %r2", "red.global.add.u32 [%d1], %r2", "bar.sync 1",
    "bar.sync 0, 64", "bar.arrive 0, 64", "membar.gl", "fence.acq_rel.gpu", "fence.proxy.async",
    "shfl.sync.down.b32 %r1, %r2, 1, 31, -1", "shfl.sync.bfly.b32 %r1, %r2, 1, 0x1c1f, -1",
    "shfl.sync.bfly.b32 %r1|%p1, %r2, 1, 31, -1", "redux.sync.min.s32 %r1, %r2, -1",
    "vote.sync.ballot.b32 %r1, %p1, -1", "bra nowhere", "bra.foo again", "ret.foo", "exit", "call foo",
    "cp.async.wait_all", "cp.async.cg.shared.global [%r1], [%d1], 16, %p1",
    "cp.async.ca.shared.global.L2::128B [%r1], [%d1], 16",
    "ldmatrix.sync.aligned.m8n8.x3.shared.b16 {%r1, %r2, %r3}, [%r4]",
    "stmatrix.sync.aligned.m16n8.x1.trans.shared.b8 [%r1], {%r2}", _MMA.format(8, "f16.f16"),
    _MMA.format(32, "bf16.bf16"), _MMA.format(4, "tf32.tf32"), _MMA.format(16, "f16.bf16"),
    _MMA.format(16, "e4m3.e4m3"),
    "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%d1, %d2}, {%d3}, {%d4}, {%d1, %d2}",
    _WGMMA.format("8k32", "f16.f16", "1, 0, 0"), _WGMMA.format("8k16", "tf32.tf32", "1"),
    _WGMMA.format("12k16", "f16.f16", "1, 0, 0"), _WGMMA.format("8k16", "f16.bf16", "1, 0, 0"),
    _WGMMA.format("8k16", "f16.f16", "-1, 0, 0"), _WGMMA.format("8k32", "e4m3.e4m3", "1"),
    "wgmma.wait_group.sync.unaligned 0", "nanosleep.u32 20", "cvt.s8.s32 %h1, %r1", "st.global.b8 [%d1], %h1",
    "st.global.v2.b8 [%d1], {%h1, %h2}", "st.shared.b8 [%r1], %h1", "ld.shared.b8 %h1, [%r1]",
]  # fmt: skip


@pytest.mark.parametrize("instruction", UNKNOWN)
def test_an_unknown_instruction_raises(instruction):
    with pytest.raises(translate.UnknownInstruction, match=re.escape(instruction)):
        translate.translate(kernel(f"again: {instruction};", 1))


# The tests above cover all operations


def _make_all_texts() -> list[str]:
    """Return a kernel of each kind of the tests above."""
    texts = [lanewise(CASES[name].body, *_types(name)) for name in CASES]
    for name, (bits, draw, _) in VECTORS.items():
        sources = draw()
        texts.append(lanewise(_make_body(name, len(sources)), _numpy_type(bits), *(source.dtype for source in sources)))
    for name in APPROXIMATIONS:
        texts.append(lanewise(_make_body(name, _arity(name)), np.uint32, *[np.uint32] * _arity(name)))
    texts += [_global_text(*forms, bits, count, 1) for forms in GLOBAL for bits, count in WIDTHS]
    texts += [_shared_text(*width) for width in WIDTHS]
    texts += [_make_wgmma_test(*case, columns=64).text for case in WGMMA_CASES]
    texts.append(kernel(CHOSEN_ARGUMENT[32].replace("KIND", "b32"), 3))
    atom = kernel("atom.global.gpu.relaxed.add.u32 %r1, [%d0], 1;", 1)  # tested in test_machine.py
    return [*texts, CLOCK, BARRIER, PAIRS, atom, *ASYNC.values(), *MATRIX_MOVES.values(), *MMA.values()]


def test_covers_every_operation():
    used = {i.operation for text in _make_all_texts() for i in translate.translate(text, peers=True).instructions}
    assert {translate.OPERATIONS[operation] for operation in used} == set(translate.OPERATIONS)


@pytest.mark.parametrize("pattern", [pattern for pattern, _, _ in translate._COMPUTING])
def test_covers_every_pattern_of_the_translator(pattern):
    names = [re.split("[ ;]", name)[0] for name in (*CASES, *VECTORS, *APPROXIMATIONS)]
    assert any(pattern.fullmatch(name) for name in names)
