"""Which code a measurement was made with."""

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
    """Return a hash of a kernel's code without comments, docstrings and layout; empty for torch's GRU."""
    if kernel == "torch":
        return ""
    digest = hashlib.sha256()
    try:
        for module in find_kernel_modules(_SCANS[kernel], projection):
            digest.update(normalize_source(inspect.getsource(module)).encode())
    except OSError:  # where Python code comes without its source, nothing is known to be the same
        return "unknown"
    return digest.hexdigest()[:12]


def find_kernel_modules(*of_kernels: types.ModuleType) -> list[types.ModuleType]:
    """Return the modules that kernels' code is in: their own, and what those import of `triton_gru.kernels`."""
    found, new = {}, list(of_kernels)
    while new:
        module = new.pop()
        found[module.__name__] = module
        new += [
            each
            for each in vars(module).values()
            if inspect.ismodule(each) and each.__package__ == kernels.__name__ and each.__name__ not in found
        ]
    return [found[name] for name in sorted(found)]


def normalize_source(source: str) -> str:
    """Return Python code without what does not count."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        match getattr(node, "body", None):
            case [ast.Expr(ast.Constant(str())) as docstring, *_]:
                docstring.value.value = ""
    return ast.dump(tree)


@functools.cache
def environment() -> dict[str, str]:
    """Return the versions that times depend on."""
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return {
        "triton_gru": __version__,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda or "",
        "cudnn": str(cudnn or ""),
    }


def stale_reason(kernel: str, made_with: str, env: dict[str, str]) -> str:
    """Return why a kernel's result may no longer hold; empty if it does."""
    counts = "torch" if kernel == "torch" else "triton"
    then, now = (get_minor_version(each.get(counts, "")) for each in (env, environment()))
    if then != now:
        return f"made with {counts} {then or 'unknown'}, this is {now}"
    return "" if made_with == revision(kernel) != "unknown" else f"{kernel} has changed since"
