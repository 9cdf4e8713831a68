"""GRU nodes of ONNX models convert to GRUs that compute the same as onnxruntime, or onnx's reference, does."""

import ast
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnx", reason="a machine lent for its GPU may not have it; scripts/test installs it")
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

from triton_gru import convert

from .convert_models import SHAPES, agree, drawer, one_thread, tensor
from .convert_onnx_models import arrays, model, through


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


def ort(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def as_onnx(output: torch.Tensor, h_n: torch.Tensor, layout: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ours as Y and Y_h, as the docstring of from_onnx says."""
    Y = output.unflatten(2, (h_n.size(0), h_n.size(2)))
    return (Y, h_n.transpose(0, 1)) if layout else (Y.transpose(1, 2), h_n)


@pytest.mark.parametrize("T, B, I, H", SHAPES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("linear_before_reset", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lengths", [True, False])
def test_node(T, B, I, H, direction, linear_before_reset, bias, lengths):
    draw, D = drawer(1), DIRECTIONS[direction]
    feed = {"X": draw(T, B, I), "initial_h": draw(D, B, H)}
    if lengths:
        feed["sequence_lens"] = np.array([T, max(1, T // 2), 1][:B], np.int32)
    proto = model(
        arrays(I, H, D, bias), tuple(feed), hidden_size=H, direction=direction, linear_before_reset=linear_before_reset
    )
    ours = convert.from_onnx(proto)
    assert not ours.batch_first and not ours.training
    output, h_n = ours(tensor(feed["X"]), tensor(feed["initial_h"]), lengths=tensor(feed.get("sequence_lens")))
    for actual, expected in zip(as_onnx(output, h_n), ort(proto, feed)):
        agree(actual, tensor(expected))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("linear_before_reset", [0, 1])
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_node_as_the_reference_computes_it(direction, linear_before_reset, layout, dtype):
    """Batch first and float64, which onnxruntime does not have."""
    T, B, I, H, D = 5, 2, 3, 4, DIRECTIONS[direction]
    draw = drawer(1)
    X, h = draw(T, B, I).astype(dtype), draw(D, B, H).astype(dtype)
    given = {name: each.astype(dtype) for name, each in arrays(I, H, D).items()}
    options = {"direction": direction, "linear_before_reset": linear_before_reset, "layout": layout}
    proto = model(given, ("X", "initial_h"), **options)
    feed = {"X": X.swapaxes(0, 1), "initial_h": h.swapaxes(0, 1)} if layout else {"X": X, "initial_h": h}
    ours = convert.from_onnx(proto)
    assert ours.batch_first == bool(layout)
    assert ours.weight_hh_l0.dtype == tensor(X).dtype
    for actual, expected in zip(
        as_onnx(*ours(tensor(feed["X"]), tensor(h)), layout), ReferenceEvaluator(proto).run(None, feed)
    ):
        agree(actual, tensor(expected))


def test_float16_is_kept():
    given = {name: each.astype(np.float16) for name, each in arrays().items()}
    ours = convert.from_onnx(model(given))
    assert torch.equal(ours.weight_ih_l0[4:8], tensor(given["W"][0, :4]))


@pytest.mark.parametrize("opset", [7, 14, 22])
@pytest.mark.parametrize("activations", [["Sigmoid", "Tanh"], ["sigmoid", "TANH"]])
def test_defaults_spelt_out(opset, activations):
    plain = convert.from_onnx(model(arrays()))
    spelt = convert.from_onnx(model(arrays(), opset=opset, activations=activations, direction="forward"))
    assert repr(spelt) == repr(plain) == "GRU(3, 4, reset_after=False)"
    assert torch.equal(spelt.weight_ih_l0, plain.weight_ih_l0)
    # hidden_size may be left out; it is told by the weights.
    without = model(arrays())
    del without.graph.node[0].attribute[:]
    assert repr(convert.from_onnx(without)) == repr(plain)


# ---- where weights come from


W = arrays()["W"]
CHAINS = {
    "Identity": through("W = Identity(a)", a=W),
    "Constant, Cast": through("W = Cast<to=1>(a)", a=W.astype(np.float64)),
    "Transpose": through("W = Transpose<perm=[2, 1, 0]>(a)", a=W.T.copy()),
    "Slice, Concat": through(
        "n = Constant<value_ints=[4]>()", "two = Constant<value_ints=[2]>()", "m = Mul(n, two)",
        "o = Constant<value_ints=[0]>()", "one = Constant<value_ints=[1]>()", "end = Constant<value_ints=[99]>()",
        "r = Slice(a, o, n, one)", "z = Slice(a, n, m, one)", "h = Slice(a, m, end, one)",
        "W = Concat<axis=1>(z, r, h)",
        a=np.concatenate([W[:, 4:8], W[:, :4], W[:, 8:]], 1),
    ),
    "Split, Unsqueeze, Squeeze": through(
        "z, r, h = Split<axis=0, num_outputs=3>(a)", "i = Concat<axis=0>(r, z, h)",
        "axis = Constant<value_ints=[0]>()", "u = Unsqueeze(i, axis)", "v = Unsqueeze(u, axis)", "W = Squeeze(v, axis)",
        a=np.concatenate([W[0, 4:8], W[0, :4], W[0, 8:]]),
    ),
    "Reshape, Gather": through(
        "shape = Constant<value_ints=[1, 12, 3]>()", "g = Gather<axis=0>(a, b)", "W = Reshape(g, shape)",
        a=W[0, ::-1].copy(), b=np.arange(12)[::-1].copy(),
    ),
    "Shape": through("s = Shape(a)", "W = Reshape(b, s)", a=W, b=W.ravel()),
    "Expand, Tile": through(
        "tall = Expand(zero, s)", "wide = Tile(tall, n)", "t = Shape(wide)", "W = Reshape(b, t)",
        b=W.ravel(), zero=np.zeros((1, 1, 1), np.float32), s=np.array([1, 12, 1]), n=np.array([1, 1, 3]),
    ),
    "DequantizeLinear": through("W = DequantizeLinear(a, s)", a=np.round(W * 64).astype(np.int8), s=np.float32(1 / 64)),
}  # fmt: skip


@pytest.mark.parametrize("chain", CHAINS)
def test_weights_computed_of_constants(chain):
    nodes, weights = CHAINS[chain]
    given = {name: each for name, each in arrays().items() if name != "W"}
    proto = model({**given, **weights}, nodes=nodes)
    ours = convert.from_onnx(proto)
    X = drawer(1)(5, 2, 3)
    agree(as_onnx(*ours(tensor(X)))[0], tensor(ort(proto, {"X": X})[0]))


# The exporter's own; it is deprecated, but traces as most models there are were traced, and needs only onnx.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("folding", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_what_torch_exports(folding, bidirectional, bias):
    theirs = nn.GRU(3, 4, 2, bidirectional=bidirectional, bias=bias).eval()
    x, file = torch.randn(5, 2, 3), io.BytesIO()
    torch.onnx.export(
        theirs, (x,), file, dynamo=False, do_constant_folding=folding, input_names=["x"], dynamic_axes={"x": [0, 1]}
    )
    proto = onnx.load_from_string(file.getvalue())
    names = [node.name for node in proto.graph.node if node.op_type == "GRU"]
    first, second = (convert.from_onnx(proto, name) for name in names)
    expected, h_n = theirs(x)
    output, h_first = first(x)
    output, h_second = second(output)
    agree(output, expected)
    agree(torch.cat([h_first, h_second]), h_n)


def test_paths_and_external_data(tmp_path):
    proto = model(arrays(I=96, H=25), hidden_size=25)
    expected = convert.from_onnx(proto).state_dict()
    onnx.save(proto, tmp_path / "inside.onnx")
    onnx.save(proto, tmp_path / "outside.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    assert (tmp_path / "weights").stat().st_size > 4 * 25 * 3 * (96 + 25)
    for path in (tmp_path / "inside.onnx", str(tmp_path / "outside.onnx")):
        state = convert.from_onnx(path).state_dict()
        assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_results_share_no_memory_with_the_model():
    proto = model(arrays())
    ours = convert.from_onnx(proto)
    ours.weight_ih_l0.data.zero_()
    assert convert.from_onnx(proto).weight_ih_l0.any()


# ---- what is imported


def test_the_other_libraries_are_imported_only_where_they_are_needed():
    imported = set()
    for file in Path(convert.__file__).parent.glob("*.py"):
        for statement in ast.parse(file.read_text()).body:
            if isinstance(statement, ast.Import):
                imported |= {alias.name for alias in statement.names}
            elif isinstance(statement, ast.ImportFrom) and not statement.level:
                imported.add(statement.module)
    assert imported == {"os", "torch", "itertools", "typing", "collections", "collections.abc"}


def test_without_onnx(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match="from_onnx needs the package onnx: pip install onnx"):
        convert.from_onnx("model.onnx")
