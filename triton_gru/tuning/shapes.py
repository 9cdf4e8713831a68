"""Problems to tune: those of a model's GRUs, or those recorded in a run."""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from ..call.options import Options
from ..call.readable import is_plain
from ..call.torch_state import autocast_dtype, is_wrapping
from ..modules import GRU, GRUCell
from ..plan.problem import DTYPES, LAYOUTS, Key, Problem
from ..plan.tables import store
from ..stream import Stream, find_step_plan

_CELLS = nn.GRUCell, GRUCell
_CLASSES = nn.GRU, GRU, *_CELLS


def shapes_of(
    model: nn.Module, batch_sizes: Iterable[int] = (1,), steps: Iterable[int] = (100,), dtype: torch.dtype | None = None
) -> list[Problem]:
    """Return the problems of a model's GRUs and GRUCells, those of torch and of this package, for `tune`.

    Args:
        model: a module that contains GRUs.
        batch_sizes: batch sizes that the model will be called with.
        steps: numbers of time steps that the model will be called with. A cell always has one.
        dtype: the dtype that the GRUs will compute in, such as autocast's. Default: the dtype of their parameters.

    Returns:
        A problem for each different GRU, batch size and number of steps, with dense input. float64 is left out, as no
        kernel serves it.
    """
    problems, batch_sizes, steps = [], list(batch_sizes), list(steps)
    for module in model.modules():
        if not isinstance(module, _CLASSES):
            continue
        is_cell = isinstance(module, _CELLS)
        module_dtype = dtype or (module.weight_hh if is_cell else module.weight_hh_l0).dtype
        sizes = itertools.product(batch_sizes, (1,) if is_cell else steps)
        options = Options.from_module(module)
        problems += [options.to_problem(num_steps, batch, module_dtype) for batch, num_steps in sizes]
    return [problem for problem in dict.fromkeys(problems) if problem.dtype in DTYPES.values()]


class Recorded(Sequence[Problem]):
    """A sequence of problems to tune. The problems whose calls took the most steps in total come first.

    The steps of a call, rounded as in its problem, count once for each layer.

    Attributes:
        seen: problem, with its exact number of steps -> number of calls.
        largest: key -> the problem with the largest batch. Tuning does not distinguish problems of one key.
    """

    def __init__(self) -> None:
        self.seen: Counter[Problem] = Counter()
        self._total_steps: Counter[Key] = Counter()  # steps of all calls, as rounded in the problems, times layers
        self.largest: dict[Key, Problem] = {}

    def count_call(self, problem: Problem, calls: int = 1) -> None:
        """Count calls of a problem. The problem to tune has the steps rounded up to a power of two."""
        self.seen[problem] += calls
        rounded_steps = 1 << (problem.steps - 1).bit_length()
        self.add(dataclasses.replace(problem, steps=rounded_steps), calls)

    def add(self, problem: Problem, calls: int = 1) -> None:
        """Add a problem to tune, with the weight of ``calls`` calls."""
        key = problem.key()
        self._total_steps[key] += calls * problem.steps * problem.num_layers
        if key not in self.largest or problem.batch_size > self.largest[key].batch_size:
            self.largest[key] = problem

    def save(self, path: str | os.PathLike) -> None:
        """Write the problems of `seen` and their counts to a small JSON file. An existing file is replaced.

        ``triton-gru tune --recorded FILE`` tunes them, on this machine or another. `load` reads the file.

        Raises:
            OSError: the file cannot be written. An existing file stays unchanged.
        """
        seen = [_problem_to_json(problem) | {"calls": calls} for problem, calls in self.seen.items()]
        store.replace_file(pathlib.Path(path), json.dumps({"schema": SCHEMA, "problems": seen}, indent=1))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Recorded":
        """Return the problems and counts in a file that `save` wrote. Every value in the file is checked.

        Raises:
            ValueError: `save` did not write this file.
            OSError: the file cannot be read.
        """
        recorded = cls()
        try:
            content = store.read_json(pathlib.Path(path), _MAX_BYTES)
            if not isinstance(content, dict) or content.get("schema") != SCHEMA or content["schema"] is True:
                raise ValueError(f"it is not of schema {SCHEMA}")
            if not isinstance(content.get("problems"), list):
                raise ValueError("it has no list of problems")
            for number, raw in enumerate(content["problems"]):
                try:
                    problem, calls = _problem_from_json(raw)
                    recorded.count_call(problem, calls)
                except ValueError as error:
                    raise ValueError(f"problem {number}: {error}") from None
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)} was not written by record_shapes' save(): {error}") from None
        return recorded

    @overload
    def __getitem__(self, index: int) -> Problem: ...

    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...

    def __getitem__(self, index):
        return [self.largest[key] for key, _ in self._total_steps.most_common()][index]

    def __len__(self) -> int:
        return len(self.largest)


SCHEMA = 1  # of a file of recorded problems
_MAX_BYTES = 64 << 20  # of such a file: about 230000 problems of 290 bytes
# The values that a file may have in fields that are not sizes.
_CHOICES = {
    "dtype": (*DTYPES,), "precision": ("tf32", "ieee"), "layout": LAYOUTS,
    **dict.fromkeys(("bidirectional", "reset_after", "reverse", "resets"), (False, True)),
}  # fmt: skip
_SIZES = ("steps", "batch_size", "input_size", "hidden_size", "num_layers")


def _problem_to_json(problem: Problem) -> dict:
    """Return the fields of a problem that a file has. The dtype is a name such as "float16"."""
    values = {name: getattr(problem, name) for name in (*_SIZES, *_CHOICES)}
    return values | {"dtype": str(problem.dtype)[6:]}


def _problem_from_json(raw) -> tuple[Problem, int]:
    """Return a problem and its number of calls. Raise ValueError if a field is missing, unknown or invalid."""
    if not isinstance(raw, dict) or set(raw) != {*_SIZES, *_CHOICES, "calls"}:
        raise ValueError(f"it must have exactly the fields {', '.join((*_SIZES, *_CHOICES))} and calls")
    for name, value in raw.items():
        max_value = (1 << 53) if name == "calls" else (1 << 31)
        if name in _CHOICES:
            is_valid = any(type(value) is type(choice) and value == choice for choice in _CHOICES[name])
        else:
            is_valid = type(value) is int and 1 <= value <= max_value
        if not is_valid:
            raise ValueError(f"{name} may not be {str(value)[:100]!r}")
    fields = {name: value for name, value in raw.items() if name != "calls"}
    return Problem(**fields | {"dtype": DTYPES[raw["dtype"]]}), raw["calls"]


@contextlib.contextmanager
def record_shapes() -> Iterator[Recorded]:
    """Record the shapes of all calls of GRUs and GRUCells in this process, those of torch and of this package.

    Frames of a `triton_gru.Stream` are recorded as calls with one step.

    Example:

        with triton_gru.record_shapes() as shapes:
            serve(model)
        shapes.save("shapes.json")

    Then, on this machine or another one with the same GPU, when it is idle:

        triton-gru tune --recorded shapes.json

    `tune` also takes ``shapes`` itself.

    To be tuned, steps are rounded up to a power of two. T varies most from call to call, and matters least for the
    choice of a kernel. ``shapes.seen`` counts calls with their exact steps.

    These calls are not recorded:

    - in float64, or in training with grad enabled
    - of a subclass or module with a `forward` of its own
    - in torch.compile, export or a trace, under a dispatch mode, or in a transform of torch.func
    - on fake tensors, other subclasses of Tensor, or the meta device
    - of the module's `forward` instead of the module
    - with an empty batch, or with a hook that changes the type or size of the input or output
    """
    recorded = Recorded()
    with _lock:
        _recorders.append(recorded)
        for module_class in _CLASSES:
            module_class.__call__ = _call_and_record
        Stream.__call__ = _run_and_record_frame
    try:
        yield recorded
    finally:
        with _lock:
            _recorders.remove(recorded)
            if not _recorders:
                for module_class in _CLASSES:
                    del module_class.__call__  # nn.Module.__call__ serves again
                Stream.__call__ = _run_frame


_recorders: list[Recorded] = []
_lock = threading.Lock()
_run_frame = Stream.__call__


def _call_and_record(module, *args, **kwargs):
    """Call ``module``, and pass the call's problem to the recorders, if it is one that `record_shapes` records.

    This replaces `__call__`, since torch.export in strict mode fails with a global forward hook.
    """
    output = nn.Module.__call__(module, *args, **kwargs)
    # Return here when compiling or tracing: the code below must not enter the graph, and sizes are symbols there.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return output
    # A forward of a subclass may take other arguments than that of a GRU or cell.
    has_known_forward = "forward" not in vars(module) and type(module).forward in [
        module_class.forward for module_class in _CLASSES
    ]
    if has_known_forward and not (module.training and torch.is_grad_enabled()):
        arguments = dict(zip(("input", "hx", "lengths", "resets"), args)) | kwargs
        problem = _find_problem(module, arguments, output)
        if problem is not None and problem.dtype in DTYPES.values() and not problem.is_empty:
            _count_call(problem)
    return output


def _run_and_record_frame(stream: Stream, x):
    """Run a frame of ``stream``, and pass its problem to the recorders if a kernel serves the frame.

    If the module serves the frame, the module's call is recorded instead. This replaces `Stream.__call__`.
    """
    output = _run_frame(stream, x)
    if not (torch.compiler.is_compiling() or torch.jit.is_tracing()) and (plan := find_step_plan(stream, x)):
        _count_call(plan.problem)
    return output


def _count_call(problem: Problem) -> None:
    """Pass a call's problem to all recorders."""
    for recorded in list(_recorders):
        recorded.count_call(problem)


def _find_problem(module, arguments: dict, output) -> Problem | None:
    """Return the problem of the call ``module(**arguments)``; None if its input is not plain data.

    Return None also for the meta device, in a torch.func transform or under a dispatch mode. Return None also if the
    output does not fit the input. Then a user's hook has replaced the input or output by one of another type or size.
    """
    input = arguments.get("input")
    is_cell, is_packed = isinstance(module, _CELLS), isinstance(input, PackedSequence)
    result = output if is_cell or not isinstance(output, tuple) else output[0]
    if type(result) is not type(input):
        return None
    data, result_data = (input.data, result.data) if is_packed else (input, result)
    if not is_plain(data) or data.shape[:-1] != result_data.shape[:-1] or data.device.type == "meta":
        return None
    if is_wrapping():
        return None
    if is_packed:
        steps, batch = len(input.batch_sizes), int(input.batch_sizes[0])
    elif is_cell:
        steps, batch = 1, input.size(0) if input.dim() == 2 else 1
    elif input.dim() == 3:
        steps, batch = input.shape[1::-1] if module.batch_first else input.shape[:2]
    else:
        steps, batch = input.size(0), 1
    dtype = data.dtype if data.dtype == torch.float64 else autocast_dtype(data.device) or data.dtype
    layout = "packed" if is_packed else "dense" if arguments.get("lengths") is None else "lengths"
    resets = arguments.get("resets") is not None
    return Options.from_module(module).to_problem(steps, batch, dtype, layout=layout, resets=resets)
