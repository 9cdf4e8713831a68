"""The sweeps: which question each answers, of which cases, by which providers, the most telling first."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from triton_gru.plan import KERNELS

from .case import Case
from .providers import OURS, STREAMING, YARDSTICK, cudnn
from .providers.ours import LAUNCHES

EAGER_AND_GRAPH, HOST = ("eager", "graph"), ("host",)
_KERNELS = tuple(f"{OURS}.{kernel}" for kernel in KERNELS)
_CUDNN = tuple(cudnn.PROVIDERS)


@dataclass(frozen=True)
class Slice:
    """Cases that are measured together."""

    title: str
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Sweep:
    """A question, and what is measured to answer it.

    Attributes:
        question: in a line.
        takes: how long, in words; guessed for a GPU until it was measured there.
        providers: beside `YARDSTICK`, unless others are named.
        modes: see measure.Conditions; on a CPU there is no "graph".
        rounds: at least so many of each case, for its 99th percentiles to say something.
    """

    name: str
    question: str
    takes: str
    providers: tuple[str, ...]
    slices: tuple[Slice, ...]
    modes: tuple[str, ...] = EAGER_AND_GRAPH
    rounds: int = 0

    @property
    def cases(self) -> list[Case]:
        return [case for each in self.slices for case in each.cases]


def on_cpu(sweep: Sweep) -> Sweep:
    """The sweep's shapes in fp32, the one precision that a CPU computes in, and without graphs."""

    def converted(cases: Iterable[Case]) -> tuple[Case, ...]:
        return tuple(dict.fromkeys(dataclasses.replace(case, precision="fp32") for case in cases))

    slices = tuple(Slice(each.title, converted(each.cases)) for each in sweep.slices)
    modes = tuple(mode for mode in sweep.modes if mode != "graph")
    return dataclasses.replace(sweep, slices=slices, modes=modes)


def only(sweep: Sweep, numbers: Iterable[int]) -> Sweep:
    """Those of its slices, counted from 1.

    Raises:
        ValueError: there is none of a number.
    """
    if wrong := [n for n in numbers if not 1 <= n <= len(sweep.slices)]:
        raise ValueError(f"{sweep.name} has slices 1 to {len(sweep.slices)}, no {wrong[0]}")
    return dataclasses.replace(sweep, slices=tuple(sweep.slices[n - 1] for n in numbers))


def rehearsal(sweep: Sweep) -> Sweep:
    """The sweep with every slice cut to a tiny case of a few steps, or two if some have one direction and some two."""
    slices = []
    for i, each in enumerate(sweep.slices):
        first = {}
        for case in each.cases:
            first.setdefault(case.directions, case)
        tiny = (dataclasses.replace(case, hidden=16 + i, batch=2, steps=min(case.steps, 3)) for case in first.values())
        slices.append(Slice(each.title, tuple(tiny)))
    return dataclasses.replace(sweep, slices=tuple(slices), rounds=0)


def _grid(precisions: str, hidden: list[int], batch: list[int], steps: list[int], layers=(1,)) -> list[Case]:
    """All combinations, those with many steps and small batches first."""
    combinations = itertools.product(sorted(steps, reverse=True), precisions.split(), hidden, batch, layers)
    return [Case(precision, h, b, t, n) for t, precision, h, b, n in combinations]


def _sliced(cases: list[Case], *wanted: tuple[str, Callable[[Case], bool]]) -> tuple[Slice, ...]:
    """Each case in the first slice whose condition it meets; the last takes what is left."""
    slices = []
    for title, condition in wanted:
        slices.append(Slice(title, tuple(case for case in cases if condition(case))))
        cases = [case for case in cases if not condition(case)]
    assert not cases, f"in no slice: {cases}"
    return tuple(slices)


def _small(case: Case, precisions: str) -> bool:
    return case.steps == 512 and case.batch <= 64 and case.precision in precisions.split()


_CORE = _sliced(
    _grid("fp16 tf32 bf16", [64, 128, 192, 256, 400, 512, 1024, 2048], [1, 4, 16, 64, 256, 1024], [1, 64, 512]),
    ("fp16, 192 < H <= 1024, B <= 64, T = 512", lambda c: _small(c, "fp16") and 192 < c.hidden <= 1024),
    ("tf32, 192 < H <= 1024, B <= 64, T = 512", lambda c: _small(c, "tf32") and 192 < c.hidden <= 1024),
    ("H = 2048, B <= 64, T = 512", lambda c: _small(c, "fp16 tf32") and c.hidden == 2048),
    ("H <= 192, B <= 64, T = 512", lambda c: _small(c, "fp16 tf32")),
    ("B <= 64, T = 64", lambda c: c.steps == 64 and c.batch <= 64 and c.precision != "bf16"),
    ("B <= 64, T = 1", lambda c: c.steps == 1 and c.batch <= 64 and c.precision != "bf16"),
    ("large batches, T >= 64", lambda c: c.batch > 64 and c.steps > 1 and c.precision != "bf16"),
    ("large batches, T = 1", lambda c: c.batch > 64 and c.precision != "bf16"),
    ("bf16, B <= 64, T >= 64", lambda c: c.batch <= 64 and c.steps > 1),
    ("bf16, the rest", lambda c: True),
)

_PACKED = [
    dataclasses.replace(case, packed=True) for case in _grid("fp16 tf32", [64, 128, 256, 512, 1024], [16, 64], [256])
]
# A case next to itself with one direction.
_DIRECTIONS = [
    dataclasses.replace(case, directions=directions)
    for case in _grid("fp16 tf32", [64, 128, 256, 512, 1024, 2048], [1, 16, 64], [256])
    for directions in (2, 1)
]
_FRAMES = [
    dataclasses.replace(case, streaming=True)
    for case in _grid("fp16 tf32", [64, 128, 256, 512, 1024], [1, 16], [1], (1, 2))
]


SWEEPS = {
    sweep.name: sweep
    for sweep in (
        Sweep(
            "smoke", "Does every provider that can run here work, and the suite itself?",
            "under a minute on a CPU",
            (OURS, *_KERNELS, *_CUDNN, "handwritten", "torch.compile", "torchrl"),
            (Slice("tiny", tuple(_grid("tf32 fp16", [64], [1, 4], [1, 4]))),),
        ),
        Sweep(
            "core", "How fast is one layer, from small and real-time to large and offline?",
            "about 35 minutes on a GPU, in slices of 1 to 8",
            (OURS, *_CUDNN, "torchrl"),
            _CORE,
        ),
        Sweep(
            "long", "Do thousands of steps cost thousands of times one?",
            "about 3 minutes on a GPU",
            (OURS, *_CUDNN),
            (Slice("T to 16384", tuple(_grid("fp16 tf32", [128, 512, 1024], [1, 16], [1024, 4096, 16384]))),),
        ),
        Sweep(
            "large", "What if the weights outgrow the chip?",
            "about 2 minutes on a GPU",
            (OURS, "cudnn.standard", "cudnn.persist_dynamic"),
            (Slice("H of 4096 and 8192", tuple(_grid("fp16 tf32 bf16", [4096, 8192], [1, 4, 16], [1, 64]))),),
        ),
        Sweep(
            "layers", "What does each further layer cost?",
            "about 4 minutes on a GPU",
            (OURS, *_CUDNN, "torchrl"),
            (Slice("2 to 4", tuple(_grid("fp16 tf32", [128, 256, 512, 1024], [1, 16, 64], [256], (2, 3, 4)))),),
        ),
        Sweep(
            "packed", "What do sequences of unequal lengths cost, packed?",
            "about 2 minutes on a GPU",
            (OURS, *_KERNELS, *_CUDNN, "torchrl"),
            (Slice("lengths of T / 4 to T = 256", tuple(_PACKED)),),
        ),
        Sweep(
            "bidirectional", "What does the second direction add?",
            "about 5 minutes on a GPU",
            (OURS, *_KERNELS, *_CUDNN),
            (Slice("T = 256", tuple(_DIRECTIONS)),),
        ),
        Sweep(
            "streaming", "How long does a frame take when they come one by one, and the slowest of a hundred?",
            "about 2 minutes on a GPU",
            tuple(STREAMING),
            _sliced(_FRAMES, ("one layer", lambda c: c.layers == 1), ("two layers", lambda c: True)),
            rounds=1000,
        ),
        Sweep(
            "overhead", "How long does a call keep the host?",
            "about a minute on a GPU",
            (OURS, LAUNCHES, *_KERNELS, "cudnn.standard", "handwritten", "torch.compile", "torchrl"),
            (Slice("T of 1 and 16", tuple(_grid("fp16 tf32", [128, 512], [1], [1, 16]))),),
            HOST,
        ),
        Sweep(
            "cells", "RNN, LSTM, GRU and ours: gates, parameters, FLOPs and weight bytes a step, and time?",
            "about a minute on a GPU, 3 on a CPU",
            (OURS, "torch.nn.RNN", "torch.nn.LSTM", "handwritten"),
            (Slice("T = 128", tuple(_grid("fp16 tf32", [128, 256, 512, 1024], [1, 64], [128]))),),
        ),
    )
}  # fmt: skip


def described() -> str:
    """A line for each sweep, and one for each slice of those that have several."""
    lines = []
    for sweep in SWEEPS.values():
        lines.append(f"  {sweep.name:14}{sweep.question} {len(sweep.cases)} cases, {sweep.takes}.")
        if len(sweep.slices) > 1:
            lines += [f"    --slice {i:<4}{s.title}, {len(s.cases)} cases" for i, s in enumerate(sweep.slices, 1)]
    lines.append(f"All measure {YARDSTICK} as well: it is what others are gated and compared by.")
    return "\n".join(lines)
