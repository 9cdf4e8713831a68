"""``triton-gru table``: show and check tuned tables, and take them from one machine to another."""

import argparse
import dataclasses
import functools
import pathlib
import sys
from collections import Counter
from collections.abc import Iterable

from ..plan.config import format_implementation
from ..plan.device import Device, list_gpus, match_device
from ..plan.planner import choose
from ..plan.tables import lookup, store
from ..plan.tables.entries import Entry
from ..plan.tables.merge import Merge
from ..plan.validity import adapt_config, unsupported_config_reason, unsupported_projection_reason
from ..tuning.progress import describe_shape
from ..units import format_count, format_number, format_time

_NO_FOLDER = "no home folder for tables: set TRITON_GRU_CONFIG_DIR to a folder"


def add_parser(commands) -> None:
    """Add ``table`` to the commands of a parser."""
    parser = commands.add_parser(
        "table",
        help="show, check and merge tuned tables, and take them to another machine",
        description="Takes tuned tables from one machine to another: `table export` here, `table merge` there.",
    )
    actions = parser.add_subparsers(dest="action", required=True)
    files = argparse.ArgumentParser(add_help=False)
    files.add_argument(
        "files", nargs="*", type=pathlib.Path, metavar="FILE", help="default: tables of this user and of the package"
    )
    actions.add_parser("show", parents=[files], help="show the fastest implementation of each shape, and its speedup")
    actions.add_parser(
        "check",
        parents=[files],
        help="check whether this version can use all of a table",
        description="Exit status: 0 if every entry is in force, 1 if one is not or there is none, 2 if a file is not a "
        "table.",
    )
    export = actions.add_parser("export", help="write this user's table of a GPU to a file")
    export.add_argument("file", type=pathlib.Path, metavar="FILE")
    export.add_argument("--device", metavar="NAME", help="GPU's name in `table show` (default: this machine's GPU)")
    export.add_argument("--force", action="store_true", help="overwrite FILE")
    merge = actions.add_parser(
        "merge",
        help="add tables of other machines to this user's",
        description="If two entries have the same shape, a fresh one replaces a stale one. "
        "Otherwise the one tuned later wins.",
    )
    merge.add_argument("files", nargs="+", type=pathlib.Path, metavar="FILE")
    merge.add_argument("--into", type=pathlib.Path, metavar="FOLDER", help="default: this user's folder of tables")


def run(options) -> int:
    """Run ``triton-gru table`` and return its exit status. It is 2 after an error, which is printed."""
    action = {"show": _show, "check": _check, "export": _export, "merge": _merge}[options.action]
    try:
        return action(options)
    except (OSError, store.UnusableTableError) as error:
        _complain(str(error))
        return 2


def _print_line(line: str = "") -> None:
    """Print a line without control characters: parts of it may come from an untrusted file."""
    print("".join(character if character.isprintable() else "?" for character in line).rstrip())


def _complain(message: str) -> None:
    """Print an error on stderr."""
    print(f"triton-gru table: {message}", file=sys.stderr)


# Reading.


def _require_user_directory() -> pathlib.Path:
    """Return the folder of the user's tables. Raise `UnusableTableError` if there is none."""
    folder = store.user_directory()
    if folder is None:
        raise store.UnusableTableError(_NO_FOLDER)
    return folder


def _list_files(*folders: pathlib.Path | None) -> list[pathlib.Path]:
    """Return the JSON files in the folders, sorted by name in each. A folder that is None has no files."""
    return [path for folder in folders if folder for path in sorted(folder.glob("*.json"))]


def _load(path: pathlib.Path) -> store.Table | str:
    """Return the table in a file, or the reason why the file is not a table or cannot be read."""
    try:
        return store.load(path)
    except store.UnusableTableError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def _load_all(files: list[pathlib.Path]) -> list[tuple[pathlib.Path, store.Table | str]]:
    """Return (path, result of `_load`) for each of ``files``, by default for the tables of the user and the package.

    If there are none by default, print that.
    """
    paths = files or _list_files(store.user_directory(), lookup.SHIPPED_DIRECTORY)
    if not paths:
        folder = store.user_directory()
        where = f"in {folder}" if folder else f"of this user ({_NO_FOLDER})"
        _print_line(f"there are no tables {where}, and none come with the package")
    return [(path, _load(path)) for path in paths]


def _describe_device(device: dict) -> str:
    """Return a text on the device of a table."""
    return f"{device['name']} (sm_{device['cc']}, {format_count(device['sms'], 'multiprocessor')})"


# Show.


def _show(options) -> int:
    """Run ``table show`` and return its exit status: 0, or 2 if a file is not a table."""
    status = 0
    for path, table in _load_all(options.files):
        if isinstance(table, str):
            _complain(f"{path} is not a table: {table}")
            status = 2
        else:
            for line in _format_table(path, table):
                _print_line(line)
    return status


def _format_table(path: pathlib.Path, table: store.Table) -> list[str]:
    """Return a table as lines: its file and device, counts, skipped entries, and a row for each entry."""
    num_stale = sum(bool(entry.stale_reason) for entry in table.entries)
    summary = f"{format_count(len(table.entries), 'shape')}, {num_stale} stale, {len(table.skipped)} not understood"
    lines = [f"{path}: {_describe_device(table.device)}{_describe_local_use(table.device)}", summary]
    lines += [f"not understood: {reason}" for reason in table.skipped]
    device = _find_table_device(table.device)
    entries = sorted(table.entries, key=lambda entry: dataclasses.astuple(entry.key))
    rows = [_format_row(entry, device) for entry in entries]
    return [*lines, *(_align_columns([_TITLES, *rows]) if rows else []), ""]


def _describe_local_use(device: dict) -> str:
    """Return a text on the use of a device's table by GPUs of this machine, or ''."""
    local_devices = [store.describe_device(gpu) for gpu in list_gpus()]
    if device in local_devices:
        return ", in force here"
    # A table also serves GPUs of another name that are otherwise equal.
    similar_names = [local["name"] for local in local_devices if {**local, "name": ""} == {**device, "name": ""}]
    return f", in force here for shapes that the tables of {similar_names[0]} lack" if similar_names else ""


_TITLES = ["shape", "fastest", "time", "vs untuned", "vs nn.GRU", "tuned", ""]


def _format_row(entry: Entry, device: Device | None) -> list[str]:
    """Return the texts of an entry for the columns `_TITLES`. ``device`` is None if it is unknown."""
    speedup_over_untuned = entry.speedup_over_untuned(_name_untuned(entry, device))
    return [
        describe_shape(entry.key), format_implementation(entry.winner), format_time(1000 * entry.ms),
        _format_ratio(speedup_over_untuned), _format_ratio(entry.speedup_over_nn_gru), entry.tuned_at[:10],
        f"stale: {entry.stale_reason}" if entry.stale_reason else "",
    ]  # fmt: skip


def _name_untuned(entry: Entry, device: Device | None) -> str:
    """Return the name of the implementation that a plan takes without tables.

    Return '' if the device is unknown, or if no kernel serves the dtype or number of directions in the entry's key.
    """
    try:
        return choose(entry.key.to_problem(), device, use_tables=False).implementation if device else ""
    except ValueError:
        return ""


def _format_ratio(ratio: float | None) -> str:
    """Return a speedup as text, or "-" if it is unknown."""
    return f"{format_number(ratio)}x" if ratio else "-"


def _align_columns(rows: list[list[str]]) -> list[str]:
    """Return a line for each row of `_TITLES`' columns. Columns with numbers are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    number_columns = range(2, 5)  # "time", "vs untuned" and "vs nn.GRU"
    return [
        "  ".join(
            text.rjust(width) if column in number_columns else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]


# Check.


def _check(options) -> int:
    """Run ``table check`` and return its exit status: the highest one of all tables, or 1 if there are none."""
    return max((_check_table(path, table) for path, table in _load_all(options.files)), default=1)


def _check_table(path: pathlib.Path, table: store.Table | str) -> int:
    """Print which entries of a table this version cannot use.

    Return the exit status for the table: 0 if it has entries and all are in force, 2 if the file is not a table, or
    else 1. If the table's device is unknown, whether configurations can run is not checked.
    """
    if isinstance(table, str):
        _print_line(f"{path}: not a table: {table}")
        return 2
    stale = [
        f"stale: {describe_shape(entry.key)}: {entry.stale_reason}" for entry in table.entries if entry.stale_reason
    ]
    device = _find_table_device(table.device)
    broken = (
        [f"cannot run: {reason}" for entry in table.entries for reason in _unsupported_reasons(entry, device)]
        if device
        else []
    )
    summary = f"{len(table.entries) - len(stale)} in force, {len(stale)} stale, {len(table.skipped)} not understood"
    _print_line(f"{path}: {_describe_device(table.device)}: {summary}")
    if device is None:
        _print_line("  not checked: whether configurations can run on that device, which this version does not know")
    for line in [*stale, *(f"not understood: {reason}" for reason in table.skipped), *broken]:
        _print_line(f"  {line}")
    if not table.entries and not table.skipped:
        _print_line("  nothing was checked: the table has no entries")
    return 1 if stale or table.skipped or broken or not table.entries else 0


def _find_table_device(described: dict) -> Device | None:
    """Return the device that a table describes: a GPU of this machine, or else the known device of `match_device`.

    Return None if there is no such device, or if the known device has another compute capability.
    """
    local_device = next((device for device in list_gpus() if store.describe_device(device) == described), None)
    device = local_device or match_device(described["name"], described["sms"])
    return device if device and device.compute_capability == described["cc"] else None


def _unsupported_reasons(entry: Entry, device: Device) -> list[str]:
    """Return a text for each implementation that cannot run: the shape, the implementation and the reason.

    If the entry's key itself is not supported, return one text: the shape and the reason.
    """
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
    return [f"{describe_shape(entry.key)}: {name}: {reason}" for name, reason in reasons.items() if reason]


# Export.


def _export(options) -> int:
    """Run ``table export`` and return its exit status, always 0. Errors are raised."""
    source, table = _find_table_to_export(options.device)
    _check_may_write(options.file, source, options.force)
    try:
        store.write(table, options.file)
    except OSError as error:
        raise OSError(f"cannot write {options.file}: {error.strerror or error}") from None
    name = table.device["name"]
    _print_line(f"{options.file}: {_describe_device(table.device)}, {format_count(len(table.raw), 'shape')}")
    _print_line("On the other machine, one of:")
    _print_line(f"  triton-gru table merge {options.file.name}")
    _print_line(f"  cp {options.file.name} FOLDER/{store.file_name_of(name)}  # and TRITON_GRU_CONFIG_DIR=FOLDER")
    return 0


def _find_table_to_export(name: str | None) -> tuple[pathlib.Path, store.Table]:
    """Return the file and the user's table of the device ``name``, by default of this machine's GPU.

    Raises:
        UnusableTableError: there is no folder of tables, no such table, or more than one.
    """
    folder = _require_user_directory()
    tables_or_reasons = {path: _load(path) for path in _list_files(folder)}
    names = {name} if name else {device.name for device in list_gpus()}
    # The folder may have other tables of the same device, such as an exported one.
    tuned = {
        path: table
        for path, table in tables_or_reasons.items()
        if not isinstance(table, str) and _has_tuned_name(path, table)
    }
    matches = [(path, table) for path, table in tuned.items() if table.device["name"] in names]
    if len(matches) == 1:
        return matches[0]
    unusable = "".join(
        f"; {path.name} is not a table: {reason}"
        for path, reason in tables_or_reasons.items()
        if isinstance(reason, str)
    )
    tuned_names = [table.device["name"] for table in tuned.values()]
    advice = f"There are no tables in {folder}"
    if tuned_names:
        advice = f"Name a device with --device: {_quote_names(tuned_names)}"
    raise store.UnusableTableError(f"{_describe_export_failure(names, len(matches), folder)}. {advice}{unusable}")


def _has_tuned_name(path: pathlib.Path, table: store.Table) -> bool:
    """Return whether a file has the name that tuning gives it."""
    return path.name == store.file_name_of(table.device["name"])


def _describe_export_failure(device_names: set[str], num_tables: int, folder: pathlib.Path) -> str:
    """Return why no table can be exported. An export needs exactly one table of the named devices in ``folder``."""
    if not device_names:
        return "this machine has no GPU whose table could be exported"
    tables = f"are {num_tables} tables" if num_tables else "is no table"
    return f"there {tables} of {_quote_names(device_names)} in {folder}"


def _quote_names(names: Iterable[str]) -> str:
    """Return the names as one text, sorted and in quotes."""
    return ", ".join(map(repr, sorted(names)))


def _check_may_write(path: pathlib.Path, source: pathlib.Path, force: bool) -> None:
    """Raise an error if exporting the table ``source`` to ``path`` would overwrite a file that must stay.

    A table of a later schema stays even with ``force``, as does ``source`` itself. Raise an error also if the folder of
    ``path`` does not exist.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} to write {path.name} to")
    if not path.exists():
        return
    if not path.is_file() or path.samefile(source):
        raise store.UnusableTableError(
            f"{path} is {'not a file' if not path.is_file() else 'the table to export itself'}: name another file"
        )
    if not force:
        raise FileExistsError(f"{path} exists: name another file, or overwrite it with --force")
    try:
        store.load(path)
    except store.NewerTableError as error:
        raise store.NewerTableError(f"{path} is not overwritten: {error}") from None
    except store.UnusableTableError:
        pass  # The file is no table, and may be overwritten.


# Merge.


def _merge(options) -> int:
    """Run ``table merge`` and return its exit status, always 0. Errors are raised."""
    folder = options.into or _require_user_directory()
    new_entries: dict[tuple, list] = {}  # the items of a table's device -> raw entries of all files
    for path in options.files:
        table = _load(path)
        if isinstance(table, str):
            raise store.UnusableTableError(f"{path} is not a table: {table}. Nothing was merged")
        new_entries.setdefault(tuple(table.device.items()), []).extend(table.raw)
    counts: dict[tuple, Counter] = {}

    def merge_entries(device: tuple, old_entries: list) -> list:
        merge = Merge(old_entries)
        for raw in new_entries[device]:
            merge.take(raw)
        counts[device] = merge.counts
        return merge.entries

    changes = [(dict(device), functools.partial(merge_entries, device)) for device in new_entries]
    try:
        paths = store.rewrite(changes, folder)
    except OSError as error:
        raise OSError(f"cannot merge into {folder}: {error}") from None
    for path, device in zip(paths, new_entries):
        _print_line(f"{path}: {_describe_device(dict(device))}: {_format_counts(counts[device])}")
    return 0


def _format_counts(counts: Counter) -> str:
    """Return a text on what a merge did with the new entries of a device."""
    text = f"{counts['added']} added, {counts['replaced']} replaced, {counts['kept']} kept as they were"
    return text + f"; not understood by this version: {counts['not understood']}" * bool(counts["not understood"])
