"""Fast GRU inference on GPUs. `accelerate` switches a model; `GRU` and `GRUCell` replace torch.nn's modules.

`tune` measures which kernel is fastest on a GPU, and keeps the result. `convert` takes weights of other libraries.
"""

from . import convert
from ._version import __version__
from .launch.hang import check, raise_if_hung
from .modules import GRU, GRUCell
from .plan.planner import Plan
from .plan.problem import Problem
from .stream import Stream
from .swap import accelerate, restore
from .triton_versions import warn_if_untested
from .tuning.shapes import record_shapes, shapes_of
from .tuning.tuner import tune

warn_if_untested()

__all__ = [
    "GRU", "GRUCell", "Plan", "Problem", "Stream", "__version__", "accelerate", "check", "convert", "raise_if_hung",
    "record_shapes", "restore", "shapes_of", "tune",
]  # fmt: skip
