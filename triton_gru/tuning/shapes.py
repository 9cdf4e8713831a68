"""Which problems to tune: those of a model, or of a run that was watched."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.utils.rnn import PackedSequence

from ..arguments import autocast_dtype, problem_of
from ..modules import GRU, GRUCell
from ..problem import Problem
from .entries import Key

_GRUS, _CELLS = (nn.GRU, GRU), (nn.GRUCell, GRUCell)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def shapes_of(
    model: nn.Module, batch_sizes: Iterable[int] = (1,), steps: Iterable[int] = (100,), dtype: torch.dtype | None = None
) -> list[Problem]:
    """The problems that the GRUs of a model are, torch's and ours, for batches and numbers of steps to come.

    Args:
        dtype: that the model will run in (autocast, say), if it is not the one of its parameters.

    Returns:
        One for each kind of GRU (a cell has one step), batch size and number of steps; none for float64, which no
        kernel computes in.
    """
    found = {}
    batch_sizes, steps = list(batch_sizes), list(steps)
    for module in model.modules():
        if isinstance(module, (*_GRUS, *_CELLS)):
            weight = next(module.parameters())
            for batch in batch_sizes:
                for number in steps if isinstance(module, _GRUS) else (1,):
                    problem = problem_of(module, number, batch, dtype or weight.dtype)
                    found[problem] = None
    return [problem for problem in found if problem.dtype in _DTYPES]


class Recorded(Sequence):
    """The problems that were met, those first that took the most steps in all.

    Of problems that tuning does not tell apart it has the largest batch.
    """

    def __init__(self):
        self._calls: Counter[Key] = Counter()
        self._largest: dict[Key, Problem] = {}

    def add(self, problem: Problem) -> None:
        key = Key.of(problem)
        self._calls[key] += problem.steps * problem.num_layers
        if key not in self._largest or problem.batch_size > self._largest[key].batch_size:
            self._largest[key] = problem

    def __getitem__(self, index):
        return [self._largest[key] for key, _ in self._calls.most_common()][index]

    def __len__(self) -> int:
        return len(self._largest)


@contextlib.contextmanager
def record_shapes() -> Iterator[Recorded]:
    """Watches what the GRUs of this process are called with, torch's own and ours, to be tuned.

        with triton_gru.record_shapes() as shapes:
            serve(model)
        triton_gru.tune(shapes, budget=300)

    Steps are recorded as powers of two (up to the next), as T is what varies most and decides least. Not seen are
    calls inside what torch.compile has compiled, of float64, and in training with grad enabled.
    """
    recorded = Recorded()

    def hook(module, args, kwargs, output) -> None:
        if isinstance(module, (*_GRUS, *_CELLS)) and not (module.training and torch.is_grad_enabled()):
            problem = _called(module, *args, **kwargs)
            if problem.dtype in _DTYPES and not problem.is_empty:
                recorded.add(problem)

    handle = hooks.register_module_forward_hook(hook, with_kwargs=True)
    try:
        yield recorded
    finally:
        handle.remove()
        # Which leaves its note of a hook with keywords (torch 2.13): torch.compile would warn of hooks for good.
        hooks._global_forward_hooks_with_kwargs.pop(handle.id, None)


def _called(
    module, input: Tensor | PackedSequence, hx: Tensor | None = None, lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> Problem:  # fmt: skip
    """Of a call that was served, so that its arguments are right."""
    layout = "packed" if isinstance(input, PackedSequence) else "dense" if lengths is None else "lengths"
    if layout == "packed":
        steps, batch, data = len(input.batch_sizes), int(input.batch_sizes[0]), input.data
    elif isinstance(module, _CELLS):
        steps, batch, data = 1, input.size(0) if input.dim() == 2 else 1, input
    else:
        sizes = (*input.shape[:-1],) if input.dim() == 3 else (input.size(0), 1)
        steps, batch = sizes[::-1] if module.batch_first and input.dim() == 3 else sizes
        data = input
    dtype = data.dtype if data.dtype == torch.float64 else autocast_dtype(data.device) or data.dtype
    steps = 1 << (steps - 1).bit_length()
    return problem_of(module, steps, batch, dtype, layout=layout, resets=resets is not None)
