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
    module: nn.Module, x: torch.Tensor, hx: torch.Tensor | None, **sequence_options
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the results of `accuracy.compute_exact`, moved to the CPU.

    ``sequence_options`` are the arguments ``lengths`` and ``resets``.
    """
    output, h_n = accuracy.compute_exact(module, x, hx, **sequence_options)
    return output.cpu(), h_n.cpu()


def compute_baseline(module: nn.Module, x: torch.Tensor, hx: torch.Tensor | None, precision: str, **sequence_options):
    """Return the baseline's output and h_n: `accuracy.compute_baseline`, with the two exceptions at the top."""
    if precision == "tf32" and x.device.type == "cpu":
        with mock.patch.object(reference.F, "linear", _tf32_linear):
            return compute_exact(module, x, hx, **sequence_options)
    with torch.no_grad():
        if precision == "fp32":
            with mock.patch.object(reference.F, "linear", in_order_linear):
                return accuracy.compute_by_reference(module, x, hx, **sequence_options)
        return accuracy.compute_baseline(module, x, hx, **sequence_options)


def in_order_linear(x, weight, bias):
    """Return F.linear, computed by adding one product after another with a rounding after each."""
    total = x.new_zeros(*x.shape[:-1], weight.size(0))
    for feature, weights in zip(x.unbind(-1), weight.unbind(1)):
        total.addcmul_(feature.unsqueeze(-1), weights)
    return total if bias is None else total + bias


def _tf32_linear(x, weight, bias):
    """Return F.linear of float64 operands that are rounded to TF32."""
    product = tf32(x) @ tf32(weight).T
    return product if bias is None else product + bias


def tf32(x: torch.Tensor) -> torch.Tensor:
    """Return float64 ``x`` rounded to the nearest values with ten mantissa bits, the precision of TF32."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


def compute_in_double(module: nn.Module, *arguments):
    """Return the results of a float64 copy of ``module`` for ``arguments``, tensors or None."""
    with torch.no_grad():
        return copy.deepcopy(module).double()(
            *(None if argument is None else argument.double() for argument in arguments)
        )


def assert_accurate(
    actual: torch.Tensor, baseline: torch.Tensor, exact: torch.Tensor, precision: str, num_products: int = 0
) -> None:
    """Assert that ``actual`` has the shape, NaNs and infinities of ``exact``, and errors within the bound.

    ``num_products`` is as in `compute_error_bound`. Pass it if ``baseline`` is of nn.GRU in fp32, which may add the
    products of a sum in another order.
    """
    assert actual.shape == baseline.shape == exact.shape
    actual, baseline, exact = (result.detach().double().cpu() for result in (actual, baseline, exact))
    finite = exact.isfinite()
    assert torch.equal(actual.isnan(), exact.isnan()), "NaNs differ from float64's"
    assert torch.equal(actual[exact.isinf()], exact[exact.isinf()]), "infinities differ from float64's"
    if not finite.any():
        return
    # A baseline that is NaN or infinite where float64 is finite gives no bound: take it as exact there.
    baseline = torch.where(baseline.isfinite(), baseline, exact)
    actual, baseline, exact = (result.where(finite, 0.0) for result in (actual, baseline, exact))
    judge = Judge([exact], [baseline], precision, exact.abs().max().item(), num_products)
    error, is_right = judge([actual])
    errors = (actual - exact).abs()
    worst = tuple(int(index) for index in torch.unravel_index(errors.argmax(), errors.shape))
    assert is_right, (
        f"error {error:.2e}, baseline {judge.baseline_error:.2e}, bound {judge.allowed:.2e}; the worst element "
        f"{worst} of {tuple(errors.shape)} is {actual[worst].item():.6g} instead of {exact[worst].item():.6g}, and "
        f"{int((errors > judge.allowed).sum())} elements exceed the bound"
    )
