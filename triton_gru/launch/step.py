"""What ``step`` is launched with: a launch a time step, or all of a call of one step."""

from collections.abc import Callable, Iterator

from torch import Tensor

from ..kernels.step import Cut, step_scan, whole_step
from ..plan.config import StepConfig
from ..plan.problem import Problem
from .kernel_launch import Launch
from .scan import Scan, common_constants


class States:
    """The states that a step reads and writes beside those of `Scan`.

    Attributes:
        rounded: the carry as the product's operand, of its shape; the carry itself in float32.
        reset: r h between the two launches of a step to reset before, [directions, B, H]. A placeholder otherwise.
    """

    def __init__(self, problem: Problem, carry: Tensor, rounded: Tensor, new: Callable[..., Tensor]):
        self.rounded, self.reset = rounded, rounded
        if not problem.reset_after:
            self.reset = new(rounded, problem.directions, problem.batch_size, problem.hidden_size)
        self._carry = carry

    def of(self, parity: int) -> tuple[Tensor, ...]:
        """Return the arguments of a step whose state comes in at ``parity``."""
        before, after = parity, 1 - parity
        carry, rounded = self._carry, self.rounded
        return carry[before], carry[after], rounded[before], rounded[after], self.reset


def launches(scan: Scan, config: StepConfig, states: States) -> Iterator[Launch]:
    """Yield the launches of a chunk of steps. Parities change from step to step."""
    cuts = [cut(config, scan.problem, part) for part in _parts(scan)]
    for step in range(scan.steps):
        for each in cuts:
            yield Launch(
                step_scan,
                config.launch_grid(scan.batch, len(scan.weights)),
                (
                    scan.gi, *scan.select_weights(1, 3), scan.initial, *states.of(scan.parity),
                    scan.out, scan.h_n, *scan.ends, step, scan.steps, scan.start, scan.total, scan.first_state,
                    scan.batch, *scan.out_strides,
                ),
                {
                    "cut": each, "call": scan.call_constants,
                    "num_warps": config.num_warps, "num_stages": config.num_stages,
                },
            )  # fmt: skip
        scan.parity ^= 1


def fused_step_launches(scan: Scan, x: Tensor, config: StepConfig, states: States) -> Iterator[Launch]:
    """Yield all of a step, the projection of ``x`` [B, I] included: one launch, or two to reset before."""
    batch, inputs = x.shape
    for part in _parts(scan):
        yield Launch(
            whole_step,
            config.launch_grid(scan.batch, len(scan.weights)),
            (
                x, *scan.select_weights(0, 1, 2, 3), scan.initial, *states.of(scan.parity),
                scan.out, scan.h_n, scan.start, scan.total, scan.first_state, batch,
                x.stride(0) if batch > 1 else inputs, x.stride(1) if inputs > 1 else 1, scan.out.stride(-2),
            ),
            {
                "I": inputs, "HAS_BIAS": scan.has_bias, "HAS_HX": scan.hx is not None,
                "cut": cut(config, scan.problem, part),
                "num_warps": config.num_warps, "num_stages": config.num_stages,
            },
        )  # fmt: skip


def _parts(scan: Scan) -> tuple[str, ...]:
    """Return the launches of a step. The second one's product is of what all programs of the first have made."""
    return ("all",) if scan.problem.reset_after else ("reset", "rest")


def cut(config: StepConfig, problem: Problem, part: str) -> Cut:
    """Return what the kernel is compiled for."""
    return Cut.of(
        **common_constants(problem),
        PART=part,
        UNITS=config.units,
        BATCH=config.batch,
        DEPTH=config.depth,
        SLICES=config.slices,
    )
