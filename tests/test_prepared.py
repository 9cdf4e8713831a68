"""Prepared calls of a `GRUCell`: equal results, and a new binding if module, call or mode have changed.

test_prepared_gru.py tests prepared calls of a `GRU`, and everything that both share.
"""

import copy

import pytest
import torch
from torch import nn

import triton_gru
from triton_gru.launch import route

from .conftest import poison_memory
from .oracle import PRECISIONS, set_precision


@pytest.fixture
def bound_calls(monkeypatch):
    """Return the list of calls that are bound. A prepared call adds nothing to it."""
    bound = []
    bind = route.bind_cell
    monkeypatch.setattr(route, "bind_cell", lambda *args: bound.append(args) or bind(*args))
    return bound


def make_cell_call(device, precision="fp16", **options):
    """Return a GRUCell of 20 units on ``step``, an input of five rows, and hx."""
    dtype = set_precision(precision)
    cell = triton_gru.GRUCell(7, 20, device=device, dtype=dtype, backend="step", **options).eval()
    return cell, torch.randn(5, 7, device=device).to(dtype), torch.randn(5, 20, device=device).to(dtype)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("with_hx", [True, False])
@pytest.mark.parametrize("reset_after", [True, False])
def test_third_call_is_prepared_and_equals_the_first(
    precision, bias, with_hx, reset_after, device, launched, bound_calls
):
    cell, x, hx = make_cell_call(device, precision, bias=bias, reset_after=reset_after)
    hx = hx if with_hx else None
    with torch.no_grad():
        first, second = cell(x, hx), cell(x, hx)
        with poison_memory():
            third = cell(x, hx)
        assert len(bound_calls) == 2
        assert launched == ["whole_step"] * (3 if reset_after else 6)
        assert torch.equal(first, second)
        assert torch.equal(first, third)
        other_x, other_hx = torch.randn_like(x), None if hx is None else torch.randn_like(hx)
        other_result = cell(other_x, other_hx)
        assert len(bound_calls) == 2
        assert torch.equal(other_result, copy.deepcopy(cell)(other_x, other_hx))  # a copy is not prepared
        assert torch.equal(first, third), "results of different calls share memory"


@pytest.mark.parametrize("backend", ["block", "grid"])
def test_other_kernels_are_prepared(backend, device, launched, bound_calls):
    cell, x, hx = make_cell_call(device)
    cell.backend = backend
    with torch.no_grad():
        first, *_ = (cell(x, hx) for _ in range(3))
        assert len(bound_calls) == 2
        assert launched.has_only(backend)
        other_result = cell(2 * x, hx)
        assert torch.equal(first, cell(x, hx))
        assert len(bound_calls) == 2
        assert torch.equal(other_result, copy.deepcopy(cell)(2 * x, hx))


def make_changes():
    """Return the name of each change and a function that makes it.

    The function takes the cell and the arguments of a call. It returns other arguments, or None to keep them.
    """

    def replace_weight(cell, x, hx):
        cell.weight_hh = nn.Parameter(cell.weight_hh.detach() * 2)

    def replace_data(cell, x, hx):
        cell.weight_ih.data = cell.weight_ih.data * 2

    def transpose_weight(cell, x, hx):
        cell.weight_hh = nn.Parameter(cell.weight_hh.detach().view(20, 60).T)

    return {
        "another weight": replace_weight,
        "another weight's data": replace_data,
        "a weight of other strides": transpose_weight,
        "another batch": lambda cell, x, hx: (x[:3], hx[:3]),
        "no state": lambda cell, x, hx: (x, None),
        "unbatched": lambda cell, x, hx: (x[0], hx[0]),
        "an odd address": lambda cell, x, hx: (torch.cat([x[0, :1], x.flatten()])[1:].view(5, 7), hx),
        "other strides": lambda cell, x, hx: (x.T.contiguous().T, hx.T.contiguous().T),
        "a backend": lambda cell, x, hx: setattr(cell, "backend", "block"),
        "reset_after": lambda cell, x, hx: setattr(cell, "reset_after", False),
        "training": lambda cell, x, hx: cell.train() and None,
    }


@pytest.mark.parametrize("name", make_changes())
def test_changes_between_calls_are_noticed(name, device, bound_calls):
    cell, x, hx = make_cell_call(device)
    with torch.no_grad():
        for _ in range(3):
            cell(x, hx)
        assert len(bound_calls) == 2
        x, hx = make_changes()[name](cell, x, hx) or (x, hx)
        actual = cell(x, hx)
        assert len(bound_calls) == 3
        fresh = copy.deepcopy(cell)
        assert torch.equal(actual, fresh(x, hx))


def test_modes_of_torch_are_noticed(device, bound_calls):
    """Invalid arguments of a prepared cell still raise an error."""
    cell, x, hx = make_cell_call(device, "fp32")
    with torch.no_grad():
        result_before, *_ = (cell(x, hx) for _ in range(3))
        torch.backends.cudnn.rnn.fp32_precision = "tf32"
        assert not torch.equal(cell(x, hx), result_before)
        assert len(bound_calls) == 3
        with torch.autocast(device, torch.bfloat16):
            assert cell(x, hx).dtype == torch.bfloat16
    assert cell(x, hx).requires_grad
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="can only be called in training mode"):
        cell(x, hx).sum().backward()
    with pytest.raises(RuntimeError, match="inconsistent input_size"):
        cell(x[:, :6], hx)
    with torch.no_grad(), pytest.raises(RuntimeError, match="dtype"):
        cell(x, hx.half())


def test_weights_changed_in_place_are_read_again(device, bound_calls):
    cell, x, hx = make_cell_call(device)
    with torch.no_grad():
        result_before, *_ = (cell(x, hx) for _ in range(3))
        cell.weight_hh.mul_(2)
        result_after = cell(x, hx)
        assert len(bound_calls) == 2
        assert not torch.equal(result_before, result_after)
        assert torch.equal(result_after, copy.deepcopy(cell)(x, hx))
