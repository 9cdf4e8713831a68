"""The sweeps: each has a question, cases and providers. The most informative cases come first.

The first cases of a sweep already make a useful table. A GPU should measure all cases of a sweep within three minutes.
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
# Implementations of others, or that users write in torch. "cells" is a loop over time around a compiled step.
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
_PROJECTIONS = [f"perf.experiments.projections:{name}" for name in ("ours", "cublas", "ours-alone", "cublas-alone")]
_ANCHORS = ("torch.nn.LSTM", "flashrnn.lstm")  # cells with a third more work in a step


@dataclass(frozen=True)
class Sweep:
    """A question, with the cases and providers that answer it.

    Attributes:
        question: the question, as text of one line.
        seconds: guessed duration on an H100 with 16 CPU cores, with compilation. 0 for shapes of a user.
        providers: names of providers to time with `BASELINE`. The option ``--provider`` replaces them.
        modes: see `measure.Conditions`. A CPU has no mode "graph".
        rounds: the least number of rounds of a case. Reliable 99th percentiles and small differences need many.
        l2: see `measure.Conditions`.
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
    """Return the sweep with what a CPU can run: cases in fp32, no mode "graph", and warm caches."""
    cases = tuple(dict.fromkeys(dataclasses.replace(case, precision="fp32") for case in sweep.cases))
    modes = tuple(mode for mode in sweep.modes if mode != "graph") or ("eager",)
    return dataclasses.replace(sweep, cases=cases, modes=modes, l2="warm")


def shrink_sweep(sweep: Sweep) -> Sweep:
    """Return the sweep for a rehearsal on a CPU: one tiny case of a few steps for each number of directions."""
    first_cases = {}
    for case in sweep.cases:
        first_cases.setdefault(case.directions, case)
    tiny = {"hidden": 16, "batch": 2, "input_size": None}
    cases = (dataclasses.replace(case, steps=min(case.steps, 3), **tiny) for case in first_cases.values())
    return fit_to_cpu(dataclasses.replace(sweep, cases=tuple(cases), rounds=0))


def _combine(precisions: str, hidden: list[int], batch: list[int], steps: list[int], **fields) -> tuple[Case, ...]:
    """Return the cases of all combinations, with the further ``fields`` of `Case`.

    ``precisions`` has the names of precisions, separated by spaces. All cases of a precision come before those of the
    next precision. The batch changes from case to case.
    """
    combinations = itertools.product(precisions.split(), steps, hidden, batch)
    return tuple(Case(precision, h, b, t, **fields) for precision, t, h, b in combinations)


def _vary(cases: tuple[Case, ...], **field_values) -> tuple[Case, ...]:
    """Return each case several times, once for each value of one field, given as ``field=(value, ...)``.

    The variants of a case are next to each other.
    """
    ((name, values),) = field_values.items()
    return tuple(dataclasses.replace(case, **{name: value}) for case in cases for value in values)


_SINGLE_STEPS = _combine("fp16 tf32", [512, 1024, 256, 128, 2048], [1, 16, 64], [1])


SWEEPS = {sweep.name: sweep for sweep in (
    Sweep(
        "smoke", "Do the suite and every provider that can run here work?", 100,
        (*EVERYONE, *_KERNELS, *_ANCHORS), _combine("tf32 fp16", [64], [1, 4], [4, 1]),
    ),
    Sweep(
        "peers", "How fast are all implementations, compared with each other?", 170, EVERYONE,
        _combine("fp16 tf32", [128, 512], [1, 16], [64]) + _combine("bf16 fp32", [512], [16], [64]),
    ),
    Sweep(
        "heart", "How fast is one layer where nn.GRU reads its weights at every step?", 120, _PEERS,
        _combine("fp16 tf32", [512, 1024, 256], [1, 16, 64], [512]) + _combine("fp16 tf32", [400], [1, 16], [512])
        + _combine("bf16", [512, 1024], [1, 16], [512]),
    ),
    Sweep(
        "heart-small", "How fast is one layer where cuDNN has a persistent kernel?", 100, _PEERS,
        _combine("fp16 tf32", [128, 64, 192], [1, 16, 64, 4], [512]),
    ),
    Sweep(
        "heart-large", "How fast is one layer where W_hh fills the whole chip?", 100, (OURS, *_CUDNN),
        _combine("fp16 tf32", [2048, 1536], [1, 4, 16, 64], [512]),
    ),
    Sweep(
        "short", "How fast are sequences of 64 steps?", 100, _PEERS,
        _combine("fp16 tf32", [512, 1024, 256, 128], [1, 16, 64], [64]),
    ),
    Sweep("t1", "How fast is a single step with its weights in the L2?", 90, (OURS, *_CUDNN), _SINGLE_STEPS),
    Sweep(
        "t1-cold", "How fast is a single step with weights in memory?", 120, (OURS, "cudnn.standard"), _SINGLE_STEPS,
        l2="cold",
    ),
    Sweep(
        "packed", "How fast are sequences of unequal lengths, packed?", 120, (OURS, *_KERNELS, "cudnn.standard"),
        _combine("fp16 tf32", [512, 256, 1024, 128, 64], [16, 64], [256], layout="packed"),
    ),
    Sweep(
        "lengths", "How fast are sequences of unequal lengths, padded, with lengths=?", 90, (OURS, *_KERNELS),
        _combine("fp16 tf32", [512, 256, 1024, 128], [16, 64], [256], layout="lengths"),
    ),
    Sweep(
        "bidirectional", "What does the second direction add?", 130, (OURS, *_CUDNN),
        _vary(_combine("fp16 tf32", [512, 256, 1024, 128], [1, 16, 64], [256]), directions=(2, 1)),
    ),
    Sweep(
        "streaming", "How long does a single frame take, and the slowest of a hundred?", 120,
        tuple(STREAMING_PROVIDERS), _combine("fp16 tf32", [256, 512, 128, 1024], [1, 16], [1], is_streaming=True)
        + _combine("fp16 tf32", [256, 512], [1], [1], layers=2, is_streaming=True), rounds=1000,
    ),
    Sweep(
        "overhead", "How long does a call occupy the host?", 60,
        (OURS, LAUNCHES, *_KERNELS, "cudnn.standard", "handwritten", "torch.compile", "torch.compile.cells", "torchrl"),
        _combine("fp16 tf32", [128, 512], [1], [1, 16]), HOST,
    ),
    Sweep(
        "cells", "How do RNN, LSTM, GRU and ours compare in gates, parameters, work and time?", 60,
        (OURS, "torch.nn.RNN", "torch.nn.LSTM", "handwritten"),
        _combine("fp16 tf32", [128, 256, 512, 1024], [1, 64], [128]),
    ),
    Sweep(
        "reset-before", "What does reset_after=False cost, compared with nn.GRU?", 150,
        (OURS, *_KERNELS, "handwritten"),
        _combine("fp16", [512, 1024, 256, 128, 2048, 192, 64, 96], [1, 16, 64], [512], reset_after=False)
        + _combine("tf32", [512, 256, 1024, 128], [1, 16], [512], reset_after=False),
    ),
    Sweep(
        "layers", "What does each further layer cost?", 130, (OURS, *_CUDNN),
        _vary(_combine("fp16 tf32", [512, 256, 1024], [1, 16, 64], [256]), layers=(2, 4)),
    ),
    Sweep(
        "long", "Does the time grow in proportion to thousands of steps?", 150,
        (OURS, "cudnn.standard", "cudnn.persist_static"),
        _combine("fp16", [512, 128, 1024], [1, 16], [4096, 16384]),
    ),
    Sweep(
        "large", "How fast are weights that exceed the chip?", 120, (OURS, "cudnn.standard", "cudnn.persist_dynamic"),
        _combine("fp16 tf32", [4096, 8192], [1, 4, 16], [1, 64]),
    ),
    Sweep(
        "throughput", "How fast are batches of hundreds, where the products dominate?", 120, (OURS, *_CUDNN),
        _combine("fp16 tf32", [512, 256, 1024, 128], [256, 1024], [128]),
    ),
    Sweep(
        "step-breakdown", "Where does a step of grid and block spend its time?", 120,
        ("triton_gru.grid", "triton_gru.block", *_STAGES),
        _combine("fp16", [256, 512, 1024, 2048], [1, 64], [512]) + _combine("tf32", [512, 1024], [1, 64], [512])
        + _combine("fp16", [64, 128, 192], [1], [512]) + _combine("tf32", [128], [1], [512]), ("graph",), rounds=50,
    ),
    Sweep(
        "hand-overs", "Which hand-over and which cut of grid are fastest in a GRU?", 160,
        (OURS, *(f"perf.experiments.hand_overs:{name}" for name in (*HANDOVERS, *_CUTS))),
        _combine("fp16", [512, 1024, 256, 2048, 192], [1, 16, 64], [512]),
    ),
    Sweep(
        "projection", "Is our kernel or cuBLAS faster for the input projection?", 150,
        (OURS, "cudnn.standard", *_PROJECTIONS),
        _vary(_combine("fp16 tf32 fp32", [512], [16], [512, 16, 1]), input_size=(4096, 512, 80)),
    ),
    Sweep(
        # FlashRNN2 reports 1.4 to 1.6 times cuDNN with flat weights for a classifier of these four layers on an H100.
        "anchor-flashrnn2", "How fast are four small layers, where FlashRNN2 has published figures?", 100,
        (OURS, *_CUDNN), _vary(_combine("fp16", [64], [1, 4, 16, 32, 64], [32], layers=4), layout=("dense", "packed")),
    ),
    Sweep(
        # The published time of cuDNN's persistent LSTM is 1.96 us a step.
        "anchor-768", "How fast is H = 768, where a persistent LSTM has published figures?", 60,
        (OURS, *_KERNELS, *_CUDNN, "flashrnn", *_ANCHORS), _combine("fp16 bf16", [768], [16], [1024]),
    ),
    Sweep(
        "anchor-24", "How fast is H = 24, B = 400 in fp32 without TF32, a shape of a user?", 60,
        (*EVERYONE, *_KERNELS), _combine("fp32", [24], [400], [100]),
    ),
    Sweep(
        # The GRUs for training and for servers in rnn_problems.h of DeepBench.
        "deepbench", "How fast are DeepBench's GRUs?", 170, (OURS, *_CUDNN),
        _combine("fp16", [1024], [32, 64], [1500]) + _combine("fp16", [2816, 2048, 1536, 2560], [32, 1], [187])
        + _combine("fp16", [512], [32, 1], [1]) + _combine("fp16", [2816, 2048, 1536], [32], [1500]),
    ),
    Sweep(
        "tuned", "What does a tuned table bring?", 60, (OURS, *_CUDNN),
        _combine("fp16", [512, 1024, 256], [1, 16], [512]),
    ),
)}  # fmt: skip


def describe_sweeps() -> str:
    """Return the text of ``perf run --help`` on the sweeps: a line for each."""
    lines = [
        f"  {sweep.name:18}{sweep.question} {len(sweep.cases)} cases, {sweep.seconds} s on a GPU."
        for sweep in SWEEPS.values()
    ]
    return "\n".join([*lines, f"All sweeps also measure {BASELINE}, with which the others are compared."])
