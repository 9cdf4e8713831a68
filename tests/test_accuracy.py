"""The judge of results: right or wrong, the error, and the bound."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import triton_gru
from triton_gru import accuracy
from triton_gru.accuracy import Judge, compute_error_bound, compute_exact

LENGTHS = torch.tensor([3, 5, 5])


def make_call(kind, batch_first=False):
    """Return a GRU, its input, hx, and the arguments ``lengths`` or ``resets`` of a call of this kind."""
    gru = triton_gru.GRU(4, 6, 2, batch_first=batch_first, bidirectional=kind != "resets", backend="reference").eval()
    x = torch.randn(*((3, 5) if batch_first else (5, 3)), 4)
    hx = torch.randn(2 * (1 + gru.bidirectional), 3, 6)
    sequence_options = {}
    if kind == "packed":
        x = pack_padded_sequence(x, LENGTHS, batch_first, enforce_sorted=False)
    elif kind == "lengths":
        sequence_options["lengths"] = LENGTHS
    elif kind == "resets":
        sequence_options["resets"] = torch.rand(x.shape[:2]) < 0.3
    return gru, x, hx, sequence_options


def copy_results(results):
    """Return copies of output and h_n without autograd. A packed output becomes its data."""
    output, h_n = results
    return output.data.detach().clone(), h_n.detach().clone()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["dense", "packed", "lengths", "resets"])
def test_judge_finds_a_wrong_element_of_either_result(kind, batch_first):
    gru, x, hx, sequence_options = make_call(kind, batch_first)
    judge = Judge.for_call(gru, x, hx, "fp32", **sequence_options)
    results = gru(x, hx, **sequence_options)
    error, is_right = judge(results)
    assert is_right and 0 < error <= judge.allowed
    assert judge(copy_results(results)) == judge(results)
    for index in (0, 1):
        for added_error in (1e-3, math.nan, math.inf):
            wrong_results = copy_results(results)
            wrong_results[index][(-1,) * wrong_results[index].dim()] += added_error
            error, is_right = judge(wrong_results, slack=4)
            assert not is_right and not error < 9e-4  # `not <` is true for an error of NaN
    assert judge(copy_results(results)[:1])[1], "an output without h_n can be right"


def test_judge_rejects_other_shapes():
    """Results of one row broadcast against three rows, but they are not right."""
    gru, x, hx, _ = make_call("dense")
    with torch.no_grad():
        output, h_n = gru(x[:, :1].expand_as(x), hx[:, :1].expand_as(hx))  # the rows are equal
        judge = Judge([output, h_n], [output, h_n], "fp32")
    assert judge([output, h_n])[1]
    error, is_right = judge([output[:, :1], h_n[:, :1]])
    assert math.isnan(error) and not is_right


def test_judge_allows_the_baseline_error_and_the_margin():
    zeros = torch.zeros(2, 3)
    judge = Judge([zeros.double()], [zeros + 0.5], "fp16", scale=2.0)
    assert (judge.baseline_error, judge.allowed) == (0.5, compute_error_bound(0.5, "fp16", scale=2.0))
    allowed = judge.allowed
    assert judge([zeros.double() + allowed]) == (allowed, True)
    assert judge([zeros.double() + 2 * allowed]) == (2 * allowed, False)
    assert judge([zeros.double() - 2 * allowed], slack=2) == (2 * allowed, True)
    # A baseline of NaN allows nothing.
    assert not Judge([zeros.double()], [zeros + math.nan], "fp16")([zeros])[1]


@pytest.mark.parametrize("kind", ["dense", "packed", "lengths", "resets"])
def test_exact_results_are_the_same_a_few_rows_at_a_time(kind, monkeypatch):
    """A large batch is computed a few rows at a time, to save memory."""
    gru, x, hx, sequence_options = make_call(kind)
    expected = copy_results(compute_exact(gru, x, hx, **sequence_options))
    inputs = []
    compute = accuracy.reference.compute_gru
    monkeypatch.setattr(
        accuracy.reference,
        "compute_gru",
        lambda x, *arguments, **sequence_options: inputs.append(x) or compute(x, *arguments, **sequence_options),
    )
    monkeypatch.setattr(accuracy, "_MAX_OUTPUT_ELEMENTS", 2 * 5 * 6 * (1 + gru.bidirectional))  # outputs of two rows
    results = compute_exact(gru, x, hx, **sequence_options)
    assert [rows.size(1) for rows in inputs] == [2, 1]
    torch.testing.assert_close(copy_results(results), expected, rtol=0, atol=1e-15)
    assert results[0].data.dtype == torch.double


@pytest.mark.parametrize("sorted", [True, False])
def test_exact_results_of_packed_input_agree_with_nn_gru(sorted):
    theirs = nn.GRU(4, 6, 2, bidirectional=True).double()
    lengths = LENGTHS.flip(0) if sorted else LENGTHS
    x = pack_padded_sequence(torch.randn(5, 3, 4).double(), lengths, enforce_sorted=sorted)
    hx = torch.randn(4, 3, 6).double()
    torch.testing.assert_close(
        copy_results(compute_exact(theirs, x, hx)), copy_results(theirs(x, hx)), rtol=0, atol=1e-14
    )
