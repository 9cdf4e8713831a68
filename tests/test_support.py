"""The table of what is supported in triton_gru/SUPPORT.md, cell by cell."""

import pathlib
import warnings

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import triton_gru
from triton_gru.plan.planner import KERNELS

from .calls import make_gru

SUPPORT = pathlib.Path(__file__).parent.parent / "triton_gru/SUPPORT.md"
x, hx = torch.randn(2, 3, 4), torch.randn(1, 3, 20)


class Subclass(torch.Tensor):
    """A subclass that the package does not know."""


def read_table() -> dict[str, list[str]]:
    """Return the cells of each row of the document's table, by the row's first cell."""
    lines = SUPPORT.read_text().split("| otherwise |\n|---|---|---|---|---|\n")[1].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: cells for name, *cells in rows}


def make_eval_gru(backend, **options):
    """Return a GRU of 4 features and 20 units in eval()."""
    return triton_gru.GRU(4, 20, backend=backend, **options).eval()


def make_dtype_call(precision):
    """Return a function that calls a GRU of this precision."""

    def call_in_dtype(backend):
        module = make_gru(4, 20, precision, "cpu", backend)
        module(x.to(module.weight_hh_l0.dtype))

    return call_in_dtype


def call_float64(backend):
    triton_gru.GRU(4, 5, dtype=torch.float64, backend=backend).eval()(x.double())


def call_layers(backend):
    make_eval_gru(backend, num_layers=2, bias=False)(x, hx.repeat(2, 1, 1))


def call_layouts(backend):
    """Call a GRU with batch_first, unbatched and non-contiguous input."""
    module = make_eval_gru(backend, batch_first=True)
    module(x)
    module(x[0])
    module(x.transpose(0, 2).contiguous().transpose(0, 2))


def call_packed(backend, call=None):
    """Call a GRU, or ``call``, with sorted and with unsorted packed input."""
    call = make_eval_gru(backend) if call is None else call
    for enforce_sorted in (True, False):
        lengths = torch.tensor([2, 2, 1] if enforce_sorted else [1, 2, 2])
        call(pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted))


def call_cell(backend):
    triton_gru.GRUCell(4, 20, backend=backend).eval()(x[0], hx[0])


def call_autocast(backend):
    with torch.autocast("cpu", torch.bfloat16):
        assert make_eval_gru(backend)(x)[0].dtype == torch.bfloat16 or backend == "auto"


def call_with_grad(backend):
    """Call a GRU with grad enabled. A backward raises, unless nn.GRU may serve the call."""
    with torch.enable_grad():
        output = make_eval_gru(backend)(x)[0]
        if backend != "auto":
            with pytest.raises(RuntimeError, match="can only be called in training mode"):
                output.sum().backward()


def call_with_subclass_weight(backend):
    """Call a GRU one of whose weights is a tensor subclass."""
    module = make_eval_gru(backend)
    module.weight_hh_l0 = torch.nn.Parameter(module.weight_hh_l0.detach().as_subclass(Subclass), requires_grad=False)
    module(x)


def train(backend):
    with torch.enable_grad():
        make_eval_gru(backend).train()(x)[0].sum().backward()


def call_with_dropout(backend):
    make_eval_gru(backend, num_layers=2, dropout=0.5).train()(x)


def call_compiled(backend):
    torch.compile(make_eval_gru(backend), fullgraph=True, backend="eager")(x)
    torch.export.export(make_eval_gru(backend), (x,)).module()(x)


def call_compiled_packed(backend):
    call_packed(backend, torch.compile(make_eval_gru(backend), backend="eager"))


def call_with_other_weights(backend):
    """Call a GRU through functional_call, and with one weight in two layers."""
    module, other = make_eval_gru(backend, num_layers=2), make_eval_gru(backend, num_layers=2)
    torch.func.functional_call(module, dict(other.named_parameters()), (x,))
    module.weight_hh_l1 = module.weight_hh_l0
    module(x)


def call_transforms(backend):
    """Trace a GRU with torch.jit, which a kernel refuses, and differentiate it with torch.func."""
    module = make_eval_gru(backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing `nn.GRU` warns in the same way
        if backend in ("auto", "torch"):
            torch.jit.trace(module, (x,))
        else:
            with pytest.raises(RuntimeError, match="torch.jit.trace is active"):
                torch.jit.trace(module, (x,))
    torch.func.grad(lambda x: module(x)[0].sum())(x)


def call_scripted(backend):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(torch.nn.Sequential(make_eval_gru(backend)))(x)


# Row of the table -> function that makes the calls of this row with the backend that it is given.
ROWS = {
    "float32 as TF32": make_dtype_call("tf32"),
    "float32 ieee": make_dtype_call("fp32"),
    "float16": make_dtype_call("fp16"),
    "bfloat16": make_dtype_call("bf16"),
    "float64": call_float64,
    "several layers, no bias, `hx`": call_layers,
    "`batch_first`, unbatched, non-contiguous": call_layouts,
    "bidirectional": lambda backend: make_eval_gru(backend, bidirectional=True)(x),
    "one direction backward (`reverse=True`)": lambda backend: make_eval_gru(backend, reverse=True)(x),
    "reset before the recurrent product (`reset_after=False`)": lambda backend: make_eval_gru(
        backend, reset_after=False
    )(x),
    "`PackedSequence`, sorted or not": call_packed,
    "`lengths=`": lambda backend: make_eval_gru(backend)(x, lengths=torch.tensor([2, 0, 1])),
    "`resets=`": lambda backend: make_eval_gru(backend)(x, resets=torch.rand(2, 3) < 0.5),
    "`GRUCell`": call_cell,
    "`stream()`": lambda backend: make_eval_gru(backend).stream(3)(x[0]),
    "`torch.autocast`": call_autocast,
    "`eval()` with grad enabled (a backward raises)": call_with_grad,
    "tensor subclasses, sparse weights": call_with_subclass_weight,
    "training with grad enabled": train,
    "dropout in training": call_with_dropout,
    "`torch.compile(fullgraph=True)`, `torch.export`": call_compiled,
    "`torch.compile` with a `PackedSequence` (a graph break)": call_compiled_packed,
    "`torch.func.functional_call`, tied weights": call_with_other_weights,
    "other `torch.func` transforms, `torch.jit.trace`": call_transforms,
    "`torch.jit.script`": call_scripted,
}


def test_every_row_of_the_table_is_tested():
    assert list(read_table()) == list(ROWS)


@pytest.mark.parametrize("backend", [*KERNELS, "auto"])
@pytest.mark.parametrize("name", ROWS)
@torch.no_grad()
def test_support_is_as_in_the_table(name, backend, gpu_of_backend, launched):
    *cells, otherwise = read_table()[name]
    assert set(cells) <= {"yes", "no"}
    assert otherwise in ("torch", "reference") or "no" not in cells
    if backend == "auto":
        ROWS[name]("auto")
        assert not launched
        if otherwise:
            ROWS[name](otherwise)
    elif cells[KERNELS.index(backend)] == "yes":
        ROWS[name](backend)
        assert launched.has_only(backend)
    else:
        with pytest.raises(RuntimeError, match="cannot serve"):
            ROWS[name](backend)
        assert not launched
