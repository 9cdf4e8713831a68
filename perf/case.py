"""A case: the GRU and the shape that one cell of a sweep times, with its module and inputs."""

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
    """A batch of sequences [T, B, I] that end at ``lengths`` [B], longest first. Steps after an end are not read."""

    padded: Tensor
    lengths: Tensor

    def double(self) -> "Ragged":
        return self._replace(padded=self.padded.double())


Input = Tensor | PackedSequence | Ragged
INPUT_COUNT = 4
# Inputs of this many steps or bytes outgrow every cache, and take much memory and time to prepare. So there are two.
LONG, LARGE = 1024, 1 << 28


@dataclass(frozen=True)
class Case:
    """A GRU and the shape of its input.

    Attributes:
        precision: a key of `PRECISIONS` in triton_gru.accuracy.
        layout: as in `Problem`. "packed" is a PackedSequence and "lengths" a `Ragged`, with the property `lengths`.
        input_size: None for the hidden size.
        is_streaming: a call is a frame, one step from the state that the previous call left.
        reset_after: False is the GRU that resets before the recurrent product, which torch lacks.
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
        """Return a row with the columns of the case, the provider, the mode and the L2 filled in."""
        return Row(
            provider=f"{provider}+graph" if mode == "graph" else provider, mode=mode, l2=l2,
            dtype=str(self.dtype)[6:], precision=self._fp32_precision or "", T=self.steps, B=self.batch,
            I=self.inputs, H=self.hidden, layers=self.layers, directions=self.directions, layout=self.layout,
            variant=STREAMING if self.is_streaming else Row.variant if self.reset_after else RESET_BEFORE,
        )  # fmt: skip

    @property
    def lengths(self) -> list[int]:
        """Return the steps of each sequence, the longest first.

        The first sequence has T steps, the others a quarter of T to T. In the layout "dense" all have T. The lengths
        are the same for all providers and runs.
        """
        if self.layout == "dense":
            return [self.steps] * self.batch
        generator = random.Random(0)
        others = [generator.randint(-(-self.steps // 4), self.steps) for _ in range(self.batch - 1)]
        return sorted([self.steps, *others], reverse=True)

    @property
    def total_steps(self) -> int:
        """Return the sum of the steps of all sequences."""
        return sum(self.lengths)

    @property
    def _fp32_precision(self) -> str | None:
        return PRECISIONS[self.precision][1] if self.dtype == torch.float32 else None

    def pinned(self) -> contextlib.AbstractContextManager:
        """Return a context in which torch's fp32 products, also of recurrent networks, have the case's precision."""
        return pin_fp32_precision(*PRECISIONS[self.precision])

    def module(self, device: str) -> nn.GRU:
        """Return a new GRU in eval(): `nn.GRU`, or for ``reset_after=False`` ours with the backend "reference".

        torch flattens the weights of `nn.GRU` for cuDNN. Exception: bf16, where it compacts them on every call.
        """
        options = {"bidirectional": self.directions == 2, "device": device, "dtype": self.dtype}
        if not self.reset_after:
            options |= {"reset_after": False, "backend": "reference"}
        gru = nn.GRU if self.reset_after else triton_gru.GRU
        return gru(self.inputs, self.hidden, self.layers, **options).eval()

    def draw(self, device: str) -> list[Input]:
        """Draw inputs of the case's layout, which calls use in turn. For a stream they are its frames."""
        input_bytes = self.total_steps * self.inputs * self.dtype.itemsize
        count = INPUT_COUNT if self.steps < LONG and input_bytes < LARGE else 2
        shape = self.steps, self.batch, self.inputs
        inputs = [torch.randn(shape, device=device, dtype=self.dtype) for _ in range(count)]
        if self.layout == "packed":
            return [pack_padded_sequence(x, self.lengths) for x in inputs]
        lengths = torch.tensor(self.lengths, device=device)
        return [Ragged(x, lengths) for x in inputs] if self.layout == "lengths" else inputs
