"""Differences between versions of Triton. Nothing else in this package asks which version there is."""

import functools
import warnings

import triton
from triton import knobs
from triton.compiler import CompiledKernel

TESTED_VERSIONS = "3.6", "3.7", "3.8", "3.9"

# Options of every launch. The kernels need fused multiply-adds, which Triton will not make by default from 3.10 on.
COMPILER_OPTIONS = {"enable_fp_fusion": True}


def get_minor_version(version: str) -> str:
    """Return the part of a version that tells features: ``"3.9"`` of ``"3.9.0+git"``."""
    return ".".join(version.split(".")[:2])


def warn_if_untested(version: str = triton.__version__) -> None:
    """Warn the importer of this package if it was not tested with a version of Triton."""
    if get_minor_version(version) not in TESTED_VERSIONS:
        warnings.warn(
            f"triton_gru was tested with Triton {TESTED_VERSIONS[0]} to {TESTED_VERSIONS[-1]}, and this is Triton {version}. Its kernels "
            "may fail or be slow: run `triton-gru check`, or install a Triton that was tested",
            stacklevel=3,
        )


def copies_shared_operands(version: str = triton.__version__) -> bool:
    """Return whether an operand of several products goes through shared memory for each of them but the first."""
    return get_minor_version(version) == "3.8"


@functools.cache
def is_launcher_known() -> bool:
    """Return whether a compiled kernel passes to Triton's launcher what `Launch.prepared` passes.

    A stand-in for the compiled kernel records what is passed.
    """
    recorder = _Recorder()
    hooks = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    try:
        CompiledKernel.__getitem__(recorder, (2, 3, 4))("argument", "constant", stream="stream")
    except (AttributeError, TypeError):  # Triton takes something that no tested version takes.
        return False
    known = (2, 3, 4, "stream", "function", "metadata", "launch metadata", *hooks, "argument", "constant")
    return recorder.passed == known and all(hasattr(hook, "calls") for hook in hooks)


class _Recorder:
    """A stand-in for `CompiledKernel`, with what its ``[grid]`` takes."""

    function, packed_metadata = "function", "metadata"

    def _init_handles(self) -> None:
        pass

    def launch_metadata(self, *args) -> str:
        return "launch metadata"

    def run(self, *args) -> None:
        self.passed = args
