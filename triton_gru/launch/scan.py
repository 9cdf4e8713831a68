"""What every scan kernel is told of a call, one layer and one chunk of time steps at a time."""

import torch
import triton.language as tl
from torch import Tensor

from ..call.sequences import Sequences
from ..kernels.constants import CallConstants
from ..plan.problem import Problem
from ..reference import LayerWeights


class Scan:
    """The recurrence of a call: begun for each layer, moved on for each chunk of its steps.

    Attributes:
        problem: what is computed.
        gi: the gate inputs of the chunk [directions, at least steps, ...], tile by tile as the configuration cuts the
            batch.
        weights: of the layer, for each direction. A bias that is not there is a placeholder, which no kernel reads.
        hx: [layers * directions, B, H], unit stride in H (``step``: contiguous), or None for zeros.
        carry: fp32 [2, layers * directions, B, H], the state between launches. It comes in at ``parity`` and goes out
            at the other, or where it came in if the kernel says so.
        out: where the layer's states go, time first or packed.
        start, steps, total: the chunk's first step, how many they are, and of how many.
    """

    def __init__(
        self,
        problem: Problem,
        sequences: Sequences,
        hx: Tensor | None,
        carry: Tensor,
        h_n: Tensor,
        resets: Tensor | None = None,
    ):
        self.problem = problem
        self.layout, self.total, self.batch = sequences.layout, sequences.steps, sequences.batch_size
        self.hx, self.carry, self.h_n = hx, carry, h_n
        nothing = h_n  # a placeholder for tensors that are not there
        self.lengths = nothing if sequences.lengths is None else sequences.lengths
        self.offsets = nothing if sequences.offsets is None else sequences.offsets
        self._resets = nothing if resets is None else resets
        self._has_resets = resets is not None

    def begin_layer(self, layer: int, weights: list[LayerWeights], out: Tensor) -> None:
        """Begin a layer, at the first step."""
        self.has_bias = weights[0][3] is not None
        self.weights = [
            (w_ih, w_hh, w_ih if b_ih is None else b_ih, w_hh if b_hh is None else b_hh)
            for w_ih, w_hh, b_ih, b_hh in weights
        ]
        self.out, self.parity = out, 0
        self.first_state = layer * self.problem.directions
        self.start = 0

    def move_to_chunk(self, gi: Tensor, start: int, steps: int) -> None:
        """Move on to a chunk of steps."""
        self.gi, self.start, self.steps = gi, start, steps

    def set_middle_step(self, parity: int) -> None:
        """Make the step neither the first nor the last: the state comes from ``carry`` and goes there."""
        self.parity, self.start, self.total = parity, 1, 3

    def select_weights(self, *which: int) -> list[Tensor]:
        """Return the chosen weights (0 w_ih, 1 w_hh, 2 b_ih, 3 b_hh), forward then backward; of one direction twice."""
        return [weights[i] for weights in (self.weights[0], self.weights[-1]) for i in which]

    @property
    def initial(self) -> Tensor:
        return self.h_n if self.hx is None else self.hx

    @property
    def ends(self) -> tuple[Tensor, ...]:
        return self.lengths, self.offsets, self._resets

    @property
    def call_constants(self) -> CallConstants:
        """Return what every scan is compiled for, whatever the configuration."""
        return CallConstants.of(
            LAYOUT=self.layout,
            REVERSE=self.problem.reverse,
            HAS_BIAS=self.has_bias,
            HAS_HX=self.hx is not None,
            HAS_RESETS=self._has_resets,
        )

    @property
    def out_strides(self) -> tuple[int, int]:
        """Return the strides from time to time and from row to row. Packed, the former is that from row to row."""
        return self.out.stride(0), self.out.stride(1)

    @property
    def hx_strides(self) -> tuple[int, int]:
        return (0, 0) if self.hx is None else (self.hx.stride(0), self.hx.stride(1))


def common_constants(problem: Problem) -> dict:
    """Return the values of `constants.CommonConstants`."""
    return {"DTYPE": triton_type(problem.dtype), "PRECISION": problem.precision, "H": problem.hidden_size}


def triton_type(dtype: torch.dtype) -> tl.dtype:
    """Return Triton's name of a torch dtype."""
    return getattr(tl, str(dtype).removeprefix("torch."))
