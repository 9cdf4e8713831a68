"""Compiles what is to be timed in many processes at once, so that minutes on a GPU go into timing."""

import functools
import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor

import torch

from .case import Case
from .providers import OURS, make_ready, stages
from .providers.ours import compile_kernels, kernels_of

# Providers that no plan describes, whose compilers take seconds to minutes a case and keep what they compile on disk.
SLOW = ("torch.compile", "torchrl", *stages.PROVIDERS)


def compile_ahead(wanted: list[tuple[Case, Iterable[str]]]) -> None:
    """Compiles what the cases' providers launch on a GPU."""
    # What a stream launches is known when it is called.
    sequences = [(case, names) for case, names in wanted if not case.streaming]
    calls = [functools.partial(compile_kernels, *item) for item in kernels_of(sequences)]
    print(f"compiling {len(calls)} of our kernels", flush=True)
    called = [
        functools.partial(_call, case, name)
        for case, names in wanted
        for name in names
        if name in SLOW or (case.streaming and name.startswith(OURS))
    ]
    # The slow ones first, so as not to be waited for last.
    in_parallel(called + calls)


def _call(case: Case, name: str) -> None:
    gru, x = case.module("cuda"), case.inputs("cuda")[0]
    with case.pinned(), torch.inference_mode():
        ready = make_ready(name, gru, x, case.streaming)
        ready.call(ready.lay_out(x))


def in_parallel(calls: Iterable[Callable[[], None]]) -> None:
    """Calls each in a process of its own kind, which leaves what it compiles in Triton's or Inductor's cache on disk.

    What fails here fails again, with its message, where it is to be timed.
    """
    calls = list(calls)
    # Each process has a context on the GPU; a forked one could not use it.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, min(len(calls), os.cpu_count() or 1, 16)), mp_context=spawn) as pool:
        for future in [pool.submit(call) for call in calls]:
            future.exception()
