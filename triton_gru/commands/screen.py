"""What ``triton-gru tune`` shows: what it would do, how far it is, and what was found."""

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator

from ..plan.cost import call_cost
from ..plan.device import Device
from ..plan.planner import choose
from ..plan.problem import Problem
from ..tuning.progress import Progress, Say, duration, shape_words, three_digits
from ..tuning.space import candidates
from ..tuning.tuner import Tuned

_BAR = 14  # characters
_EVERY = 10.0  # seconds between two lines about the same shape
_ROWS, _BEST = 15, 10  # of the last table: at most, and if there are more
_FASTER = 1.03  # what is faster by less may be noise


@contextlib.contextmanager
def shown() -> Iterator[Say]:
    """Yield what to tell the progress: a bar on a terminal, else lines."""
    say = Bar() if sys.stderr.isatty() else Lines()
    try:
        yield say
    finally:
        say.close()


class Bar:
    """Shows progress in one line of the terminal, rewritten in place on stderr; other lines go to stdout."""

    def __call__(self, said: Progress | str) -> None:
        if isinstance(said, str):
            self.close()
            print(said, flush=True)
            return
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{bar(said)[:width]}\x1b[K", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clear the line."""
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class Lines:
    """Shows progress as lines on stdout: one as a shape begins, then not more than one in `_EVERY` seconds."""

    def __init__(self):
        self._number, self._said = 0, 0.0

    def __call__(self, said: Progress | str) -> None:
        if isinstance(said, Progress):
            now = time.monotonic()
            if said.number == self._number and now - self._said < _EVERY:
                return
            self._number, self._said = said.number, now
        print(said, flush=True)

    def close(self) -> None:
        """Do nothing."""


def bar(progress: Progress) -> str:
    """Return progress as a bar, with words."""
    full = int(_BAR * progress.share)
    words = [f"[{'#' * full}{'.' * (_BAR - full)}] {progress.number}/{progress.shapes}", shape_words(progress.key)]
    return "  ".join(filter(None, [*words, progress.doing, progress.left]))


def listing(problems: list[Problem], device: Device) -> str:
    """Return what would be tuned, a line for each shape, with what runs without a table and its estimated time."""
    lines = [
        f"`triton-gru tune` on {device.name}, in this order:",
        _columns("", "shape", "candidates", "untuned", "ms"),
    ]
    for number, problem in enumerate(problems, 1):
        plan = choose(problem, device, use_tables=False)
        ms = ""
        if plan.kernel != "reference":
            cost = call_cost(problem, plan.config, device, problem.steps > 1, plan.projection)
            ms = three_digits(cost.total / 1000)
        tried = len(candidates(problem, device))
        lines.append(_columns(str(number), shape_words(problem.key()), str(tried), plan.implementation, ms))
    return "\n".join([*lines, "ms: of a call untuned, estimated by count"])


def _columns(number: str, shape: str, tried: str, kernel: str, ms: str) -> str:
    return f"{number:>4}  {shape:40} {tried:>10}  {kernel:12} {ms:>7}"


def summary(tuned: list[Tuned], shapes: int, seconds: float, to_ship: bool) -> str:
    """Return what was found, on one screen; ``shapes`` were asked for. ``to_ship`` adds where it is kept."""
    found = sorted(tuned, key=lambda each: each.over_untuned or 0.0, reverse=True) if len(tuned) > _ROWS else tuned
    rows = found[: _BEST if len(tuned) > _ROWS else _ROWS]
    lines = [_row("", "kernel", "ms", "x untuned", "x nn.GRU")] * bool(rows) + [_row_of(each) for each in rows]
    if len(rows) < len(tuned):
        lines.append(f"and {len(tuned) - len(rows)} more, which gained less")
    return "\n".join([*lines, "", *_sums(tuned, shapes, seconds), *(_kept(tuned) if to_ship else ())])


def _row_of(tuned: Tuned) -> str:
    ratios = [three_digits(each) if each else "" for each in (tuned.over_untuned, tuned.entry.over_torch)]
    return _row(shape_words(tuned.entry.key), tuned.entry.winner, three_digits(tuned.entry.ms), *ratios)


def _row(shape: str, kernel: str, ms: str, over_untuned: str, over_torch: str) -> str:
    return f"{shape:40}  {kernel:12} {ms:>8}  {over_untuned:>9}  {over_torch:>8}"


def _sums(tuned: list[Tuned], shapes: int, seconds: float) -> list[str]:
    known = sum(each.known for each in tuned)
    lines = [f"{len(tuned) - known} of {shapes} shapes tuned in {duration(seconds)}"]
    lines[0] += f", {known} were in the table already" * bool(known)
    if cut := sum(each.is_cut_short for each in tuned):
        lines.append(
            f"{cut} had too little time for all candidates: the same command measures them again"
        )
    if lost := sum(not each.kept for each in tuned):
        lines.append(f"{lost} could not be kept, as was warned: mend that, and the same command measures them again")
    gained = [each for each in tuned if (each.over_untuned or 0.0) > _FASTER]
    if gained:
        best = max(gained, key=lambda each: each.over_untuned)
        largest = f"at most {three_digits(best.over_untuned)} times, {shape_words(best.entry.key)}"
        lines.append(f"{len(gained)} of {len(tuned)} are faster than untuned by more than 3 %: {largest}")
    elif tuned:
        lines.append(f"none of {len(tuned)} is faster than untuned by more than 3 %")
    return lines


def _kept(tuned: list[Tuned]) -> list[str]:
    """Return where the table is, and how to ship it."""
    files = sorted({str(each.kept) for each in tuned if each.kept})
    if not files:
        return []
    return [
        f"kept in {', '.join(files)}",
        "GRUs of this user find it from now on. To ship it to a service with such a GPU, either",
        "  copy that file into the folder that TRITON_GRU_CONFIG_DIR names there, or",
        "  triton-gru table export FILE    # here, and there:",
        "  triton-gru table merge FILE",
    ]
