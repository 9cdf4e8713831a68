"""Arguments that all scan kernels share, for one layer and one chunk of time steps at a time."""

from collections.abc import Sequence

import torch
import triton.language as tl
from torch import Tensor

from ..call.sequences import Sequences
from ..kernels.constants import CallConstants
from ..plan.problem import Problem
from ..reference import WEIGHT_NAMES, LayerWeights


class Scan:
    """The recurrence of a call, at one layer and one chunk of time steps.

    `begin_layer` moves it to a layer, and `move_to_chunk` to a chunk of the layer's steps.

    Attributes:
        problem: the problem that is computed.
        layout: the layout of the input, as in `Problem`.
        total: time steps of the call.
        batch: batch size.
        lengths, offsets: those of `Sequences`, or a placeholder, which no kernel reads.
        hx: initial state [layers * directions, B, H] with unit stride in H (``step``: contiguous), or None for zeros.
        h_n: last state [layers * directions, B, H], which the last chunk writes.
        carry: two states between launches, float32 [layers * directions, B, H]. A launch reads index ``parity`` and
            writes the other. Exception: ``block`` has one state, which it reads and overwrites. In a call that is a
            fused step (`is_fused_step`), the states are empty.
        weights: for each direction w_ih [3H, I], w_hh [3H, H], b_ih [3H] and b_hh [3H] of the layer. An absent bias is
            a placeholder, which no kernel reads.
        has_bias: whether the layer has biases.
        out: the layer's states, [T, B, directions * H] or packed [N, directions * H]. In a frame of `Stream`: [B, H].
        first_state: index of the layer's first state in ``hx``, ``carry`` and ``h_n``.
        gi: gate inputs of the chunk, [directions, ``steps``, batch tiles, 3, ...] in memory. The last two dimensions
            are padded units and rows (``block``), or rows and padded units. The tensor may have memory for more steps.
        start, steps: first time step of the chunk, in the order of the scan, and the number of its steps.
        parity: index in ``carry`` of the state that the next launch reads.
    """

    def __init__(
        self,
        problem: Problem,
        sequences: Sequences,
        hx: Tensor | None,
        carry: Sequence[Tensor],
        h_n: Tensor,
        resets: Tensor | None = None,
    ):
        self.problem = problem
        self.layout, self.total, self.batch = sequences.layout, sequences.steps, sequences.batch_size
        self.hx, self.carry, self.h_n = hx, carry, h_n
        placeholder = h_n  # A kernel reads an optional tensor only if its constants say that the tensor is present.
        self.lengths = placeholder if sequences.lengths is None else sequences.lengths
        self.offsets = placeholder if sequences.offsets is None else sequences.offsets
        self._resets = placeholder if resets is None else resets
        self._has_resets = resets is not None

    def begin_layer(self, layer: int, weights: list[LayerWeights], out: Tensor) -> None:
        """Move to the first step of a layer. ``weights`` are its weights for each direction."""
        self.has_bias = weights[0][3] is not None
        self.weights = [
            (w_ih, w_hh, w_ih if b_ih is None else b_ih, w_hh if b_hh is None else b_hh)
            for w_ih, w_hh, b_ih, b_hh in weights
        ]
        self.out, self.parity = out, 0
        self.first_state = layer * self.problem.directions
        self.start = 0

    def move_to_chunk(self, gi: Tensor, start: int, steps: int) -> None:
        """Move to the chunk of ``steps`` time steps from ``start``, whose gate inputs are in ``gi``."""
        self.gi, self.start, self.steps = gi, start, steps

    def set_middle_step(self, parity: int) -> None:
        """Move to a step in the middle of a call, which reads its state from ``carry[parity]`` and writes the other.

        Step 1 of 3 is such a step: the first step would read ``hx``, and the last step writes ``h_n``.
        """
        self.parity, self.start, self.total = parity, 1, 3

    def select_weights(self, *names: str) -> list[Tensor]:
        """Return the weights of these names, such as ``"weight_hh"``, of the forward direction, then of the backward.

        If the layer has one direction, its weights are returned twice, as a kernel takes two of each.
        """
        indices = [WEIGHT_NAMES.index(name) for name in names]
        return [weights[i] for weights in (self.weights[0], self.weights[-1]) for i in indices]

    @property
    def initial_state(self) -> Tensor:
        """Return the initial state, or a placeholder, which no kernel reads."""
        return self.h_n if self.hx is None else self.hx

    @property
    def sequence_tensors(self) -> tuple[Tensor, ...]:
        """Return lengths, offsets and resets: the tensors that tell where sequences begin, end and restart."""
        return self.lengths, self.offsets, self._resets

    @property
    def call_constants(self) -> CallConstants:
        """Return the constants of the call that each scan kernel is compiled for, in any configuration."""
        return CallConstants.of(
            LAYOUT=self.layout,
            REVERSE=self.problem.reverse,
            HAS_BIAS=self.has_bias,
            HAS_HX=self.hx is not None,
            HAS_RESETS=self._has_resets,
        )

    @property
    def out_strides(self) -> tuple[int, int]:
        """Return the first two strides of ``out``: of time and batch. If it is packed, of rows and features."""
        return self.out.stride(0), self.out.stride(1)

    @property
    def hx_strides(self) -> tuple[int, int]:
        """Return the strides of ``hx`` from state to state and from row to row, or zeros without ``hx``."""
        return (0, 0) if self.hx is None else (self.hx.stride(0), self.hx.stride(1))


def common_constants(problem: Problem) -> dict:
    """Return the values of `kernels.constants.CommonConstants`, by field."""
    return {"DTYPE": triton_type(problem.dtype), "PRECISION": problem.precision, "H": problem.hidden_size}


def triton_type(dtype: torch.dtype) -> tl.dtype:
    """Return the Triton dtype of a torch dtype, which has the same name."""
    return getattr(tl, str(dtype).removeprefix("torch."))
