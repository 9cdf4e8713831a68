"""Providers that run ``grid`` and ``block`` without one stage of a step. They compute no GRU.

The question is where a step spends its time. In the sweep `step-breakdown`, the difference to the complete kernel is
the time that a stage adds. Stages that overlap add less than they take, so these times do not sum to the step.

Without the stage "products-but-the-first", ``grid`` multiplies only the first segment of the state. This leaves out
half of the products at H = 256 in fp16, and seven of eight at H = 2048. tests/compiled asserts the compiled code of
each kernel. The answer decides which terms of the cost model to correct.
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
_TENSOR_CORE_STAGES = ("products-but-the-first", "sums", "gate-inputs")  # of grid


def _prepare(kernel: str, stage: str, gru: nn.GRU, x: Input) -> Ready:
    """Return a kernel without a stage, ready for inputs like ``x``. Its results are meaningless."""
    require_padded(x)
    provider = BackendProvider(kernel)
    ours = provider.make_gru(gru)
    plan = provider.plan(ours, x)
    if plan.problem.is_ieee and kernel == "grid" and stage in _TENSOR_CORE_STAGES:
        raise Unavailable(
            f"{stage}: grid can run without this stage only in 16 bits and TF32, where tensor cores make products"
        )
    if kernel == "block" and stage == "gate-inputs" and plan.config.batch != 2:
        raise Unavailable(
            f"{stage}: block can run without this stage only where a program has two rows, got {plan.config.batch}"
        )
    scan = load_scan_without(kernel, stage)

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        bound = bind_gru(ours, x, None)
        results = execute.allocate(bound)
        launches = execute.launches(bound, plan.config, plan.device, *results)
        execute.start(launch._replace(kernel=scan) if launch.kernel is SCANS[kernel] else launch for launch in launches)
        return results

    return Ready(call, **describe_plan(plan), is_judged=False)


PROVIDERS = {
    f"{kernel}-without-{stage}": functools.partial(_prepare, kernel, stage)
    for kernel, stages in STAGES.items()
    for stage in stages
}
globals().update(PROVIDERS)  # so that perf.experiments.stages:NAME is a provider
