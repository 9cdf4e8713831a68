"""torch's own GRU for calls that are not quite torch's, and packed data padded and back."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .arguments import Call, flat
from .sequences import Sequences


def gru(call: Call) -> tuple[Tensor, Tensor]:
    """``output`` [T, B, D * H] ([B, T, D * H] if batch_first) and ``h_n`` by torch.gru; not of packed input.

    Of sequences with lengths they are packed and padded again, for which the host waits for the lengths.
    """
    problem, hx, weights = call.problem, call.initial_state(), flat(call.weights)
    options = (
        call.weights[0][2] is not None, problem.num_layers, call.dropout, call.training, problem.bidirectional,
    )  # fmt: skip
    if call.sequences.layout == "dense":
        output, h_n = torch.gru(call.input, hx, weights, *options, False)
    else:
        lengths = call.sequences.lengths
        packed = pack_padded_sequence(call.input, lengths.clamp(min=1).cpu(), enforce_sorted=False)
        output, h_n = torch.gru(
            packed.data, packed.batch_sizes, hx.index_select(1, packed.sorted_indices), weights, *options
        )
        packed = PackedSequence(output, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        output, _ = pad_packed_sequence(packed, total_length=problem.steps)
        none = (lengths == 0).unsqueeze(1)
        output = torch.where(none, 0, output)
        h_n = torch.where(none, hx, h_n.index_select(1, packed.unsorted_indices))
    return output.transpose(0, 1) if call.batch_first else output, h_n


def padded(data: Tensor, sequences: Sequences) -> Tensor:
    """Packed data [N, I] as [T, B, I], zero where sequences have ended."""
    there = _there(sequences)
    return data.new_zeros(*there.shape, data.size(1)).masked_scatter(there.unsqueeze(2), data)


def packed(padded: Tensor, sequences: Sequences) -> Tensor:
    """The reverse of `padded`."""
    return padded[_there(sequences)]


def _there(sequences: Sequences) -> Tensor:
    steps = torch.arange(sequences.steps, device=sequences.lengths.device)
    return steps.unsqueeze(1) < sequences.lengths
