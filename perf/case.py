"""A case: a GRU and the shape of its input. A sweep times its providers on each of its cases."""

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
        """Return the batch in float64, as `Tensor.double` does for a tensor."""
        return self._replace(padded=self.padded.double())


Input = Tensor | PackedSequence | Ragged
# Calls take this many inputs in turn, so that successive calls read different memory.
INPUT_COUNT = 4
# Two inputs are enough if each has at least this many steps or bytes, because they take much time or memory.
LONG_STEPS, LARGE_BYTES, LARGE_INPUT_COUNT = 1024, 1 << 28, 2


@dataclass(frozen=True)
class Case:
    """A GRU and the shape of its input.

    Attributes:
        precision: a key of `PRECISIONS` in triton_gru.accuracy.
        layout: as in `Problem`. "packed" is a PackedSequence and "lengths" a `Ragged`. The property `lengths` has the
            steps of each sequence.
        input_size: None means the hidden size. The property `inputs` has the size.
        is_streaming: whether a call computes one frame: one step from the state that the previous call left.
        reset_after: False means the GRU that resets before the recurrent product, which torch lacks.
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
        """Return the precision and the sizes, followed by the attributes that differ from their defaults."""
        texts = [f"{self.precision} H={self.hidden} B={self.batch} T={self.steps}"]
        texts += [f"I={self.inputs}"] * (self.inputs != self.hidden)
        counts = {"layers": self.layers, "directions": self.directions}
        texts += [f"{name}={count}" for name, count in counts.items() if count > 1]
        texts += [self.layout] * (self.layout != "dense") + ["streaming"] * self.is_streaming
        texts += ["reset before"] * (not self.reset_after)
        return " ".join(texts)

    @property
    def inputs(self) -> int:
        """Return the input size."""
        return self.hidden if self.input_size is None else self.input_size

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the inputs and the weights."""
        return PRECISIONS[self.precision][0]

    def make_row(self, provider: str = "", mode: str = Row.mode, l2: str = "") -> Row:
        """Return a row without times, with the columns of the case, the provider, the mode and the L2 filled in.

        In mode "graph" the row's provider is ``provider`` with "+graph" appended. For ``l2`` see `measure.Conditions`.
        """
        return Row(
            provider=f"{provider}+graph" if mode == "graph" else provider, mode=mode, l2=l2,
            dtype=str(self.dtype).removeprefix("torch."), precision=self._fp32_precision or "",
            T=self.steps, B=self.batch, I=self.inputs, H=self.hidden,
            layers=self.layers, directions=self.directions, layout=self.layout,
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
        """Return the precision of fp32 products, "tf32" or "ieee". Return None if the case computes in 16 bits."""
        return PRECISIONS[self.precision][1] if self.dtype == torch.float32 else None

    def pin_precision(self) -> contextlib.AbstractContextManager:
        """Return a context in which torch's fp32 products, also of recurrent networks, have the case's precision.

        Exception: for a case in 16 bits they are in TF32.
        """
        return pin_fp32_precision(*PRECISIONS[self.precision])

    def make_gru(self, device: str) -> nn.GRU:
        """Return a new GRU of the case's sizes in eval(), with random weights.

        The GRU is an `nn.GRU`. Exception: for ``reset_after=False``, which `nn.GRU` lacks, it is ours with the
        backend "reference", which computes by plain torch.
        """
        options = {"bidirectional": self.directions == 2, "device": device, "dtype": self.dtype}
        if not self.reset_after:
            options |= {"reset_after": False, "backend": "reference"}
        gru_class = nn.GRU if self.reset_after else triton_gru.GRU
        return gru_class(self.inputs, self.hidden, self.layers, **options).eval()

    def draw_inputs(self, device: str) -> list[Input]:
        """Return `INPUT_COUNT` random inputs of the case's layout, or `LARGE_INPUT_COUNT` long or large ones.

        Calls use them in turn. For a stream, the inputs are its frames in their order.
        """
        input_bytes = self.total_steps * self.inputs * self.dtype.itemsize
        is_large = self.steps >= LONG_STEPS or input_bytes >= LARGE_BYTES
        count = LARGE_INPUT_COUNT if is_large else INPUT_COUNT
        shape = self.steps, self.batch, self.inputs
        inputs = [torch.randn(shape, device=device, dtype=self.dtype) for _ in range(count)]
        if self.layout == "packed":
            return [pack_padded_sequence(x, self.lengths) for x in inputs]
        lengths = torch.tensor(self.lengths, device=device)
        return [Ragged(x, lengths) for x in inputs] if self.layout == "lengths" else inputs
