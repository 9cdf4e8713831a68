"""Wrong calls raise the errors of nn.GRU, on backends of every kind, before a kernel is launched."""

import pytest
import torch
from torch import nn

import triton_gru

from .twins import make_twins

x3, x2 = torch.randn(3, 2, 4), torch.randn(3, 4)
# Input and hx of calls that nn.GRU(4, 5, 2) refuses. Our errors are the same.
WRONG_CALLS = {
    "1D input": (torch.randn(4), None),
    "4D input": (torch.randn(1, 3, 2, 4), None),
    "width": (torch.randn(3, 2, 5), None),
    "dtype": (x3.half(), None),
    "integers": (torch.ones(3, 2, 4, dtype=torch.long), None),
    "no steps": (torch.randn(0, 2, 4), None),
    "hx batch": (x3, torch.randn(2, 3, 5)),
    "hx layers": (x3, torch.randn(1, 2, 5)),
    "hx width": (x3, torch.randn(2, 2, 6)),
    "hx 2D, input 3D": (x3, torch.randn(2, 5)),
    "hx 3D, input 2D": (x2, torch.randn(2, 1, 5)),
    "unbatched hx layers": (x2, torch.randn(1, 5)),
    "input elsewhere": (torch.empty(3, 2, 4, device="meta"), None),
}
# Calls that nn.GRU refuses with a message that does not name the fault. Ours has to name it.
CLEARER = {
    "hx dtype": (x3, torch.randn(2, 2, 5).half()),
    "hx elsewhere": (x3, torch.empty(2, 2, 5, device="meta")),
}


def assert_raises_alike(theirs, ours, call, required_word: str | None):
    """Assert that both modules raise the same type and message for ``call``. `plan` raises like the call.

    With ``required_word`` our message only has to contain this word.
    """
    with pytest.raises(Exception) as expected:
        theirs(*call)
    for method in (ours, ours.plan):
        with pytest.raises(type(expected.value)) as raised:
            method(*call)
        if required_word is None:
            assert str(raised.value) == str(expected.value)
        else:
            assert required_word in str(raised.value)


@pytest.mark.parametrize("backend", ["auto", "torch", "block", "reference"])
@pytest.mark.parametrize("name", [*WRONG_CALLS, *CLEARER])
def test_errors_are_those_of_nn_gru(name, backend, launched):
    theirs, ours = make_twins(4, 5, 2)
    ours.eval().backend = backend
    required_word = None if name in WRONG_CALLS else name.split()[1].replace("elsewhere", "device")
    assert_raises_alike(theirs, ours, (WRONG_CALLS | CLEARER)[name], required_word)
    assert not launched


# The same for nn.GRUCell(4, 5).
WRONG_CELL_CALLS = {
    "3D input": (x3, None),
    "3D hx": (x2, torch.randn(1, 3, 5)),
    "width": (torch.randn(3, 5), None),
    "hx batch": (x2, torch.randn(2, 5)),
    "hx width": (x2, torch.randn(3, 6)),
    "hx 2D, input 1D": (torch.randn(4), torch.randn(1, 5)),
    "hx 1D, input 2D": (x2, torch.randn(5)),
    "hx 1D, input 2D of as many rows": (torch.randn(5, 4), torch.randn(5)),
}
CLEARER_CELL = {
    "hx dtype": (x2, torch.randn(3, 5).half()),
    "input dtype": (x2.half(), None),
}


@pytest.mark.parametrize("backend", ["auto", "torch", "block", "reference"])
@pytest.mark.parametrize("name", [*WRONG_CELL_CALLS, *CLEARER_CELL])
def test_cell_errors_are_those_of_nn_gru_cell(name, backend, launched):
    theirs, ours = nn.GRUCell(4, 5), triton_gru.GRUCell(4, 5, backend=backend).eval()
    required_word = None if name in WRONG_CELL_CALLS else name.split()[1]
    assert_raises_alike(theirs, ours, (WRONG_CELL_CALLS | CLEARER_CELL)[name], required_word)
    assert not launched


def test_cell_of_one_unit_refuses_hx_of_another_rank():
    """The checks of nn.GRUCell pass if sizes are one. Our kernels refuse the shape."""
    cell = triton_gru.GRUCell(4, 1, backend="block").eval()
    with pytest.raises(RuntimeError, match="same number of dimensions"):
        cell(torch.randn(4), torch.randn(1, 1))
