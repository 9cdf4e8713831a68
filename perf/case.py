"""What is computed: one cell of a sweep, and the module and inputs that stand for it."""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from triton_gru.accuracy import PRECISIONS

from .record import STREAMING, Row

Input = Tensor | PackedSequence
ROTATED = 4
# Inputs as long or as large as these outgrow every cache, and cost memory and time to make ready.
LONG, LARGE = 1024, 1 << 28
HUGE = 1 << 31  # from here on the results and workspaces of all providers together would fill a GPU


@dataclass(frozen=True)
class Case:
    """A GRU with as many inputs as hidden units.

    Attributes:
        precision: one of triton_gru.accuracy.
        packed: the input is a PackedSequence of sequences as long as `lengths` says.
        streaming: a call is a frame, a step whose state is that of the call before.
    """

    precision: str
    hidden: int
    batch: int
    steps: int
    layers: int = 1
    directions: int = 1
    packed: bool = False
    streaming: bool = False

    def __str__(self) -> str:
        words = [f"{self.precision} H={self.hidden} B={self.batch} T={self.steps}"]
        words += [f"{name}={n}" for name, n in (("layers", self.layers), ("directions", self.directions)) if n > 1]
        words += [name for name, so in (("packed", self.packed), ("streaming", self.streaming)) if so]
        return " ".join(words)

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision][0]

    def row(self) -> Row:
        """With the columns that say what is computed."""
        return Row(
            dtype=str(self.dtype)[6:], precision=self._fp32_precision or "", T=self.steps, B=self.batch,
            I=self.hidden, H=self.hidden, layers=self.layers, directions=self.directions, packed=self.packed,
            variant=STREAMING if self.streaming else Row.variant,
        )  # fmt: skip

    @property
    def lengths(self) -> list[int]:
        """Steps of each sequence, the longest first, which has T: packed, the others between a quarter of T and T.

        They are the same for all providers and runs.
        """
        if not self.packed:
            return [self.steps] * self.batch
        drawn = random.Random(0)
        others = [drawn.randint(-(-self.steps // 4), self.steps) for _ in range(self.batch - 1)]
        return sorted([self.steps, *others], reverse=True)

    @property
    def batch_sizes(self) -> list[int]:
        """Sequences that have each of the T steps."""
        if not self.packed:
            return [self.batch] * self.steps
        lengths = self.lengths
        return [sum(length > step for length in lengths) for step in range(self.steps)]

    @property
    def total_steps(self) -> int:
        """Of all sequences together."""
        return sum(self.lengths)

    @property
    def _fp32_precision(self) -> str | None:
        return PRECISIONS[self.precision][1] if self.dtype == torch.float32 else None

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """torch's precision of fp32 products is the case's, in recurrent networks and everywhere else.

        In 16 bits it is TF32, torch's default for recurrent networks: with "ieee" torch forbids cuDNN the tensor cores
        for bf16, too.
        """
        precision = self._fp32_precision or "tf32"
        recurrent, products = torch.backends.cudnn.rnn, torch.backends.cuda.matmul
        before = recurrent.fp32_precision, products.fp32_precision
        recurrent.fp32_precision = precision
        products.allow_tf32 = precision == "tf32"  # sets fp32_precision, too; where they differ reading this one raises
        try:
            yield
        finally:
            recurrent.fp32_precision, products.allow_tf32 = before[0], before[1] == "tf32"
            products.fp32_precision = before[1]

    @property
    def _input_bytes(self) -> int:
        return self.total_steps * self.hidden * self.dtype.itemsize

    def measured_together(self, providers: list[str]) -> list[list[str]]:
        """Providers in groups that take turns: all, or each by itself where memory is short."""
        return [[provider] for provider in providers] if self._input_bytes >= HUGE and providers else [providers]

    def module(self, device: str) -> nn.GRU:
        """Fresh, with weights that are flattened as cuDNN likes them."""
        both = self.directions == 2
        return nn.GRU(self.hidden, self.hidden, self.layers, bidirectional=both, device=device, dtype=self.dtype).eval()

    def inputs(self, device: str) -> list[Input]:
        """[T, B, I] each, or packed, to be used in turn; frames of one stream."""
        number = ROTATED if self.steps < LONG and self._input_bytes < LARGE else 2
        shape = (self.total_steps, self.hidden) if self.packed else (self.steps, self.batch, self.hidden)
        inputs = [torch.randn(shape, device=device, dtype=self.dtype) for _ in range(number)]
        return [PackedSequence(x, torch.tensor(self.batch_sizes)) for x in inputs] if self.packed else inputs


@dataclass(frozen=True)
class Counts:
    """Of one layer of a recurrent cell, in torch's form with two biases a gate.

    Attributes:
        flops: of a time step and batch row: of the products, two for each weight, and no activations.
        weight_bytes: of W_hh, which a step cannot do without.
    """

    parameters: int
    flops: int
    weight_bytes: int


def counts(gates: int, inputs: int, hidden: int, itemsize: int) -> Counts:
    weights = gates * hidden * (inputs + hidden)
    return Counts(weights + 2 * gates * hidden, 2 * weights, gates * hidden**2 * itemsize)
