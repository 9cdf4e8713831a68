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
import json
import os
import pathlib
import re
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from ..device import Device
from .entries import Entry, entry_of

SCHEMA = 1
# No table comes near these; whoever wrote more did not mean well.
_MOST_BYTES = 16 << 20
PATIENCE = 60.0  # seconds


class Unusable(ValueError):
    """A file that is no table."""


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
    return re.sub(r"[^A-Za-z0-9]+", "-", device.name).strip("-") + ".json"


def described(device: Device) -> dict:
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
        Unusable: it is no JSON file, or has more bytes than that.
        OSError: it cannot be read.
    """
    # Not opened before: to open what is no regular file may wait forever.
    if not stat.S_ISREG(path.stat().st_mode):
        raise Unusable("it is no file")
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise Unusable(f"it has more than {most_bytes >> 20} MiB")
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:  # of JSON, of its text, of a number; nested too deeply
        raise Unusable(f"it is not JSON: {str(error)[:200]}") from None


def load(path: pathlib.Path, device: Device | None = None) -> Table:
    """Return what a file holds.

    Raises:
        Unusable: it is no table of this schema, or not of ``device``, if that is given.
        OSError: it cannot be read.
    """
    whole = read_json(path)
    if not isinstance(whole, dict) or whole.get("schema") != SCHEMA or whole["schema"] is True:
        raise Unusable(f"it is not of schema {SCHEMA}")
    named, raw = whole.get("device"), whole.get("entries")
    if not isinstance(named, dict) or not isinstance(raw, list):
        raise Unusable("it names no device or has no list of entries")
    if device is not None and named != described(device):
        raise Unusable(f"it is of {named}, not of {described(device)}")
    entries, skipped = [], []
    for number, each in enumerate(raw):
        try:
            entries.append(entry_of(each))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            skipped.append(f"entry {number}: {type(error).__name__} {str(error)[:200]}")
    return Table(named, raw, entries, skipped)


def save(entries: list[Entry], device: Device, directory: pathlib.Path) -> pathlib.Path:
    """Put entries into the device's file, in place of those of the same keys; all others stay as they are.

    The file is written beside the old one and then takes its place; if anything fails, the old one is as it was.

    Returns:
        The file's path.

    Raises:
        Unusable: there is a file that is no table or another device's, or it would be too large. It is left alone.
        OSError: it cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / file_name(device)
    with locked(directory / ".lock"):
        kept = []
        if path.exists():
            # As texts: in Python True is 1.
            replaced = {json.dumps(dataclasses.asdict(entry.key), sort_keys=True) for entry in entries}
            kept = [
                raw for raw in load(path, device).raw
                if not isinstance(raw, dict) or json.dumps(raw.get("key"), sort_keys=True) not in replaced
            ]  # fmt: skip
        kept += [dataclasses.asdict(each) for each in entries]
        text = json.dumps({"schema": SCHEMA, "device": described(device), "entries": kept}, indent=1)
        if len(text) > _MOST_BYTES:
            raise Unusable(f"it would have more than {_MOST_BYTES >> 20} MiB")
        replace_file(path, text)
    return path


def replace_file(path: pathlib.Path, text: str) -> None:
    """Write a file beside ``path``, which then takes its place; if anything fails, the old one is as it was.

    Raises:
        OSError: it cannot be written.
    """
    handle, temporary = tempfile.mkstemp(prefix=path.stem, suffix=".tmp", dir=path.parent)
    try:
        with open(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Hold the lock of this name, which a process loses when it ends, however it ends.

    Raises:
        TimeoutError: another process holds the lock for longer than `PATIENCE`.
        OSError: there can be no lock here.
    """
    import filelock  # 0.1 s, which only tuning needs

    try:
        lock = filelock.FileLock(path, timeout=PATIENCE).acquire()
    except filelock.Timeout:
        raise TimeoutError(f"another process holds {path} for more than {PATIENCE:g} s") from None
    except NotImplementedError as error:  # a file system without locks, to earlier versions of filelock
        raise OSError(str(error)) from None
    with lock:
        yield
