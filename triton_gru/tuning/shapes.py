"""Which problems to tune: those of a model, or of a run that was watched."""

import contextlib
import dataclasses
import itertools
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from ..call.options import Options
from ..call.readable import is_plain
from ..call.torch_state import autocast_dtype, is_wrapping
from ..modules import GRU, GRUCell
from ..plan.problem import DTYPES, Key, Problem

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
        found += [Options.of(module).problem(number, batch, used) for batch, number in sizes]
    return [problem for problem in dict.fromkeys(found) if problem.dtype in DTYPES.values()]


class Recorded(Sequence):
    """A sequence of the problems to tune, those first that took the most steps in all.

    Attributes:
        seen: the problems as they were, and how often each was called.
        largest: by key, the problem of the largest batch among those that tuning does not tell apart.
    """

    def __init__(self):
        self.seen: Counter[Problem] = Counter()
        self._calls: Counter[Key] = Counter()
        self.largest: dict[Key, Problem] = {}

    def add(self, problem: Problem) -> None:
        key = problem.key()
        self._calls[key] += problem.steps * problem.num_layers
        if key not in self.largest or problem.batch_size > self.largest[key].batch_size:
            self.largest[key] = problem

    def __getitem__(self, index):
        return [self.largest[key] for key, _ in self._calls.most_common()][index]

    def __len__(self) -> int:
        return len(self.largest)


@contextlib.contextmanager
def record_shapes() -> Iterator[Recorded]:
    """Watch what the GRUs of this process are called with, torch's own and ours, to be tuned.

        with triton_gru.record_shapes() as shapes:
            serve(model)
        triton_gru.tune(shapes, budget=300)

    Steps are those of the next power of two, as T is what varies most and decides least. ``shapes.seen`` counts the
    calls as they were. Not recorded are
    calls of float64 or in training with grad enabled, and those of subclasses whose `forward` is their own. Nor are
    calls that only stand for others: inside torch.compile, export or a trace, under a dispatch mode or a transform of
    torch.func, of fake tensors and other subclasses, and on the meta device.
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
            rounded = dataclasses.replace(problem, steps=1 << (problem.steps - 1).bit_length())
            for recorded in list(_recorders):
                recorded.seen[problem] += 1
                recorded.add(rounded)
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
    return Options.of(module).problem(steps, batch, dtype, layout=layout, resets=resets)
