"""The default device and dtype of torch, which a user may have set, do not change the library's results."""

import ast
import contextlib
import pathlib

import pytest
import torch
import torch.utils._device
from torch.nn.utils.rnn import pack_padded_sequence

import triton_gru
from triton_gru import accuracy
from triton_gru.launch import hang
from triton_gru.tuning import timing
from triton_gru.tuning.example import open_example

from .calls import make_gru
from .planted import change_problem

ROOT = pathlib.Path(__file__).parent.parent
CONSTRUCTORS = {function.__name__ for function in torch.utils._device._device_constructors()}


def find_constructions(source):
    """Yield the calls in ``source`` that make a tensor on torch's default device."""
    constructors = {f"torch.{name}" for name in CONSTRUCTORS}
    for node in ast.walk(ast.parse(source)):
        constructs = isinstance(node, ast.Call) and ast.unparse(node.func) in constructors
        if constructs and "device" not in [keyword.arg for keyword in node.keywords]:
            yield node


@pytest.mark.parametrize("folder", ["triton_gru", "perf"])
def test_every_tensor_names_its_device(folder):
    assert len(list(find_constructions("torch.arange(3), torch.tensor(2.0, dtype=x), torch.zeros(1, device=d)"))) == 2
    unnamed = [
        f"{path}:{call.lineno}"
        for path in (ROOT / folder).rglob("*.py")
        for call in find_constructions(path.read_text())
    ]
    assert not unnamed


@contextlib.contextmanager
def use_default_dtype(dtype):
    """Make ``dtype`` torch's default inside the context."""
    dtype_before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype_before)


OTHER_DEFAULTS = {"device": lambda: torch.device("meta"), "dtype": lambda: use_default_dtype(torch.float64)}


@pytest.mark.parametrize("backend", ["block", "grid", "step", "reference", "torch"])
@pytest.mark.parametrize("other", OTHER_DEFAULTS)
def test_results_are_the_same_under_other_defaults(other, backend, device, monkeypatch):
    gru = make_gru(4, 16, "fp32", device, backend)
    cell = triton_gru.GRUCell(4, 16, device=device, backend="reference" if backend == "grid" else backend).eval()
    x, lengths = torch.randn(3, 3, 4, device=device), torch.tensor([2, 3, 1])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)

    def compute_results():
        stream = gru.stream(3) if backend != "block" and backend != "grid" else None
        frames = [] if stream is None else [stream(x[0]), stream.state, stream(x[1])]
        return [*gru(x), gru(packed)[0].data, gru(packed)[1], *gru(x, lengths=lengths), cell(x[0]), *frames]

    with torch.no_grad():
        expected = compute_results()
        monkeypatch.setattr(hang, "_watchdogs", {})  # so that new watchdogs are made under the other defaults
        with OTHER_DEFAULTS[other]():
            actual = compute_results()
    for result, expected_result in zip(actual, expected, strict=True):
        assert result.device.type == device and torch.equal(result, expected_result)


@pytest.mark.parametrize("other", OTHER_DEFAULTS)
@pytest.mark.parametrize("layout", ["dense", "lengths", "packed"])
def test_tuner_and_check_work_under_other_defaults(other, layout):
    problem = change_problem(steps=4, batch_size=3, input_size=5, hidden_size=16, layout=layout)
    with OTHER_DEFAULTS[other](), torch.no_grad():
        assert timing.quantiles([1.0, 2.0, 3.0]).p50 == 2.0
        with open_example(problem, "cpu") as example:
            assert example.call.problem == problem
        gru = triton_gru.GRU(5, 16, device="cpu", dtype=torch.float32)
        x = torch.randn(2, 3, 5, device="cpu", dtype=torch.float32)
        assert accuracy.compute_exact(gru, x, None)[0].dtype == torch.float64
