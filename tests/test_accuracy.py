"""The judge of results: what it calls right, wrong, and how far off."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import triton_gru
from triton_gru import accuracy
from triton_gru.accuracy import Judge, compute_error_bound, compute_exact

LENGTHS = torch.tensor([3, 5, 5])


def called(kind, batch_first=False):
    """A GRU, and the arguments of a call of this kind."""
    gru = triton_gru.GRU(4, 6, 2, batch_first=batch_first, bidirectional=kind != "resets", backend="reference").eval()
    x = torch.randn(*((3, 5) if batch_first else (5, 3)), 4)
    hx = torch.randn(2 * (1 + gru.bidirectional), 3, 6)
    ends = {}
    if kind == "packed":
        x = pack_padded_sequence(x, LENGTHS, batch_first, enforce_sorted=False)
    elif kind == "lengths":
        ends["lengths"] = LENGTHS
    elif kind == "resets":
        ends["resets"] = torch.rand(x.shape[:2]) < 0.3
    return gru, x, hx, ends


def copies(results):
    output, h_n = results
    return output.data.detach().clone(), h_n.detach().clone()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["dense", "packed", "lengths", "resets"])
def test_a_wrong_number_anywhere_is_found(kind, batch_first):
    gru, x, hx, ends = called(kind, batch_first)
    judge = Judge.for_call(gru, x, hx, "fp32", **ends)
    results = gru(x, hx, **ends)
    error, right = judge(results)
    assert right and 0 < error <= judge.allowed
    assert judge(copies(results)) == judge(results)
    for part in (0, 1):
        for wrong in (1e-3, math.nan, math.inf):
            spoilt = copies(results)
            spoilt[part][(-1,) * spoilt[part].dim()] += wrong
            error, right = judge(spoilt, slack=4)
            assert not right and not error < 9e-4
    assert judge(copies(results)[:1])[1], "an output alone can be right"


def test_no_other_shape_is_right():
    """Not even one that can be compared."""
    gru, x, hx, _ = called("dense")
    with torch.no_grad():
        gru.weight_ih_l1.zero_()
        output, h_n = gru(x, hx)
        judge = Judge([output, h_n], [output, h_n], "fp32")
    assert judge([output, h_n])[1]
    error, right = judge([output[:, :1], h_n[:, :1]])
    assert math.isnan(error) and not right


def test_what_is_allowed_is_the_baselines_error_and_the_margin():
    zeros = torch.zeros(2, 3)
    judge = Judge([zeros.double()], [zeros + 0.5], "fp16", scale=2.0)
    assert (judge.baseline_error, judge.allowed) == (0.5, compute_error_bound(0.5, "fp16", scale=2.0))
    at = judge.allowed
    assert judge([zeros.double() + at]) == (at, True)
    assert judge([zeros.double() + 2 * at]) == (2 * at, False)
    assert judge([zeros.double() - 2 * at], slack=2) == (2 * at, True)
    # A baseline that is none allows nothing.
    assert not Judge([zeros.double()], [zeros + math.nan], "fp16")([zeros])[1]


@pytest.mark.parametrize("kind", ["dense", "packed", "lengths", "resets"])
def test_a_large_batch_is_computed_in_parts_which_make_no_difference(kind, monkeypatch):
    gru, x, hx, ends = called(kind)
    whole = copies(compute_exact(gru, x, hx, **ends))
    calls = []
    compute = accuracy.reference.compute_gru
    monkeypatch.setattr(
        accuracy.reference, "gru", lambda x, *more, **ends: calls.append(x) or compute(x, *more, **ends)
    )
    monkeypatch.setattr(accuracy, "_NUMBERS_AT_ONCE", 2 * 5 * 6 * (1 + gru.bidirectional))  # two rows
    parts = compute_exact(gru, x, hx, **ends)
    assert [each.size(1) for each in calls] == [2, 1]
    torch.testing.assert_close(copies(parts), whole, rtol=0, atol=1e-15)
    assert parts[0].data.dtype == torch.double


@pytest.mark.parametrize("sorted", [True, False])
def test_packed_input_is_compared_with_torchs_own_in_float64(sorted):
    theirs = nn.GRU(4, 6, 2, bidirectional=True).double()
    lengths = LENGTHS.flip(0) if sorted else LENGTHS
    x = pack_padded_sequence(torch.randn(5, 3, 4).double(), lengths, enforce_sorted=sorted)
    hx = torch.randn(4, 3, 6).double()
    torch.testing.assert_close(copies(compute_exact(theirs, x, hx)), copies(theirs(x, hx)), rtol=0, atol=1e-14)
