"""Where candidates of one problem are compiled, judged and timed."""

import contextlib
import copy
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import nn

from ..accuracy import PRECISIONS, Judge
from ..call.bind import bind_gru
from ..launch import call_cache, execute, hang
from ..plan.device import Device, find_device, no_device_reason
from ..plan.planner import Plan
from ..plan.problem import Problem
from ..plan.tables import store
from .compile_pool import Pool, compile_candidate, summarize_error
from .example import Example, open_example
from .progress import describe_shape
from .space import TORCH, Candidate
from .timing import capture_graph, clock, samples

# Steps after which results are compared: what goes wrong in a configuration does so in the first few.
_JUDGED_STEPS = 64


class Bench:
    """A GPU to tune for.

    It may be emulated on the CPU. There nothing is compiled ahead of time and there are no CUDA graphs.

    The tuner asks it for nothing but its public names, so that a planted bench can take its place.

    Attributes:
        modes: how calls are timed; the last one is that by which configurations are compared.

    Raises:
        RuntimeError: no kernel runs on ``device``.
    """

    def __init__(self, device: torch.device):
        described = find_device(device)
        if described is None:
            raise RuntimeError(f"no kernel runs on {device}: {no_device_reason()}")
        self.device, self._place = described, device
        self._pool = Pool()
        self.modes = ("eager", "graph") if device.type == "cuda" else ("eager",)

    def compile(self, problem: Problem, candidates: list[Candidate], seconds: float) -> Iterator[tuple[Candidate, str]]:
        """Yield each candidate that is done within ``seconds``, with the reason why it is out, empty if it is in."""
        if self._place.type == "cpu":
            return ((each, "") for each in candidates)
        calls = [functools.partial(compile_candidate, problem, self.device, each) for each in candidates]
        return ((call.args[-1], why) for call, why in self._pool.run(calls, seconds))

    def close(self) -> None:
        """End the processes that compile."""
        self._pool.close()

    @contextlib.contextmanager
    def open_problem(self, problem: Problem) -> Iterator[None]:
        """Inside, `judge` and `time_candidates` are about ``problem``, and no other tuner times on the device."""
        short = dataclasses.replace(problem, steps=min(problem.steps, _JUDGED_STEPS))
        precision = {value: name for name, value in PRECISIONS.items()}[problem.dtype, problem.precision]
        on_gpu = self._place.type == "cuda"
        with (
            self._alone(),
            torch.cuda.device(self._place) if on_gpu else contextlib.nullcontext(),
            # Made outside of inference mode, as models are.
            open_example(short, self._place) as self._judged,
            open_example(problem, self._place) as self._timed,
            torch.inference_mode(),
        ):
            self._judge = Judge.for_call(self._judged.gru, self._judged.x, None, precision, **self._judged.ends)
            try:
                yield
            finally:
                del self._judged, self._timed, self._judge

    def judge(self, candidate: Candidate) -> str:
        """Run the candidate; return the reason why it is out, empty if it is right."""
        if candidate == TORCH:
            return ""
        try:
            call = self._judged.call
            _, right = self._judge(execute.run(call, _plan(self.device, candidate, call.problem)))
            hang.raise_if_hung()
            return "" if right else "wrong: further from float64 than it may be"
        except torch.OutOfMemoryError:
            return "out of memory"
        except Exception as failure:
            return summarize_error(failure)

    def time_candidates(
        self, candidates: list[Candidate], mode: str, rounds: int, seconds: float
    ) -> dict[Candidate, list[float]]:
        """Return the milliseconds of calls, made in turn, of each candidate that can be timed."""
        calls, pool = {}, torch.cuda.graph_pool_handle() if mode == "graph" else None
        for candidate in candidates:
            try:
                call = _as_called(self.device, candidate, self._timed)
                calls[candidate] = [capture_graph(call, pool)[0] if mode == "graph" else call]
            except Exception as failure:  # what is judged is shorter than what is timed: memory may not do
                shape = describe_shape(self._timed.call.problem.key())
                warnings.warn(f"{shape}: {candidate} cannot be timed, {mode}: {summarize_error(failure)}", stacklevel=2)
        taken = samples(calls, rounds, clock(self._place.type), seconds)
        hang.raise_if_hung()
        return taken

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other tuners from timing on the GPU: each would measure the other."""
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
    return Plan(problem, device, candidate.kernel, candidate.config, "", "", (), projection=candidate.projection)


def _as_called(device: Device, candidate: Candidate, timed: Example) -> Callable:
    """Return a call of the candidate as a model would make it, at steady state."""
    gru, x, ends = timed.gru, timed.x, timed.ends
    if candidate == TORCH and not ends and not gru.reverse:
        return functools.partial(nn.GRU.forward, gru, x)
    plan = _plan(device, candidate, timed.call.problem)
    module = copy.copy(gru)
    if not ends and candidate != TORCH:
        for _ in range(2):  # what is met twice is prepared
            call_cache.keep_route(module, x, None, timed.call, plan, *execute.run(timed.call, plan))
        if call_cache.find_route(module, x, None):
            return functools.partial(module, x)
    return lambda: execute.run(bind_gru(module, x, None, **ends), plan)
