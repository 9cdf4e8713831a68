"""Our providers: the library with the backend "auto" and with each kernel by name, and its launches alone."""

import contextlib
import copy
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import triton_gru
from triton_gru.call.bind import Call, bind_gru
from triton_gru.call.options import Options
from triton_gru.launch import call_cache, hang
from triton_gru.launch.prepared import PreparedCall
from triton_gru.plan.config import GridConfig, ProjectionConfig
from triton_gru.plan.device import Device, find_device
from triton_gru.plan.planner import KERNELS, Plan, choose
from triton_gru.plan.problem import Problem
from triton_gru.tuning.example import shorten_problem
from triton_gru.tuning.space import Candidate

from ..case import Case, Input, Ragged
from ..gpu import wait_for_gpu
from ..record import config_text
from .interface import Ready, Unavailable, require_padded


@dataclass(frozen=True)
class BackendProvider:
    """A provider that runs the library with one of its backends: "auto", or a kernel by name."""

    backend: str

    @property
    def name(self) -> str:
        """Return the provider's name."""
        return "triton_gru" if self.backend == "auto" else f"triton_gru.{self.backend}"

    def make_gru(self, gru: nn.GRU) -> triton_gru.GRU:
        """Return the library's GRU with ``gru``'s own Parameters.

        The Parameters are not moved, because CUDA graphs that were captured of ``gru`` read them where they are.
        """
        ours = triton_gru.accelerate(copy.copy(gru))
        ours.backend = self.backend
        return ours

    def plan(self, ours: triton_gru.GRU, x: Input) -> Plan:
        """Return the plan of ``ours(x)``. ``ours`` is from `make_gru`. Raise Unavailable as `choose` does."""
        call = bind(ours, x)
        return self.choose(call.problem, find_device(call.input.device))

    def choose(self, problem: Problem, device: Device | None) -> Plan:
        """Return the plan for a problem.

        Raises:
            Unavailable: the backend cannot serve the problem.
        """
        try:
            return choose(problem, device, self.backend)
        except RuntimeError as error:
            raise Unavailable(str(error)) from error

    def prepare(self, gru: nn.GRU, x: Input) -> Ready:
        """Return the library's GRU with ``gru``'s weights, ready for inputs like ``x``. This is a `Prepare`."""
        ours = self.make_gru(gru)
        plan = self.plan(ours, x)
        if isinstance(x, Ragged):
            return Ready(lambda x: ours(x.padded, lengths=x.lengths), **describe_plan(plan))
        return Ready(ours, **describe_plan(plan))


def bind(ours: triton_gru.GRU, x: Input) -> Call:
    """Return the bound call of ``ours`` with an input of any layout, from a state of zeros."""
    return bind_gru(ours, x.padded, None, x.lengths) if isinstance(x, Ragged) else bind_gru(ours, x, None)


def describe_plan(plan: Plan) -> dict[str, str]:
    """Return the fields of a `Ready` that describe the launches of a plan."""
    config = config_text(plan.config)
    if isinstance(plan.projection, ProjectionConfig):
        config += f" {config_text(plan.projection)}"
    return {"kernel": plan.implementation, "config": config, "config_source": plan.source}


LAUNCHES = "triton_gru.launches"


def prepare_launches(gru: nn.GRU, x: Input, backend: str = "auto") -> Ready:
    """Return only the launches of a call, on memory allocated before, ready for inputs like ``x``.

    The difference to the time of a whole call is the host's other work.
    """
    require_padded(x)
    provider = BackendProvider(backend)
    ours = provider.make_gru(gru)
    plan = provider.plan(ours, x)
    for _ in range(2):  # the library prepares the launches of a signature at its second call
        ours(x)
    route = call_cache.find_route(ours, x, None)
    if not isinstance(route, PreparedCall):
        raise Unavailable("no launches are kept: nn.GRU serves the call, or the call has too many launches")
    bound_calls = {}

    def call(x: Input) -> tuple[Tensor, Tensor]:
        if x.data_ptr() not in bound_calls:
            bound_calls[x.data_ptr()] = route.bind(ours, x, None)
        results, starts, _ = bound_calls[x.data_ptr()]
        for start in starts:
            start()
        return results

    return Ready(call, **describe_plan(plan))


BACKEND_PROVIDERS = [BackendProvider(backend) for backend in ("auto", *KERNELS)]
PROVIDERS = {provider.name: provider.prepare for provider in BACKEND_PROVIDERS} | {LAUNCHES: prepare_launches}


def find_kernels(wanted: Iterable[tuple[Case, Iterable[str]]]) -> list[tuple[Problem, Device, Candidate]]:
    """Return the arguments of `compile_candidate` for each kernel that cases need, without repetitions.

    ``wanted`` has cases with names of providers. Only `BACKEND_PROVIDERS` are considered: `LAUNCHES` runs the
    kernels of "auto", and the others have no plan.
    """
    device, kernels = find_device(torch.device("cuda")), {}
    for case, names in wanted:
        with case.pin_precision():
            options = Options.from_module(case.make_gru("meta"))
            problem = options.to_problem(case.steps, case.batch, case.dtype, layout=case.layout)
        for provider in (provider for provider in BACKEND_PROVIDERS if provider.name in names):
            with contextlib.suppress(Unavailable):  # the run reports the reason
                plan = provider.choose(problem, device)
                config, short = plan.config, dataclasses.replace(shorten_problem(problem), batch_size=1)
                if isinstance(config, GridConfig):
                    config = dataclasses.replace(config, copies=1)  # compiled code does not depend on copies
                if config:
                    kernels[short, device, Candidate(plan.kernel, config, plan.projection)] = None
    return [*kernels]


def get_hang_error() -> str:
    """Wait for the GPU. Return its error, or the error of a launch of the library that gave up waiting, or else ""."""
    try:
        wait_for_gpu()
        hang.raise_if_hung()
    except RuntimeError as error:
        return str(error)
    return ""
