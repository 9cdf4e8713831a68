"""What tables say of a problem: those of this process, of this user, those that come with the package, and as a last
resort those of another device with as many multiprocessors of the same kind.

What is fresh comes before what is stale, whatever table it is in; of one table the nearest measurement counts. An entry
made with another minor version of Triton is stale: it is used where there is no fresh one, and its plan says so. A
configuration that the new version cannot compile is replaced when it is first launched (`launch.replace_failing_plan`).
"""

import functools
import math
import pathlib
import warnings
from collections.abc import Container, Iterator
from typing import NamedTuple

from ..config import Config, Projection, split_implementation
from ..device import Device
from ..problem import Key, Problem
from ..validity import adapt_config, unsupported_config_reason, unsupported_projection_reason
from . import store
from .entries import Entry, TimedResult

SHIPPED_DIRECTORY = pathlib.Path(__file__).parent / "data"
# A verdict holds for as many inputs within this factor: they change the projection alone.
_INPUTS = 4
_MOST_FILES = 64


class Source(NamedTuple):
    """Entries that came together.

    Attributes:
        name: what to call them.
        is_from_user: whether they were found by this user.
    """

    name: str
    is_from_user: bool
    entries: list[Entry]


class Verdict(NamedTuple):
    """Which implementation is to be taken and how, and where that stands.

    Attributes:
        milliseconds: the median of each implementation that was measured.
        key: of the measurement, whose T and I may differ from the problem's.
        in_graph: whether that is of calls in a CUDA graph.
    """

    winner: str
    config: Config | None
    projection: Projection | None
    milliseconds: dict[str, float]
    source: str
    key: Key
    in_graph: bool


# What was found in this process, by device; and what has turned out not to run in it.
_memory: dict[Device, dict[Key, Entry]] = {}
_failing: set[tuple[Device, Config]] = set()


def find_config(name: str, problem: Problem, device: Device) -> tuple[Config, Projection | None, str] | None:
    """Return how an implementation was fastest nearest to a problem, and where that stands; None if none holds for it.

    Where cuBLAS's projection was not measured, the scan is configured as with ours. A tile of our own holds where a
    verdict does.
    """
    wanted = problem.key()
    kernel, projection = split_implementation(name)
    for entry, source in _nearest(wanted, device):
        result = entry.results.get(name) or entry.results.get(kernel)
        if result and (config := _runnable(result, problem, device)):
            if projection is None and _is_verdict_valid(entry.key, wanted):
                projection = _tile(result, config, problem, device)
            return config, projection, source
    return None


def find_verdict(problem: Problem, device: Device, options: Container[str]) -> Verdict | None:
    """Return which of ``options`` was fastest for such a problem; None if that was not measured."""
    wanted = problem.key()
    for entry, source in _nearest(wanted, device):
        if not _is_verdict_valid(entry.key, wanted) or ("torch" in options and "torch" not in entry.results):
            continue
        configs = {name: _runnable(result, problem, device) for name, result in entry.results.items()}
        times = {
            name: entry.results[name].ms
            for name, config in configs.items()
            if name in options and (config or name == "torch")
        }
        if times:
            winner = entry.winner if entry.winner in times else min(times, key=times.get)
            result, config = entry.results[winner], configs[winner]
            projection = split_implementation(winner)[1] or (config and _tile(result, config, problem, device))
            return Verdict(winner, config, projection, times, source, entry.key, bool(result.graph_ms))
    return None


def _runnable(result: TimedResult, problem: Problem, device: Device) -> Config | None:
    """Return the result's configuration for this problem, None if it has none or cannot run."""
    if result.config is None:
        return None
    config = adapt_config(result.config, problem, device)
    return None if unsupported_config_reason(config, problem, device) or (device, config) in _failing else config


def _tile(result: TimedResult, config: Config, problem: Problem, device: Device) -> Projection | None:
    """Return the result's tile of the projection, None if it has none or cannot run."""
    return None if unsupported_projection_reason(result.tile, config, problem, device) else result.tile


def _distance(key: Key, wanted: Key) -> tuple[float, ...]:
    """Return how far a measurement is from what is wanted, the most important first: no, or by how many powers of two.

    In the first three a configuration may differ, but not a verdict.
    """
    unlike = (getattr(key, name) != getattr(wanted, name) for name in ("directions", "layout", "layers"))
    return *unlike, _ratio(key.steps, wanted.steps), _ratio(key.input_size, wanted.input_size)


def _ratio(a: int, b: int) -> float:
    return abs(math.log2(a / b))


def _is_verdict_valid(key: Key, wanted: Key) -> bool:
    """Return whether a verdict on ``key`` holds.

    What was measured at T steps holds for longer sequences, and to half of T: below, what a call costs once counts.
    """
    *unlike, _, inputs = _distance(key, wanted)
    return not any(unlike) and key.steps <= 2 * wanted.steps and inputs <= math.log2(_INPUTS)


def _nearest(wanted: Key, device: Device) -> Iterator[tuple[Entry, str]]:
    """Yield entries of the same sizes with their source: fresh ones first, by source, by distance."""
    found = _entries(device).get(_sizes(wanted), ())
    for _, entry, source in sorted(found, key=lambda each: (each[0], _distance(each[1].key, wanted))):
        yield entry, source


def _sizes(key: Key) -> tuple:
    """Return what has to be the same."""
    return key.hidden_size, key.batch, key.dtype, key.precision, key.reset_after, key.steps == 1


@functools.lru_cache(maxsize=64)
def _entries(device: Device) -> dict[tuple, list[tuple[tuple, Entry, str]]]:
    """Return all entries by their sizes: (rank of the source, entry, source in words)."""
    found = {}
    for number, source in enumerate(sources(device)):
        for entry in source.entries:
            words, reason = f"{source.name}, of {entry.tuned_at[:10]}", entry.stale_reason
            if reason:
                words += f", stale: {reason} (`triton-gru tune` measures it again)"
            found.setdefault(_sizes(entry.key), []).append(((bool(reason), number), entry, words))
    return found


def sources(device: Device) -> list[Source]:
    """Return all that there are for a device, in the order in which they count."""
    memory = [Source("this process", True, list(_memory[device].values()))] if device in _memory else []
    return memory + _files(device)


@functools.lru_cache(maxsize=64)
def _files(device: Device) -> list[Source]:
    """Read files once; leave out, with one warning, a file that is no table and an entry that is none."""
    own, others = [], []
    for folder, kind in ((store.user_directory(), "table"), (SHIPPED_DIRECTORY, "shipped table")):
        for path in _tables_in(folder):
            named = path.name == store.file_name(device)
            try:
                table = store.load(path, device if named else None)
            except (OSError, store.UnusableTableError) as error:
                if named:  # others are not of our concern
                    _warn(path, f"{error}; it is left alone and not used")
                continue
            if table.device == store.describe_device(device):
                own.append(Source(f"{kind} {path}", folder != SHIPPED_DIRECTORY, table.entries))
                if table.skipped:
                    count = f"{len(table.skipped)} of {len(table.raw)} entries"
                    _warn(path, f"{count} are none that this version understands, and not used: {table.skipped[0]}")
            elif {**table.device, "name": ""} == {**store.describe_device(device), "name": ""}:
                others.append(Source(f"{kind} of a like device, {path}", False, table.entries))
    return own + others


def _tables_in(folder: pathlib.Path | None) -> list[pathlib.Path]:
    try:
        return sorted(folder.glob("*.json"))[:_MOST_FILES] if folder else []
    except OSError:
        return []


def _warn(path: pathlib.Path, what: str) -> None:
    warnings.warn(f"triton_gru's tuned table {path}: {what}", stacklevel=2)


def remember(device: Device, entries: list[Entry]) -> None:
    """Let entries count from now on in this process, before any file; plans have to be made anew."""
    _memory.setdefault(device, {}).update({entry.key: entry for entry in entries})
    _entries.cache_clear()


def exclude_config(device: Device, config: Config) -> None:
    """Do not use a configuration again in this process, as it does not run after all."""
    _failing.add((device, config))


def clear_table_cache() -> None:
    """Forget what was found in this process, and read files anew."""
    _memory.clear()
    _failing.clear()
    _files.cache_clear()
    _entries.cache_clear()
