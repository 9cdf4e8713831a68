"""The texts that ``triton-gru tune`` prints: the list of shapes, the progress, and the summary of results."""

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
from ..tuning.verdict import MIN_GAIN
from ..units import format_count, format_duration, format_number, format_time

_BAR = 14  # characters
_LINE_INTERVAL_S = 10.0  # seconds between two lines about the same shape
_MAX_ROWS = 15  # of the summary; if there are more results, it has the best `_BEST_ROWS`
_BEST_ROWS = 10
_TF32_BY_CUBLAS = (
    '+cublas in TF32 is taken only with torch.backends.cuda.matmul.fp32_precision = "tf32", which is not the default'
)


@contextlib.contextmanager
def show_progress() -> Iterator[ReportProgress]:
    """Yield a function that shows progress: as a bar if stderr is a terminal, else as lines."""
    report = Bar() if sys.stderr.isatty() else Lines()
    try:
        yield report
    finally:
        report.close()


class Bar:
    """A progress bar in one line on stderr, which each report overwrites. Other lines go to stdout."""

    def __call__(self, report: Progress | str) -> None:
        if isinstance(report, str):
            self.close()
            print(report, flush=True)
            return
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{format_bar(report)[:width]}\x1b[K", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clear the line."""
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class Lines:
    """A progress report in lines on stdout: one when a shape begins, then at most one in `_LINE_INTERVAL_S`."""

    def __init__(self):
        self._number, self._printed_at = 0, 0.0

    def __call__(self, report: Progress | str) -> None:
        if isinstance(report, Progress):
            now = time.monotonic()
            if report.number == self._number and now - self._printed_at < _LINE_INTERVAL_S:
                return
            self._number, self._printed_at = report.number, now
        print(report, flush=True)

    def close(self) -> None:
        """Do nothing."""


def format_bar(progress: Progress) -> str:
    """Return progress as a bar and texts. The most important texts come first, as a narrow terminal cuts the last."""
    full = int(_BAR * progress.fraction_done)
    parts = [f"[{'#' * full}{'.' * (_BAR - full)}] {progress.number}/{progress.shapes}", progress.time_left]
    return "  ".join(filter(None, [*parts, describe_shape(progress.key), progress.doing]))


def format_listing(problems: list[Problem], device: Device) -> str:
    """Return a line for each shape to tune, with the implementation that serves it untuned and its estimated time."""
    rows = [("", "shape", "candidates", "untuned", "estimated")]
    for number, problem in enumerate(problems, 1):
        plan = choose(problem, device, use_tables=False)
        time = ""
        if plan.kernel != "reference":
            cost = estimate_call_cost(problem, plan.config, device, problem.steps > 1, plan.projection)
            time = format_time(cost.total)
        count = len(candidates(problem, device))
        rows.append((str(number), describe_shape(problem.key()), str(count), report_name(plan.implementation), time))
    width = max(len(shape) for _, shape, *_ in rows)
    lines = [f"`triton-gru tune` on {device.name}, in this order:"]
    for number, shape, count, kernel, time in rows:
        lines.append(f"{number:>4}  {shape:{width}}  {count:>10}  {kernel:12} {time:>9}")
    lines += [
        "candidates: configurations to measure; the fastest are measured with other input projections, too",
        "untuned: the implementation that serves a call without a table, and its estimated time",
    ]
    return "\n".join(lines)


def format_summary(tuned: list[Tuned], shapes: int, seconds: float, to_ship: bool) -> str:
    """Return the results on one screen. ``shapes`` is the number requested; ``to_ship`` adds where the table is."""
    has_more = len(tuned) > _MAX_ROWS
    rows = sorted(tuned, key=lambda result: result.speedup_over_untuned or 0.0, reverse=True) if has_more else tuned
    rows = rows[: _BEST_ROWS if has_more else _MAX_ROWS]
    columns = [_summary_row(result) for result in rows]
    if rows:
        columns.insert(0, ("shape", "fastest", "time", "vs untuned", "vs nn.GRU"))
    width = max((len(shape) for shape, *_ in columns), default=0)
    lines = [f"{shape:{width}}  {kernel:12} {time:>8}  {a:>10}  {b:>9}" for shape, kernel, time, a, b in columns]
    if len(rows) < len(tuned):
        lines.append(f"and {len(tuned) - len(rows)} more, which gained less")
    return "\n".join(
        [*lines, "", *_summary_lines(tuned, shapes, seconds), *(_shipping_lines(tuned) if to_ship else ())]
    )


def _summary_row(tuned: Tuned) -> tuple[str, ...]:
    entry = tuned.entry
    ratios = [
        f"{format_number(ratio)}x" if ratio else "" for ratio in (tuned.speedup_over_untuned, entry.speedup_over_nn_gru)
    ]
    return describe_shape(entry.key), report_name(entry.winner), format_time(1000 * entry.ms), *ratios


def _summary_lines(tuned: list[Tuned], shapes: int, seconds: float) -> list[str]:
    known = sum(result.is_from_table for result in tuned)
    lines = [f"{len(tuned) - known} of {format_count(shapes, 'shape')} tuned in {format_duration(seconds)}"]
    lines[0] += f"; already in the table: {known}" * bool(known)
    if cut_short := sum(result.is_cut_short for result in tuned):
        lines.append(
            f"too little time for all candidates: {format_count(cut_short, 'shape')}; "
            f"the same command measures {'it' if cut_short == 1 else 'them'} again"
        )
    if unwritten := sum(not result.table_path for result in tuned):
        lines.append(
            f"not written to the table, as warned: {format_count(unwritten, 'shape')}. Fix that and tune again"
        )
    if any(map(_is_tf32_by_cublas, tuned)):
        lines.append(_TF32_BY_CUBLAS)
    least = f"{100 * MIN_GAIN:.0f} %"
    gained = [result for result in tuned if (result.speedup_over_untuned or 0.0) > 1 + MIN_GAIN]
    if gained:
        best = max(gained, key=lambda result: result.speedup_over_untuned)
        largest = f"at most {format_number(best.speedup_over_untuned)}x, {describe_shape(best.entry.key)}"
        lines.append(f"{len(gained)} of {len(tuned)} faster than untuned by more than {least}: {largest}")
    elif tuned:
        lines.append(f"none of {len(tuned)} faster than untuned by more than {least}")
    return lines


def _is_tf32_by_cublas(tuned: Tuned) -> bool:
    key, (_, projection) = tuned.entry.key, split_implementation(tuned.entry.winner)
    return projection == CUBLAS and (key.dtype, key.precision) == ("float32", "tf32")


def _shipping_lines(tuned: list[Tuned]) -> list[str]:
    """Return the table's path, and how to take the table to another machine."""
    paths = sorted({str(result.table_path) for result in tuned if result.table_path})
    if not paths:
        return []
    return [
        f"kept in {', '.join(paths)}",
        "This user's GRUs use the table from now on. To take it to another machine with the same GPU, either",
        "  copy the file into the folder that TRITON_GRU_CONFIG_DIR names there, or",
        "  triton-gru table export FILE    # here, then copy FILE and run there:",
        "  triton-gru table merge FILE",
    ]
