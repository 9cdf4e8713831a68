"""How far a tuning run is, and how long it will take."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..accuracy import PRECISIONS
from ..deprecated import rename_attributes
from ..plan.problem import Key
from ..units import format_count, format_duration

INTERVAL = 1.0  # seconds from one report to the next about the same shape
_NAMES = {(str(dtype)[6:], precision): name for name, (dtype, precision) in PRECISIONS.items()}


@rename_attributes(left="time_left", share="fraction_done")
@dataclass(frozen=True)
class Progress:
    """How far a tuning run is. Its text is a line.

    Attributes:
        number, shapes: which shape is at work, from 1, and how many there are.
        key: the shape.
        doing: what is done with it.
        fraction_done: of all candidates of all shapes, those that are done, from 0 to 1.
        seconds_left: the estimated rest of the run; None if nobody knows.
    """

    number: int
    shapes: int
    key: Key
    doing: str
    fraction_done: float
    seconds_left: float | None

    @property
    def time_left(self) -> str:
        """Return the time left in words, empty if nobody knows."""
        return "" if self.seconds_left is None else f"about {format_duration(max(1.0, self.seconds_left))} left"

    def __str__(self) -> str:
        words = ", ".join(filter(None, [self.doing, self.time_left]))
        return f"[{self.number}/{self.shapes}] {describe_shape(self.key)}: {words}"


ReportProgress = Callable[[Progress | str], object]


class Tracker:
    """Counts candidates that are done, and says so: at the start of each shape, and then from time to time.

    Args:
        candidates: of each shape, in the order of tuning, how many there are.
        end: the time by `time.monotonic` when the budget is over.
        report: told of `Progress`, and of lines that are none.
    """

    def __init__(self, candidates: dict[Key, int], end: float, report: ReportProgress):
        self._keys, self._counts = list(candidates), [max(1, number) for number in candidates.values()]
        self._start, self._end = time.monotonic(), end
        self._number, self._said = 0, 0.0
        self.report = report

    def begin(self) -> None:
        """Report the next shape."""
        self._number += 1
        self._report(format_count(self._counts[self._number - 1], "candidate"), 0.0)

    def update(self, doing: str, fraction_done: float) -> None:
        """Report what is done with the shape, and the share of its work that is done; at most once in `INTERVAL`."""
        if time.monotonic() - self._said >= INTERVAL:
            self._report(doing, fraction_done)

    def _report(self, doing: str, fraction_done: float) -> None:
        self._said = time.monotonic()
        at = self._number - 1
        done = sum(self._counts[:at]) + fraction_done * self._counts[at]
        total = sum(self._counts)
        # The pace is the one so far. No run takes longer than its budget, about.
        elapsed = self._said - self._start
        pace = elapsed / done * (total - done) if done else float("inf")
        left = min(pace, max(0.0, self._end - self._said))
        self.report(
            Progress(
                self._number,
                len(self._keys),
                self._keys[at],
                doing,
                done / total,
                None if left == float("inf") else left,
            )
        )


def describe_shape(key: Key) -> str:
    """Return a shape in as few words as tell it apart. The inputs are left out if they are as many as H."""
    precision = _NAMES.get((key.dtype, key.precision), key.dtype)
    words = [precision, f"H={key.hidden_size}"]
    words += [f"I={key.input_size}"] * (key.input_size != key.hidden_size)
    words += [f"B<={key.batch}" if key.batch > 1 else "B=1", f"T={key.steps}"]
    return " ".join(words) + key.options_text
