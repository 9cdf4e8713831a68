"""Descriptions of a call: `Problem` for plans, `Shape` for a kernel's configuration, `Key` for tables."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..deprecated import rename_attributes
from ..units import format_count
from .device import Device

# The dtypes that kernels compute in, by name.
DTYPES = {str(dtype)[6:]: dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}
LAYOUTS = ("dense", "lengths", "packed")  # values of `Problem.layout`


def describe_dtype(dtype: str, precision: str) -> str:
    """Return a dtype's name. float32 includes the precision of products if that is not empty: ``"float32 (TF32)"``."""
    has_precision = dtype == "float32" and precision
    return f"{dtype} ({'TF32' if precision == 'tf32' else precision})" if has_precision else dtype


@rename_attributes(
    obstacle="unsupported_reason", cublas_obstacle="cublas_unsupported_reason",
    reason_against_torch="nn_gru_unsupported_reason", ieee="is_ieee", single_step="is_single_step", on="shape_on",
)  # fmt: skip
@dataclass(frozen=True)
class Problem:
    """A call, as plans describe it.

    Attributes:
        steps, batch_size: T and B of the input. For packed input, the longest length and the number of sequences.
        precision: precision of products of fp32 numbers, ``"tf32"`` or ``"ieee"``, from torch's setting for recurrent
            networks. With other dtypes ``"ieee"``. It is '' only in reports of a plan without a device.
        layout: ``"dense"``, ``"lengths"`` (dense, with a length for each sequence) or ``"packed"``.
        resets: whether the call has ``resets``, which restart sequences between steps.
        unsupported_reason: why no kernel can serve the call, if the cause is in no other field (grad mode, ...), or ''.
        cublas_unsupported_reason: why torch's settings exclude the input projection by cuBLAS, or ''.
    """

    steps: int
    batch_size: int
    input_size: int
    hidden_size: int
    num_layers: int
    bidirectional: bool
    dtype: torch.dtype
    precision: str
    reset_after: bool
    reverse: bool = False
    layout: str = "dense"
    resets: bool = False
    unsupported_reason: str = ""
    cublas_unsupported_reason: str = ""

    @property
    def directions(self) -> int:
        """Return the number of directions, 1 or 2."""
        return 2 if self.bidirectional else 1

    @property
    def input_sizes(self) -> list[tuple[int, int]]:
        """Return pairs of an input size and the number of layers that have it.

        Layers above the first read the output of the layer below.
        """
        layers_above = self.num_layers - 1
        return [(self.input_size, 1)] + [(self.directions * self.hidden_size, layers_above)] * (layers_above > 0)

    @property
    def is_ieee(self) -> bool:
        """Return whether products are of fp32 numbers, not rounded to TF32."""
        return self.dtype == torch.float32 and self.precision == "ieee"

    @property
    def is_empty(self) -> bool:
        """Return whether the batch or a number of features is 0. For such a call nothing is compiled or timed."""
        return min(self.batch_size, self.input_size, self.hidden_size) < 1

    @property
    def is_single_step(self) -> bool:
        """Return whether the call is one step of dense input without resets.

        The kernel ``step`` computes such a call without a separate launch for the projection.
        """
        return self.steps == 1 and self.layout == "dense" and not self.resets

    @property
    def nn_gru_unsupported_reason(self) -> str:
        """Return why `torch.nn.GRU` cannot serve the call, or ''."""
        if not self.reset_after:
            return "nn.GRU always resets after the recurrent product"
        return "nn.GRU cannot reset the state within a sequence" if self.resets else ""

    def shape_on(self, device: Device) -> "Shape":
        """Return the sizes, dtype, precision and device that the heuristic's configurations depend on."""
        return Shape(self.hidden_size, self.batch_size, self.directions, self.dtype, self.precision, device)

    def key(self) -> "Key":
        """Return the table key of this problem, with the batch rounded up to a power of two."""
        return Key(
            self.hidden_size, self.input_size, 1 << (max(self.batch_size, 1) - 1).bit_length(), self.steps,
            self.num_layers, self.directions, str(self.dtype)[6:], self.precision, self.reset_after, self.layout,
        )  # fmt: skip

    def __str__(self) -> str:
        """Return sizes and options as text: ``"T=64 B=8 I=256 H=256, 1 layer, float16"``."""
        parts = [
            f"T={self.steps} B={self.batch_size} I={self.input_size} H={self.hidden_size}",
            format_count(self.num_layers, "layer"),
            "bidirectional" if self.bidirectional else "reverse=True" if self.reverse else "",
            {"lengths": "with lengths", "packed": "packed"}.get(self.layout, ""),
            "with resets" if self.resets else "",
            describe_dtype(str(self.dtype)[6:], self.precision),
            "" if self.reset_after else "reset_after=False",
        ]
        return ", ".join(filter(None, parts))


class Shape(NamedTuple):
    """A time step of one layer, and the device. The heuristic's configurations depend on nothing else."""

    hidden_size: int
    batch_size: int
    directions: int
    dtype: torch.dtype
    precision: str
    device: Device

    @property
    def itemsize(self) -> int:
        """Return the bytes of an element of the dtype."""
        return self.dtype.itemsize

    @property
    def is_ieee(self) -> bool:
        """Return whether products are of fp32 numbers, not rounded to TF32."""
        return self.dtype == torch.float32 and self.precision == "ieee"

    @property
    def dtype_text(self) -> str:
        """Return the dtype as text, with the precision of products: ``"float32 (TF32)"``."""
        return describe_dtype(str(self.dtype)[6:], self.precision)


@dataclass(frozen=True)
class Key:
    """A key of a tuned table: the problems that a measurement holds for.

    Attributes:
        batch: the batch size, rounded up to a power of two.
        steps: time steps of the measured sequences.
    """

    hidden_size: int
    input_size: int
    batch: int
    steps: int
    layers: int
    directions: int
    dtype: str
    precision: str
    reset_after: bool
    layout: str

    def to_problem(self) -> Problem:
        """Return the problem of the key: the largest batch that the measurement holds for, at the measured steps.

        Raises:
            ValueError: no kernel serves this dtype or number of directions, which come from a file.
        """
        if self.dtype not in DTYPES or self.directions not in (1, 2):
            raise ValueError(f"no kernel serves {self.dtype} in {self.directions} directions")
        return Problem(
            self.steps, self.batch, self.input_size, self.hidden_size, self.layers, self.directions == 2,
            DTYPES[self.dtype], self.precision, self.reset_after, layout=self.layout,
        )  # fmt: skip

    def __str__(self) -> str:
        """Return the key as text: ``"float16 H=256 I=256 B<=8 T=64"``."""
        dtype_text = describe_dtype(self.dtype, self.precision)
        return (
            f"{dtype_text} H={self.hidden_size} I={self.input_size} B<={self.batch} T={self.steps}{self.options_text}"
        )

    @property
    def options_text(self) -> str:
        """Return the options that are not the default, each after a space: ``" 2 layers bidirectional"``."""
        options = [format_count(self.layers, "layer")] * (self.layers > 1) + ["bidirectional"] * (self.directions == 2)
        options += ["reset_after=False"] * (not self.reset_after) + [self.layout] * (self.layout != "dense")
        return "".join(f" {option}" for option in options)
