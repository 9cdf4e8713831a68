"""Fast GRU inference on GPUs: `accelerate` a model, or use `GRU` and `GRUCell` where torch.nn's were.

`tune` finds what is fastest on a GPU and keeps it; `convert` brings weights from elsewhere.
"""

from . import convert
from .modules import GRU, GRUCell
from .plan import Plan
from .swap import accelerate, restore
from .triton_versions import warn_if_untested
from .tuning.shapes import record_shapes, shapes_of
from .tuning.tuner import tune
from .watchdog import check

__version__ = "0.1.0"

warn_if_untested()

__all__ = ["GRU", "GRUCell", "Plan", "accelerate", "check", "convert", "record_shapes", "restore", "shapes_of", "tune"]
