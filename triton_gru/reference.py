"""The GRU in plain torch, one line per formula. Every kernel is tested against it.

It computes in the dtype of its arguments (float64 in tests), on any device, and is differentiable. It is slow.

Reset after the recurrent product (torch.nn.GRU, cuDNN; Cho et al. 2014, arXiv:1406.1078v1 as cuDNN reads it):

    r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
    z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
    n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
    h' = (1 - z) * n + z * h

Reset before the recurrent product (arXiv:1406.1078v3): r, z and h' are the same, and

    n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)
"""

import torch
from torch import Tensor
from torch.nn import functional as F

LayerWeights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # w_ih [3H, I], w_hh [3H, H], b_ih [3H], b_hh [3H]
WEIGHT_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # torch's names and order, as in LayerWeights


def compute_step(x: Tensor, h: Tensor, weights: LayerWeights, *, reset_after: bool = True) -> Tensor:
    """Return the state after one time step: x [B, I], h [B, H] -> [B, H]."""
    w_ih, w_hh, b_ih, b_hh = weights
    i_r, i_z, i_n = F.linear(x, w_ih, b_ih).chunk(3, dim=1)
    if reset_after:
        h_r, h_z, h_n = F.linear(h, w_hh, b_hh).chunk(3, dim=1)
        r = torch.sigmoid(i_r + h_r)
        z = torch.sigmoid(i_z + h_z)
        n = torch.tanh(i_n + r * h_n)
    else:
        w_hr, w_hz, w_hn = w_hh.chunk(3)
        b_hr, b_hz, b_hn = (None, None, None) if b_hh is None else b_hh.chunk(3)
        r = torch.sigmoid(i_r + F.linear(h, w_hr, b_hr))
        z = torch.sigmoid(i_z + F.linear(h, w_hz, b_hz))
        n = torch.tanh(i_n + F.linear(r * h, w_hn, b_hn))
    return (1 - z) * n + z * h


def compute_scan(
    x: Tensor,
    h: Tensor,
    weights: LayerWeights,
    *,
    reset_after: bool = True,
    reverse: bool = False,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
):
    """Compute one layer in one direction: x [T, B, I], h [B, H] -> outputs [T, B, H], last state [B, H].

    Args:
        lengths: [B]. A sequence ends after this many steps, and outputs beyond the end are zero. With ``reverse``, the
            sequence begins at this end.
        resets: [T, B]. Where it is not 0, the state before the step is zero.
    """
    outputs = [h] * len(x)
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        before = h if resets is None else torch.where(resets[t].bool().unsqueeze(1), 0, h)
        new = outputs[t] = compute_step(x[t], before, weights, reset_after=reset_after)
        if lengths is None:
            h = new
        else:
            is_active = (t < lengths).unsqueeze(1)
            h, outputs[t] = torch.where(is_active, new, h), torch.where(is_active, new, 0)
    return torch.stack(outputs), h


def compute_gru(
    x: Tensor,
    hx: Tensor,
    weights: list[LayerWeights],
    *,
    reset_after: bool = True,
    bidirectional: bool = False,
    reverse: bool = False,
    dropout: float = 0.0,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
):
    """Compute all layers: x [T, B, I], hx [layers * directions, B, H] -> output [T, B, directions * H], h_n as hx.

    Args:
        weights: of layer 0 forward, layer 0 backward (if bidirectional), layer 1 forward, and so on.
        reverse: whether all layers go backward in time. For one direction.
        dropout: probability with which an output is zeroed. The last layer has no dropout.
        lengths: [B], as in `compute_scan`.
        resets: [T, B], as in `compute_scan`.
    """
    directions = 2 if bidirectional else 1
    ends = {"lengths": lengths, "resets": resets}
    h_n = []
    for first in range(0, len(weights), directions):
        if first > 0 and dropout > 0:
            x = F.dropout(x, dropout)
        outputs = []
        for d in range(directions):
            backward = reverse or d == 1
            output, h = compute_scan(
                x, hx[first + d], weights[first + d], reset_after=reset_after, reverse=backward, **ends
            )
            outputs.append(output)
            h_n.append(h)
        x = torch.cat(outputs, dim=2)
    return x, torch.stack(h_n)
