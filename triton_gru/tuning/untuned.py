"""What a plan takes where there is no table."""

from typing import NamedTuple

from ..plan.cost import call_cost
from ..plan.device import Device
from ..plan.heuristic import HEURISTICS, heuristic
from ..plan.planner import _cheapest
from ..plan.problem import Problem


class Untuned(NamedTuple):
    """A kernel or ``"torch"``, and the estimated milliseconds of a call."""

    kernel: str
    ms: float


def untuned(problem: Problem, device: Device) -> Untuned | None:
    """Return what a plan for ``problem`` takes without any table; None if neither a kernel nor torch's GRU serves."""
    configs = {kernel: heuristic(kernel, problem, device) for kernel in HEURISTICS}
    options = {kernel: (config,) for kernel, config in configs.items() if not isinstance(config, str)}
    if not problem.reason_against_torch:
        options["torch"] = (None,)
    if not options:
        return None
    kernel, _ = _cheapest(options, problem, device)
    cost = call_cost(problem, options[kernel][0], device, in_graph=problem.steps > 1)
    return Untuned(kernel, cost.total / 1000)
