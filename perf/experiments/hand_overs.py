"""Which hand-over, and which cut, should ``grid`` take? Each as a provider, with a whole GRU around it.

The sweep `hand-overs` measures them beside the library's own choice. The answer decides `GridConfig.handover` and
`GRID_CUTS`.
"""

import dataclasses
import functools
from collections.abc import Callable

from torch import Tensor, nn

from triton_gru.launch import execute
from triton_gru.plan.config import GRID_CUTS, HANDOVERS
from triton_gru.plan.heuristic import grid_config

from ..case import Input
from ..providers.interface import Ready, Unavailable
from ..providers.ours import BackendProvider, bind, describe_plan

_GRID = BackendProvider("grid")


def _prepare(handover: str, cut: tuple[int, ...], gru: nn.GRU, x: Input) -> Ready:
    """Make ``grid`` ready with a hand-over or a cut, where they are not empty, in place of its plan's."""
    ours = _GRID.module(gru)
    plan = _GRID.plan(ours, x)
    problem = plan.problem
    shape = problem.hidden_size, problem.batch_size, problem.directions, problem.dtype, problem.precision
    config = grid_config(*shape, plan.device, (cut,) if cut else GRID_CUTS, (handover,) if handover else ())
    if isinstance(config, str):
        raise Unavailable(config)
    plan = dataclasses.replace(plan, config=config)

    def call(x: Input) -> tuple[Tensor, Tensor]:
        return execute.run(bind(ours, x), plan)  # bound on each call as others are, but not planned

    return Ready(call, **describe_plan(plan))


PROVIDERS: dict[str, Callable] = {each: functools.partial(_prepare, each, ()) for each in HANDOVERS}
PROVIDERS |= {"x".join(map(str, cut)): functools.partial(_prepare, "", cut) for cut in GRID_CUTS}
globals().update(PROVIDERS)  # each is called as perf.experiments.hand_overs:NAME
