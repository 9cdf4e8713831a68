"""Where the sequences of a batch end: what the kernels need to know of ``lengths`` and of packed input."""

import collections
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..plan.device import is_capturing


@dataclass
class Sequences:
    """Of one batch, on the device that computes it.

    Attributes:
        layout: ``"dense"``, ``"lengths"`` or ``"packed"`` (kernels/sequences.py).
        steps, batch_size: the longest sequence that there may be, and how many there are.
        lengths: int32 [batch_size], each in [0, steps]; None for dense.
        offsets: int32 [steps], the rows of packed data before each step's; None if it is not packed. They are wrong of
            more rows than `validity.too_many_rows_reason` allows, for which no kernel reads them.
    """

    layout: str
    steps: int
    batch_size: int
    lengths: Tensor | None = None
    offsets: Tensor | None = None


def sequences_from_lengths(lengths: Tensor, steps: int, device: torch.device) -> Sequences:
    """Of dense input whose sequences end at ``lengths`` [B], an integer tensor anywhere, clamped to [0, steps].

    Raises:
        RuntimeError: a CUDA graph is being captured and the lengths are not on its device.
    """
    if lengths.device != device:
        if is_capturing(device):
            raise RuntimeError(
                f"lengths are on {lengths.device}: to be captured in a CUDA graph they have to be on {device}"
            )
        lengths = _to(lengths, device)
    if lengths.dtype not in (torch.int32, torch.int64):
        lengths = lengths.to(torch.int32)  # smaller ones may not hold the number of steps, which they are clamped to
    return Sequences("lengths", steps, lengths.size(0), lengths.clamp(0, steps).to(torch.int32).contiguous())


def sequences_from_batch_sizes(batch_sizes: Tensor, rows: int, device: torch.device) -> Sequences:
    """Of packed input with ``batch_sizes`` (as in torch's PackedSequence, on the CPU) and ``rows`` rows of data.

    Raises:
        ValueError: there is no such packed sequence.
        RuntimeError: a CUDA graph is being captured and no call with these sizes came before.
    """
    steps = len(batch_sizes)
    if steps == 0:
        raise ValueError("Expected sequence length to be larger than 0 in RNN")
    after = batch_sizes.cumsum(0)
    if (batch_sizes < 1).any() or (batch_sizes.diff() > 0).any() or after[-1] != rows:
        raise ValueError(
            "batch_sizes of a PackedSequence have to be positive, must not grow, and sum to the rows of its data: "
            f"{rows}, got {_shortened(batch_sizes)}"
        )
    batch_size = int(batch_sizes[0])
    # Of ascending sizes, how many steps are no more than a row's number: in those it is not.
    ended = torch.searchsorted(batch_sizes.flip(0), torch.arange(batch_size, device="cpu"), right=True)
    table = torch.cat([after - batch_sizes, steps - ended]).to(torch.int32)
    if is_capturing(device):
        table = _for_capture(table, device)
    elif device.type == "cuda":
        host, table = table, _to(table, device)
        _recent.append((host, table))
    return Sequences("packed", steps, batch_size, table[steps:], table[:steps])


def unpack_input(gru: nn.GRU, input: PackedSequence, hx: Tensor | None) -> tuple[Tensor, Tensor | None, Sequences]:
    """Return the data of a call on packed input, the state in the order of its rows, and its `Sequences`.

    Raises what `sequences_from_batch_sizes` raises.
    """
    if hx is not None:
        hx = gru.permute_hidden(hx, input.sorted_indices)
    return input.data, hx, sequences_from_batch_sizes(input.batch_sizes, input.data.size(0), input.data.device)


def pack_results(gru: nn.GRU, input: PackedSequence, output: Tensor, h_n: Tensor) -> tuple[PackedSequence, Tensor]:
    """Return the results of a call on packed input as the caller wants them: packed, and in the order of the batch."""
    output = PackedSequence(output, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
    return output, gru.permute_hidden(h_n, input.unsorted_indices)


# What a graph's replays read has to be there before its capture, and to stay: a copy from the host would, at every
# replay, read what is in that memory of the host by then. So a capture takes the table of a call before it. Each with
# what it was copied from.
_recent: collections.deque[tuple[Tensor, Tensor]] = collections.deque(maxlen=256)
_captured: list[tuple[Tensor, Tensor]] = []  # for good: nobody tells when a graph is gone


def _for_capture(table: Tensor, device: torch.device) -> Tensor:
    for known in (*_captured, *reversed(_recent)):
        if known[1].device == device and torch.equal(known[0], table):
            if not any(known is each for each in _captured):
                _captured.append(known)
            return known[1]
    raise RuntimeError(
        "packed input can be captured in a CUDA graph after a call with the same batch_sizes outside of one: "
        "a warm-up, as torch asks for"
    )


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for it where the tensor comes from the CPU."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _shortened(batch_sizes: Tensor) -> str:
    sizes = batch_sizes.tolist()
    return f"{sizes}" if len(sizes) <= 8 else f"[{', '.join(map(str, sizes[:8]))}, ...]"
