"""The error bound of the library (triton_gru.accuracy), asserted for each result, infinities and NaNs included.

The baseline differs from `accuracy.compute_baseline` in two cases:

- TF32 on a CPU, which has none: the reference with each operand of each product rounded to TF32.
- fp32 on any device: the reference with the products of a sum added one after another, as the kernels add them. torch
  adds products in blocks, whose sizes depend on the machine and the shape.
"""

import copy
from unittest import mock

import torch
from torch import nn

from triton_gru import accuracy, reference
from triton_gru.accuracy import PRECISIONS, Judge, compute_error_bound, count_summed_products, set_precision

__all__ = [
    "PRECISIONS",
    "assert_accurate",
    "compute_baseline",
    "compute_error_bound",
    "compute_exact",
    "compute_in_double",
    "count_summed_products",
    "in_order_linear",
    "set_precision",
    "tf32",
]  # fmt: skip


def compute_exact(
    module: nn.Module, x: torch.Tensor, hx: torch.Tensor | None, **ends
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `accuracy.compute_exact` on the CPU. ``ends`` are lengths and resets."""
    output, h_n = accuracy.compute_exact(module, x, hx, **ends)
    return output.cpu(), h_n.cpu()


def compute_baseline(module: nn.Module, x: torch.Tensor, hx: torch.Tensor | None, precision: str, **ends):
    """Return the baseline's output and h_n: `accuracy.compute_baseline`, with the two exceptions at the top."""
    if precision == "tf32" and x.device.type == "cpu":
        with mock.patch.object(reference.F, "linear", _tf32_linear):
            return compute_exact(module, x, hx, **ends)
    with torch.no_grad():
        if precision == "fp32":
            with mock.patch.object(reference.F, "linear", in_order_linear):
                return accuracy.compute_by_reference(module, x, hx, **ends)
        return accuracy.compute_baseline(module, x, hx, **ends)


def in_order_linear(x, weight, bias):
    """Compute F.linear with a rounding after each product that is added."""
    total = x.new_zeros(*x.shape[:-1], weight.size(0))
    for feature, weights in zip(x.unbind(-1), weight.unbind(1)):
        total.addcmul_(feature.unsqueeze(-1), weights)
    return total if bias is None else total + bias


def _tf32_linear(x, weight, bias):
    product = tf32(x) @ tf32(weight).T
    return product if bias is None else product + bias


def tf32(x: torch.Tensor) -> torch.Tensor:
    """Round float64 numbers to the nearest with ten mantissa bits."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


def compute_in_double(module: nn.Module, *arguments):
    """Return the results of a float64 copy of ``module``."""
    with torch.no_grad():
        return copy.deepcopy(module).double()(*(each if each is None else each.double() for each in arguments))


def assert_accurate(
    actual: torch.Tensor, baseline: torch.Tensor, exact: torch.Tensor, precision: str, num_products: int = 0
) -> None:
    """Assert the shape, the places of NaNs and infinities, and the bound on the error of ``actual``.

    ``num_products`` is as in `compute_error_bound`. It is for a ``baseline`` from nn.GRU in fp32, which may add the
    products of a sum in another order.
    """
    assert actual.shape == baseline.shape == exact.shape
    actual, baseline, exact = (each.detach().double().cpu() for each in (actual, baseline, exact))
    finite = exact.isfinite()
    assert torch.equal(actual.isnan(), exact.isnan()), "NaNs differ from float64's"
    assert torch.equal(actual[exact.isinf()], exact[exact.isinf()]), "infinities differ from float64's"
    if not finite.any():
        return
    # A baseline that is NaN or infinite where float64 is finite gives no bound: take it as exact there.
    baseline = torch.where(baseline.isfinite(), baseline, exact)
    actual, baseline, exact = (each.where(finite, 0.0) for each in (actual, baseline, exact))
    judge = Judge([exact], [baseline], precision, exact.abs().max().item(), num_products)
    error, right = judge([actual])
    errors = (actual - exact).abs()
    worst = tuple(int(each) for each in torch.unravel_index(errors.argmax(), errors.shape))
    assert right, (
        f"error {error:.2e}, baseline {judge.baseline_error:.2e}, bound {judge.allowed:.2e}; the worst element "
        f"{worst} of {tuple(errors.shape)} is {actual[worst].item():.6g} instead of {exact[worst].item():.6g}, and "
        f"{int((errors > judge.allowed).sum())} elements exceed the bound"
    )
