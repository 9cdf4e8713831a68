"""Times calls in milliseconds: in turn with others, on rotated inputs, as quantiles, with noisy times marked."""

import random
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

WARMUP = 3  # fewest untimed calls before the timed calls
LEAST_ROUNDS = 8  # rounds that are timed even if the time is over
QUIET_CHECK_ROUNDS = 20  # the spread of the times is checked after every so many rounds
MAX_QUIET_SPREAD = 0.02  # largest quiet (p80 - p20) / p50; times with a larger spread are marked as noisy


@dataclass(frozen=True)
class Times:
    """The quantiles of the times of ``n`` calls, in milliseconds."""

    n: int
    p20: float
    p50: float
    p80: float
    p99: float

    @property
    def rel_iqr(self) -> float:
        """Return (p80 - p20) / p50. The relative interquartile range, (p75 - p25) / p50, is narrower."""
        return (self.p80 - self.p20) / self.p50

    @property
    def status(self) -> str:
        """Return the status for a report's row: ``"noisy"`` if `rel_iqr` is above `MAX_QUIET_SPREAD`, else ``"ok"``."""
        return "ok" if self.rel_iqr <= MAX_QUIET_SPREAD else "noisy"

    def columns(self) -> dict[str, float]:
        """Return the number of times, their quantiles and their spread by the names of a report's columns."""
        times = {"p20_ms": self.p20, "p50_ms": self.p50, "p80_ms": self.p80, "p99_ms": self.p99}
        return {"n": self.n, **times, "rel_iqr": self.rel_iqr}


def quantiles(milliseconds: list[float]) -> Times:
    """Return the quantiles of the times of calls."""
    times, fractions = (
        torch.tensor(values, dtype=torch.float64, device="cpu") for values in (milliseconds, [0.2, 0.5, 0.8, 0.99])
    )
    return Times(len(milliseconds), *times.quantile(fractions).tolist())


def samples(
    calls: dict[Hashable, list[Callable]], rounds: int, time_once: Callable[[Callable], float],
    seconds: float = float("inf"), stop_when_quiet: bool = False, min_rounds: int = 0,
) -> dict[Hashable, list[float]]:  # fmt: skip
    """Return the times of each call in milliseconds, one time for each round.

    A round times each call once, so that slow drift affects all alike. The order changes from round to round, as a call
    leaves data in the caches for the next one. A call is a list of functions without arguments, one for each input.
    The rounds use these functions in turn. All functions are warmed up first.

    The clock ``time_once`` runs a function once and returns its milliseconds. There are at most ``rounds`` rounds.
    They end early after ``seconds``, though not before `LEAST_ROUNDS`. With ``stop_when_quiet`` they also end after any
    multiple of `QUIET_CHECK_ROUNDS` if no call's spread is above `MAX_QUIET_SPREAD`. Neither rule ends them
    before ``min_rounds`` rounds.
    """
    for functions in calls.values():
        for i in range(max(WARMUP, len(functions))):
            functions[i % len(functions)]()
    milliseconds = {name: [] for name in calls}
    order, shuffler = list(calls), random.Random(0)
    start = time.perf_counter()
    for i in range(rounds):
        if i >= max(min_rounds, LEAST_ROUNDS) and time.perf_counter() - start > seconds:
            break
        is_check_due = stop_when_quiet and i >= max(min_rounds, 1) and i % QUIET_CHECK_ROUNDS == 0
        if is_check_due and all(quantiles(times).rel_iqr <= MAX_QUIET_SPREAD for times in milliseconds.values()):
            break
        shuffler.shuffle(order)
        for name in order:
            functions = calls[name]
            milliseconds[name].append(time_once(functions[i % len(functions)]))
    return milliseconds


def gpu_clock(function: Callable) -> float:
    """Return the milliseconds of a call on an idle GPU, from the start on the host to the end on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def cold_gpu_clock(l2_bytes: int) -> Callable[[Callable], float]:
    """Return a clock like `gpu_clock` that first writes memory twice the size of the L2."""
    memory = torch.empty(2 * l2_bytes, dtype=torch.uint8, device="cuda")

    def clock(function: Callable) -> float:
        memory.zero_()
        return gpu_clock(function)

    return clock


def host_clock(function: Callable) -> float:
    """Return the milliseconds until a call returns. The GPU is idle before, and may still be working afterwards."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def clock(device: str) -> Callable[[Callable], float]:
    """Return the clock for calls on a device type: `gpu_clock` for ``"cuda"``, else `host_clock`."""
    return gpu_clock if device == "cuda" else host_clock


def capture_graph(function: Callable, pool=None) -> tuple[Callable, object]:
    """Record a call of ``function`` in a CUDA graph. Return the graph's replay, and the result that replays write to.

    Graphs with the same ``pool`` share memory, so the replay of one graph may overwrite the results of another.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # The outer context restores the current stream, as a capture that fails leaves its own stream current.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, pool=pool):
        result = function()
    return graph.replay, result
