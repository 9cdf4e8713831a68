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


def table() -> dict[str, list[str]]:
    """Return the cells of each row by its first cell."""
    lines = SUPPORT.read_text().split("| otherwise |\n|---|---|---|---|---|\n")[1].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: cells for name, *cells in rows}


def gru(backend, **options):
    return triton_gru.GRU(4, 20, backend=backend, **options).eval()


def in_dtype(precision):
    def row(backend):
        module = make_gru(4, 20, precision, "cpu", backend)
        module(x.to(module.weight_hh_l0.dtype))

    return row


def float64(backend):
    triton_gru.GRU(4, 5, dtype=torch.float64, backend=backend).eval()(x.double())


def layers(backend):
    gru(backend, num_layers=2, bias=False)(x, hx.repeat(2, 1, 1))


def layouts(backend):
    module = gru(backend, batch_first=True)
    module(x)
    module(x[0])
    module(x.transpose(0, 2).contiguous().transpose(0, 2))


def packed(backend, call=None):
    call = gru(backend) if call is None else call
    for enforce_sorted in (True, False):
        lengths = torch.tensor([2, 2, 1] if enforce_sorted else [1, 2, 2])
        call(pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted))


def cell(backend):
    triton_gru.GRUCell(4, 20, backend=backend).eval()(x[0], hx[0])


def autocast(backend):
    with torch.autocast("cpu", torch.bfloat16):
        assert gru(backend)(x)[0].dtype == torch.bfloat16 or backend == "auto"


def eval_with_grad(backend):
    with torch.enable_grad():
        output = gru(backend)(x)[0]
        if backend != "auto":
            with pytest.raises(RuntimeError, match="can only be called in training mode"):
                output.sum().backward()


def subclasses(backend):
    module = gru(backend)
    module.weight_hh_l0 = torch.nn.Parameter(module.weight_hh_l0.detach().as_subclass(Subclass), requires_grad=False)
    module(x)


def training(backend):
    with torch.enable_grad():
        gru(backend).train()(x)[0].sum().backward()


def dropout(backend):
    gru(backend, num_layers=2, dropout=0.5).train()(x)


def compiled(backend):
    torch.compile(gru(backend), fullgraph=True, backend="eager")(x)
    torch.export.export(gru(backend), (x,)).module()(x)


def compiled_packed(backend):
    packed(backend, torch.compile(gru(backend), backend="eager"))


def weights(backend):
    module, other = gru(backend, num_layers=2), gru(backend, num_layers=2)
    torch.func.functional_call(module, dict(other.named_parameters()), (x,))
    module.weight_hh_l1 = module.weight_hh_l0
    module(x)


def transforms(backend):
    module = gru(backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing `nn.GRU` warns in the same way
        if backend in ("auto", "torch"):
            torch.jit.trace(module, (x,))
        else:
            with pytest.raises(RuntimeError, match="torch.jit.trace is active"):
                torch.jit.trace(module, (x,))
    torch.func.grad(lambda x: module(x)[0].sum())(x)


def scripted(backend):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(torch.nn.Sequential(gru(backend)))(x)


ROWS = {
    "float32 as TF32": in_dtype("tf32"),
    "float32 ieee": in_dtype("fp32"),
    "float16": in_dtype("fp16"),
    "bfloat16": in_dtype("bf16"),
    "float64": float64,
    "several layers, no bias, `hx`": layers,
    "`batch_first`, unbatched, non-contiguous": layouts,
    "bidirectional": lambda backend: gru(backend, bidirectional=True)(x),
    "one direction backward (`reverse=True`)": lambda backend: gru(backend, reverse=True)(x),
    "reset before the recurrent product (`reset_after=False`)": lambda backend: gru(backend, reset_after=False)(x),
    "`PackedSequence`, sorted or not": packed,
    "`lengths=`": lambda backend: gru(backend)(x, lengths=torch.tensor([2, 0, 1])),
    "`resets=`": lambda backend: gru(backend)(x, resets=torch.rand(2, 3) < 0.5),
    "`GRUCell`": cell,
    "`stream()`": lambda backend: gru(backend).stream(3)(x[0]),
    "`torch.autocast`": autocast,
    "`eval()` with grad enabled (a backward raises)": eval_with_grad,
    "tensor subclasses, sparse weights": subclasses,
    "training with grad enabled": training,
    "dropout in training": dropout,
    "`torch.compile(fullgraph=True)`, `torch.export`": compiled,
    "`torch.compile` with a `PackedSequence` (a graph break)": compiled_packed,
    "`torch.func.functional_call`, tied weights": weights,
    "other `torch.func` transforms, `torch.jit.trace`": transforms,
    "`torch.jit.script`": scripted,
}


def test_every_row_of_the_table_is_tested():
    assert list(table()) == list(ROWS)


@pytest.mark.parametrize("backend", [*KERNELS, "auto"])
@pytest.mark.parametrize("name", ROWS)
@torch.no_grad()
def test_support_is_as_in_the_table(name, backend, gpu_of_backend, launched):
    *cells, otherwise = table()[name]
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
