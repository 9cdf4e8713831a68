"""Compiles candidates in processes of their own, for a GPU that they need not have, and reads what came out.

What they compile stays in Triton's cache on disk, where the process that measures finds it. Run as a module this is the
worker: tasks come pickled on standard input, answers go to standard output.
"""

import contextlib
import os
import pathlib
import pickle
import queue
import re
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from ..launch import execute
from ..plan.device import Device
from ..plan.problem import Problem
from .example import example
from .space import Candidate

# One that takes longer is out: the compiler may explode, and others wait.
_SECONDS_EACH = 120
_MOST_WORKERS = 16
# Bytes of stack beyond which registers are put away in the loop, and not only before it, where all weights come.
MOST_STACK = 384


@dataclass(frozen=True)
class Facts:
    """What a compiled scan takes: registers of a thread, bytes of its stack, bytes of shared memory."""

    registers: int
    stack: int
    shared: int


class AbsentDriver:
    """Stands where Triton looks for a GPU. Each architecture is a device of its own, for the kernels' caches."""

    def __init__(self, device: Device):
        self.device = device

    def get_current_target(self) -> GPUTarget:
        if self.device.isa == "ptx":
            return GPUTarget("cuda", self.device.compute_capability, 32)
        return GPUTarget("hip", self.device.arch, 64)

    def get_current_device(self) -> str:
        return self.device.name

    def get_current_stream(self, device=None) -> int:
        return 0


def pretend(device: Device) -> None:
    """From here on Triton compiles for ``device``, in this process."""
    driver.set_active(AbsentDriver(device))


def compiled(problem: Problem, candidate: Candidate, device: Device) -> Facts | None:
    """Compiles all that a call launches, for the GPU that Triton takes for its own; the facts of the scan, if known."""
    found = None
    with example(problem, "meta", compiled_only=True) as each:
        for launch_ in execute.launches(each.call, candidate.config, device, *execute.allocate(each.call)):
            if (kernel := launch_.compile()) is not None:
                found = kernel
    return _facts(found)


def _facts(kernel) -> Facts | None:
    if "cubin" not in kernel.asm:
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        try:
            tool = knobs.nvidia.cuobjdump.path
            usage = subprocess.run(
                [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
            )
        except (OSError, RuntimeError, subprocess.CalledProcessError):
            return None
    registers, stack = (int(re.findall(rf"{name}:(\d+)", usage.stdout)[-1]) for name in ("REG", "STACK"))
    return Facts(registers, stack, kernel.metadata.shared)


class Compilers:
    """Processes that compile for ``device`` side by side, until closed."""

    def __init__(self, device: Device):
        self._workers = [_Worker(device) for _ in range(min(len(os.sched_getaffinity(0)), _MOST_WORKERS))]

    def compile(self, problem: Problem, candidates: list[Candidate], seconds: float) -> Iterator[tuple[Candidate, str]]:
        """Each candidate, as it is done, with the reason why it is out; empty if it is in.

        Those that are not done after so many seconds do not come.
        """
        end = time.monotonic() + seconds
        todo, done = queue.SimpleQueue(), queue.SimpleQueue()
        for candidate in candidates:
            todo.put(candidate)

        def work(worker: _Worker) -> None:
            with contextlib.suppress(queue.Empty):
                while time.monotonic() < end:
                    candidate = todo.get_nowait()
                    done.put((candidate, worker.compile(problem, candidate, end)))
            done.put(None)

        running = min(len(candidates), len(self._workers))
        for worker in self._workers[:running]:
            threading.Thread(target=work, args=(worker,), daemon=True).start()
        while running:
            answer = done.get()
            if answer is None:
                running -= 1
            elif answer[1] is not None:
                yield answer

    def close(self) -> None:
        """Ends them, in the midst of their work if need be."""
        for worker in self._workers:
            worker.stop()


class _Worker:
    """A process that compiles one candidate after another, and is replaced if it dies or takes too long."""

    def __init__(self, device: Device):
        self._device = device
        self._process: subprocess.Popen | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the worker)
        self._stopped = False

    def compile(self, problem: Problem, candidate: Candidate, end: float) -> str | None:
        """Why the candidate is out, empty if it is in, None if ``end`` came before."""
        limit = min(end, time.monotonic() + _SECONDS_EACH)
        try:
            if self._process is None and not self._stopped:
                self._start()
            if self._stopped:
                raise EOFError
            pickle.dump((problem, candidate, self._device), self._process.stdin)
            self._process.stdin.flush()
            if not select.select([self._process.stdout], [], [], max(0.0, limit - time.monotonic()))[0]:
                self._kill()
                return None if limit == end else f"not compiled within {_SECONDS_EACH} s"
            return pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            self._kill()
            return None if self._stopped else f"the compiler crashed {self._last_words()}".strip()

    def _start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        package = str(pathlib.Path(__file__).parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said,
        )  # fmt: skip

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").split("\n")
        self._said.truncate(0)
        return next((line.strip()[:150] for line in reversed(lines) if line.strip()), "")

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()
            self._process = None

    def stop(self) -> None:
        self._stopped = True
        self._kill()
        self._said.close()


def _serve() -> None:
    """Answers task by task until there are no more."""
    tasks, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what compilers print is not an answer
    while True:
        try:
            problem, candidate, device = pickle.load(tasks)
        except EOFError:
            return
        pretend(device)
        try:
            facts = compiled(problem, candidate, device)
            spills = facts is not None and facts.stack > MOST_STACK
            answer = "it spills registers" if spills else ""
        except Exception as failure:
            answer = f"{type(failure).__name__}: {failure}".strip().splitlines()[0][:200]
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    _serve()
