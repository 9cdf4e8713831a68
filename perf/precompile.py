"""Compiles what is to be timed in many processes at once, so that minutes on a GPU go into timing."""

import functools
import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor

import torch

from .case import Case
from .providers import PROVIDERS
from .providers.ours import compile_kernels, kernels_of

# Peers whose compilers take seconds to minutes a case, and keep what they compile on disk.
SLOW = ("torch.compile", "torchrl")


def compile_ahead(wanted: list[tuple[Case, Iterable[str]]]) -> None:
    """Compiles what the cases' providers launch on a GPU."""
    calls = [functools.partial(compile_kernels, *item) for item in kernels_of(wanted)]
    print(f"compiling {len(calls)} of our kernels", flush=True)
    peers = [functools.partial(_make_ready, case, name) for case, names in wanted for name in names if name in SLOW]
    # The slow ones first, so as not to be waited for last.
    in_parallel(peers + calls)


def _make_ready(case: Case, name: str) -> None:
    gru, x = case.module("cuda"), case.inputs("cuda")[0]
    with case.pinned(), torch.inference_mode():
        PROVIDERS[name](gru, x)


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
