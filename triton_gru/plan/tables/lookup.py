"""Search for a problem in tuned tables.

Sources take precedence in this order: this process, this user's tables, shipped tables, tables of a similar device. A
similar device has the same number of multiprocessors and the same compute capability. Within a source, the measurement
nearest to the problem takes precedence.

Fresh entries of all sources take precedence over stale entries. An entry is stale if it is from another minor version
of Triton, or if the code of one of its kernels has changed. An entry with times of nn.GRU or cuBLAS is also stale if it
is from another minor version of torch. A stale entry is used if no fresh entry is found, and the plan reports that. If
the new version cannot compile the entry's configuration, the first launch replaces the plan
(`launch.execute.replace_failing_plan`).
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
        is_from_user: whether the entries are of this process, or of this device in the user's folder.
        entries: the valid entries.
    """

    name: str
    is_from_user: bool
    entries: list[Entry]


class Verdict(NamedTuple):
    """An entry of a table, applied to a problem: the times of implementations, and the implementation to choose.

    Attributes:
        winner: name of the implementation to choose.
        config: the winner's configuration, or None for ``"torch"``.
        projection: the winner's projection, as in `Plan`.
        milliseconds: the median of each implementation to choose from that was measured and can run.
        source: the source's name, with the entry's date and whether it is stale.
        key: the entry's key. Its T and I may differ from the problem's.
        in_graph: whether the winner's median is of calls in a CUDA graph.
    """

    winner: str
    config: Config | None
    projection: Projection | None
    milliseconds: dict[str, float]
    source: str
    key: Key
    in_graph: bool


# Entries that this process measured, by device, and configurations that failed to run in this process.
_process_entries: dict[Device, dict[Key, Entry]] = {}
_failing_configs: set[tuple[Device, Config]] = set()


def find_config(name: str, problem: Problem, device: Device) -> tuple[Config, Projection | None, str] | None:
    """Return the fastest configuration of the implementation ``name`` in a table, or None if none can run.

    The configuration is from the first entry, in the order of `_iterate_nearest`, that has one which can run. If
    ``name`` is with cuBLAS, and the entry lacks it, the configuration is that of the same kernel with our own
    projection. A measured tile of our own projection is returned only if the entry is near enough for a verdict.

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
    """Return the verdict of the first entry that holds for the problem, or None if there is no such entry.

    Entries are in the order of `_iterate_nearest`. ``options`` are the names of the implementations to choose from. If
    nn.GRU is among them, the entry must have its time. The entry must have an option that can run. If the entry's
    winner is not an option or cannot run, the fastest of ``options`` wins.
    """
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
    """Return the result's configuration, adapted to this problem. Return None for ``"torch"``, or if it cannot run."""
    if result.config is None:
        return None
    config = adapt_config(result.config, problem, device)
    is_failing = (device, config) in _failing_configs
    return None if unsupported_config_reason(config, problem, device) or is_failing else config


def _runnable_tile(result: TimedResult, config: Config, problem: Problem, device: Device) -> Projection | None:
    """Return the result's tile of our own projection, or None, the usual tile, if there is none or it cannot run."""
    return None if unsupported_projection_reason(result.tile, config, problem, device) else result.tile


def _distance(key: Key, wanted: Key) -> tuple[float, ...]:
    """Return how far a measurement is from the wanted key, the most important difference first.

    The first three values tell whether directions, layout and layers differ. If one differs, the measured configuration
    may be used, but not the verdict. The last two values are the ratios of steps and of input sizes, in powers of two.
    """
    differences = (getattr(key, name) != getattr(wanted, name) for name in ("directions", "layout", "layers"))
    return *differences, _log_ratio(key.steps, wanted.steps), _log_ratio(key.input_size, wanted.input_size)


def _log_ratio(size: int, other_size: int) -> float:
    """Return the distance of two sizes as a power of two: 1 if one is twice the other."""
    return abs(math.log2(size / other_size))


def _is_verdict_valid(key: Key, wanted: Key) -> bool:
    """Return whether a verdict that was measured for ``key`` holds for ``wanted``.

    Directions, layout and layers must be equal, and input sizes within `_MAX_INPUT_RATIO`. A measurement at T steps
    holds for longer sequences, and down to T / 2. Below T / 2, the costs of a call that do not depend on T matter too
    much.
    """
    *differences, _, input_distance = _distance(key, wanted)
    are_inputs_near = input_distance <= math.log2(_MAX_INPUT_RATIO)
    return not any(differences) and key.steps <= 2 * wanted.steps and are_inputs_near


def _iterate_nearest(wanted: Key, device: Device) -> Iterator[tuple[Entry, str]]:
    """Yield the entries that may hold for ``wanted``, each with a text that describes its source.

    Fresh entries come before stale entries, then the order is that of `sources`, then by distance from ``wanted``.
    """

    def order(ranked_entry: tuple) -> tuple:
        rank, entry, _ = ranked_entry
        return rank, _distance(entry.key, wanted)

    for _, entry, source_text in sorted(_group_entries(device).get(_required_fields(wanted), ()), key=order):
        yield entry, source_text


def _required_fields(key: Key) -> tuple:
    """Return the parts of a key that must be equal in a measurement and a problem."""
    return key.hidden_size, key.batch, key.dtype, key.precision, key.reset_after, key.steps == 1


@functools.lru_cache(maxsize=64)
def _group_entries(device: Device) -> dict[tuple, list[tuple[tuple, Entry, str]]]:
    """Return all entries for a device by their `_required_fields`, as (rank, entry, source text).

    A rank is (whether the entry is stale, index of its source). Entries with the lowest rank take precedence.
    """
    groups = {}
    for source_index, source in enumerate(sources(device)):
        for entry in source.entries:
            date = entry.tuned_at[:10]  # without the time
            source_text, reason = f"{source.name}, of {date}", entry.stale_reason
            if reason:
                source_text += f", stale: {reason} (`triton-gru tune` measures it again)"
            rank = bool(reason), source_index
            groups.setdefault(_required_fields(entry.key), []).append((rank, entry, source_text))
    return groups


def sources(device: Device) -> list[Source]:
    """Return all sources of entries for a device. An earlier source takes precedence over a later one."""
    if device not in _process_entries:
        return list(_read_files(device))
    return [Source("this process", True, list(_process_entries[device].values())), *_read_files(device)]


@functools.lru_cache(maxsize=64)
def _read_files(device: Device) -> list[Source]:
    """Return the tables for a device, then those for similar devices. Each file is read once for the device.

    An invalid file with the device's name, and invalid entries of the device's tables, are ignored with a warning.
    Other invalid files and entries are ignored without a warning.
    """
    device_fields = store.describe_device(device)
    own_tables, similar_tables = [], []
    for folder, kind in ((store.user_directory(), "table"), (SHIPPED_DIRECTORY, "shipped table")):
        for path in _list_tables(folder):
            has_device_name = path.name == store.file_name(device)
            try:
                table = store.load(path, device if has_device_name else None)
            except (OSError, store.UnusableTableError) as error:
                if has_device_name:
                    _warn(path, f"{error}; it is not used, and not changed")
                continue
            if table.device == device_fields:
                own_tables.append(Source(f"{kind} {path}", folder != SHIPPED_DIRECTORY, table.entries))
                if table.skipped:
                    count = f"{len(table.skipped)} of {len(table.raw)} entries"
                    _warn(path, f"ignored {count} that this version cannot read: {table.skipped[0]}")
            elif {**table.device, "name": ""} == {**device_fields, "name": ""}:  # equal except for the name
                similar_tables.append(Source(f"{kind} of a similar device, {path}", False, table.entries))
    return own_tables + similar_tables


def _list_tables(folder: pathlib.Path | None) -> list[pathlib.Path]:
    """Return the paths of at most `_MAX_FILES` tables in a folder, none if there is no folder or it cannot be read."""
    try:
        return sorted(folder.glob("*.json"))[:_MAX_FILES] if folder else []
    except OSError:
        return []


def _warn(path: pathlib.Path, message: str) -> None:
    warnings.warn(f"triton_gru's tuned table {path}: {message}", stacklevel=2)


def add_process_entries(device: Device, entries: list[Entry]) -> None:
    """Use entries that this process measured, until the process ends or `clear_table_cache` is called.

    If they are fresh, they take precedence over all files.
    Plans that are cached already do not change. Call `planner.clear_plan_cache` for that.
    """
    _process_entries.setdefault(device, {}).update({entry.key: entry for entry in entries})
    _group_entries.cache_clear()


def exclude_config(device: Device, config: Config) -> None:
    """Do not use a configuration again in this process, because it failed to run."""
    _failing_configs.add((device, config))


def clear_table_cache() -> None:
    """Forget the entries and failures of this process, and read files again when needed."""
    _process_entries.clear()
    _failing_configs.clear()
    _read_files.cache_clear()
    _group_entries.cache_clear()
