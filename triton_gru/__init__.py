"""Fast GRU inference on GPUs: `accelerate` a model, or use `GRU` and `GRUCell` where torch.nn's were.

`convert` brings weights from elsewhere.
"""

from . import convert
from .modules import GRU, GRUCell
from .plan import Plan
from .swap import accelerate, restore
from .watchdog import check

__version__ = "0.1.0"

__all__ = ["GRU", "GRUCell", "Plan", "accelerate", "check", "convert", "restore"]
