"""GRU nodes of ONNX models. onnx is imported when `from_onnx` is called."""

import os
from collections import ChainMap
from collections.abc import Iterator
from typing import Any

from ..modules import GRU
from . import assemble

ATTRIBUTES = {
    "activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "layout",
    "linear_before_reset",
}  # fmt: skip
# Exporters reorder gates and add dimensions in the graph. Such ops only move or repeat values.
_MOVES = {
    "Cast", "Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze",
}  # fmt: skip
_FOLDED = _MOVES | {"Constant", "DequantizeLinear", "Mul", "Shape"}


def from_onnx(model: Any, node_name: str | None = None) -> GRU:
    r"""A GRU of one GRU node of an ONNX model, wherever in its graph or in the bodies of If, Loop and Scan.

    The formula (https://onnx.ai/onnx/operators/onnx__GRU.html, opsets 7 to 22):

    .. math::
        z = \sigma(W_z x + R_z h + W_{bz} + R_{bz}) \qquad
        r = \sigma(W_r x + R_r h + W_{br} + R_{br}) \qquad
        h' = (1 - z) \odot \tilde h + z \odot h \\
        \tilde h = \tanh(W_h x + R_h (r \odot h) + R_{bh} + W_{bh}) \text{ if linear_before_reset = 0, else }
        \tanh(W_h x + r \odot (R_h h + R_{bh}) + W_{bh})

    Shapes, with D directions: W [D, 3H, I], R [D, 3H, H], B [D, 6H] (W_b, then R_b; optional), gates in the order
    z, r, h. They are float16, bfloat16, float32 or float64, which the GRU keeps; initializers, or computed from such by
    ops that move, repeat or dequantize values.

    Args:
        model: a path (external data is read too), or an `onnx.ModelProto`.
        node_name: the node's name or that of one of its outputs; needed where there are several GRU nodes.

    Returns:
        One layer in `eval()`, ``reset_after=False`` for linear_before_reset = 0, which is ONNX's default; bidirectional
        or ``reverse=True`` by the node's direction, batch_first for layout = 1. Y and Y_h of ``output, h_n``:

        - layout = 0: Y [T, D, B, H] is ``output.unflatten(2, (D, H)).transpose(1, 2)``, Y_h [D, B, H] ``h_n``.
        - layout = 1: Y [B, T, D, H] is ``output.unflatten(2, (D, H))``, Y_h [B, D, H] ``h_n.transpose(0, 1)``.
        - sequence_lens: ``lengths``. initial_h: ``hx``, [D, B, H] in both layouts. Neither is taken from the model.

    Raises:
        ImportError: onnx is not installed.
        ValueError: no GRU node, several and no node_name, or none of this name; clip, activations other than Sigmoid
            and Tanh, activation_alpha or activation_beta, unknown attributes or direction; another domain, an opset
            before 7; weights that are not constant; shapes, hidden_size and direction that do not fit each other; an
            initial_h that is a constant other than zero.
        TypeError: ``model`` is neither, or weights of other dtypes.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError("from_onnx needs the package onnx: pip install onnx") from error
    if isinstance(model, str | os.PathLike):
        model = onnx.load(model)
    if not isinstance(model, onnx.ModelProto):
        raise TypeError(f"expected an onnx.ModelProto or a path, got {type(model).__name__}")
    node, made = _find(model.graph, node_name)
    try:
        return _convert(node, made, {each.domain: each.version for each in model.opset_import})
    except ValueError as error:
        raise ValueError(f"GRU node {_label(node)!r}: {error}") from error


def _walk(graph: Any, outside: ChainMap) -> Iterator[tuple[Any, ChainMap]]:
    """Every node of a graph and of those inside it, with what makes each name it can see: an initializer or a node."""
    made = outside.new_child({each.name: each for each in graph.initializer})
    made.update({name: node for node in graph.node for name in node.output})
    for node in graph.node:
        yield node, made
        for attribute in node.attribute:
            # A field that is not set is an empty graph.
            for body in (attribute.g, *attribute.graphs):
                yield from _walk(body, made)


def _find(graph: Any, name: str | None) -> tuple[Any, ChainMap]:
    grus = [(node, made) for node, made in _walk(graph, ChainMap()) if node.op_type == "GRU"]
    if not grus:
        raise ValueError("this model has no GRU node")
    found = [(node, made) for node, made in grus if name is None or name in (node.name, *node.output)]
    if len(found) != 1:
        listed = ", ".join(repr(_label(node)) for node, _ in grus)
        what = "several GRU nodes: pass node_name" if name is None else f"{len(found)} GRU nodes of the name {name!r}"
        raise ValueError(f"this model has {what}; there are {listed}")
    return found[0]


def _label(node: Any) -> str:
    return node.name or next(filter(None, node.output), "")


def _convert(node: Any, made: ChainMap, opsets: dict[str, int]) -> GRU:
    import onnx

    if node.domain not in ("", "ai.onnx"):
        raise ValueError(f"it is of the domain {node.domain!r}, not of ONNX")
    opset = opsets.get("", opsets.get("ai.onnx", 0))
    if opset < 7:
        raise ValueError(f"opset {opset} is too old, 7 is the first that can be converted: onnx.version_converter")
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    direction = attributes.get("direction", b"forward").decode()
    directions = {"forward": 1, "reverse": 1, "bidirectional": 2}.get(direction)
    if directions is None:
        raise ValueError(f"direction is {direction!r}, expected 'forward', 'reverse' or 'bidirectional'")
    _check_attributes(attributes, directions)

    inputs = dict(zip(("X", "W", "R", "B", "sequence_lens", "initial_h"), node.input))
    if _is_nonzero(inputs.get("initial_h", ""), made, opsets):
        raise ValueError("initial_h is a constant other than zero: set it to none and pass its value as hx")
    there = "WRB" if inputs.get("B") else "WR"
    given = assemble.tensors({what: _fold(what, inputs.get(what, ""), made, opsets) for what in there})
    assemble.expect("R", given["R"], directions, "3 * hidden", "hidden")
    hidden = given["R"].size(2)
    assemble.expect("R", given["R"], directions, 3 * hidden, hidden)
    assemble.expect("W", given["W"], directions, 3 * hidden, "input")
    if attributes.get("hidden_size", hidden) != hidden:
        raise ValueError(f"hidden_size is {attributes['hidden_size']}, but R is that of {hidden}")
    weights = []
    for d in range(directions):
        bias_ih = bias_hh = None
        if "B" in given:
            assemble.expect("B", given["B"], directions, 6 * hidden)
            bias_ih, bias_hh = map(assemble.rzn, given["B"][d].chunk(2))
        weights.append((assemble.rzn(given["W"][d]), assemble.rzn(given["R"][d]), bias_ih, bias_hh))
    return assemble.gru(
        weights,
        reset_after=attributes.get("linear_before_reset", 0) != 0,
        reverse=direction == "reverse",
        batch_first=attributes.get("layout", 0) == 1,
    )


def _check_attributes(attributes: dict[str, Any], directions: int) -> None:
    if unknown := sorted(set(attributes) - ATTRIBUTES):
        raise ValueError(f"unknown attributes {', '.join(unknown)}")
    if refused := sorted(name for name in ("clip", "activation_alpha", "activation_beta") if name in attributes):
        raise ValueError(f"{', '.join(refused)} cannot be converted")
    activations = [each.decode() for each in attributes.get("activations", [])]
    if activations and [each.lower() for each in activations] != ["sigmoid", "tanh"] * directions:
        raise ValueError(
            f"activations are {', '.join(activations)}: only Sigmoid, Tanh in each direction can be converted"
        )


def _fold(what: str, name: str, made: ChainMap, opsets: dict[str, int]) -> Any:
    """The array that ``name`` always is, computed where that takes no more than ops of _FOLDED."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    source = made.get(name)
    if source is None:
        raise ValueError(f"{what} is not constant: it comes from the input {name!r}")
    if isinstance(source, onnx.TensorProto):
        return onnx.numpy_helper.to_array(source)
    if source.op_type not in _FOLDED or source.domain not in ("", "ai.onnx"):
        raise ValueError(f"{what} is not constant: {source.op_type} {_label(source)!r} computes it")
    values = {each: _fold(what, each, made, opsets) for each in source.input if each}
    return ReferenceEvaluator(source, opsets=opsets).run(None, values)[list(source.output).index(name)]


def _is_nonzero(name: str, made: ChainMap, opsets: dict[str, int]) -> bool:
    """Whether ``name`` is a constant other than zero, moved about or repeated as often as the batch asks."""
    import onnx

    source = made.get(name)
    if source is None:
        return False
    if isinstance(source, onnx.TensorProto) or source.op_type == "Constant":
        return bool(_fold("initial_h", name, made, opsets).any())
    if source.op_type == "ConstantOfShape":
        return any(onnx.numpy_helper.to_array(each.t).any() for each in source.attribute)
    if source.op_type in _MOVES:
        moved = source.input if source.op_type == "Concat" else source.input[:1]
        return any(_is_nonzero(each, made, opsets) for each in moved)
    return False
