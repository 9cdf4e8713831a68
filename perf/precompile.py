"""Compiles many kernels at once, so that minutes on a GPU go into timing."""

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor


def in_parallel(compile_one: Callable, items: Iterable) -> None:
    """``compile_one(item)`` of each, in processes of their own, which leave what they compile in Triton's cache.

    What fails here fails again, with its message, where the kernel is to be launched.
    """
    items = list(items)
    # Each process has a context on the GPU; a forked one could not use it.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(len(items), os.cpu_count() or 1, 16), mp_context=spawn) as pool:
        for future in [pool.submit(compile_one, item) for item in items]:
            future.exception()
