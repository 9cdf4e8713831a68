"""The GRU as one writes it by hand in torch: inputs projected for all steps at once, then a loop over time."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triton_gru.call.options import Options

from .interface import Ready, require_one_direction, require_padded


def _prepare(gru: nn.GRU, x: Tensor) -> Ready:
    require_padded(x)
    require_one_direction(gru)
    layers = [[getattr(gru, name) for name in names] for names in gru._all_weights]
    h_0 = x.new_zeros(x.size(1), gru.hidden_size)
    reset_after = Options.of(gru).reset_after

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        last = []
        for layer in layers:
            x = _layer(x, h_0, *layer, reset_after)
            last.append(x[-1])
        return x, torch.stack(last)

    return Ready(call, kernel="torch")


def _layer(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, reset_after: bool) -> Tensor:
    outputs, transposed = [], w_hh.t()
    if not reset_after:
        b_ih, (w_rz, w_n) = b_ih + b_hh, transposed.tensor_split([2 * h.size(1)], dim=1)
    for gates in F.linear(x, w_ih, b_ih).unbind():
        i_rz, i_n = gates.tensor_split([2 * h.size(1)], dim=1)
        if reset_after:
            h_rz, h_n = torch.addmm(b_hh, h, transposed).tensor_split([2 * h.size(1)], dim=1)
            r, z = torch.sigmoid(i_rz + h_rz).chunk(2, dim=1)
            n = torch.tanh(torch.addcmul(i_n, r, h_n))
        else:
            r, z = torch.sigmoid(torch.addmm(i_rz, h, w_rz)).chunk(2, dim=1)
            n = torch.tanh(torch.addmm(i_n, r * h, w_n))
        h = torch.lerp(n, h, z)
        outputs.append(h)
    return torch.stack(outputs)


PROVIDERS = {"handwritten": _prepare}
