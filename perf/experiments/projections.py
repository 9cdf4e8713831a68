"""Providers of the input projection by our kernel and by cuBLAS, in a complete call and alone.

The question is which of the two is faster. A projection alone leaves gate inputs, and no scan runs. The answer decides
the projection's terms in the cost model.
"""

import functools

from torch import Tensor, nn

from triton_gru.call.bind import bind_gru
from triton_gru.launch import execute
from triton_gru.launch.kernel_launch import Launch, Product
from triton_gru.plan.config import CUBLAS, Projection
from triton_gru.plan.planner import KERNELS, Plan
from triton_gru.plan.validity import is_fused_step, unsupported_projection_reason

from ..case import Input
from ..providers.interface import Ready, Unavailable, require_padded
from ..providers.ours import BackendProvider, describe_plan

PROJECTIONS = {"ours": None, "cublas": CUBLAS}  # by name, as arguments of `execute.launches`
_PROJECTION_KERNELS = "input_projection", "arrange_products"


def _prepare(projection: Projection | None, is_alone: bool, gru: nn.GRU, x: Input) -> Ready:
    """Return a call with the given projection, ready for inputs like ``x``.

    If ``is_alone``, the call starts only the launches of the projection, and its results are meaningless.
    """
    require_padded(x)
    provider, plan = _choose_plan(projection, gru, x)
    ours = provider.make_gru(gru)

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        bound = bind_gru(ours, x, None)
        results = execute.allocate(bound)
        launches = execute.launches(bound, plan.config, plan.device, *results, projection=projection)
        execute.start(filter(_is_projection, launches) if is_alone else launches)
        return results

    description = describe_plan(plan)
    description["kernel"] = f"{plan.kernel}{'+cublas' if projection else ''}"
    return Ready(call, **description, is_judged=not is_alone)


def _choose_plan(projection: Projection | None, gru: nn.GRU, x: Tensor) -> tuple[BackendProvider, Plan]:
    """Return a provider of ours that can run with this projection, and its plan: "auto", or else the first kernel.

    Raises:
        Unavailable: none can. The message has the reason for each.
    """
    reasons = {}
    for backend in ("auto", *KERNELS):
        provider = BackendProvider(backend)
        try:
            plan = provider.plan(provider.make_gru(gru), x)
        except Unavailable as error:
            reasons[backend] = str(error)
            continue
        if plan.config is None:
            reasons[backend] = f"{plan.kernel} serves the call"
        elif is_fused_step(plan.config, plan.problem):
            reasons[backend] = "a single step has no projection of its own"
        elif reason := unsupported_projection_reason(projection, plan.config, plan.problem, plan.device):
            reasons[backend] = reason
        else:
            return provider, plan
    raise Unavailable("; ".join(f"{backend}: {reason}" for backend, reason in reasons.items()))


def _is_projection(launch: Launch | Product) -> bool:
    """Return whether a launch of a call belongs to the input projection."""
    return isinstance(launch, Product) or launch.kernel.__name__ in _PROJECTION_KERNELS


PROVIDERS = {
    f"{name}{'-alone' * is_alone}": functools.partial(_prepare, projection, is_alone)
    for name, projection in PROJECTIONS.items()
    for is_alone in (False, True)
}
globals().update(PROVIDERS)  # so that perf.experiments.projections:NAME is a provider
