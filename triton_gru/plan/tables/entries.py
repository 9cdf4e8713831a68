"""What a table has of a shape that was tuned, and how that is read without trust."""

import dataclasses
from dataclasses import dataclass

from ..config import HANDOVERS, BlockConfig, Config, GridConfig, ProjectionConfig, StepConfig, split_implementation
from ..problem import Key
from .revision import stale_reason

CONFIGS = {"block": BlockConfig, "grid": GridConfig, "step": StepConfig}
# What a file may hold at most: the size of a number, the lengths of texts and mappings.
_MOST = {int: 1 << 31, str: 1000, dict: 100}
Quantiles = tuple[float, float, float]  # p20, p50, p80


@dataclass(frozen=True)
class TimedResult:
    """An implementation (see `config.implementation`) in its best configuration; torch's own GRU has none.

    Attributes:
        revision: of the kernel's code (see `revision`), empty for torch.
        eager_ms, graph_ms: quantiles of a call; graph_ms is None where there are no graphs.
        heuristic_ms: the median of the kernel as it would be without the table, in the mode of ``ms``; None if unknown.
        tile: of our own input projection, None where it is the usual one, or there is none of ours.
    """

    config: Config | None
    revision: str
    eager_ms: Quantiles
    graph_ms: Quantiles | None
    heuristic_ms: float | None = None
    tile: ProjectionConfig | None = None

    @property
    def ms(self) -> float:
        """The median that configurations are compared by: in a graph where there is one, without the host's part."""
        return (self.graph_ms or self.eager_ms)[1]


@dataclass(frozen=True)
class Entry:
    """What was found for a key."""

    key: Key
    winner: str
    results: dict[str, TimedResult]
    candidates: int
    failed: dict[str, int]
    env: dict[str, str]
    tuned_at: str

    @property
    def ms(self) -> float:
        """The winner's median, in the mode that configurations are compared by."""
        return self.results[self.winner].ms

    @property
    def speedup_over_nn_gru(self) -> float | None:
        """How many times faster the winner is than torch.nn.GRU; None if that was not measured."""
        result = self.results.get("torch")
        return result and result.ms / self.ms

    def speedup_over_untuned(self, untuned: str) -> float | None:
        """Return how many times faster the winner is than ``untuned`` without a table; None if that was not measured.

        ``untuned`` is the implementation that a plan takes without any table.
        """
        result = self.results.get(untuned)
        ms = result and (result.ms if untuned == "torch" else result.heuristic_ms)
        return ms and ms / self.ms

    @property
    def stale_reason(self) -> str:
        """Why it may no longer hold; empty if it does."""
        kernels = {split_implementation(name)[0]: result.revision for name, result in self.results.items()}
        if any(split_implementation(name)[1] for name in self.results):  # cuBLAS comes with torch
            kernels["torch"] = ""
        return next(
            filter(None, (stale_reason(kernel, revision, self.env) for kernel, revision in kernels.items())), ""
        )


def parse_entry(raw) -> Entry:
    """Return the entry that was read from JSON, which is not trusted.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, OverflowError: it is none.
    """
    _refuse_unknown(raw, Entry)
    key = _fields(raw["key"], Key)
    if key.layout not in ("dense", "lengths", "packed") or key.precision not in ("tf32", "ieee"):
        raise ValueError("no such layout or precision")
    results = {name: _result(name, result) for name, result in _checked(raw["results"], dict).items()}
    if raw["winner"] not in results:
        raise ValueError("the winner is not among the results")
    failed = {_checked(why, str): _checked(number, int) for why, number in _checked(raw["failed"], dict).items()}
    env = {_checked(name, str): _checked(value, str) for name, value in _checked(raw["env"], dict).items()}
    candidates, tuned_at = _checked(raw["candidates"], int), _checked(raw["tuned_at"], str)
    return Entry(key, raw["winner"], results, candidates, failed, env, tuned_at)


def parse_config(kernel: str, raw: dict) -> Config:
    """Return a kernel's configuration by the names and values of its fields, which are not trusted.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it is none.
    """
    config = _fields(raw, CONFIGS[kernel])
    if isinstance(config, GridConfig) and config.handover not in HANDOVERS:
        raise ValueError(f"no hand-over {config.handover!r}")
    return config


def _result(name: str, raw: dict) -> TimedResult:
    _refuse_unknown(raw, TimedResult)
    kernel, projection = split_implementation(name)
    config = None if name == "torch" else parse_config(kernel, raw["config"])
    graph_ms = None if raw["graph_ms"] is None else _quantiles(raw["graph_ms"])
    heuristic_ms = None if raw["heuristic_ms"] is None else _time(raw["heuristic_ms"])
    # An earlier version had no tiles.
    tile = None if projection or raw.get("tile") is None else _fields(raw["tile"], ProjectionConfig)
    return TimedResult(
        config, _checked(raw["revision"], str), _quantiles(raw["eager_ms"]), graph_ms, heuristic_ms, tile
    )


def _refuse_unknown(raw: dict, kind: type) -> None:
    """Raise ValueError for fields that this version does not know, for they may change what the others mean."""
    if unknown := _checked(raw, dict).keys() - {field.name for field in dataclasses.fields(kind)}:
        raise ValueError(f"unknown fields of {kind.__name__}: {', '.join(map(repr, sorted(unknown)))}")


def _fields(raw: dict, kind: type):
    """Return an instance of a dataclass of integers from 1 (0 for register_tiles), bools and texts.

    What has a default may be missing: an earlier version did not have it.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    _refuse_unknown(raw, kind)
    if missing := required - set(raw):
        raise ValueError(f"missing fields of {kind.__name__}: {', '.join(sorted(missing))}")
    for name, value in raw.items():
        if _checked(value, fields[name].type) == 0 and type(value) is int and name != "register_tiles":
            raise ValueError(f"{name} is 0")
    return kind(**raw)


def _checked(raw, kind: type):
    """Return ``raw`` if it is of this type, and neither negative nor too large."""
    if type(raw) is not kind:
        raise TypeError(f"a {type(raw).__name__} where a {kind.__name__} has to be")
    if kind in _MOST and not 0 <= (raw if kind is int else len(raw)) <= _MOST[kind]:
        raise ValueError(f"a {kind.__name__} that is negative or too large")
    return raw


def _time(raw) -> float:
    if type(raw) not in (int, float) or not 0 < raw < 1e9:
        raise ValueError("no time")
    return float(raw)


def _quantiles(raw) -> Quantiles:
    p20, p50, p80 = map(_time, raw)
    if not p20 <= p50 <= p80:
        raise ValueError("quantiles that do not ascend")
    return p20, p50, p80
