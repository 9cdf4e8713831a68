"""The GPU's clocks before and after each case, in a CSV beside the report: a card that slows down shows there."""

import csv
import pathlib
import subprocess

from .record import timestamp

_FIELDS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")  # MHz, MHz, degrees Celsius, W


class Clocks:
    """Each `note` writes what was read by the last one (before the case) and what is read now (after it)."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._before = _read()
        if not path.exists():
            names = [f"{when} {field}" for when in ("before", "after") for field in _FIELDS]
            self._write(["timestamp_utc", "case", *names])

    def note(self, case) -> str:
        before, after = self._before, _read()
        self._before = after
        self._write([timestamp(), case, *before, *after])
        return f"{', '.join(before)} before; {', '.join(after)} after ({', '.join(_FIELDS)})"

    def _write(self, values) -> None:
        with self._path.open("a", newline="") as file:
            csv.writer(file).writerow(values)


def _read() -> list[str]:
    """By nvidia-smi; question marks where it is not there or does not answer."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return ["?"] * len(_FIELDS)
    return [value.strip() for value in line.split(",")]
