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
        offsets: int32 [steps] for packed input, else None. ``offsets[t]`` is the number of rows of all steps before t.
            With more rows than `validity.too_many_rows_reason` allows, int32 overflows. Then no kernel reads them.
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
        # Lengths are clamped to ``steps`` below, and a smaller dtype may not hold ``steps``.
        lengths = lengths.to(torch.int32)
    clamped = lengths.clamp(0, steps).to(torch.int32).contiguous()
    return Sequences("lengths", steps, batch_size=lengths.size(0), lengths=clamped)


def sequences_from_batch_sizes(batch_sizes: Tensor, rows: int, device: torch.device) -> Sequences:
    """Return the sequences of packed input.

    Args:
        batch_sizes: number of sequences at each time step, on the CPU, as in torch's PackedSequence.
        rows: number of rows of the packed data.
        device: device of the packed data.

    Raises:
        ValueError: ``batch_sizes`` and ``rows`` are not those of a packed sequence.
        RuntimeError: a CUDA graph is being captured, and none of the latest calls had these ``batch_sizes``.
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
    # Offsets and lengths are parts of one tensor, so that one copy brings both to the device.
    table = torch.cat([rows_so_far - batch_sizes, steps - missing_steps]).to(torch.int32)
    if is_capturing(device):
        table = _find_captured_table(table, device)
    elif device.type == "cuda":
        host_table, table = table, _copy_to_device(table, device)
        _recent_tables.append((host_table, table))
    return Sequences("packed", steps, batch_size, lengths=table[steps:], offsets=table[:steps])


def unpack_input(gru: nn.GRU, input: PackedSequence, hx: Tensor | None) -> tuple[Tensor, Tensor | None, Sequences]:
    """Return the packed data, ``hx`` with its sequences in the order of the packed rows, and the `Sequences`.

    Raises what `sequences_from_batch_sizes` raises.
    """
    if hx is not None:
        hx = gru.permute_hidden(hx, input.sorted_indices)
    return input.data, hx, sequences_from_batch_sizes(input.batch_sizes, input.data.size(0), input.data.device)


def pack_results(gru: nn.GRU, input: PackedSequence, output: Tensor, h_n: Tensor) -> tuple[PackedSequence, Tensor]:
    """Return the output as a PackedSequence, and h_n in the caller's order of sequences. Undoes `unpack_input`."""
    output = PackedSequence(output, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
    return output, gru.permute_hidden(h_n, input.unsorted_indices)


# Pairs of a table on the CPU and its copy on a device. A captured copy from the host would read the host's memory again
# at every replay, when the memory may hold other values. So a capture uses the device's table of an earlier call.
_recent_tables: collections.deque[tuple[Tensor, Tensor]] = collections.deque(maxlen=256)
# Pairs whose copy a CUDA graph reads. They stay forever, because torch does not tell when a graph is deleted.
_captured_tables: list[tuple[Tensor, Tensor]] = []
_MAX_SIZES_SHOWN = 8  # batch sizes in an error


def _find_captured_table(table: Tensor, device: torch.device) -> Tensor:
    """Return the copy of ``table`` that an earlier call made on ``device``, and keep it in memory for the graph.

    Raise RuntimeError if there is no such copy.
    """
    for pair in (*_captured_tables, *reversed(_recent_tables)):
        host_table, device_table = pair
        if device_table.device == device and torch.equal(host_table, table):
            if not any(pair is captured_pair for captured_pair in _captured_tables):
                _captured_tables.append(pair)
            return device_table
    raise RuntimeError(
        "to capture packed input in a CUDA graph, first make a call with the same batch_sizes outside of the capture"
    )


def _copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return ``tensor`` on ``device``. The host does not wait for a copy from the CPU to a GPU."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _format_sizes(batch_sizes: Tensor) -> str:
    """Return ``batch_sizes`` for an error, cut off after `_MAX_SIZES_SHOWN`."""
    sizes = batch_sizes.tolist()
    if len(sizes) <= _MAX_SIZES_SHOWN:
        return f"{sizes}"
    return f"[{', '.join(map(str, sizes[:_MAX_SIZES_SHOWN]))}, ...]"
