"""Tables of what was measured: one JSON file a device, read without trust, written without loss.

    {"schema": 1, "device": {"name", "cc", "sms"}, "entries": [{
        "key": {what the measurement holds for, see `Key`},
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
import math
import os
import pathlib
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ..config import HANDOVERS, BlockConfig, Config, GridConfig, StepConfig
from ..device import Device
from ..problem import Problem

SCHEMA = 1
CONFIGS = {"block": BlockConfig, "grid": GridConfig, "step": StepConfig}
# No table comes near these; whoever wrote more did not mean well.
_MOST_BYTES = 16 << 20
_MOST = 1 << 31
PATIENCE = 60.0  # seconds
Quantiles = tuple[float, float, float]  # p20, p50, p80


class Unusable(ValueError):
    """A file that is no table."""


@dataclass(frozen=True)
class Key:
    """What a measurement holds for.

    Attributes:
        batch: rows of the batch, up to a power of two.
        steps: of the sequences that were measured.
    """

    hidden_size: int
    input_size: int
    batch: int
    steps: int
    layers: int
    directions: int
    dtype: str
    precision: str
    reset_after: bool
    layout: str

    @classmethod
    def of(cls, problem: Problem) -> "Key":
        return cls(
            problem.hidden_size, problem.input_size, 1 << (problem.batch_size - 1).bit_length(), problem.steps,
            problem.num_layers, problem.directions, str(problem.dtype)[6:], problem.precision, problem.reset_after,
            problem.layout,
        )  # fmt: skip

    def __str__(self) -> str:
        precision = f" ({self.precision})" if self.dtype == "float32" else ""
        words = [f"{self.dtype}{precision} H={self.hidden_size} I={self.input_size} B<={self.batch} T={self.steps}"]
        words += [f"layers={self.layers}"] * (self.layers > 1) + ["bidirectional"] * (self.directions == 2)
        words += ["reset before"] * (not self.reset_after) + [self.layout] * (self.layout != "dense")
        return " ".join(words)


@dataclass(frozen=True)
class Result:
    """A kernel in its best configuration, or torch's own GRU.

    Attributes:
        revision: of the kernel's code (see `revision`), empty for torch.
        eager_ms, graph_ms: quantiles of a call; graph_ms is None where there are no graphs.
        heuristic_ms: the median of the kernel as it would be without the table, in the mode of ``ms``; None if unknown.
    """

    config: Config | None
    revision: str
    eager_ms: Quantiles
    graph_ms: Quantiles | None
    heuristic_ms: float | None = None

    @property
    def ms(self) -> float:
        """The median that configurations are compared by: in a graph where there is one, without the host's part."""
        return (self.graph_ms or self.eager_ms)[1]


@dataclass(frozen=True)
class Entry:
    """What was found for a key."""

    key: Key
    winner: str
    results: dict[str, Result]
    candidates: int
    failed: dict[str, int]
    env: dict[str, str]
    tuned_at: str


def user_directory() -> pathlib.Path | None:
    """Where this user's tables are: ``TRITON_GRU_CONFIG_DIR``, else in the cache folder; None if there is no home."""
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
    """A device as a table names it."""
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


def load(path: pathlib.Path) -> Table:
    """Raises:
    Unusable: it is no table of this schema.
    OSError: it cannot be read.
    """
    # Not opened before: to open what is no regular file may wait forever.
    if not stat.S_ISREG(path.stat().st_mode):
        raise Unusable("it is no file")
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise Unusable(f"it has more than {_MOST_BYTES >> 20} MiB")
    try:
        whole = json.loads(data.decode())
    except RecursionError:
        raise Unusable("it is nested too deeply") from None
    except ValueError as error:  # of JSON, of its text, of a number
        raise Unusable(f"it is not JSON: {str(error)[:200]}") from None
    if not isinstance(whole, dict) or whole.get("schema") != SCHEMA or isinstance(whole.get("schema"), bool):
        raise Unusable(f"it is not of schema {SCHEMA}")
    device, raw = whole.get("device"), whole.get("entries")
    if not isinstance(device, dict) or not isinstance(raw, list):
        raise Unusable("it names no device or has no list of entries")
    entries, skipped = [], []
    for number, each in enumerate(raw):
        try:
            entries.append(_entry(each))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            skipped.append(f"entry {number}: {type(error).__name__} {str(error)[:200]}")
    return Table(device, raw, entries, skipped)


def save(entries: list[Entry], device: Device, directory: pathlib.Path) -> pathlib.Path:
    """Puts the entries into the device's file, in place of those of the same keys; all others stay as they are.

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
            table = load(path)
            if table.device != described(device):
                raise Unusable(f"it is of {table.device}, not of {described(device)}")
            replaced = {_text_of(dataclasses.asdict(entry.key)) for entry in entries}
            kept = [raw for raw in table.raw if not (isinstance(raw, dict) and _text_of(raw.get("key")) in replaced)]
        whole = {
            "schema": SCHEMA,
            "device": described(device),
            "entries": kept + [dataclasses.asdict(each) for each in entries],
        }
        text = json.dumps(whole, indent=1)
        if len(text) > _MOST_BYTES:
            raise Unusable(f"it would have more than {_MOST_BYTES >> 20} MiB")
        _replace(path, text)
    return path


def _replace(path: pathlib.Path, text: str) -> None:
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
    """Inside, no other process has the lock of this name; it goes with the process that holds it.

    Raises:
        OSError: there can be no lock here, or another process holds it for longer than `PATIENCE`.
    """
    import fcntl  # where there is none, nothing is tuned, and the rest works

    end = time.monotonic() + PATIENCE
    with path.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise TimeoutError(f"another process holds {path} for more than {PATIENCE:g} s") from None
                time.sleep(0.02)
        yield


def _text_of(key) -> str:
    """To be compared by: in Python True is 1."""
    return json.dumps(key, sort_keys=True)


def _entry(raw: dict) -> Entry:
    """Raises whatever comes of reading it as something that it is not."""
    key = _fields(raw["key"], Key)
    if key.layout not in ("dense", "lengths", "packed") or key.precision not in ("tf32", "ieee"):
        raise ValueError("no such layout or precision")
    results = {name: _result(name, result) for name, result in _mapping(raw["results"]).items()}
    if raw["winner"] not in results:
        raise ValueError("the winner is not among the results")
    failed = {_text(why): _count(number) for why, number in _mapping(raw["failed"]).items()}
    env = {_text(name): _text(value) for name, value in _mapping(raw["env"]).items()}
    return Entry(key, raw["winner"], results, _count(raw["candidates"]), failed, env, _text(raw["tuned_at"]))


def _result(name: str, raw: dict) -> Result:
    if name == "torch":
        config = None
    else:
        config = _fields(raw["config"], CONFIGS[name])
        if isinstance(config, GridConfig) and config.handover not in HANDOVERS:
            raise ValueError(f"no hand-over {config.handover!r}")
    graph_ms = None if raw["graph_ms"] is None else _quantiles(raw["graph_ms"])
    heuristic_ms = None if raw["heuristic_ms"] is None else _time(raw["heuristic_ms"])
    return Result(config, _text(raw["revision"]), _quantiles(raw["eager_ms"]), graph_ms, heuristic_ms)


def _fields(raw: dict, kind: type):
    """An instance of a dataclass of integers from 1 (0 for register_tiles), bools and texts.

    What has a default may be missing: an earlier version did not have it.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    if not required <= set(_mapping(raw)) <= set(fields):
        raise ValueError(f"not the fields of {kind.__name__}")
    for name, value in raw.items():
        type_ = fields[name].type
        if type(value) is not type_:
            raise TypeError(f"{name} is no {type_.__name__}")
        if type_ is int and not (0 if name == "register_tiles" else 1) <= value <= _MOST:
            raise ValueError(f"{name} is {value}")
        if type_ is str:
            _text(value)
    return kind(**raw)


def _mapping(raw) -> dict:
    if not isinstance(raw, dict) or len(raw) > 100:
        raise TypeError("no mapping")
    return raw


def _text(raw) -> str:
    if not isinstance(raw, str) or len(raw) > 1000:
        raise TypeError("no text, or a long one")
    return raw


def _count(raw) -> int:
    if type(raw) is not int or not 0 <= raw <= _MOST:
        raise TypeError("no count")
    return raw


def _time(raw) -> float:
    if type(raw) not in (int, float) or not 0 < raw < 1e9 or not math.isfinite(raw):
        raise ValueError("no time")
    return float(raw)


def _quantiles(raw) -> Quantiles:
    if not isinstance(raw, list) or len(raw) != 3:
        raise TypeError("no quantiles")
    p20, p50, p80 = (_time(each) for each in raw)
    if not p20 <= p50 <= p80:
        raise ValueError("quantiles that do not ascend")
    return p20, p50, p80
