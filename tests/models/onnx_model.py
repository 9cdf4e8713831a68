"""An ONNX model as a module of torch, so that its GRUs can be accelerated. It serves the operators in `FUNCTIONS`."""

import operator

import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, fx, nn

from triton_gru import convert, restore

# Operators whose arguments beside the first are numbers known before: sizes, axes, bounds.
WITH_NUMBERS = ("Slice", "Reshape", "Pad")


class _Gru(nn.Module):
    """A GRU that gives its outputs as ONNX has them, [T, D, B, H]. torch.compile goes on behind a call of it."""

    def __init__(self, gru: nn.GRU):
        super().__init__()
        self.gru = gru

    def forward(self, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # cuDNN refuses a state that is a slice of another.
        output, h_n = self.gru(x, hx if hx is None else hx.contiguous())
        return output.unflatten(2, (h_n.size(0), h_n.size(2))).transpose(1, 2), h_n


def torch_model(model: onnx.ModelProto, example: tuple[Tensor, ...]) -> fx.GraphModule:
    """Return the graph of ``model``: its GRU nodes with `torch.nn.GRU`, all others as functions of torch.

    What follows from constants and from the sizes of ``example``, the inputs in the graph's order, is computed here.
    The module takes inputs of these sizes, and returns a tuple of the graph's outputs.

    Raises:
        KeyError: a node of another operator.
    """
    root, graph = nn.Module(), fx.Graph()
    known = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in model.graph.initializer}
    values = {each.name: x for each, x in zip(model.graph.input, example)}
    nodes = {name: graph.placeholder(f"input_{i}") for i, name in enumerate(values)}

    def node_of(name: str) -> fx.Node:
        if name not in nodes:
            attribute = f"constant_{len(nodes)}"
            root.register_buffer(attribute, known[name])
            nodes[name], values[name] = graph.get_attr(attribute), known[name]
        return nodes[name]

    for node in model.graph.node:
        names, attributes = list(filter(None, node.input)), _attributes(node)
        if node.op_type == "GRU":
            gru, name = _Gru(restore(convert.from_onnx(model, node.name))), f"gru_{len(nodes)}"
            root.add_module(name, gru)
            # An initial_h that is a constant is zero, or from_onnx would have refused the node.
            names = [names[0], *(each for each in node.input[5:6] if each in nodes)]
            called = graph.call_module(name, tuple(map(node_of, names)))
            with torch.no_grad():
                results = gru(*(values[each] for each in names))
            made = [graph.call_function(operator.getitem, (called, i)) for i in (0, 1)]
        elif node.op_type == "Shape" or all(name in known for name in names):
            given = [known[name] if name in known else values[name] for name in names]
            known[node.output[0]] = FUNCTIONS[node.op_type](*given, **attributes)
            continue
        else:
            numbers = node.op_type in WITH_NUMBERS
            first, others = names[0], names[1:]
            rest = [known[each].tolist() if numbers else node_of(each) for each in others]
            made = [graph.call_function(FUNCTIONS[node.op_type], (node_of(first), *rest), attributes)]
            given = [values[first], *(known[each].tolist() if numbers else values[each] for each in others)]
            results = [FUNCTIONS[node.op_type](*given, **attributes)]
        nodes |= zip(node.output, made)
        values |= zip(node.output, results)
    graph.output(tuple(nodes[each.name] for each in model.graph.output))
    return fx.GraphModule(root, graph)


def grus_of(model: nn.Module) -> list[nn.RNNBase]:
    return [each for each in model.modules() if isinstance(each, nn.RNNBase)]


def _attributes(node: onnx.NodeProto) -> dict:
    found = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    if "value" in found:
        found["value"] = torch.from_numpy(numpy_helper.to_array(found["value"]).copy())
    return found


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x >= 0, x, slope * x)


def constant(value: Tensor) -> Tensor:
    return value


def constant_of_shape(shape: Tensor, value: Tensor) -> Tensor:
    return value.expand(shape.tolist())


def shape_of(x: Tensor) -> Tensor:
    return torch.tensor(x.shape)


def gather(x: Tensor, index: Tensor, axis: int = 0) -> Tensor:
    taken = x.index_select(axis, index.flatten())
    return taken.reshape(x.shape[:axis] + index.shape + x.shape[axis + 1 :])


def unsqueeze(x: Tensor, axes: list[int]) -> Tensor:
    for axis in sorted(axes):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: list[int]) -> Tensor:
    return x.squeeze(tuple(axes))


def concat(*tensors: Tensor, axis: int) -> Tensor:
    return torch.cat(tensors, axis)


def transpose(x: Tensor, perm: list[int]) -> Tensor:
    return x.permute(perm)


def slice_of(x: Tensor, starts, ends, axes, steps=None) -> Tensor:
    starts, ends, axes = (each.tolist() if isinstance(each, Tensor) else each for each in (starts, ends, axes))
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(axes)):
        x = x[(*[slice(None)] * (axis % x.dim()), slice(start, end, step))]
    return x


def reshape(x: Tensor, shape: list[int]) -> Tensor:
    return x.reshape([n or x.size(i) for i, n in enumerate(shape)])


def pad(x: Tensor, pads: list[int], value: float = 0.0) -> Tensor:
    """Of ONNX's list, which has all beginnings first, make torch's: pairs from the last dimension on."""
    before, after = pads[: x.dim()], pads[x.dim() :]
    return F.pad(x, [each for pair in zip(before[::-1], after[::-1]) for each in pair], value=value)


def reduce_mean(x: Tensor, axes: list[int], keepdims: int = 1) -> Tensor:
    return x.mean(axes, bool(keepdims))


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    return x.index_put(tuple(indices.unbind(-1)), updates)


def conv(x: Tensor, *weights: Tensor, kernel_shape, pads, strides, dilations, group, function=F.conv2d) -> Tensor:
    assert pads[:2] == pads[2:], "torch pads both sides alike"
    return function(x, *weights, stride=strides, padding=pads[:2], dilation=dilations, groups=group)


def conv_transpose(x: Tensor, *weights: Tensor, **attributes) -> Tensor:
    return conv(x, *weights, **attributes, function=F.conv_transpose2d)


def batch_norm(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, epsilon, momentum) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


FUNCTIONS = {
    "MatMul": torch.matmul, "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "Pow": torch.pow,
    "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Sqrt": torch.sqrt, "PRelu": prelu,
    "Constant": constant, "ConstantOfShape": constant_of_shape, "Shape": shape_of, "Gather": gather,
    "Unsqueeze": unsqueeze, "Squeeze": squeeze, "Concat": concat, "Transpose": transpose, "Slice": slice_of,
    "Reshape": reshape, "Pad": pad, "ReduceMean": reduce_mean, "ScatterND": scatter_nd, "Conv": conv,
    "ConvTranspose": conv_transpose, "BatchNormalization": batch_norm,
}  # fmt: skip
