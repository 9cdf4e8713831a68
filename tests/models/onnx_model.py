"""Converts an ONNX model to a torch module, so that its GRUs can be accelerated. `FUNCTIONS` lists the operators."""

import operator

import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, fx, nn

from triton_gru import convert, restore

# Operators whose second and further arguments are constants: lists of sizes, axes or bounds, and the value of Pad.
OPERATORS_WITH_LISTS = ("Slice", "Reshape", "Pad")


class _Gru(nn.Module):
    """A GRU with outputs in ONNX's layout, [T, D, B, H]. A call of the module is a graph break for torch.compile."""

    def __init__(self, gru: nn.GRU):
        super().__init__()
        self.gru = gru

    def forward(self, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # cuDNN rejects a state that is a slice of another tensor.
        output, h_n = self.gru(x, hx if hx is None else hx.contiguous())
        return output.unflatten(2, (h_n.size(0), h_n.size(2))).transpose(1, 2), h_n


def torch_model(model: onnx.ModelProto, example: tuple[Tensor, ...]) -> fx.GraphModule:
    """Return the graph of ``model``, with GRU nodes as `torch.nn.GRU` and all other nodes as functions of torch.

    ``example`` has the inputs in the graph's order. Nodes that depend only on constants and on the sizes of ``example``
    are computed here. The module takes inputs of these sizes, and returns a tuple of the graph's outputs.

    Raises:
        KeyError: a node has another operator than those in `FUNCTIONS`.
    """
    root, graph = nn.Module(), fx.Graph()
    # Name in the ONNX graph -> a constant, the value for ``example``, and the node of the new graph.
    known = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in model.graph.initializer}
    values = {input.name: x for input, x in zip(model.graph.input, example)}
    nodes = {name: graph.placeholder(f"input_{i}") for i, name in enumerate(values)}

    def find_node(name: str) -> fx.Node:
        """Return the node of a value. A constant gets a node on its first use."""
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
            # A constant initial_h is zero: from_onnx raises for any other constant.
            # Inputs of a GRU in ONNX: X, W, R, B, sequence_lens, initial_h.
            names = [names[0], *(name for name in node.input[5:6] if name in nodes)]
            call = graph.call_module(name, tuple(map(find_node, names)))
            with torch.no_grad():
                results = gru(*(values[name] for name in names))
            outputs = [graph.call_function(operator.getitem, (call, i)) for i in (0, 1)]
        elif node.op_type == "Shape" or all(name in known for name in names):
            arguments = [known[name] if name in known else values[name] for name in names]
            known[node.output[0]] = FUNCTIONS[node.op_type](*arguments, **attributes)
            continue
        else:
            has_lists, function = node.op_type in OPERATORS_WITH_LISTS, FUNCTIONS[node.op_type]
            first, *others = names
            argument_nodes = [known[name].tolist() if has_lists else find_node(name) for name in others]
            outputs = [graph.call_function(function, (find_node(first), *argument_nodes), attributes)]
            arguments = [known[name].tolist() if has_lists else values[name] for name in others]
            results = [function(values[first], *arguments, **attributes)]
        nodes |= zip(node.output, outputs)
        values |= zip(node.output, results)
    graph.output(tuple(nodes[output.name] for output in model.graph.output))
    return fx.GraphModule(root, graph)


def grus_of(model: nn.Module) -> list[nn.RNNBase]:
    return [module for module in model.modules() if isinstance(module, nn.RNNBase)]


def _attributes(node: onnx.NodeProto) -> dict:
    """Return the attributes of a node by name. The tensor ``value`` of a constant is converted to torch's."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if "value" in attributes:
        attributes["value"] = torch.from_numpy(numpy_helper.to_array(attributes["value"]).copy())
    return attributes


# The functions below take the inputs and attributes of ONNX's operators, under the names of `FUNCTIONS`.


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
    """Return a slice. The bounds are tensors if the operator is computed here, and lists in the graph."""
    starts, ends, axes = (
        numbers.tolist() if isinstance(numbers, Tensor) else numbers for numbers in (starts, ends, axes)
    )
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(axes)):
        x = x[(*[slice(None)] * (axis % x.dim()), slice(start, end, step))]
    return x


def reshape(x: Tensor, shape: list[int]) -> Tensor:
    """Return ``x`` in a shape, in which 0 stands for the size of ``x`` in the same dimension."""
    return x.reshape([size or x.size(i) for i, size in enumerate(shape)])


def pad(x: Tensor, pads: list[int], value: float = 0.0) -> Tensor:
    """Pad by ONNX's list, which has the sizes before all dimensions, then those after all dimensions.

    torch takes pairs of sizes, from the last dimension to the first.
    """
    before, after = pads[: x.dim()], pads[x.dim() :]
    return F.pad(x, [size for pair in zip(before[::-1], after[::-1]) for size in pair], value=value)


def reduce_mean(x: Tensor, axes: list[int], keepdims: int = 1) -> Tensor:
    return x.mean(axes, bool(keepdims))


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    return x.index_put(tuple(indices.unbind(-1)), updates)


def conv(x: Tensor, *weights: Tensor, kernel_shape, pads, strides, dilations, group, function=F.conv2d) -> Tensor:
    assert pads[:2] == pads[2:], "torch pads both sides by the same size"
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
