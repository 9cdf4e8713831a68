"""Everything that computes a GRU and can be timed, by name. A provider is a file here that names its `PROVIDERS`."""

from torch import nn

from triton_gru.call.options import Options

from ..case import Input
from . import compiled, cudnn, flashrnn, flax_scan, gru_qat, handwritten, ours, stages, torch_modules, torchrl
from .interface import Prepare, Ready, Unavailable
from .streaming import PROVIDERS as STREAMING

OURS = "triton_gru"  # and what begins so
YARDSTICK = "torch.nn.GRU"  # measured in every cell: others are gated and compared by it

PROVIDERS: dict[str, Prepare] = {YARDSTICK: torch_modules.PROVIDERS[YARDSTICK]}  # named first
for _module in (ours, stages, cudnn, handwritten, compiled, torchrl, gru_qat, flashrnn, flax_scan, torch_modules):
    PROVIDERS |= _module.PROVIDERS
NAMES = tuple(PROVIDERS | STREAMING)


def make_ready(name: str, gru: nn.GRU, x: Input, streaming: bool) -> Ready:
    """Make the provider ready for whole sequences, or for frames of a stream.

    Raises:
        Unavailable: it cannot serve them.
    """
    prepare = (STREAMING if streaming else PROVIDERS).get(name)
    if prepare is None:
        raise Unavailable("it is not called here " + ("frame by frame" if streaming else "but frame by frame"))
    if not Options.of(gru).reset_after and not name.startswith((OURS, "torch.nn", "handwritten")):
        raise Unavailable("it has no GRU that resets before the recurrent product")
    return prepare(gru, x)
