"""Format of numbers in all reports: usually three significant digits, in a unit that suits the size."""

from decimal import Decimal

# Microseconds of each unit of time, and bytes of each unit of memory, from small to large.
_TIMES = {"us": 1.0, "ms": 1e3, "s": 1e6, "min": 6e7, "h": 3.6e9}
_SIZES = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_FOUR_DIGITS = 999.5  # from here on, a number rounds to four digits before the point


def format_number(number: float) -> str:
    """Return a number with three significant digits. From 1000 on, keep all digits before the point: ``"1234"``."""
    return _write_without_exponent(f"{number:#.3g}") if number < 99.95 else f"{number:.0f}"


def _write_without_exponent(text: str) -> str:
    """Return a number, given as text, without an exponent: ``"0.000012"`` for ``"1.2e-05"``."""
    return f"{Decimal(text):f}"


def format_time(microseconds: float) -> str:
    """Return the time of a call: ``"81.2 us"``."""
    unit, unit_microseconds = _choose_unit(microseconds, _TIMES)
    return f"{format_number(microseconds / unit_microseconds)} {unit}"


def format_rough_time(microseconds: float) -> str:
    """Return a time with two significant digits, which suffice for a part of a sum: ``"81 us"``."""
    unit, unit_microseconds = _choose_unit(microseconds, _TIMES)
    return f"{_write_without_exponent(f'{microseconds / unit_microseconds:.2g}')} {unit}"


def format_bytes(size: int) -> str:
    """Return a size in memory: ``"227 KiB"``."""
    unit, unit_bytes = _choose_unit(size, _SIZES)
    return f"{size if unit_bytes == 1 else format_number(size / unit_bytes)} {unit}"


def _choose_unit(value: float, units: dict[str, float]) -> tuple[str, float]:
    """Return the name and size of the smallest unit in which ``value`` has at most three digits before the point.

    Return the largest unit if there is none. ``units`` has the sizes by name, from small to large.
    """
    largest = list(units.items())[-1]
    return next(((unit, size) for unit, size in units.items() if value / size < _FOUR_DIGITS), largest)


def format_duration(seconds: float) -> str:
    """Return how long a run takes: ``"42 s"``, ``"5 min"``, ``"2.5 h"``. Seconds and minutes are used up to 99."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


def format_count(count: int, noun: str) -> str:
    """Return a count and its noun, with an s in the plural: ``"1 shape"``, ``"2 shapes"``."""
    return f"{count} {noun}{'s' * (count != 1)}"
