"""Where does a step spend its time? ``grid`` and ``block`` with one stage of a step left out, each as a provider.

They compute no GRU. Their times in the sweep `step-breakdown` say what a stage adds, by the difference to the whole.
Stages that overlap add less than they take, so that the sum of what they add may differ from the whole. Of ``grid``'s
products all but those of its first words are left out: half of them at H = 256 in fp16, seven of eight at 2048.
tests/compiled asserts what the compiler leaves of each kernel. The answer says which term of the cost model to mend.
"""

import functools

from torch import Tensor, nn

from triton_gru.call.bind import bind_gru
from triton_gru.kernels.block import block_scan
from triton_gru.kernels.grid import grid_scan
from triton_gru.launch import execute

from ..case import Input
from ..providers.interface import Ready, Unavailable, require_padded
from ..providers.ours import BackendProvider, describe_plan
from .stages_kernel import STAGES, load_scan_without

SCANS = {"grid": grid_scan, "block": block_scan}
_OF_TENSOR_CORES = ("products-but-the-first", "sums", "gate-inputs")  # stages of grid


def _prepare(kernel: str, stage: str, gru: nn.GRU, x: Input) -> Ready:
    require_padded(x)
    variant = BackendProvider(kernel)
    ours = variant.module(gru)
    plan = variant.plan(ours, x)
    if plan.problem.is_ieee and kernel == "grid" and stage in _OF_TENSOR_CORES:
        raise Unavailable(f"{stage}: left out of grid only where tensor cores make its products, in 16 bits and TF32")
    if kernel == "block" and stage == "gate-inputs" and plan.config.batch != 2:
        raise Unavailable(f"{stage}: left out of block only where a program has two rows")
    scan = load_scan_without(kernel, stage)

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        bound = bind_gru(ours, x, None)
        results = execute.allocate(bound)
        launches = execute.launches(bound, plan.config, plan.device, *results)
        execute.start(each._replace(kernel=scan) if each.kernel is SCANS[kernel] else each for each in launches)
        return results

    return Ready(call, **describe_plan(plan), is_judged=False)


PROVIDERS = {
    f"{kernel}-without-{stage}": functools.partial(_prepare, kernel, stage)
    for kernel, stages in STAGES.items()
    for stage in stages
}
globals().update(PROVIDERS)  # each is called as perf.experiments.stages:NAME
