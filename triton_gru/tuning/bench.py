"""Compiles, judges and times the candidates of one problem on a GPU."""

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

# Most steps of the judged call. A wrong configuration shows in the first few steps.
_JUDGED_STEPS = 64


class Bench:
    """A GPU to tune for.

    The GPU may be emulated on the CPU. An emulated GPU compiles nothing ahead of time and has no CUDA graphs.

    The tuner uses only the public names, so that tests can pass a bench with planted times.

    Attributes:
        device: the GPU, as plans describe it.
        modes: how calls are timed. Configurations are compared in the last mode.

    Raises:
        RuntimeError: no kernel runs on ``device``.
    """

    def __init__(self, device: torch.device):
        described = find_device(device)
        if described is None:
            raise RuntimeError(f"no kernel runs on {device}: {no_device_reason()}")
        self.device, self._torch_device = described, device
        self._pool = Pool()
        self.modes = ("eager", "graph") if device.type == "cuda" else ("eager",)

    def compile(self, problem: Problem, candidates: list[Candidate], seconds: float) -> Iterator[tuple[Candidate, str]]:
        """Compile the candidates. Yield each candidate when its compilation ends, with the reason to drop it, or ''.

        Candidates whose compilation has not ended after ``seconds`` are not yielded. Exception: for an emulated GPU,
        nothing is compiled, and all candidates are yielded.
        """
        if self._torch_device.type == "cpu":
            return ((candidate, "") for candidate in candidates)
        tasks = [functools.partial(compile_candidate, problem, self.device, candidate) for candidate in candidates]
        # The last argument of a task is its candidate.
        return ((task.args[-1], reason) for task, reason in self._pool.run(tasks, seconds))

    def close(self) -> None:
        """End the compiling processes."""
        self._pool.close()

    @contextlib.contextmanager
    def open_problem(self, problem: Problem) -> Iterator[None]:
        """Set the problem that `judge` and `time_candidates` are about, and keep other tuners off the GPU meanwhile."""
        judged_problem = dataclasses.replace(problem, steps=min(problem.steps, _JUDGED_STEPS))
        precision_names = {value: name for name, value in PRECISIONS.items()}
        precision = precision_names[problem.dtype, problem.precision]
        is_on_gpu = self._torch_device.type == "cuda"
        with (
            self._lock_gpu(),
            torch.cuda.device(self._torch_device) if is_on_gpu else contextlib.nullcontext(),
            # Examples are made outside of inference mode, as models are.
            open_example(judged_problem, self._torch_device) as self._judged,
            open_example(problem, self._torch_device) as self._timed,
            torch.inference_mode(),
        ):
            self._judge = Judge.for_call(self._judged.gru, self._judged.x, None, precision, **self._judged.keywords)
            try:
                yield
            finally:
                del self._judged, self._timed, self._judge

    def judge(self, candidate: Candidate) -> str:
        """Run the candidate and compare its results with float64. Return the reason to drop it, or ''.

        Exception: nn.GRU is not run, as it is never dropped.
        """
        if candidate == TORCH:
            return ""
        try:
            call = self._judged.call
            _, is_correct = self._judge(execute.run(call, _make_plan(self.device, candidate, call.problem)))
            hang.raise_if_hung()
            return "" if is_correct else "wrong: further from float64 than it may be"
        except torch.OutOfMemoryError:
            return "out of memory"
        except Exception as error:
            return summarize_error(error)

    def time_candidates(
        self, candidates: list[Candidate], mode: str, rounds: int, seconds: float
    ) -> dict[Candidate, list[float]]:
        """Return the milliseconds of each call of each candidate.

        Each of at most ``rounds`` rounds calls every candidate once. The rounds end early after ``seconds``, as in
        `timing.samples`. A candidate whose call cannot be prepared or captured is left out, with a warning.

        Raises:
            Exception: a call fails later, while it is timed.
            RuntimeError: a launch of ``grid`` gave up waiting.
        """
        calls, pool = {}, torch.cuda.graph_pool_handle() if mode == "graph" else None
        for candidate in candidates:
            try:
                call = _prepare_call(self.device, candidate, self._timed)
                calls[candidate] = [capture_graph(call, pool)[0] if mode == "graph" else call]
            except Exception as error:  # the timed call may have more steps than the judged call, and not fit
                shape = describe_shape(self._timed.call.problem.key())
                message = f"{shape}: {candidate} cannot be timed in mode {mode}: {summarize_error(error)}"
                warnings.warn(message, stacklevel=2)
        times = samples(calls, rounds, clock(self._torch_device.type), seconds)
        hang.raise_if_hung()
        return times

    @contextlib.contextmanager
    def _lock_gpu(self) -> Iterator[None]:
        """Keep other tuners off the GPU, because two tuners that time at once slow each other down.

        Exception: a GPU that is emulated, or without a folder for a lock file, is not locked. If another tuner holds
        the lock for `store.LOCK_TIMEOUT_S`, continue with a warning.
        """
        directory = store.user_directory()
        with contextlib.ExitStack() as stack:
            if self._torch_device.type == "cuda" and directory is not None:
                uuid = torch.cuda.get_device_properties(self._torch_device).uuid
                try:
                    directory.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(store.locked(directory / f".timing-{uuid}.lock"))
                except TimeoutError as error:
                    warnings.warn(f"two tuners may be timing on this GPU at once: {error}", stacklevel=2)
                except OSError:
                    pass  # A lock file needs a folder that can be written. Tune without a lock.
            yield


def _make_plan(device: Device, candidate: Candidate, problem: Problem) -> Plan:
    """Return a plan that runs a candidate. Its reasons are empty, as it is executed and not shown."""
    return Plan(
        problem, device, candidate.kernel, candidate.config, source="", reason="", alternatives=(),
        projection=candidate.projection,
    )  # fmt: skip


def _prepare_call(device: Device, candidate: Candidate, example: Example) -> Callable:
    """Return a function that runs the candidate on the example, as a model runs it after its first calls.

    If calls of a model are served by a cached route, the function uses that route, too.
    """
    gru, x, keywords = example.gru, example.x, example.keywords
    if candidate == TORCH and not keywords and not gru.reverse:
        return functools.partial(nn.GRU.forward, gru, x)
    plan = _make_plan(device, candidate, example.call.problem)
    module = copy.copy(gru)
    if not keywords and candidate != TORCH:
        for _ in range(2):  # the cache prepares a route at the second call of a signature
            call_cache.cache_route(module, x, None, example.call, plan, *execute.run(example.call, plan))
        if call_cache.find_route(module, x, None):
            return functools.partial(module, x)
    return lambda: execute.run(bind_gru(module, x, None, **keywords), plan)
