"""What a provider is: something that computes the outputs of a `torch.nn.GRU`, to be timed."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..case import Input, Ragged

# x [T, B, I] -> (output [T, B, D * H], h_n [D * layers, B, H]) with D directions, from a state of zeros. For a
# PackedSequence the output is one, too, or its data. For a `Ragged` it is zeros behind the ends of sequences.
Call = Callable[[Input], tuple[Input, Tensor]]
# A frame [1, B, I] -> its output [1, B, H] or [B, H], from the state that the call before has left.
Frame = Callable[[Tensor], Tensor]


class Unavailable(Exception):
    """The provider cannot serve the case on this machine; the message says why."""


@dataclass(frozen=True)
class Ready:
    """A provider made ready for one case.

    Attributes:
        call: what is timed; a `Frame` if the case is streaming. It does not wait for the device, may be captured in a
            CUDA graph once it has been called, runs on torch's current stream, and may overwrite what an earlier call
            returned.
        kernel, config, config_source: what will run, where the provider knows.
        expected: the call in float64, of one that computes something else than the GRU.
        lay_out: makes of an input what ``call`` takes, before anything is timed.
        reset: takes a `Frame`'s state back to zeros.
        captured: what a CUDA graph captures in place of a `Frame`: its state goes out where it came in.
        no_graph_reason: why no graph captures ``call``.
        is_judged: False for a call whose results mean nothing by design. No gate looks at them.
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


# Makes a provider ready for ``gru``'s weights and inputs of ``x``'s shape, dtype and device. ``gru`` is what
# `Case.module` makes, time first and in eval(). torch's settings of precision are those of the case, for recurrent
# networks (torch.backends.cudnn.rnn) and for matrix products (torch.backends.cuda.matmul). Called under inference_mode.
# Raises Unavailable.
Prepare = Callable[[nn.GRU, Input], Ready]
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def require_padded(x: Input) -> None:
    if isinstance(x, (PackedSequence, Ragged)):
        raise Unavailable("it is called here with sequences of one length")


def require_one_direction(gru: nn.GRU) -> None:
    if gru.bidirectional:
        raise Unavailable("it is written here for one direction")


def import_peer(module: str, package: str) -> ModuleType:
    """Import a module of ``package``, which pip installs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(f"{module} cannot be imported: pip install {package} ({error})") from error


def import_gpu_peer(module: str, package: str, gru: nn.GRU, x: Input, dtypes: tuple = FLOATS) -> ModuleType:
    """Import a module that serves padded inputs of ``dtypes`` on a GPU in one direction."""
    require_padded(x)
    require_one_direction(gru)
    peer = import_peer(module, package)
    if not x.is_cuda:
        raise Unavailable(f"{module} needs a CUDA device, the input is on {x.device}")
    if x.dtype not in dtypes:
        raise Unavailable(f"{module} computes in {', '.join(map(str, dtypes))} here, not in {x.dtype}")
    return peer


def allows_tf32() -> bool:
    """Return whether products of float32 may be in TF32 in this case."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def layers_of(module: nn.RNNBase) -> list[list[Tensor]]:
    """Return W_ih, W_hh, b_ih and b_hh of each layer and direction. Biases that ``module`` lacks are zeros."""
    layers = [[getattr(module, name).detach() for name in names] for names in module._all_weights]
    return [[*weights, *[weights[1].new_zeros(len(weights[1]))] * 2][:4] for weights in layers]


def through_layers(layer: Callable[..., Tensor], layers: list) -> Call:
    """Return a call that runs ``layer(x, *weights)``, whose result is [T, B, H], with the weights of each layer."""

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        last = []
        for weights in layers:
            x = layer(x, *weights)
            last.append(x[-1:])
        return x, last[0] if len(last) == 1 else torch.cat(last)

    return call
