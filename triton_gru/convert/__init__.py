"""Conversion of other libraries' GRUs to this package's modules, and of nn.GRU and nn.GRUCell in both directions.

No file here imports a library other than torch. Exception: when they are called, converters of arrays import numpy, and
`from_onnx` imports onnx.
"""

from .flax import from_flax
from .gates import from_gates
from .keras import from_keras
from .onnx import from_onnx
from .torch import from_torch, to_torch

__all__ = ["from_flax", "from_gates", "from_keras", "from_onnx", "from_torch", "to_torch"]
