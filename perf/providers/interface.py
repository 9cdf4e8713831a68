"""The interface of providers. A provider is an implementation that computes what a given `torch.nn.GRU` computes.

To be timed on a case, a provider is prepared. A function of the type `Prepare` takes the GRU and an example input, and
returns a `Ready`: the call to time, with facts about it. The suite then does the following:

1. It converts each of the case's inputs by ``lay_out``, once and untimed, to what the call takes.
2. It calls ``call`` with the first converted input, and compares the result with float64.
3. It times ``call``, and a CUDA graph of ``call``, with the converted inputs in turn.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..case import Input, Ragged

# x [T, B, I] -> (output [T, B, D * H], h_n [D * layers, B, H]) with D directions. The first state is zeros. If x is a
# PackedSequence, the output is a PackedSequence or its data. If x is a `Ragged`, the output is a padded tensor, with
# zeros after the end of each sequence.
Call = Callable[[Input], tuple[Input, Tensor]]
# A frame [1, B, I] -> the output of the frame, [1, B, H] or [B, H]. The call starts from the state that the previous
# call left.
Frame = Callable[[Tensor], Tensor]


class Unavailable(Exception):
    """The provider cannot serve the case on this machine. The message has the reason, which the row shows."""


@dataclass(frozen=True)
class Ready:
    """A provider prepared for one case. The module's docstring says how the suite uses it.

    Attributes:
        call: the call to time, a `Frame` if the case is streaming. The call runs on torch's current stream and does not
            wait for the device. After a first call, a CUDA graph may capture it. A call may overwrite the results of
            earlier calls. Exception: with ``no_graph_reason`` the call may wait, and is not captured.
        kernel: the name of the kernel that runs, or "" if unknown. This and the next two fields are columns of the row.
        config: the configuration of the kernel as text, or "" if unknown.
        config_source: where the configuration comes from, such as "autotuned", or "".
        expected: a function that takes the input in float64 and returns the results to compare with. None if they are
            those of the GRU. A provider sets it if it computes something else, such as an LSTM.
        lay_out: a function that converts an input of the case to the layout that ``call`` takes. The default returns
            the input unchanged.
        reset: a function that sets the state of a `Frame` to zeros.
        captured: a `Frame` for a CUDA graph to capture instead of ``call``, or None. A graph reads the same memory in
            every replay, so ``captured`` must write the new state over the old state.
        no_graph_reason: why no CUDA graph can capture ``call``, or "".
        is_judged: False if the results of ``call`` are meaningless by design. Then they are not compared.
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


# (gru, x) -> a `Ready` for the weights of ``gru``, and for inputs of the shape, dtype and device of ``x``. ``gru`` is
# from `Case.make_gru`, with time first, in eval(). The function is called under inference_mode, while torch has the
# case's precision for recurrent networks (torch.backends.cudnn.rnn) and matrix products (torch.backends.cuda.matmul).
# The function raises `Unavailable` if the provider cannot serve the case.
Prepare = Callable[[nn.GRU, Input], Ready]
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def require_padded(x: Input) -> None:
    """Raise Unavailable if the input is packed or has lengths."""
    if isinstance(x, (PackedSequence, Ragged)):
        raise Unavailable("this provider is called here only with sequences of one length")


def require_one_direction(gru: nn.GRU) -> None:
    """Raise Unavailable if the GRU is bidirectional."""
    if gru.bidirectional:
        raise Unavailable("this provider is written here only for one direction")


def import_peer(module: str, package: str) -> ModuleType:
    """Return the imported module, or raise Unavailable. ``package`` is what `pip install` must install to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(f"{module} cannot be imported: pip install {package} ({error})") from error


def import_gpu_peer(
    module: str, package: str, gru: nn.GRU, x: Input, dtypes: tuple[torch.dtype, ...] = FLOATS
) -> ModuleType:
    """Return the imported module of a peer that serves only padded inputs of ``dtypes`` on a GPU, in one direction.

    Raises:
        Unavailable: the peer cannot serve ``gru`` with ``x``, or the ``package`` is not installed.
    """
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
    """Return [W_ih, W_hh, b_ih, b_hh] of each layer and direction. If the module has no biases, they are zeros."""
    layers = []
    for names in module._all_weights:
        w_ih, w_hh, *biases = (getattr(module, name).detach() for name in names)
        zeros = w_hh.new_zeros(len(w_hh))
        layers.append([w_ih, w_hh, *(biases or (zeros, zeros))])
    return layers


def through_layers(layer: Callable[..., Tensor], layers: list) -> Call:
    """Return a call that computes a GRU of one direction, layer by layer, from a function of one layer.

    ``layer(x, *weights)`` returns the output [T, B, H] of a layer. ``layers`` has the weights of each layer.
    """

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        last_states = []
        for weights in layers:
            x = layer(x, *weights)
            last_states.append(x[-1:])
        return x, last_states[0] if len(last_states) == 1 else torch.cat(last_states)

    return call
