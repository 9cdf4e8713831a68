"""Measurement of cells one after the other, into a CSV that a later run can continue. A sweep's cells are its cases."""

import functools
import gc
import pathlib
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from triton_gru.units import format_time

from .case import Case
from .floors import load_or_measure
from .measure import Conditions, DeviceLost, measure
from .precompile import compile_ahead
from .providers import BASELINE
from .record import BEGUN, Row, TimingsCsv, machine_name, row_key
from .sweeps import Sweep

_NOT_FLATTENED = "RNN module weights are not part of single contiguous chunk"


def run(
    sweep: Sweep,
    providers: Iterable[str],
    conditions: Conditions,
    out: pathlib.Path,
    resume: bool = False,
    minutes: float = float("inf"),
) -> None:
    """Measure the sweep into a CSV in the folder ``out``.

    Args:
        providers: providers to time with `BASELINE`.
        resume: skip measurements with rows. Otherwise all are measured again, and the last rows count.
        minutes: no case is begun after this time.

    Raises:
        ValueError: the CSV has another schema.
        DeviceLost: its rows are written before. A new process with ``resume`` skips the provider that caused it.
    """
    end = time.monotonic() + 60 * minutes
    device = conditions.device
    report = TimingsCsv(out / f"{sweep.name}-{machine_name(device)}.csv", device)
    todo = find_owed(sweep, providers, report.last_statuses() if resume else {})
    _say(f"{sweep.name}: {sweep.question}")
    _say(f"{len(todo)} of {len(sweep.cases)} cases to measure")
    floors = load_or_measure(out, device)
    _say(f"floors: {floors}")
    if device == "cuda" and todo:
        compile_ahead(todo)

    def measure_case(case: Case, names: list[str]) -> list[Row]:
        with warnings.catch_warnings():
            # Parameters that are not flattened cost torch.nn.GRU a copy on every call. In bf16 torch flattens none, so
            # `cudnn.STANDARD_PROVIDER` is timed as well.
            warnings.filterwarnings("ignore" if case.dtype == torch.bfloat16 else "error", message=_NOT_FLATTENED)
            return measure(case, names, conditions, floors)

    cells = [(case, _first_row(case, sweep), functools.partial(measure_case, case, names)) for case, names in todo]
    measure_cells(report, cells, functools.partial(summarize_rows, said=set()), end)


def measure_cells(
    report: TimingsCsv,
    todo: list[tuple[object, Row, Callable[[], list[Row]]]],
    summarize: Callable[[list[Row]], str],
    end: float = float("inf"),
) -> None:
    """Measure cells one after the other and write the rows of each at once.

    Args:
        todo: for each cell its name, a row that identifies it, and the function that measures it.
        summarize: returns the text to print for a cell's rows.
        end: no cell is begun after this time of the clock `time.monotonic`.

    Raises:
        DeviceLost: its rows are written before.
    """
    start = time.monotonic()
    for done, (name, row, measure_cell) in enumerate(todo):
        now = time.monotonic()
        if now > end:
            _say(f"time is over: {len(todo) - done} cases left")
            break
        left = f", {(now - start) / done * (len(todo) - done) / 60:.1f} min left" if done else ""
        _say(f"[{done + 1}/{len(todo)}] {name}{left}")
        report.add(replace(row, status=BEGUN))
        try:
            rows = measure_cell()
        except DeviceLost as lost:
            report.add(*lost.rows)
            raise
        report.add(*rows)
        _say(summarize(rows))
        gc.collect()
    _say(f"wrote {report.path}")


def _first_row(case: Case, sweep: Sweep) -> Row:
    return case.row(BASELINE, sweep.modes[0], sweep.l2)


def find_owed(
    sweep: Sweep, providers: Iterable[str], last_statuses: dict[tuple[str, ...], str]
) -> list[tuple[Case, list[str]]]:
    """Return the cases with the providers that ``last_statuses``, statuses by `record.row_key`, lacks.

    A case whose baseline has failed is not repeated, because nothing remains to compare the others with. A case that
    was begun and not finished comes last, because it may have hung or ended the process.
    """
    todo = []
    for case in sweep.cases:
        statuses = {
            name: [last_statuses.get(row_key(case.row(name, mode, sweep.l2))) for mode in sweep.modes]
            for name in (BASELINE, *providers)
        }
        names = [name for name, by_mode in statuses.items() if None in by_mode or BEGUN in by_mode]
        if names and "failed" not in statuses[BASELINE]:
            todo.append((case, names))
    return sorted(todo, key=lambda owed: last_statuses.get(row_key(_first_row(owed[0], sweep))) == BEGUN)


def summarize_rows(rows: list[Row], said: set[tuple[str, str]]) -> str:
    """Return a line for each provider: its kernel, each mode's median, and the speedup over the baseline's best mode.

    Providers without a time come last. Their reason is printed once for each provider and status, noted in ``said``.
    """
    baseline = [row.p50_ms for row in rows if row.base == BASELINE and row.n]
    timed, reasons, repeated = {}, [], {}
    for row in rows:
        if row.n:
            words = f"{row.mode} {format_time(1000 * row.p50_ms)}{' (noisy)' * (row.status == 'noisy')}"
            words += f", {min(baseline) / row.p50_ms:.2f}x" if baseline else ""
            timed.setdefault(row.base, [row.kernel]).append(words)
        elif (row.provider, row.status) in said:
            repeated.setdefault(row.status, []).append(row.provider)
        else:
            said.add((row.provider, row.status))
            reason = row.error or f"error {row.max_abs_err:.2g}"
            reasons.append(f"    {row.provider} {row.status}: {reason[:200]}")
    lines = [f"    {name:23} {kernel:13} " + "  ".join(words) for name, (kernel, *words) in timed.items()]
    return "\n".join(lines + reasons + [f"    {status}: {', '.join(names)}" for status, names in repeated.items()])


def _say(text: str) -> None:
    print(text, flush=True)
