"""What ``triton-gru tune`` shows: what it would do, how far it is, and what was found."""

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator

from ..plan.config import CUBLAS, report_name, split_implementation
from ..plan.cost import estimate_call_cost
from ..plan.device import Device
from ..plan.planner import choose
from ..plan.problem import Problem
from ..tuning.progress import Progress, ReportProgress, describe_shape
from ..tuning.space import candidates
from ..tuning.tuner import Tuned
from ..units import format_count, format_duration, format_number, format_time

_BAR = 14  # characters
_EVERY = 10.0  # seconds between two lines about the same shape
_ROWS, _BEST = 15, 10  # of the last table: at most, and if there are more
_FASTER = 1.03  # what is faster by less may be noise
_TF32_BY_CUBLAS = (
    '+cublas in TF32 is taken only with torch.backends.cuda.matmul.fp32_precision = "tf32", which is not the default'
)


@contextlib.contextmanager
def show_progress() -> Iterator[ReportProgress]:
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
    """Return progress as a bar, with words: first those that a narrow terminal is not to cut off."""
    full = int(_BAR * progress.fraction_done)
    words = [f"[{'#' * full}{'.' * (_BAR - full)}] {progress.number}/{progress.shapes}", progress.time_left]
    return "  ".join(filter(None, [*words, describe_shape(progress.key), progress.doing]))


def format_listing(problems: list[Problem], device: Device) -> str:
    """Return what would be tuned, a line for each shape, with what runs without a table and its estimated time."""
    rows = [("", "shape", "candidates", "untuned", "estimated")]
    for number, problem in enumerate(problems, 1):
        plan = choose(problem, device, use_tables=False)
        time = ""
        if plan.kernel != "reference":
            cost = estimate_call_cost(problem, plan.config, device, problem.steps > 1, plan.projection)
            time = format_time(cost.total)
        tried = len(candidates(problem, device))
        rows.append((str(number), describe_shape(problem.key()), str(tried), report_name(plan.implementation), time))
    width = max(len(shape) for _, shape, *_ in rows)
    lines = [f"`triton-gru tune` on {device.name}, in this order:"]
    for number, shape, tried, kernel, time in rows:
        lines.append(f"{number:>4}  {shape:{width}}  {tried:>10}  {kernel:12} {time:>9}")
    lines += [
        "candidates: configurations to measure; the fastest are measured with other input projections, too",
        "untuned: what serves a call without a table, and the estimated time of one call",
    ]
    return "\n".join(lines)


def format_summary(tuned: list[Tuned], shapes: int, seconds: float, to_ship: bool) -> str:
    """Return what was found, on one screen; ``shapes`` were asked for. ``to_ship`` adds where it is kept."""
    found = (
        sorted(tuned, key=lambda each: each.speedup_over_untuned or 0.0, reverse=True) if len(tuned) > _ROWS else tuned
    )
    rows = found[: _BEST if len(tuned) > _ROWS else _ROWS]
    columns = [_row_of(each) for each in rows]
    if rows:
        columns.insert(0, ("shape", "fastest", "time", "vs untuned", "vs nn.GRU"))
    width = max((len(shape) for shape, *_ in columns), default=0)
    lines = [f"{shape:{width}}  {kernel:12} {time:>8}  {a:>10}  {b:>9}" for shape, kernel, time, a, b in columns]
    if len(rows) < len(tuned):
        lines.append(f"and {len(tuned) - len(rows)} more, which gained less")
    return "\n".join([*lines, "", *_sums(tuned, shapes, seconds), *(_kept(tuned) if to_ship else ())])


def _row_of(tuned: Tuned) -> tuple[str, ...]:
    entry = tuned.entry
    ratios = [
        f"{format_number(each)}x" if each else "" for each in (tuned.speedup_over_untuned, entry.speedup_over_nn_gru)
    ]
    return describe_shape(entry.key), report_name(entry.winner), format_time(1000 * entry.ms), *ratios


def _sums(tuned: list[Tuned], shapes: int, seconds: float) -> list[str]:
    known = sum(each.is_from_table for each in tuned)
    lines = [f"{len(tuned) - known} of {format_count(shapes, 'shape')} tuned in {format_duration(seconds)}"]
    lines[0] += f"; already in the table: {known}" * bool(known)
    if cut := sum(each.is_cut_short for each in tuned):
        lines.append(
            f"too little time for all candidates: {format_count(cut, 'shape')}, measured again by the same command"
        )
    if lost := sum(not each.table_path for each in tuned):
        lines.append(f"not written to the table, as warned: {format_count(lost, 'shape')}. Mend that and tune again")
    if any(map(_is_tf32_by_cublas, tuned)):
        lines.append(_TF32_BY_CUBLAS)
    gained = [each for each in tuned if (each.speedup_over_untuned or 0.0) > _FASTER]
    if gained:
        best = max(gained, key=lambda each: each.speedup_over_untuned)
        largest = f"at most {format_number(best.speedup_over_untuned)}x, {describe_shape(best.entry.key)}"
        lines.append(f"{len(gained)} of {len(tuned)} faster than untuned by more than 3 %: {largest}")
    elif tuned:
        lines.append(f"none of {len(tuned)} faster than untuned by more than 3 %")
    return lines


def _is_tf32_by_cublas(tuned: Tuned) -> bool:
    key, (_, projection) = tuned.entry.key, split_implementation(tuned.entry.winner)
    return projection == CUBLAS and (key.dtype, key.precision) == ("float32", "tf32")


def _kept(tuned: list[Tuned]) -> list[str]:
    """Return where the table is, and how to ship it."""
    files = sorted({str(each.table_path) for each in tuned if each.table_path})
    if not files:
        return []
    return [
        f"kept in {', '.join(files)}",
        "GRUs of this user find it from now on. To ship it to a service with such a GPU, either",
        "  copy that file into the folder that TRITON_GRU_CONFIG_DIR names there, or",
        "  triton-gru table export FILE    # here, and there:",
        "  triton-gru table merge FILE",
    ]
