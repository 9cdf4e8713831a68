"""Where does a step spend its time? Each scan as it is, and with one stage of its steps left out.

What a stage adds to a step is the difference of the two. Stages that overlap add less than they take, so that what they
add need not come to the whole; and what is left out of `grid`'s products is all that are not of its first words, half
of them at H = 256 in fp16, seven of eight at 2048. What the compiler leaves of each is asserted by tests/compiled.

    python -m perf.experiments.stages [--out build/perf]                # goes on where its CSV ends
    TRITON_INTERPRET=1 python -m perf.experiments.stages --rehearse     # of tiny cases: no times
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import triton_gru
from triton_gru.call.bind import bind_gru
from triton_gru.kernels.block import block_scan
from triton_gru.kernels.grid import grid_scan
from triton_gru.launch import execute
from triton_gru.launch.kernel_launch import Launch
from triton_gru.plan.planner import Plan
from triton_gru.tuning.timing import clock, graphed, samples

from ..case import Case
from ..precompile import in_parallel
from ..program import Program
from ..providers.interface import Unavailable
from ..providers.ours import Variant, gave_up
from ..record import Row, config_text, timed
from .stages_kernel import STAGES, without

SCANS = {"grid": grid_scan, "block": block_scan}
CASES = [
    *(("grid", Case("fp16", hidden, batch, 512)) for hidden in (256, 512, 1024, 2048) for batch in (1, 64)),
    *(("grid", Case("tf32", hidden, batch, 512)) for hidden in (512, 1024) for batch in (1, 64)),
    *(("block", Case("fp16", hidden, 1, 512)) for hidden in (64, 128, 192)),
    ("block", Case("tf32", 128, 1, 512)),
]
WHOLE = "whole"
ROUNDS, SECONDS = 100, 4.0  # of a case


def cells(rehearse: bool) -> list[tuple[str, Case]]:
    """Return a kernel and what it computes, for each case."""
    return [("grid", Case("fp16", 40, 2, 2)), ("block", Case("fp16", 20, 2, 2))] if rehearse else CASES


def row_of(cell: tuple[str, Case], device: str = "cpu") -> Row:
    kernel, case = cell
    mode = "graph" if device == "cuda" else "eager"
    about = {"provider": Variant(kernel).name, "kernel": kernel, "variant": WHOLE, "mode": mode, "l2": "warm"}
    return dataclasses.replace(case.row(), **about)


def measure(cell: tuple[str, Case], device: str) -> list[Row]:
    """Return a row for the whole scan and for each stage without which it was timed, in turns, as CUDA graphs."""
    (kernel, case), row = cell, row_of(cell, device)
    x = case.inputs(device)[0]
    with torch.inference_mode(), case.pinned():
        try:
            calls, config = callers(kernel, case, x)
        except Unavailable as refusal:
            return [dataclasses.replace(row, status="unavailable", error=str(refusal))]
        row = dataclasses.replace(row, config=config)
        if device != "cuda":
            for call in calls.values():
                call()
            return [dataclasses.replace(row, variant=variant_of(stage)) for stage in calls]
        replays = {stage: [graphed(call)[0]] for stage, call in calls.items()}
        times = samples(replays, ROUNDS, clock(device), SECONDS)
    if error := gave_up():
        return [dataclasses.replace(row, status="failed", error=error)]
    return [timed(dataclasses.replace(row, variant=variant_of(stage)), taken) for stage, taken in times.items()]


def variant_of(stage: str) -> str:
    return stage if stage == WHOLE else f"without {stage}"


def callers(kernel: str, case: Case, x: Tensor) -> tuple[dict[str, Callable[[], None]], str]:
    """Return calls that compute the case on ``x``, whole and without each stage, and the configuration of all."""
    variant = Variant(kernel)
    ours = variant.module(case.module(x.device.type))
    plan = variant.plan(ours, x)

    def call(stage: str) -> None:
        execute.start(launches(ours, x, plan, stage))

    return {stage: functools.partial(call, stage) for stage in (WHOLE, *STAGES[kernel])}, config_text(plan.config)


def launches(ours: triton_gru.GRU, x: Tensor, plan: Plan, stage: str) -> Iterator[Launch]:
    """Yield the launches of a call of the module by its plan, with its scans without a stage."""
    output, h_n = torch.empty_like(x), x.new_empty(1, *x.shape[1:])
    for each in execute.launches(bind_gru(ours, x, None), plan.config, plan.device, output, h_n):
        left_out = stage != WHOLE and each.kernel is SCANS[plan.kernel]
        yield each._replace(kernel=without(plan.kernel, stage)) if left_out else each


def compile_scans(todo: list[tuple[str, Case]]) -> None:
    in_parallel(functools.partial(compile_scan, *each, stage) for each in todo for stage in (WHOLE, *STAGES[each[0]]))


def compile_scan(kernel: str, case: Case, stage: str) -> None:
    """Compile a scan without a stage."""
    x = torch.empty(2, case.batch, case.hidden, device="cuda", dtype=case.dtype)  # how many steps is not compiled
    with torch.inference_mode(), case.pinned():
        variant = Variant(kernel)
        ours = variant.module(case.module("cuda"))
        for each in launches(ours, x, variant.plan(ours, x), stage):
            each.compile()


def table(rows: list[Row]) -> str:
    """Return the median microseconds of a whole step, then by how much it is less without each stage."""
    steps = {row.variant: 1000 * row.p50_ms / row.T for row in rows if row.n}
    if WHOLE not in steps:
        return "    " + (rows[0].error or "no times")
    whole = steps.pop(WHOLE)
    lines = [f"    {whole:7.3f} us a step"]
    lines += [f"    {whole - left:7.3f} less {variant}" for variant, left in steps.items()]
    return "\n".join(lines)


_KEY = ("kernel", "dtype", "precision", "T", "B", "H")
PROGRAM = Program("stages", _KEY, cells, row_of, compile_scans, measure, table)

if __name__ == "__main__":
    PROGRAM.main(__doc__)
