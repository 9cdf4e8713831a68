"""torch's own recurrent modules: on a GPU cuDNN by the algorithm that torch picks."""

import copy

import torch
from torch import Tensor, nn

from ..case import Input
from .interface import Call, Ready


def _gru(gru: nn.RNNBase, x: Input) -> Ready:
    """Make ``gru`` ready. Exception: where it resets before, which torch has not, torch's own of the same sizes."""
    return Ready(gru, kernel=kernel(gru)) if type(gru) is nn.GRU else _other_cell(nn.GRU, gru, x)


def _other_cell(cell: type[nn.RNNBase], gru: nn.GRU, x: Input) -> Ready:
    """Make a cell of the same sizes ready, which is compared with itself in float64."""
    module, expected = cell_like(cell, gru)
    return Ready(_first_state(module), kernel=kernel(gru), expected=expected)


def cell_like(cell: type[nn.RNNBase], gru: nn.GRU) -> tuple[nn.RNNBase, Call]:
    """Return a cell of the same sizes with weights of its own, and its call in float64."""
    with torch.inference_mode(False):
        sizes = gru.input_size, gru.hidden_size, gru.num_layers
        like = gru.weight_hh_l0
        module = cell(*sizes, bidirectional=gru.bidirectional, device=like.device, dtype=like.dtype).eval()
        return module, _first_state(copy.deepcopy(module).double())


def _first_state(module: nn.RNNBase) -> Call:
    """Return a call that gives the first state alone: an LSTM has two."""

    def call(x: Input) -> tuple[Input, Tensor]:
        output, state = module(x)
        return output, state[0] if isinstance(state, tuple) else state

    return call


def kernel(gru: nn.GRU) -> str:
    return "cudnn" if gru.weight_hh_l0.is_cuda and torch.backends.cudnn.is_available() else "torch"


PROVIDERS = {
    "torch.nn.GRU": _gru,
    "torch.nn.RNN": lambda gru, x: _other_cell(nn.RNN, gru, x),
    "torch.nn.LSTM": lambda gru, x: _other_cell(nn.LSTM, gru, x),
}
