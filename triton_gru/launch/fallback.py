"""Calls that no kernel serves: torch's own GRU where a call is not quite `nn.GRU`'s, or plain torch."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .. import reference
from ..call.bind import Call, flatten_weights
from ..call.sequences import Sequences


def run(call: Call, kernel: str) -> tuple[Tensor, Tensor]:
    """Return ``output`` and ``h_n`` as `execute.run` does, without a kernel of ours.

    ``kernel`` is ``"torch"`` for torch's own GRU, ``"reference"`` for plain torch step by step.
    """
    x, sequences = call.input, call.sequences
    if sequences.layout == "packed":
        x = _padded(x, sequences)
    output, h_n = (_by_torch if kernel == "torch" else _by_reference)(call, x)
    if sequences.layout == "packed":
        return output[_is_there(sequences)], h_n
    return output.transpose(0, 1) if call.batch_first else output, h_n


def _by_reference(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    problem = call.problem
    return reference.compute_gru(
        x, call.initial_state(), call.weights, reset_after=problem.reset_after, bidirectional=problem.bidirectional,
        reverse=problem.reverse, dropout=call.dropout, lengths=call.sequences.lengths, resets=call.resets,
    )  # fmt: skip


def _by_torch(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """Turn reversed sequences round before and after."""
    sequences = call.sequences
    if call.problem.reverse:
        x = _turned(x, sequences)
    if sequences.layout != "dense" and sequences.batch_size > 0:  # torch packs no empty batch
        output, h_n = _with_lengths(call, x)
    else:
        output, h_n = torch.gru(x, call.initial_state(), flatten_weights(call.weights), *_options(call), False)
    return _turned(output, sequences) if call.problem.reverse else output, h_n


def _options(call: Call) -> tuple:
    """Return what torch.gru wants to know after the weights."""
    problem, bias = call.problem, call.weights[0][2] is not None
    return bias, problem.num_layers, call.dropout, call.options.training, problem.bidirectional


def _with_lengths(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """Pack sequences and pad them again. The host waits for the lengths."""
    hx, lengths = call.initial_state(), call.sequences.lengths
    given = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), enforce_sorted=False)
    data, h_n = torch.gru(
        given.data,
        given.batch_sizes,
        hx.index_select(1, given.sorted_indices),
        flatten_weights(call.weights),
        *_options(call),
    )
    output, _ = pad_packed_sequence(given._replace(data=data), total_length=call.problem.steps)
    none = (lengths == 0).unsqueeze(1)
    return torch.where(none, 0, output), torch.where(none, hx, h_n.index_select(1, given.unsorted_indices))


def _turned(x: Tensor, sequences: Sequences) -> Tensor:
    """Return [T, B, I] with each sequence's steps in the opposite order; what is beyond its end stays there."""
    if sequences.lengths is None:
        return x.flip(0)
    time = torch.arange(sequences.steps, device=x.device).unsqueeze(1)
    time = torch.where(time < sequences.lengths, sequences.lengths - 1 - time, time)
    return x.gather(0, time.unsqueeze(2).expand_as(x))


def _padded(data: Tensor, sequences: Sequences) -> Tensor:
    """Return packed data [N, I] as [T, B, I], zero where sequences have ended."""
    there = _is_there(sequences)
    return data.new_zeros(*there.shape, data.size(1)).masked_scatter(there.unsqueeze(2), data)


def _is_there(sequences: Sequences) -> Tensor:
    """Return a mask [T, B] of the steps before sequences have ended."""
    steps = torch.arange(sequences.steps, device=sequences.lengths.device)
    return steps.unsqueeze(1) < sequences.lengths
