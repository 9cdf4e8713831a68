"""Lets the programs of a launch wait for each other in Triton's interpreter, which runs them one after another.

There each program is a thread, and one of them runs at a time. One that waits in vain lets the others have their turns.
"""

import functools
import inspect
import threading

import numpy as np
import triton.language as tl  # noqa: F401 (what the interpreter replaces where `start` is defined)
from triton.runtime.interpreter import InterpretedFunction, interpreter_builder


def in_turns(kernel):
    """Return ``kernel``, whose programs may wait for each other; as it is where it is compiled."""
    return _InTurns(kernel.fn) if isinstance(kernel, InterpretedFunction) else kernel


def missing(words, bits) -> bool:
    """Return whether an element of the words, a tuple of tensors, has not come. If so, all others have had a turn."""
    found = any(np.any(each.handle.data.view(f"int{bits}") == -1) for each in words)
    program = threading.current_thread()
    if isinstance(program, _Program):
        program.waited(in_vain=found)
    elif found:
        raise RuntimeError("a program waits for what no other is there to send")
    return found


# Triton refuses a kernel that mentions a function of Python's, even where it is not called, unless told it is its own.
missing.__triton_builtin__ = True


class _InTurns(InterpretedFunction):
    def rewrite(self):
        """Return what the interpreter calls for each program in turn; all of them run in the last call."""
        run, programs = super().rewrite(), []

        @functools.wraps(run)
        def start(**args):
            programs.append(_Program(functools.partial(run, **args)))
            if len(programs) == interpreter_builder.grid_dim[0]:
                _take_turns(programs)

        start.__signature__ = inspect.signature(run)
        return start


def _take_turns(programs: list["_Program"]) -> None:
    try:
        while left := [each for each in programs if not each.is_over]:
            went_on = [each.went_on() for each in left]
            if not any(went_on):
                raise RuntimeError("each program of a launch waits for another")
    finally:
        for each in programs:
            each.stop()


class _Stopped(BaseException):
    """Ends a program that is not to come to its end."""


class _Program(threading.Thread):
    """One program; ``is_over`` when it has come to its end."""

    def __init__(self, run):
        super().__init__(daemon=True)
        self.is_over = self._stopped = self._went_on = False
        self._run, self._failure = run, None
        self._index = interpreter_builder.grid_idx
        self._mine, self._others = threading.Semaphore(0), threading.Semaphore(0)

    def run(self):
        try:
            self._run()
        except _Stopped:
            return
        except Exception as failure:
            self._failure = failure
        self.is_over = self._went_on = True
        self._others.release()

    def went_on(self) -> bool:
        """Return, when it has had its turn, whether it came any further."""
        begins = self.ident is None
        self._went_on = begins
        interpreter_builder.grid_idx = self._index
        if begins:
            self.start()
        else:
            self._mine.release()
        self._others.acquire()
        if self._failure is not None:
            raise self._failure
        return self._went_on

    def waited(self, in_vain: bool) -> None:
        """Called by the program itself: lets the others have their turns if it was in vain."""
        if not in_vain:
            self._went_on = True
            return
        self._others.release()
        self._mine.acquire()
        if self._stopped:
            raise _Stopped

    def stop(self) -> None:
        if self.ident is not None and not self.is_over:
            self._stopped = True
            self._mine.release()
            self.join()
