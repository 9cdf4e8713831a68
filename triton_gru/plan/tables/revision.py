"""Hashes of the kernels' code, and versions, by which a measurement is found to be stale."""

import ast
import functools
import hashlib
import inspect
import types

import torch
import triton

from ... import kernels
from ..._version import __version__
from ...kernels import block, grid, projection, step
from ...triton_versions import get_minor_version

_SCANS = {"block": block, "grid": grid, "step": step}


@functools.cache
def revision(kernel: str) -> str:
    """Return a hash of the code of a kernel and the projection, comments, docstrings and layout aside.

    Return '' for ``"torch"``, and "unknown" if there are no source files.
    """
    if kernel == "torch":
        return ""
    digest = hashlib.sha256()
    try:
        for module in find_kernel_modules(_SCANS[kernel], projection):
            digest.update(normalize_source(inspect.getsource(module)).encode())
    except OSError:  # Without source files, equal code cannot be recognized.
        return "unknown"
    return digest.hexdigest()[:12]


def find_kernel_modules(*modules: types.ModuleType) -> list[types.ModuleType]:
    """Return ``modules`` and the modules of `triton_gru.kernels` that they import, sorted by name."""
    visited, to_visit = {}, list(modules)
    while to_visit:
        module = to_visit.pop()
        visited[module.__name__] = module
        to_visit += [
            value
            for value in vars(module).values()
            if inspect.ismodule(value) and value.__package__ == kernels.__name__ and value.__name__ not in visited
        ]
    return [visited[name] for name in sorted(visited)]


def normalize_source(source: str) -> str:
    """Return Python code as a syntax tree's text, without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        match getattr(node, "body", None):
            case [ast.Expr(ast.Constant(str())) as docstring, *_]:
                docstring.value.value = ""
    return ast.dump(tree)


@functools.cache
def environment() -> dict[str, str]:
    """Return the versions of packages and libraries that times depend on."""
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return {
        "triton_gru": __version__,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda or "",
        "cudnn": str(cudnn or ""),
    }


def stale_reason(kernel: str, made_with: str, env: dict[str, str]) -> str:
    """Return why the times of a kernel may no longer hold, or ''.

    Args:
        kernel: the kernel, or ``"torch"``.
        made_with: the kernel's `revision` at the measurement.
        env: the `environment` of the measurement.
    """
    package = "torch" if kernel == "torch" else "triton"
    measured_with, current = (get_minor_version(versions.get(package, "")) for versions in (env, environment()))
    if measured_with != current:
        return f"made with {package} {measured_with or 'unknown'}, this is {current}"
    return "" if made_with == revision(kernel) != "unknown" else f"{kernel} has changed since"
