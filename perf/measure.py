"""One case: every provider against float64 first, then those that are right timed in turn."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from triton_gru import accuracy, watchdog

from .case import Case
from .floors import Floors
from .providers import OURS, PROVIDERS, YARDSTICK
from .providers.interface import Call, Ready, Unavailable
from .providers.ours import gave_up
from .record import Row
from .timing import clock, cold_gpu_clock, graphed, host_clock, quantiles, samples

# A peer may be this many times as far from float64 as the library's tests allow its kernels to be: the gate is for
# wrong answers, not for another rounding. How far it was stands in its row.
PEERS_SLACK = 4
ROUNDS = 200
_NUMBERS_AT_ONCE = 1 << 27  # numbers of an input whose outputs are computed in float64 at once


class DeviceLost(Exception):
    """A provider has left the process without a working GPU; ``rows`` say so."""

    def __init__(self, rows: list[Row]):
        super().__init__(rows[-1].error)
        self.rows = rows


@dataclass(frozen=True)
class Conditions:
    """Under which a case is measured.

    Attributes:
        modes: "eager" and "graph" (a CUDA graph of the call, replayed), or "host": only the host's part of a call.
        l2: "warm", what calls of all providers in turn leave there; or "cold", written over before each call.
        seconds: for the rounds of a case; a few are made anyway.
    """

    device: str
    modes: tuple[str, ...]
    l2: str
    seconds: float


@dataclass
class _Entry:
    """A provider in a mode: its row so far, and a call for each input, to be timed.

    ``ready`` is kept for graphs, which use memory that it owns.
    """

    row: Row
    calls: list[Callable] = field(default_factory=list)
    ready: Ready | None = None


def blank_row(case: Case, provider: str, mode: str, conditions: Conditions, floors: Floors) -> Row:
    name = f"{provider}+graph" if mode == "graph" else provider
    floor = floors.of(case, mode, conditions.l2)
    return dataclasses.replace(case.row(), provider=name, mode=mode, l2=conditions.l2, floor_ms=floor)


def measure(case: Case, providers: list[str], conditions: Conditions, floors: Floors) -> list[Row]:
    """A row for each provider and mode, that of `YARDSTICK` first whether or not it is among ``providers``.

    Raises:
        DeviceLost: a CUDA error that outlives the call.
    """
    names = [YARDSTICK, *(name for name in providers if name != YARDSTICK)]
    blank = {name: [blank_row(case, name, m, conditions, floors) for m in conditions.modes] for name in names}
    with case.pinned():
        try:  # the module outside of inference_mode, as its users make it
            gru, inputs = case.module(conditions.device), case.inputs(conditions.device)
            with torch.inference_mode():
                gate = _Gate(case, gru, inputs[0])
        except Exception as failure:  # not enough memory for the case, say
            return _unable([row for rows in blank.values() for row in rows], failure)
        with torch.inference_mode():
            entries = [each for name in names for each in _made_ready(name, gru, inputs, gate, blank[name])]
            del gate
            return _timed_in_turn(entries, conditions)


def _timed_in_turn(entries: list[_Entry], conditions: Conditions) -> list[Row]:
    right = [entry for entry in entries if entry.row.status == "ok"]
    calls = {entry.row.provider: entry.calls for entry in right}
    try:
        taken = samples(calls, ROUNDS, _clock(conditions), conditions.seconds, stop_when_quiet=True)
    except Exception as failure:  # nobody knows whose
        failed = iter(_unable([entry.row for entry in right], failure))
        return [next(failed) if entry.row.status == "ok" else entry.row for entry in entries]
    error = gave_up()
    return [_timed(entry.row, taken, error) for entry in entries]


def _timed(row: Row, taken: dict[str, list[float]], error: str) -> Row:
    """With the quantiles of what was taken; ``error`` is that of ours, by which its times are worth nothing."""
    if row.status != "ok":
        return row
    if error and row.provider.startswith(OURS):
        return dataclasses.replace(row, status="failed", error=f"this or another: {error}")
    times = quantiles(taken[row.provider])
    return dataclasses.replace(row, status=times.status, **times.columns())


def _clock(conditions: Conditions) -> Callable[[Callable], float]:
    if conditions.modes == ("host",):
        return host_clock
    if conditions.l2 == "cold":
        return cold_gpu_clock(torch.cuda.get_device_properties(0).L2_cache_size)
    return clock(conditions.device)


def _made_ready(name: str, gru: nn.GRU, inputs: list[Tensor], gate: "_Gate", rows: list[Row]) -> list[_Entry]:
    """The provider in the mode of each row, called and compared; the rows say what came of it."""
    before = _memory()
    try:
        ready = PROVIDERS[name](gru, inputs[0])
        if ready.batch_first:
            inputs = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs]
        ready.call(inputs[0])
        _memory()  # what making ready took at its peak does not count
        results = ready.call(inputs[0])
        about = {
            "kernel": ready.kernel,
            "config": ready.config,
            "config_source": ready.config_source,
            "peak_mem_mb": _peak_since(before),
        }
    except Exception as failure:
        return [_Entry(row) for row in _unable(rows, failure)]
    entries = []
    for row in (dataclasses.replace(row, **about) for row in rows):
        try:
            if row.mode == "graph":
                results, calls = _graphs(ready.call, inputs)
            else:
                calls = [functools.partial(ready.call, x) for x in inputs]
            row.status, row.max_abs_err = gate.judge(name, ready, results)
            watchdog.check()
            entries.append(_Entry(row, calls, ready))
        except Exception as failure:
            entries += [_Entry(row) for row in _unable([row], failure)]
    return entries


def _graphs(call: Call, inputs: list[Tensor]) -> tuple[tuple[Tensor, Tensor], list[Callable]]:
    """What the replay for the first input has written, and a replay for each."""
    pool = torch.cuda.graph_pool_handle()
    replay, written = graphed(functools.partial(call, inputs[0]), pool)
    for each in written:
        each.fill_(float("nan"))
    replay()
    results = tuple(each.clone() for each in written)  # the next graph shares its memory
    del written
    return results, [replay] + [graphed(functools.partial(call, x), pool)[0] for x in inputs[1:]]


def _unable(rows: list[Row], failure: Exception) -> list[Row]:
    """The rows, saying so. Raises DeviceLost if it has left the process without a working GPU."""
    if isinstance(failure, Unavailable):
        return [dataclasses.replace(row, status="unavailable", error=str(failure)) for row in rows]
    error = f"{type(failure).__name__}: {failure}"
    rows = [dataclasses.replace(row, status="failed", error=error) for row in rows]
    if _lost():
        raise DeviceLost(rows) from failure
    return rows


def _memory() -> int:
    """Bytes of GPU memory in use now, where a new count of the peak begins; 0 on a CPU."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # what failed or other cases have left
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak_since(before: int) -> float | str:
    """Megabytes of GPU memory at the peak above ``before``; empty on a CPU."""
    if not torch.cuda.is_available():
        return ""
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def _lost() -> bool:
    """Whether the GPU answers no more, as after an access to memory that is not there."""
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


class _Gate:
    """Judges results for ``x`` by float64; torch's own module in the case's precision says how close one can be."""

    def __init__(self, case: Case, gru: nn.GRU, x: Tensor):
        self._precision = case.precision
        self._x = x
        at_once = max(1, _NUMBERS_AT_ONCE // (case.steps * case.hidden))
        self._expected = [accuracy.exact(gru, rows, None) for rows in x.split(at_once, dim=1)]
        self._at_once = at_once
        self._allowed = accuracy.bound(self._error(gru(x)), case.precision)

    def judge(self, name: str, ready: Ready, results: tuple[Tensor, Tensor]) -> tuple[str, float]:
        """Whether "ok" or "wrong", and the largest error of the outputs and last states; NaN is wrong."""
        if ready.expected is None:
            error, allowed = self._error(results), self._allowed
        else:
            expected = ready.expected(self._x.double())
            error = max(_furthest(a, b) for a, b in zip(results, expected))
            allowed = accuracy.bound(error, self._precision)  # torch's own: only NaN is wrong
        slack = 1 if name.startswith(OURS) else PEERS_SLACK
        return ("ok" if error <= slack * allowed else "wrong"), error

    def _error(self, results: tuple[Tensor, Tensor]) -> float:
        parts = zip(zip(*(result.split(self._at_once, dim=1) for result in results)), self._expected)
        errors = [_furthest(a, b) for actual, expected in parts for a, b in zip(actual, expected)]
        return torch.tensor(errors).max().item()  # NaN if any is


def _furthest(actual: Tensor, expected: Tensor) -> float:
    return (actual.double() - expected.to(actual.device)).abs().max().item()
