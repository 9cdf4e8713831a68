"""What is computed: one cell of a sweep, and the module and inputs that stand for it."""

import contextlib
import random
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import triton_gru
from triton_gru.accuracy import PRECISIONS
from triton_gru.tuning.example import pin_fp32_precision

from .record import RESET_BEFORE, STREAMING, Row


class Ragged(NamedTuple):
    """Sequences [T, B, I] that end at ``lengths`` [B], the longest first. What lies behind an end is not read."""

    padded: Tensor
    lengths: Tensor

    def double(self) -> "Ragged":
        return self._replace(padded=self.padded.double())


Input = Tensor | PackedSequence | Ragged
INPUT_COUNT = 4
# Inputs as long or as large as these outgrow every cache, and cost memory and time to make ready.
LONG, LARGE = 1024, 1 << 28


@dataclass(frozen=True)
class Case:
    """A GRU and the shape of its input.

    Attributes:
        precision: one of triton_gru.accuracy.
        layout: as in `Problem`: "packed" is a PackedSequence, "lengths" a `Ragged`, of sequences as `lengths` says.
        input_size: None for as many inputs as hidden units.
        is_streaming: a call is a frame, a step whose state is that of the call before.
        reset_after: False is the GRU that resets before the recurrent product, which torch has not.
    """

    precision: str
    hidden: int
    batch: int
    steps: int
    layers: int = 1
    directions: int = 1
    layout: str = "dense"
    is_streaming: bool = False
    reset_after: bool = True
    input_size: int | None = None

    def __str__(self) -> str:
        words = [f"{self.precision} H={self.hidden} B={self.batch} T={self.steps}"]
        words += [f"I={self.inputs}"] * (self.inputs != self.hidden)
        words += [f"{name}={n}" for name, n in (("layers", self.layers), ("directions", self.directions)) if n > 1]
        words += [self.layout] * (self.layout != "dense") + ["streaming"] * self.is_streaming
        words += ["reset before"] * (not self.reset_after)
        return " ".join(words)

    @property
    def inputs(self) -> int:
        """Return the input size."""
        return self.hidden if self.input_size is None else self.input_size

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision][0]

    def row(self, provider: str = "", mode: str = Row.mode, l2: str = "") -> Row:
        """Return a row with the columns that say what is computed, by whom and how."""
        return Row(
            provider=f"{provider}+graph" if mode == "graph" else provider, mode=mode, l2=l2,
            dtype=str(self.dtype)[6:], precision=self._fp32_precision or "", T=self.steps, B=self.batch,
            I=self.inputs, H=self.hidden, layers=self.layers, directions=self.directions, layout=self.layout,
            variant=STREAMING if self.is_streaming else Row.variant if self.reset_after else RESET_BEFORE,
        )  # fmt: skip

    @property
    def lengths(self) -> list[int]:
        """Return the steps of each sequence, the longest first, which has T. Others have a quarter of T to T.

        In the layout "dense" all have T. The lengths are the same for all providers and runs.
        """
        if self.layout == "dense":
            return [self.steps] * self.batch
        drawn = random.Random(0)
        others = [drawn.randint(-(-self.steps // 4), self.steps) for _ in range(self.batch - 1)]
        return sorted([self.steps, *others], reverse=True)

    @property
    def total_steps(self) -> int:
        """Return the steps of all sequences together."""
        return sum(self.lengths)

    @property
    def _fp32_precision(self) -> str | None:
        return PRECISIONS[self.precision][1] if self.dtype == torch.float32 else None

    def pinned(self) -> contextlib.AbstractContextManager:
        """Set torch's precision of fp32 products to the case's, in recurrent networks and everywhere else."""
        return pin_fp32_precision(*PRECISIONS[self.precision])

    def module(self, device: str) -> nn.GRU:
        """Return a fresh GRU in eval(): torch's, or in plain torch ours that resets before.

        torch flattens its weights as cuDNN likes them, but for bf16: there it compacts them anew on every call.
        """
        options = {"bidirectional": self.directions == 2, "device": device, "dtype": self.dtype}
        if not self.reset_after:
            options |= {"reset_after": False, "backend": "reference"}
        gru = nn.GRU if self.reset_after else triton_gru.GRU
        return gru(self.inputs, self.hidden, self.layers, **options).eval()

    def draw(self, device: str) -> list[Input]:
        """Draw inputs of the case's layout, to be used in turn. For a stream they are its frames."""
        input_bytes = self.total_steps * self.inputs * self.dtype.itemsize
        number = INPUT_COUNT if self.steps < LONG and input_bytes < LARGE else 2
        shape = self.steps, self.batch, self.inputs
        drawn = [torch.randn(shape, device=device, dtype=self.dtype) for _ in range(number)]
        if self.layout == "packed":
            return [pack_padded_sequence(x, self.lengths) for x in drawn]
        lengths = torch.tensor(self.lengths, device=device)
        return [Ragged(x, lengths) for x in drawn] if self.layout == "lengths" else drawn
