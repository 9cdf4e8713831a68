"""The hand-over by itself: elements come out of the words they went into, and what is missing is told apart."""

import pytest
import torch
import triton
import triton.language as tl

from triton_gru.kernels import exchange, isa
from triton_gru.launch.kernel_launch import Launch
from triton_gru.plan.config import HANDOVERS
from triton_gru.plan.device import interpreting

from ..oracle import PRECISIONS

FORM = "interpreter" if interpreting() else "ptx"
ROWS, UNITS = 8, 128  # of a tile: words of 8 rows, in chunks of units from two slices


@triton.jit
def _send_and_receive(
    x, y, mailbox, watch, H: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr, HANDOVER: tl.constexpr,
    ISA: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = y.dtype.element_ty
    PARTS: tl.constexpr = 2 if tl.float32 == DTYPE and PRECISION == "ieee" else 4
    WORD: tl.constexpr = exchange.word_elements(DTYPE, PARTS)
    DEPTH: tl.constexpr = exchange.word_lanes(PARTS) * WORD
    elements = exchange.elements_of(mailbox, DTYPE)
    row, unit = tl.arange(0, ROWS)[None, :], tl.arange(0, H)[:, None]
    place = exchange.place(unit, row, ROWS, WORD)
    exchange.send(elements + place, tl.load(x + row * H + unit), place >= 0, 0, 0, DTYPE, PRECISION, ISA)
    received = exchange.receive(elements, 0, mailbox, watch, PARTS, H // WORD, 2, ROWS, ROWS, DTYPE, HANDOVER, ISA)
    k = tl.arange(0, 2)[:, None, None] * DEPTH + tl.arange(0, DEPTH)[None, :, None]
    k = exchange.in_order(tl.broadcast_to(k, (2, DEPTH, ROWS)), PARTS, DTYPE)
    for c in tl.static_range(len(received) // PARTS):
        value = exchange.values(received[PARTS * c : PARTS * (c + 1)], DTYPE, ISA)
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
    y = torch.full_like(expected, 7.0)
    mailbox = torch.full((16 + ROWS * UNITS,), -1, dtype=torch.int64, device=device)
    watch = torch.tensor([10**10, 0], device=device)
    constants = {
        "H": UNITS, "ROWS": ROWS, "PRECISION": "tf32" if precision == "tf32" else "ieee", "HANDOVER": handover,
        "ISA": FORM, "num_warps": 2,
    }  # fmt: skip
    Launch(_send_and_receive, (1,), (x, y, mailbox, watch), constants).start()
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y.nan_to_num(3.0, 1e30, -1e30), expected.nan_to_num(3.0, 1e30, -1e30))
    integers = y.view(torch.int32 if dtype == torch.float32 else torch.int16)
    assert (integers != -1).all(), "the one pattern that stands for what has not come"


@triton.jit
def _wait(words, y, abort, watch, BITS: tl.constexpr, PROBE: tl.constexpr, NAN: tl.constexpr):
    at = tl.arange(0, 64)[None, :, None]
    received = isa.wait_words(
        words + 4 * at, words + 4 * at, abort, watch, BITS, 4, 2, 64, False, 1, 1, NAN, 2, PROBE, 0, False
    )  # fmt: skip
    for i in tl.static_range(8):
        tl.store(y + 256 * (i // 4) + 4 * at + i % 4, received[i])


@pytest.mark.gpu
@pytest.mark.parametrize("handover", HANDOVERS)
@pytest.mark.parametrize("bits", [16, 32])
def test_a_wait_for_one_missing_element_gives_up(bits, handover):
    """Two words of a thread, twice; test_isa.py has the arithmetic in every combination of bits."""
    elements = torch.arange(128 * 128 // bits, dtype=torch.int64) % 32767
    integer = {16: torch.int16, 32: torch.int32}[bits]
    words = elements.to(integer).cuda().view(torch.int32)
    host = torch.zeros(1, dtype=torch.int32).pin_memory()
    abort, watch = torch.zeros(1, dtype=torch.int32, device="cuda"), torch.tensor([10**6, host.data_ptr()]).cuda()
    nan = 0x7FFF7FFF

    def waited() -> torch.Tensor:
        y = torch.zeros_like(words)
        constants = {"BITS": bits, "PROBE": handover == "probe", "NAN": nan, "num_warps": 1}
        Launch(_wait, (1,), (words, y, abort, watch), constants).start()
        torch.cuda.synchronize()
        return y

    assert torch.equal(waited(), words)
    assert (host.item(), abort.item()) == (0, 0)
    each = words.view(integer)
    for i in range(0, each.numel(), 5):
        kept = each[i].clone()
        each[i] = -1
        y = waited()
        assert (y == nan).any() and torch.equal(y[y != nan], words[y != nan]), i
        assert (host.item(), abort.item()) == (1, 1)
        each[i] = kept
        host.zero_()
        abort.zero_()
