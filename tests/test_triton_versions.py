"""Differences between versions of Triton: the launcher, and warnings about untested versions."""

import subprocess
import sys

import pytest
import triton
from triton.compiler import CompiledKernel

from triton_gru import triton_versions


@pytest.mark.parametrize("version", ["3.6.0", "3.7.1", "3.8.0+git1234", "3.9.0", triton.__version__])
def test_tested_version_does_not_warn(version):
    triton_versions.warn_if_untested(version)  # a warning is an error here


@pytest.mark.parametrize("version", ["3.5.1", "3.10.0", "4.0.0"])
def test_untested_version_warns(version):
    with pytest.warns(UserWarning, match=f"tested with Triton 3.6 to 3.9, and this is Triton {version}") as warned:
        triton_versions.warn_if_untested(version)
    assert len(warned) == 1


def test_import_warns_once():
    program = "import triton; triton.__version__ = '3.10.0'; import triton_gru, triton_gru.cli; import triton_gru"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.count("this is Triton 3.10.0") == 1, done.stderr
    assert "<string>:1: UserWarning" in done.stderr, "the warning must name the line that imports"


def test_launcher_is_known():
    """`Launch.make_starter` takes its fast path with the installed version. scripts/versions installs each one."""
    assert triton_versions.is_launcher_known()


def _pass_metadata_last(kernel, grid):
    """Return a launcher that gets its arguments in another order than those of tested versions."""
    return lambda *args, stream: kernel.run(
        *grid, stream, kernel.function, *args, kernel.packed_metadata, kernel.launch_metadata(grid, stream, *args)
    )


@pytest.mark.parametrize(
    "make_launcher",
    [
        _pass_metadata_last,
        lambda kernel, grid: lambda *args, stream: kernel.run(*grid, stream, kernel.handle, *args),
        lambda kernel, grid: lambda *args: kernel.run(*grid, kernel.function, *args),
    ],
    ids=["another order", "another attribute", "no stream"],
)
def test_other_launchers_are_not_known(make_launcher, monkeypatch):
    monkeypatch.setattr(CompiledKernel, "__getitem__", make_launcher)
    assert not triton_versions.is_launcher_known.__wrapped__()
