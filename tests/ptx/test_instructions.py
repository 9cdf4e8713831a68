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

# numpy warns of the NaNs and infinities among the numbers.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")

# Instructions of one lane, on integers


class Source(NamedTuple):
    """A source of an instruction, whose values are ``edges`` and random bits."""

    bits: int
    edges: tuple[int, ...]
    format: Format | None = None

    def draw(self, generator: random.Random) -> int:
        bits = generator.getrandbits(self.bits)
        if self.format and generator.random() < 0.5:  # numbers near 1, so that sums cancel
            exponent = generator.randint(-6, 6) - self.format.least + 1
            bits &= ~(-1 << self.format.precision - 1) | 1 << self.bits - 1
            bits |= exponent << self.format.precision - 1
        return bits


def _integer(bits: int) -> Source:
    return Source(bits, tuple({0, 1, (1 << bits) - 1, (1 << bits - 1) - 1, 1 << bits - 1, 3}) if bits > 1 else (0, 1))


def _float(form: Format) -> Source:
    one, least, infinity = form.encode(1.0), 1 << form.precision - 1, form.encode(math.inf)
    edges = 0, 1, least - 1, least, one, one + 1, infinity - 1, infinity, infinity + 1
    return Source(form.bits, (*edges, *(edge | 1 << form.bits - 1 for edge in edges)), form)


def _count(bits: int) -> Source:
    return Source(32, (0, 1, 7, bits - 1, bits, bits + 1, 64, 255, 256, 1 << 31, (1 << 32) - 1))


class Case(NamedTuple):
    """A snippet of one lane. ``expect`` takes and returns bits, or returns None if the manual defines no result."""

    body: str
    bits: int
    sources: tuple[Source, ...]
    expect: Callable
    also: tuple = ()  # additional values of all sources


CASES: dict[str, Case] = {}


def _case(name: str, bits: int, sources: list[Source], expect: Callable, body: str | None = None, also=()) -> None:
    body = body or f"{name} {', '.join(('%out', '%a', '%b', '%c')[: 1 + len(sources)])};"
    CASES[name] = Case(body, bits, tuple(sources), expect, also)


def _signed(bits: int, value: int) -> int:
    value &= (1 << bits) - 1
    return value - (value >> bits - 1 << bits)


def _quotient(bits: int, a: int, b: int) -> int | None:
    """Round towards zero. Return None for a division by zero and for the one quotient that overflows."""
    return None if b == 0 or (a, b) == (-1 << bits - 1, -1) else int(Fraction(a, b))


def _remainder(bits: int, a: int, b: int) -> int | None:
    quotient = _quotient(bits, a, b)
    return quotient if quotient is None else a - quotient * b


def _field(bits: int, a: int, first: int, count: int, sign: bool) -> int:
    first, count = first & 255, count & 255
    filling = sign and count > 0 and a >> min(first + count - 1, bits - 1) & 1
    field = [a >> first + i & 1 if i < count and first + i < bits else filling for i in range(bits)]
    return sum(bit << i for i, bit in enumerate(field))


def _bytes(a: int, b: int, selector: int) -> int:
    all_bytes, result = [*a.to_bytes(4, "little"), *b.to_bytes(4, "little")], []
    for i in range(4):
        pick = selector >> 4 * i & 15
        byte = all_bytes[pick & 7]
        result.append((byte >> 7) * 255 if pick & 8 else byte)
    return int.from_bytes(bytes(result), "little")


_BIT, _WORD = _integer(1), _integer(32)
# Names, widths, the layout of the result and the sources, and the definition on numbers. These are signed if the name
# ends with s. N: as wide as the name says. W: twice as wide. s: a count. p: a predicate. i: 32 bits.
for _names, _widths, _layout, _define in [
    ("add.s add.u", "16 32 64", "N NN", lambda n, a, b: a + b),
    ("sub.s sub.u", "16 32 64", "N NN", lambda n, a, b: a - b),
    ("mul.lo.s mul.lo.u", "16 32 64", "N NN", lambda n, a, b: a * b),
    ("mad.lo.s mad.lo.u", "16 32 64", "N NNN", lambda n, a, b, c: a * b + c),
    ("mul.hi.s mul.hi.u", "16 32 64", "N NN", lambda n, a, b: a * b >> n),
    ("mul.wide.s mul.wide.u", "16 32", "W NN", lambda n, a, b: a * b),
    ("mad.wide.s mad.wide.u", "16 32", "W NNW", lambda n, a, b, c: a * b + c),
    ("div.s div.u", "16 32 64", "N NN", _quotient),
    ("rem.s rem.u", "16 32 64", "N NN", _remainder),
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
    ("bfe.s", "32 64", "N Nss", lambda n, a, first, count: _field(n, a, first, count, True)),
    ("bfe.u", "32 64", "N Nss", lambda n, a, first, count: _field(n, a, first, count, False)),
    ("prmt.b", "32", "N NNi", lambda n, *values: _bytes(*values)),
]:  # fmt: skip
    for _name, _width in itertools.product(_names.split(), _widths.split()):
        _bits = 1 if _width == "pred" else int(_width)
        _kinds = {"N": _integer(_bits), "W": _integer(2 * _bits), "s": _count(_bits), "p": _BIT, "i": _WORD}

        def _expect(*values, bits=_bits, layout=_layout, define=_define, name=_name):
            wide, signed = {"N": bits, "W": 2 * bits}, name.endswith("s")
            numbers = [_signed(wide[k], v) if signed and k in wide else v for k, v in zip(layout[2:], values)]
            result = define(bits, *numbers)
            return result if result is None else result & (1 << wide[layout[0]]) - 1

        _name = _name[:-1] + _width if _width == "pred" else _name + _width
        _case(_name, _kinds[_layout[0]].bits, [_kinds[kind] for kind in _layout[2:]], _expect)

_case("max.u16x2", 16, [_integer(16)] * 2, max)

_BITS = 8, 16, 32, 64
_INTEGERS = [f"{sign}{bits}" for sign in "su" for bits in _BITS]
# A conversion of integers extends by the signedness of the source. A result that is narrower than its register is
# extended by the signedness of the result.
for _to, _source in itertools.product(_INTEGERS, repeat=2):

    def _expect(value, to=_to, source=_source):
        value = _signed(int(source[1:]), value) if source[0] == "s" else value & (1 << int(source[1:])) - 1
        value = _signed(int(to[1:]), value) if to[0] == "s" else value & (1 << int(to[1:])) - 1
        return value & (1 << max(16, int(to[1:]))) - 1

    if _to[1:] not in (_source[1:], "8"):
        _case(f"cvt.{_to}.{_source}", max(16, int(_to[1:])), [_integer(max(16, int(_source[1:])))], _expect)

ORDERS = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
for (_name, _order), _kind, _bits in itertools.product(ORDERS.items(), "bsu", (16, 32, 64)):

    def _expect(a, b, order=_order, kind=_kind, bits=_bits):
        return int(order(_signed(bits, a), _signed(bits, b)) if kind == "s" else order(a, b))

    if _kind != "b" or _name in ("eq", "ne"):
        _case(f"setp.{_name}.{_kind}{_bits}", 1, [_integer(_bits)] * 2, _expect)
for _name, _of_nan in [*((name, 0) for name in ORDERS), *((name + "u", 1) for name in ORDERS), ("num", 0), ("nan", 1)]:

    def _expect(a, b, name=_name, of_nan=_of_nan):
        a, b = F32.decode(a), F32.decode(b)
        if math.isnan(a) or math.isnan(b):
            return of_nan
        return int(ORDERS[name[:2]](a, b)) if name[:2] in ORDERS else 1 - of_nan

    _case(f"setp.{_name}.f32", 1, [_float(F32)] * 2, _expect)


# Sums and products of floating-point numbers, one or two in a register

_DEFINED = {
    "add": lambda f, a, b: f.fma(a, 1.0, b),
    "sub": lambda f, a, b: f.fma(b, -1.0, a),
    "mul": lambda f, a, b: f.fma(a, b, -0.0),
    "fma": lambda f, a, b, c: f.fma(a, b, c),
}
# Products halfway between two bf16 numbers. A third operand too small for a double's sum decides the rounding.
_HALFWAY = tuple(
    tuple(BF16.encode(number) for number in (7 * s, 37 / 256, t * 1.5 * 2.0**-e))
    for s, t, e in itertools.product((1, -1), (1, -1), range(45, 60))
)
for _operation, _define in _DEFINED.items():
    for (_type, _format), _pair in itertools.product({"f32": F32, "f16": F16, "bf16": BF16}.items(), ("", "x2")):
        for _mode in ("", ".rn") if _operation != "fma" else (".rn",):
            _source = _float(_format)
            if _format != F32 and _operation in ("sub", "mul"):
                continue  # the translator does not know these

            def _expect(*values, f=_format, define=_define):
                return f.encode(define(f, *map(f.decode, values)))

            _sources = [_source] * (3 if _operation == "fma" else 2)
            _also = _HALFWAY if (_operation, _type) == ("fma", "bf16") else ()
            _case(f"{_operation}{_mode}.{_type}{_pair}", _source.bits, _sources, _expect, also=_also)


def _flushed(number: float) -> float:
    return math.copysign(0, number) if abs(number) < 2.0**F32.least else number


for _name, _arguments, _define in (("fma.rn.ftz.f32", 3, F32.fma), ("abs.ftz.f32", 1, abs)):

    def _expect(*values, define=_define):
        return F32.encode(_flushed(define(*(_flushed(F32.decode(value)) for value in values))))

    _case(_name, 32, [_float(F32)] * _arguments, _expect)

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
    _case(_body, _bits, [_integer(width) for width in _widths], _expect, _body)


def _type(bits: int) -> type:
    return np.dtype({1: np.bool_, 16: np.uint16, 32: np.uint32, 64: np.uint64}[bits])


def _types(name: str) -> list[type]:
    """Return the types of the result and the sources of a case. Two numbers in a register double its width."""
    widths = [CASES[name].bits, *(source.bits for source in CASES[name].sources)]
    return [_type(bits * (1 + name.endswith("x2"))) for bits in widths]


def _values(case: Case) -> list[list[int]]:
    """Draw values of each source: combinations of edges, and random bits."""
    generator = random.Random(int(torch.randint(1 << 62, ())))
    edges = list(itertools.product(*(source.edges for source in case.sources)))
    rows = generator.sample(edges, min(len(edges), 700)) + list(case.also)
    rows += [tuple(source.draw(generator) for source in case.sources) for _ in range(256)]
    return [list(column) for column in zip(*rows)]


@pytest.mark.parametrize("name", CASES)
def test_computes(name):
    case, types = CASES[name], _types(name)
    parts = [_values(case) for _ in range(1 + name.endswith("x2"))]  # low halves of registers, high halves
    joined = [sum(np.array(v, np.uint64) << i * case.bits for i, v in enumerate(halves)) for halves in zip(*parts)]
    results = compute(case.body, types[0], *(source.astype(to) for source, to in zip(joined, types[1:])))
    for i, values in enumerate(parts):
        for result, *row in zip(results.astype(np.uint64) >> i * case.bits, *values):
            expected, result = case.expect(*row), int(result) & (1 << case.bits) - 1
            assert expected is None or result == expected, (name, [hex(v) for v in row], hex(result), hex(expected))


# Conversions of floating-point numbers, and instructions of a whole warp


def _random(bits: int, size: int = 1024) -> np.ndarray:
    return np.frombuffer(random.Random(int(torch.randint(1 << 62, ()))).randbytes(bits // 8 * size), _type(bits))


# The least fp32 numbers that overflow f16 and bf16, and their neighbours.
_OVERFLOW = np.array([0x477FF000 + i for i in (-1, 0, 1)] + [0x7F7F8000 + i for i in (-1, 0, 1)], np.uint32)
_HALVES = np.arange(1 << 16, dtype=np.uint16)


def _widened(bits: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    return torch.from_numpy(bits.view(np.int16)).view(dtype).float().numpy()


def _narrowed(bits: np.ndarray, to: torch.dtype) -> np.ndarray:
    narrow = torch.from_numpy(bits.view(np.float32).copy()).to(to).view(torch.int16).numpy().view(np.uint16)
    return _canonical(narrow, {torch.float16: F16, torch.bfloat16: BF16}[to])


def _around(dtype: torch.dtype) -> np.ndarray:
    """Return every 16-bit number as fp32, the midpoints between neighbours and numbers beside them, and random bits."""
    low, high = _widened(_HALVES, dtype), _widened(_HALVES + np.uint16(1), dtype)
    middle = (low / 2 + high / 2).view(np.uint32)
    return np.concatenate([low.view(np.uint32), middle - 1, middle, middle + 1, _OVERFLOW, _random(32, 1 << 14)])


def _to_tf32(bits: np.ndarray) -> np.ndarray:
    """Round to nearest, ties away from zero. A NaN loses its low bits, as on an H200."""
    numbers = bits.view(np.float32).astype(np.float64)
    finite = np.where(np.isfinite(numbers), numbers, 0)
    step = 2.0 ** (np.maximum(np.frexp(finite)[1], -125) - 11)
    rounded = np.copysign(np.floor(np.abs(finite) / step + 0.5) * step, finite).astype(np.float32).view(np.uint32)
    return np.where(np.isfinite(numbers), rounded, bits & 0xFFFFE000)


def _around_tf32() -> np.ndarray:
    bits = _random(32, 4096)
    edges = np.array(_float(F32).edges, np.uint32)
    return np.concatenate([bits, bits & 0xFFFFE000 | 0x1000, bits & 0xFFFFE000 | 0xFFF, edges])


def _by_warp(result: Callable) -> Callable:
    """Return a function that applies ``result`` to the 32 lanes of each warp."""
    return lambda *sources: np.concatenate([result(*rows) for rows in zip(*(s.reshape(-1, 32) for s in sources))])


_LANE = np.arange(32)
_WORDS = lambda: [_random(32), _random(32)]  # noqa: E731
# Instruction -> the bits of its result, a function that draws its sources, and a function of these to the result.
VECTORS = {
    "cvt.f32.f16": (32, lambda: [_HALVES], lambda a: _widened(a, torch.float16).view(np.uint32)),
    "cvt.f32.bf16": (32, lambda: [_HALVES], lambda a: _widened(a, torch.bfloat16).view(np.uint32)),
    **{
        f"add.rn.f32.{name}": (
            32, lambda: [_HALVES, _around(torch.float16)[-(1 << 16) :]],
            lambda a, b, of=of: _canonical((_widened(a, of) + b.view(np.float32)).view(np.uint32), F32),
        ) for name, of in (("f16", torch.float16), ("bf16", torch.bfloat16))
    },
    "cvt.rn.f16.f32": (16, lambda: [_around(torch.float16)], lambda a: _narrowed(a, torch.float16)),
    "cvt.rn.bf16.f32": (16, lambda: [_around(torch.bfloat16)], lambda a: _narrowed(a, torch.bfloat16)),
    **{
        f"cvt.rn.{name}x2.f32": (
            32, lambda of=of: [_around(of)[::5], _around(of)[::-5]],
            lambda a, b, of=of: _narrowed(a, of).astype(np.uint32) << 16 | _narrowed(b, of),
        ) for name, of in (("f16", torch.float16), ("bf16", torch.bfloat16))
    },
    "cvt.rna.tf32.f32": (32, lambda: [_around_tf32()], _to_tf32),
    "cvt.rn.f16.u32": (
        16, lambda: [np.concatenate([np.arange(70000, dtype=np.uint32), _random(32)])],
        lambda a: a.astype(np.float64).astype(np.float16).view(np.uint16),
    ),
    **{
        f"shfl.sync.bfly.b32 %out, %a, {mask}, 31, -1;": (
            32, lambda: [_random(32)], _by_warp(lambda a, mask=mask: a[_LANE ^ mask]),
        ) for mask in (1, 2, 4, 8, 16, 31)
    },
    "shfl.sync.bfly.b32 %out, %a, %b, 0x1f, -1;": (32, _WORDS, _by_warp(lambda a, b: a[_LANE ^ b % 32])),
    "shfl.sync.idx.b32 %out, %a, %b, 31, -1;": (32, _WORDS, _by_warp(lambda a, b: a[b % 32])),
    "movmatrix.sync.aligned.m8n8.trans.b16 %out, %a;": (
        32, lambda: [_random(32)],
        _by_warp(lambda a: np.ascontiguousarray(a.view(np.uint16).reshape(8, 8).T).reshape(64).view(np.uint32)),
    ),
    "redux.sync.add.s32 %out, %a, -1;": (32, _WORDS, _by_warp(lambda a, b: a.sum(dtype=np.uint32).repeat(32))),
    "redux.sync.max.s32 %out, %a, -1;": (  # all numbers of the second half of the warps are negative
        32, lambda: [_random(32) | (np.arange(1024, dtype=np.uint32) >> 9 << 31)],
        _by_warp(lambda a: a.view(np.int32).max().repeat(32).view(np.uint32)),
    ),
    "setp.ge.s32 %p1, %a, 0; vote.sync.any.pred %p1, %p1, -1; mov.b32 %out, 0; @%p1 mov.b32 %out, 1;": (
        32, lambda: [_random(32) | (np.arange(1024, dtype=np.uint32) >> 9 << 31)],
        _by_warp(lambda a: (a.view(np.int32) >= 0).any().repeat(32).astype(np.uint32)),
    ),
}  # fmt: skip


def _canonical(bits: np.ndarray, form: Format) -> np.ndarray:
    nan = (bits & (1 << form.bits - 1) - 1) > form.encode(math.inf)
    return np.where(nan, np.array(form.encode(math.nan), bits.dtype), bits)


def _vector_body(name: str, sources: int) -> str:
    return name if name.endswith(";") else f"{name} {', '.join(('%out', '%a', '%b')[: 1 + sources])};"


@pytest.mark.parametrize("name", VECTORS)
def test_computes_vectors(name):
    bits, draw, expect = VECTORS[name]
    sources = draw()
    actual, expected = compute(_vector_body(name, len(sources)), _type(bits), *sources), expect(*sources)
    if name.startswith("cvt.f32"):  # the manual does not define which NaN results
        actual, expected = _canonical(actual, F32), _canonical(expected, F32)
    wrong = np.flatnonzero(actual != expected)[:5]
    assert not wrong.size, [(*(hex(s[i]) for s in sources), hex(actual[i]), hex(expected[i])) for i in wrong]


# Instruction -> the function, the allowed relative error, the range of sources' exponents, and special numbers with
# their results.
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
    return 1 + name.startswith("div")


@pytest.mark.parametrize("error", [0.0, 1.0])
@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_approximates(name, error):
    """Compare with numpy. An error of 1 comes close to the largest allowed error. Rounding adds to it."""
    function, bound, exponents, _ = APPROXIMATIONS[name]
    arity = _arity(name)
    drawn = torch.rand(arity, 8192, dtype=torch.float64) * (exponents[1] - exponents[0]) + exponents[0]
    sources = (2**drawn * torch.randn(arity, 8192).sign()).float().numpy()
    exact = function(*sources.astype(np.float64))
    actual = compute(_vector_body(name, arity), np.uint32, *sources.view(np.uint32), error=error)
    relative = np.abs(actual.view(np.float32) / exact - 1)
    assert (relative < error * (bound + 2.0**-24) + 2.0**-24 * 1.001).all()
    assert error == 0 or relative.max() > 0.9 * bound


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_approximates_special_numbers(name):
    special = [*APPROXIMATIONS[name][3], (_NAN,) * (1 + _arity(name))]
    *sources, expected = np.array(special, np.float32).view(np.uint32).T
    actual = compute(_vector_body(name, _arity(name)), np.uint32, *sources, error=0.0)
    assert (actual == _canonical(expected, F32)).all(), actual.view(np.float32)


# Arguments, special registers, memory


@pytest.mark.parametrize("kind", _INTEGERS[1:4] + _INTEGERS[5:] + ["b16", "b32", "b64"])
def test_loads_arguments(kind):
    bits, out = int(kind[1:]), np.zeros(1, np.uint64)
    text = kernel(f"ld.param.{kind} %d10, [p1]; st.global.b64 [%d0], %d10;", 2)
    for argument in (0x0123456789ABCDEF, 0xFEDCBA9876543210, 0x8000800080008000):
        launch(text, out, argument)
        expected = _signed(bits, argument) if kind[0] == "s" else argument & (1 << bits) - 1
        assert int(out[0]) == expected & (1 << 64) - 1


# Arguments at an address that the lane chooses. Newer compilers choose between two pointers in this way.
CHOSEN = {
    bits: f"""setp.lt.u32 %p1, %lane, 9; mov.b{bits} %{r}40, p2; mov.b{bits} %{r}41, p1;
    selp.b{bits} %{r}42, %{r}40, %{r}41, %p1; ld.param.KIND %d10, [%{r}42];
    mad.wide.u32 %d11, %lane, 8, %d0; st.global.b64 [%d11], %d10;"""
    for bits, r in ((32, "r"), (64, "d"))
}


@pytest.mark.parametrize("bits", CHOSEN)
@pytest.mark.parametrize("kind", ["b32", "s32", "u16", "b64"])
def test_loads_arguments_by_address(bits, kind):
    out, arguments = np.zeros(32, np.uint64), (0x8123456789ABCDEF, 0xFEDCBA98F6543210)
    launch(kernel(CHOSEN[bits].replace("KIND", kind), 3), out, *arguments)
    n = int(kind[1:])
    values = [_signed(n, argument) if kind[0] == "s" else argument & (1 << n) - 1 for argument in arguments]
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
    text = CHOSEN[64].replace("ld.param.KIND", f"{change} ld.param.b64")
    with pytest.raises(Fault, match=fault):
        launch(kernel(text, 3), np.zeros(32, np.uint64), 1, 2)


def test_special_registers():
    names = [f"{name}.{axis}" for name in ("tid", "ctaid", "ntid", "nctaid") for axis in "xyz"]
    names += ["laneid", "warpid", "dynamic_smem_size"]
    rows = [f"mov.u32 %r{10 + i}, %{name};" for i, name in enumerate(names)]
    out = np.full((2, 3, 4, 64, 15), 0xFFFFFFFF, np.uint32)
    place = "%r9, %ctaid.z, 3, %ctaid.y; mad.lo.s32 %r9, %r9, 4, %ctaid.x; mad.lo.s32 %r9, %r9, 64, %thread;"
    rows += [f"mad.lo.s32 {place} mad.wide.u32 %d10, %r9, 60, %d0;"]
    rows += [f"st.global.b32 [%d10+{4 * i}], %r{10 + i};" for i in range(15)]
    launch(kernel("\n".join(rows), 1), out, grid=(4, 3, 2), warps=2, shared=1040)
    z, y, x, thread = np.indices(out.shape[:4])
    zero, one = np.zeros_like(x), np.ones_like(x)
    expected = [thread, zero, zero, x, y, z, 64 * one, one, one, 4 * one, 3 * one, 2 * one, thread % 32, thread // 32]
    expected.append(1040 * one)
    assert (out == np.stack(expected, -1)).all()


GLOBAL = [
    ("ld.global", "st.global"), ("ld.global.nc", "st.global"), ("ld.global.cg", "st.global"),
    ("ld.relaxed.gpu.global", "st.relaxed.gpu.global"), ("ld.relaxed.sys.global", "st.relaxed.sys.global"),
]  # fmt: skip
WIDTHS = [(bits, count) for bits in _BITS[1:] for count in (1, 2, 4) if bits * count <= 128]


def _global_text(load: str, store: str, bits: int, count: int, offset: int) -> str:
    """Return a kernel whose lanes copy a vector: from ``offset`` vectors beyond their own, to ``offset`` before it."""
    names, size = vector(20, count, "hrd"[_BITS.index(bits) - 1]), bits * count // 8
    suffix = f"{f'.v{count}' if count > 1 else ''}.{'bu'[bits == 32]}{bits}"
    return kernel(
        f"""mad.wide.u32 %d10, %lane, {size}, %d0; mad.wide.u32 %d11, %lane, {size}, %d1;
        {load}{suffix} {names}, [%d11+{offset * size}]; {store}{suffix} [%d10 + {-offset * size}], {names};""", 2,
    )  # fmt: skip


def _shared_text(bits: int, count: int) -> str:
    """Return a kernel whose lanes exchange a vector with their neighbours through shared memory."""
    names, size = vector(20, count, "hrd"[_BITS.index(bits) - 1]), bits * count // 8
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
    source = _random(64, 5 * size).view(np.uint8).reshape(-1, size)  # 40 vectors
    for (load, store), offset in itertools.product(GLOBAL, (-3, 0, 2)):
        out = np.zeros_like(source)
        extents = [(array.ctypes.data, array.ctypes.data + array.nbytes) for array in (out, source)]
        addresses = [low + 4 * size for low, _ in extents]
        launch(_global_text(load, store, bits, count, offset), *addresses, ranges=extents)
        expected = np.zeros_like(source)
        expected[4 - offset :][:32] = source[4 + offset :][:32]
        assert (out == expected).all(), (load, offset)
    out = np.zeros_like(source)
    launch(_shared_text(bits, count), out, source, shared=32 * size + 64)
    assert (out[:32] == source[:32].reshape(16, 2, size)[:, ::-1].reshape(32, size)).all()


PAIRS = kernel(
    """mad.wide.u32 %d10, %lane, 4, %d0; mad.wide.u32 %d11, %lane, 4, %d1; mad.lo.s32 %r5, %lane, 4, %smem;
    ld.global.v4.b8 {%h1, %h2, %h3, %h4}, [%d11]; st.shared.v4.b8 [%r5], {%h2, %h1, %h4, %h3}; bar.warp.sync -1;
    xor.b32 %r5, %r5, 4; ld.shared.v2.b8 {%h5, %h6}, [%r5]; ld.shared.b16 %h7, [%r5+2];
    st.global.b16 [%d10], %h5; st.global.b16 [%d10+2], %h7;""", 2,
)  # fmt: skip


def test_moves_bytes_through_shared_memory_in_pairs():
    source, out = _random(32, 32), np.zeros((32, 2), np.uint16)
    launch(PAIRS, out, source, shared=128)
    # Neighbouring lanes are swapped, and the bytes of a pair.
    swapped = source.view(np.uint8).reshape(16, 2, 2, 2)[:, ::-1, :, ::-1].reshape(32, 4)
    assert np.array_equal(out[:, 0], swapped[:, 0])
    assert np.array_equal(out[:, 1], swapped[:, 2] + swapped[:, 3] * np.uint16(256))


BYTES = kernel(
    """add.s32 %r5, %lane, %smem; xor.b32 %r6, %lane, 1; mad.wide.u32 %d10, %lane, 2, %d0; add.s32 %r6, %r6, %smem;
    cvt.u16.u32 %h1, %lane; st.shared.b8 [%r5], %h1; bar.warp.sync -1; ld.shared.b8 %h2, [%r6];
    st.global.b16 [%d10], %h2;""", 1,
)  # fmt: skip


def test_moves_bytes_through_shared_memory():
    out = np.zeros(32, np.uint16)
    with pytest.raises(translate.UnknownInstruction, match="st.shared.b8"):
        launch(BYTES, out, shared=32)
    launch(BYTES, out, shared=32, forgiven={"RACE_BETWEEN_CTAS"})
    assert np.array_equal(out, np.arange(32) ^ 1)


CLOCK = kernel("mov.u64 %d10, %globaltimer; mov.u64 %d11, %globaltimer; st.global.v2.b64 [%d0], {%d10, %d11};", 1)


def test_clock_increases():
    out = np.zeros(2, np.uint64)
    launch(CLOCK, out)
    assert 0 < out[0] < out[1]


BARRIER = kernel(
    """mad.lo.s32 %r5, %thread, 4, %smem; st.shared.b32 [%r5], %thread; bar.sync 0;
    xor.b32 %r6, %thread, 127; mad.lo.s32 %r5, %r6, 4, %smem; ld.shared.b32 %r7, [%r5];
    mad.wide.u32 %d10, %thread, 4, %d0; st.global.b32 [%d10], %r7;""", 1,
)  # fmt: skip


def test_barrier_waits_for_all_warps():
    out = np.zeros(128, np.uint32)
    launch(BARRIER, out, warps=4, shared=512, quantum=1, sleeps=True)
    assert (out == np.arange(128)[::-1]).all()


def _async_text(cache: str, size: int) -> str:
    """Return a kernel that waits for three groups of copies one by one. Its last parameter is their source sizes."""
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


ASYNC = {(cache, size): _async_text(cache, size) for cache, size in [("ca", 4), ("ca", 8), ("ca", 16), ("cg", 16)]}


@pytest.mark.parametrize("form", ["ld.shared{}.v2.b32 {{%r1, %r2}}, [%r3+8]", "st.shared{}.b16 [%r3], %h1"])
def test_shared_cta_is_the_same_as_shared(form):
    named, plain = (translate.translate(kernel(f"{form.format(name)};", 1)).instructions[-2] for name in ("::cta", ""))
    assert named._replace(text=plain.text) == plain


@pytest.mark.parametrize("cache, size", ASYNC)
def test_copies_asynchronously(cache, size):
    source, out = _random(16, 48 * size).view(np.uint8).reshape(32, 3, size), np.zeros((32, 3, size), np.uint8)
    sizes = torch.randint(size + 1, (32, 3)).numpy().astype(np.uint32)
    sizes[0] = 0
    launch(ASYNC[cache, size], out, source, sizes, shared=96 * size)
    sizes[:, 2] = size
    assert (out == np.where(np.arange(size) < sizes[..., None], source, 0)).all()


# The matrix unit


def _tiles_text(store: bool, count: int, transposed: str) -> str:
    """Return a kernel that stores rows of 16 bytes to shared memory, and loads or stores tiles by row addresses."""
    tiles, row = vector(40, count) if count > 1 else "{%r40}", vector(20, 4)
    form = f"sync.aligned.m8n8.x{count}{transposed}.shared.b16"
    own = "mad.lo.s32 %r5, %lane, 16, %smem; mad.wide.u32 %d12, %lane, 16"
    lines = [f"{own}, %d1; ld.global.v4.b32 {row}, [%d12]; st.shared.v4.b32 [%r5], {row};"]
    lines += [fragments("ld", "%d2", 6, 1), "add.s32 %r6, %r6, %smem; bar.warp.sync -1;"]
    if store:
        lines += [fragments("ld", "%d3", 40, count), f"stmatrix.{form} [%r6 + 32], {tiles}; bar.warp.sync -1;"]
        lines += [f"{own}, %d0; ld.shared.v4.b32 {row}, [%r5]; st.global.v4.b32 [%d12], {row};"]
    else:
        lines += [f"ldmatrix.{form} {tiles}, [%r6+32];", fragments("st", "%d0", 40, count)]
    return kernel("\n".join(lines), 4)


TILES = {case: _tiles_text(*case) for case in itertools.product((False, True), (1, 2, 4), ("", ".trans"))}


@pytest.mark.parametrize("store, count, transposed", TILES)
def test_moves_tiles(store, count, transposed):
    rows, order = _random(16, 256).reshape(32, 8).copy(), torch.randperm(32).numpy()
    addresses = (16 * order - 32).astype(np.uint32)
    addresses[8 * count :] = 0xDEADBEEF  # unused
    tiles = rows[order].reshape(4, 8, 8)[:count] if not store else _random(16, 64 * count).reshape(count, 8, 8)
    # Lane l holds two neighbours of row l / 4, or of column l / 4.
    registers = np.ascontiguousarray(tiles.swapaxes(1, 2) if transposed else tiles).view(np.uint32).reshape(count, 32)
    out = np.zeros((32, 4) if store else (count, 32), np.uint32)
    launch(TILES[store, count, transposed], out, rows, addresses, registers, shared=512)
    if store:
        rows[order[: 8 * count]] = tiles.reshape(-1, 8)
        registers = rows.view(np.uint32)
    assert (out == registers).all()


ELEMENTS = {
    "f16": (2, lambda a: a.astype(np.float16).view(np.uint16)),
    "bf16": (2, lambda a: (a.view(np.uint32) >> 16).astype(np.uint16)),
    "tf32": (4, lambda a: a.view(np.uint32)),
}


def _numbers(*shape: int) -> np.ndarray:
    """Draw numbers that every format can represent, and whose sums of products are exact."""
    return torch.randint(-32, 33, shape).float().numpy() / 8


_GROUP, _MEMBER = _LANE // 4, _LANE % 4


def _packed(bits: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the registers of an operand. A register has one or two neighbouring elements."""
    elements, per_register = bits[rows, columns].astype(np.uint32), 4 // bits.itemsize
    return sum(elements[i::per_register] << 16 * i for i in range(per_register))


def _left(bits: np.ndarray) -> np.ndarray:
    """Return the registers of A as in the manual's figures of mma.m16n8k16 and m16n8k8."""
    per = 4 // bits.itemsize  # elements of a register
    i = np.arange(4 * per)[:, None]
    return _packed(bits, _GROUP + 8 * (i // per % 2), per * _MEMBER + i % per + 4 * per * (i // per // 2))


def _right(bits: np.ndarray) -> np.ndarray:
    """Return the registers of B as in the figures of mma."""
    per = 4 // bits.itemsize
    i = np.arange(2 * per)[:, None]
    return _packed(bits, per * _MEMBER + i % per + 4 * per * (i // per), _GROUP)


def _sums(c: np.ndarray) -> np.ndarray:
    """Return the registers of C in mma and of D in wgmma, as in the figures. A warp has 16 rows."""
    lane, bits = np.arange(2 * c.shape[0]), np.ascontiguousarray(c).view(np.uint32)
    row, member = lane // 32 * 16 + lane % 32 // 4, lane % 4
    return np.stack([bits[row + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * member + i % 2] for i in range(c.shape[1] // 2)])


def _mma_text(element: str) -> str:
    form = f"m16n8k{32 // ELEMENTS[element][0]}.row.col.f32.{element}.{element}.f32"
    loads = [fragments("ld", f"%d{1 + i}", 10 + 10 * i, count) for i, count in enumerate((4, 2, 4))]
    operands = ", ".join(vector(first, count) for first, count in ((40, 4), (10, 4), (20, 2), (30, 4)))
    return kernel("\n".join([*loads, f"mma.sync.aligned.{form} {operands};", fragments("st", "%d0", 40, 4)]), 4)


MMA = {element: _mma_text(element) for element in ELEMENTS}


@pytest.mark.parametrize("element", MMA)
def test_multiplies_in_a_warp(element):
    depth, out = 32 // ELEMENTS[element][0], np.zeros((4, 32), np.uint32)
    a, b, c = _numbers(16, depth), _numbers(depth, 8), _numbers(16, 8)
    encode = ELEMENTS[element][1]
    launch(MMA[element], out, _left(encode(a)), _right(encode(b)), _sums(c))
    assert (out == _sums(a @ b + c)).all()


def _group_text(element: str, columns: int, a: Operand | None, b: Operand, depth: int, second: int, image: int) -> str:
    """Return the kernel of a warpgroup's product. If ``a`` is None, the left operand is in registers."""
    step, row, sums = 32 // ELEMENTS[element][0], vector(20, 4), vector(100, columns // 2)
    lines = [
        f"""mad.lo.s32 %r5, %thread, 16, %smem; mad.wide.u32 %d10, %thread, 16, %d1; mov.b32 %r6, 0;
        copy: ld.global.v4.b32 {row}, [%d10]; st.shared.v4.b32 [%r5], {row}; add.s64 %d10, %d10, 2048;
        add.s32 %r5, %r5, 2048; add.s32 %r6, %r6, 2048; setp.lt.u32 %p1, %r6, {image}; @%p1 bra copy;
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
        lines.append(f"add.s64 %d13, %d11, {hex(b.descriptor(second, i * step))};")
        left, adds = "%d12" if a else vector(50 + 4 * i, 4), "%p2" if i else "%p1"
        lines.append(f"{form} {sums}, {left}, %d13, {adds}, 1, 1{transposed}; wgmma.commit_group.sync.aligned;")
    lines += ["wgmma.wait_group.sync.aligned 1;", "wgmma.wait_group.sync.aligned 0;"]
    return kernel("\n".join([*lines, fragments("st", "%d0", 100, columns // 2, 128)]), 5)


GROUPS = [
    (element, swizzle, a, b)
    for element, swizzle, a, b in itertools.product(ELEMENTS, range(4), ("K", "MN", "registers"), ("K", "MN"))
    if element != "tf32" or (a != "MN" and b == "K")
]


def _group(element: str, swizzle: int, a: str, b: str, columns: int) -> tuple:
    """Return the kernel of a case of `GROUPS`, both operands, the depth, the right operand's offset, and all bytes."""
    size = ELEMENTS[element][0]
    depth = (256 >> swizzle if swizzle else 64) // size
    left = None if a == "registers" else Operand(64, depth, size, swizzle, a == "K")
    right = Operand(columns, depth, size, swizzle, b == "K")
    second = 0 if left is None else -(-left.byte_offset(63, depth - 1) // 2048) * 2048
    image = second + -(-right.byte_offset(columns - 1, depth - 1) // 2048) * 2048
    return _group_text(element, columns, left, right, depth, second, image), left, right, depth, second, image


@pytest.mark.parametrize("element, swizzle, a, b", GROUPS)
def test_multiplies_in_a_warpgroup(element, swizzle, a, b):
    columns = (8, 24, 64, 128)[int(torch.randint(4, ()))]
    text, left, right, depth, second, size = _group(element, swizzle, a, b, columns)
    encode, step = ELEMENTS[element][1], 32 // ELEMENTS[element][0]
    x, y, c = _numbers(64, depth), _numbers(columns, depth), _numbers(64, columns)
    image, registers = np.zeros(size, np.uint8), np.zeros((1, 1), np.uint32)
    right.put(image, second, encode(y))
    if left is None:
        parts = encode(x).reshape(4, 16, -1, step).swapaxes(1, 2)  # [warps, steps, 16 rows, step]
        registers = np.concatenate([np.concatenate([_left(part) for part in warp]) for warp in parts], 1)
    else:
        left.put(image, 0, encode(x))
    for adds in (0, 1):
        out = np.zeros((columns // 2, 128), np.uint32)
        launch(text, out, image, _sums(c), registers, adds, warps=4, shared=size)
        assert (out == _sums(x @ y.T + c * adds)).all()


@pytest.mark.parametrize("load", ["ld.global.b8", "ld.global.nc.u8"])
def test_loads_bytes(load):
    source, out = _random(64, 8).view(np.uint8), np.zeros(32, np.uint16)
    text = kernel(
        f"""cvt.u64.u32 %d10, %lane; add.u64 %d10, %d10, %d1; mad.wide.u32 %d11, %lane, 2, %d0;
        {load} %h20, [%d10+3]; st.global.b16 [%d11], %h20;""", 2,
    )  # fmt: skip
    extents = [(array.ctypes.data, array.ctypes.data + array.nbytes) for array in (out, source)]
    launch(text, *(low for low, _ in extents), ranges=extents)
    assert np.array_equal(out, source[3:35])


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


def _texts() -> list[str]:
    """Return the kernels of all tests above."""
    texts = [lanewise(CASES[name].body, *_types(name)) for name in CASES]
    for name, (bits, draw, _) in VECTORS.items():
        sources = draw()
        texts.append(lanewise(_vector_body(name, len(sources)), _type(bits), *(source.dtype for source in sources)))
    for name in APPROXIMATIONS:
        texts.append(lanewise(_vector_body(name, _arity(name)), np.uint32, *[np.uint32] * _arity(name)))
    texts += [_global_text(*forms, bits, count, 1) for forms in GLOBAL for bits, count in WIDTHS]
    texts += [_shared_text(*width) for width in WIDTHS]
    texts += [_group(*group, 64)[0] for group in GROUPS]
    texts.append(kernel(CHOSEN[32].replace("KIND", "b32"), 3))
    atom = kernel("atom.global.gpu.relaxed.add.u32 %r1, [%d0], 1;", 1)  # tested in test_machine.py
    return [*texts, CLOCK, BARRIER, PAIRS, atom, *ASYNC.values(), *TILES.values(), *MMA.values()]


def test_covers_every_operation():
    used = {i.operation for text in _texts() for i in translate.translate(text, peers=True).instructions}
    assert {translate.OPERATIONS[operation] for operation in used} == set(translate.OPERATIONS)


@pytest.mark.parametrize("pattern", [row[0] for row in translate._COMPUTING])
def test_covers_every_pattern_of_the_translator(pattern):
    names = [re.split("[ ;]", name)[0] for name in (*CASES, *VECTORS, *APPROXIMATIONS)]
    assert any(pattern.fullmatch(name) for name in names)
