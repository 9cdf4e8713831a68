"""The sweeps: which question each answers, of which cases, by which providers, the most telling first.

Any beginning of a sweep's cases is a useful table, and all of one are measured within three minutes of a GPU.
"""

import dataclasses
import itertools
from dataclasses import dataclass

from triton_gru.plan.planner import KERNELS

from .case import Case
from .providers import OURS, STREAMING, YARDSTICK, cudnn, stages
from .providers.ours import GRIDS, LAUNCHES

EAGER_AND_GRAPH, HOST = ("eager", "graph"), ("host",)
_KERNELS = tuple(f"{OURS}.{kernel}" for kernel in KERNELS)
_CUDNN = tuple(cudnn.PROVIDERS)
_PEERS = (OURS, *_CUDNN, "torchrl")


@dataclass(frozen=True)
class Sweep:
    """A question, and what is measured to answer it.

    Attributes:
        question: in a line.
        seconds: how long it takes on an H100 with 16 cores, compiling included; guessed until it is measured there.
        providers: beside `YARDSTICK`, unless others are named.
        modes: see measure.Conditions; on a CPU there is no "graph".
        rounds: at least so many of each case, for its 99th percentiles or small differences to say something.
        l2: see measure.Conditions.
    """

    name: str
    question: str
    seconds: int
    providers: tuple[str, ...]
    cases: tuple[Case, ...]
    modes: tuple[str, ...] = EAGER_AND_GRAPH
    rounds: int = 0
    l2: str = "warm"


def on_cpu(sweep: Sweep) -> Sweep:
    """Return the sweep as a CPU can measure it: in fp32, without graphs, with warm caches."""
    cases = tuple(dict.fromkeys(dataclasses.replace(case, precision="fp32") for case in sweep.cases))
    modes = tuple(mode for mode in sweep.modes if mode != "graph") or ("eager",)
    return dataclasses.replace(sweep, cases=cases, modes=modes, l2="warm")


def rehearsal(sweep: Sweep) -> Sweep:
    """Return the sweep with a tiny case of a few steps; with two where some have one direction and some two."""
    first = {}
    for case in sweep.cases:
        first.setdefault(case.directions, case)
    cases = (dataclasses.replace(case, hidden=16, batch=2, steps=min(case.steps, 3)) for case in first.values())
    return on_cpu(dataclasses.replace(sweep, cases=tuple(cases), rounds=0))


def _cases(precisions: str, hidden: list[int], batch: list[int], steps: list[int], **what) -> tuple[Case, ...]:
    """Return all combinations. The precision changes last, so that each is a table of its own."""
    combinations = itertools.product(precisions.split(), steps, hidden, batch)
    return tuple(Case(precision, h, b, t, **what) for precision, t, h, b in combinations)


def _each(cases: tuple[Case, ...], **values) -> tuple[Case, ...]:
    """Return every case with each of the values of one field, next to one another."""
    ((name, values),) = values.items()
    return tuple(dataclasses.replace(case, **{name: value}) for case in cases for value in values)


_SINGLE_STEPS = _cases("fp16 tf32", [512, 1024, 256, 128, 2048], [1, 16, 64], [1])


SWEEPS = {sweep.name: sweep for sweep in (
    Sweep(
        "smoke", "Does every provider that can run here work, and the suite itself?", 100,
        (OURS, *_KERNELS, *_CUDNN, "handwritten", "torch.compile", "torchrl"),
        _cases("tf32 fp16", [64], [1, 4], [4, 1]),
    ),
    Sweep(
        "heart", "How fast is one layer where nn.GRU reads its weights at every step?", 120, _PEERS,
        _cases("fp16 tf32", [512, 1024, 256], [1, 16, 64], [512]) + _cases("fp16 tf32", [400], [1, 16], [512])
        + _cases("bf16", [512, 1024], [1, 16], [512]),
    ),
    Sweep(
        "heart-small", "And where cuDNN has a persistent kernel?", 100, _PEERS,
        _cases("fp16 tf32", [128, 64, 192], [1, 16, 64, 4], [512]),
    ),
    Sweep(
        "heart-large", "And where W_hh fills the whole chip?", 100, (OURS, *_CUDNN),
        _cases("fp16 tf32", [2048, 1536], [1, 4, 16, 64], [512]),
    ),
    Sweep(
        "short", "And of sequences of 64 steps?", 100, _PEERS,
        _cases("fp16 tf32", [512, 1024, 256, 128], [1, 16, 64], [64]),
    ),
    Sweep("t1", "How fast is a single step, its weights in the L2?", 90, (OURS, *_CUDNN), _SINGLE_STEPS),
    Sweep(
        "t1-cold", "And with weights that have to come from memory?", 120, (OURS, "cudnn.standard"), _SINGLE_STEPS,
        l2="cold",
    ),
    Sweep(
        "packed", "What do sequences of unequal lengths cost, packed?", 110, (OURS, *_KERNELS),
        _cases("fp16 tf32", [512, 256, 1024, 128, 64], [16, 64], [256], packed=True),
    ),
    Sweep(
        "bidirectional", "What does the second direction add?", 130, (OURS, *_CUDNN),
        _each(_cases("fp16 tf32", [512, 256, 1024, 128], [1, 16, 64], [256]), directions=(2, 1)),
    ),
    Sweep(
        "streaming", "How long does a frame take when they come one by one, and the slowest of a hundred?", 120,
        tuple(STREAMING), _cases("fp16 tf32", [256, 512, 128, 1024], [1, 16], [1], streaming=True)
        + _cases("fp16 tf32", [256, 512], [1], [1], layers=2, streaming=True), rounds=1000,
    ),
    Sweep(
        "overhead", "How long does a call keep the host?", 60,
        (OURS, LAUNCHES, *_KERNELS, "cudnn.standard", "handwritten", "torch.compile", "torchrl"),
        _cases("fp16 tf32", [128, 512], [1], [1, 16]), HOST,
    ),
    Sweep(
        "cells", "RNN, LSTM, GRU and ours: gates, parameters, FLOPs and weight bytes a step, and time?", 60,
        (OURS, "torch.nn.RNN", "torch.nn.LSTM", "handwritten"),
        _cases("fp16 tf32", [128, 256, 512, 1024], [1, 64], [128]),
    ),
    Sweep(
        "reset-before", "What does a reset before the recurrent product cost, beside nn.GRU's after it?", 120,
        (OURS, *_KERNELS, "handwritten"),
        _cases("fp16 tf32", [512, 256, 1024, 128, 96], [1, 16], [512], reset_after=False),
    ),
    Sweep(
        "layers", "What does each further layer cost?", 130, (OURS, *_CUDNN),
        _each(_cases("fp16 tf32", [512, 256, 1024], [1, 16, 64], [256]), layers=(2, 4)),
    ),
    Sweep(
        "long", "Do thousands of steps cost thousands of times one?", 150,
        (OURS, "cudnn.standard", "cudnn.persist_static"),
        _cases("fp16", [512, 128, 1024], [1, 16], [4096, 16384]),
    ),
    Sweep(
        "large", "What if the weights outgrow the chip?", 120, (OURS, "cudnn.standard", "cudnn.persist_dynamic"),
        _cases("fp16 tf32", [4096, 8192], [1, 4, 16], [1, 64]),
    ),
    Sweep(
        "throughput", "And with batches of hundreds, where the products count?", 120, (OURS, *_CUDNN),
        _cases("fp16 tf32", [512, 256, 1024, 128], [256, 1024], [128]),
    ),
    Sweep(
        "step-breakdown", "Where does a step of grid and block spend its time?", 120,
        ("triton_gru.grid", "triton_gru.block", *stages.PROVIDERS),
        _cases("fp16", [256, 512, 1024, 2048], [1, 64], [512]) + _cases("tf32", [512, 1024], [1, 64], [512])
        + _cases("fp16", [64, 128, 192], [1], [512]) + _cases("tf32", [128], [1], [512]), ("graph",), rounds=50,
    ),
    Sweep(
        "hand-overs", "Which hand-over and which cut of grid, with a whole GRU around it?", 160,
        (OURS, *(variant.name for variant in GRIDS)),
        _cases("fp16", [512, 1024, 256, 2048, 192], [1, 16, 64], [512]),
    ),
    Sweep(
        "tuned", "What does a tuned table bring?", 60, (OURS, *_CUDNN),
        _cases("fp16", [512, 1024, 256], [1, 16], [512]),
    ),
)}  # fmt: skip


def described() -> str:
    """Return a line for each sweep."""
    lines = [
        f"  {sweep.name:15}{sweep.question} {len(sweep.cases)} cases, {sweep.seconds} s on a GPU."
        for sweep in SWEEPS.values()
    ]
    return "\n".join([*lines, f"All measure {YARDSTICK} as well: it is what others are gated and compared by."])
