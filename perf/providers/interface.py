"""The interface of providers. A provider computes the outputs of a `torch.nn.GRU`, to be timed."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..case import Input, Ragged

# x [T, B, I] -> (output [T, B, D * H], h_n [D * layers, B, H]) with D directions, from a state of zeros. For a
# PackedSequence the output is a PackedSequence or its data. For a `Ragged` it is zero after the ends of sequences.
Call = Callable[[Input], tuple[Input, Tensor]]
# A frame [1, B, I] -> its output [1, B, H] or [B, H], from the state that the previous call left.
Frame = Callable[[Tensor], Tensor]


class Unavailable(Exception):
    """The provider cannot serve the case on this machine. The message has the reason."""


@dataclass(frozen=True)
class Ready:
    """A provider prepared for one case.

    Attributes:
        call: the call to time, a `Frame` if the case is streaming. It runs on torch's current stream and does not wait
            for the device. After a first call, a CUDA graph may capture it. It may overwrite earlier results.
        kernel, config, config_source: the kernel that runs, its configuration and where that comes from, if known.
        expected: a call in float64, for a provider that computes something other than the GRU.
        lay_out: converts an input for ``call``, before anything is timed.
        reset: sets a `Frame`'s state to zeros.
        captured: the call that a CUDA graph captures instead of a `Frame`. It writes the new state over the old state.
        no_graph_reason: why no CUDA graph can capture ``call``, or "".
        is_judged: False for a call whose results are meaningless by design, and not compared.
    """

    call: Call | Frame
    kernel: str = ""
    config: str = ""
    config_source: str = ""
    expected: Call | None = None
    lay_out: Callable[[Input], Input] = lambda x: x
    reset: Callable[[], None] = lambda: None
    captured: Frame | None = None
    no_graph_reason: str = ""
    is_judged: bool = True


# Prepares a provider for ``gru``'s weights and inputs of ``x``'s shape, dtype and device. ``gru`` comes from
# `Case.module`, time first and in eval(). torch has the case's precision for recurrent networks
# (torch.backends.cudnn.rnn) and matrix products (torch.backends.cuda.matmul). Called under inference_mode. Raises
# Unavailable.
Prepare = Callable[[nn.GRU, Input], Ready]
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def require_padded(x: Input) -> None:
    if isinstance(x, (PackedSequence, Ragged)):
        raise Unavailable("this provider is called here only with sequences of one length")


def require_one_direction(gru: nn.GRU) -> None:
    if gru.bidirectional:
        raise Unavailable("this provider is written here only for one direction")


def import_peer(module: str, package: str) -> ModuleType:
    """Import a module of a ``package`` from pip, or raise Unavailable."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(f"{module} cannot be imported: pip install {package} ({error})") from error


def import_gpu_peer(module: str, package: str, gru: nn.GRU, x: Input, dtypes: tuple = FLOATS) -> ModuleType:
    """Import a module that serves padded inputs of ``dtypes`` on a GPU in one direction, or raise Unavailable."""
    require_padded(x)
    require_one_direction(gru)
    peer = import_peer(module, package)
    if not x.is_cuda:
        raise Unavailable(f"{module} needs a CUDA device, the input is on {x.device}")
    if x.dtype not in dtypes:
        raise Unavailable(f"{module} computes in {', '.join(map(str, dtypes))} here, not in {x.dtype}")
    return peer


def allows_tf32() -> bool:
    """Return whether the current case allows TF32 for products of float32."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def layers_of(module: nn.RNNBase) -> list[list[Tensor]]:
    """Return W_ih, W_hh, b_ih and b_hh of each layer and direction. Missing biases are zeros."""
    layers = [[getattr(module, name).detach() for name in names] for names in module._all_weights]
    return [[*weights, *[weights[1].new_zeros(len(weights[1]))] * 2][:4] for weights in layers]


def through_layers(layer: Callable[..., Tensor], layers: list) -> Call:
    """Return a call that runs ``layer(x, *weights)`` -> [T, B, H] with the weights of each layer in turn."""

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        last = []
        for weights in layers:
            x = layer(x, *weights)
            last.append(x[-1:])
        return x, last[0] if len(last) == 1 else torch.cat(last)

    return call
