"""Cells measured one after the other into a CSV that can be gone on with; and a sweep, whose cells are its cases."""

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
        providers: beside `BASELINE`.
        resume: leave out what there are rows of. Otherwise all is measured again, and the last rows count.
        minutes: no case is begun after them.

    Raises:
        ValueError: the CSV is of another schema.
        DeviceLost: after its rows were written; going on with ``resume`` in a new process leaves the culprit out.
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
            # Parameters that are not flattened cost torch.nn.GRU a copy on every call. In bf16 torch flattens none:
            # there `cudnn.STANDARD_PROVIDER` stands beside it.
            warnings.filterwarnings("ignore" if case.dtype == torch.bfloat16 else "error", message=_NOT_FLATTENED)
            return measure(case, names, conditions, floors)

    cells = [(case, _first_row(case, sweep), functools.partial(measure_case, case, names)) for case, names in todo]
    measure_cells(report, cells, functools.partial(summarize_rows, said=set()), end)


def measure_cells(
    report: TimingsCsv,
    todo: list[tuple[object, Row, Callable[[], list[Row]]]],
    told: Callable[[list[Row]], str],
    end: float = float("inf"),
) -> None:
    """Measure cells one after the other and write the rows of each at once.

    Args:
        todo: of each cell its name, a row that says what it is of, and what measures it.
        told: makes of a cell's rows what is printed.
        end: no cell is begun after it, on the clock `time.monotonic`.

    Raises:
        DeviceLost: after its rows were written.
    """
    start = time.monotonic()
    for done, (name, row, measure_cell) in enumerate(todo):
        now = time.monotonic()
        if now > end:
            _say(f"{len(todo) - done} cases left when the time was over")
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
        _say(told(rows))
        gc.collect()
    _say(f"wrote {report.path}")


def _first_row(case: Case, sweep: Sweep) -> Row:
    return case.row(BASELINE, sweep.modes[0], sweep.l2)


def find_owed(
    sweep: Sweep, providers: Iterable[str], there: dict[tuple[str, ...], str]
) -> list[tuple[Case, list[str]]]:
    """Return cases and the providers of each that ``there``, the statuses by `record.row_key`, lacks.

    A case whose baseline has failed is done with then: there is nothing to gate the others by. One that was begun and
    has no end comes last: it may have hung, or taken the process with it.
    """
    todo = []
    for case in sweep.cases:
        statuses = {
            name: [there.get(row_key(case.row(name, mode, sweep.l2))) for mode in sweep.modes]
            for name in (BASELINE, *providers)
        }
        names = [name for name, of_modes in statuses.items() if None in of_modes or BEGUN in of_modes]
        if names and "failed" not in statuses[BASELINE]:
            todo.append((case, names))
    return sorted(todo, key=lambda each: there.get(row_key(_first_row(each[0], sweep))) == BEGUN)


def summarize_rows(rows: list[Row], said: set[tuple[str, str]]) -> str:
    """Return a line for each provider: its kernel, each mode's median, and how much faster than the baseline's best.

    Providers without a time come last, with the reason unless their status is in ``said``, to which it is added.
    """
    baseline = [row.p50_ms for row in rows if row.base == BASELINE and row.n]
    timed, without, again = {}, [], {}
    for row in rows:
        if row.n:
            words = f"{row.mode} {format_time(1000 * row.p50_ms)}{' (noisy)' * (row.status == 'noisy')}"
            words += f", {min(baseline) / row.p50_ms:.2f}x" if baseline else ""
            timed.setdefault(row.base, [row.kernel]).append(words)
        elif (row.provider, row.status) in said:
            again.setdefault(row.status, []).append(row.provider)
        else:
            said.add((row.provider, row.status))
            reason = row.error or f"error {row.max_abs_err:.2g}"
            without.append(f"    {row.provider} {row.status}: {reason[:200]}")
    lines = [f"    {name:23} {kernel:13} " + "  ".join(words) for name, (kernel, *words) in timed.items()]
    return "\n".join(lines + without + [f"    {status}: {', '.join(names)}" for status, names in again.items()])


def _say(text: str) -> None:
    print(text, flush=True)
