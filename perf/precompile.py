"""Compilation ahead of timing, in many processes at once, so that time on a GPU goes into timing."""

import functools
from collections.abc import Iterable

import torch

from triton_gru.tuning.compile_pool import compile_candidate, run_in_parallel

from .case import Case
from .providers import OURS, make_ready
from .providers.ours import find_kernels

# Providers without a plan, whose compilers take seconds to minutes a case and cache compiled code on disk. Providers
# given as module:callable are treated in the same way.
SLOW = (
    "torch.compile", "torch.compile.cells", "torchrl", "gru_qat.scan", "gru_qat.persistent", "flashrnn",
    "flashrnn.lstm",
)  # fmt: skip


def compile_ahead(wanted: list[tuple[Case, Iterable[str]]]) -> None:
    """Compile the kernels that the named providers of each case launch on a GPU, into caches on disk."""
    # The launches of a stream are known only when it is called.
    kernels = find_kernels([(case, names) for case, names in wanted if not case.is_streaming])
    print(f"compiling {len(kernels)} of our kernels", flush=True)
    provider_calls = [
        functools.partial(_call_provider, case, name)
        for case, names in wanted
        for name in names
        if name in SLOW or ":" in name or (case.is_streaming and name.startswith(OURS))
    ]
    # Start with the slow providers, so that nothing waits for them at the end.
    run_in_parallel(provider_calls + [functools.partial(compile_candidate, *kernel) for kernel in kernels])


def _call_provider(case: Case, name: str) -> None:
    """Prepare and call a provider once, so that it compiles its kernels."""
    gru, x = case.make_gru("cuda"), case.draw_inputs("cuda")[0]
    with case.pin_precision(), torch.inference_mode():
        ready = make_ready(name, gru, x, case.is_streaming)
        ready.call(ready.lay_out(x))
