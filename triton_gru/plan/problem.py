"""What a plan needs to know of a call: all of it, what a measurement holds for, and what a kernel is configured for."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..deprecated import rename_attributes
from ..units import format_count
from .device import Device

# The dtypes that kernels compute in, by their names.
DTYPES = {str(dtype)[6:]: dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}
LAYOUTS = ("dense", "lengths", "packed")  # of `Problem`


def describe_dtype(dtype: str, precision: str) -> str:
    """Return a dtype by its name, with the precision of products where there is a choice: ``"float32 (TF32)"``."""
    is_told = dtype == "float32" and precision
    return f"{dtype} ({'TF32' if precision == 'tf32' else precision})" if is_told else dtype


@rename_attributes(
    obstacle="unsupported_reason", cublas_obstacle="cublas_unsupported_reason",
    reason_against_torch="nn_gru_unsupported_reason", ieee="is_ieee", single_step="is_single_step", on="shape_on",
)  # fmt: skip
@dataclass(frozen=True)
class Problem:
    """What a plan needs to know of a call.

    Attributes:
        steps, batch_size: T and B of the input; of packed input, the longest length and the number of sequences.
        layout: ``"dense"``, ``"lengths"`` (dense, but each sequence with a length of its own) or ``"packed"``.
        resets: whether sequences restart on the way.
        precision: of products of fp32 numbers, ``"tf32"`` or ``"ieee"``, as torch has it set for recurrent networks.
        unsupported_reason: why no kernel can serve the call, by what is not said here (grad mode, ...); empty if nothing.
        cublas_unsupported_reason: why cuBLAS cannot make the input projection, by torch's settings; empty if nothing.
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
        return 2 if self.bidirectional else 1

    @property
    def input_sizes(self) -> list[tuple[int, int]]:
        """Sizes of layers' inputs, and how many layers have such: above the first they are outputs of the one below."""
        above = self.num_layers - 1
        return [(self.input_size, 1)] + [(self.directions * self.hidden_size, above)] * (above > 0)

    @property
    def is_ieee(self) -> bool:
        """Whether products are of fp32 numbers as they are."""
        return self.dtype == torch.float32 and self.precision == "ieee"

    @property
    def is_empty(self) -> bool:
        """Whether a size is 0, as a batch and the features of a cell may be: there is nothing to compile or to time."""
        return min(self.batch_size, self.input_size, self.hidden_size) < 1

    @property
    def is_single_step(self) -> bool:
        """Whether the call is one step of dense input without resets, which ``step`` makes in one launch."""
        return self.steps == 1 and self.layout == "dense" and not self.resets

    @property
    def nn_gru_unsupported_reason(self) -> str:
        """Why `torch.nn.GRU` cannot serve the call; empty if it can."""
        if not self.reset_after:
            return "nn.GRU always resets after the recurrent product"
        return "nn.GRU does not restart within a sequence" if self.resets else ""

    def shape_on(self, device: Device) -> "Shape":
        """Return what configurations depend on."""
        return Shape(self.hidden_size, self.batch_size, self.directions, self.dtype, self.precision, device)

    def key(self) -> "Key":
        """Return what a measurement of this problem holds for."""
        return Key(
            self.hidden_size, self.input_size, 1 << (max(self.batch_size, 1) - 1).bit_length(), self.steps,
            self.num_layers, self.directions, str(self.dtype)[6:], self.precision, self.reset_after, self.layout,
        )  # fmt: skip

    def __str__(self) -> str:
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
    """What a kernel's configuration depends on: a time step of one layer, and the device."""

    hidden_size: int
    batch_size: int
    directions: int
    dtype: torch.dtype
    precision: str
    device: Device

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def is_ieee(self) -> bool:
        """Whether products are of fp32 numbers as they are."""
        return self.dtype == torch.float32 and self.precision == "ieee"

    @property
    def dtype_text(self) -> str:
        return describe_dtype(str(self.dtype)[6:], self.precision)


@dataclass(frozen=True)
class Key:
    """What a measurement holds for.

    Attributes:
        batch: rows of the batch, up to a power of two.
        steps: of the sequences that were measured.
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
        """Return the largest problem that the measurement holds for.

        Raises:
            ValueError: no kernel serves the dtype or as many directions, which come from a file.
        """
        if self.dtype not in DTYPES or self.directions not in (1, 2):
            raise ValueError(f"no kernel serves {self.dtype} in {self.directions} directions")
        return Problem(
            self.steps, self.batch, self.input_size, self.hidden_size, self.layers, self.directions == 2,
            DTYPES[self.dtype], self.precision, self.reset_after, layout=self.layout,
        )  # fmt: skip

    def __str__(self) -> str:
        numbers = describe_dtype(self.dtype, self.precision)
        return f"{numbers} H={self.hidden_size} I={self.input_size} B<={self.batch} T={self.steps}{self.options_text}"

    @property
    def options_text(self) -> str:
        """Return in words, each after a space, what is not the default: ``" 2 layers bidirectional"``."""
        words = [format_count(self.layers, "layer")] * (self.layers > 1) + ["bidirectional"] * (self.directions == 2)
        words += ["reset_after=False"] * (not self.reset_after) + [self.layout] * (self.layout != "dense")
        return "".join(f" {word}" for word in words)
