"""Search for a problem in tuned tables.

Sources count in this order: this process, this user's tables, shipped tables, tables of a similar device. A similar
device has as many multiprocessors of the same compute capability. Within a source the nearest measurement counts.

Fresh entries of all sources come before stale ones. An entry from another minor version of Triton is stale: it is used
if no fresh one is found, and the plan reports that. If the new version cannot compile the entry's configuration, the
first launch replaces it (`launch.execute.replace_failing_plan`).
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
# A verdict holds for input sizes within this factor, as they change the projection only.
_MAX_INPUT_RATIO = 4
_MAX_FILES = 64  # read of each folder


class Source(NamedTuple):
    """The entries of one file, or of this process.

    Attributes:
        name: the source's name in plans.
        is_from_user: whether this user, or this process, measured the entries.
        entries: the valid entries.
    """

    name: str
    is_from_user: bool
    entries: list[Entry]


class Verdict(NamedTuple):
    """The implementation that an entry says to take for a problem.

    Attributes:
        winner: name of the implementation.
        config: the winner's configuration, or None for ``"torch"``.
        projection: the winner's projection, as in `Plan`.
        milliseconds: the median of each measured implementation.
        source: the source's name, with the entry's date and whether it is stale.
        key: the entry's key. Its T and I may differ from the problem's.
        in_graph: whether the medians are of calls in a CUDA graph.
    """

    winner: str
    config: Config | None
    projection: Projection | None
    milliseconds: dict[str, float]
    source: str
    key: Key
    in_graph: bool


# Entries that this process measured, by device, and configurations that failed in this process.
_own_entries: dict[Device, dict[Key, Entry]] = {}
_failing_configs: set[tuple[Device, Config]] = set()


def find_config(name: str, problem: Problem, device: Device) -> tuple[Config, Projection | None, str] | None:
    """Return the fastest configuration of an implementation, measured nearest to the problem, or None.

    If the projection by cuBLAS was not measured, the scan's configuration with our own projection serves. A tile of our
    own projection is returned only if a verdict of its entry holds for the problem.

    Returns:
        The scan's configuration, the projection, and the source with the entry's date and whether it is stale.
    """
    wanted = problem.key()
    kernel, projection = split_implementation(name)
    for entry, source in _iterate_nearest(wanted, device):
        result = entry.results.get(name) or entry.results.get(kernel)
        if result and (config := _runnable_config(result, problem, device)):
            if projection is None and _is_verdict_valid(entry.key, wanted):
                projection = _runnable_tile(result, config, problem, device)
            return config, projection, source
    return None


def find_verdict(problem: Problem, device: Device, options: Container[str]) -> Verdict | None:
    """Return which of ``options`` was measured to be the fastest for a problem like this, or None."""
    wanted = problem.key()
    for entry, source in _iterate_nearest(wanted, device):
        if not _is_verdict_valid(entry.key, wanted) or ("torch" in options and "torch" not in entry.results):
            continue
        configs = {name: _runnable_config(result, problem, device) for name, result in entry.results.items()}
        times = {
            name: entry.results[name].ms
            for name, config in configs.items()
            if name in options and (config or name == "torch")
        }
        if times:
            winner = entry.winner if entry.winner in times else min(times, key=times.get)
            result, config = entry.results[winner], configs[winner]
            projection = split_implementation(winner)[1] or (config and _runnable_tile(result, config, problem, device))
            return Verdict(winner, config, projection, times, source, entry.key, bool(result.graph_ms))
    return None


def _runnable_config(result: TimedResult, problem: Problem, device: Device) -> Config | None:
    """Return the result's configuration, adapted to this problem, or None if it has none or cannot run."""
    if result.config is None:
        return None
    config = adapt_config(result.config, problem, device)
    is_failing = (device, config) in _failing_configs
    return None if unsupported_config_reason(config, problem, device) or is_failing else config


def _runnable_tile(result: TimedResult, config: Config, problem: Problem, device: Device) -> Projection | None:
    """Return the result's tile of the projection, or None if it has none or cannot run."""
    return None if unsupported_projection_reason(result.tile, config, problem, device) else result.tile


def _distance(key: Key, wanted: Key) -> tuple[float, ...]:
    """Return how far a measurement is from the wanted key, the most important difference first.

    The first three tell whether directions, layout and layers differ. There a configuration may differ, but not a
    verdict. The others are the ratios of steps and input sizes, in powers of two.
    """
    differences = (getattr(key, name) != getattr(wanted, name) for name in ("directions", "layout", "layers"))
    return *differences, _log_ratio(key.steps, wanted.steps), _log_ratio(key.input_size, wanted.input_size)


def _log_ratio(a: int, b: int) -> float:
    return abs(math.log2(a / b))


def _is_verdict_valid(key: Key, wanted: Key) -> bool:
    """Return whether a verdict on ``key`` holds for ``wanted``.

    A measurement at T steps holds for longer sequences, and down to T / 2. Below that, the costs of a call that do not
    depend on T matter.
    """
    *differences, _, input_distance = _distance(key, wanted)
    are_inputs_near = input_distance <= math.log2(_MAX_INPUT_RATIO)
    return not any(differences) and key.steps <= 2 * wanted.steps and are_inputs_near


def _iterate_nearest(wanted: Key, device: Device) -> Iterator[tuple[Entry, str]]:
    """Yield entries of equal sizes with their source text: fresh ones first, then by source, then by distance."""
    ranked = _entries(device).get(_equal_fields(wanted), ())
    for _, entry, source in sorted(ranked, key=lambda item: (item[0], _distance(item[1].key, wanted))):
        yield entry, source


def _equal_fields(key: Key) -> tuple:
    """Return the fields that have to be equal for a measurement to hold."""
    return key.hidden_size, key.batch, key.dtype, key.precision, key.reset_after, key.steps == 1


@functools.lru_cache(maxsize=64)
def _entries(device: Device) -> dict[tuple, list[tuple[tuple, Entry, str]]]:
    """Return tuples of rank, entry and source text by the entry's `_equal_fields`. The rank is (stale, source)."""
    entries = {}
    for number, source in enumerate(sources(device)):
        for entry in source.entries:
            text, reason = f"{source.name}, of {entry.tuned_at[:10]}", entry.stale_reason
            if reason:
                text += f", stale: {reason} (`triton-gru tune` measures it again)"
            entries.setdefault(_equal_fields(entry.key), []).append(((bool(reason), number), entry, text))
    return entries


def sources(device: Device) -> list[Source]:
    """Return all sources of entries for a device, in the order in which they count."""
    own = [Source("this process", True, list(_own_entries[device].values()))] if device in _own_entries else []
    return own + _read_files(device)


@functools.lru_cache(maxsize=64)
def _read_files(device: Device) -> list[Source]:
    """Return the tables for a device and for similar devices. Each file is read once.

    An invalid file with the device's name, and invalid entries, are ignored with a warning. Other invalid files are
    ignored without one.
    """
    own, similar = [], []
    for folder, kind in ((store.user_directory(), "table"), (SHIPPED_DIRECTORY, "shipped table")):
        for path in _tables_in(folder):
            has_device_name = path.name == store.file_name(device)
            try:
                table = store.load(path, device if has_device_name else None)
            except (OSError, store.UnusableTableError) as error:
                if has_device_name:
                    _warn(path, f"{error}; it is not used, and not changed")
                continue
            if table.device == store.describe_device(device):
                own.append(Source(f"{kind} {path}", folder != SHIPPED_DIRECTORY, table.entries))
                if table.skipped:
                    count = f"{len(table.skipped)} of {len(table.raw)} entries"
                    _warn(path, f"ignored {count} that this version cannot read: {table.skipped[0]}")
            elif {**table.device, "name": ""} == {**store.describe_device(device), "name": ""}:
                similar.append(Source(f"{kind} of a similar device, {path}", False, table.entries))
    return own + similar


def _tables_in(folder: pathlib.Path | None) -> list[pathlib.Path]:
    try:
        return sorted(folder.glob("*.json"))[:_MAX_FILES] if folder else []
    except OSError:
        return []


def _warn(path: pathlib.Path, message: str) -> None:
    warnings.warn(f"triton_gru's tuned table {path}: {message}", stacklevel=2)


def remember(device: Device, entries: list[Entry]) -> None:
    """Let entries count before any file for the rest of this process.

    Plans that were made before do not change: call `planner.clear_plan_cache`.
    """
    _own_entries.setdefault(device, {}).update({entry.key: entry for entry in entries})
    _entries.cache_clear()


def exclude_config(device: Device, config: Config) -> None:
    """Do not use a configuration again in this process, because it failed to run."""
    _failing_configs.add((device, config))


def clear_table_cache() -> None:
    """Forget the entries and failures of this process, and read files again when needed."""
    _own_entries.clear()
    _failing_configs.clear()
    _read_files.cache_clear()
    _entries.cache_clear()
