"""Progress of a tuning run: the share that is done, and an estimate of the time left."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..accuracy import PRECISIONS
from ..deprecated import rename_attributes
from ..plan.problem import Key
from ..units import format_count, format_duration

INTERVAL = 1.0  # fewest seconds between two reports about the same shape
# (dtype without "torch.", precision of products) -> name, such as "tf32".
_NAMES = {(str(dtype)[6:], precision): name for name, (dtype, precision) in PRECISIONS.items()}


@rename_attributes(left="time_left", share="fraction_done")
@dataclass(frozen=True)
class Progress:
    """The progress of a tuning run. As text it is one line.

    Attributes:
        number, shapes: the current shape, counted from 1, and the number of shapes.
        key: the current shape.
        doing: the current activity, such as "compiling 34 of 80".
        fraction_done: the share of the work on all shapes that is done, from 0 to 1. Each shape counts by its number of
            candidates.
        seconds_left: the estimated time to the end of the run, at most the rest of the budget; None if unknown.
    """

    number: int
    shapes: int
    key: Key
    doing: str
    fraction_done: float
    seconds_left: float | None

    @property
    def time_left(self) -> str:
        """Return the time left as text, or '' if unknown."""
        return "" if self.seconds_left is None else f"about {format_duration(max(1.0, self.seconds_left))} left"

    def __str__(self) -> str:
        activity = ", ".join(filter(None, [self.doing, self.time_left]))
        return f"[{self.number}/{self.shapes}] {describe_shape(self.key)}: {activity}"


ReportProgress = Callable[[Progress | str], object]


class Tracker:
    """A tracker that reports progress: when a shape begins, and then at most once in `INTERVAL`.

    Args:
        candidates: the number of candidates of each shape, in the order of tuning.
        end: the time of `time.monotonic` at which the budget ends.
        report: called with each `Progress`, and with each other line of text.
    """

    def __init__(self, candidates: dict[Key, int], end: float, report: ReportProgress):
        self._keys, self._counts = list(candidates), [max(1, count) for count in candidates.values()]
        self._start, self._end = time.monotonic(), end
        self._number, self._reported_at = 0, 0.0
        self.report = report

    def begin(self) -> None:
        """Begin the next shape, and report it."""
        self._number += 1
        self._report(format_count(self._counts[self._number - 1], "candidate"), 0.0)

    def update(self, doing: str, fraction_done: float) -> None:
        """Report the activity and the share of the shape's work that is done, at most once in `INTERVAL`."""
        if time.monotonic() - self._reported_at >= INTERVAL:
            self._report(doing, fraction_done)

    def _report(self, doing: str, fraction_done: float) -> None:
        """Report the activity, the share of all shapes' work that is done, and the time left."""
        self._reported_at = time.monotonic()
        index = self._number - 1
        done = sum(self._counts[:index]) + fraction_done * self._counts[index]
        total = sum(self._counts)
        # The estimate assumes the pace so far, and never exceeds the rest of the budget. It is infinite without either.
        elapsed = self._reported_at - self._start
        seconds_at_pace = elapsed / done * (total - done) if done else float("inf")
        seconds_left = min(seconds_at_pace, max(0.0, self._end - self._reported_at))
        self.report(
            Progress(
                self._number,
                len(self._keys),
                self._keys[index],
                doing,
                done / total,
                None if seconds_left == float("inf") else seconds_left,
            )
        )


def describe_shape(key: Key) -> str:
    """Return a short text for a shape. I is left out if it equals H, and so are options at their defaults."""
    precision = _NAMES.get((key.dtype, key.precision), key.dtype)
    parts = [precision, f"H={key.hidden_size}"]
    parts += [f"I={key.input_size}"] * (key.input_size != key.hidden_size)
    parts += [f"B<={key.batch}" if key.batch > 1 else "B=1", f"T={key.steps}"]
    return " ".join(parts) + key.options_text
