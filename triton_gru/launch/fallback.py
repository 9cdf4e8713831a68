"""Execution of calls that no kernel serves: by `torch.gru`, or in plain torch.

Lengths and ``reverse``, which `torch.gru` lacks, are handled before and after it.
"""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .. import reference
from ..call.bind import Call, flatten_weights
from ..call.sequences import Sequences


def run(call: Call, kernel: str) -> tuple[Tensor, Tensor]:
    """Return ``output`` and ``h_n`` as `execute.run` does, without a kernel of ours.

    ``kernel`` is ``"torch"`` for `torch.gru`, or ``"reference"`` for plain torch step by step.
    """
    x, sequences = call.input, call.sequences
    if sequences.layout == "packed":
        x = _pad(x, sequences)
    output, h_n = (_run_nn_gru if kernel == "torch" else _run_reference)(call, x)
    if sequences.layout == "packed":
        return output[_mask_active(sequences)], h_n
    return output.transpose(0, 1) if call.batch_first else output, h_n


def _run_reference(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the results of plain torch for ``x`` [T, B, I]."""
    problem = call.problem
    return reference.compute_gru(
        x, call.initial_state(), call.weights, reset_after=problem.reset_after, bidirectional=problem.bidirectional,
        reverse=problem.reverse, dropout=call.dropout, lengths=call.sequences.lengths, resets=call.resets,
    )  # fmt: skip


def _run_nn_gru(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the results of `torch.gru` for ``x`` [T, B, I]. With ``reverse=True``, flip sequences before and after."""
    sequences = call.sequences
    if call.problem.reverse:
        x = _flip_in_time(x, sequences)
    if sequences.layout != "dense" and sequences.batch_size > 0:  # torch cannot pack an empty batch
        output, h_n = _run_packed(call, x)
    else:
        output, h_n = torch.gru(x, call.initial_state(), flatten_weights(call.weights), *_gru_options(call), False)
    return _flip_in_time(output, sequences) if call.problem.reverse else output, h_n


def _gru_options(call: Call) -> tuple:
    """Return the arguments of torch.gru after the weights, without the ``batch_first`` of dense input."""
    problem, bias = call.problem, call.weights[0][2] is not None
    return bias, problem.num_layers, call.dropout, call.options.training, problem.bidirectional


def _run_packed(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the results of `torch.gru` for ``x`` [T, B, I] with lengths, which is packed for it.

    The host waits for the lengths, because torch packs sequences on the host.
    """
    hx, lengths = call.initial_state(), call.sequences.lengths
    # torch cannot pack a sequence of length 0. So pack such a sequence with length 1, and replace its results below.
    packed = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), enforce_sorted=False)
    data, h_n = torch.gru(
        packed.data,
        packed.batch_sizes,
        hx.index_select(1, packed.sorted_indices),
        flatten_weights(call.weights),
        *_gru_options(call),
    )
    output, _ = pad_packed_sequence(packed._replace(data=data), total_length=call.problem.steps)
    is_empty = (lengths == 0).unsqueeze(1)
    return torch.where(is_empty, 0, output), torch.where(is_empty, hx, h_n.index_select(1, packed.unsorted_indices))


def _flip_in_time(x: Tensor, sequences: Sequences) -> Tensor:
    """Return ``x`` [T, B, I] with the steps of each sequence in reverse order. Steps after a sequence's end stay."""
    if sequences.lengths is None:
        return x.flip(0)
    time = torch.arange(sequences.steps, device=x.device).unsqueeze(1)
    time = torch.where(time < sequences.lengths, sequences.lengths - 1 - time, time)
    return x.gather(0, time.unsqueeze(2).expand_as(x))


def _pad(data: Tensor, sequences: Sequences) -> Tensor:
    """Return packed data [N, I] as [T, B, I], with zeros after the end of each sequence."""
    is_active = _mask_active(sequences)
    return data.new_zeros(*is_active.shape, data.size(1)).masked_scatter(is_active.unsqueeze(2), data)


def _mask_active(sequences: Sequences) -> Tensor:
    """Return a bool mask [T, B], True for the steps before a sequence's end."""
    steps = torch.arange(sequences.steps, device=sequences.lengths.device)
    return steps.unsqueeze(1) < sequences.lengths
