"""Everything that computes a GRU and can be timed, by name. A provider is a file here that names its `PROVIDERS`.

A name ``module:callable`` is a provider from elsewhere. ``callable(gru, x)`` returns a `Ready` or a `Call`.
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

OURS = "triton_gru"  # and what begins so
EXPERIMENTS = "perf.experiments."  # modules of ours, too
BASELINE = "torch.nn.GRU"  # measured in every cell: others are gated and compared by it

PROVIDERS: dict[str, Prepare] = {BASELINE: torch_modules.PROVIDERS[BASELINE]}  # named first
for _module in (ours, cudnn, handwritten, compiled, torchrl, gru_qat, flashrnn, flax_scan, torch_modules):
    PROVIDERS |= _module.PROVIDERS
NAMES = tuple(PROVIDERS | STREAMING_PROVIDERS)


def is_ours(name: str) -> bool:
    return name.startswith((OURS, EXPERIMENTS))


def require_known(names: Iterable[str]) -> None:
    """Raise ValueError if a name is no provider's. A ``module:callable`` is imported."""
    for name in names:
        if ":" in name:
            _from_elsewhere(name)
        elif name not in NAMES:
            close = " or ".join(difflib.get_close_matches(name, NAMES)) or f"one of {', '.join(NAMES)}"
            raise ValueError(f"there is no provider {name!r}: give {close}, or a function of yours as module:callable")


def _from_elsewhere(name: str) -> Prepare:
    try:
        prepare = import_attribute(name)
    except Exception as error:  # a module may raise anything
        raise ValueError(f"provider {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(prepare):
        raise ValueError(f"provider {name!r} must be callable with a GRU and an input, got {prepare!r}")
    return prepare


def make_ready(name: str, gru: nn.GRU, x: Input, is_streaming: bool) -> Ready:
    """Make the provider ready for whole sequences, or for frames of a stream.

    Raises:
        Unavailable: it cannot serve them.
    """
    if ":" in name and not is_streaming:
        made = _from_elsewhere(name)(gru, x)
        return made if isinstance(made, Ready) else Ready(made)
    prepare = (STREAMING_PROVIDERS if is_streaming else PROVIDERS).get(name)
    if prepare is None:
        raise Unavailable("it is not called here " + ("frame by frame" if is_streaming else "but frame by frame"))
    if not Options.from_module(gru).reset_after and not name.startswith((OURS, "torch.nn", "handwritten")):
        raise Unavailable("it has no GRU that resets before the recurrent product")
    return prepare(gru, x)
