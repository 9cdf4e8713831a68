"""Where does a step spend its time? Each scan as it is, and with one stage of its steps left out.

What a stage adds to a step is the difference of the two. Stages that overlap add less than they take, so that what they
add need not come to the whole; and what is left out of `grid`'s products is all that are not of its first words, half
of them at H = 256 in fp16, seven of eight at 2048. What the compiler leaves of each is asserted by tests/compiled.

    python -m perf.stages [--out perf/results]
    TRITON_INTERPRET=1 python -m perf.stages --device interpreter     # a rehearsal: no times
"""

import argparse
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import triton_gru
from triton_gru import launch
from triton_gru.arguments import bind_gru
from triton_gru.device import interpreting
from triton_gru.kernels.block import block_scan
from triton_gru.kernels.grid import grid_scan
from triton_gru.plan import Plan
from triton_gru.scans import Launch
from triton_gru.tuning.timing import clock, graphed, quantiles, samples

from .case import Case
from .precompile import in_parallel
from .providers.interface import Unavailable
from .providers.ours import Variant, gave_up
from .record import Report, Row
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("perf/results"))
    parser.add_argument("--device", choices=("cuda", "interpreter"), default="cuda")
    options = parser.parse_args(arguments)
    cases = CASES
    if options.device == "interpreter":
        if not interpreting():
            parser.error("--device interpreter needs TRITON_INTERPRET=1 in the environment")
        print("no GPU: a rehearsal in Triton's interpreter, of tiny cases", flush=True)
        cases = [("grid", Case("fp16", 40, 2, 2)), ("block", Case("fp16", 20, 2, 2))]
    else:
        work = [(kernel, case, stage) for kernel, case in cases for stage in (WHOLE, *STAGES[kernel])]
        in_parallel(functools.partial(compile_scan, *item) for item in work)

    report = Report(options.out / f"stages-{options.device}.csv", "cpu" if options.device == "interpreter" else "cuda")
    for number, (kernel, case) in enumerate(cases, 1):
        print(f"[{number}/{len(cases)}] {kernel} {case}", flush=True)
        rows = measure(kernel, case, options.device)
        report.add_all(rows)
        print(table(rows), flush=True)
    print(f"wrote {report.path}")


def measure(kernel: str, case: Case, device: str) -> list[Row]:
    """A row for the whole scan and for each stage without which it was timed, in turns, as CUDA graphs."""
    row = dataclasses.replace(case.row(), provider=Variant(kernel).name, kernel=kernel, variant=WHOLE, l2="warm")
    x = case.inputs("cuda" if device == "cuda" else "cpu")[0]
    with torch.inference_mode(), case.pinned():
        try:
            calls, config = callers(kernel, case, x)
        except Unavailable as refusal:
            return [dataclasses.replace(row, status="unavailable", error=str(refusal))]
        row = dataclasses.replace(row, config=config, mode="graph" if device == "cuda" else "eager")
        if device != "cuda":
            for call in calls.values():
                call()
            return [dataclasses.replace(row, variant=variant_of(stage)) for stage in calls]
        replays = {stage: [graphed(call)[0]] for stage, call in calls.items()}
        times = samples(replays, ROUNDS, clock(device), SECONDS)
    if error := gave_up():
        return [dataclasses.replace(row, status="failed", error=error)]
    rows = []
    for stage, milliseconds in times.items():
        taken = quantiles(milliseconds)
        rows.append(dataclasses.replace(row, variant=variant_of(stage), status=taken.status, **taken.columns()))
    return rows


def variant_of(stage: str) -> str:
    return stage if stage == WHOLE else f"without {stage}"


def callers(kernel: str, case: Case, x: Tensor) -> tuple[dict[str, Callable[[], None]], str]:
    """What computes the case on ``x``, as it is and without each stage; and the configuration of all."""
    variant = Variant(kernel)
    ours = variant.module(case.module(x.device.type))
    plan = variant.plan(ours, x)

    def call(stage: str) -> None:
        launch.start(launches(ours, x, plan, stage))

    return {stage: functools.partial(call, stage) for stage in (WHOLE, *STAGES[kernel])}, str(plan.config)


def launches(ours: triton_gru.GRU, x: Tensor, plan: Plan, stage: str) -> Iterator[Launch]:
    """Those of a call of the module by its plan, its scans without a stage."""
    output, h_n = torch.empty_like(x), x.new_empty(1, *x.shape[1:])
    for each in launch.launches(bind_gru(ours, x, None), plan.config, plan.device, output, h_n):
        left_out = stage != WHOLE and each.kernel is SCANS[plan.kernel]
        yield each._replace(kernel=without(plan.kernel, stage)) if left_out else each


def compile_scan(kernel: str, case: Case, stage: str) -> None:
    """Compiles a scan without a stage."""
    x = torch.empty(2, case.batch, case.hidden, device="cuda", dtype=case.dtype)  # how many steps is not compiled
    with torch.inference_mode(), case.pinned():
        variant = Variant(kernel)
        ours = variant.module(case.module("cuda"))
        for each in launches(ours, x, variant.plan(ours, x), stage):
            each.compile()


def table(rows: list[Row]) -> str:
    """Median microseconds a step: of the whole, then by how much it is less without each stage."""
    steps = {row.variant: 1000 * row.p50_ms / row.T for row in rows if row.n}
    if WHOLE not in steps:
        return "    " + (rows[0].error or "no times")
    whole = steps.pop(WHOLE)
    lines = [f"    {whole:7.3f} us a step"]
    lines += [f"    {whole - left:7.3f} less {variant}" for variant, left in steps.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
