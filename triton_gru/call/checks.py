"""Checks of arguments before any launch. They raise the errors of torch.nn.GRU and torch.nn.GRUCell.

For lengths and resets, which torch lacks, they raise errors of their own.
"""

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .torch_state import autocast_dtype

REVERSE_BIDIRECTIONAL_ERROR = "reverse=True needs one direction: a bidirectional GRU runs backward anyway"


def check_gru(
    gru, input: Tensor | PackedSequence, hx: Tensor | None, lengths: Tensor | None, resets: Tensor | None
) -> None:
    """Raise an error if the arguments of ``gru(input, hx, lengths, resets)`` are wrong.

    The checks read shapes, dtypes and devices only. Shapes may be symbolic.
    """
    is_packed = isinstance(input, PackedSequence)
    if gru.reverse and gru.bidirectional:  # possible, as attributes can be assigned after the constructor's check
        raise ValueError(REVERSE_BIDIRECTIONAL_ERROR)
    if resets is not None and (is_packed or gru.bidirectional or gru.reverse):
        kind = "packed input" if is_packed else "a bidirectional GRU" if gru.bidirectional else "a reverse GRU"
        raise ValueError(f"resets cannot go with {kind}")
    if is_packed:
        if lengths is not None:
            raise ValueError("lengths cannot go with packed input, which contains its lengths")
        data = input.data
        _check_input(gru, data, dimensions=2)
        if hx is not None:
            gru.check_hidden_size(hx, gru.get_expected_hidden_size(data, input.batch_sizes))
    else:
        if input.dim() not in (2, 3):
            raise ValueError(f"GRU: Expected input to be 2D or 3D, got {input.dim()}D instead")
        data = input
        if hx is not None and hx.dim() != input.dim():
            kind = "batched 3-D" if input.dim() == 3 else "unbatched 2-D"
            raise RuntimeError(f"For {kind} input, hx should also be {input.dim()}-D but got {hx.dim()}-D tensor")
        batched, batched_hx, _ = add_batch_dim(gru.batch_first, input, hx, resets=None)
        _check_input(gru, batched, dimensions=3)
        if batched_hx is not None:
            gru.check_hidden_size(batched_hx, gru.get_expected_hidden_size(batched, batch_sizes=None))
        if batched.size(1 if gru.batch_first else 0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        if lengths is not None:
            _check_lengths(lengths, batched.size(0 if gru.batch_first else 1) if input.dim() == 3 else None)
        if resets is not None:
            _check_resets(resets, input)
    _check_devices_and_dtypes(data, hx, getattr(gru, gru._all_weights[0][0]))


def _check_input(gru, input: Tensor, dimensions: int) -> None:
    """Raise what ``gru.check_input`` raises.

    torch's method reads the weights' dtype from ``_flat_weights``, which may hold older weights. ``dimensions`` is the
    number of dimensions that ``input`` must have.
    """
    weight = getattr(gru, gru._all_weights[0][0])  # weight_ih_l0
    if input.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
        )
    if input.dim() != dimensions:
        raise RuntimeError(f"input must have {dimensions} dimensions, got {input.dim()}")
    if input.size(-1) != gru.input_size:
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {gru.input_size}, got {input.size(-1)}"
        )


def _check_lengths(lengths: Tensor, batch_size: int | None) -> None:
    """Raise an error unless ``lengths`` are integers [batch_size].

    ``batch_size`` is None for unbatched input, with which any lengths are an error.
    """
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths must be a tensor of integers, got {type(lengths).__name__}")
    if lengths.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        raise TypeError(f"lengths must be a tensor of integers, got one of {lengths.dtype}")
    if batch_size is None:
        raise ValueError("lengths need batched input, got unbatched input")
    if lengths.dim() != 1 or lengths.size(0) != batch_size:
        raise ValueError(f"lengths must be of shape [{batch_size}], one for each sequence, got {list(lengths.shape)}")


def _check_resets(resets: Tensor, input: Tensor) -> None:
    """Raise an error unless ``resets`` are bools on the device of ``input``, in its shape without the features."""
    if not isinstance(resets, Tensor) or resets.dtype != torch.bool:
        raise TypeError(f"resets must be a tensor of bools, got {getattr(resets, 'dtype', type(resets).__name__)}")
    if resets.shape != input.shape[:-1]:
        raise ValueError(
            f"resets must be of input's shape without its features, {list(input.shape[:-1])}, got {list(resets.shape)}"
        )
    if resets.device != input.device:
        raise RuntimeError(f"resets and input must be on the same device, got {resets.device} and {input.device}")


def check_cell(cell, input: Tensor, hx: Tensor | None) -> None:
    """Raise an error if the arguments of ``cell(input, hx)`` are wrong, as `check_gru`."""
    if input.dim() not in (1, 2):
        raise ValueError(f"GRUCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
    if hx is not None and hx.dim() not in (1, 2):
        raise ValueError(f"GRUCell: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")
    batched, batched_hx = add_cell_batch_dim(input, hx)
    if batched.size(1) != cell.input_size:
        raise RuntimeError(f"input has inconsistent input_size: got {batched.size(1)} expected {cell.input_size}")
    if batched_hx is not None:
        if batched_hx.size(0) != batched.size(0):
            raise RuntimeError(
                f"Input batch size {batched.size(0)} doesn't match hidden0 batch size {batched_hx.size(0)}"
            )
        if batched_hx.size(1) != cell.hidden_size:
            raise RuntimeError(
                f"hidden0 has inconsistent hidden_size: got {batched_hx.size(1)}, expected {cell.hidden_size}"
            )
        if batched_hx.dim() != 2:
            raise RuntimeError(
                f"hidden0 and input must have the same number of dimensions, got {hx.dim()} and {input.dim()}"
            )
    _check_devices_and_dtypes(input, hx, cell.weight_ih)
    if input.dtype != cell.weight_ih.dtype and autocast_dtype(input.device) is None:
        raise RuntimeError(f"input dtype {input.dtype} does not match weight dtype {cell.weight_ih.dtype}")


def _check_devices_and_dtypes(input: Tensor, hx: Tensor | None, weight: Tensor) -> None:
    """Raise an error if the devices of these tensors differ, or the dtypes of ``input`` and ``hx`` without autocast."""
    if input.device != weight.device:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, "
            f"found input tensor at {input.device} and parameter tensor at {weight.device}"
        )
    if hx is not None and hx.device != input.device:
        raise RuntimeError(
            "Input and hidden tensors are not at the same device, "
            f"found input tensor at {input.device} and hidden tensor at {hx.device}"
        )
    if hx is not None and hx.dtype != input.dtype and autocast_dtype(input.device) is None:
        raise RuntimeError(f"hx dtype ({hx.dtype}) does not match input dtype ({input.dtype})")


def add_batch_dim(batch_first: bool, input: Tensor, hx: Tensor | None, resets: Tensor | None):
    """Return a GRU's input, hx and resets, batched. Unbatched arguments become a batch of one sequence."""
    if input.dim() == 3:
        return input, hx, resets
    batch_dim = 0 if batch_first else 1
    return input.unsqueeze(batch_dim), unsqueeze_if_given(hx, 1), unsqueeze_if_given(resets, batch_dim)


def add_cell_batch_dim(input: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return a cell's input and hx, batched. Unbatched arguments become a batch of one row."""
    return (input, hx) if input.dim() == 2 else (input.unsqueeze(0), unsqueeze_if_given(hx, 0))


def unsqueeze_if_given(tensor: Tensor | None, dim: int) -> Tensor | None:
    """Return ``tensor.unsqueeze(dim)``, or None for an argument that was not given."""
    return None if tensor is None else tensor.unsqueeze(dim)
