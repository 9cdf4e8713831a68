"""What a provider is: something that computes the outputs of a `torch.nn.GRU`, to be timed."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

# x [T, B, I] -> (output [T, B, H], h_n [layers, B, H]), from a state of zeros.
Call = Callable[[Tensor], tuple[Tensor, Tensor]]


class Unavailable(Exception):
    """The provider cannot serve the case on this machine; the message says why."""


@dataclass(frozen=True)
class Ready:
    """A provider made ready for one case.

    Attributes:
        call: what is timed. It does not wait for the device, may be captured in a CUDA graph once it has been called,
            runs on torch's current stream, and may overwrite what an earlier call returned.
        kernel, config, config_source: what will run, where the provider knows.
        expected: the call in float64, of one that computes something else than the GRU.
        batch_first: its inputs, [T, B, I] as all, are to lie in memory batch after batch.
    """

    call: Call
    kernel: str = ""
    config: str = ""
    config_source: str = ""
    expected: Call | None = None
    batch_first: bool = False


# Makes a provider ready for ``gru``'s weights and inputs of ``x``'s shape, dtype and device. ``gru`` runs one way, time
# first, is in eval() and its weights are flattened; torch's settings of precision are those of the case, for recurrent
# networks (torch.backends.cudnn.rnn) and for matrix products (torch.backends.cuda.matmul). Called under inference_mode.
# Raises Unavailable.
Prepare = Callable[[nn.GRU, Tensor], Ready]
