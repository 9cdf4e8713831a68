"""Measurement of one case: every provider is compared with float64, then the correct ones are timed in turn."""

import copy
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import triton_gru
from triton_gru.accuracy import Judge
from triton_gru.launch import hang
from triton_gru.tuning.timing import capture_graph, clock, cold_gpu_clock, host_clock, samples

from .case import Case, Input, Ragged
from .floors import Floors
from .gpu import is_gpu_lost, wait_for_gpu
from .providers import is_ours, make_ready
from .providers.interface import Ready, Unavailable
from .providers.ours import get_hang_error
from .record import Row, add_times

# The tolerance of a peer is this many times the tolerance of our kernels, because the comparison shall find wrong
# results, not another rounding. The row shows the largest error.
PEERS_SLACK = 4
MAX_ROUNDS = 200


class DeviceLost(Exception):
    """An error: this process has lost the GPU. ``rows`` are results that the case has anyway, failures included."""

    def __init__(self, rows: list[Row]):
        super().__init__("this process has lost the GPU")
        self.rows = rows


@dataclass(frozen=True)
class Conditions:
    """The conditions of a measurement.

    Attributes:
        device: "cuda" or "cpu".
        modes: "eager" and "graph" (a CUDA graph of the call, replayed), or "host": only the host's part of a call.
        l2: "warm" if the L2 has what the previous providers' calls left. "cold" if it is overwritten before each call.
        seconds: time for the rounds of a case. No round begins later. Exception: a few rounds always run.
        rounds: the least number of rounds, even if they take longer than ``seconds``.
    """

    device: str
    modes: tuple[str, ...]
    l2: str
    seconds: float
    rounds: int = 0


def measure(case: Case, pairs: Iterable[tuple[str, str]], conditions: Conditions, floors: Floors) -> list[Row]:
    """Return a row for each pair of a provider and a mode, timed if its results are right.

    Other rows have the status and the reason. Results that mean nothing by design are not compared.

    Raises:
        DeviceLost: a provider left the process without a working GPU. At least one row of the exception has failed.
    """
    rows = [case.make_row(*pair, conditions.l2) for pair in pairs]
    for row in rows:
        row.floor_ms = floors.compute_floor_ms(case, row.mode, row.l2)
    try:
        with case.pin_precision():
            _measure_rows(case, rows, conditions)
    except DeviceLost as lost:
        # Rows with the status "ok" lack their times. All others are results, also those of earlier providers.
        raise DeviceLost([row for row in rows if row.status != "ok"]) from lost
    return rows


def _measure_rows(case: Case, rows: list[Row], conditions: Conditions) -> None:
    """Measure the rows of a case. Put the outcomes and times into the list. Raise DeviceLost as `_fail` does."""
    try:  # make the module outside of inference_mode, as users do
        gru, inputs = case.make_gru(conditions.device), case.draw_inputs(conditions.device)
        with torch.inference_mode():
            gate = _Gate(case, gru, inputs)
    except Exception as failure:  # for example too little memory for the case
        return _fail(rows, failure)
    with torch.inference_mode():
        calls, memory_owners = {}, []
        for name in dict.fromkeys(row.provider_name for row in rows):
            rows_of_provider = [row for row in rows if row.provider_name == name]
            memory_owners.append(_prepare_calls(name, gru, inputs, gate, rows_of_provider, calls))
        del gate
        _time(rows, calls, conditions)


def _time(rows: list[Row], calls: dict[str, list[Callable]], conditions: Conditions) -> None:
    """Time the calls of the rows with status "ok" in turn, and put the times into the list of rows.

    If a call fails, all of these rows fail. If a launch of ours gave up waiting, all rows of ours among them fail.
    ``calls`` has for each of these rows, by its ``provider``, a list of functions, one for each input.
    """
    timed_calls = {row.provider: calls[row.provider] for row in rows if row.status == "ok"}
    if not timed_calls:
        return
    min_rounds, time_once = conditions.rounds, clock(conditions.device)
    try:
        if conditions.modes == ("host",):
            time_once = host_clock
        elif conditions.l2 == "cold":
            time_once = cold_gpu_clock(torch.cuda.get_device_properties(0).L2_cache_size)
        times = samples(
            timed_calls, max(MAX_ROUNDS, min_rounds), time_once, conditions.seconds, stop_when_quiet=True,
            min_rounds=min_rounds,
        )  # fmt: skip
        wait_for_gpu()
    except Exception as failure:  # all rows fail, because the provider whose call failed is unknown
        return _fail([row for row in rows if row.provider in timed_calls], failure)
    error = get_hang_error()
    for i, row in enumerate(rows):
        if row.provider not in timed_calls:
            continue
        if error and is_ours(row.provider):  # times of a launch that gave up are invalid
            row.status, row.error = "failed", f"this provider or another of ours: {error}"
        else:
            rows[i] = add_times(row, times[row.provider])


def _prepare_calls(
    name: str, gru: nn.GRU, inputs: list[Input], gate: "_Gate", rows: list[Row], calls: dict[str, list[Callable]]
) -> object:
    """Prepare a provider, and call and judge it in the mode of each of its ``rows``. Put the outcome into the rows.

    If the provider runs in a mode, its calls for all inputs are added to ``calls`` by the row's ``provider``. The
    caller must keep the returned object as long as the calls, because it owns memory that CUDA graphs use. It is None
    if the provider cannot be prepared or called.
    """
    try:
        bytes_before = _reset_peak_memory()
        ready = make_ready(name, gru, inputs[0], gate.is_streaming)
        inputs = [ready.lay_out(x) for x in inputs]
        ready.call(inputs[0])
        _reset_peak_memory()  # the row shows the peak of a call, with what the preparation keeps
        results, peak = _tensors(ready.call(inputs[0])), ""
        wait_for_gpu()
        hang.raise_if_hung()
        if torch.cuda.is_available():
            peak = (torch.cuda.max_memory_allocated() - bytes_before) / 1e6  # megabytes
    except Exception as failure:
        return _fail(rows, failure)
    for row in rows:
        row.kernel, row.config, row.config_source = ready.kernel, ready.config, ready.config_source
        row.peak_mem_mb = peak
        try:
            if row.mode == "graph":
                results, calls[row.provider] = _capture_graphs(ready, inputs, gate.is_streaming)
            else:
                calls[row.provider] = [functools.partial(ready.call, x) for x in inputs]
                if gate.is_streaming:
                    results = _run_frames(ready, calls[row.provider])
            row.status, row.max_abs_err = gate.judge(name, ready, results)
            wait_for_gpu()  # an error of this row's work must not be raised in a call of another row
            hang.raise_if_hung()
        except Exception as failure:
            _fail([row], failure)
    return ready, inputs


def _tensors(returned) -> list[Tensor]:
    """Return the list of tensors in the result of a `Call` or a `Frame`.

    These are the output and the last states. A frame has only the output. Of a PackedSequence, the data is taken.
    """
    parts = [returned] if isinstance(returned, (Tensor, PackedSequence)) else returned
    return [part.data for part in parts]


def _run_frames(ready: Ready, calls: Iterable[Callable]) -> list[Tensor]:
    """Reset the stream, make the calls, each of one frame, and return the outputs as a list of one tensor [T, B, H]."""
    ready.reset()
    frames = [_tensors(call())[0].clone() for call in calls]
    return [torch.stack([frame.view(frame.shape[-2:]) for frame in frames])]


def _capture_graphs(ready: Ready, inputs: list[Input], is_streaming: bool) -> tuple[list[Tensor], list[Callable]]:
    """Return results to judge, and a list with the replay of a CUDA graph for each input.

    The results are those of the first input's replay. Exception: those of a stream are the outputs of all frames.

    Raises:
        Unavailable: the provider's calls cannot be captured.
    """
    if ready.no_graph_reason:
        raise Unavailable(ready.no_graph_reason)
    pool = torch.cuda.graph_pool_handle()
    calls = [functools.partial(ready.captured or ready.call, x) for x in inputs]
    judged_count = len(calls) if is_streaming else 1
    graphs = [capture_graph(call, pool) for call in calls[:judged_count]]
    checked_replays = [functools.partial(_replay_and_copy, *graph) for graph in graphs]
    results = _run_frames(ready, checked_replays) if is_streaming else checked_replays[0]()
    replays = [replay for replay, _ in graphs]
    # Free the results of these graphs. The graphs captured below then use the same memory.
    del graphs, checked_replays
    return results, replays + [capture_graph(call, pool)[0] for call in calls[judged_count:]]


def _replay_and_copy(replay: Callable, returned) -> list[Tensor]:
    """Replay a graph, and return copies of its results. Elements that the replay does not write are NaN.

    ``returned`` is what the captured call returned: its tensors are the memory that the replay writes to.
    """
    results = _tensors(returned)
    for tensor in results:
        tensor.fill_(float("nan"))
    replay()
    return [tensor.clone() for tensor in results]


def _fail(rows: list[Row], failure: Exception) -> None:
    """Put the reason of a failure into the rows. Raise DeviceLost if this process has lost the GPU."""
    is_lost = is_gpu_lost()
    is_unavailable = isinstance(failure, Unavailable) and not is_lost
    for row in rows:
        row.status = "unavailable" if is_unavailable else "failed"
        row.error = str(failure) if is_unavailable else f"{type(failure).__name__}: {failure}"
    if is_lost:
        raise DeviceLost(rows) from failure


def _reset_peak_memory() -> int:
    """Reset the peak of GPU memory, and return the bytes in use. Return 0 on a CPU."""
    if not torch.cuda.is_available():
        return 0
    wait_for_gpu()
    torch.cuda.empty_cache()  # free memory that failed providers or earlier cases have left
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


class _Gate:
    """A judge of the results of every provider of a case, by float64.

    It judges results for the first input. Exception: for a stream, it judges the outputs for all inputs.
    """

    def __init__(self, case: Case, gru: nn.GRU, inputs: list[Input]):
        self.is_streaming, self._precision = case.is_streaming, case.precision
        self._x = x = torch.cat(inputs) if case.is_streaming else inputs[0]
        if isinstance(x, Ragged):
            ours = triton_gru.accelerate(copy.copy(gru))  # `nn.GRU` takes no lengths
            self._judge = Judge.for_call(ours, x.padded, None, case.precision, lengths=x.lengths)
        else:
            self._judge = Judge.for_call(gru, x, None, case.precision)

    def judge(self, name: str, ready: Ready, results: list[Tensor]) -> tuple[str, float | str]:
        """Return the status "ok" or "wrong", and the largest error, or "" if the provider is not judged.

        ``results`` are tensors as `_tensors` returns them.
        """
        if not ready.is_judged:
            return "ok", ""
        judge = self._judge
        if ready.expected is not None:
            # The provider computes something else than the GRU, and nothing else computes it. So its results are their
            # own baseline, and only NaN or another shape is wrong.
            judge = Judge(_tensors(ready.expected(self._x.double())), results, self._precision)
        error, is_right = judge(results, slack=1 if is_ours(name) else PEERS_SLACK)
        return ("ok" if is_right else "wrong"), error
