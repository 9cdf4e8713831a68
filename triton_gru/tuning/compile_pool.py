"""Compiles in processes of their own, side by side: what they compile stays in caches on disk, for all processes."""

import contextlib
import io
import math
import os
import pathlib
import pickle
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from ..launch import execute
from ..plan.device import Device
from ..plan.problem import Problem
from .example import open_example, shorten_problem
from .space import Candidate

_MOST_WORKERS = 16
# Bytes of stack beyond which registers are put away in the loop, and not only before it, where all weights come.
MAX_STACK_BYTES = 384


class AbsentDriver:
    """A driver of a GPU that is not there. Each architecture is a device of its own, for the kernels' caches."""

    def __init__(self, device: Device):
        self.device = device

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.device.compute_capability, 32)

    def get_current_device(self) -> str:
        return self.device.name

    def get_current_stream(self, device=None) -> int:
        return 0


def set_compile_target(device: Device) -> None:
    """Let Triton compile for ``device`` in this process from here on."""
    driver.set_active(AbsentDriver(device))


def compile_candidate(problem: Problem, device: Device, candidate: Candidate) -> str:
    """Compile all that a call launches, for a GPU that need not be there; return the reason why the candidate is out.

    It is empty if the candidate is in.
    """
    set_compile_target(device)
    try:
        *projection, scan = compile_call(problem, candidate, device)
        chosen = [scan, *projection] if candidate.projection else [scan]
        stack = max(map(stack_bytes, chosen))
    finally:
        driver.set_active(None)  # the GPU that is there
    return "it spills registers" if stack > MAX_STACK_BYTES else ""


def compile_call(problem: Problem, candidate: Candidate, device: Device) -> list:
    """Compile all that a call launches, for the GPU that Triton takes for its own; return what is compiled, in order.

    What is done by cuBLAS is left out.
    """
    with open_example(shorten_problem(problem), "meta") as each:
        results = execute.allocate(each.call)
        launches = execute.launches(each.call, candidate.config, device, *results, projection=candidate.projection)
        return [compiled for launch in launches if (compiled := launch.compile()) is not None]


def stack_bytes(kernel) -> int:
    """Return the bytes of stack that a thread of a compiled kernel takes, 0 where nobody can tell."""
    if "cubin" not in kernel.asm:
        return 0
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        try:
            command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
            usage = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, RuntimeError, subprocess.CalledProcessError):
            return 0
    return int(re.findall(r"STACK:(\d+)", usage.stdout)[-1])


def run_in_parallel(calls: Iterable[Callable[[], object]]) -> None:
    """Make picklable calls in a `Pool`, for what they leave on disk.

    What fails here fails again, with its message, where its result is needed.
    """
    with contextlib.closing(Pool(seconds_each=600)) as pool:
        for _ in pool.run(calls):
            pass


class Pool:
    """Processes that make calls, each within ``seconds_each``, until closed.

    They have the modules and GPUs of this process. One that dies or is late is replaced.
    """

    def __init__(self, seconds_each: int = 120):  # the compiler may explode, and others wait
        self._seconds_each = seconds_each
        self._workers = [_Worker() for _ in range(min(len(os.sched_getaffinity(0)), _MOST_WORKERS))]

    def run(self, calls: Iterable[Callable], seconds: float = math.inf) -> Iterator[tuple[Callable, str]]:
        """Begin calls in their order, and yield each that is done within ``seconds``, with a reason.

        The reason is what the call has returned, or why it failed; empty if it has returned nothing.
        """
        end = time.monotonic() + seconds
        todo = [(call, pickle.dumps(call)) for call in calls][::-1]
        idle, busy = [*self._workers], {}
        try:
            while busy or (todo and time.monotonic() < end):
                while todo and idle and time.monotonic() < end:
                    (call, task), worker = todo.pop(), idle.pop()
                    worker.begin(task)
                    busy[worker] = call, min(end, time.monotonic() + self._seconds_each)
                first = min((limit for _, limit in busy.values()), default=end)
                answered = wait(busy, max(0.0, first - time.monotonic()))
                for worker in [each for each in busy if each in answered or busy[each][1] <= time.monotonic()]:
                    call, limit = busy.pop(worker)
                    idle.append(worker)
                    if worker in answered:
                        yield call, worker.answer()
                        continue
                    worker.kill()
                    if limit < end:
                        yield call, f"not compiled within {self._seconds_each} s"
        finally:
            for worker in busy:
                worker.kill()

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.kill()


class _Worker:
    """A process that makes one call after another. It starts with the first, and anew with the first after its end."""

    def __init__(self):
        self._process: subprocess.Popen | None = None

    def begin(self, task: bytes) -> None:
        if self._process is None:
            self._start()
        with contextlib.suppress(OSError):  # the process has died, and `answer` says so
            self._connection.send_bytes(task)

    def answer(self) -> str:
        """Return the answer, or what became of the process."""
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            self._printed.seek(0)
            words = [line for line in self._printed.read().decode(errors="replace").splitlines() if line.strip()]
            self.kill()
            return " ".join(["the compiler crashed", *words[-1:]])[:170]

    def fileno(self) -> int:
        """Return the file descriptor that can be read once there is an answer, for `wait`."""
        return self._connection.fileno()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._connection.close()
            self._printed.close()
            self._process = None

    def _start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)
        self._connection, theirs = Pipe()
        with theirs:
            code = f"from {__name__} import serve; serve({theirs.fileno()}, {_name_of_main()!r})"
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], env=environment, pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=self._printed, stderr=self._printed,
            )  # fmt: skip


def _name_of_main() -> str:
    """Return the name by which a worker imports what is ``__main__`` here: a module, or a script in sys.path[0]."""
    main = sys.modules["__main__"]
    return main.__spec__.name if main.__spec__ else pathlib.Path(getattr(main, "__file__", "")).stem


def serve(connection: int, main: str) -> None:
    """Make the calls that come by a file descriptor, from a process whose ``__main__`` is the module ``main``."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str):
            return super().find_class(main if module == "__main__" else module, name)

    with contextlib.suppress(EOFError), Connection(connection) as asker:
        while True:
            task = io.BytesIO(asker.recv_bytes())
            try:
                answer = str(Unpickler(task).load()() or "")
            except Exception as failure:
                answer = summarize_error(failure)
            asker.send(answer)


def summarize_error(failure: Exception) -> str:
    return f"{type(failure).__name__}: {failure}".strip().splitlines()[0][:200]
