"""``grid`` and ``block`` with one stage of a step left out. They compute no GRU: their times say what a stage adds.

That is the difference to the whole kernel. Stages that overlap add less than they take, so that the sum of what they
add may differ from the whole. Of ``grid``'s products all but those of its first words are left out: half of them at
H = 256 in fp16, seven of eight at 2048. tests/compiled asserts what the compiler leaves of each kernel.
"""

import functools

from torch import Tensor, nn

from triton_gru.call.bind import bind_gru
from triton_gru.kernels.block import block_scan
from triton_gru.kernels.grid import grid_scan
from triton_gru.launch import execute

from ..case import Input
from ..record import config_text
from .interface import Ready, Unavailable, require_padded
from .ours import Variant
from .stages_kernel import STAGES, without

SCANS = {"grid": grid_scan, "block": block_scan}
WITHOUT = "-without-"  # in a provider's name, between the kernel's and the stage's
_OF_TENSOR_CORES = ("products-but-the-first", "sums", "gate-inputs")  # stages of grid


def _prepare(kernel: str, stage: str, gru: nn.GRU, x: Input) -> Ready:
    require_padded(x)
    variant = Variant(kernel)
    ours = variant.module(gru)
    plan = variant.plan(ours, x)
    if plan.problem.ieee and kernel == "grid" and stage in _OF_TENSOR_CORES:
        raise Unavailable(f"{stage}: left out of grid only where tensor cores make its products, in 16 bits and TF32")
    if kernel == "block" and stage == "gate-inputs" and plan.config.batch != 2:
        raise Unavailable(f"{stage}: left out of block only where a program has two rows")
    scan = without(kernel, stage)

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        bound = bind_gru(ours, x, None)
        results = execute.allocate(bound)
        launches = execute.launches(bound, plan.config, plan.device, *results)
        execute.start(each._replace(kernel=scan) if each.kernel is SCANS[kernel] else each for each in launches)
        return results

    return Ready(call, plan.kernel, config_text(plan.config), plan.source, judged=False)


PROVIDERS = {
    f"{Variant(kernel).name}{WITHOUT}{stage}": functools.partial(_prepare, kernel, stage)
    for kernel, stages in STAGES.items()
    for stage in stages
}
