"""Providers of nn.GRU, nn.RNN and nn.LSTM. On a GPU they run cuDNN with the algorithm that torch picks."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..case import Input, Ragged
from .interface import Call, Ready


def _gru(gru: nn.RNNBase, x: Input) -> Ready:
    """Prepare ``gru``. Exception: for ``reset_after=False``, which torch lacks, prepare nn.GRU of the same sizes."""
    if type(gru) is not nn.GRU:
        return _other_cell(nn.GRU, gru, x)
    call = _make_call(gru) if isinstance(x, Ragged) else gru
    return Ready(call, kernel=kernel_name(gru), lay_out=_with_lengths_on_cpu)


def _other_cell(cell: type[nn.RNNBase], gru: nn.GRU, x: Input) -> Ready:
    """Prepare a cell of the same sizes, which is compared with itself in float64."""
    module, expected = make_cell_like(cell, gru)
    return Ready(_make_call(module), kernel=kernel_name(gru), expected=expected, lay_out=_with_lengths_on_cpu)


def make_cell_like(cell: type[nn.RNNBase], gru: nn.GRU) -> tuple[nn.RNNBase, Call]:
    """Return a cell of the same sizes with its own weights, and its call in float64."""
    with torch.inference_mode(False):
        sizes = gru.input_size, gru.hidden_size, gru.num_layers
        like = gru.weight_hh_l0
        module = cell(*sizes, bidirectional=gru.bidirectional, device=like.device, dtype=like.dtype).eval()
        return module, _make_call(copy.deepcopy(module).double())


def _make_call(module: nn.RNNBase) -> Call:
    """Return a call that returns only the first state, as an LSTM has two. It packs a `Ragged`, and pads the output."""

    def call(x: Input) -> tuple[Input, Tensor]:
        is_ragged = isinstance(x, Ragged)
        output, state = module(pack_padded_sequence(x.padded, x.lengths.cpu()) if is_ragged else x)
        return pad_packed_sequence(output)[0] if is_ragged else output, state[0] if isinstance(state, tuple) else state

    return call


def _with_lengths_on_cpu(x: Input) -> Input:
    """Return the input with its lengths on the CPU, where torch's packing needs them."""
    return x._replace(lengths=x.lengths.cpu()) if isinstance(x, Ragged) else x


def kernel_name(gru: nn.GRU) -> str:
    return "cudnn" if gru.weight_hh_l0.is_cuda and torch.backends.cudnn.is_available() else "torch"


PROVIDERS = {
    "torch.nn.GRU": _gru,
    "torch.nn.RNN": lambda gru, x: _other_cell(nn.RNN, gru, x),
    "torch.nn.LSTM": lambda gru, x: _other_cell(nn.LSTM, gru, x),
}
