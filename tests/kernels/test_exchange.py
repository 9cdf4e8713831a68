"""Tests of the hand-over alone: elements are received as they were sent, and missing elements are recognized."""

import pytest
import torch
import triton
import triton.language as tl

from triton_gru.kernels import exchange, isa
from triton_gru.launch.kernel_launch import Launch
from triton_gru.launch.scan import triton_type
from triton_gru.plan.config import HANDOVERS

from ..oracle import PRECISIONS

ROWS, UNITS, SLICES = 8, 128, 2  # rows and units of a tile, and the warps that receive its words by turns


@triton.jit
def _send_and_receive(
    x, y, mailbox, watch, H: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, words: tl.constexpr
):
    """Send the tile ``x`` and receive it. Store the parts of the received words to ``y``, row by row."""
    elements = exchange.element_pointer(mailbox, DTYPE)
    row, unit = tl.arange(0, words.ROWS)[None, :], tl.arange(0, H)[:, None]
    offset = exchange.element_offset(unit, row, words.ROWS, exchange.elements_per_word(words.BITS, words.PARTS))
    exchange.send(elements + offset, tl.load(x + row * H + unit), offset >= 0, 0, 0, DTYPE, PRECISION)
    SLICES: tl.constexpr = words.WORDS_PER_SEGMENT // exchange.words_per_piece(words.PARTS)
    warp = tl.arange(0, SLICES)[:, None, None]
    if words.PARTS == 4:  # the order of `fragments`
        word, row = warp * 4 + tl.arange(0, 4)[None, None, :], tl.arange(0, words.ROWS)[None, :, None]
    else:
        word, row = warp * 8 + tl.arange(0, 8)[None, :, None], tl.arange(0, words.ROWS)[None, None, :]
    received = exchange.receive(elements, 0, mailbox, watch, word, row, words)
    for c in tl.static_range(words.SEGMENTS):
        for part in tl.static_range(words.PARTS):
            offset = (row * words.WORDS_PER_ROW + c * words.WORDS_PER_SEGMENT + word) * words.PARTS + part
            tl.store(y + offset, received[c * words.PARTS + part])


# Zeros, infinities, the largest fp16 number, numbers that fp16 or fp32 round to subnormals or zero, and -1.
SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), 65504.0, 6e-8, 1e-45, -1.0]
# Bits of NaNs. Those of -1 are also the pattern of a missing element.
PAYLOADS = [0x7FFFFFFF, -1, 0x7F800001, -0x7FFFFF, 0x7FC00000, -0x400000]


@pytest.mark.parametrize("handover", HANDOVERS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_received_tile_equals_the_sent_tile(precision, handover, device):
    dtype = PRECISIONS[precision][0]
    x = torch.randn(ROWS, UNITS, device=device)
    x[0, : len(SPECIAL)] = torch.tensor(SPECIAL, device=device)
    x[1, : len(PAYLOADS)] = torch.tensor(PAYLOADS, dtype=torch.int32, device=device).view(torch.float32)
    expected = x.to(dtype)
    if precision == "tf32":
        bits = x.view(torch.int32)
        rounded = ((bits + 0x1000) & -0x2000).view(torch.float32)  # ties away from zero
        expected = torch.where(x.isnan(), x, rounded)
    y = torch.full_like(expected, 7.0)
    mailbox = torch.full((16 + ROWS * UNITS,), -1, dtype=torch.int64, device=device)
    watch = torch.tensor([10**10, 0], device=device)  # ten seconds, and no address of a word of the host
    bits, parts = 8 * dtype.itemsize, 2 if precision == "fp32" else 4
    lanes = exchange.words_per_piece(parts)
    words = exchange.WordLayout(
        BITS=bits, PARTS=parts, WORDS_PER_ROW=UNITS // exchange.elements_per_word(bits, parts),
        WORDS_PER_SEGMENT=SLICES * lanes, ROWS=ROWS, THREAD_ROW_STEP=8, PACK=2 if parts == 2 else 1,
        PROBE=handover == "probe",
    )  # fmt: skip
    constants = {
        "H": UNITS, "DTYPE": triton_type(dtype), "PRECISION": "tf32" if precision == "tf32" else "ieee", "words": words,
        "num_warps": SLICES,
    }  # fmt: skip
    Launch(_send_and_receive, (1,), (x, y.view(torch.int32), mailbox, watch), constants).start()
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y.nan_to_num(3.0, 1e30, -1e30), expected.nan_to_num(3.0, 1e30, -1e30))
    integers = y.view(torch.int32 if dtype == torch.float32 else torch.int16)
    assert (integers != -1).all(), "-1 is the pattern of a missing element"


@triton.jit
def _wait_for_two_words(start, y, abort, watch, words: tl.constexpr):
    """Wait for 128 words of four parts, by one warp, and store the words to ``y``.

    A thread has two pairs of words, i and i + 64, and waits for one pair after the other.
    """
    word = tl.arange(0, 64)[None, :, None]
    received = isa.wait_words(start + 4 * word, start + 4 * word, abort, watch, 0, words)
    for i in tl.static_range(8):
        segment, part = i // 4, i % 4
        tl.store(y + 4 * (64 * segment + word) + part, received[i])


MISSING = -1  # the value of an element that has not arrived


@pytest.mark.gpu
@pytest.mark.parametrize("handover", HANDOVERS)
@pytest.mark.parametrize("bits", [16, 32])
def test_a_wait_for_one_missing_element_gives_up(bits, handover):
    """Check a wait with all elements, and with one element missing, for every fifth element.

    If an element is missing, the wait returns NaN for some parts of words, at least, and correct values for the other
    parts. It sets the abort word, and the host's word. test_isa.py tests how missing elements are found.
    """
    elements = torch.arange(128 * 128 // bits, dtype=torch.int64) % 32767  # none is `MISSING`
    integer = {16: torch.int16, 32: torch.int32}[bits]
    words = elements.to(integer).cuda().view(torch.int32)
    host_word = torch.zeros(1, dtype=torch.int32).pin_memory()
    abort = torch.zeros(1, dtype=torch.int32, device="cuda")
    time_limit_ns = 10**6
    watch = torch.tensor([time_limit_ns, host_word.data_ptr()]).cuda()
    layout = exchange.WordLayout(
        BITS=bits, PARTS=4, WORDS_PER_ROW=128, WORDS_PER_SEGMENT=64, ROWS=1, PACK=2, PROBE=handover == "probe"
    )
    nan = layout.NAN.value

    def wait() -> torch.Tensor:
        """Return what a wait for all words returns."""
        y = torch.zeros_like(words)
        Launch(_wait_for_two_words, (1,), (words, y, abort, watch), {"words": layout, "num_warps": 1}).start()
        torch.cuda.synchronize()
        return y

    assert torch.equal(wait(), words)
    assert (host_word.item(), abort.item()) == (0, 0)
    elements = words.view(integer)
    for i in range(0, elements.numel(), 5):
        element = elements[i].clone()
        elements[i] = MISSING
        y = wait()
        assert (y == nan).any() and torch.equal(y[y != nan], words[y != nan]), i
        assert (host_word.item(), abort.item()) == (1, 1)
        elements[i] = element
        host_word.zero_()
        abort.zero_()
