"""Measures which kernel in which configuration is fastest for a problem, nn.GRU among them, and keeps it."""

import contextlib
import dataclasses
import pathlib
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..deprecated import rename_attributes, rename_keywords
from ..launch import call_cache
from ..plan.config import report_name
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

# Where there is little time, the first shapes get so many seconds each, and others none. But so many shapes get some.
_ENOUGH, _SHAPES_AT_LEAST = 20.0, 8


@rename_attributes(kept="table_path", known="is_from_table", over_untuned="speedup_over_untuned")
@dataclass(frozen=True)
class Tuned:
    """What was found for a problem.

    Attributes:
        entry: as the table has it; its winner is what ``backend="auto"`` takes from now on.
        ranking: what was timed to the end, the fastest first: (candidate, median milliseconds in the last mode).
        table_path: the table's file, None where it could not be written: then it holds for this process.
        is_from_table: it was there already, and nothing was measured.
        untuned: the implementation that a plan would take without any table.
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
        """Return how many times faster the winner is than what a plan takes without any table; None if not measured."""
        return self.entry.speedup_over_untuned(self.untuned)

    @property
    def line(self) -> str:
        """Return the winner, and by how much it won, in a line."""
        winner = f"{report_name(self.entry.winner)} {format_time(1000 * self.entry.ms)}"
        words = [f"{describe_shape(self.entry.key)}: {winner}"]
        if self.entry.winner == self.untuned == "torch":
            words.append("as untuned")
        elif self.speedup_over_untuned:
            words.append(
                f"{format_number(self.speedup_over_untuned)} times as fast as untuned ({report_name(self.untuned)})"
            )
        if self.entry.speedup_over_nn_gru and "torch" not in (self.entry.winner, self.untuned):
            words.append(f"{format_number(self.entry.speedup_over_nn_gru)} times as fast as nn.GRU")
        return ", ".join(words)

    def __str__(self) -> str:
        """Return a few lines: winner, runner-up, the heuristic, nn.GRU, and what became of the candidates."""
        entry = self.entry
        winner = entry.results[entry.winner]
        lines = [
            describe_shape(entry.key) + (f": in the table, of {entry.tuned_at[:10]}" if self.is_from_table else "")
        ]
        lines.append(_line("winner", entry.winner, winner.ms, winner))
        others = [each for each in self.ranking if (each[0].name, each[0].config) != (entry.winner, winner.config)]
        lines += [_line("runner-up", each.name, ms) + f"  {each}".rstrip() for each, ms in others[:1]]
        if winner.heuristic_ms:
            lines.append(_line("untuned", entry.winner, winner.heuristic_ms))
        if entry.winner != "torch" and (torchs := entry.results.get("torch")):
            lines.append(_line("baseline", "torch", torchs.ms, torchs))
        failed = [f"{number} {why}" for why, number in sorted(entry.failed.items(), key=lambda each: -each[1])]
        lines.append("; ".join([f"  {format_count(entry.candidates, 'candidate')}", *failed]))
        return "\n".join(lines)


def _line(role: str, kernel: str, ms: float, result: TimedResult | None = None) -> str:
    line = f"  {role:11}{report_name(kernel):12}{format_time(1000 * ms):>9}"
    if result is None:
        return line
    in_graph = f", in a CUDA graph {format_time(1000 * result.graph_ms[1])}" if result.graph_ms else ""
    times = f"(eager {format_time(1000 * result.eager_ms[1])}{in_graph})"
    return f"{line}  {times}  {result.config or ''} {result.tile or ''}".rstrip()


@rename_keywords(anew="remeasure", say="report")
def tune(
    problems: Iterable[Problem],
    *,
    device: torch.device | str = "cuda",
    budget: float = float("inf"),
    remeasure: bool = False,
    bench: Bench | None = None,
    report: ReportProgress = lambda said: None,
) -> list[Tuned]:
    """Find the fastest way to compute each of ``problems`` on a GPU and keep it, for this process and later ones.

    What is kept is what `GRU` runs from then on with ``backend="auto"``; its own kernels by name take the
    configurations found. What is in the user's table already, and not stale, is left as it is; so a run that was
    interrupted goes on where it was: it loses the problem it was at.

    Args:
        problems: see `shapes_of`, `record_shapes`; or of a call, ``gru.plan(x).problem``. The most important first.
        device: the GPU.
        budget: seconds, in all. What it cuts short is tuned with fewer candidates, and once more after all others by
            the next run. A problem that it leaves no time for is left out.
        remeasure: measures what is in the table, too.
        bench: what compiles and times, in place of the GPU.
        report: told of the progress: a `Progress`, whose text is a line, or a line of what was found. `print` will do.

    Returns:
        What was found, for each problem that there was time for.

    Raises:
        ValueError: a problem's batch or features are none.
        RuntimeError: no kernel runs on the device or there is none, or a CUDA graph is being captured.
        triton_gru.plan.tables.store.UnusableTableError: the user's table is none, or another device's: it would be in the way.

    Where the table cannot be written, a warning says so, and what was found holds for this process. It is written with
    what is found next, if that can be.
    """
    if torch.cuda.is_available() and is_capturing(torch.device("cuda")):
        raise RuntimeError("tune() while a CUDA graph is being captured: it compiles, waits and measures")
    with contextlib.closing(bench or Bench(_with_index(torch.device(device)))) as bench:
        return _tune_all(merge_problems(problems), bench, budget, remeasure, report)


def _tune_all(
    problems: dict[Key, Problem], bench: Bench, budget: float, remeasure: bool, report: ReportProgress
) -> list[Tuned]:
    end, shapes = time.monotonic() + budget, format_count(len(problems), "shape")
    directory = store.user_directory()
    path = directory and directory / store.file_name(bench.device)
    written = _written(path, bench)
    known = {} if remeasure else _known(bench)
    done = {key for key, entry in known.items() if _is_done(entry)}
    tuned = [
        Tuned(each, known[key], (), path if key in written else None, True, _untuned(each, bench))
        for key, each in problems.items()
        if key in done
    ]
    tuned = _keep(tuned, bench, directory)
    if tuned:
        report(f"{len(tuned)} of {shapes} already in the table, and not measured again")
    todo = [each for key, each in problems.items() if key not in done]
    todo.sort(key=lambda each: each.key() in known)  # last those for which the time was too short
    if again := sum(each.key() in known for each in todo):
        report(f"{again} of {shapes} had too little time before, and measured again, last")
    tracker = Tracker({each.key(): len(candidates(each, bench.device)) for each in todo}, end, report)
    for number, problem in enumerate(todo):
        now = time.monotonic()
        if now >= end and number > 0:
            report(f"the budget is spent: {len(todo) - number} of {shapes} left to the next run")
            break
        tracker.begin()
        shape = describe_shape(problem.key())
        entry = None if remeasure else _written(path, bench).get(problem.key())
        if entry and entry != known.get(entry.key) and _is_done(entry):
            report(f"{shape}: another tuner has measured it meanwhile")
            found, kept = (entry, ()), path
        else:
            seconds = max((end - now) / (len(todo) - number), min(budget / _SHAPES_AT_LEAST, _ENOUGH))
            try:
                found, kept = Run(problem, bench, seconds, tracker).tune(), None
            except torch.OutOfMemoryError:
                report(f"{shape}: left out, its tensors do not fit into the GPU's memory")
                continue
        if found:
            tuned.append(Tuned(problem, *found, kept, is_from_table=kept is not None, untuned=_untuned(problem, bench)))
            lookup.remember(bench.device, [tuned[-1].entry])
            clear_plan_cache()
            call_cache.clear_call_cache()
            tuned = _keep(tuned, bench, directory)
            report(tuned[-1].line)
    return tuned


def _untuned(problem: Problem, bench: Bench) -> str:
    return choose(problem, bench.device, use_tables=False).implementation


def _with_index(device: torch.device) -> torch.device:
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise RuntimeError("there is no GPU to tune for")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def merge_problems(problems: Iterable[Problem]) -> dict[Key, Problem]:
    """Return for each key the problem of the largest batch, which the others' configurations have to hold.

    Raises:
        ValueError: a size is 0.
    """
    found = Recorded()
    for problem in problems:
        if problem.is_empty:
            raise ValueError(f"no size of a problem to be tuned may be 0, got {problem}")
        # Calls with resets or in reverse are served as others, only not by torch: they are not measured apart. Settings
        # in the way of cuBLAS are another matter: there its result is passed over.
        found.add(
            dataclasses.replace(
                problem, unsupported_reason="", cublas_unsupported_reason="", resets=False, reverse=False
            )
        )
    return found.largest


def _known(bench: Bench) -> dict[Key, Entry]:
    """Return what the user's tables say that is not stale, or was found in this process."""
    return {
        entry.key: entry
        for source in reversed(lookup.sources(bench.device))
        if source.is_from_user
        for entry in source.entries
        if not entry.stale_reason
    }


def _is_done(entry: Entry) -> bool:
    """Return whether an entry holds, and there was time for all of it."""
    return not entry.stale_reason and SKIPPED_BUDGET not in entry.failed


def _written(path: pathlib.Path | None, bench: Bench) -> dict[Key, Entry]:
    """Return what is in the user's table; raise if that would be in the way, before minutes are spent."""
    try:
        return {entry.key: entry for entry in store.load(path, bench.device).entries} if path is not None else {}
    except OSError:
        return {}  # there is none, or it cannot be written either, which is not worth an end
    except store.NewerTableError as error:
        raise store.NewerTableError(f"{path}: {error}") from None
    except store.UnusableTableError as error:
        raise store.UnusableTableError(f"{path}: {error}. Move it away or name another TRITON_GRU_CONFIG_DIR") from None


def _keep(tuned: list[Tuned], bench: Bench, directory: pathlib.Path | None) -> list[Tuned]:
    """Write what is not kept yet; return all, with the file that it is in."""
    if all(each.table_path for each in tuned):
        return tuned
    try:
        if directory is None:
            raise OSError("there is no home: name a folder in TRITON_GRU_CONFIG_DIR")
        path = store.save([each.entry for each in tuned if not each.table_path], bench.device, directory)
    except (OSError, store.UnusableTableError) as error:
        warnings.warn(f"what was tuned holds for this process alone, it cannot be kept: {error}", stacklevel=4)
        return tuned
    return [dataclasses.replace(each, table_path=path) for each in tuned]
