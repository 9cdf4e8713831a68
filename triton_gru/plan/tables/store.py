"""Files of tuned tables: one JSON file for each device. Reading does not trust a file, and writing loses no entry.

    {"schema": 1, "device": {"name", "cc", "sms"}, "entries": [{
        "key": {the fields of problem.Key},
        "winner": the implementation that plans should choose,
        "results": {implementation: {
            "config", "revision", "eager_ms": [p20, p50, p80], "graph_ms", "heuristic_ms", "tile"
        }},
        "candidates": number of configurations tried, "failed": {reason: number}, "env": {versions}, "tuned_at": UTC
    }]}

A write replaces the whole file. `save` and `rewrite` hold a lock meanwhile. With `save`, the new file keeps all entries
with other keys, and those that this version cannot read.
"""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..device import Device
from .entries import Entry, parse_entry

SCHEMA = 1
# Largest file that is read or written. No real table comes near it.
_MAX_BYTES = 16 << 20
_PROBE_BYTES = 16 << 10  # written to test a folder: about the size of a table with some shapes
_MAX_MESSAGE = 200  # characters of an error's message, which may quote the file
LOCK_TIMEOUT_S = 60.0  # longest wait for another process's lock
Rule = Callable[[list], list]  # from a table's raw entries to the raw entries that replace them


class UnusableTableError(ValueError):
    """A file is not a valid table, or would not be one after a write."""


class NewerTableError(UnusableTableError):
    """A table has a schema that only a later version reads."""


def user_directory() -> pathlib.Path | None:
    """Return this user's folder of tables, or None if no variable names one and the user has no home directory.

    The environment variable ``TRITON_GRU_CONFIG_DIR`` names the folder. Without it, the folder is in the user's cache,
    which ``XDG_CACHE_HOME`` names, by default ``~/.cache``.
    """
    if folder := os.environ.get("TRITON_GRU_CONFIG_DIR"):
        return pathlib.Path(folder)
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    except RuntimeError:  # the user has no home directory
        return None
    return pathlib.Path(cache) / "triton_gru"


def file_name(device: Device) -> str:
    """Return the name of the table file for a device."""
    return file_name_of(device.name)


def file_name_of(name: str) -> str:
    """Return the name of the table file for a device of this name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") + ".json"


def describe_device(device: Device) -> dict:
    """Return the fields by which a table names its device."""
    return {"name": device.name, "cc": device.compute_capability, "sms": device.sms}


@dataclass(frozen=True)
class Table:
    """The contents of a table file.

    Attributes:
        device: the device, as `describe_device` returns it.
        raw: all entries as parsed JSON.
        entries: the entries that this version can read.
        skipped: for each other entry, its index and the reason why this version cannot read it.
    """

    device: dict
    raw: list
    entries: list[Entry]
    skipped: list[str]


def read_json(path: pathlib.Path, most_bytes: int = _MAX_BYTES):
    """Return the value in an untrusted JSON file.

    Raises:
        UnusableTableError: the file is not a regular JSON file, or has more than ``most_bytes`` bytes.
        OSError: the file cannot be read.
    """
    # Check this before opening. To open something other than a regular file, such as a pipe, may wait forever.
    if not stat.S_ISREG(path.stat().st_mode):
        raise UnusableTableError("it is not a regular file")
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise UnusableTableError(f"it has more than {most_bytes >> 20} MiB")
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:  # JSON, UTF-8 or a number is invalid, or nesting is too deep
        raise UnusableTableError(f"it is not JSON: {str(error)[:_MAX_MESSAGE]}") from None


def load(path: pathlib.Path, device: Device | None = None) -> Table:
    """Return the contents of a table file.

    Raises:
        UnusableTableError: the file is not a table of this schema, or not of ``device``, if that is given.
        OSError: the file cannot be read.
    """
    table_device, raw = _split_device_and_entries(read_json(path))
    if device is not None and table_device != describe_device(device):
        raise UnusableTableError(f"it is for {table_device}, not for {describe_device(device)}")
    entries, skipped = [], []
    for index, raw_entry in enumerate(raw):
        entry_or_reason = try_parse_entry(raw_entry)
        if isinstance(entry_or_reason, str):
            skipped.append(f"entry {index}: {entry_or_reason}")
        else:
            entries.append(entry_or_reason)
    return Table(table_device, raw, entries, skipped)


def _split_device_and_entries(contents) -> tuple[dict, list]:
    """Return the device and the raw entries of a table's contents. Raise UnusableTableError if they are not valid."""
    schema = contents.get("schema") if isinstance(contents, dict) else None
    if type(schema) is int and schema > SCHEMA:
        raise NewerTableError(
            f"it has schema {schema}, this version reads schema {SCHEMA}: upgrade triton_gru, or tune into another "
            "TRITON_GRU_CONFIG_DIR"
        )
    if type(schema) is not int or schema != SCHEMA:
        raise UnusableTableError(f"it is not of schema {SCHEMA}")
    device, raw = contents.get("device"), contents.get("entries")
    if not isinstance(device, dict) or not isinstance(raw, list):
        raise UnusableTableError("it names no device or has no list of entries")
    field_types = {"name": str, "cc": int, "sms": int}
    if {name: type(value) for name, value in device.items()} != field_types:
        raise UnusableTableError("its device must have a name, cc and sms, and nothing else")
    if file_name_of(device["name"]) == ".json" or not (0 < device["cc"] < 1 << 31 and 0 < device["sms"] < 1 << 31):
        raise UnusableTableError("its device has an empty name, or cc or sms are not between 1 and 2**31 - 1")
    return {name: device[name] for name in field_types}, raw


def try_parse_entry(raw) -> Entry | str:
    """Return the entry that untrusted JSON describes, or the reason why this version cannot read it."""
    try:
        return parse_entry(raw)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        return f"{type(error).__name__} {str(error)[:_MAX_MESSAGE]}"


def key_text(raw) -> str | None:
    """Return the key of a raw entry as JSON text, or None if the entry has no key. The text tells 1 from true."""
    return json.dumps(raw["key"], sort_keys=True) if isinstance(raw, dict) and "key" in raw else None


def save(entries: list[Entry], device: Device, directory: pathlib.Path) -> pathlib.Path:
    """Write entries into the device's file. They replace entries with the same keys, and all others stay unchanged.

    Entries that this version cannot read also stay, even those with the same keys.

    Returns:
        The file's path.

    Raises:
        UnusableTableError, OSError: as `rewrite` does.
    """
    new = [dataclasses.asdict(entry) for entry in entries]
    replaced_keys = {key_text(raw) for raw in new}

    def stays(raw) -> bool:
        return key_text(raw) not in replaced_keys or isinstance(try_parse_entry(raw), str)

    def replace_entries(all_raw: list) -> list:
        return [raw for raw in all_raw if stays(raw)] + new

    (path,) = rewrite([(describe_device(device), replace_entries)], directory)
    return path


def rewrite(rules: list[tuple[dict, Rule]], directory: pathlib.Path) -> list[pathlib.Path]:
    """Apply a rule to the entries in each device's file of a folder.

    All new files are written first, to temporary files in the folder, and then replace the old files. If anything fails
    before the first replacement, no file changes. A file that its rule does not change is not written. Exception: a
    file that does not exist is written in any case. Temporary files that a killed process left are deleted.

    Args:
        rules: (device, rule) for each file. A device is described as `describe_device` does.
        directory: the folder, which is made if it does not exist.

    Returns:
        The files' paths, in the order of ``rules``.

    Raises:
        UnusableTableError: a file is not a table, is another device's, would be too large or hold two devices, or has
            an entry that is nested too deeply. No file changes.
        OSError: a file cannot be written, or another process holds the lock for too long.
    """
    _make_directory(directory)
    with locked(directory / ".lock"), contextlib.ExitStack() as stack:
        texts = {}
        for device, rule in rules:
            path = directory / file_name_of(device["name"])
            if path in texts:
                raise UnusableTableError(f"{path}: it would hold two devices, one of them {device}")
            texts[path] = _apply_rule(path, device, rule)
            for left_over in directory.glob(f"{path.name}.*.tmp"):
                with contextlib.suppress(OSError):
                    left_over.unlink()
        written = {path: stack.enter_context(_temporary_file(path, text)) for path, text in texts.items() if text}
        for path, temporary in written.items():
            os.replace(temporary, path)
    return list(texts)


def write(table: Table, path: pathlib.Path) -> None:
    """Write a table to a file of any name. If that fails, the file is unchanged.

    Raises:
        UnusableTableError: the file would be too large, or an entry is nested too deeply.
        OSError: the file cannot be written.
    """
    try:
        text = _format_table(table.device, table.raw)
    except RecursionError:
        raise UnusableTableError("an entry is nested too deeply to be written again") from None
    replace_file(path, text)


def replace_file(path: pathlib.Path, text: str) -> None:
    """Write a temporary file and replace ``path`` with it. If anything fails, the old file is unchanged.

    Raises:
        OSError: the file cannot be written.
    """
    with _temporary_file(path, text) as temporary:
        os.replace(temporary, path)


def _apply_rule(path: pathlib.Path, device: dict, rule: Rule) -> str:
    """Return the new text of a file, or '' if it exists and the rule does not change it. The caller holds the lock."""
    try:
        table = load(path) if path.exists() else None
        if table and table.device != device:
            raise UnusableTableError(f"it is for {table.device}, not for {device}")
        text = _format_table(device, rule(table.raw if table else []))
        return "" if table and text == _format_table(device, table.raw) else text
    except UnusableTableError as error:
        raise type(error)(f"{path}: {error}") from None
    except RecursionError:
        raise UnusableTableError(f"{path}: an entry is nested too deeply to be written again") from None


def _format_table(device: dict, raw: list) -> str:
    """Return the text of a table file. Raise UnusableTableError if it would be too large to be read."""
    text = json.dumps({"schema": SCHEMA, "device": device, "entries": raw}, indent=1)
    if len(text) > _MAX_BYTES:
        raise UnusableTableError(f"it would have more than {_MAX_BYTES >> 20} MiB")
    return text


@contextlib.contextmanager
def _temporary_file(path: pathlib.Path, text: str) -> Iterator[pathlib.Path]:
    """Write a text to a temporary file beside ``path``, with its permissions if it exists. Yield the temporary path.

    The temporary file is deleted at the end, unless it was renamed. Only a killed process leaves one. The next
    `rewrite` of ``path`` deletes it. No table has a name that ends in ``.tmp``.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        try:
            _write_like(temporary, text, path)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror or error}; it is left as it was", str(path)) from None
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _write_like(temporary: pathlib.Path, text: str, path: pathlib.Path) -> None:
    """Write a text to ``temporary``, with the permissions of ``path``. Raise PermissionError if that is read-only."""
    # A rename would replace even a read-only file.
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with temporary.open("x") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(OSError):  # ``path`` does not exist yet, or the file system has no permissions
        shutil.copymode(path, temporary)


def check_writable(directory: pathlib.Path) -> None:
    """Make a folder of tables if it does not exist, and write and delete a few bytes there.

    Raises:
        OSError: no table can be written there.
    """
    _make_directory(directory)
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(_PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())


def _make_directory(directory: pathlib.Path) -> None:
    """Make a folder if it does not exist. Raise OSError if that is not possible."""
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is not a folder", str(directory))
    directory.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Wait for the lock file ``path``, and hold it in the context. A process that ends or is killed releases the lock.

    Raises:
        TimeoutError: another process holds the lock for longer than `LOCK_TIMEOUT_S`.
        OSError: the file system has no locks.
    """
    import filelock  # imported here as it takes 0.1 s, and only tuning needs it

    try:
        lock = filelock.FileLock(path, timeout=LOCK_TIMEOUT_S).acquire()
    except filelock.Timeout:
        raise TimeoutError(f"another process holds {path} for more than {LOCK_TIMEOUT_S:g} s") from None
    except NotImplementedError as error:  # earlier versions of filelock, on a file system without locks
        raise OSError(str(error)) from None
    with lock:
        yield
