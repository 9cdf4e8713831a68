"""The hand-over by itself: elements come out of the words they went into, and what is missing is told apart."""

import pytest
import torch
import triton
import triton.language as tl

from triton_gru.config import HANDOVERS
from triton_gru.kernels import exchange

from .oracle import PRECISIONS

ROWS, UNITS = 8, 128  # of a tile: words of 8 rows, in chunks of units from two slices


@triton.jit
def _send_and_receive(
    x, y, mailbox, watch, step, H: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr, HANDOVER: tl.constexpr,
    ISA: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = y.dtype.element_ty
    WORD: tl.constexpr = exchange.word_elements(DTYPE, HANDOVER)
    DEPTH: tl.constexpr = 32 if WORD == 4 else 16
    counters, elements = exchange.parts(mailbox, 1, DTYPE, HANDOVER)
    row, unit = tl.arange(0, ROWS)[None, :], tl.arange(0, H)[:, None]
    place = exchange.place(unit, row, ROWS, DTYPE, HANDOVER)
    exchange.send(
        elements + place, tl.load(x + row * H + unit), place >= 0, step, counters, DTYPE, HANDOVER, PRECISION, ISA
    )
    received = exchange.receive(
        elements, step, counters, 1, mailbox, watch, H // WORD, 2, DEPTH // WORD, ROWS, ROWS, DTYPE, HANDOVER, ISA
    )
    k = tl.arange(0, 2)[:, None, None] * DEPTH + tl.arange(0, DEPTH)[None, :, None]
    k = exchange.in_order(tl.broadcast_to(k, (2, DEPTH, ROWS)), DTYPE, HANDOVER)
    for c in tl.static_range(len(received)):
        value = exchange.values(received[c], DTYPE, HANDOVER, ISA)
        tl.store(y + tl.arange(0, ROWS)[None, None, :] * H + c * 2 * DEPTH + k, value)


SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), 65504.0, 6e-8, 1e-45, -1.0]
PAYLOADS = [0x7FFFFFFF, -1, 0x7F800001, -0x7FFFFF, 0x7FC00000, -0x400000]


@pytest.mark.parametrize("handover", HANDOVERS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_sent_is_received(precision, handover, device):
    dtype = PRECISIONS[precision][0]
    x = torch.randn(ROWS, UNITS, device=device)
    x[0, : len(SPECIAL)] = torch.tensor(SPECIAL, device=device)
    x[1, : len(PAYLOADS)] = torch.tensor(PAYLOADS, dtype=torch.int32, device=device).view(torch.float32)
    expected = x.to(dtype)
    if precision == "tf32":
        bits = x.view(torch.int32)
        rounded = ((bits + 0x1000) & -0x2000).view(torch.float32)
        expected = torch.where(x.isnan(), x, rounded)
    flagged = handover in ("flag", "probe")
    for form in ("interpreter",) if device == "cpu" else ("plain", "ptx"):
        y = torch.full_like(expected, 7.0)
        mailbox = torch.full((32 + ROWS * UNITS,), -1 if flagged else 0, dtype=torch.int64, device=device)
        watch = torch.tensor([10**10, 0], device=device)
        _send_and_receive[(1,)](
            x, y, mailbox, watch, 1, H=UNITS, ROWS=ROWS, PRECISION="tf32" if precision == "tf32" else "ieee",
            HANDOVER=handover, ISA=form, num_warps=2,
        )  # fmt: skip
        assert torch.equal(y.isnan(), x.isnan())
        assert torch.equal(y.nan_to_num(3.0, 1e30, -1e30), expected.nan_to_num(3.0, 1e30, -1e30))
        integers = y.view(torch.int32 if dtype == torch.float32 else torch.int16)
        assert (integers != -1).all(), "the one pattern that stands for what has not come"


@triton.jit
def _missing(words, y, step, DTYPE: tl.constexpr, HANDOVER: tl.constexpr, ISA: tl.constexpr):
    at = tl.arange(0, 16)[None, None, :]
    tl.store(y, exchange._missing(words + at, words + at, step, DTYPE, HANDOVER, 1, 16, False, ISA))


@pytest.mark.parametrize("handover", ["flag", "tag"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_missing_element_is_missed(dtype, handover, device):
    """The plain form's test; the PTX form's is the same arithmetic, and is run on a GPU where a producer is missing."""
    bits = dtype.itemsize * 8
    integer = {16: torch.int16, 32: torch.int32, 64: torch.int64}[bits * (2 if handover == "tag" else 1)]
    step, upper = 5, 5 << bits if handover == "tag" else 0
    words = torch.full((16,), 0, dtype=torch.int64, device=device)
    elements = words.view(integer)
    elements.copy_(torch.arange(elements.numel()) | upper)
    y = torch.full((1,), 7, dtype=torch.int32, device=device)
    form = "interpreter" if device == "cpu" else "plain"
    triton_dtype = tl.float32 if dtype == torch.float32 else tl.float16

    def missing():
        _missing[(1,)](words, y, step, DTYPE=triton_dtype, HANDOVER=handover, ISA=form, num_warps=1)
        return y.item()

    assert missing() == 0
    for i in range(elements.numel()):
        kept = elements[i].clone()
        elements[i] = -1 if handover == "flag" else kept - (1 << bits)
        assert missing() == 1, i
        elements[i] = kept
    assert missing() == 0
