"""Launches of ``step``: one or two for each time step of a layer. In a fused step, they also project."""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from ..kernels.step import Cut, step_scan, whole_step
from ..plan.config import StepConfig
from ..plan.problem import Problem
from ..reference import WEIGHT_NAMES
from .kernel_launch import Launch
from .scan import Scan, common_constants


class States:
    """The states that ``step`` reads and writes besides those of `Scan`.

    Attributes:
        rounded: the two states of the carry, rounded to the dtype of the products. In float32 it is the carry itself.
        r_h: r * h [directions, B, H], which the first launch of a step with ``reset_after=False`` leaves to the
            second. With ``reset_after=True`` a placeholder, which no kernel reads.
    """

    def __init__(
        self, problem: Problem, carry: Sequence[Tensor], rounded: Sequence[Tensor], new: Callable[..., Tensor]
    ):
        self.rounded, self.r_h = rounded, rounded[0]
        if not problem.reset_after:
            self.r_h = new(rounded[0], problem.directions, problem.batch_size, problem.hidden_size)
        self._carry = carry

    def select(self, parity: int) -> tuple[Tensor, ...]:
        """Return the state arguments of a step that reads the carry at index ``parity`` and writes it at the other."""
        before, after = parity, 1 - parity
        carry, rounded = self._carry, self.rounded
        return carry[before], carry[after], rounded[before], rounded[after], self.r_h


def launches(scan: Scan, config: StepConfig, states: States) -> Iterator[Launch]:
    """Yield the launches of a chunk of steps, one or two for each step. After each step ``scan.parity`` is flipped."""
    cuts = [cut(config, scan.problem, part) for part in _launch_parts(scan)]
    for step in range(scan.steps):
        for launch_cut in cuts:
            yield Launch(
                step_scan,
                config.launch_grid(scan.batch, len(scan.weights)),
                (
                    scan.gi, *scan.select_weights("weight_hh", "bias_hh"), scan.initial_state,
                    *states.select(scan.parity), scan.out, scan.h_n, *scan.sequence_tensors,
                    step, scan.steps, scan.start, scan.total, scan.first_state, scan.batch, *scan.out_strides,
                ),
                {
                    "cut": launch_cut, "call": scan.call_constants,
                    "num_warps": config.num_warps, "num_stages": config.num_stages,
                },
            )  # fmt: skip
        scan.parity ^= 1


def fused_step_launches(scan: Scan, x: Tensor, config: StepConfig, states: States) -> Iterator[Launch]:
    """Yield the launches of one step of one layer, which also project ``x`` [B, I].

    There is one launch, or two with ``reset_after=False``.
    """
    batch, inputs = x.shape
    # The stride of a dimension of size 1 may have any value, which must not decide what is compiled.
    row_stride, feature_stride = x.stride(0) if batch > 1 else inputs, x.stride(1) if inputs > 1 else 1
    for part in _launch_parts(scan):
        yield Launch(
            whole_step,
            config.launch_grid(scan.batch, len(scan.weights)),
            (
                x, *scan.select_weights(*WEIGHT_NAMES), scan.initial_state, *states.select(scan.parity),
                scan.out, scan.h_n, scan.start, scan.total, scan.first_state, batch,
                row_stride, feature_stride, scan.out.stride(-2),
            ),
            {
                "I": inputs, "HAS_BIAS": scan.has_bias, "HAS_HX": scan.hx is not None,
                "cut": cut(config, scan.problem, part),
                "num_warps": config.num_warps, "num_stages": config.num_stages,
            },
        )  # fmt: skip


def _launch_parts(scan: Scan) -> tuple[str, ...]:
    """Return the part of a step that each of its launches computes.

    With ``reset_after=False`` there are two launches, because ``"rest"`` needs r * h of all programs of ``"reset"``.
    """
    return ("all",) if scan.problem.reset_after else ("reset", "rest")


def cut(config: StepConfig, problem: Problem, part: str) -> Cut:
    """Return the constants that the kernel is compiled for. ``part`` is one of `_launch_parts`."""
    return Cut.of(
        **common_constants(problem),
        PART=part,
        UNITS=config.units,
        BATCH=config.batch,
        DEPTH=config.depth,
        SLICES=config.slices,
    )
