"""Arrays of other libraries as tensors, their shapes checked, and modules made of them."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..modules import GRU, GRUCell
from ..reference import LayerWeights

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def convert_to_tensors(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors, or what numpy takes for arrays, as new tensors that share no memory with them.

    Raises:
        TypeError: one is not of a dtype in DTYPES, or of another dtype or on another device than the first.
    """
    result = {name: _tensor(name, value) for name, value in values.items()}
    first_name, first = next(iter(result.items()))
    for name, tensor in result.items():
        if (tensor.dtype, tensor.device) != (first.dtype, first.device):
            raise TypeError(
                f"{name} is {tensor.dtype} on {tensor.device}, but {first_name} {first.dtype} on {first.device}"
            )
    return result


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        tensor = value.detach().clone()
    else:
        import numpy as np  # torch does without it; whoever has arrays has it

        array = np.array(value)
        # numpy's bfloat16 is ml_dtypes', which torch does not know; the bits are the same.
        is_bfloat16 = array.dtype.name == "bfloat16"
        try:
            tensor = torch.from_numpy(array.view(np.int16) if is_bfloat16 else array)
        except TypeError as error:
            raise TypeError(f"{name} is no array of floating point numbers: {error}") from None
        tensor = tensor.view(torch.bfloat16) if is_bfloat16 else tensor
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} is {tensor.dtype}, expected one of {', '.join(map(str, DTYPES))}")
    return tensor


def check_shape(name: str, tensor: Tensor, *shape: int | str) -> None:
    """Raises ValueError unless ``tensor`` has this shape; a size given by its name may be any."""
    if tensor.dim() != len(shape) or any(
        isinstance(size, int) and size != actual for size, actual in zip(shape, tensor.shape)
    ):
        expected = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, expected ({expected})")


def reorder_zrn_to_rzn(zrn: Tensor) -> Tensor:
    """Blocks z, r, n of the first dimension in torch's order r, z, n."""
    z, r, n = zrn.chunk(3)
    return torch.cat([r, z, n])


def build_gru(
    directions: Sequence[LayerWeights], *, reset_after: bool, reverse: bool = False, batch_first: bool = False
) -> GRU:
    """A GRU of one layer with these weights (in torch's layout) for its own, in `eval()`; bidirectional if of two."""
    module = GRU(
        **_sizes(directions[0]),
        batch_first=batch_first,
        bidirectional=len(directions) == 2,
        device="meta",
        reset_after=reset_after,
        reverse=reverse,
    )
    return _filled(module, chain.from_iterable(directions)).eval()


def build_cell(weights: LayerWeights, *, reset_after: bool) -> GRUCell:
    """A GRUCell with these weights for its own, in `eval()`."""
    return _filled(GRUCell(**_sizes(weights), device="meta", reset_after=reset_after), weights).eval()


def _filled(module: nn.Module, weights: Iterable[Tensor | None]):
    given = [weight for weight in weights if weight is not None]
    return assign_parameters(module, dict(zip(module.state_dict(), given, strict=True)))


def assign_parameters(module: nn.Module, state: dict[str, Tensor]):
    """``module``, made on the meta device (which draws no random numbers), with these tensors as its parameters."""
    module.load_state_dict(state, assign=True)
    if isinstance(module, nn.RNNBase):
        module.flatten_parameters()  # what torch's own GRU warns of on a GPU where it was not done
    return module


def _sizes(weights: LayerWeights) -> dict[str, Any]:
    w_ih, w_hh, b_ih, _ = weights
    return {"input_size": w_ih.size(1), "hidden_size": w_hh.size(1), "bias": b_ih is not None}
