"""The command ``triton-gru table``: looks at tuned tables, and carries them from one machine to another."""

import argparse
import dataclasses
import functools
import pathlib
import sys
from collections import Counter

from ..plan.config import report_name
from ..plan.device import Device, list_gpus, match_device
from ..plan.planner import choose
from ..plan.tables import lookup, store
from ..plan.tables.entries import Entry
from ..plan.tables.merge import Merge
from ..plan.validity import adapt_config, unsupported_config_reason, unsupported_projection_reason
from ..tuning.progress import describe_shape
from ..units import format_count, format_number, format_time

_NO_FOLDER = "there is no home: name a folder in TRITON_GRU_CONFIG_DIR"


def add_parser(commands) -> None:
    """Add ``table`` to the commands of a parser."""
    parser = commands.add_parser(
        "table",
        help="show, check and merge what was tuned, and take it to another machine",
        description="Tunes on one machine, serves on another: `table export` here, `table merge` there.",
    )
    actions = parser.add_subparsers(dest="action", required=True)
    files = argparse.ArgumentParser(add_help=False)
    files.add_argument(
        "files", nargs="*", type=pathlib.Path, metavar="FILE", help="default: this user's, and the package's"
    )
    actions.add_parser("show", parents=[files], help="what is fastest for each shape, and by how much")
    actions.add_parser(
        "check",
        parents=[files],
        help="whether this version understands all of a table",
        description="Exit status: 0 if all is in force, 1 if an entry is not, 2 if a file is no table.",
    )
    export = actions.add_parser("export", help="write this user's table of a GPU to a file")
    export.add_argument("file", type=pathlib.Path, metavar="FILE")
    export.add_argument("--device", metavar="NAME", help="as `table show` has it (default: this machine's GPU)")
    export.add_argument("--force", action="store_true", help="overwrite FILE")
    merge = actions.add_parser(
        "merge",
        help="take tables of other machines into this user's folder",
        description="Of two entries of one shape the fresh one wins over a stale one, else the one tuned later.",
    )
    merge.add_argument("files", nargs="+", type=pathlib.Path, metavar="FILE")
    merge.add_argument("--into", type=pathlib.Path, metavar="FOLDER", help="default: this user's folder of tables")


def run(options) -> int:
    """Run ``triton-gru table`` and return its exit status."""
    action = {"show": _show, "check": _check, "export": _export, "merge": _merge}[options.action]
    try:
        return action(options)
    except (OSError, store.UnusableTableError) as error:
        _complain(str(error))
        return 2


def _say(line: str = "") -> None:
    """Print a line, of which parts may come from a file that is not trusted."""
    print("".join(each if each.isprintable() else "?" for each in line).rstrip())


def _complain(what: str) -> None:
    print(f"triton-gru table: {what}", file=sys.stderr)


# Reading.


def _user_directory() -> pathlib.Path:
    folder = store.user_directory()
    if folder is None:
        raise store.UnusableTableError(_NO_FOLDER)
    return folder


def _files_in(*folders: pathlib.Path | None) -> list[pathlib.Path]:
    return [path for folder in folders if folder for path in sorted(folder.glob("*.json"))]


def _load(path: pathlib.Path) -> store.Table | str:
    """Return a table, or why it is none."""
    try:
        return store.load(path)
    except store.UnusableTableError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def _loaded(files: list[pathlib.Path]) -> list[tuple[pathlib.Path, store.Table | str]]:
    """Return what is in the given files. Without any, return what is in those that there are."""
    found = files or _files_in(store.user_directory(), lookup.SHIPPED_DIRECTORY)
    if not found:
        _say(f"there are no tables in {store.user_directory() or _NO_FOLDER}, and none come with the package")
    return [(path, _load(path)) for path in found]


def _in_words(device: dict) -> str:
    return f"{device['name']} (sm_{device['cc']}, {format_count(device['sms'], 'multiprocessor')})"


# Show.


def _show(options) -> int:
    status = 0
    for path, table in _loaded(options.files):
        if isinstance(table, str):
            _complain(f"{path} is no table: {table}")
            status = 2
        else:
            for line in _shown(path, table):
                _say(line)
    return status


def _shown(path: pathlib.Path, table: store.Table) -> list[str]:
    stale = sum(bool(entry.stale_reason) for entry in table.entries)
    counts = f"{format_count(len(table.entries), 'shape')}, {stale} stale, {len(table.skipped)} not understood"
    lines = [f"{path}: {_in_words(table.device)}{_use_here(table.device)}", counts]
    lines += [f"not understood: {why}" for why in table.skipped]
    device = _device_of(table.device)
    rows = [_row(entry, device) for entry in sorted(table.entries, key=lambda entry: dataclasses.astuple(entry.key))]
    return [*lines, *(_in_columns([_TITLES, *rows]) if rows else []), ""]


def _use_here(device: dict) -> str:
    """Return whether GPUs of this machine use a device's table."""
    here = [store.describe_device(each) for each in list_gpus()]
    if device in here:
        return ", in force here"
    like = [each["name"] for each in here if {**each, "name": ""} == {**device, "name": ""}]
    return f", in force here for what the tables of {like[0]} do not have" if like else ""


_TITLES = ["shape", "fastest", "time", "vs untuned", "vs nn.GRU", "tuned", ""]


def _row(entry: Entry, device: Device | None) -> list[str]:
    speedup_over_untuned = entry.speedup_over_untuned(_untuned(entry, device))
    return [
        describe_shape(entry.key), report_name(entry.winner), format_time(1000 * entry.ms), _times(speedup_over_untuned),
        _times(entry.speedup_over_nn_gru), entry.tuned_at[:10], f"stale: {entry.stale_reason}" if entry.stale_reason else "",
    ]  # fmt: skip


def _untuned(entry: Entry, device: Device | None) -> str:
    """Return the implementation that a plan takes without any table, empty if that is not known here."""
    try:
        return choose(entry.key.to_problem(), device, use_tables=False).implementation if device else ""
    except ValueError:  # no kernel serves such a key
        return ""


def _times(ratio: float | None) -> str:
    return f"{format_number(ratio)}x" if ratio else "-"


def _in_columns(rows: list[list[str]]) -> list[str]:
    """Return lines of texts, with numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    numbers = range(2, 5)
    return [
        "  ".join(
            text.rjust(width) if place in numbers else text.ljust(width)
            for place, (text, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]


# Check.


def _check(options) -> int:
    return max((_checked(path, table) for path, table in _loaded(options.files)), default=0)


def _checked(path: pathlib.Path, table: store.Table | str) -> int:
    """Print what this version makes of a table, and return the exit status for it."""
    if isinstance(table, str):
        _say(f"{path}: no table: {table}")
        return 2
    stale = [
        f"stale: {describe_shape(entry.key)}: {entry.stale_reason}" for entry in table.entries if entry.stale_reason
    ]
    device = _device_of(table.device)
    broken = [f"cannot run: {why}" for entry in table.entries for why in _cannot_run(entry, device)] if device else []
    fresh = len(table.entries) - len(stale)
    _say(
        f"{path}: {_in_words(table.device)}: {fresh} in force, {len(stale)} stale, {len(table.skipped)} not understood"
    )
    if device is None:
        _say("  not checked: whether configurations can run on that device, which is not known here")
    for line in [*stale, *(f"not understood: {why}" for why in table.skipped), *broken]:
        _say(f"  {line}")
    return 1 if stale or table.skipped or broken else 0


def _device_of(described: dict) -> Device | None:
    """Return what is known of a table's device: it is in this machine, or its name names one that others have."""
    here = next((device for device in list_gpus() if store.describe_device(device) == described), None)
    device = here or match_device(described["name"], described["sms"])
    return device if device and device.compute_capability == described["cc"] else None


def _cannot_run(entry: Entry, device: Device) -> list[str]:
    """Return for each kernel whose configuration cannot run, which it is and why."""
    try:
        problem = entry.key.to_problem()
    except ValueError as error:
        return [f"{describe_shape(entry.key)}: {error}"]
    reasons = {}
    for name, result in entry.results.items():
        if result.config:
            config = adapt_config(result.config, problem, device)
            reasons[name] = unsupported_config_reason(config, problem, device) or unsupported_projection_reason(
                result.tile, config, problem, device
            )
    return [f"{describe_shape(entry.key)}: {name}: {why}" for name, why in reasons.items() if why]


# Export.


def _export(options) -> int:
    source, table = _table_to_export(options.device)
    _refuse_to_overwrite(options.file, source, options.force)
    try:
        store.write(table, options.file)
    except OSError as error:
        raise OSError(f"cannot write {options.file}: {error.strerror or error}") from None
    name = table.device["name"]
    _say(f"{options.file}: {_in_words(table.device)}, {format_count(len(table.raw), 'shape')}")
    _say("On the other machine, one of:")
    _say(f"  triton-gru table merge {options.file.name}")
    _say(f"  cp {options.file.name} FOLDER/{store.file_name_of(name)}  # and TRITON_GRU_CONFIG_DIR=FOLDER")
    return 0


def _table_to_export(name: str | None) -> tuple[pathlib.Path, store.Table]:
    """Return the user's table of a device, by default of this machine's GPU."""
    folder = _user_directory()
    loaded = {path: _load(path) for path in _files_in(folder)}
    names = {name} if name else {device.name for device in list_gpus()}
    # Another file there may be of the same device, such as one that was exported.
    tuned = {path: table for path, table in loaded.items() if not isinstance(table, str) and _is_tuned(path, table)}
    found = [(path, table) for path, table in tuned.items() if table.device["name"] in names]
    if len(found) == 1:
        return found[0]
    unusable = "".join(f"; {path.name} is no table: {why}" for path, why in loaded.items() if isinstance(why, str))
    there = [table.device["name"] for table in tuned.values()]
    choice = f"Name a device by --device, of {_listed(there)}" if there else f"There are no tables in {folder}"
    raise store.UnusableTableError(f"{_why_none_to_export(names, len(found), folder)}. {choice}{unusable}")


def _is_tuned(path: pathlib.Path, table: store.Table) -> bool:
    """Return whether a file has the name that tuning gives it."""
    return path.name == store.file_name_of(table.device["name"])


def _why_none_to_export(names: set[str], number: int, folder: pathlib.Path) -> str:
    if not names:
        return "there is no GPU here whose table could be meant"
    return f"there {'is no table' if number == 0 else f'are {number} tables'} of {_listed(names)} in {folder}"


def _listed(names) -> str:
    return ", ".join(map(repr, sorted(names)))


def _refuse_to_overwrite(path: pathlib.Path, source: pathlib.Path, force: bool) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into")
    if not path.exists():
        return
    if not path.is_file() or path.samefile(source):
        raise store.UnusableTableError(
            f"{path} is {'no file' if not path.is_file() else 'that table itself'}: name another file"
        )
    if not force:
        raise FileExistsError(f"{path} is there already: name another file, or overwrite it by --force")
    try:
        store.load(path)
    except store.NewerTableError as error:
        raise store.NewerTableError(f"{path} is not overwritten: {error}") from None
    except store.UnusableTableError:
        pass


# Merge.


def _merge(options) -> int:
    folder = options.into or _user_directory()
    devices: dict[tuple, list] = {}
    for path in options.files:
        table = _load(path)
        if isinstance(table, str):
            raise store.UnusableTableError(f"{path} is no table: {table}. Nothing was merged")
        devices.setdefault(tuple(table.device.items()), []).extend(table.raw)
    counts: dict[tuple, Counter] = {}

    def rule(device: tuple, old: list) -> list:
        merge = Merge(old)
        for raw in devices[device]:
            merge.take(raw)
        counts[device] = merge.counts
        return merge.entries

    rules = [(dict(device), functools.partial(rule, device)) for device in devices]
    try:
        paths = store.rewrite(rules, folder)
    except OSError as error:
        raise OSError(f"cannot merge into {folder}: {error}") from None
    for path, device in zip(paths, devices):
        _say(f"{path}: {_in_words(dict(device))}: {_outcome(counts[device])}")
    return 0


def _outcome(counts: Counter) -> str:
    words = f"{counts['added']} added, {counts['replaced']} replaced, {counts['kept']} kept as they were"
    return words + f"; not understood by this version: {counts['not understood']}" * bool(counts["not understood"])
