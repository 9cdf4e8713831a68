"""Counts a time step of our kernels and of other libraries' GRUs in Triton, launched by each library's host code.

If a library tunes its kernel, the result is of the configuration whose busiest warp has the fewest instructions.
Exception: of large kernels, not all configurations are counted (`MAX_KERNEL_LENGTH`).
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

# Our kernel is the one that "auto" chooses for a sequence of 512 steps.
STEPS = 512
# The numbers of steps of two calls of a peer, whose difference is counted. Our kernel is checked in a call of FEWER.
FEWER, MORE = 4, 8
# If a tuned kernel has more or executes more instructions than this, its next configurations, with fewer warps, are not
# counted. They take minutes to compile or to execute.
MAX_KERNEL_LENGTH, MAX_EXECUTED = 10_000, 4_000_000


class WrongResult(Exception):
    """An error for a result that is too far from float64. The argument is the largest error."""


def count_ours(gpu: EmulatedGpu, case: Case) -> tuple[Counter, dict]:
    """Return the work of a step of the kernel that ``"auto"`` chooses for a long sequence, and columns that name it.

    The numbers are those of `count_step`. A short call is also executed in full and checked. If the call takes too many
    instructions, the columns have no ``max_abs_err``.

    Raises:
        Unavailable: ``"auto"`` chooses no kernel.
        WrongResult: the kernel's result is wrong.
    """
    gru, x = case.make_gru("cpu"), torch.randn(FEWER, case.batch, case.hidden).to(case.dtype)
    plan = ours.BackendProvider("auto").choose(
        Options.from_module(gru).to_problem(STEPS, case.batch, case.dtype), gpu.device
    )
    if plan.config is None:
        raise Unavailable(f"{plan.kernel} serves the case: {plan.reason}")
    judge = Judge.for_call(gru, x, None, case.precision)
    step = count.count_step(gpu, count.Case(plan.kernel, case.hidden, case.batch, case.precision), plan.config)
    step["read_w_hh"] = step["read w_hh"]
    columns = {"version": triton_gru.__version__, "kernel": plan.kernel, "config": config_text(plan.config)}
    try:
        error, is_right = judge(ours.BackendProvider(plan.kernel).make_gru(gru)(x))
    except Fault as fault:
        if not str(fault).startswith("ENDLESS"):
            raise
        return step, columns
    if not is_right:
        raise WrongResult(error)
    return step, columns | {"max_abs_err": error}


class Peer(NamedTuple):
    """A GRU of another library.

    Attributes:
        package: the name of its distribution.
        weights: the names of the kernel's arguments that are W_hh.
        prepare: a function of a case, its GRU and an input. It returns a function from the input to the GRU's output.
    """

    package: str
    weights: tuple[str, ...]
    prepare: Callable[[Case, nn.GRU, Tensor], Callable[[Tensor], Tensor]]


def _prepare_torchrl(case: Case, gru: nn.GRU, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function from the input to the output of torchrl's GRU, as `Peer.prepare`."""
    rnn = import_peer("torchrl.modules.tensordict_module._rnn_triton", "torchrl")
    call = torchrl.bind(rnn.gru_triton, gru, x)
    return lambda x: call(x)[0]


def _prepare_gru_qat(entry: str, case: Case, gru: nn.GRU, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function from the input to the output of gru-qat's function ``entry``, as `Peer.prepare`."""
    if case.precision != "tf32":
        raise Unavailable("gru-qat computes only in fp32 with products in TF32")
    scan = getattr(import_peer("gru_qat.triton_kernels.scan", "gru-qat"), entry)
    call = gru_qat.bind(scan, gru, x)
    return lambda x: call(x)[0]


def count_peer(peer: Peer, gpu: EmulatedGpu, case: Case) -> tuple[Counter, dict]:
    """Return the work of a step, as `count_step` does, and columns that name the kernel.

    Raises:
        Unavailable: the library is not installed, or does not serve the case. It launches no kernel, or no
            configuration fits the device.
        WrongResult: the library's result is wrong.
    """
    gru, x = case.make_gru("cpu"), torch.randn(MORE, case.batch, case.hidden).to(case.dtype)
    judges = {steps: Judge.for_call(gru, x[:steps], None, case.precision) for steps in (FEWER, MORE)}
    errors, counted = [], []

    def call(steps: int) -> None:
        output = peer.prepare(case, gru, x[:steps])(x[:steps])
        error, is_right = judges[steps]((output,), PEERS_SLACK)
        if not is_right:
            raise WrongResult(error)
        errors.append(error)

    # Count each configuration of a tuned kernel. Their number is known after the first launch.
    for index in itertools.count():
        with patch_host_code(gpu, index) as configs, contextlib.suppress(OutOfResources), poison_memory():
            counted.append((count.count_calls(gpu, call, FEWER, MORE), index))
        is_slow = any(outcome.length > MAX_KERNEL_LENGTH or outcome.executed > MAX_EXECUTED for outcome in gpu.outcomes)
        if index + 1 >= len(configs) or is_slow:
            break
    if not counted:
        raise Unavailable(f"no configuration of {peer.package} fits {gpu.device.name}")
    if not gpu.outcomes:
        raise Unavailable(f"{peer.package} launches no kernel")
    step, best_index = min(counted, key=lambda pair: pair[0]["busiest"])
    step["read_w_hh"] = sum(step[f"read {name}"] for name in peer.weights)
    choice = "best" if index + 1 == len(configs) else "most warps"
    config = f"{choice} of {len(configs)}: {configs[best_index]}" if configs else ""
    kernels = ", ".join(dict.fromkeys(gpu.launched))
    return step, {"version": version(peer.package), "kernel": kernels, "config": config, "max_abs_err": max(errors)}


@contextlib.contextmanager
def patch_host_code(gpu: EmulatedGpu, index: int = 0) -> Iterator[list[Config]]:
    """Let other libraries treat CPU tensors as tensors on ``gpu``, and use configuration ``index`` of tuned kernels.

    Races in global memory are only noted: peers order accesses by counters, which the machine does not model.

    Yields:
        The configurations of the tuned kernel, from the most warps to the fewest. The list is empty before the first
        launch, and stays empty if no kernel is tuned.
    """
    device, configs = gpu.device, []

    def run(tuner: Autotuner, *args, **options):
        """Launch configuration ``index``, without timing any."""
        tuner.nargs = dict(zip(tuner.arg_names, args))
        configs[:] = sorted(tuner.prune_configs(options), key=lambda config: -config.num_warps)
        return tuner.fn.run(*args, **options, **configs[index].all_kwargs())

    major, minor = divmod(device.compute_capability, 10)
    properties = types.SimpleNamespace(multi_processor_count=device.sms, major=major, minor=minor, name=device.name)
    with (
        mock.patch.object(Autotuner, "run", run),
        mock.patch.object(torch.Tensor, "is_cuda", True),
        mock.patch.object(torch.cuda, "device", contextlib.nullcontext),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=properties),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(major, minor)),
        mock.patch.object(gpu, "forgiven", RACES),
        mock.patch.dict(os.environ, {"TRITON_DEFAULT_FP_FUSION": "1"}),  # Triton 3.9 warns if it is not set
    ):
        yield configs


_QAT = "gru_scan_forward"
# Functions that return the numbers of `count_step` and columns of a row. torch's settings must be those of the case.
PROVIDERS: dict[str, Callable[[EmulatedGpu, Case], tuple[Counter, dict]]] = {
    OURS: count_ours,
    "torchrl": functools.partial(count_peer, Peer("torchrl", ("w_r_ptr", "w_z_ptr", "w_n_ptr"), _prepare_torchrl)),
}
for _name, _entry in {"gru_qat.scan": _QAT, "gru_qat.persistent": f"{_QAT}_persistent"}.items():
    _peer = Peer("gru-qat", ("Wh_ptr",), functools.partial(_prepare_gru_qat, _entry))
    PROVIDERS[_name] = functools.partial(count_peer, _peer)
