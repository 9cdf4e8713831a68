"""Providers: implementations that can be timed, by name. Each file of providers has a dictionary `PROVIDERS`.

A name ``module:callable`` is a user's provider. ``callable(gru, x)`` returns a `Ready` or a `Call`.
"""

import difflib
from collections.abc import Iterable

from torch import nn

from triton_gru.call.options import Options
from triton_gru.commands.arguments import import_attribute

from ..case import Input
from . import compiled, cudnn, flashrnn, flax_scan, gru_qat, handwritten, ours, torch_modules, torchrl
from .interface import Prepare, Ready, Unavailable
from .streaming import PROVIDERS as STREAMING_PROVIDERS

OURS = "triton_gru"  # providers of this library have names that begin with this
EXPERIMENTS = "perf.experiments."  # providers in these modules run this library's kernels, too
BASELINE = "torch.nn.GRU"  # measured on every case, to compare the other providers with

PROVIDERS: dict[str, Prepare] = {BASELINE: torch_modules.PROVIDERS[BASELINE]}  # first in reports
for _module in (ours, cudnn, handwritten, compiled, torchrl, gru_qat, flashrnn, flax_scan, torch_modules):
    PROVIDERS |= _module.PROVIDERS
NAMES = tuple(PROVIDERS | STREAMING_PROVIDERS)


def is_ours(name: str) -> bool:
    """Return whether a provider runs this library's kernels."""
    return name.startswith((OURS, EXPERIMENTS))


def require_known(names: Iterable[str]) -> None:
    """Raise ValueError if a name is not a provider. Import each ``module:callable``."""
    for name in names:
        if ":" in name:
            _import_provider(name)
        elif name not in NAMES:
            choices = " or ".join(difflib.get_close_matches(name, NAMES)) or f"one of {', '.join(NAMES)}"
            raise ValueError(
                f"there is no provider {name!r}: give {choices}, or a function of yours as module:callable"
            )


def _import_provider(name: str) -> Prepare:
    """Return the function that ``module:callable`` names. Raise ValueError if it cannot be imported or called."""
    try:
        prepare = import_attribute(name)
    except Exception as error:  # a module may raise anything
        raise ValueError(f"provider {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(prepare):
        raise ValueError(f"provider {name!r} must be callable with a GRU and an input, got {prepare!r}")
    return prepare


def make_ready(name: str, gru: nn.GRU, x: Input, is_streaming: bool) -> Ready:
    """Return the provider, prepared for sequences like ``x``, or for frames like ``x`` of a stream.

    Raises:
        Unavailable: the provider cannot serve this GRU or such inputs.
    """
    if ":" in name and not is_streaming:
        prepared = _import_provider(name)(gru, x)
        return prepared if isinstance(prepared, Ready) else Ready(prepared)
    prepare = (STREAMING_PROVIDERS if is_streaming else PROVIDERS).get(name)
    if prepare is None:
        raise Unavailable(f"this provider is called here only with {'sequences' if is_streaming else 'single frames'}")
    if not Options.from_module(gru).reset_after and not name.startswith((OURS, "torch.nn", "handwritten")):
        raise Unavailable("this provider has no GRU that resets before the recurrent product")
    return prepare(gru, x)
