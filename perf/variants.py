"""The library's kernels as providers of a sweep: by name, and ``grid`` in forms that no plan chooses."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

import triton_gru
from triton_gru import launch
from triton_gru.accuracy import set_precision
from triton_gru.arguments import bind_gru
from triton_gru.config import GridConfig, fit_grid
from triton_gru.plan import KERNELS, Plan

from .precompile import in_parallel


@dataclass(frozen=True)
class Variant:
    """A backend, and what is to differ from the library's plan for it.

    Attributes:
        isa, handover: in place of the device's and the configuration's; empty for what the plan says.
    """

    backend: str
    isa: str = ""
    handover: str = ""

    @property
    def name(self) -> str:
        return ".".join(filter(None, ("triton_gru", self.backend.removeprefix("auto"), self.isa, self.handover)))

    def plan(self, gru: triton_gru.GRU, x: Tensor) -> Plan:
        """The plan of a call on ``gru``, whose backend is this one's.

        Raises:
            RuntimeError: the variant cannot serve the call.
        """
        plan = gru.plan(x)
        if self.isa:
            plan = dataclasses.replace(plan, device=dataclasses.replace(plan.device, isa=self.isa))
        if self.handover:
            # Other words for the same state may take other registers: cut anew.
            config = dataclasses.replace(plan.config, handover=self.handover, slices=8, register_tiles=0)
            config = fit_grid(config, plan.problem.dtype, plan.problem.precision, plan.device)
            if config is None:
                raise RuntimeError(f"with handover={self.handover!r} there are not the registers and the shared memory")
            plan = dataclasses.replace(plan, config=config)
        return plan

    def call(self, gru: triton_gru.GRU, plan: Plan) -> Callable[[Tensor], Tensor]:
        """The output for an input; what no plan chooses is bound on each call, too, but not planned."""
        if self.isa or self.handover:
            return lambda x: launch.run(bind_gru(gru, x, None), plan)[0]
        return lambda x: gru(x)[0]


@dataclass(frozen=True)
class Cell:
    """One layer with as many inputs as hidden units; ``precision`` names one of triton_gru.accuracy."""

    precision: str
    hidden: int
    batch: int

    def module(self, variant: Variant, device: str) -> triton_gru.GRU:
        dtype = set_precision(self.precision)
        return triton_gru.GRU(self.hidden, self.hidden, device=device, dtype=dtype, backend=variant.backend).eval()


def compile_ahead(cells: Iterable[Cell], variants: list[Variant], device: str) -> None:
    """Compiles what the cells' calls launch, each kernel once."""
    work = {}
    for cell in cells:
        for variant in variants:
            gru = cell.module(variant, "meta")
            try:
                plan = variant.plan(gru.to_empty(device=device), _input(cell, device))
            except RuntimeError:
                continue  # the sweep says why
            config = plan.config
            if isinstance(config, GridConfig):
                config = dataclasses.replace(config, copies=1)  # how many are launched is not compiled
            if plan.kernel in KERNELS:
                work.setdefault((cell.precision, cell.hidden, config, plan.device), (cell, variant, device))
    in_parallel(_compile, work.values())


def _compile(item: tuple[Cell, Variant, str]) -> None:
    cell, variant, device = item
    gru, x = cell.module(variant, device), _input(cell, device)
    plan = variant.plan(gru, x)
    output = x.new_empty(*x.shape)
    h_n = x.new_empty(1, *x.shape[1:])
    for each in launch.launches(bind_gru(gru, x, None), plan.config, plan.device, output, h_n):
        each.kernel.warmup(*each.args, grid=each.grid, **each.constants)


def _input(cell: Cell, device: str) -> Tensor:
    """Short: how many steps there are is not compiled."""
    return torch.empty(2, cell.batch, cell.hidden, device=device, dtype=set_precision(cell.precision))
