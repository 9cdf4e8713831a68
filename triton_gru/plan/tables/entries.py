"""What a table has of a shape that was tuned, and how that is read without trust."""

import dataclasses
import math
from dataclasses import dataclass

from ..config import HANDOVERS, BlockConfig, Config, GridConfig, StepConfig
from ..problem import Key

CONFIGS = {"block": BlockConfig, "grid": GridConfig, "step": StepConfig}
_MOST = 1 << 31
Quantiles = tuple[float, float, float]  # p20, p50, p80


@dataclass(frozen=True)
class Result:
    """A kernel in its best configuration, or torch's own GRU.

    Attributes:
        revision: of the kernel's code (see `revision`), empty for torch.
        eager_ms, graph_ms: quantiles of a call; graph_ms is None where there are no graphs.
        heuristic_ms: the median of the kernel as it would be without the table, in the mode of ``ms``; None if unknown.
    """

    config: Config | None
    revision: str
    eager_ms: Quantiles
    graph_ms: Quantiles | None
    heuristic_ms: float | None = None

    @property
    def ms(self) -> float:
        """The median that configurations are compared by: in a graph where there is one, without the host's part."""
        return (self.graph_ms or self.eager_ms)[1]


@dataclass(frozen=True)
class Entry:
    """What was found for a key."""

    key: Key
    winner: str
    results: dict[str, Result]
    candidates: int
    failed: dict[str, int]
    env: dict[str, str]
    tuned_at: str


def entry_of(raw) -> Entry:
    """Of what JSON has.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, OverflowError: it is none.
    """
    key = _fields(raw["key"], Key)
    if key.layout not in ("dense", "lengths", "packed") or key.precision not in ("tf32", "ieee"):
        raise ValueError("no such layout or precision")
    results = {name: _result(name, result) for name, result in _mapping(raw["results"]).items()}
    if raw["winner"] not in results:
        raise ValueError("the winner is not among the results")
    failed = {_text(why): _count(number) for why, number in _mapping(raw["failed"]).items()}
    env = {_text(name): _text(value) for name, value in _mapping(raw["env"]).items()}
    return Entry(key, raw["winner"], results, _count(raw["candidates"]), failed, env, _text(raw["tuned_at"]))


def _result(name: str, raw: dict) -> Result:
    if name == "torch":
        config = None
    else:
        config = _fields(raw["config"], CONFIGS[name])
        if isinstance(config, GridConfig) and config.handover not in HANDOVERS:
            raise ValueError(f"no hand-over {config.handover!r}")
    graph_ms = None if raw["graph_ms"] is None else _quantiles(raw["graph_ms"])
    heuristic_ms = None if raw["heuristic_ms"] is None else _time(raw["heuristic_ms"])
    return Result(config, _text(raw["revision"]), _quantiles(raw["eager_ms"]), graph_ms, heuristic_ms)


def _fields(raw: dict, kind: type):
    """An instance of a dataclass of integers from 1 (0 for register_tiles), bools and texts.

    What has a default may be missing: an earlier version did not have it.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    if not required <= set(_mapping(raw)) <= set(fields):
        raise ValueError(f"not the fields of {kind.__name__}")
    for name, value in raw.items():
        type_ = fields[name].type
        if type(value) is not type_:
            raise TypeError(f"{name} is no {type_.__name__}")
        if type_ is int and not (0 if name == "register_tiles" else 1) <= value <= _MOST:
            raise ValueError(f"{name} is {value}")
        if type_ is str:
            _text(value)
    return kind(**raw)


def _mapping(raw) -> dict:
    if not isinstance(raw, dict) or len(raw) > 100:
        raise TypeError("no mapping")
    return raw


def _text(raw) -> str:
    if not isinstance(raw, str) or len(raw) > 1000:
        raise TypeError("no text, or a long one")
    return raw


def _count(raw) -> int:
    if type(raw) is not int or not 0 <= raw <= _MOST:
        raise TypeError("no count")
    return raw


def _time(raw) -> float:
    if type(raw) not in (int, float) or not 0 < raw < 1e9 or not math.isfinite(raw):
        raise ValueError("no time")
    return float(raw)


def _quantiles(raw) -> Quantiles:
    if not isinstance(raw, list) or len(raw) != 3:
        raise TypeError("no quantiles")
    p20, p50, p80 = (_time(each) for each in raw)
    if not p20 <= p50 <= p80:
        raise ValueError("quantiles that do not ascend")
    return p20, p50, p80
