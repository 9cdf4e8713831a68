"""Tables of what was measured: one JSON file a device, read without trust, written without loss.

    {"schema": 1, "device": {"name", "cc", "sms"}, "entries": [{
        "key": {what the measurement holds for, see problem.Key},
        "winner": the kernel to take, or "torch",
        "results": {kernel: {"config", "revision", "eager_ms": [p20, p50, p80], "graph_ms", "heuristic_ms"}},
        "candidates": how many were tried, "failed": {why: how many}, "env": {versions}, "tuned_at": when, in UTC
    }]}

A file is replaced as a whole, under a lock, by one that keeps every entry it does not replace, those it cannot read
included.
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
# No table comes near these; whoever wrote more did not mean well.
_MOST_BYTES = 16 << 20
_FEW = 16 << 10  # bytes, of some shapes
LOCK_TIMEOUT_S = 60.0  # seconds
Rule = Callable[[list], list]  # from a table's raw entries to those that take their place


class UnusableTableError(ValueError):
    """A file that is no table."""


class NewerTableError(UnusableTableError):
    """A table whose schema only a later version knows."""


def user_directory() -> pathlib.Path | None:
    """Return this user's folder of tables: ``TRITON_GRU_CONFIG_DIR``, else one in the cache; None without a home."""
    if named := os.environ.get("TRITON_GRU_CONFIG_DIR"):
        return pathlib.Path(named)
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    except RuntimeError:  # nobody's home
        return None
    return pathlib.Path(cache) / "triton_gru"


def file_name(device: Device) -> str:
    return file_name_of(device.name)


def file_name_of(name: str) -> str:
    """Return the name of the file for a device of this name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") + ".json"


def describe_device(device: Device) -> dict:
    """Return a device as a table names it."""
    return {"name": device.name, "cc": device.compute_capability, "sms": device.sms}


@dataclass(frozen=True)
class Table:
    """What a file holds.

    Attributes:
        raw: its entries as they stand there; ``entries`` those that are understood.
        skipped: why the others are not.
    """

    device: dict
    raw: list
    entries: list[Entry]
    skipped: list[str]


def read_json(path: pathlib.Path, most_bytes: int = _MOST_BYTES):
    """Return what a JSON file holds, which is not trusted.

    Raises:
        UnusableTableError: it is no JSON file, or has more bytes than that.
        OSError: it cannot be read.
    """
    # Not opened before: to open what is no regular file may wait forever.
    if not stat.S_ISREG(path.stat().st_mode):
        raise UnusableTableError("it is no file")
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise UnusableTableError(f"it has more than {most_bytes >> 20} MiB")
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:  # of JSON, of its text, of a number; nested too deeply
        raise UnusableTableError(f"it is not JSON: {str(error)[:200]}") from None


def load(path: pathlib.Path, device: Device | None = None) -> Table:
    """Return what a file holds.

    Raises:
        UnusableTableError: it is no table of this schema, or not of ``device``, if that is given.
        OSError: it cannot be read.
    """
    named, raw = _device_and_entries(read_json(path))
    if device is not None and named != describe_device(device):
        raise UnusableTableError(f"it is of {named}, not of {describe_device(device)}")
    entries, skipped = [], []
    for number, each in enumerate(raw):
        entry = try_parse_entry(each)
        if isinstance(entry, str):
            skipped.append(f"entry {number}: {entry}")
        else:
            entries.append(entry)
    return Table(named, raw, entries, skipped)


def _device_and_entries(whole) -> tuple[dict, list]:
    schema = whole.get("schema") if isinstance(whole, dict) else None
    if type(schema) is int and schema > SCHEMA:
        raise NewerTableError(
            f"it is of schema {schema}, this version knows schema {SCHEMA}: upgrade triton_gru, or tune into another "
            "TRITON_GRU_CONFIG_DIR"
        )
    if type(schema) is not int or schema != SCHEMA:
        raise UnusableTableError(f"it is not of schema {SCHEMA}")
    named, raw = whole.get("device"), whole.get("entries")
    if not isinstance(named, dict) or not isinstance(raw, list):
        raise UnusableTableError("it names no device or has no list of entries")
    kinds = {"name": str, "cc": int, "sms": int}
    if {name: type(value) for name, value in named.items()} != kinds:
        raise UnusableTableError("its device is not a name, cc and sms")
    if file_name_of(named["name"]) == ".json" or not (0 < named["cc"] < 1 << 31 and 0 < named["sms"] < 1 << 31):
        raise UnusableTableError("its device has no name, or a cc or sms that cannot be")
    return {name: named[name] for name in kinds}, raw


def try_parse_entry(raw) -> Entry | str:
    """Return an entry as it was read from JSON, or why this version does not understand it."""
    try:
        return parse_entry(raw)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        return f"{type(error).__name__} {str(error)[:200]}"


def key_text(raw) -> str | None:
    """Return the key of a raw entry as a text, which unlike Python's values tells 1 from true; None without a key."""
    return json.dumps(raw["key"], sort_keys=True) if isinstance(raw, dict) and "key" in raw else None


def save(entries: list[Entry], device: Device, directory: pathlib.Path) -> pathlib.Path:
    """Put entries into the device's file, in place of those of the same keys; all others stay as they are.

    So do those that this version does not understand, whatever their keys.

    Returns:
        The file's path.

    Raises:
        UnusableTableError, OSError: as `rewrite` does.
    """
    new = [dataclasses.asdict(each) for each in entries]
    replaced = {key_text(each) for each in new}

    def rule(raw: list) -> list:
        return [each for each in raw if key_text(each) not in replaced or isinstance(try_parse_entry(each), str)] + new

    return rewrite([(describe_device(device), rule)], directory)[0]


def rewrite(rules: list[tuple[dict, Rule]], directory: pathlib.Path) -> list[pathlib.Path]:
    """Replace the entries of some devices' files in a folder by what a rule for each makes of them.

    New files are written beside the old ones, and take their places once all are written. If anything fails before,
    the old ones are as they were. A file that a rule does not change is not written.

    Returns:
        The files' paths.

    Raises:
        UnusableTableError: a file is no table or another device's, or it would be too large. All files are left alone.
        OSError: a file cannot be written.
    """
    _make(directory)
    with locked(directory / ".lock"), contextlib.ExitStack() as stack:
        texts = {}
        for device, rule in rules:
            path = directory / file_name_of(device["name"])
            if path in texts:
                raise UnusableTableError(f"{path}: it would be of two devices, one of them {device}")
            texts[path] = _changed(path, device, rule)
            for left_over in directory.glob(f"{path.name}.*.tmp"):
                with contextlib.suppress(OSError):
                    left_over.unlink()
        written = {path: stack.enter_context(_beside(path, text)) for path, text in texts.items() if text}
        for path, temporary in written.items():
            os.replace(temporary, path)
    return list(texts)


def write(table: Table, path: pathlib.Path) -> None:
    """Write a table to a file of any name, as a whole or not at all.

    Raises:
        UnusableTableError: it would be too large.
        OSError: it cannot be written.
    """
    try:
        text = _text(table.device, table.raw)
    except RecursionError:
        raise UnusableTableError("an entry is nested too deeply to be written again") from None
    replace_file(path, text)


def replace_file(path: pathlib.Path, text: str) -> None:
    """Write a file beside ``path``, which then takes its place; if anything fails, the old one is as it was.

    Raises:
        OSError: it cannot be written.
    """
    with _beside(path, text) as temporary:
        os.replace(temporary, path)


def _changed(path: pathlib.Path, device: dict, rule: Rule) -> str:
    """Return the new text of a file of which this process holds the lock. Return "" if it stays as it is."""
    try:
        old = load(path) if path.exists() else None
        if old and old.device != device:
            raise UnusableTableError(f"it is of {old.device}, not of {device}")
        text = _text(device, rule(old.raw if old else []))
        return "" if old and text == _text(device, old.raw) else text
    except UnusableTableError as error:
        raise type(error)(f"{path}: {error}") from None
    except RecursionError:
        raise UnusableTableError(f"{path}: an entry is nested too deeply to be written again") from None


def _text(device: dict, raw: list) -> str:
    text = json.dumps({"schema": SCHEMA, "device": device, "entries": raw}, indent=1)
    if len(text) > _MOST_BYTES:
        raise UnusableTableError(f"it would have more than {_MOST_BYTES >> 20} MiB")
    return text


@contextlib.contextmanager
def _beside(path: pathlib.Path, text: str) -> Iterator[pathlib.Path]:
    """Write a text to a new file beside ``path``, with the permissions of that. Delete what is left of it at the end.

    Only a process that is killed leaves such a file. No table has its name, and `rewrite` deletes it.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        try:
            _write(temporary, text, path)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror or error}; it is left as it was", str(path)) from None
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _write(temporary: pathlib.Path, text: str, path: pathlib.Path) -> None:
    # A new file can take the place of one that is protected against writing.
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with temporary.open("x") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(OSError):  # there is no file yet, or the file system has no permissions
        shutil.copymode(path, temporary)


def check_writable(directory: pathlib.Path) -> None:
    """Write a few bytes into a folder of tables, which is made, and delete them.

    Raises:
        OSError: no table can be written there.
    """
    _make(directory)
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(_FEW))
        file.flush()
        os.fsync(file.fileno())


def _make(directory: pathlib.Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is no folder", str(directory))
    directory.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Hold the lock of this name, which a process loses when it ends, however it ends.

    Raises:
        TimeoutError: another process holds the lock for longer than `LOCK_TIMEOUT_S`.
        OSError: there can be no lock here.
    """
    import filelock  # 0.1 s, which only tuning needs

    try:
        lock = filelock.FileLock(path, timeout=LOCK_TIMEOUT_S).acquire()
    except filelock.Timeout:
        raise TimeoutError(f"another process holds {path} for more than {LOCK_TIMEOUT_S:g} s") from None
    except NotImplementedError as error:  # a file system without locks, to earlier versions of filelock
        raise OSError(str(error)) from None
    with lock:
        yield
