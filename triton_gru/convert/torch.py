"""Conversion of `nn.GRU` and `nn.GRUCell` to this package's modules, and back."""

from typing import overload

from torch import nn

from ..call.options import Options
from ..modules import GRU, GRUCell
from . import assemble

_CELL_OPTIONS = ("input_size", "hidden_size", "bias")
_GRU_OPTIONS = (*_CELL_OPTIONS, "num_layers", "batch_first", "dropout", "bidirectional")
_EXTRA_OPTIONS = {GRU: ("reset_after", "backend", "reverse"), GRUCell: ("reset_after", "backend")}


@overload
def from_torch(module: nn.GRU | GRU) -> GRU: ...


@overload
def from_torch(module: nn.GRUCell | GRUCell) -> GRUCell: ...


def from_torch(module: nn.GRU | nn.GRUCell | GRU | GRUCell) -> GRU | GRUCell:
    r"""Copy a `torch.nn.GRU` to a `GRU`, or a `torch.nn.GRUCell` to a `GRUCell`.

        gru = triton_gru.convert.from_torch(torch.nn.GRU(40, 64).eval())

    `accelerate` does the same in place and without copies. ``module`` may also be a module of this package.

    Both modules have this formula (https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html):

    .. math::
        r = \sigma(W_{ir} x + b_{ir} + W_{hr} h + b_{hr}) \qquad
        z = \sigma(W_{iz} x + b_{iz} + W_{hz} h + b_{hz}) \\
        n = \tanh(W_{in} x + b_{in} + r \odot (W_{hn} h + b_{hn})) \qquad
        h' = (1 - z) \odot n + z \odot h

    Shapes, of each layer and direction, with the gates in the order r, z, n:
        weight_ih: [3H, I].
        weight_hh: [3H, H].
        bias_ih, bias_hh: [3H].

    Returns:
        A module with the options, device, dtype, training mode and requires_grad of ``module``. Hooks are not copied.

    Raises:
        TypeError: ``module`` is not one of these four classes, but a subclass, for example, or parametrized. Or its
            `forward` has been replaced.
        RuntimeError: the names of ``module``'s parameters and buffers are not those of a GRU, as after pruning.
    """
    new_classes = {nn.GRU: GRU, GRU: GRU, nn.GRUCell: GRUCell, GRUCell: GRUCell}
    extra_options = {name: getattr(module, name) for name in _EXTRA_OPTIONS.get(type(module), ())}
    return _copy_module(module, new_classes, extra_options)


@overload
def to_torch(module: nn.GRU | GRU) -> nn.GRU: ...


@overload
def to_torch(module: nn.GRUCell | GRUCell) -> nn.GRUCell: ...


def to_torch(module: nn.GRU | nn.GRUCell | GRU | GRUCell) -> nn.GRU | nn.GRUCell:
    """Copy a `GRU` to a `torch.nn.GRU`, or a `GRUCell` to a `torch.nn.GRUCell`. Undoes `from_torch`.

        torch_gru = triton_gru.convert.to_torch(gru)

    `restore` does the same in place and without copies. ``module`` may also be a module of torch. The option
    ``backend`` is dropped, as `nn.GRU` does not have it.

    Raises:
        TypeError, RuntimeError: as `from_torch`.
        ValueError: ``module`` has ``reset_after=False`` or ``reverse=True``, which `nn.GRU` does not have.
    """
    new_classes = {GRU: nn.GRU, nn.GRU: nn.GRU, GRUCell: nn.GRUCell, nn.GRUCell: nn.GRUCell}
    copy = _copy_module(module, new_classes, extra_options={})
    if unsupported := Options.from_module(module).unsupported_by_nn_gru:
        raise ValueError(f"torch has no GRU with {unsupported}")
    return copy


def _copy_module(module: nn.Module, new_classes: dict[type, type], extra_options: dict):
    """Return a copy of ``module`` of the class that ``new_classes`` has for its class.

    ``extra_options`` are arguments of the new class's constructor, besides those that `nn.GRU` or `nn.GRUCell` has.

    Raises what `from_torch` raises.
    """
    new_class = new_classes.get(type(module))
    if new_class is None:
        kind = type(module)
        raise TypeError(
            "expected nn.GRU, nn.GRUCell, triton_gru.GRU or triton_gru.GRUCell, "
            f"got {kind.__module__}.{kind.__qualname__}"
        )
    if "forward" in vars(module):
        raise TypeError("the forward of this module has been replaced, so it cannot be converted")
    names = _GRU_OPTIONS if isinstance(module, nn.RNNBase) else _CELL_OPTIONS
    copy = new_class(**{name: getattr(module, name) for name in names}, device="meta", **extra_options)
    # If a parameter has been pruned, its name is missing here, and loading raises an error with the name.
    assemble.assign_parameters(copy, {name: tensor.detach().clone() for name, tensor in module.state_dict().items()})
    for name, parameter in module.named_parameters():
        copy.get_parameter(name).requires_grad_(parameter.requires_grad)
    return copy.train(module.training)
