"""torch.nn's GRU and GRUCell, both ways."""

from typing import overload

from torch import nn

from ..call.options import Options
from ..modules import GRU, GRUCell
from . import assemble

_CELL = ("input_size", "hidden_size", "bias")
_LAYERS = (*_CELL, "num_layers", "batch_first", "dropout", "bidirectional")
_OWN = {GRU: ("reset_after", "backend", "reverse"), GRUCell: ("reset_after", "backend")}


@overload
def from_torch(module: nn.GRU | GRU) -> GRU: ...


@overload
def from_torch(module: nn.GRUCell | GRUCell) -> GRUCell: ...


def from_torch(module: nn.GRU | nn.GRUCell | GRU | GRUCell) -> GRU | GRUCell:
    r"""A `GRU` of a `torch.nn.GRU`, a `GRUCell` of a `torch.nn.GRUCell`, with copies of its parameters; or of ours.

    The formula is that of both (https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html):

    .. math::
        r = \sigma(W_{ir} x + b_{ir} + W_{hr} h + b_{hr}) \qquad
        z = \sigma(W_{iz} x + b_{iz} + W_{hz} h + b_{hz}) \\
        n = \tanh(W_{in} x + b_{in} + r \odot (W_{hn} h + b_{hn})) \qquad
        h' = (1 - z) \odot n + z \odot h

    weight_ih [3H, I], weight_hh [3H, H], bias_ih [3H] and bias_hh [3H] of each layer and direction hold the gates in
    the order r, z, n. Options, device, dtype, training mode and requires_grad are the module's; hooks are not copied.
    `accelerate` does the same in place and without copies.

    Raises:
        TypeError: another module, a subclass (a parametrized one too), or one whose `forward` has been replaced.
        RuntimeError: a parameter is not there by its name, as after pruning.
    """
    ours = {nn.GRU: GRU, GRU: GRU, nn.GRUCell: GRUCell, GRUCell: GRUCell}
    return _copied(module, ours, {name: getattr(module, name) for name in _OWN.get(type(module), ())})


@overload
def to_torch(module: nn.GRU | GRU) -> nn.GRU: ...


@overload
def to_torch(module: nn.GRUCell | GRUCell) -> nn.GRUCell: ...


def to_torch(module: nn.GRU | nn.GRUCell | GRU | GRUCell) -> nn.GRU | nn.GRUCell:
    """The reverse of `from_torch`: a `torch.nn.GRU` of a `GRU`, a `torch.nn.GRUCell` of a `GRUCell`; or of torch's.

    Raises:
        TypeError, RuntimeError: as `from_torch`.
        ValueError: ``reset_after=False`` or ``reverse=True``, which torch does not have.
    """
    theirs = {GRU: nn.GRU, nn.GRU: nn.GRU, GRUCell: nn.GRUCell, nn.GRUCell: nn.GRUCell}
    copied = _copied(module, theirs, {})
    if own := Options.from_module(module).unsupported_by_nn_gru:
        raise ValueError(f"torch has no GRU with {own}")
    return copied


def _copied(module: nn.Module, classes: dict[type, type], own: dict):
    new_class = classes.get(type(module))
    if new_class is None:
        kind = type(module)
        raise TypeError(f"expected nn.GRU, nn.GRUCell or this package's, got {kind.__module__}.{kind.__qualname__}")
    if "forward" in vars(module):
        raise TypeError("the forward of this module has been replaced")
    options = _LAYERS if isinstance(module, nn.RNNBase) else _CELL
    copy = new_class(**{name: getattr(module, name) for name in options}, device="meta", **own)
    # A pruned parameter is not one by its name; loading says which.
    assemble.assign_parameters(copy, {name: tensor.detach().clone() for name, tensor in module.state_dict().items()})
    for name, parameter in module.named_parameters():
        copy.get_parameter(name).requires_grad_(parameter.requires_grad)
    return copy.train(module.training)
