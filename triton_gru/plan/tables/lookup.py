"""What tables say of a problem: those of this process, of this user, those that come with the package, and as a last
resort those of another device with as many multiprocessors of the same kind.

What is fresh comes before what is stale, whatever table it is in; of one table the nearest measurement counts. An entry
made with another minor version of Triton is stale: it is used where there is no fresh one, and its plan says so. A
configuration that the new version cannot compile is replaced when it is first launched (`launch.untuned`).
"""

import functools
import math
import operator
import pathlib
import warnings
from collections.abc import Container, Iterator
from dataclasses import dataclass

from ..config import Config
from ..device import Device
from ..problem import Key, Problem
from ..validity import for_problem, why_not
from . import store
from .entries import Entry, Result
from .revision import stale

SHIPPED = pathlib.Path(__file__).parent / "data"
# A verdict holds for as many inputs within this factor: they change the projection alone.
_INPUTS = 4
_MOST_FILES = 64


@dataclass(frozen=True)
class Source:
    """Entries that came together.

    Attributes:
        name: what to call them.
        own: whether they were found by this user.
        stale: for each entry why it may no longer hold, or nothing.
    """

    name: str
    own: bool
    entries: tuple[Entry, ...]
    stale: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """Which kernel is to be taken and how, the medians of all that were measured beside it, and where that stands."""

    winner: str
    config: Config | None
    milliseconds: dict[str, float]
    source: str


# What was found in this process, by device; and what has turned out not to run in it.
_memory: dict[Device, list[Entry]] = {}
_failing: set[tuple[Device, Config]] = set()


def configuration(kernel: str, problem: Problem, device: Device) -> tuple[Config, str] | None:
    """The configuration measured nearest to a problem for a kernel, and where it stands; None if none holds for it."""

    def distance(key: Key, wanted: Key) -> tuple | None:
        if (key.steps == 1) != (wanted.steps == 1):
            return None
        return *_unlike(key, wanted), _ratio(key.steps, wanted.steps), _ratio(key.input_size, wanted.input_size)

    for entry, source in _nearest(problem, device, distance):
        if (result := entry.results.get(kernel)) and (config := _runnable(result, problem, device)):
            return config, source
    return None


def verdict(problem: Problem, device: Device, options: Container[str]) -> Verdict | None:
    """Which of ``options`` was fastest for such a problem; None if that was not measured.

    What was measured at T steps holds for longer sequences, and to half of T: below, what a call costs once counts.
    """

    def distance(key: Key, wanted: Key) -> tuple | None:
        alike = (key.steps == 1) == (wanted.steps == 1) and key.steps <= 2 * wanted.steps
        inputs = _ratio(key.input_size, wanted.input_size)
        holds = alike and inputs <= math.log2(_INPUTS) and not any(_unlike(key, wanted))
        return (_ratio(key.steps, wanted.steps), inputs) if holds else None

    for entry, source in _nearest(problem, device, distance):
        if "torch" in options and "torch" not in entry.results:
            continue
        configs = {kernel: _runnable(result, problem, device) for kernel, result in entry.results.items()}
        times = {
            kernel: result.ms
            for kernel, result in entry.results.items()
            if kernel in options and (kernel == "torch" or configs[kernel])
        }
        if times:
            winner = entry.winner if entry.winner in times else min(times, key=times.get)
            return Verdict(winner, configs[winner], times, source)
    return None


def _runnable(result: Result, problem: Problem, device: Device) -> Config | None:
    """The result's configuration for this problem, None if it has none or cannot run."""
    if result.config is None:
        return None
    config = for_problem(result.config, problem, device)
    return None if why_not(config, problem, device) or (device, config) in _failing else config


def _unlike(key: Key, wanted: Key) -> list[bool]:
    """In what a configuration may differ, but not a verdict."""
    return [getattr(key, name) != getattr(wanted, name) for name in ("directions", "layout", "layers")]


def _ratio(a: int, b: int) -> float:
    """How far apart, as a power of two."""
    return abs(math.log2(a / b))


def _nearest(problem: Problem, device: Device, distance) -> Iterator[tuple[Entry, str]]:
    """Entries whose ``distance(key, wanted)`` is not None, with their source: fresh ones first, by source, by it."""
    found, wanted = [], problem.key()
    for rank, entry, source in _entries(device).get(_sizes(wanted), ()):
        if (away := distance(entry.key, wanted)) is not None:
            found.append(((rank, away), entry, source))
    for _, entry, source in sorted(found, key=operator.itemgetter(0)):
        yield entry, source


def _sizes(key: Key) -> tuple:
    """What has to be the same."""
    return key.hidden_size, key.batch, key.dtype, key.precision, key.reset_after


@functools.lru_cache(maxsize=64)
def _entries(device: Device) -> dict[tuple, list[tuple[tuple, Entry, str]]]:
    """All entries by their sizes: (rank of the source, entry, source in words)."""
    found = {}
    for number, source in enumerate(sources(device)):
        for entry, old in zip(source.entries, source.stale):
            words = f"{source.name}, of {entry.tuned_at[:10]}" + (
                f", stale: {old} (`triton-gru tune` measures it again)" if old else ""
            )
            found.setdefault(_sizes(entry.key), []).append(((bool(old), number), entry, words))
    return found


def sources(device: Device) -> list[Source]:
    """All that there are for a device, in the order in which they count."""
    memory = [_source("this process", True, _memory[device])] if device in _memory else []
    return memory + _files(device)


@functools.lru_cache(maxsize=64)
def _files(device: Device) -> list[Source]:
    """Read once; a file that is no table, or an entry that is none, is left out with one warning."""
    own, others = [], []
    for folder, kind in ((store.user_directory(), "table"), (SHIPPED, "shipped table")):
        for path in _tables_in(folder):
            named = path.name == store.file_name(device)
            try:
                table = store.load(path)
            except (OSError, store.Unusable) as error:
                if named:  # others are not of our concern
                    _warn(path, f"{error}; it is left alone and not used")
                continue
            if table.device == store.described(device):
                own.append(_source(f"{kind} {path}", folder != SHIPPED, table.entries))
                if table.skipped:
                    count = f"{len(table.skipped)} of {len(table.raw)} entries"
                    _warn(path, f"{count} are none that this version understands, and not used: {table.skipped[0]}")
            elif named:
                _warn(path, f"it is of {table.device}, not of {store.described(device)}; it is not used")
            elif {**table.device, "name": ""} == {**store.described(device), "name": ""}:
                others.append(_source(f"{kind} of a like device, {path}", False, table.entries))
    return own + others


def _tables_in(folder: pathlib.Path | None) -> list[pathlib.Path]:
    try:
        return sorted(folder.glob("*.json"))[:_MOST_FILES] if folder else []
    except OSError:
        return []


def _source(name: str, own: bool, entries: list[Entry]) -> Source:
    return Source(name, own, tuple(entries), tuple(_stale(entry) for entry in entries))


def _stale(entry: Entry) -> str:
    reasons = (stale(kernel, result.revision, entry.env) for kernel, result in entry.results.items())
    return next(filter(None, reasons), "")


def _warn(path: pathlib.Path, what: str) -> None:
    warnings.warn(f"triton_gru's tuned table {path}: {what}", stacklevel=2)


def remember(device: Device, entries: list[Entry]) -> None:
    """They count from now on in this process, before any file; plans have to be made anew."""
    replaced = {entry.key for entry in entries}
    kept = [entry for entry in _memory.get(device, []) if entry.key not in replaced]
    _memory[device] = kept + entries
    _entries.cache_clear()


def distrust(device: Device, config: Config) -> None:
    """A configuration that does not run after all is not used again in this process."""
    _failing.add((device, config))


def forget() -> None:
    """Nothing was found in this process, and files are read anew."""
    _memory.clear()
    _failing.clear()
    _files.cache_clear()
    _entries.cache_clear()
