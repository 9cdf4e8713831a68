"""Milliseconds per call: providers taken in turn, inputs rotated, quantiles kept."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

WARMUP = 3
LEAST_ROUNDS = 8


@dataclass(frozen=True)
class Times:
    """Quantiles of ``n`` calls in milliseconds."""

    n: int
    p20: float
    p50: float
    p80: float

    @property
    def rel_iqr(self) -> float:
        return (self.p80 - self.p20) / self.p50

    def columns(self) -> dict[str, float]:
        """Under the names they have in a row of a report."""
        return {"n": self.n, "p20_ms": self.p20, "p50_ms": self.p50, "p80_ms": self.p80, "rel_iqr": self.rel_iqr}


def quantiles(milliseconds: list[float]) -> Times:
    samples, at = (torch.tensor(values, dtype=torch.float64) for values in (milliseconds, [0.2, 0.5, 0.8]))
    return Times(len(milliseconds), *samples.quantile(at).tolist())


def interleaved(
    calls: dict[str, list[Callable]], rounds: int, device: str, seconds: float = float("inf")
) -> dict[str, Times]:
    """Quantiles of `samples`, which takes the same arguments."""
    return {name: quantiles(each) for name, each in samples(calls, rounds, device, seconds).items()}


def samples(
    calls: dict[Hashable, list[Callable]], rounds: int, device: str, seconds: float = float("inf")
) -> dict[Hashable, list[float]]:
    """Milliseconds of each of ``calls``, one call of each a round, so that a drifting clock falls on all alike.

    A call is a list of functions without arguments, one per rotated input; all are warmed up first. Rounds end
    early when they have taken ``seconds``, but not before `LEAST_ROUNDS`.
    """
    for functions in calls.values():
        for _ in range(WARMUP):
            for function in functions:
                function()
    taken = {name: [] for name in calls}
    once = _time_on_gpu if device == "cuda" else _time_on_cpu
    start = time.perf_counter()
    for i in range(rounds):
        if i >= LEAST_ROUNDS and time.perf_counter() - start > seconds:
            break
        for name, functions in calls.items():
            taken[name].append(once(functions[i % len(functions)]))
    if device == "cuda":
        torch.cuda.synchronize()
        taken = {name: [start.elapsed_time(end) for start, end in pairs] for name, pairs in taken.items()}
    return taken


def _time_on_gpu(function: Callable) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()  # an idle GPU, as the caller of one inference finds it
    start.record()
    function()
    end.record()
    return start, end


def _time_on_cpu(function: Callable) -> float:
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def graphed(function: Callable) -> Callable:
    """``function`` as the replay of a CUDA graph of one call of it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay
