"""Differences between versions of Triton. No other file of this package decides what to run by Triton's version."""

import functools
import warnings

import triton
from triton import knobs
from triton.compiler import CompiledKernel

TESTED_VERSIONS = "3.6", "3.7", "3.8", "3.9"

# Options of every launch. The kernels need fused multiply-adds. From Triton 3.10 on, they are off by default.
COMPILER_OPTIONS = {"enable_fp_fusion": True}


def get_minor_version(version: str) -> str:
    """Return the major and minor part of a version, which decide on features: ``"3.9"`` for ``"3.9.0+git"``."""
    return ".".join(version.split(".")[:2])


def warn_if_untested(version: str = triton.__version__) -> None:
    """Warn if this package was not tested with this version of Triton. The package calls this when it is imported."""
    if get_minor_version(version) not in TESTED_VERSIONS:
        warnings.warn(
            f"triton_gru was tested with Triton {TESTED_VERSIONS[0]} to {TESTED_VERSIONS[-1]}, and this is Triton "
            f"{version}. Its kernels may fail or be slow: run `triton-gru check`, or install a Triton that was tested",
            stacklevel=3,  # the line that imports this package
        )


def copies_shared_operands(version: str = triton.__version__) -> bool:
    """Return whether this Triton copies an operand of several products.

    The operand then goes through shared memory for each product after the first.
    """
    return get_minor_version(version) == "3.8"


@functools.cache
def is_launcher_known() -> bool:
    """Return whether this Triton passes arguments to its launcher in the order in which `Launch.make_starter` does.

    To find out, Triton launches a `_Recorder` instead of a compiled kernel. Triton's hooks must have ``calls``, too. If
    the result is False, repeated calls go through Triton's own entry.
    """
    recorder = _Recorder()  # The values below are arbitrary, and show which argument is passed where.
    hooks = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    try:
        CompiledKernel.__getitem__(recorder, (2, 3, 4))("argument", "constant", stream="stream")
    except (AttributeError, TypeError):  # This Triton uses an attribute or argument that no tested version uses.
        return False
    expected = (2, 3, 4, "stream", "function", "metadata", "launch metadata", *hooks, "argument", "constant")
    return recorder.passed == expected and all(hasattr(hook, "calls") for hook in hooks)


class _Recorder:
    """A stand-in for `CompiledKernel` that records the arguments of its launcher in ``passed``.

    It has the attributes that ``CompiledKernel.__getitem__`` uses.
    """

    function, packed_metadata = "function", "metadata"

    def _init_handles(self) -> None:
        pass

    def launch_metadata(self, *args) -> str:
        return "launch metadata"

    def run(self, *args) -> None:
        self.passed = args
