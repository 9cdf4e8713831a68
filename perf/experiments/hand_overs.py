"""Providers that run ``grid`` in a complete GRU, with each hand-over and with each cut.

The question is which hand-over and which cut ``grid`` should take. The sweep `hand-overs` measures the providers and
the library's own choice. The answer decides `GridConfig.handover` and `GRID_CUTS`.
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
    """Return ``grid`` with a hand-over or a cut instead of the plan's, ready for inputs like ``x``.

    An empty ``handover`` or ``cut`` leaves the choice to the heuristic.
    """
    ours = _GRID.make_gru(gru)
    plan = _GRID.plan(ours, x)
    problem = plan.problem
    shape = problem.hidden_size, problem.batch_size, problem.directions, problem.dtype, problem.precision
    config = grid_config(*shape, plan.device, (cut,) if cut else GRID_CUTS, (handover,) if handover else ())
    if isinstance(config, str):  # the reason why no configuration fits
        raise Unavailable(config)
    plan = dataclasses.replace(plan, config=config)

    def call(x: Input) -> tuple[Tensor, Tensor]:
        return execute.run(bind(ours, x), plan)  # Like other providers, bind on each call. Do not plan again.

    return Ready(call, **describe_plan(plan))


PROVIDERS: dict[str, Callable] = {handover: functools.partial(_prepare, handover, ()) for handover in HANDOVERS}
PROVIDERS |= {"x".join(map(str, cut)): functools.partial(_prepare, "", cut) for cut in GRID_CUTS}
globals().update(PROVIDERS)  # so that perf.experiments.hand_overs:NAME is a provider
