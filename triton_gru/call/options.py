"""The options of a GRU or a cell, of torch.nn or of this package."""

from typing import NamedTuple

import torch
from torch import nn

from ..plan.problem import Problem
from .torch_state import cublas_unsupported_reason, fp32_precision

# Attributes that nn.GRU and nn.GRUCell do not have. `accelerate` does not set them: our classes have defaults.
EXTRA_ATTRIBUTES = ("backend", "reset_after", "reverse")
_EXTRA_DEFAULTS = True, False, "auto"  # the options reset_after, reverse and backend of nn.GRU and nn.GRUCell


class Options(NamedTuple):
    """The options of a module, named as in `triton_gru.GRU`. A cell has the options of a GRU with one layer."""

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    reset_after: bool = True
    reverse: bool = False
    backend: str = "auto"
    training: bool = False

    @classmethod
    def from_module(cls, module: nn.Module) -> "Options":
        """Return the options of a GRU or a cell. A module of torch.nn gets our defaults for the options it lacks."""
        kind = type(module)
        is_ours = hasattr(kind, "torch_class")
        extra_options = (module.reset_after, module.reverse, module.backend) if is_ours else _EXTRA_DEFAULTS
        # issubclass(kind, ...) is faster than isinstance, which reads the __class__ property of our modules.
        if issubclass(kind, nn.RNNCellBase):
            layer_options = 1, module.bias, False, 0.0, False
        else:
            layer_options = module.num_layers, module.bias, module.batch_first, module.dropout, module.bidirectional
        # tuple.__new__ is faster than cls(...), whose __new__ is in Python.
        sizes = module.input_size, module.hidden_size
        return tuple.__new__(cls, (*sizes, *layer_options, *extra_options, module.training))

    @property
    def directions(self) -> int:
        """Return the number of directions in time: 2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def unsupported_by_nn_gru(self) -> str:
        """Return the options that this module sets and nn.GRU lacks, such as "reset_after=False", or ''.

        Exception: ``backend`` is left out, because it does not change the formula.
        """
        if self.reset_after and not self.reverse:
            return ""
        return ", ".join(["reset_after=False"] * (not self.reset_after) + ["reverse=True"] * self.reverse)

    @property
    def is_training_call(self) -> bool:
        """Return whether a call now would be one of training: in training mode with grad enabled."""
        return self.training and torch.is_grad_enabled()

    def to_problem(self, steps: int, batch_size: int, dtype: torch.dtype, **other_fields) -> Problem:
        """Return the problem of a call of these sizes, under torch's current settings of precision and for cuBLAS.

        ``other_fields`` are fields of `Problem` that depend on a call's arguments: layout, resets, unsupported_reason.
        """
        precision = fp32_precision() if dtype == torch.float32 else "ieee"
        return Problem(
            steps=steps,
            batch_size=batch_size,
            input_size=self.input_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            dtype=dtype,
            precision=precision,
            reset_after=self.reset_after,
            reverse=self.reverse,
            cublas_unsupported_reason=cublas_unsupported_reason(dtype, precision),
            **other_fields,
        )


def has_only_nn_gru_attributes(module: nn.Module) -> bool:
    """Return whether only the class of ``module`` differs from nn.GRU or nn.GRUCell, as after `accelerate`.

    If it returns False, a GRU or cell of this package was constructed, or one of `EXTRA_ATTRIBUTES` was set later.
    """
    return not any(name in module.__dict__ for name in EXTRA_ATTRIBUTES)
