"""Checks of the GPU of this process: is its work done, and can it still be used?"""

import torch


def wait_for_gpu() -> None:
    """Wait until the GPU has finished all work. Raise RuntimeError if some of it failed. Do nothing on a CPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def is_gpu_lost() -> bool:
    """Return whether this process can no longer use the GPU, as after an access to invalid memory.

    After the capture of a CUDA graph fails, torch 2.11 frees no memory any more: `empty_cache` raises until the process
    ends. Such a process counts as one that has lost the GPU.
    """
    try:
        wait_for_gpu()
        torch.cuda.empty_cache()
    except RuntimeError:
        return True
    return False
