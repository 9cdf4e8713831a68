"""Measures which kernel and configuration, or nn.GRU, is fastest for each problem, and keeps the results."""

import contextlib
import dataclasses
import pathlib
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..deprecated import rename_attributes, rename_keywords
from ..plan.config import format_implementation
from ..plan.device import is_capturing
from ..plan.planner import choose, clear_plan_cache
from ..plan.problem import Key, Problem
from ..plan.tables import lookup, store
from ..plan.tables.entries import Entry, TimedResult
from ..units import format_count, format_number, format_time
from .bench import Bench
from .progress import ReportProgress, Tracker, describe_shape
from .run import SKIPPED_BUDGET, Ranking, Run
from .shapes import Recorded
from .space import candidates

# A shape gets at least 20 s, even if later shapes then get none. Exception: with a budget below 8 * 20 s, it gets at
# least an eighth of the budget.
_SECONDS_PER_SHAPE, _MIN_SHAPES = 20.0, 8


@rename_attributes(kept="table_path", known="is_from_table", over_untuned="speedup_over_untuned")
@dataclass(frozen=True)
class Tuned:
    """The result of tuning a problem.

    Attributes:
        problem: the tuned problem.
        entry: the entry of the table. ``backend="auto"`` takes its winner from now on.
        ranking: the finalists as (candidate, median milliseconds in the last mode), the fastest first. Empty if nothing
            was measured.
        table_path: the table's file; None if the table could not be written. Then only this process has the result.
        is_from_table: whether nothing was measured, because an earlier run or another tuner has measured the entry.
        untuned: the implementation that a plan takes without any table, or '' if unknown.
    """

    problem: Problem
    entry: Entry
    ranking: Ranking = ()
    table_path: pathlib.Path | None = None
    is_from_table: bool = False
    untuned: str = ""

    @property
    def is_cut_short(self) -> bool:
        """Return whether the time was too short for all candidates."""
        return SKIPPED_BUDGET in self.entry.failed

    @property
    def speedup_over_untuned(self) -> float | None:
        """Return the time of the untuned implementation over the winner's; None if the former was not measured."""
        return self.entry.speedup_over_untuned(self.untuned)

    @property
    def line(self) -> str:
        """Return one line of text: the shape, the winner, and the winner's time and speedups, as far as known."""
        winner = f"{format_implementation(self.entry.winner)} {format_time(1000 * self.entry.ms)}"
        parts = [f"{describe_shape(self.entry.key)}: {winner}"]
        if self.entry.winner == self.untuned == "torch":
            parts.append("as untuned")
        elif self.speedup_over_untuned:
            parts.append(
                f"{format_number(self.speedup_over_untuned)} times as fast as untuned "
                f"({format_implementation(self.untuned)})"
            )
        if self.entry.speedup_over_nn_gru and "torch" not in (self.entry.winner, self.untuned):
            parts.append(f"{format_number(self.entry.speedup_over_nn_gru)} times as fast as nn.GRU")
        return ", ".join(parts)

    def __str__(self) -> str:
        """Return the shape, lines for the winner, runner-up, heuristic and nn.GRU, and counts of candidates.

        A line is left out if its time was not measured. The line of nn.GRU is left out if nn.GRU is the winner.
        """
        entry = self.entry
        winner = entry.results[entry.winner]
        lines = [
            describe_shape(entry.key) + (f": in the table, of {entry.tuned_at[:10]}" if self.is_from_table else "")
        ]
        lines.append(_format_line("winner", entry.winner, winner.ms, winner))
        runners_up = [
            (candidate, ms)
            for candidate, ms in self.ranking
            if (candidate.name, candidate.config) != (entry.winner, winner.config)
        ]
        for candidate, ms in runners_up[:1]:
            lines.append(_format_line("runner-up", candidate.name, ms) + f"  {candidate}".rstrip())
        if winner.heuristic_ms:
            lines.append(_format_line("untuned", entry.winner, winner.heuristic_ms))
        if entry.winner != "torch" and (nn_gru := entry.results.get("torch")):
            lines.append(_format_line("baseline", "torch", nn_gru.ms, nn_gru))
        failed = [f"{count} {reason}" for reason, count in Counter(entry.failed).most_common()]
        lines.append("; ".join([f"  {format_count(entry.candidates, 'candidate')}", *failed]))
        return "\n".join(lines)


def _format_line(role: str, implementation: str, ms: float, result: TimedResult | None = None) -> str:
    """Return a line of `Tuned`'s text: a role such as "winner", the implementation and its median time.

    ``result`` adds the medians of the measured modes, the configuration, and the projection's tile if it has one.
    """
    line = f"  {role:11}{format_implementation(implementation):12}{format_time(1000 * ms):>9}"
    if result is None:
        return line
    _, eager_median, _ = result.eager_ms
    times = f"eager {format_time(1000 * eager_median)}"
    if result.graph_ms:
        _, graph_median, _ = result.graph_ms
        times += f", in a CUDA graph {format_time(1000 * graph_median)}"
    return f"{line}  ({times})  {result.config or ''} {result.tile or ''}".rstrip()


@rename_keywords(anew="remeasure", say="report")
def tune(
    problems: Iterable[Problem],
    *,
    device: torch.device | str = "cuda",
    budget: float = float("inf"),
    remeasure: bool = False,
    bench: Bench | None = None,
    report: ReportProgress = lambda progress: None,
) -> list[Tuned]:
    """Measure the fastest implementation of each of ``problems`` on a GPU, and keep the results.

    The results go into the user's table, for this process and later ones. From then on `GRU` with ``backend="auto"``
    runs each winner. With a kernel's name as backend it runs that kernel's fastest configuration. A `Stream` runs the
    fastest configuration of ``step``, even if another implementation wins.

    Problems with a fresh entry in the user's table are not measured again, unless they had too little time. So the same
    call continues a run that was interrupted, and only the problem that was being measured begins again.

    If the table cannot be written, the results are kept for this process, with a warning. The next result's write
    includes them.

    Args:
        problems: the problems, the most important first. See `shapes_of` and `record_shapes`. The problem of a single
            call is ``gru.plan(x).problem``.
        device: the GPU. It is not used if ``bench`` is given.
        budget: seconds for all problems, approximately. With too little time for a problem, fewer candidates are
            measured, and the next run measures the problem again after all others. A problem without any time is left
            out. Exception: the first problem to measure is never left out.
        remeasure: measure problems that are in the table, too.
        bench: the `Bench` that compiles and times the candidates, which is closed at the end. By default it is that of
            ``device``.
        report: called with each `Progress`, whose ``str`` is one line, and with each other line of text, such as a
            result. `print` is enough.

    Returns:
        A result for each problem that was measured or in the table, those of complete entries first. Problems with
        the same key share a result.

    Raises:
        ValueError: the batch size, input size or hidden size of a problem is 0.
        RuntimeError: there is no GPU, no kernel runs on it, a CUDA graph is being captured, or a launch of ``grid``
            gave up waiting while it was timed.
        triton_gru.plan.tables.store.UnusableTableError: the file of the user's table is not a table, has a later
            schema, or is the table of another device. It would have to be overwritten.
    """
    if torch.cuda.is_available() and is_capturing(torch.device("cuda")):
        raise RuntimeError(
            "tune() cannot run while a CUDA graph is being captured, as it compiles and waits for the GPU: "
            "call it before the capture"
        )
    with contextlib.closing(bench or Bench(_resolve_index(torch.device(device)))) as bench:
        return _tune_all(merge_problems(problems), bench, budget, remeasure, report)


def _tune_all(
    problems: dict[Key, Problem], bench: Bench, budget: float, remeasure: bool, report: ReportProgress
) -> list[Tuned]:
    """Tune the problems that have no complete entry yet, in about ``budget`` seconds, and save each result at once.

    Return the results, those of complete entries first. A problem that was left out has no result. The other arguments
    are those of `tune`.
    """
    end, shapes = time.monotonic() + budget, format_count(len(problems), "shape")
    directory = store.user_directory()
    user_table = directory and directory / store.file_name(bench.device)
    saved_entries = _read_user_table(user_table, bench)
    fresh_entries = {} if remeasure else _list_fresh_entries(bench)
    complete_keys = {key for key, entry in fresh_entries.items() if _is_complete(entry)}
    tuned = [
        Tuned(
            problem,
            fresh_entries[key],
            table_path=user_table if key in saved_entries else None,
            is_from_table=True,
            untuned=_name_untuned(problem, bench),
        )
        for key, problem in problems.items()
        if key in complete_keys
    ]
    tuned = _save_results(tuned, bench, directory)
    if tuned:
        report(f"{len(tuned)} of {shapes} already in the table, and not measured again")
    todo = [problem for key, problem in problems.items() if key not in complete_keys]
    todo.sort(key=lambda problem: problem.key() in fresh_entries)  # problems that were cut short come last
    if cut_short := sum(problem.key() in fresh_entries for problem in todo):
        report(f"{cut_short} of {shapes} had too little time before: measured again, last")
    tracker = Tracker({problem.key(): len(candidates(problem, bench.device)) for problem in todo}, end, report)
    for index, problem in enumerate(todo):
        now, problems_left = time.monotonic(), len(todo) - index
        if now >= end and index > 0:
            report(f"the budget is spent: {problems_left} of {shapes} left to the next run")
            break
        tracker.begin()
        shape = describe_shape(problem.key())
        entry = None if remeasure else _read_user_table(user_table, bench).get(problem.key())
        if entry and entry != fresh_entries.get(entry.key) and _is_complete(entry):
            report(f"{shape}: another tuner has measured it meanwhile")
            result, table_path = (entry, ()), user_table
        else:
            seconds = max((end - now) / problems_left, min(budget / _MIN_SHAPES, _SECONDS_PER_SHAPE))
            try:
                result, table_path = Run(problem, bench, seconds, tracker).tune(), None
            except torch.OutOfMemoryError:
                report(f"{shape}: left out, its tensors do not fit into the GPU's memory")
                continue
        if result:
            entry, ranking = result
            is_from_table, untuned = table_path is not None, _name_untuned(problem, bench)
            tuned.append(Tuned(problem, entry, ranking, table_path, is_from_table, untuned))
            lookup.add_process_entries(bench.device, [tuned[-1].entry])
            clear_plan_cache()
            tuned = _save_results(tuned, bench, directory)
            report(tuned[-1].line)
    return tuned


def _name_untuned(problem: Problem, bench: Bench) -> str:
    """Return the name of the implementation that a plan takes without a table."""
    return choose(problem, bench.device, use_tables=False).implementation


def _resolve_index(device: torch.device) -> torch.device:
    """Return a CUDA device with its index, by default the current device's. Return any other device unchanged.

    Raises:
        RuntimeError: ``device`` is a CUDA device, and there is no GPU.
    """
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise RuntimeError("there is no GPU to tune for")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def merge_problems(problems: Iterable[Problem]) -> dict[Key, Problem]:
    """Return the problem with the largest batch for each key, since a configuration must run for all problems of a key.

    Raises:
        ValueError: a batch size, input size or hidden size is 0.
    """
    merged = Recorded()
    for problem in problems:
        if problem.is_empty:
            raise ValueError(f"no size of a problem to be tuned may be 0, got {problem}")
        # Calls with resets or in reverse run the same kernels, though not nn.GRU, so they are not measured separately.
        # cuBLAS is measured even if torch's settings forbid it now: plans skip its results while they do.
        merged.add(
            dataclasses.replace(
                problem, unsupported_reason="", cublas_unsupported_reason="", resets=False, reverse=False
            )
        )
    return merged.largest


def _list_fresh_entries(bench: Bench) -> dict[Key, Entry]:
    """Return the entries of this process and of the user's tables that are not stale.

    If several sources have an entry for a key, the first source of `lookup.sources` takes precedence.
    """
    return {
        entry.key: entry
        for source in reversed(lookup.sources(bench.device))
        if source.is_from_user
        for entry in source.entries
        if not entry.stale_reason
    }


def _is_complete(entry: Entry) -> bool:
    """Return whether an entry is fresh, and was measured with enough time for all candidates."""
    return not entry.stale_reason and SKIPPED_BUDGET not in entry.failed


def _read_user_table(path: pathlib.Path | None, bench: Bench) -> dict[Key, Entry]:
    """Return the entries of the user's table; none if the table does not exist or cannot be read.

    Raises:
        UnusableTableError: the file is not a table of this device, and must not be overwritten. `tune` calls this
            function before it spends minutes on a problem.
    """
    try:
        return {entry.key: entry for entry in store.load(path, bench.device).entries} if path is not None else {}
    except OSError:
        return {}  # Tune anyway: if the table cannot be written either, the results are kept in this process.
    except store.NewerTableError as error:
        raise store.NewerTableError(f"{path}: {error}") from None
    except store.UnusableTableError as error:
        advice = "Move the file away, or set TRITON_GRU_CONFIG_DIR to another folder"
        raise store.UnusableTableError(f"{path}: {error}. {advice}") from None


def _save_results(tuned: list[Tuned], bench: Bench, directory: pathlib.Path | None) -> list[Tuned]:
    """Write the results that have no ``table_path`` to the user's table in ``directory``.

    Return all results, with the path of the table. If the table cannot be written, warn and return them unchanged.
    """
    if all(result.table_path for result in tuned):
        return tuned
    try:
        if directory is None:
            raise OSError("no home folder: set TRITON_GRU_CONFIG_DIR to a folder")
        path = store.save([result.entry for result in tuned if not result.table_path], bench.device, directory)
    except (OSError, store.UnusableTableError) as error:
        warnings.warn(f"results are kept for this process only, as the table cannot be written: {error}", stacklevel=4)
        return tuned
    return [dataclasses.replace(result, table_path=path) for result in tuned]
