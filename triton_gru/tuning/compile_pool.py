"""Compiles candidates in parallel processes. The compiled kernels stay in Triton's cache on disk, for all processes."""

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

from ..kernels.projection import input_projection
from ..launch import execute
from ..launch.kernel_launch import Launch
from ..plan.device import Device
from ..plan.problem import Problem
from .example import open_example, shorten_problem
from .space import Candidate

_MAX_WORKERS = 16
# Most bytes of stack of one thread. With more, a kernel also spills in the loop over time, and not only before the
# loop, where it loads all weights.
MAX_STACK_BYTES = 384


class AbsentDriver:
    """A Triton driver for a GPU that this machine may lack.

    It has the methods that Triton calls to compile. The device's name stands for its index, so that the caches of
    kernels keep GPUs apart.
    """

    def __init__(self, device: Device):
        self.device = device

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.device.compute_capability, 32)

    def get_current_device(self) -> str:
        return self.device.name

    def get_current_stream(self, device=None) -> int:
        return 0


def set_compile_target(device: Device) -> None:
    """Make Triton compile for ``device`` in this process, even if this machine lacks that GPU."""
    driver.set_active(AbsentDriver(device))


def compile_candidate(problem: Problem, device: Device, candidate: Candidate) -> str:
    """Compile all launches of a candidate's call, for a GPU that this machine may lack.

    Return the reason to drop the candidate, or ''. An error of the compiler is raised.
    """
    set_compile_target(device)
    try:
        launches = list_launches(problem, candidate, device)
        kernels = {launch.compile(): launch for launch in launches}  # most launches share a few compiled kernels
        # The usual projection is the same in all candidates, so its spills are no reason to drop a candidate. A layer
        # whose input rows are not aligned has the usual projection in a candidate with another tile, too.
        usual = candidate._replace(projection=None)
        usual_launches = launches if candidate == usual else list_launches(problem, usual, device)
        usual_projections = [launch.constants for launch in usual_launches if launch.kernel is input_projection]
        judged_kernels = [kernel for kernel, launch in kernels.items() if launch.constants not in usual_projections]
        stack = max(map(stack_bytes, judged_kernels))
    finally:
        driver.set_active(None)  # this machine's GPU again
    return "it spills registers" if stack > MAX_STACK_BYTES else ""


def list_launches(problem: Problem, candidate: Candidate, device: Device) -> list[Launch]:
    """Return the launches of a short call of a candidate (`shorten_problem`), on the meta device.

    Products of cuBLAS are left out.
    """
    with open_example(shorten_problem(problem), "meta") as example:
        results = execute.allocate(example.call)
        launches = execute.launches(example.call, candidate.config, device, *results, projection=candidate.projection)
        return [launch for launch in launches if isinstance(launch, Launch)]


def stack_bytes(kernel) -> int:
    """Return the bytes of stack that a thread of a compiled kernel takes, or 0 if unknown."""
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
    """Make picklable calls in a `Pool`, to fill caches on disk.

    A call that fails, or takes more than ten minutes, is ignored. If its result is needed later, the caller makes the
    call again, and gets the error.
    """
    with contextlib.closing(Pool(seconds_each=600)) as pool:
        for _ in pool.run(calls):
            pass


class Pool:
    """A pool of processes that run functions until the pool is closed.

    The processes import from the same folders and see the same GPUs as this process. A process that dies or takes too
    long is replaced.

    Args:
        seconds_each: seconds that a function may take. The compiler needs very long for some configurations, which
            would hold up all others.
    """

    def __init__(self, seconds_each: int = 120):
        self._seconds_each = seconds_each
        self._workers = [_Worker() for _ in range(min(len(os.sched_getaffinity(0)), _MAX_WORKERS))]

    def run(self, calls: Iterable[Callable], seconds: float = math.inf) -> Iterator[tuple[Callable, str]]:
        """Call each of ``calls``, picklable functions, in a process. Yield (function, text) as each call ends.

        The text is the result, '' for a false result such as None, or the reason why the call failed. A call that takes
        longer than ``seconds_each`` has failed. After ``seconds``, calls that have not begun or not ended are dropped
        without a result.
        """
        end = time.monotonic() + seconds
        waiting = [(call, pickle.dumps(call)) for call in calls][::-1]  # the last call of this list is begun first
        idle, busy = [*self._workers], {}  # busy: worker -> (call, deadline)
        try:
            while busy or (waiting and time.monotonic() < end):
                while waiting and idle and time.monotonic() < end:
                    (call, pickled_call), worker = waiting.pop(), idle.pop()
                    worker.begin(pickled_call)
                    busy[worker] = call, min(end, time.monotonic() + self._seconds_each)
                next_deadline = min((deadline for _, deadline in busy.values()), default=end)
                answered = wait(busy, max(0.0, next_deadline - time.monotonic()))
                is_overdue = {worker: deadline <= time.monotonic() for worker, (_, deadline) in busy.items()}
                for worker in [worker for worker in busy if worker in answered or is_overdue[worker]]:
                    call, deadline = busy.pop(worker)
                    idle.append(worker)
                    if worker in answered:
                        yield call, worker.receive_answer()
                        continue
                    worker.kill()  # the worker's next call starts a new process
                    if deadline < end:
                        yield call, f"not compiled within {self._seconds_each} s"
        finally:
            for worker in busy:
                worker.kill()

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.kill()


class _Worker:
    """A process that runs one function after another. The first function starts it, as does the next after `kill`."""

    def __init__(self):
        self._process: subprocess.Popen | None = None

    def begin(self, pickled_call: bytes) -> None:
        """Send a function to the process, which is started if necessary."""
        if self._process is None:
            self._start()
        with contextlib.suppress(OSError):  # the process has died; `receive_answer` reports it
            self._connection.send_bytes(pickled_call)

    def receive_answer(self) -> str:
        """Return the text that the process sends.

        If the process has died, return a text that says so, with the last line that the process printed, if any.
        """
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            self._printed.seek(0)
            lines = [line for line in self._printed.read().decode(errors="replace").splitlines() if line.strip()]
            self.kill()
            return " ".join(["the compiler crashed", *lines[-1:]])[:170]

    def fileno(self) -> int:
        """Return a file descriptor that becomes readable when the process answers or dies. `wait` calls this method."""
        return self._connection.fileno()

    def kill(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._connection.close()
            self._printed.close()
            self._process = None

    def _start(self) -> None:
        """Start the process, with a connection to it and a temporary file for its output."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process runs)
        self._connection, worker_end = Pipe()
        with worker_end:
            call = f"answer_calls({worker_end.fileno()}, {_name_main_module()!r})"
            code = f"from {__name__} import answer_calls; {call}"
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], env=environment, pass_fds=[worker_end.fileno()],
                stdin=subprocess.DEVNULL, stdout=self._printed, stderr=self._printed,
            )  # fmt: skip


def _name_main_module() -> str:
    """Return the name by which a worker imports this process's ``__main__``: a module, or a script in sys.path[0].

    Return '' if ``__main__`` has no file, as in an interactive session.
    """
    main = sys.modules["__main__"]
    return main.__spec__.name if main.__spec__ else pathlib.Path(getattr(main, "__file__", "")).stem


def answer_calls(file_descriptor: int, main_module: str) -> None:
    """Run the pickled functions that the parent process sends, until the parent closes the connection.

    Answer each with the text of its result, or with a summary of its error. This is the main function of a worker.

    Args:
        file_descriptor: the worker's end of the connection.
        main_module: the name of the module that the parent runs as ``__main__``. Functions of that module are pickled
            as members of ``__main__``, which is another module here.
    """

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str):
            return super().find_class(main_module if module == "__main__" else module, name)

    with contextlib.suppress(EOFError), Connection(file_descriptor) as parent:
        while True:
            pickled_call = io.BytesIO(parent.recv_bytes())
            try:
                call = Unpickler(pickled_call).load()
                answer = str(call() or "")
            except Exception as error:
                answer = summarize_error(error)
            parent.send(answer)


def summarize_error(error: Exception) -> str:
    """Return the type and the first line of an error, in at most 200 characters."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
