"""Entries of tuned tables, and how untrusted JSON is read as entries."""

import dataclasses
from dataclasses import dataclass

from ..config import (
    CUBLAS,
    HANDOVERS,
    BlockConfig,
    Config,
    GridConfig,
    ProjectionConfig,
    StepConfig,
    split_implementation,
)
from ..problem import Key
from .revision import stale_reason

CONFIGS = {"block": BlockConfig, "grid": GridConfig, "step": StepConfig}
# Upper limits for the values in a file: of an int its value, of a text or mapping its length.
_MAX_SIZES = {int: 1 << 31, str: 1000, dict: 100}
Quantiles = tuple[float, float, float]  # p20, p50, p80


@dataclass(frozen=True)
class TimedResult:
    """The times of an implementation (see `config.implementation_name`) in its best configuration.

    Attributes:
        config: the kernel's configuration, or None for ``"torch"``.
        revision: hash of the kernel's code (see `revision.revision`), "unknown" without source files, empty for
            ``"torch"``.
        eager_ms: quantiles of the time of an eager call, in milliseconds.
        graph_ms: the same in a CUDA graph, or None if it was not measured in one.
        heuristic_ms: median of the same implementation in the heuristic's configuration, in the mode of ``ms``. None if
            it was not measured.
        tile: tile of our own input projection. None stands for the usual tile, for cuBLAS, and for ``"torch"``.
    """

    config: Config | None
    revision: str
    eager_ms: Quantiles
    graph_ms: Quantiles | None
    heuristic_ms: float | None = None
    tile: ProjectionConfig | None = None

    @property
    def ms(self) -> float:
        """Return the median by which configurations are compared: in a CUDA graph if measured there, else eager."""
        _, p50, _ = self.graph_ms or self.eager_ms
        return p50


@dataclass(frozen=True)
class Entry:
    """An entry of a table: the times of implementations for a key.

    Attributes:
        key: the problems that the entry holds for.
        winner: name of the implementation that plans should choose.
        results: times by implementation.
        candidates: number of configurations that were tried.
        failed: number of configurations that failed, by reason.
        env: versions that the times depend on (see `revision.environment`).
        tuned_at: date and time of the measurement, in UTC.
    """

    key: Key
    winner: str
    results: dict[str, TimedResult]
    candidates: int
    failed: dict[str, int]
    env: dict[str, str]
    tuned_at: str

    @property
    def ms(self) -> float:
        """Return the winner's median, in the mode by which configurations are compared."""
        return self.results[self.winner].ms

    @property
    def speedup_over_nn_gru(self) -> float | None:
        """Return how many times faster the winner is than nn.GRU, or None if nn.GRU was not measured."""
        nn_gru = self.results.get("torch")
        return nn_gru and nn_gru.ms / self.ms

    def speedup_over_untuned(self, untuned: str) -> float | None:
        """Return how many times faster the winner is than a call that is planned without tables.

        Return None if the time of that call was not measured.

        Args:
            untuned: name of the implementation that a plan chooses without tables. A kernel then runs in the
                heuristic's configuration.
        """
        result = self.results.get(untuned)
        untuned_ms = result and (result.ms if untuned == "torch" else result.heuristic_ms)
        return untuned_ms and untuned_ms / self.ms

    @property
    def stale_reason(self) -> str:
        """Return why the entry's times may no longer hold, or ''. One stale implementation makes the entry stale."""
        revisions, uses_cublas = {}, False
        for name, result in self.results.items():
            kernel, projection = split_implementation(name)
            revisions[kernel] = result.revision
            uses_cublas |= projection == CUBLAS
        if uses_cublas:  # cuBLAS comes with torch, so the times depend on torch's version
            revisions["torch"] = ""
        reasons = (stale_reason(kernel, revision, self.env) for kernel, revision in revisions.items())
        return next(filter(None, reasons), "")


def parse_entry(raw) -> Entry:
    """Return the entry that untrusted JSON describes.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, OverflowError: ``raw`` is not a valid entry.
    """
    _check_known_fields(raw, Entry)
    key = _parse_fields(raw["key"], Key)
    if key.layout not in ("dense", "lengths", "packed") or key.precision not in ("tf32", "ieee"):
        raise ValueError(f"unknown layout or precision: {key.layout!r}, {key.precision!r}")
    results = {name: _parse_result(name, result) for name, result in _check(raw["results"], dict).items()}
    if raw["winner"] not in results:
        raise ValueError("the winner is not among the results")
    failed = {_check(reason, str): _check(count, int) for reason, count in _check(raw["failed"], dict).items()}
    env = {_check(name, str): _check(value, str) for name, value in _check(raw["env"], dict).items()}
    candidates, tuned_at = _check(raw["candidates"], int), _check(raw["tuned_at"], str)
    return Entry(key, raw["winner"], results, candidates, failed, env, tuned_at)


def parse_config(kernel: str, raw: dict) -> Config:
    """Return a kernel's configuration from untrusted JSON: a mapping from field names to values.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: ``raw`` is not a valid configuration.
    """
    config = _parse_fields(raw, CONFIGS[kernel])
    if isinstance(config, GridConfig) and config.handover not in HANDOVERS:
        raise ValueError(f"handover must be {' or '.join(HANDOVERS)}, got {config.handover!r}")
    return config


def _parse_result(name: str, raw: dict) -> TimedResult:
    """Return the times of the implementation ``name`` from untrusted JSON. Raise as `parse_entry` does."""
    _check_known_fields(raw, TimedResult)
    kernel, projection = split_implementation(name)
    config = None if name == "torch" else parse_config(kernel, raw["config"])
    graph_ms = None if raw["graph_ms"] is None else _parse_quantiles(raw["graph_ms"])
    heuristic_ms = None if raw["heuristic_ms"] is None else _parse_time(raw["heuristic_ms"])
    # Tables of an earlier version have no tiles.
    tile = None if projection or raw.get("tile") is None else _parse_fields(raw["tile"], ProjectionConfig)
    return TimedResult(
        config, _check(raw["revision"], str), _parse_quantiles(raw["eager_ms"]), graph_ms, heuristic_ms, tile
    )


def _check_known_fields(raw: dict, kind: type) -> None:
    """Raise ValueError if ``raw`` has fields that this version does not know, and TypeError if it is no mapping.

    Unknown fields may change the meaning of other fields.
    """
    if unknown := _check(raw, dict).keys() - {field.name for field in dataclasses.fields(kind)}:
        raise ValueError(f"unknown fields of {kind.__name__}: {', '.join(map(repr, sorted(unknown)))}")


def _parse_fields(raw: dict, kind: type):
    """Return an instance of the dataclass ``kind`` with the fields in ``raw``: integers, bools and texts.

    Integers must be 1 or more. Exception: register_tiles may be 0. Fields with a default may be missing, as an earlier
    version did not have them.

    Raises:
        ValueError: a field is unknown or missing, or a value is out of range.
        TypeError: ``raw`` is no mapping, or a value has another type.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    _check_known_fields(raw, kind)
    if missing := required - set(raw):
        raise ValueError(f"missing fields of {kind.__name__}: {', '.join(sorted(missing))}")
    for name, value in raw.items():
        if _check(value, fields[name].type) == 0 and type(value) is int and name != "register_tiles":
            raise ValueError(f"{name} must be 1 or more, got 0")
    return kind(**raw)


def _check(raw, kind: type):
    """Return ``raw`` if its type is exactly ``kind`` and its value or length is in the range of `_MAX_SIZES`, if any.

    Raises:
        TypeError: the type differs.
        ValueError: the value or length is out of range.
    """
    if type(raw) is not kind:
        raise TypeError(f"a value must be a {kind.__name__}, got a {type(raw).__name__}")
    if kind in _MAX_SIZES and not 0 <= (raw if kind is int else len(raw)) <= _MAX_SIZES[kind]:
        measure = "value" if kind is int else "length"
        raise ValueError(f"the {measure} of a {kind.__name__} must be 0 to {_MAX_SIZES[kind]}")
    return raw


def _parse_time(raw) -> float:
    """Return ``raw`` as milliseconds. Raise ValueError if it is not a number above 0 and below 1e9."""
    if type(raw) not in (int, float) or not 0 < raw < 1e9:
        raise ValueError("a time must be a number of milliseconds above 0 and below 1e9")
    return float(raw)


def _parse_quantiles(raw) -> Quantiles:
    """Return ``raw`` as ascending times in milliseconds. Raise ValueError or TypeError if it is not three of them."""
    p20, p50, p80 = map(_parse_time, raw)
    if not p20 <= p50 <= p80:
        raise ValueError(f"quantiles must ascend, got {p20}, {p50} and {p80}")
    return p20, p50, p80
