"""Measurement of the cases of a sweep, one after the other, into a CSV that a later run can continue."""

import functools
import gc
import itertools
import pathlib
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from triton_gru.units import format_time

from .case import Case
from .floors import load_or_measure
from .gpu import is_gpu_lost
from .measure import Conditions, DeviceLost, measure
from .precompile import compile_ahead
from .providers import BASELINE
from .record import BEGUN, Row, TimingsCsv, machine_name, row_key
from .sweeps import Sweep

_NOT_FLATTENED_WARNING = "RNN module weights are not part of single contiguous chunk"


def run(
    sweep: Sweep,
    providers: Iterable[str],
    conditions: Conditions,
    out: pathlib.Path,
    since: str | None = None,
    minutes: float = float("inf"),
) -> None:
    """Measure the sweep into a CSV in the folder ``out``.

    Args:
        providers: providers to time with `BASELINE`.
        since: measure only what `find_owed` returns for the rows of this time or later, "" for all rows of the CSV.
            None: measure everything again. The last rows are valid.
        minutes: begin no case after this time.

    Raises:
        ValueError: the CSV has another schema.
        OSError: the GPU fails before anything is measured.
        DeviceLost: the GPU is lost. The rows of the exception are written before it is raised. A new process that
            resumes leaves them out. So it has less to measure than this process.
    """
    if is_gpu_lost():
        raise OSError("the GPU fails before anything is measured: another process may use it, or it needs a reset")
    end_time = time.monotonic() + 60 * minutes
    device = conditions.device
    report = TimingsCsv(out / f"{sweep.name}-{machine_name(device)}.csv", device)
    owed = find_owed(sweep, providers, {} if since is None else report.last_statuses(since))
    _say(f"{sweep.name}: {sweep.question}")
    _say(f"{len(owed)} of {len(sweep.cases)} cases to measure")
    floors = load_or_measure(out, device)
    _say(f"floors: {floors}")
    if is_gpu_lost():
        raise DeviceLost([])
    if device == "cuda" and owed:
        compile_ahead([(case, list(dict.fromkeys(name for name, _ in pairs))) for case, pairs in owed])

    def measure_case(case: Case, pairs: list[tuple[str, str]]) -> list[Row]:
        """Return the rows of the case's providers. Except in bf16, weights that are not flattened are a failure."""
        with warnings.catch_warnings():
            # Parameters that are not flattened cost torch.nn.GRU a copy on every call. In bf16 torch flattens none, so
            # reports also compare ours with `cudnn.STANDARD_PROVIDER` there.
            warnings.filterwarnings(
                "ignore" if case.dtype == torch.bfloat16 else "error", message=_NOT_FLATTENED_WARNING
            )
            return measure(case, pairs, conditions, floors)

    # The first row that is then written replaces the row that stands for the begun case.
    todo = [
        (case, case.make_row(*pairs[0], sweep.l2), functools.partial(measure_case, case, pairs)) for case, pairs in owed
    ]
    measure_cases(report, todo, functools.partial(summarize_rows, printed_reasons=set()), end_time)


def measure_cases(
    report: TimingsCsv,
    todo: list[tuple[object, Row, Callable[[], list[Row]]]],
    summarize: Callable[[list[Row]], str],
    end_time: float = float("inf"),
) -> None:
    """Measure cases one after the other, and write the rows of each case as soon as it is measured.

    Before a case is measured, a row with the status `BEGUN` is written. If the case kills the process, or loses the
    GPU, `find_owed` finds this row in the next run.

    Args:
        todo: for each case its name, the row to write when it is begun, and the function that measures it.
        summarize: returns the text to print for a case's rows.
        end_time: no case is begun after this time of the clock `time.monotonic`.

    Raises:
        DeviceLost: the GPU is lost. The rows of the exception are written before it is raised.
    """
    start = time.monotonic()
    for done, (name, begun_row, measure_case) in enumerate(todo):
        now = time.monotonic()
        if now > end_time:
            _say(f"time is over: {len(todo) - done} cases left")
            break
        time_left = f", {(now - start) / done * (len(todo) - done) / 60:.1f} min left" if done else ""
        _say(f"[{done + 1}/{len(todo)}] {name}{time_left}")
        report.add(replace(begun_row, status=BEGUN))
        try:
            rows = measure_case()
        except DeviceLost as lost:
            report.add(*lost.rows)
            raise
        report.add(*rows)
        _say(summarize(rows))
        gc.collect()
    _say(f"wrote {report.path}")


def find_owed(
    sweep: Sweep, providers: Iterable[str], last_statuses: dict[tuple[str, ...], str]
) -> list[tuple[Case, list[tuple[str, str]]]]:
    """Return the cases that still have to be measured, each with the pairs of a provider and a mode to measure.

    ``last_statuses`` has the last status of each measurement with a row, by `record.row_key`. Pairs without a finished
    row are to be measured. The baseline comes first, in all modes in which it has not failed, because rows are compared
    with the baseline of the same run. If it has failed in all modes, the case is not repeated. A case that was begun
    and not finished comes last, because it may have hung or ended the process.
    """
    owed, begun_cases = [], set()
    for case in sweep.cases:
        pairs = itertools.product(dict.fromkeys((BASELINE, *providers)), sweep.modes)
        status_of = {pair: last_statuses.get(row_key(case.make_row(*pair, sweep.l2))) for pair in pairs}
        missing = [pair for pair, status in status_of.items() if status in (None, BEGUN)]
        baseline = [pair for pair, status in status_of.items() if pair[0] == BASELINE and status != "failed"]
        if missing and baseline:
            owed.append((case, list(dict.fromkeys((*baseline, *missing)))))
        if BEGUN in status_of.values():
            begun_cases.add(case)
    return sorted(owed, key=lambda entry: entry[0] in begun_cases)


def summarize_rows(rows: list[Row], printed_reasons: set[tuple[str, str]]) -> str:
    """Return a line for each timed provider: kernel, each mode's median, and speedup over the baseline's best mode.

    Providers without a time follow, with the reason. ``printed_reasons`` has the pairs of provider and status whose
    reason was printed for an earlier case. New pairs are added. Later lines name such providers without a reason.
    """
    baseline_times = [row.p50_ms for row in rows if row.provider_name == BASELINE and row.n]
    timed, reasons, repeated = {}, [], {}
    for row in rows:
        if row.n:
            text = f"{row.mode} {format_time(1000 * row.p50_ms)}{' (noisy)' * (row.status == 'noisy')}"
            text += f", {min(baseline_times) / row.p50_ms:.2f}x" if baseline_times else ""
            timed.setdefault(row.provider_name, [row.kernel]).append(text)
        elif (row.provider, row.status) in printed_reasons:
            repeated.setdefault(row.status, []).append(row.provider)
        else:
            printed_reasons.add((row.provider, row.status))
            reason = row.error or f"error {row.max_abs_err:.2g}"
            reasons.append(f"    {row.provider} {row.status}: {reason[:200]}")
    lines = [f"    {name:23} {kernel:13} " + "  ".join(texts) for name, (kernel, *texts) in timed.items()]
    return "\n".join(lines + reasons + [f"    {status}: {', '.join(names)}" for status, names in repeated.items()])


def _say(text: str) -> None:
    """Print a line at once, even if the output is a file."""
    print(text, flush=True)
