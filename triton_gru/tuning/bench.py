"""Where candidates of one problem are compiled, judged and timed."""

import contextlib
import copy
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from .. import accuracy
from ..call.bind import bind_gru
from ..launch import call_cache, execute, hang
from ..plan.device import Device, find
from ..plan.planner import Plan
from ..plan.problem import Problem
from ..plan.tables import store
from .compile_pool import Compilers
from .example import Example, example
from .space import TORCH, Candidate
from .timing import clock, graphed, samples

# Steps after which results are compared: what goes wrong in a configuration does so in the first few.
_JUDGED_STEPS = 64


class Bench(Protocol):
    """What the tuner asks of a device; one of its own can be given to it.

    Attributes:
        modes: of timing, the last one that by which configurations are compared.
    """

    device: Device
    modes: tuple[str, ...]

    def compile(self, problem: Problem, candidates: list[Candidate], seconds: float) -> Iterator[tuple[Candidate, str]]:
        """As `Compilers.compile`."""

    def opened(self, problem: Problem) -> contextlib.AbstractContextManager[None]:
        """Inside, `judge` and `times` are about this problem, and no other tuner times on the device."""

    def judge(self, candidate: Candidate) -> str:
        """Runs it; why it is out, empty if it is right."""

    def times(
        self, candidates: list[Candidate], mode: str, rounds: int, seconds: float
    ) -> dict[Candidate, list[float]]:
        """Milliseconds of calls, in turn, of those that can be timed."""

    def close(self) -> None:
        """It is not used any more."""


class RealBench:
    """A GPU; or, under ``TRITON_INTERPRET=1``, the interpreter, where nothing is compiled and there are no graphs.

    Raises:
        RuntimeError: no kernel runs on ``device``.
    """

    def __init__(self, device: torch.device):
        described = find(device)
        if described is None:
            raise RuntimeError(
                f"no kernel runs on {device} (on the CPU only under TRITON_INTERPRET=1): nothing to tune"
            )
        self.device, self._place = described, device
        self._compilers = Compilers(described)
        self.modes = ("eager", "graph") if device.type == "cuda" else ("eager",)

    def compile(self, problem: Problem, candidates: list[Candidate], seconds: float) -> Iterator[tuple[Candidate, str]]:
        if self.device.isa == "interpreter":
            return ((each, "") for each in candidates)
        return self._compilers.compile(problem, candidates, seconds)

    def close(self) -> None:
        self._compilers.close()

    @contextlib.contextmanager
    def opened(self, problem: Problem) -> Iterator[None]:
        short = dataclasses.replace(problem, steps=min(problem.steps, _JUDGED_STEPS))
        on_gpu = self._place.type == "cuda"
        with (
            self._alone(),
            torch.cuda.device(self._place) if on_gpu else contextlib.nullcontext(),
            # Made outside of inference mode, as models are.
            example(short, self._place) as judged,
            example(problem, self._place) as self._timed,
            torch.inference_mode(),
        ):
            self._judge = _Judge(judged)
            try:
                yield
            finally:
                del self._timed, self._judge

    def judge(self, candidate: Candidate) -> str:
        try:
            wrong = self._judge(self.device, candidate)
            hang.raise_if_hung()
            return wrong
        except torch.OutOfMemoryError:
            return "out of memory"
        except Exception as failure:
            return f"{type(failure).__name__}: {failure}".strip().splitlines()[0][:200]

    def times(
        self, candidates: list[Candidate], mode: str, rounds: int, seconds: float
    ) -> dict[Candidate, list[float]]:
        calls, pool = {}, torch.cuda.graph_pool_handle() if mode == "graph" else None
        for candidate in candidates:
            try:
                call = _as_called(self.device, candidate, self._timed)
                calls[candidate] = [graphed(call, pool)[0] if mode == "graph" else call]
            except Exception as failure:  # what is judged is shorter than what is timed: memory may not do
                warnings.warn(f"cannot be timed, {mode}: {candidate}: {failure}", stacklevel=2)
        taken = samples(calls, rounds, clock(self._place.type), seconds)
        hang.raise_if_hung()
        return taken

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Two that time on one GPU at once would each measure the other."""
        directory = store.user_directory()
        with contextlib.ExitStack() as stack:
            if self._place.type == "cuda" and directory is not None:
                uuid = torch.cuda.get_device_properties(self._place).uuid
                try:
                    directory.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(store.locked(directory / f".timing-{uuid}.lock"))
                except TimeoutError as error:
                    warnings.warn(f"times may be of two tuners at once: {error}", stacklevel=2)
                except OSError:
                    pass  # where nothing can be kept there is no lock either
            yield


def _plan(device: Device, candidate: Candidate, problem: Problem) -> Plan:
    return Plan(problem, device, *candidate, "", "", ())


def _as_called(device: Device, candidate: Candidate, timed: Example) -> Callable:
    """A call of the candidate as a model would make it, at steady state."""
    gru, x, ends = timed.gru, timed.x, timed.ends
    if candidate == TORCH and not ends and not gru.reverse:
        return functools.partial(nn.GRU.forward, gru, x)
    plan = _plan(device, candidate, timed.call.problem)
    module = copy.copy(gru)
    if not ends and candidate != TORCH:
        for _ in range(2):  # what is met twice is prepared
            call_cache.keep(module, x, None, timed.call, plan, *execute.run(timed.call, plan))
        if call_cache.find(module, x, None):
            return functools.partial(module, x)
    return lambda: execute.run(bind_gru(module, x, None, **ends), plan)


class _Judge:
    """Compares with float64; torch's own GRU, or plain torch in the same precision, says how close one can be."""

    def __init__(self, judged: Example):
        self._example = judged
        gru, x, ends = judged.gru, judged.x, judged.ends
        self._batch_sizes = None
        if isinstance(x, PackedSequence):
            self._batch_sizes = x.batch_sizes
            x, lengths = pad_packed_sequence(x)
            ends = {"lengths": lengths.to(x.device)}
        self._exact = accuracy.exact(gru, x, None, **ends)
        precision = next(
            name for name, (dtype, fp32) in accuracy.PRECISIONS.items()
            if dtype == x.dtype and (dtype != torch.float32 or fp32 == judged.call.problem.precision)
        )  # fmt: skip
        error = self._error(accuracy.torchs_own(gru, x, None, **ends))
        self._allowed = accuracy.bound(error, precision, summed=accuracy.summed(gru))

    def __call__(self, device: Device, candidate: Candidate) -> str:
        if candidate == TORCH:
            return ""
        output, h_n = execute.run(self._example.call, _plan(device, candidate, self._example.call.problem))
        if self._batch_sizes is not None:
            output, _ = pad_packed_sequence(PackedSequence(output, self._batch_sizes))
        error = self._error((output, h_n))
        return "" if error <= self._allowed else "wrong: further from float64 than it may be"

    def _error(self, results: tuple[Tensor, Tensor]) -> float:
        return max((a.double() - b).abs().max().item() for a, b in zip(results, self._exact))
