"""The library: as it chooses, and each kernel by name; and what they launch."""

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
from ..record import config_text
from .interface import Ready, Unavailable, require_padded


@dataclass(frozen=True)
class BackendProvider:
    """The library by one of its backends."""

    backend: str

    @property
    def name(self) -> str:
        return "triton_gru" if self.backend == "auto" else f"triton_gru.{self.backend}"

    def module(self, gru: nn.GRU) -> triton_gru.GRU:
        """Return the library's, with ``gru``'s own Parameters where they are: graphs of ``gru`` read them there."""
        ours = triton_gru.accelerate(copy.copy(gru))
        ours.backend = self.backend
        return ours

    def plan(self, ours: triton_gru.GRU, x: Input) -> Plan:
        """Return the plan of a call on ``ours``, a `module` of this. Raises what `choose` raises."""
        call = bind(ours, x)
        return self.choose(call.problem, find_device(call.input.device))

    def choose(self, problem: Problem, device: Device | None) -> Plan:
        """Return the plan for a problem.

        Raises:
            Unavailable: the variant cannot serve it.
        """
        try:
            return choose(problem, device, self.backend)
        except RuntimeError as refusal:
            raise Unavailable(str(refusal)) from refusal

    def prepare(self, gru: nn.GRU, x: Input) -> Ready:
        ours = self.module(gru)
        plan = self.plan(ours, x)
        if isinstance(x, Ragged):
            return Ready(lambda x: ours(x.padded, lengths=x.lengths), **describe_plan(plan))
        return Ready(ours, **describe_plan(plan))


def bind(ours: triton_gru.GRU, x: Input) -> Call:
    return bind_gru(ours, x.padded, None, x.lengths) if isinstance(x, Ragged) else bind_gru(ours, x, None)


def describe_plan(plan: Plan) -> dict[str, str]:
    """Return the fields of a `Ready` that say what a plan launches."""
    config = config_text(plan.config)
    if isinstance(plan.projection, ProjectionConfig):
        config += f" {config_text(plan.projection)}"
    return {"kernel": plan.implementation, "config": config, "config_source": plan.source}


LAUNCHES = "triton_gru.launches"


def prepare_launches(gru: nn.GRU, x: Input, backend: str = "auto") -> Ready:
    """Make ready what the library launches, on memory that is there: a call costs the host this and its own part."""
    require_padded(x)
    variant = BackendProvider(backend)
    ours = variant.module(gru)
    plan = variant.plan(ours, x)
    for _ in range(2):  # a call is prepared at the second of its form
        ours(x)
    found = call_cache.find_route(ours, x, None)
    if not isinstance(found, PreparedCall):
        raise Unavailable("no launches are kept: nn.GRU serves the call, or there are too many")
    made = {}

    def call(x: Input) -> tuple[Tensor, Tensor]:
        if x.data_ptr() not in made:
            made[x.data_ptr()] = found.bind(ours, x, None)
        results, starts, _ = made[x.data_ptr()]
        for start in starts:
            start()
        return results

    return Ready(call, **describe_plan(plan))


VARIANTS = [BackendProvider(backend) for backend in ("auto", *KERNELS)]
PROVIDERS = {variant.name: variant.prepare for variant in VARIANTS} | {LAUNCHES: prepare_launches}


def kernels_of(wanted: Iterable[tuple[Case, Iterable[str]]]) -> list[tuple[Problem, Device, Candidate]]:
    """Return what `compile_candidate` takes, once for each kernel that the variants launch for cases."""
    device, found = find_device(torch.device("cuda")), {}
    for case, names in wanted:
        with case.pinned():
            options = Options.from_module(case.module("meta"))
            problem = options.to_problem(case.steps, case.batch, case.dtype, layout=case.layout)
        for variant in (variant for variant in VARIANTS if variant.name in names):
            with contextlib.suppress(Unavailable):  # the run says why
                plan = variant.choose(problem, device)
                config, short = plan.config, dataclasses.replace(shorten_problem(problem), batch_size=1)
                if isinstance(config, GridConfig):
                    config = dataclasses.replace(config, copies=1)  # how many are launched is not compiled
                if config:
                    found[short, device, Candidate(plan.kernel, config, plan.projection)] = None
    return [*found]


def get_hang_error() -> str:
    """The error if a launch of the library has given up waiting, once all have run; empty if none has."""
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        hang.raise_if_hung()
    except RuntimeError as error:
        return str(error)
    return ""


def is_lost() -> bool:
    """Return whether the GPU answers this process no more, as after an access to memory that is not there."""
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
