"""Milliseconds per call: providers taken in turn, inputs rotated, quantiles kept, noise said."""

import random
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

WARMUP = 3
LEAST_ROUNDS = 8
QUIET_CHECK_ROUNDS = 20  # if all are quiet by then
MAX_QUIET_SPREAD = 0.02  # of the median: a larger spread than this from p20 to p80 is marked as noise


@dataclass(frozen=True)
class Times:
    """Quantiles of ``n`` calls in milliseconds."""

    n: int
    p20: float
    p50: float
    p80: float
    p99: float

    @property
    def rel_iqr(self) -> float:
        """Divide p80 - p20 by the median: stricter than the interquartile range, which is p75 - p25."""
        return (self.p80 - self.p20) / self.p50

    @property
    def status(self) -> str:
        """Return the status of a row of a report that has these times."""
        return "ok" if self.rel_iqr <= MAX_QUIET_SPREAD else "noisy"

    def columns(self) -> dict[str, float]:
        """Return the times under the names they have in a row of a report."""
        times = {"p20_ms": self.p20, "p50_ms": self.p50, "p80_ms": self.p80, "p99_ms": self.p99}
        return {"n": self.n, **times, "rel_iqr": self.rel_iqr}


def quantiles(milliseconds: list[float]) -> Times:
    samples, at = (
        torch.tensor(values, dtype=torch.float64, device="cpu") for values in (milliseconds, [0.2, 0.5, 0.8, 0.99])
    )
    return Times(len(milliseconds), *samples.quantile(at).tolist())


def samples(
    calls: dict[Hashable, list[Callable]], rounds: int, once: Callable[[Callable], float],
    seconds: float = float("inf"), stop_when_quiet: bool = False, least: int = 0,
) -> dict[Hashable, list[float]]:  # fmt: skip
    """Return the milliseconds of each of ``calls`` by the clock ``once``, one call of each a round: all drift alike.

    Rounds differ in their order: what a call leaves in the caches falls on any other, not always on the next.
    A call is a list of functions without arguments, one per rotated input. All are warmed up before time counts. Rounds
    end early when they have taken ``seconds``, but not before `LEAST_ROUNDS`; with ``stop_when_quiet`` also when, after
    `QUIET_CHECK_ROUNDS` or any multiple of them, no call's spread is above `MAX_QUIET_SPREAD`. Neither ends them before ``least``.
    """
    for functions in calls.values():
        for i in range(max(WARMUP, len(functions))):
            functions[i % len(functions)]()
    taken = {name: [] for name in calls}
    order, shuffler = list(calls), random.Random(0)
    start = time.perf_counter()
    for i in range(rounds):
        if i >= max(least, LEAST_ROUNDS) and time.perf_counter() - start > seconds:
            break
        pause = stop_when_quiet and i >= max(least, 1) and i % QUIET_CHECK_ROUNDS == 0
        if pause and all(quantiles(each).rel_iqr <= MAX_QUIET_SPREAD for each in taken.values()):
            break
        shuffler.shuffle(order)
        for name in order:
            functions = calls[name]
            taken[name].append(once(functions[i % len(functions)]))
    return taken


def gpu_clock(function: Callable) -> float:
    """Time from an idle GPU, as the caller of one inference finds it, to the end of its work, with the host's part."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def cold_gpu_clock(l2_bytes: int) -> Callable[[Callable], float]:
    """Return a clock like `gpu_clock` that first writes memory twice the size of the L2."""
    flushed = torch.empty(2 * l2_bytes, dtype=torch.uint8, device="cuda")

    def clock(function: Callable) -> float:
        flushed.zero_()
        return gpu_clock(function)

    return clock


def host_clock(function: Callable) -> float:
    """Time until the call returns, with nothing else queued. On a GPU its work goes on after that."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def clock(device: str) -> Callable[[Callable], float]:
    """Return the clock of a whole call on a device that is idle before it."""
    return gpu_clock if device == "cuda" else host_clock


def capture_graph(function: Callable, pool=None) -> tuple[Callable, object]:
    """Return the replay of a CUDA graph of one call of ``function``, and the call's result, which replays write to.

    Graphs of one ``pool`` share memory: one's results last until another is replayed.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # A capture that fails would leave its own stream the current one.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, pool=pool):
        result = function()
    return graph.replay, result
