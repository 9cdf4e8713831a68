"""Weights of other libraries' GRUs in this package's modules, and torch's both ways.

None of those libraries is imported but onnx, and that only by `from_onnx`.
"""

from .flax import from_flax
from .gates import from_gates
from .keras import from_keras
from .onnx import from_onnx
from .torch import from_torch, to_torch

__all__ = ["from_flax", "from_gates", "from_keras", "from_onnx", "from_torch", "to_torch"]
