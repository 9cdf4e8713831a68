"""How close a result has to be: the library's own bound (triton_gru.accuracy), asserted, infinities and NaNs too.

TF32 does not exist on a CPU; there torch's own error is that of the reference with every operand of every
product rounded to TF32. In fp32 it is everywhere that of the reference with the products of a sum added one after
another, as the kernels add them: torch adds them in blocks, of sizes that depend on the machine and the shape.
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
    """`accuracy.compute_exact`, on the CPU; ``ends`` are lengths and resets."""
    output, h_n = accuracy.compute_exact(module, x, hx, **ends)
    return output.cpu(), h_n.cpu()


def compute_baseline(module: nn.Module, x: torch.Tensor, hx: torch.Tensor | None, precision: str, **ends):
    """`accuracy.compute_baseline`, or what is said above: the best that this precision is known to give."""
    if precision == "tf32" and x.device.type == "cpu":
        with mock.patch.object(reference.F, "linear", _tf32_linear):
            return compute_exact(module, x, hx, **ends)
    with torch.no_grad():
        if precision == "fp32":
            with mock.patch.object(reference.F, "linear", in_order_linear):
                return accuracy.compute_by_reference(module, x, hx, **ends)
        return accuracy.compute_baseline(module, x, hx, **ends)


def in_order_linear(x, weight, bias):
    """F.linear with a rounding after each product that is added."""
    total = x.new_zeros(*x.shape[:-1], weight.size(0))
    for each, weights in zip(x.unbind(-1), weight.unbind(1)):
        total.addcmul_(each.unsqueeze(-1), weights)
    return total if bias is None else total + bias


def _tf32_linear(x, weight, bias):
    product = tf32(x) @ tf32(weight).T
    return product if bias is None else product + bias


def tf32(x: torch.Tensor) -> torch.Tensor:
    """float64 numbers rounded to the nearest with ten mantissa bits."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


def compute_in_double(module: nn.Module, *arguments):
    """Return what a copy of ``module`` gives in float64."""
    with torch.no_grad():
        return copy.deepcopy(module).double()(*(each if each is None else each.double() for each in arguments))


def assert_accurate(
    actual: torch.Tensor, torchs: torch.Tensor, exactly: torch.Tensor, precision: str, num_products: int = 0
) -> None:
    """Asserts shape, that NaNs and infinities are where they belong, and the bound on the error.

    ``num_products`` as in `compute_error_bound`: for ``torchs`` that are torch's own in fp32, whose sums are added in another order.
    """
    assert actual.shape == torchs.shape == exactly.shape
    actual, torchs, exactly = (each.detach().double().cpu() for each in (actual, torchs, exactly))
    finite = exactly.isfinite()
    assert torch.equal(actual.isnan(), exactly.isnan()), "NaNs differ from float64's"
    assert torch.equal(actual[exactly.isinf()], exactly[exactly.isinf()]), "infinities differ from float64's"
    if not finite.any():
        return
    # Where torch's own is NaN or infinite and float64 is not, it does not say how close one can be.
    torchs = torch.where(torchs.isfinite(), torchs, exactly)
    actual, torchs, exactly = (each.where(finite, 0.0) for each in (actual, torchs, exactly))
    judge = Judge([exactly], [torchs], precision, exactly.abs().max().item(), num_products)
    error, right = judge([actual])
    errors = (actual - exactly).abs()
    worst = tuple(int(each) for each in torch.unravel_index(errors.argmax(), errors.shape))
    assert right, (
        f"error {error:.2e}, torch's own {judge.baseline_error:.2e}, bound {judge.allowed:.2e}; the worst element "
        f"{worst} of {tuple(errors.shape)} is {actual[worst].item():.6g} in place of {exactly[worst].item():.6g}, and "
        f"{int((errors > judge.allowed).sum())} are beyond the bound"
    )
