"""Providers of nn.GRU, nn.RNN and nn.LSTM. On a GPU they run cuDNN with the algorithm that torch picks."""

import copy
import functools

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..case import Input, Ragged
from .interface import Call, Ready


def _prepare_nn_gru(gru: nn.GRU, x: Input) -> Ready:
    """Return `nn.GRU`, the baseline, ready for inputs like ``x``.

    For ``reset_after=False``, ``gru`` is ours, because torch has no such GRU. Then an `nn.GRU` of the same sizes with
    other weights is timed.
    """
    if type(gru) is not nn.GRU:
        return _prepare_module_like(nn.GRU, gru, x)
    call = _make_call(gru) if isinstance(x, Ragged) else gru
    return Ready(call, kernel=find_kernel_name(gru), lay_out=_move_lengths_to_cpu)


def _prepare_module_like(module_class: type[nn.RNNBase], gru: nn.GRU, x: Input) -> Ready:
    """Return a module of another class and the same sizes as ``gru``, ready for inputs like ``x``.

    The module has its own weights, so its results are compared with the same module in float64.
    """
    module, expected = make_module_like(module_class, gru)
    return Ready(_make_call(module), kernel=find_kernel_name(gru), expected=expected, lay_out=_move_lengths_to_cpu)


def make_module_like(module_class: type[nn.RNNBase], gru: nn.GRU) -> tuple[nn.RNNBase, Call]:
    """Return a module of the same sizes as ``gru`` with random weights, and a call of its copy in float64."""
    with torch.inference_mode(False):
        sizes, weight = (gru.input_size, gru.hidden_size, gru.num_layers), gru.weight_hh_l0
        options = {"bidirectional": gru.bidirectional, "device": weight.device, "dtype": weight.dtype}
        module = module_class(*sizes, **options).eval()
        return module, _make_call(copy.deepcopy(module).double())


def _make_call(module: nn.RNNBase) -> Call:
    """Return a call of the module that takes every kind of input, and returns one output and one state.

    The call packs a `Ragged` and pads the output again. Of the two states of an LSTM it returns only h.
    """

    def call(x: Input) -> tuple[Input, Tensor]:
        is_ragged = isinstance(x, Ragged)
        output, state = module(pack_padded_sequence(x.padded, x.lengths.cpu()) if is_ragged else x)
        if is_ragged:
            output, _ = pad_packed_sequence(output)
        return output, state[0] if isinstance(state, tuple) else state

    return call


def _move_lengths_to_cpu(x: Input) -> Input:
    """Return the input with the lengths of a `Ragged` on the CPU, where `pack_padded_sequence` needs them."""
    return x._replace(lengths=x.lengths.cpu()) if isinstance(x, Ragged) else x


def find_kernel_name(gru: nn.GRU) -> str:
    """Return the kernel that serves `nn.GRU` on ``gru``'s device: "cudnn" on a GPU with cuDNN, else "torch"."""
    return "cudnn" if gru.weight_hh_l0.is_cuda and torch.backends.cudnn.is_available() else "torch"


PROVIDERS = {
    "torch.nn.GRU": _prepare_nn_gru,
    "torch.nn.RNN": functools.partial(_prepare_module_like, nn.RNN),
    "torch.nn.LSTM": functools.partial(_prepare_module_like, nn.LSTM),
}
