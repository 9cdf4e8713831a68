"""Compilation ahead of timing, in many processes at once, so that time on a GPU goes into timing."""

import functools
from collections.abc import Iterable

import torch

from triton_gru.tuning.compile_pool import compile_candidate, run_in_parallel

from .case import Case
from .providers import OURS, make_ready
from .providers.ours import kernels_of

# Providers without a plan, whose compilers take seconds to minutes a case and cache compiled code on disk. Providers
# given as module:callable are treated in the same way.
SLOW = (
    "torch.compile", "torch.compile.cells", "torchrl", "gru_qat.scan", "gru_qat.persistent", "flashrnn",
    "flashrnn.lstm",
)  # fmt: skip


def compile_ahead(wanted: list[tuple[Case, Iterable[str]]]) -> None:
    """Compile the kernels that the cases' providers launch on a GPU."""
    # The launches of a stream are known only when it is called.
    kernels = kernels_of([(case, names) for case, names in wanted if not case.is_streaming])
    print(f"compiling {len(kernels)} of our kernels", flush=True)
    called = [
        functools.partial(_call, case, name)
        for case, names in wanted
        for name in names
        if name in SLOW or ":" in name or (case.is_streaming and name.startswith(OURS))
    ]
    # Start with the slow providers, so that nothing waits for them at the end.
    run_in_parallel(called + [functools.partial(compile_candidate, *kernel) for kernel in kernels])


def _call(case: Case, name: str) -> None:
    gru, x = case.module("cuda"), case.draw("cuda")[0]
    with case.pinned(), torch.inference_mode():
        ready = make_ready(name, gru, x, case.is_streaming)
        ready.call(ready.lay_out(x))
