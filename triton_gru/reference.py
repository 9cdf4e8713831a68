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

# w_ih [3H, I], w_hh [3H, H], b_ih [3H], b_hh [3H] of one layer in one direction. Without biases, these are None.
LayerWeights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
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
        lengths: [B]. Sequence b ends after ``lengths[b]`` steps, and its outputs after them are zero. With ``reverse``,
            the scan of the sequence begins at its last step.
        resets: [T, B]. Where it is not 0, the state is set to zero before the step.
    """
    outputs = [h] * len(x)  # placeholders, each replaced below
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        previous_h = h if resets is None else torch.where(resets[t].bool().unsqueeze(1), 0, h)
        next_h = outputs[t] = compute_step(x[t], previous_h, weights, reset_after=reset_after)
        if lengths is None:
            h = next_h
        else:
            is_active = (t < lengths).unsqueeze(1)
            h, outputs[t] = torch.where(is_active, next_h, h), torch.where(is_active, next_h, 0)
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
        weights: an entry for layer 0 forward, layer 0 backward (if bidirectional), layer 1 forward, and so on.
        reverse: whether all layers scan backward in time. Not with ``bidirectional``.
        dropout: probability with which an element of a layer's output is zeroed. The last layer has no dropout.
        lengths: [B], as in `compute_scan`.
        resets: [T, B], as in `compute_scan`.
    """
    directions = 2 if bidirectional else 1
    h_n = []
    for layer_start in range(0, len(weights), directions):
        if layer_start > 0 and dropout > 0:
            x = F.dropout(x, dropout)
        outputs = []
        for direction in range(directions):
            index = layer_start + direction  # of this layer and direction in weights and hx
            output, h = compute_scan(
                x, hx[index], weights[index], reset_after=reset_after, reverse=reverse or direction == 1,
                lengths=lengths, resets=resets,
            )  # fmt: skip
            outputs.append(output)
            h_n.append(h)
        x = torch.cat(outputs, dim=2)
    return x, torch.stack(h_n)
