"""The ends of a batch's sequences, as the kernels read them: from ``lengths`` and from packed input."""

import collections
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..plan.device import is_capturing


@dataclass
class Sequences:
    """The sequences of a batch: their layout and ends. Tensors are on the device that computes the batch.

    Attributes:
        layout: ``"dense"``, ``"lengths"`` or ``"packed"`` (kernels/sequences.py).
        steps: largest possible length of a sequence.
        batch_size: number of sequences.
        lengths: int32 [batch_size], each in [0, steps]; None for dense.
        offsets: int32 [steps], for packed input: the number of rows before those of each step. Otherwise None. With
            more rows than `validity.too_many_rows_reason` allows, int32 overflows. Then no kernel reads the offsets.
    """

    layout: str
    steps: int
    batch_size: int
    lengths: Tensor | None = None
    offsets: Tensor | None = None


def sequences_from_lengths(lengths: Tensor, steps: int, device: torch.device) -> Sequences:
    """Return the sequences of dense input that end at ``lengths``.

    ``lengths`` is an integer tensor [B] on any device. It is clamped to [0, steps].

    Raises:
        RuntimeError: a CUDA graph is being captured and the lengths are not on its device.
    """
    if lengths.device != device:
        if is_capturing(device):
            raise RuntimeError(f"lengths must be on {device} while a CUDA graph is captured, got {lengths.device}")
        lengths = _copy_to_device(lengths, device)
    if lengths.dtype not in (torch.int32, torch.int64):
        # A smaller dtype may not hold ``steps``, to which lengths are clamped.
        lengths = lengths.to(torch.int32)
    return Sequences("lengths", steps, lengths.size(0), lengths.clamp(0, steps).to(torch.int32).contiguous())


def sequences_from_batch_sizes(batch_sizes: Tensor, rows: int, device: torch.device) -> Sequences:
    """Return the sequences of packed input.

    Args:
        batch_sizes: as in torch's PackedSequence, on the CPU.
        rows: number of rows of the packed data.
        device: where the data is.

    Raises:
        ValueError: batch_sizes and rows are not those of a packed sequence.
        RuntimeError: a CUDA graph is being captured and no call with these sizes came before.
    """
    steps = len(batch_sizes)
    if steps == 0:
        raise ValueError("Expected sequence length to be larger than 0 in RNN")
    rows_so_far = batch_sizes.cumsum(0)
    if (batch_sizes < 1).any() or (batch_sizes.diff() > 0).any() or rows_so_far[-1] != rows:
        raise ValueError(
            f"batch_sizes of a PackedSequence must be positive, must not grow, and must sum to the {rows} rows of its "
            f"data, got {_format_sizes(batch_sizes)}"
        )
    batch_size = int(batch_sizes[0])
    # Row b is missing in every step whose batch size is at most b. Count these steps.
    missing_steps = torch.searchsorted(batch_sizes.flip(0), torch.arange(batch_size, device="cpu"), right=True)
    table = torch.cat([rows_so_far - batch_sizes, steps - missing_steps]).to(torch.int32)
    if is_capturing(device):
        table = _find_captured_table(table, device)
    elif device.type == "cuda":
        host_table, table = table, _copy_to_device(table, device)
        _recent.append((host_table, table))
    return Sequences("packed", steps, batch_size, table[steps:], table[:steps])


def unpack_input(gru: nn.GRU, input: PackedSequence, hx: Tensor | None) -> tuple[Tensor, Tensor | None, Sequences]:
    """Return the packed data, the state in the order of its rows, and the `Sequences`.

    Raises what `sequences_from_batch_sizes` raises.
    """
    if hx is not None:
        hx = gru.permute_hidden(hx, input.sorted_indices)
    return input.data, hx, sequences_from_batch_sizes(input.batch_sizes, input.data.size(0), input.data.device)


def pack_results(gru: nn.GRU, input: PackedSequence, output: Tensor, h_n: Tensor) -> tuple[PackedSequence, Tensor]:
    """Return the results of a call on packed input: the output packed, and h_n in the order of the batch."""
    output = PackedSequence(output, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
    return output, gru.permute_hidden(h_n, input.unsorted_indices)


# Tables on the CPU and their copies on a device. A captured copy from the host would read the host's memory again at
# every replay, when the memory may hold other values. So a capture uses the device's table of an earlier call.
_recent: collections.deque[tuple[Tensor, Tensor]] = collections.deque(maxlen=256)
_captured: list[tuple[Tensor, Tensor]] = []  # kept forever, because torch does not tell when a graph is deleted


def _find_captured_table(table: Tensor, device: torch.device) -> Tensor:
    """Return the copy of ``table`` on the device that an earlier call made, and keep it for the graph."""
    for pair in (*_captured, *reversed(_recent)):
        if pair[1].device == device and torch.equal(pair[0], table):
            if not any(pair is captured for captured in _captured):
                _captured.append(pair)
            return pair[1]
    raise RuntimeError(
        "to capture packed input in a CUDA graph, first make a call with the same batch_sizes outside of the capture"
    )


def _copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a copy on the device. The host does not wait for a copy from the CPU to a GPU."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _format_sizes(batch_sizes: Tensor) -> str:
    sizes = batch_sizes.tolist()
    return f"{sizes}" if len(sizes) <= 8 else f"[{', '.join(map(str, sizes[:8]))}, ...]"
