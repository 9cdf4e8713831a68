"""A GRU written by hand in torch: one input projection for all steps, then a loop over time."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triton_gru.call.options import Options

from .interface import Call, Ready, layers_of, require_one_direction, require_padded, through_layers


def _prepare(gru: nn.GRU, x: Tensor) -> Ready:
    """Return the loop, ready for inputs like ``x``. Its step resets after or before the product, as ``gru`` does."""
    require_padded(x)
    require_one_direction(gru)
    step_function = step if Options.from_module(gru).reset_after else _step_reset_before
    return Ready(bind(step_function, gru, x), kernel="torch")


def bind(step: Callable[..., Tensor], gru: nn.GRU, x: Tensor) -> Call:
    """Return a call that computes ``gru`` for inputs like ``x`` by calling ``step`` for each step of each layer.

    ``step`` is the function `step` below, compiled or not, or `_step_reset_before`.
    """
    h_0 = x.new_zeros(x.size(1), gru.hidden_size)

    def layer(x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        h, outputs, recurrent = h_0, [], (w_hh.t(), b_hh)
        if step is _step_reset_before:  # b_hh can be added to b_ih, because r multiplies h before the product
            b_ih, recurrent = b_ih + b_hh, w_hh.t().tensor_split([2 * h.size(1)], dim=1)
        for gates in F.linear(x, w_ih, b_ih).unbind():
            h = step(gates, h, *recurrent)
            outputs.append(h)
        return torch.stack(outputs)

    return through_layers(layer, layers_of(gru))


def step(gates: Tensor, h: Tensor, w_hh: Tensor, b_hh: Tensor) -> Tensor:
    """Return the state after a step from the state ``h`` [B, H].

    ``gates`` [B, 3H] are the projected inputs of the step. ``w_hh`` is W_hh transposed, [H, 3H].
    """
    i_rz, i_n = gates.tensor_split([2 * h.size(1)], dim=1)
    h_rz, h_n = torch.addmm(b_hh, h, w_hh).tensor_split([2 * h.size(1)], dim=1)
    r, z = torch.sigmoid(i_rz + h_rz).chunk(2, dim=1)
    return torch.lerp(torch.tanh(torch.addcmul(i_n, r, h_n)), h, z)


def _step_reset_before(gates: Tensor, h: Tensor, w_rz: Tensor, w_n: Tensor) -> Tensor:
    """Return the state after a step from ``h``, with the reset gate before the recurrent product.

    ``gates`` include b_hh. ``w_rz`` [H, 2H] and ``w_n`` [H, H] are the columns of W_hh transposed.
    """
    i_rz, i_n = gates.tensor_split([2 * h.size(1)], dim=1)
    r, z = torch.sigmoid(torch.addmm(i_rz, h, w_rz)).chunk(2, dim=1)
    return torch.lerp(torch.tanh(torch.addmm(i_n, r * h, w_n)), h, z)


PROVIDERS = {"handwritten": _prepare}
