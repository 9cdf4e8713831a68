"""The oracle, compared with torch and with the formulas computed element by element."""

import math

import pytest
import torch
from torch import nn

from triton_gru import reference

from .oracle import compute_error_bound, compute_exact, in_order_linear, tf32


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_agrees_with_torch_in_float64(layers, bidirectional, bias, batch_first):
    gru = nn.GRU(5, 7, layers, bias, batch_first, bidirectional=bidirectional, dtype=torch.float64)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    hx = torch.randn(layers * (2 if bidirectional else 1), 4 if batch_first else 3, 7, dtype=torch.float64)
    for state in (hx, None):
        for actual, expected in zip(compute_exact(gru, x, state), gru(x, state)):
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)


def test_sums_in_order_need_the_bound_for_many_products():
    """The test sums in fp32, without our activations and without a comparison with `nn.GRU`."""
    torch.manual_seed(0)
    products = 4096
    x, w = torch.randn(16, products), (2 * torch.rand(256, products) - 1) / products**0.5
    error = (in_order_linear(x, w, None).double().tanh() - (x.double() @ w.double().T).tanh()).abs().max().item()
    assert compute_error_bound(0.0, "fp32") < error < compute_error_bound(0.0, "fp32", num_products=products)


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_step_agrees_with_the_formulas_element_by_element(reset_after, bias):
    """The test computes two units from the formulas in the docstring of `triton_gru.reference`."""
    w_ih, w_hh, b_ih, b_hh = (torch.randn(6, n, dtype=torch.float64) for n in (3, 2, 1, 1))
    b_ih, b_hh = (b_ih[:, 0], b_hh[:, 0]) if bias else (None, None)
    x, h = [0.3, -1.2, 0.5], [0.7, -0.4]

    def dot(row, values):
        return sum(weight * value for weight, value in zip(row.tolist(), values))

    def get_bias(bias, index):
        return 0.0 if bias is None else bias[index].item()

    def sigmoid(value):
        return 1 / (1 + math.exp(-value))

    # Rows of the weights: r of both units, z of both units, n of both units.
    r = [sigmoid(dot(w_ih[j], x) + get_bias(b_ih, j) + dot(w_hh[j], h) + get_bias(b_hh, j)) for j in (0, 1)]
    z = [sigmoid(dot(w_ih[j], x) + get_bias(b_ih, j) + dot(w_hh[j], h) + get_bias(b_hh, j)) for j in (2, 3)]
    reset = [r_j * h_j for r_j, h_j in zip(r, h)]
    expected = []
    for i, j in enumerate((4, 5)):
        inner = dot(w_ih[j], x) + get_bias(b_ih, j)
        recurrent = (
            r[i] * (dot(w_hh[j], h) + get_bias(b_hh, j)) if reset_after else dot(w_hh[j], reset) + get_bias(b_hh, j)
        )
        expected.append((1 - z[i]) * math.tanh(inner + recurrent) + z[i] * h[i])
    arguments = torch.tensor([x], dtype=torch.float64), torch.tensor([h], dtype=torch.float64)
    actual = reference.compute_step(*arguments, (w_ih, w_hh, b_ih, b_hh), reset_after=reset_after)
    assert actual[0].tolist() == pytest.approx(expected, abs=1e-14)


def test_dropout_is_between_layers_only():
    gru = nn.GRU(3, 4, 2)
    weights = [tuple(getattr(gru, name) for name in names) for names in gru._all_weights]
    x, hx = torch.randn(5, 2, 3), torch.zeros(2, 2, 4)
    output, h_n = reference.compute_gru(x, hx, weights, dropout=1.0)
    plain, plain_h_n = reference.compute_gru(x, hx, weights)
    assert torch.equal(h_n[0], plain_h_n[0])
    assert not torch.equal(output, plain)
    torch.testing.assert_close(output, reference.compute_scan(torch.zeros(5, 2, 4), hx[1], weights[1])[0])


def test_tf32_rounds_to_ten_mantissa_bits():
    x = torch.tensor([1.0, 1 + 2**-10, 1 + 2**-11 + 2**-20, 1 + 2**-12, -3.0, 0.0, 1e-30], dtype=torch.float64)
    rounded = tf32(x)
    assert rounded[:6].tolist() == [1.0, 1 + 2**-10, 1 + 2**-10, 1.0, -3.0, 0.0]
    assert ((rounded - x).abs() <= x.abs() * 2**-11).all()
