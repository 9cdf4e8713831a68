"""What a provider is: something that computes the outputs of a `torch.nn.GRU`, to be timed."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..case import Input

# x [T, B, I] -> (output [T, B, D * H], h_n [D * layers, B, H]) with D directions, from a state of zeros. For a
# PackedSequence the output is one, too, or its data.
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
        refuses_graph: why no graph captures ``call``.
        judged: False for a call whose results mean nothing by design. No gate looks at them.
    """

    call: Call | Frame
    kernel: str = ""
    config: str = ""
    config_source: str = ""
    expected: Call | None = None
    lay_out: Callable[[Input], Input] = lambda x: x
    reset: Callable[[], None] = lambda: None
    captured: Frame | None = None
    refuses_graph: str = ""
    judged: bool = True


# Makes a provider ready for ``gru``'s weights and inputs of ``x``'s shape, dtype and device. ``gru`` is time first and
# in eval(), and its weights are flattened; torch's settings of precision are those of the case, for recurrent networks
# (torch.backends.cudnn.rnn) and for matrix products (torch.backends.cuda.matmul). Called under inference_mode. Raises
# Unavailable.
Prepare = Callable[[nn.GRU, Input], Ready]


def require_padded(x: Input) -> None:
    if isinstance(x, PackedSequence):
        raise Unavailable("it is called here with sequences of one length, not with packed ones")


def require_one_direction(gru: nn.GRU) -> None:
    if gru.bidirectional:
        raise Unavailable("it is written here for one direction")
