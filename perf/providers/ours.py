"""The library: as it chooses, each kernel by name, and ``grid`` in forms that no plan chooses; and what they launch."""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import triton_gru
from triton_gru.call.bind import bind_gru
from triton_gru.call.options import Options
from triton_gru.launch import call_cache, execute, hang
from triton_gru.launch.prepared import Prepared
from triton_gru.plan.config import GRID_CUTS, HANDOVERS, GridConfig
from triton_gru.plan.device import Device, find
from triton_gru.plan.heuristic import grid_config
from triton_gru.plan.planner import KERNELS, Plan, choose
from triton_gru.plan.problem import Problem
from triton_gru.tuning.example import shortest
from triton_gru.tuning.space import Candidate

from ..case import Case, Input
from ..record import config_text
from .interface import Ready, Unavailable, require_padded


@dataclass(frozen=True)
class Variant:
    """A backend, and what is to differ from the library's plan for it.

    Attributes:
        handover, cut: in place of the configuration's; empty for what the plan says.
    """

    backend: str
    handover: str = ""
    cut: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        parts = ("triton_gru", self.backend.removeprefix("auto"), self.handover, "x".join(map(str, self.cut)))
        return ".".join(filter(None, parts))

    def module(self, gru: nn.GRU) -> triton_gru.GRU:
        """Return the library's, with ``gru``'s own Parameters where they are: graphs of ``gru`` read them there."""
        ours = triton_gru.accelerate(copy.copy(gru))
        ours.backend = self.backend
        return ours

    def plan(self, ours: triton_gru.GRU, x: Input) -> Plan:
        """Return the plan of a call on ``ours``, a `module` of this. Raises what `choose` raises."""
        call = bind_gru(ours, x, None)
        return self.choose(call.problem, find(call.input.device))

    def choose(self, problem: Problem, device: Device | None) -> Plan:
        """Return the plan for a problem.

        Raises:
            Unavailable: the variant cannot serve it.
        """
        try:
            plan = choose(problem, device, self.backend)
        except RuntimeError as refusal:
            raise Unavailable(str(refusal)) from refusal
        if self.cut or self.handover:
            shape = problem.hidden_size, problem.batch_size, problem.directions, problem.dtype, problem.precision
            cuts = (self.cut,) if self.cut else GRID_CUTS
            config = grid_config(*shape, plan.device, cuts, (self.handover,) if self.handover else ())
            if isinstance(config, str):
                raise Unavailable(config)
            plan = dataclasses.replace(plan, config=config)
        return plan

    def prepare(self, gru: nn.GRU, x: Input) -> Ready:
        ours = self.module(gru)
        plan = self.plan(ours, x)
        call: Callable = ours
        if self.handover or self.cut:  # bound on each call as others are, but not planned

            def call(x: Input) -> tuple[Tensor, Tensor]:
                return execute.run(bind_gru(ours, x, None), plan)

        return Ready(call, **described(plan))


def described(plan: Plan) -> dict[str, str]:
    """Return the fields of a `Ready` that say what a plan launches."""
    return {"kernel": plan.kernel, "config": config_text(plan.config), "config_source": plan.source}


LAUNCHES = "triton_gru.launches"


def launches(gru: nn.GRU, x: Input, backend: str = "auto") -> Ready:
    """Make ready what the library launches, on memory that is there: a call costs the host this and its own part."""
    require_padded(x)
    variant = Variant(backend)
    ours = variant.module(gru)
    plan = variant.plan(ours, x)
    for _ in range(2):  # a call is prepared at the second of its form
        ours(x)
    found = call_cache.find(ours, x, None)
    if not isinstance(found, Prepared):
        raise Unavailable("no launches are kept: torch's own GRU serves the call, or there are too many")
    made = {}

    def call(x: Input) -> tuple[Tensor, Tensor]:
        if x.data_ptr() not in made:
            made[x.data_ptr()] = found.bind(x, None)
        results, starts, _ = made[x.data_ptr()]
        for start in starts:
            start()
        return results

    return Ready(call, **described(plan))


GRIDS = [Variant("grid", handover=each) for each in HANDOVERS] + [Variant("grid", cut=each) for each in GRID_CUTS]
VARIANTS = [Variant(backend) for backend in ("auto", *KERNELS)] + GRIDS
PROVIDERS = {variant.name: variant.prepare for variant in VARIANTS} | {LAUNCHES: launches}


def kernels_of(wanted: Iterable[tuple[Case, Iterable[str]]]) -> list[tuple[Problem, Device, Candidate]]:
    """Return what `compile_candidate` takes, once for each kernel that the variants launch for cases."""
    device, found = find(torch.device("cuda")), {}
    for case, names in wanted:
        with case.pinned():
            layout = "packed" if case.packed else "dense"
            problem = Options.of(case.module("meta")).problem(case.steps, case.batch, case.dtype, layout=layout)
        for variant in (variant for variant in VARIANTS if variant.name in names):
            with contextlib.suppress(Unavailable):  # the run says why
                plan = variant.choose(problem, device)
                config, short = plan.config, dataclasses.replace(shortest(problem), batch_size=1)
                if isinstance(config, GridConfig):
                    config = dataclasses.replace(config, copies=1)  # how many are launched is not compiled
                if config:
                    found[short, device, Candidate(plan.kernel, config)] = None
    return [*found]


def gave_up() -> str:
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
