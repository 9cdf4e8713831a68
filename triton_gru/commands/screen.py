"""The texts that ``triton-gru tune`` prints: the list of shapes, the progress, and the summary of results."""

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator

from ..plan.config import CUBLAS, format_implementation, split_implementation
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
_LINE_INTERVAL_S = 10.0  # fewest seconds between two lines about the same shape
_MAX_ROWS = 15  # rows of the summary's table
_BEST_ROWS = 10  # rows if there are more than `_MAX_ROWS` results: those that gained most
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
        """Show progress in the bar, or print another line of text above it."""
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
    """A progress report in lines on stdout: one line when a shape begins, then at most one per `_LINE_INTERVAL_S`."""

    def __init__(self):
        self._number, self._printed_at = 0, 0.0

    def __call__(self, report: Progress | str) -> None:
        """Print progress, unless a line about the same shape was printed shortly before. Print any other text."""
        if isinstance(report, Progress):
            now = time.monotonic()
            if report.number == self._number and now - self._printed_at < _LINE_INTERVAL_S:
                return
            self._number, self._printed_at = report.number, now
        print(report, flush=True)

    def close(self) -> None:
        """Do nothing: lines need no clearing. A `Bar` does."""


def format_bar(progress: Progress) -> str:
    """Return progress as a bar and texts. The important texts come first, because a narrow terminal cuts the end."""
    filled = int(_BAR * progress.fraction_done)
    parts = [f"[{'#' * filled}{'.' * (_BAR - filled)}] {progress.number}/{progress.shapes}", progress.time_left]
    return "  ".join(filter(None, [*parts, describe_shape(progress.key), progress.doing]))


def format_listing(problems: list[Problem], device: Device) -> str:
    """Return the text of `triton-gru tune --list`: a line for each shape to tune.

    The line has the number of candidates, the implementation that serves the shape without a table, and the estimated
    time of that implementation. Plain PyTorch ("reference") has no estimate.
    """
    rows = [("", "shape", "candidates", "untuned", "estimated")]
    for number, problem in enumerate(problems, 1):
        plan = choose(problem, device, use_tables=False)
        time = ""
        if plan.kernel != "reference":
            # Estimate several steps in a CUDA graph, where nn.GRU is fastest, and one step eager, as plans do.
            in_graph = problem.steps > 1
            cost = estimate_call_cost(problem, plan.config, device, in_graph, plan.projection)
            time = format_time(cost.total)
        shape, num_candidates = describe_shape(problem.key()), len(candidates(problem, device))
        rows.append((str(number), shape, str(num_candidates), format_implementation(plan.implementation), time))
    width = max(len(shape) for _, shape, *_ in rows)
    lines = [f"`triton-gru tune` on {device.name}, in this order:"]
    for number, shape, num_candidates, implementation, time in rows:
        lines.append(f"{number:>4}  {shape:{width}}  {num_candidates:>10}  {implementation:12} {time:>9}")
    lines += [
        "candidates: configurations to measure; the fastest are measured with other input projections, too",
        "untuned: the implementation that serves a call without a table, and its estimated time",
    ]
    return "\n".join(lines)


def format_summary(results: list[Tuned], num_shapes: int, seconds: float, shows_table: bool) -> str:
    """Return the results of a run on one screen: a table of the results, then lines on all of them.

    Args:
        results: the results. If there are more than `_MAX_ROWS`, the table has only those that gained most.
        num_shapes: the number of shapes that the run was asked to tune.
        seconds: the time that the run took.
        shows_table: whether to add the file of the tuned table, and how to take the file to another machine. Nothing is
            added if no table was written.
    """
    listed = results
    if len(results) > _MAX_ROWS:
        listed = sorted(results, key=lambda result: result.speedup_over_untuned or 0.0, reverse=True)[:_BEST_ROWS]
    rows = [_format_row(result) for result in listed]
    if rows:
        rows.insert(0, ("shape", "fastest", "time", "vs untuned", "vs nn.GRU"))
    width = max((len(shape) for shape, *_ in rows), default=0)
    lines = [
        f"{shape:{width}}  {fastest:12} {time:>8}  {vs_untuned:>10}  {vs_nn_gru:>9}"
        for shape, fastest, time, vs_untuned, vs_nn_gru in rows
    ]
    if len(listed) < len(results):
        lines.append(f"and {len(results) - len(listed)} more, which gained less")
    lines += ["", *_summarize(results, num_shapes, seconds)]
    if shows_table:
        lines += _describe_table(results)
    return "\n".join(lines)


def _format_row(result: Tuned) -> tuple[str, str, str, str, str]:
    """Return a row of the summary's table. A speedup that is unknown is ''."""
    entry = result.entry
    vs_untuned, vs_nn_gru = (
        f"{format_number(speedup)}x" if speedup else ""
        for speedup in (result.speedup_over_untuned, entry.speedup_over_nn_gru)
    )
    time = format_time(1000 * entry.ms)
    return describe_shape(entry.key), format_implementation(entry.winner), time, vs_untuned, vs_nn_gru


def _summarize(results: list[Tuned], num_shapes: int, seconds: float) -> list[str]:
    """Return lines on all results: how many were measured, cut short, not written, and faster than untuned.

    A line tells the condition of cuBLAS's projection in TF32, if a winner has it.
    """
    num_known = sum(result.is_from_table for result in results)
    lines = [f"{len(results) - num_known} of {format_count(num_shapes, 'shape')} tuned in {format_duration(seconds)}"]
    lines[0] += f"; already in the table: {num_known}" * bool(num_known)
    if cut_short := sum(result.is_cut_short for result in results):
        lines.append(
            f"too little time for all candidates: {format_count(cut_short, 'shape')}; "
            f"the same command measures {'it' if cut_short == 1 else 'them'} again"
        )
    if unwritten := sum(not result.table_path for result in results):
        lines.append(
            f"not written to the table, as warned: {format_count(unwritten, 'shape')}. Fix that and tune again"
        )
    if any(map(_is_tf32_by_cublas, results)):
        lines.append(_TF32_BY_CUBLAS)
    min_gain = f"{100 * MIN_GAIN:.0f} %"
    gained = [result for result in results if (result.speedup_over_untuned or 0.0) > 1 + MIN_GAIN]
    if gained:
        best = max(gained, key=lambda result: result.speedup_over_untuned)
        largest_gain = f"at most {format_number(best.speedup_over_untuned)}x, {describe_shape(best.entry.key)}"
        lines.append(f"{len(gained)} of {len(results)} faster than untuned by more than {min_gain}: {largest_gain}")
    elif results:
        lines.append(f"none of {len(results)} faster than untuned by more than {min_gain}")
    return lines


def _is_tf32_by_cublas(result: Tuned) -> bool:
    """Return whether the winner has cuBLAS's projection in TF32, which torch's default setting forbids."""
    key = result.entry.key
    _, projection = split_implementation(result.entry.winner)
    return projection == CUBLAS and (key.dtype, key.precision) == ("float32", "tf32")


def _describe_table(results: list[Tuned]) -> list[str]:
    """Return lines on the table's file and on how to take it to another machine. No line if no table was written."""
    paths = sorted({str(result.table_path) for result in results if result.table_path})
    if not paths:
        return []
    return [
        f"kept in {', '.join(paths)}",
        "This user's GRUs use the table from now on. To take it to another machine with the same GPU, either",
        "  copy the file into the folder that TRITON_GRU_CONFIG_DIR names there, or",
        "  triton-gru table export FILE    # here, then copy FILE and run there:",
        "  triton-gru table merge FILE",
    ]
