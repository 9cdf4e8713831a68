"""The sweeps: which question each answers, of which cases, by which providers, the most telling first.

Any beginning of a sweep's cases is a useful table, and all of one are measured within three minutes of a GPU.
"""

import dataclasses
import itertools
from dataclasses import dataclass

from triton_gru.plan.config import GRID_CUTS, HANDOVERS
from triton_gru.plan.planner import KERNELS

from .case import Case
from .providers import BASELINE, OURS, STREAMING_PROVIDERS, cudnn
from .providers.ours import LAUNCHES

EAGER_AND_GRAPH, HOST = ("eager", "graph"), ("host",)
_KERNELS = tuple(f"{OURS}.{kernel}" for kernel in KERNELS)
_CUDNN = tuple(cudnn.PROVIDERS)
_PEERS = (OURS, *_CUDNN, "torchrl")
# What others have made, or one may make oneself in torch. "cells" is a loop over time of a compiled step.
_OTHERS = (
    "torchrl", "gru_qat.scan", "gru_qat.persistent", "flashrnn", "flax.scan", "handwritten", "torch.compile",
    "torch.compile.cells",
)  # fmt: skip
EVERYONE = (OURS, *_CUDNN, *_OTHERS)
_CUTS = ["x".join(map(str, cut)) for cut in GRID_CUTS]
_STAGES = [
    f"perf.experiments.stages:{kernel}-without-{stage}"
    for kernel, stages in {
        "grid": "waiting hand-over products-but-the-first sums activations gate-inputs output",
        "block": "activations gate-inputs output",
    }.items()
    for stage in stages.split()
]
_PROJECTIONS = [f"perf.experiments.projections:{each}" for each in ("ours", "cublas", "ours-alone", "cublas-alone")]
_ANCHORS = ("torch.nn.LSTM", "flashrnn.lstm")  # cells with a third more work in a step


@dataclass(frozen=True)
class Sweep:
    """A question, and what is measured to answer it.

    Attributes:
        question: in a line.
        seconds: how long it takes on an H100 with 16 cores, compiling included; guessed until it is measured there.
        providers: beside `BASELINE`, unless others are named.
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


def fit_to_cpu(sweep: Sweep) -> Sweep:
    """Return the sweep as a CPU can measure it: in fp32, without graphs, with warm caches."""
    cases = tuple(dict.fromkeys(dataclasses.replace(case, precision="fp32") for case in sweep.cases))
    modes = tuple(mode for mode in sweep.modes if mode != "graph") or ("eager",)
    return dataclasses.replace(sweep, cases=cases, modes=modes, l2="warm")


def shrink_sweep(sweep: Sweep) -> Sweep:
    """Return the sweep with a tiny case of a few steps; with two where some have one direction and some two."""
    first = {}
    for case in sweep.cases:
        first.setdefault(case.directions, case)
    tiny = {"hidden": 16, "batch": 2, "input_size": None}
    cases = (dataclasses.replace(case, steps=min(case.steps, 3), **tiny) for case in first.values())
    return fit_to_cpu(dataclasses.replace(sweep, cases=tuple(cases), rounds=0))


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
        (*EVERYONE, *_KERNELS, *_ANCHORS), _cases("tf32 fp16", [64], [1, 4], [4, 1]),
    ),
    Sweep(
        "peers", "How fast is everyone who computes a GRU, side by side?", 170, EVERYONE,
        _cases("fp16 tf32", [128, 512], [1, 16], [64]) + _cases("bf16 fp32", [512], [16], [64]),
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
        "packed", "What do sequences of unequal lengths cost, packed?", 120, (OURS, *_KERNELS, "cudnn.standard"),
        _cases("fp16 tf32", [512, 256, 1024, 128, 64], [16, 64], [256], layout="packed"),
    ),
    Sweep(
        "lengths", "And padded, with lengths beside them?", 90, (OURS, *_KERNELS),
        _cases("fp16 tf32", [512, 256, 1024, 128], [16, 64], [256], layout="lengths"),
    ),
    Sweep(
        "bidirectional", "What does the second direction add?", 130, (OURS, *_CUDNN),
        _each(_cases("fp16 tf32", [512, 256, 1024, 128], [1, 16, 64], [256]), directions=(2, 1)),
    ),
    Sweep(
        "streaming", "How long does a frame take when they come one by one, and the slowest of a hundred?", 120,
        tuple(STREAMING_PROVIDERS), _cases("fp16 tf32", [256, 512, 128, 1024], [1, 16], [1], is_streaming=True)
        + _cases("fp16 tf32", [256, 512], [1], [1], layers=2, is_streaming=True), rounds=1000,
    ),
    Sweep(
        "overhead", "How long does a call keep the host?", 60,
        (OURS, LAUNCHES, *_KERNELS, "cudnn.standard", "handwritten", "torch.compile", "torch.compile.cells", "torchrl"),
        _cases("fp16 tf32", [128, 512], [1], [1, 16]), HOST,
    ),
    Sweep(
        "cells", "RNN, LSTM, GRU and ours: gates, parameters, FLOPs and weight bytes a step, and time?", 60,
        (OURS, "torch.nn.RNN", "torch.nn.LSTM", "handwritten"),
        _cases("fp16 tf32", [128, 256, 512, 1024], [1, 64], [128]),
    ),
    Sweep(
        "reset-before", "What does a reset before the recurrent product cost, beside nn.GRU's after it?", 150,
        (OURS, *_KERNELS, "handwritten"),
        _cases("fp16", [512, 1024, 256, 128, 2048, 192, 64, 96], [1, 16, 64], [512], reset_after=False)
        + _cases("tf32", [512, 256, 1024, 128], [1, 16], [512], reset_after=False),
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
        ("triton_gru.grid", "triton_gru.block", *_STAGES),
        _cases("fp16", [256, 512, 1024, 2048], [1, 64], [512]) + _cases("tf32", [512, 1024], [1, 64], [512])
        + _cases("fp16", [64, 128, 192], [1], [512]) + _cases("tf32", [128], [1], [512]), ("graph",), rounds=50,
    ),
    Sweep(
        "hand-overs", "Which hand-over and which cut of grid, with a whole GRU around it?", 160,
        (OURS, *(f"perf.experiments.hand_overs:{each}" for each in (*HANDOVERS, *_CUTS))),
        _cases("fp16", [512, 1024, 256, 2048, 192], [1, 16, 64], [512]),
    ),
    Sweep(
        "projection", "Our kernel or cuBLAS for the inputs' products, in a call and alone, where I is not H?", 150,
        (OURS, "cudnn.standard", *_PROJECTIONS),
        _each(_cases("fp16 tf32 fp32", [512], [16], [512, 16, 1]), input_size=(4096, 512, 80)),
    ),
    Sweep(
        # FlashRNN2 reports 1.4 to 1.6 times cuDNN with flat weights for a classifier of four such layers on an H100.
        "anchor-flashrnn2", "How fast are four small layers, where FlashRNN2 has published figures?", 100,
        (OURS, *_CUDNN), _each(_cases("fp16", [64], [1, 4, 16, 32, 64], [32], layers=4), layout=("dense", "packed")),
    ),
    Sweep(
        # For cuDNN's persistent LSTM 1.96 us a step were published.
        "anchor-768", "How fast is H = 768, where a persistent LSTM has published figures?", 60,
        (OURS, *_KERNELS, *_CUDNN, "flashrnn", *_ANCHORS), _cases("fp16 bf16", [768], [16], [1024]),
    ),
    Sweep(
        "anchor-24", "How fast are 24 hidden units in batches of 400, fp32 without TF32, as a user has them?", 60,
        (*EVERYONE, *_KERNELS), _cases("fp32", [24], [400], [100]),
    ),
    Sweep(
        # rnn_problems.h of DeepBench: its GRUs for training and for servers.
        "deepbench", "How fast are DeepBench's GRUs?", 170, (OURS, *_CUDNN),
        _cases("fp16", [1024], [32, 64], [1500]) + _cases("fp16", [2816, 2048, 1536, 2560], [32, 1], [187])
        + _cases("fp16", [512], [32, 1], [1]) + _cases("fp16", [2816, 2048, 1536], [32], [1500]),
    ),
    Sweep(
        "tuned", "What does a tuned table bring?", 60, (OURS, *_CUDNN),
        _cases("fp16", [512, 1024, 256], [1, 16], [512]),
    ),
)}  # fmt: skip


def describe_sweeps() -> str:
    """Return a line for each sweep."""
    lines = [
        f"  {sweep.name:18}{sweep.question} {len(sweep.cases)} cases, {sweep.seconds} s on a GPU."
        for sweep in SWEEPS.values()
    ]
    return "\n".join([*lines, f"All measure {BASELINE} as well: it is what others are gated and compared by."])
