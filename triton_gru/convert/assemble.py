"""Helpers of all converters: arrays become tensors, shapes are checked, and modules are built from the tensors."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..modules import GRU, GRUCell
from ..reference import LayerWeights

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def convert_to_tensors(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copy tensors, or anything that numpy converts to arrays, to new tensors by the same keys. Errors name the keys.

    Raises:
        TypeError: a dtype is not in DTYPES, or dtypes or devices differ.
    """
    tensors = {name: _convert_to_tensor(name, value) for name, value in values.items()}
    expected_name, expected = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if (tensor.dtype, tensor.device) != (expected.dtype, expected.device):
            raise TypeError(
                f"{name} is {tensor.dtype} on {tensor.device}, but {expected_name} is {expected.dtype} on "
                f"{expected.device}: they must agree"
            )
    return tensors


def _convert_to_tensor(name: str, value: Any) -> Tensor:
    """Copy a tensor or array to a new tensor of the same dtype. Raise TypeError if the dtype is not in DTYPES."""
    if isinstance(value, Tensor):
        tensor = value.detach().clone()
    else:
        import numpy as np  # optional for torch, but whoever passes arrays has numpy

        array = np.array(value)
        # torch does not know numpy's bfloat16, a type of the package ml_dtypes. Its bits are those of torch.bfloat16.
        is_bfloat16 = array.dtype.name == "bfloat16"
        try:
            tensor = torch.from_numpy(array.view(np.int16) if is_bfloat16 else array)
        except TypeError as error:
            raise TypeError(f"{name} is not an array of floating point numbers: {error}") from None
        tensor = tensor.view(torch.bfloat16) if is_bfloat16 else tensor
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} is {tensor.dtype}, expected one of {', '.join(map(str, DTYPES))}")
    return tensor


def check_shape(name: str, tensor: Tensor, *shape: int | str) -> None:
    """Raise ValueError unless ``tensor`` has this shape.

    A string in ``shape``, such as "3 * hidden", matches any size. The error shows the string as the expected size.
    """
    if tensor.dim() != len(shape) or any(
        isinstance(size, int) and size != actual for size, actual in zip(shape, tensor.shape)
    ):
        expected = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, expected ({expected})")


def reorder_zrn_to_rzn(zrn: Tensor) -> Tensor:
    """Return the tensor with the gates of its first dimension in torch's order r, z, n. ``zrn`` has them as z, r, n."""
    z, r, n = zrn.chunk(3)
    return torch.cat([r, z, n])


def build_gru(
    directions: Sequence[LayerWeights], *, reset_after: bool, reverse: bool = False, batch_first: bool = False
) -> GRU:
    """Return a GRU of one layer in `eval()`, whose parameters are these weights in torch's layout.

    ``directions`` has the weights of one or two directions. With two, the GRU is bidirectional.
    """
    module = GRU(
        **_read_size_options(directions[0]),
        batch_first=batch_first,
        bidirectional=len(directions) == 2,
        device="meta",
        reset_after=reset_after,
        reverse=reverse,
    )
    return _assign_weights(module, chain.from_iterable(directions)).eval()


def build_cell(weights: LayerWeights, *, reset_after: bool) -> GRUCell:
    """Return a GRUCell in `eval()`, whose parameters are these weights in torch's layout."""
    return _assign_weights(
        GRUCell(**_read_size_options(weights), device="meta", reset_after=reset_after), weights
    ).eval()


def _assign_weights(module: nn.Module, weights: Iterable[Tensor | None]):
    """Make these weights the parameters of ``module``, and return it. They have the order of its ``state_dict``.

    None stands for a bias that the module does not have.
    """
    present = [weight for weight in weights if weight is not None]
    return assign_parameters(module, dict(zip(module.state_dict(), present, strict=True)))


def assign_parameters(module: nn.Module, state: dict[str, Tensor]):
    """Make these tensors the parameters of ``module``, and return it.

    ``module`` should be on the meta device, where its constructor draws no random numbers. Raise RuntimeError if
    ``state`` does not have exactly the names and shapes of ``module``.
    """
    module.load_state_dict(state, assign=True)
    if isinstance(module, nn.RNNBase):
        module.flatten_parameters()  # Otherwise nn.GRU warns on a GPU that the weights are not in one block of memory.
    return module


def _read_size_options(weights: LayerWeights) -> dict[str, Any]:
    """Return the constructor's arguments input_size, hidden_size and bias that fit these weights."""
    w_ih, w_hh, b_ih, _ = weights
    return {"input_size": w_ih.size(1), "hidden_size": w_hh.size(1), "bias": b_ih is not None}
