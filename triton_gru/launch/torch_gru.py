"""torch's own GRU for calls that are not quite torch's, and packed data padded and back."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..call.bind import Call, flat
from ..call.sequences import Sequences


def gru(call: Call) -> tuple[Tensor, Tensor]:
    """``output`` and ``h_n`` by torch.gru, as `launch.run` returns them.

    Sequences with lengths are packed and padded again, for which the host waits for the lengths; in reverse they are
    turned round before and after.
    """
    x, sequences = call.input, call.sequences
    if sequences.layout == "packed":
        x = padded(x, sequences)
    if call.problem.reverse:
        x = _turned(x, sequences)
    ends = sequences.layout != "dense" and sequences.batch_size > 0  # torch packs no empty batch
    output, h_n = _with_lengths(call, x) if ends else _dense(call, x)
    if call.problem.reverse:
        output = _turned(output, sequences)
    if sequences.layout == "packed":
        return packed(output, sequences), h_n
    return output.transpose(0, 1) if call.batch_first else output, h_n


def _options(call: Call) -> tuple:
    """What torch.gru wants to know after the weights."""
    problem, bias = call.problem, call.weights[0][2] is not None
    return bias, problem.num_layers, call.dropout, call.options.training, problem.bidirectional


def _dense(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.gru(x, call.initial_state(), flat(call.weights), *_options(call), False)


def _with_lengths(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    hx, lengths = call.initial_state(), call.sequences.lengths
    given = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), enforce_sorted=False)
    data, h_n = torch.gru(
        given.data, given.batch_sizes, hx.index_select(1, given.sorted_indices), flat(call.weights), *_options(call)
    )
    output, _ = pad_packed_sequence(given._replace(data=data), total_length=call.problem.steps)
    none = (lengths == 0).unsqueeze(1)
    return torch.where(none, 0, output), torch.where(none, hx, h_n.index_select(1, given.unsorted_indices))


def _turned(x: Tensor, sequences: Sequences) -> Tensor:
    """[T, B, I] with each sequence's steps in the opposite order; what is beyond its end stays there."""
    if sequences.lengths is None:
        return x.flip(0)
    time = torch.arange(sequences.steps, device=x.device).unsqueeze(1)
    time = torch.where(time < sequences.lengths, sequences.lengths - 1 - time, time)
    return x.gather(0, time.unsqueeze(2).expand_as(x))


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
