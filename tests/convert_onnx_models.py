"""ONNX models of one GRU node, and their results by onnxruntime, for the tests of the converter."""

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from .convert_models import make_draw


def make_weights(I: int = 3, H: int = 4, D: int = 1, bias: bool = True) -> dict[str, np.ndarray]:
    """Return random weights W, R and (with ``bias``) B of a GRU node with I inputs, H units and D directions."""
    draw = make_draw()
    shapes = {"W": (D, 3 * H, I), "R": (D, 3 * H, H), **({"B": (D, 6 * H)} if bias else {})}
    return {name: draw(*shape, scale=H**-0.5) for name, shape in shapes.items()}


def make_model(
    initializers: dict[str, np.ndarray],
    inputs: tuple[str, ...] = ("X",),
    nodes=(),
    opset: int = 22,
    name: str = "gru",
    **attributes,
) -> onnx.ModelProto:
    """Return a model of one GRU node with the outputs Y and Y_h.

    The node takes its inputs by their names, from ``initializers`` (constants) and the model's ``inputs``. W and R may
    also be outputs of ``nodes``. ``attributes`` are the node's. ``hidden_size`` is 4 if it is not among them.
    """
    # An empty name is ONNX's sign for an absent optional input.
    node_inputs = [key if key in (*inputs, "W", "R") or key in initializers else "" for key in
                   ("X", "W", "R", "B", "sequence_lens", "initial_h")]  # fmt: skip
    attributes = {"hidden_size": 4, **attributes}
    node = helper.make_node("GRU", node_inputs, ["Y", "Y_h"], name, **attributes)
    dtype = helper.np_dtype_to_tensor_dtype(next(iter(initializers.values())).dtype)
    types = {"sequence_lens": TensorProto.INT32}
    ranks = {"sequence_lens": 1}
    graph = helper.make_graph(
        [*nodes, node],
        "graph",
        [helper.make_tensor_value_info(key, types.get(key, dtype), [None] * ranks.get(key, 3)) for key in inputs],
        [
            helper.make_tensor_value_info("Y", dtype, [None] * 4),
            helper.make_tensor_value_info("Y_h", dtype, [None] * 3),
        ],
        [numpy_helper.from_array(array, key) for key, array in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def run_onnxruntime(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return onnxruntime's outputs of the model for the inputs ``feed``, as a list of arrays."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def to_onnx_layout(output: torch.Tensor, h_n: torch.Tensor, layout: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return our output and h_n as ONNX's Y and Y_h. The docstring of from_onnx describes both layouts."""
    Y = output.unflatten(2, (h_n.size(0), h_n.size(2)))
    return (Y, h_n.transpose(0, 1)) if layout else (Y.transpose(1, 2), h_n)


def add_functions(proto: onnx.ModelProto, *texts: str) -> onnx.ModelProto:
    """Add functions, written in onnx's text form, to the model in the domain "own". Return the model."""
    for text in texts:
        proto.functions.append(onnx.parser.parse_function('<domain: "own", opset_import: ["": 22, "own": 1]> ' + text))
    proto.opset_import.append(helper.make_opsetid("own", 1))
    return proto


def parse_nodes(*nodes: str, **weights: np.ndarray) -> tuple[list, dict[str, np.ndarray]]:
    """Parse nodes in onnx's text form. Return the nodes, and ``weights``: the initializers that they take.

    The pair fits `make_model` as ``nodes`` and a part of ``initializers``.
    """
    graph = onnx.parser.parse_graph("g (float[1] unused) => (float[1] W) {" + "\n".join(nodes) + "}")
    return list(graph.node), weights
