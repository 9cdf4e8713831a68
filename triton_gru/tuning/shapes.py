"""Which problems to tune: those of a model, or of a run that was watched."""

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

_CELLS = nn.GRUCell, GRUCell
_CLASSES = nn.GRU, GRU, *_CELLS


def shapes_of(
    model: nn.Module, batch_sizes: Iterable[int] = (1,), steps: Iterable[int] = (100,), dtype: torch.dtype | None = None
) -> list[Problem]:
    """Return the problems that the GRUs of a model, torch's and ours, are for batches and numbers of steps to come.

    Args:
        dtype: that the model will run in (autocast, say), if it is not the one of its parameters.

    Returns:
        One for each kind of GRU (a cell has one step), batch size and number of steps; none for float64, which no
        kernel computes in.
    """
    found, batch_sizes, steps = [], list(batch_sizes), list(steps)
    for module in model.modules():
        if not isinstance(module, _CLASSES):
            continue
        is_cell = isinstance(module, _CELLS)
        used = dtype or (module.weight_hh if is_cell else module.weight_hh_l0).dtype
        sizes = itertools.product(batch_sizes, (1,) if is_cell else steps)
        found += [Options.from_module(module).to_problem(number, batch, used) for batch, number in sizes]
    return [problem for problem in dict.fromkeys(found) if problem.dtype in DTYPES.values()]


class Recorded(Sequence[Problem]):
    """A sequence of the problems to tune, those first that took the most steps in all.

    Attributes:
        seen: the problems as they were, and how often each was called.
        largest: by key, the problem of the largest batch among those that tuning does not tell apart.
    """

    def __init__(self) -> None:
        self.seen: Counter[Problem] = Counter()
        self._calls: Counter[Key] = Counter()
        self.largest: dict[Key, Problem] = {}

    def count_call(self, problem: Problem, calls: int = 1) -> None:
        """Count calls of a problem. Its steps are tuned as those of the next power of two."""
        self.seen[problem] += calls
        self.add(dataclasses.replace(problem, steps=1 << (problem.steps - 1).bit_length()), calls)

    def add(self, problem: Problem, calls: int = 1) -> None:
        """Put a problem among those to tune, as so many calls of it."""
        key = problem.key()
        self._calls[key] += calls * problem.steps * problem.num_layers
        if key not in self.largest or problem.batch_size > self.largest[key].batch_size:
            self.largest[key] = problem

    def save(self, path: str | os.PathLike) -> None:
        """Write the problems as they were seen, with their counts, to a small JSON file in place of what is there.

        ``triton-gru tune --recorded FILE`` tunes them, on this machine or another; `load` reads the file.

        Raises:
            OSError: it cannot be written. A file that was there is as it was.
        """
        seen = [_as_json(problem) | {"calls": calls} for problem, calls in self.seen.items()]
        store.replace_file(pathlib.Path(path), json.dumps({"schema": SCHEMA, "problems": seen}, indent=1))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Recorded":
        """Return what `save` has written. The file is not trusted.

        Raises:
            ValueError: it is no file of recorded shapes.
            OSError: it cannot be read.
        """
        recorded = cls()
        try:
            whole = store.read_json(pathlib.Path(path), _MOST_BYTES)
            if not isinstance(whole, dict) or whole.get("schema") != SCHEMA or whole["schema"] is True:
                raise ValueError(f"it is not of schema {SCHEMA}")
            if not isinstance(whole.get("problems"), list):
                raise ValueError("it has no list of problems")
            for number, raw in enumerate(whole["problems"]):
                try:
                    recorded.count_call(*_from_json(raw))
                except ValueError as error:
                    raise ValueError(f"problem {number}: {error}") from None
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)} is no file that record_shapes' save() wrote: {error}") from None
        return recorded

    @overload
    def __getitem__(self, index: int) -> Problem: ...

    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...

    def __getitem__(self, index):
        return [self.largest[key] for key, _ in self._calls.most_common()][index]

    def __len__(self) -> int:
        return len(self.largest)


# Of a file of recorded problems: the number of its form, and its most bytes, for some 300000 problems.
SCHEMA = 1
_MOST_BYTES = 64 << 20
# Of what is no size: what a file may say.
_CHOICES = {
    "dtype": (*DTYPES,), "precision": ("tf32", "ieee"), "layout": LAYOUTS,
    **dict.fromkeys(("bidirectional", "reset_after", "reverse", "resets"), (False, True)),
}  # fmt: skip
_SIZES = ("steps", "batch_size", "input_size", "hidden_size", "num_layers")


def _as_json(problem: Problem) -> dict:
    values = {name: getattr(problem, name) for name in (*_SIZES, *_CHOICES)}
    return values | {"dtype": str(problem.dtype)[6:]}


def _from_json(raw) -> tuple[Problem, int]:
    """Return a problem and its number of calls. Raise ValueError if they are not what `_as_json` makes, and calls."""
    if not isinstance(raw, dict) or set(raw) != {*_SIZES, *_CHOICES, "calls"}:
        raise ValueError(f"it has to have {', '.join((*_SIZES, *_CHOICES))} and calls, nothing else")
    for name, value in raw.items():
        most = (1 << 53) if name == "calls" else (1 << 31)
        if name in _CHOICES:
            right = any(type(value) is type(choice) and value == choice for choice in _CHOICES[name])
        else:
            right = type(value) is int and 1 <= value <= most
        if not right:
            raise ValueError(f"{name} may not be {str(value)[:100]!r}")
    sizes = {name: value for name, value in raw.items() if name != "calls"}
    return Problem(**sizes | {"dtype": DTYPES[raw["dtype"]]}), raw["calls"]


@contextlib.contextmanager
def record_shapes() -> Iterator[Recorded]:
    """Watch what the GRUs of this process are called with, torch's own and ours, to be tuned.

        with triton_gru.record_shapes() as shapes:
            serve(model)
        shapes.save("shapes.json")

    and then, on this machine or another one with such a GPU, when it has nothing else to do:

        triton-gru tune --recorded shapes.json

    `tune` takes ``shapes``, too.

    Steps are those of the next power of two, as T is what varies most and decides least. ``shapes.seen`` counts the
    calls as they were.

    Not recorded are calls of float64 or in training with grad enabled, and those of subclasses whose `forward` is their
    own. Nor are calls that only stand for others: inside torch.compile, export or a trace, under a dispatch mode or a
    transform of torch.func, of fake tensors and other subclasses, and on the meta device.
    """
    recorded = Recorded()
    with _lock:
        _recorders.append(recorded)
        for kind in _CLASSES:
            kind.__call__ = _call_and_record
    try:
        yield recorded
    finally:
        with _lock:
            _recorders.remove(recorded)
            if not _recorders:
                for kind in _CLASSES:
                    del kind.__call__  # nn.Module's own again


_recorders: list[Recorded] = []
_lock = threading.Lock()


def _call_and_record(module, *args, **kwargs):
    """Call ``module`` and tell the recorders.

    In the place of a global forward hook, beside which torch.export in strict mode fails.
    """
    output = nn.Module.__call__(module, *args, **kwargs)
    # First: what compiles or traces is to see nothing of the rest, and its sizes are symbols.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return output
    # A subclass with a forward of its own may take other arguments than a GRU or cell.
    is_grus = "forward" not in vars(module) and type(module).forward in [kind.forward for kind in _CLASSES]
    if is_grus and not (module.training and torch.is_grad_enabled()):
        given = dict(zip(("input", "hx", "lengths", "resets"), args)) | kwargs
        problem = _problem_of_call(module, given, output)
        if problem is not None and problem.dtype in DTYPES.values() and not problem.is_empty:
            for recorded in list(_recorders):
                recorded.count_call(problem)
    return output


def _problem_of_call(module, given: dict, output) -> Problem | None:
    """Return the problem of a call that was served; None if it only stands for one.

    None also if a user's hook has put another input in place of the one ``given``: the output has its sizes.
    """
    input = given.get("input")
    is_cell, is_packed = isinstance(module, _CELLS), isinstance(input, PackedSequence)
    result = output if is_cell or not isinstance(output, tuple) else output[0]
    if type(result) is not type(input):
        return None
    data, made = (input.data, result.data) if is_packed else (input, result)
    if not is_plain(data) or data.shape[:-1] != made.shape[:-1] or data.device.type == "meta":
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
    layout = "packed" if is_packed else "dense" if given.get("lengths") is None else "lengths"
    resets = given.get("resets") is not None
    return Options.from_module(module).to_problem(steps, batch, dtype, layout=layout, resets=resets)
