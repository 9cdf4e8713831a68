"""One case: every provider against float64 first, then those that are right timed in turn."""

import copy
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from triton_gru import accuracy
from triton_gru.launch import hang
from triton_gru.tuning.timing import clock, cold_gpu_clock, graphed, host_clock, samples

from .case import Case, Input
from .floors import Floors
from .providers import OURS, YARDSTICK, make_ready
from .providers.interface import Ready, Unavailable
from .providers.ours import gave_up, is_lost
from .record import Row, timed

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
        seconds: for the rounds of a case; a few are made anyway, or as many as ``rounds``.
    """

    device: str
    modes: tuple[str, ...]
    l2: str
    seconds: float
    rounds: int = 0


@dataclass
class _Entry:
    """A provider in a mode: its row so far, and a call for each input, to be timed.

    ``kept`` is what owns memory that graphs use.
    """

    row: Row
    calls: list[Callable] = field(default_factory=list)
    kept: tuple = ()


def blank_row(case: Case, provider: str, mode: str, l2: str, floors: Floors) -> Row:
    name = f"{provider}+graph" if mode == "graph" else provider
    return dataclasses.replace(case.row(), provider=name, mode=mode, l2=l2, floor_ms=floors.of(case, mode, l2))


def measure(case: Case, providers: list[str], conditions: Conditions, floors: Floors) -> list[Row]:
    """A row for each provider and mode, that of `YARDSTICK` first whether or not it is among ``providers``.

    Raises:
        DeviceLost: a CUDA error that outlives the call.
    """
    names = [YARDSTICK, *(name for name in providers if name != YARDSTICK)]
    blank = {name: [blank_row(case, name, m, conditions.l2, floors) for m in conditions.modes] for name in names}
    with case.pinned():
        try:  # the module outside of inference_mode, as its users make it
            gru, inputs = case.module(conditions.device), case.inputs(conditions.device)
            with torch.inference_mode():
                gate = _Gate(case, gru, inputs)
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
        least = conditions.rounds
        taken = samples(
            calls, max(ROUNDS, least), _clock(conditions), conditions.seconds, stop_when_quiet=True, least=least
        )
    except Exception as failure:  # nobody knows whose
        failed = iter(_unable([entry.row for entry in right], failure))
        return [next(failed) if entry.row.status == "ok" else entry.row for entry in entries]
    error = gave_up()
    return [_timed(entry.row, taken, error) for entry in entries]


def _timed(row: Row, taken: dict[str, list[float]], error: str) -> Row:
    """With what was taken and its quantiles; ``error`` is that of ours, by which its times are worth nothing."""
    if row.status != "ok":
        return row
    if error and row.provider.startswith(OURS):
        return dataclasses.replace(row, status="failed", error=f"this or another: {error}")
    return timed(row, taken[row.provider])


def _clock(conditions: Conditions) -> Callable[[Callable], float]:
    if conditions.modes == ("host",):
        return host_clock
    if conditions.l2 == "cold":
        return cold_gpu_clock(torch.cuda.get_device_properties(0).L2_cache_size)
    return clock(conditions.device)


def _made_ready(name: str, gru: nn.GRU, inputs: list[Input], gate: "_Gate", rows: list[Row]) -> list[_Entry]:
    """The provider in the mode of each row, called and compared; the rows say what came of it."""
    before = _memory()
    try:
        ready = make_ready(name, gru, inputs[0], gate.streaming)
        inputs = [ready.lay_out(x) for x in inputs]
        ready.call(inputs[0])
        _memory()  # what making ready took at its peak does not count
        results = _tensors(ready.call(inputs[0]))
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
                results, calls = _graphs(ready, inputs, gate.streaming)
            else:
                calls = [functools.partial(ready.call, x) for x in inputs]
                if gate.streaming:
                    results = _of_frames(ready, calls)
            row.status, row.max_abs_err = gate.judge(name, ready, results)
            hang.raise_if_hung()
            entries.append(_Entry(row, calls, (ready, inputs)))
        except Exception as failure:
            entries += [_Entry(row) for row in _unable([row], failure)]
    return entries


def _tensors(returned) -> list[Tensor]:
    """Of a call, the output, of packed ones its data, and the last states; of a frame only its output."""
    parts = [returned] if isinstance(returned, (Tensor, PackedSequence)) else returned
    return [part.data if isinstance(part, PackedSequence) else part for part in parts]


def _of_frames(ready: Ready, calls: Iterable[Callable]) -> list[Tensor]:
    """The output [T, B, H] of calls that are a frame each, one after the other from a state of zeros."""
    ready.reset()
    frames = [_tensors(call())[0].clone() for call in calls]
    return [torch.stack([frame.view(frame.shape[-2:]) for frame in frames])]


def _graphs(ready: Ready, inputs: list[Input], streaming: bool) -> tuple[list[Tensor], list[Callable]]:
    """What the replay for the first input has written, or those for all frames of a stream; and a replay for each."""
    if ready.refuses_graph:
        raise Unavailable(ready.refuses_graph)
    pool = torch.cuda.graph_pool_handle()
    calls = [functools.partial(ready.captured or ready.call, x) for x in inputs]
    judged = len(calls) if streaming else 1
    graphs = [graphed(call, pool) for call in calls[:judged]]
    replayed = [functools.partial(_replayed, *graph) for graph in graphs]
    results = _of_frames(ready, replayed) if streaming else replayed[0]()
    replays = [replay for replay, _ in graphs]
    del graphs, replayed  # what is captured now shares their memory
    return results, replays + [graphed(call, pool)[0] for call in calls[judged:]]


def _replayed(replay: Callable, returned) -> list[Tensor]:
    """A copy of what the replay has written, NaN where it has not."""
    written = _tensors(returned)
    for each in written:
        each.fill_(float("nan"))
    replay()
    return [each.clone() for each in written]


def _unable(rows: list[Row], failure: Exception) -> list[Row]:
    """The rows, saying so. Raises DeviceLost if it has left the process without a working GPU."""
    if isinstance(failure, Unavailable):
        return [dataclasses.replace(row, status="unavailable", error=str(failure)) for row in rows]
    error = f"{type(failure).__name__}: {failure}"
    rows = [dataclasses.replace(row, status="failed", error=error) for row in rows]
    if is_lost():
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


class _Gate:
    """Judges results by float64; torch's own module in the case's precision says how close one can be.

    They are those for the first input; or the outputs of all inputs, if they are frames of a stream.
    """

    def __init__(self, case: Case, gru: nn.GRU, inputs: list[Input]):
        self.streaming, self._precision = case.streaming, case.precision
        self._x = torch.cat(inputs) if case.streaming else inputs[0]
        if case.packed:
            self._at_once = sys.maxsize
            self._expected = [_exact_packed(gru, self._x)]
        else:
            self._at_once = max(1, _NUMBERS_AT_ONCE // (case.directions * case.steps * case.hidden))
            self._expected = [accuracy.exact(gru, rows, None) for rows in self._x.split(self._at_once, dim=1)]
        error = self._error(_tensors(gru(self._x)))
        self._allowed = accuracy.bound(error, case.precision, summed=accuracy.summed(gru))

    def judge(self, name: str, ready: Ready, results: list[Tensor]) -> tuple[str, float | str]:
        """Whether "ok" or "wrong", and the largest error of the outputs and last states; NaN is wrong."""
        if not ready.judged:
            return "ok", ""
        if ready.expected is None:
            error, allowed = self._error(results), self._allowed
        else:
            expected = _tensors(ready.expected(self._x.double()))
            error = max(_furthest(a, b) for a, b in zip(results, expected))
            allowed = accuracy.bound(error, self._precision)  # torch's own: only NaN is wrong
        slack = 1 if name.startswith(OURS) else PEERS_SLACK
        return ("ok" if error <= slack * allowed else "wrong"), error

    def _error(self, results: list[Tensor]) -> float:
        """Of the outputs, and the last states where they are among the results."""
        parts = zip(zip(*(result.split(self._at_once, dim=1) for result in results)), self._expected)
        errors = [_furthest(a, b) for actual, expected in parts for a, b in zip(actual, expected)]
        return torch.tensor(errors, device="cpu").max().item()  # NaN if any is


def _exact_packed(gru: nn.GRU, x: PackedSequence) -> list[Tensor]:
    """``gru(x)`` in float64 by torch's own."""
    with torch.inference_mode(False):
        exact = copy.deepcopy(gru).double()
    return _tensors(exact(x.double()))


def _furthest(actual: Tensor, expected: Tensor) -> float:
    return (actual.double() - expected.to(actual.device)).abs().max().item()
