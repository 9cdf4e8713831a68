"""Counts a time step of GRUs in Triton: ours, and other libraries', whose own host code launches their kernels.

A kernel that its library tunes is counted in the configuration whose busiest warp has the fewest instructions.
"""

import contextlib
import functools
import itertools
import os
import types
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from triton import Config
from triton.runtime.autotuner import Autotuner
from triton.runtime.errors import OutOfResources

import triton_gru
from perf.case import Case
from perf.measure import PEERS_SLACK
from perf.providers import OURS, gru_qat, ours, torchrl
from perf.providers.interface import Unavailable, import_peer
from perf.record import config_text
from triton_gru.accuracy import Judge
from triton_gru.call.options import Options

from ..conftest import poison_memory
from . import count
from .device import EmulatedGpu
from .machine import RACES, Fault

# A kernel of ours is chosen for a sequence of so many steps.
STEPS = 512
# One step of a peer is a quarter of the difference between calls of so many steps. Of ours, a call of the first is
# checked.
FEWER, MORE = 4, 8
# A kernel that is tuned and has, or executes, more instructions than this is counted in one configuration of the most
# warps alone: the others take minutes to compile, or to execute.
LONG, MANY = 10_000, 4_000_000


class WrongResult(Exception):
    """A result is too far from float64. The argument is the largest error."""


def count_ours(gpu: EmulatedGpu, case: Case) -> tuple[Counter, dict]:
    """Return what a step takes of the kernel that ``"auto"`` chooses for a long sequence, and columns that say which.

    Counted is as in `count_step`. A short call is executed whole and checked. If it takes too many instructions, there
    is no largest error.

    Raises:
        Unavailable: ``"auto"`` takes no kernel.
        WrongResult: what the kernel computes is wrong.
    """
    gru, x = case.module("cpu"), torch.randn(FEWER, case.batch, case.hidden).to(case.dtype)
    plan = ours.BackendProvider("auto").choose(
        Options.from_module(gru).to_problem(STEPS, case.batch, case.dtype), gpu.device
    )
    if plan.config is None:
        raise Unavailable(f"{plan.kernel} serves it: {plan.reason}")
    judge = Judge.for_call(gru, x, None, case.precision)
    step = count.count_step(gpu, count.Case(plan.kernel, case.hidden, case.batch, case.precision), plan.config)
    step["read_w_hh"] = step["read w_hh"]
    columns = {"version": triton_gru.__version__, "kernel": plan.kernel, "config": config_text(plan.config)}
    try:
        error, right = judge(ours.BackendProvider(plan.kernel).module(gru)(x))
    except Fault as fault:
        if not str(fault).startswith("ENDLESS"):
            raise
        return step, columns
    if not right:
        raise WrongResult(error)
    return step, columns | {"max_abs_err": error}


class Peer(NamedTuple):
    """Another library's GRU.

    Attributes:
        package: its distribution.
        weights: the names of the kernel's arguments that are W_hh.
        prepare: a function of a case and its GRU and input that returns what makes of the input the GRU's output.
    """

    package: str
    weights: tuple[str, ...]
    prepare: Callable[[Case, nn.GRU, Tensor], Callable[[Tensor], Tensor]]


def _torchrl(case: Case, gru: nn.GRU, x: Tensor) -> Callable[[Tensor], Tensor]:
    rnn = import_peer("torchrl.modules.tensordict_module._rnn_triton", "torchrl")
    call = torchrl.bind(rnn.gru_triton, gru, x)
    return lambda x: call(x)[0]


def _gru_qat(entry: str, case: Case, gru: nn.GRU, x: Tensor) -> Callable[[Tensor], Tensor]:
    if case.precision != "tf32":
        raise Unavailable("it computes in fp32, with products in TF32 alone")
    scan = getattr(import_peer("gru_qat.triton_kernels.scan", "gru-qat"), entry)
    call = gru_qat.bind(scan, gru, x)
    return lambda x: call(x)[0]


def count_peer(peer: Peer, gpu: EmulatedGpu, case: Case) -> tuple[Counter, dict]:
    """Return what a step takes, and columns that say of which kernel.

    Raises:
        Unavailable: the library is not installed, or does not serve the case.
        WrongResult: what it computes is wrong.
    """
    gru, x = case.module("cpu"), torch.randn(MORE, case.batch, case.hidden).to(case.dtype)
    judges = {steps: Judge.for_call(gru, x[:steps], None, case.precision) for steps in (FEWER, MORE)}
    errors, counted = [], []

    def call(steps: int) -> None:
        output = peer.prepare(case, gru, x[:steps])(x[:steps])
        error, right = judges[steps]((output,), PEERS_SLACK)
        if not right:
            raise WrongResult(error)
        errors.append(error)

    for at in itertools.count():
        with hosting(gpu, at) as configs, contextlib.suppress(OutOfResources), poison_memory():
            counted.append((count.count_calls(gpu, call, FEWER, MORE), at))
        if at + 1 >= len(configs) or any(each.length > LONG or each.executed > MANY for each in gpu.outcomes):
            break
    if not counted:
        raise Unavailable(f"none of its configurations fits {gpu.device.name}")
    if not gpu.outcomes:
        raise Unavailable("it launches no kernel")
    step, best = min(counted, key=lambda each: each[0]["busiest"])
    step["read_w_hh"] = sum(step[f"read {name}"] for name in peer.weights)
    how = "best" if at + 1 == len(configs) else "most warps"
    config = f"{how} of {len(configs)}: {configs[best]}" if configs else ""
    kernels = ", ".join(dict.fromkeys(gpu.launched))
    return step, {"version": version(peer.package), "kernel": kernels, "config": config, "max_abs_err": max(errors)}


@contextlib.contextmanager
def hosting(gpu: EmulatedGpu, at: int = 0) -> Iterator[list[Config]]:
    """Let host code take CPU tensors to lie on ``gpu``, and choose configuration ``at`` of kernels that are tuned.

    Races in global memory are noted only: peers order their accesses by counters, which the machine does not model.

    Yields:
        All configurations to choose from, those of most warps first, as soon as such a kernel has been launched.
    """
    device, configs = gpu.device, []

    def run(tuner: Autotuner, *args, **options):
        tuner.nargs = dict(zip(tuner.arg_names, args))
        configs[:] = sorted(tuner.prune_configs(options), key=lambda each: -each.num_warps)
        return tuner.fn.run(*args, **options, **configs[at].all_kwargs())

    major, minor = divmod(device.compute_capability, 10)
    properties = types.SimpleNamespace(multi_processor_count=device.sms, major=major, minor=minor, name=device.name)
    with (
        mock.patch.object(Autotuner, "run", run),
        mock.patch.object(torch.Tensor, "is_cuda", True),
        mock.patch.object(torch.cuda, "device", contextlib.nullcontext),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=properties),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(major, minor)),
        mock.patch.object(gpu, "forgiven", RACES),
        mock.patch.dict(os.environ, {"TRITON_DEFAULT_FP_FUSION": "1"}),  # Triton 3.9 warns where it is not said
    ):
        yield configs


_QAT = "gru_scan_forward"
# Each is called under torch's settings for the case, and returns what `count_step` does and columns of a row.
PROVIDERS: dict[str, Callable[[EmulatedGpu, Case], tuple[Counter, dict]]] = {
    OURS: count_ours,
    "torchrl": functools.partial(count_peer, Peer("torchrl", ("w_r_ptr", "w_z_ptr", "w_n_ptr"), _torchrl)),
}
for _name, _entry in {"gru_qat.scan": _QAT, "gru_qat.persistent": f"{_QAT}_persistent"}.items():
    _peer = Peer("gru-qat", ("Wh_ptr",), functools.partial(_gru_qat, _entry))
    PROVIDERS[_name] = functools.partial(count_peer, _peer)
