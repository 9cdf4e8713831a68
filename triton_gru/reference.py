"""The GRU in plain torch, one line per formula: the oracle every kernel is tested against.

Works in the dtype of its arguments (float64 for an oracle), on any device, and is differentiable. Slow.

Reset after the recurrent product (torch.nn.GRU, cuDNN; Cho et al. 2014, arXiv:1406.1078v1 as cuDNN reads it):

    r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
    z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
    n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
    h' = (1 - z) * n + z * h

Reset before it (arXiv:1406.1078v3): the same but for

    n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)
"""

import torch
from torch import Tensor
from torch.nn import functional as F

LayerWeights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # w_ih [3H, I], w_hh [3H, H], b_ih [3H], b_hh [3H]
WEIGHT_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # torch's, in that order


def compute_step(x: Tensor, h: Tensor, weights: LayerWeights, *, reset_after: bool = True) -> Tensor:
    """One time step: x [B, I], h [B, H] -> [B, H]."""
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
    """One layer in one direction: x [T, B, I], h [B, H] -> outputs [T, B, H], last state [B, H].

    ``lengths`` [B]: sequences end there; beyond it the output is zero, and in reverse that is where they begin.
    ``resets`` [T, B]: where it is not 0 the state before the step is zero.
    """
    outputs = [h] * len(x)
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        before = h if resets is None else torch.where(resets[t].bool().unsqueeze(1), 0, h)
        new = outputs[t] = compute_step(x[t], before, weights, reset_after=reset_after)
        if lengths is None:
            h = new
        else:
            going_on = (t < lengths).unsqueeze(1)
            h, outputs[t] = torch.where(going_on, new, h), torch.where(going_on, new, 0)
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
    """All layers: x [T, B, I], hx [layers * directions, B, H] -> output [T, B, directions * H], h_n as hx.

    ``weights`` holds layer 0 forward, layer 0 reverse (if bidirectional), layer 1 forward, and so on. With ``reverse``
    and one direction, all layers go backward in time.
    ``dropout`` is the probability with which outputs of all layers but the last are zeroed. ``lengths`` [B] and
    ``resets`` [T, B]: see `compute_scan`.
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
