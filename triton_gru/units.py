"""Format of numbers in all reports: three significant digits, in a unit that suits the size."""

from decimal import Decimal

# Microseconds of each unit of a call's time, and bytes of each unit of memory.
_TIMES = {"us": 1.0, "ms": 1e3, "s": 1e6, "min": 6e7, "h": 3.6e9}
_SIZES = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_NEXT = 999.5  # from here on, a number in this unit rounds to four digits: take the next unit


def format_number(number: float) -> str:
    """Return a number with three significant digits, or with all digits before the point if they are more."""
    return _without_exponent(f"{number:#.3g}") if number < 99.95 else f"{number:.0f}"


def _without_exponent(text: str) -> str:
    return f"{Decimal(text):f}"


def format_time(microseconds: float) -> str:
    """Return the time of a call: ``"81.2 us"``."""
    unit, size = _unit(microseconds, _TIMES)
    return f"{format_number(microseconds / size)} {unit}"


def format_rough_time(microseconds: float) -> str:
    """Return a time with two significant digits, which suffice for a part of a sum: ``"81 us"``."""
    unit, size = _unit(microseconds, _TIMES)
    return f"{_without_exponent(f'{microseconds / size:.2g}')} {unit}"


def format_bytes(size: int) -> str:
    """Return a size in memory: ``"227 KiB"``."""
    unit, scale = _unit(size, _SIZES)
    return f"{size if scale == 1 else format_number(size / scale)} {unit}"


def _unit(value: float, units: dict[str, float]) -> tuple[str, float]:
    """Return the smallest unit in which the value has at most three digits before the point, or the largest unit."""
    return next(((unit, size) for unit, size in units.items() if value / size < _NEXT), list(units.items())[-1])


def format_duration(seconds: float) -> str:
    """Return how long a run takes: ``"42 s"``, ``"5 min"``, ``"1.5 h"``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


def format_count(number: int, noun: str) -> str:
    """Return a number and its noun: ``"1 shape"``, ``"2 shapes"``."""
    return f"{number} {noun}{'s' * (number != 1)}"
