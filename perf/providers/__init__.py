"""Everything that computes a GRU and can be timed, by name. A provider is a file here that names its `PROVIDERS`."""

from . import compiled, cudnn, handwritten, ours, torch_modules, torchrl
from .interface import Prepare

OURS = "triton_gru"  # and what begins so
YARDSTICK = "torch.nn.GRU"  # measured in every cell: others are gated and compared by it

PROVIDERS: dict[str, Prepare] = {
    YARDSTICK: torch_modules.PROVIDERS[YARDSTICK],
    **ours.PROVIDERS,
    **cudnn.PROVIDERS,
    **handwritten.PROVIDERS,
    **compiled.PROVIDERS,
    **torchrl.PROVIDERS,
    **torch_modules.PROVIDERS,
}
