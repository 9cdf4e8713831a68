"""GRU nodes of ONNX models. onnx is imported when `from_onnx` is called."""

import os
from typing import Any

from ..modules import GRU
from . import assemble
from .onnx_constants import DOMAINS, Constants, Scope, iterate_nodes, label, walk
from .onnx_states import check_initial_h, check_sequence_lens

ATTRIBUTES = {
    "activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "layout",
    "linear_before_reset",
}  # fmt: skip


def from_onnx(model: Any, node_name: str | None = None) -> GRU:
    r"""Return a GRU of one GRU node of an ONNX model.

    The node may be in the graph, in the body of an If, Loop or Scan, or in a function of the model.

    The formula (https://onnx.ai/onnx/operators/onnx__GRU.html, opsets 7 to 22):

    .. math::
        z = \sigma(W_z x + R_z h + W_{bz} + R_{bz}) \qquad
        r = \sigma(W_r x + R_r h + W_{br} + R_{br}) \qquad
        h' = (1 - z) \odot \tilde h + z \odot h \\
        \tilde h = \tanh(W_h x + R_h (r \odot h) + R_{bh} + W_{bh}) \text{ if linear_before_reset = 0, else }
        \tanh(W_h x + r \odot (R_h h + R_{bh}) + W_{bh})

    Shapes, with D directions: W [D, 3H, I], R [D, 3H, H], B [D, 6H] (W_b, then R_b; optional), gates in the order
    z, r, h. They are float16, bfloat16, float32 or float64, which the GRU keeps. Weights are constant: initializers, or
    computed from constants by any operators, which `onnx.reference.ReferenceEvaluator` runs here. An initializer that
    is an input of the model too counts as constant.

    sequence_lens and initial_h are left to the caller, as ``lengths`` and ``hx``. The model itself may only have an
    initial_h of zeros, and a sequence_lens that is the whole length of X. Otherwise sequence_lens must come from inputs
    of a graph, and initial_h from such inputs or from outputs of recurrent nodes. Other nodes may move their elements
    (Reshape, Slice, Concat, ...) and compute nothing.

    Args:
        model: a path (external data is read too), or an `onnx.ModelProto`.
        node_name: the node's name or that of one of its outputs; needed where there are several GRU nodes. A node of
            a function has the name that `onnx.inliner` gives it.

    Returns:
        One layer in `eval()`, ``reset_after=False`` for linear_before_reset = 0, which is ONNX's default; bidirectional
        or ``reverse=True`` by the node's direction, batch_first for layout = 1. Y and Y_h of ``output, h_n``:

        - layout = 0: Y [T, D, B, H] is ``output.unflatten(2, (D, H)).transpose(1, 2)``, Y_h [D, B, H] ``h_n``.
        - layout = 1: Y [B, T, D, H] is ``output.unflatten(2, (D, H))``, Y_h [B, D, H] ``h_n.transpose(0, 1)``.
        - sequence_lens: ``lengths``. initial_h: ``hx``, [D, B, H] in both layouts.

    Raises:
        ImportError: onnx is not installed.
        ValueError: no GRU node, several and no node_name, or none of this name; clip, activations other than Sigmoid
            and Tanh, activation_alpha or activation_beta, unknown attributes or direction; another domain, an opset
            before 7; weights that are not constant, or that onnx's evaluator cannot compute; functions that onnx
            cannot inline; shapes, hidden_size and direction that do not fit each other; an initial_h or a
            sequence_lens that is another constant, or computed. Remedy for the last two: clear this input of the
            node, and pass its value.
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
    if model.functions:
        model = _inline(model)
    node, scope = _find(model.graph, node_name)
    try:
        return _convert(node, scope, {each.domain: each.version for each in model.opset_import})
    except ValueError as error:
        raise ValueError(f"GRU node {label(node)!r}: {error}") from error


def _inline(model: Any) -> Any:
    """Return the model with the bodies of its own functions in place of the nodes that call them."""
    import onnx
    from onnx.inliner import inline_local_functions

    filled = onnx.ModelProto()
    filled.CopyFrom(model)
    # The inliner does not know the defaults of a function's attributes.
    defaults = {(each.domain, each.name, each.overload): each.attribute_proto for each in model.functions}
    for node in (node for graph in (filled.graph, *filled.functions) for node in iterate_nodes(graph)):
        has = {each.name for each in node.attribute}
        given = defaults.get((node.domain, node.op_type, node.overload), [])
        node.attribute.extend(each for each in given if each.name not in has)
    try:
        return inline_local_functions(filled, convert_version=True)
    except Exception as error:  # onnx raises many kinds
        names = ", ".join(f"{each.domain}.{each.name}" for each in model.functions)
        raise ValueError(f"onnx cannot inline the functions of this model, {names}: {error}") from error


def _find(graph: Any, name: str | None) -> tuple[Any, Scope]:
    grus = [(node, scope) for node, scope in walk(graph) if node.op_type == "GRU"]
    if not grus:
        raise ValueError("this model has no GRU node")
    found = [(node, scope) for node, scope in grus if name is None or name in (node.name, *node.output)]
    if len(found) != 1:
        listed = ", ".join(repr(label(node)) for node, _ in grus)
        what = "several GRU nodes: pass node_name" if name is None else f"{len(found)} GRU nodes of the name {name!r}"
        raise ValueError(f"this model has {what}; there are {listed}")
    return found[0]


def _convert(node: Any, scope: Scope, opsets: dict[str, int]) -> GRU:
    import onnx

    if node.domain not in DOMAINS:
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

    constants = Constants({**opsets, "": opset})
    inputs = {what: name for what, name in zip(("X", "W", "R", "B", "sequence_lens", "initial_h"), node.input) if name}
    check_initial_h(inputs, scope, constants)
    check_sequence_lens(inputs, 1 if attributes.get("layout", 0) == 1 else 0, scope, constants)
    if missing := [what for what in "WR" if what not in inputs]:
        raise ValueError(f"it has no input {', '.join(missing)}")
    there = [what for what in "WRB" if what in inputs]
    given = assemble.convert_to_tensors({what: constants.evaluate(what, inputs[what], scope) for what in there})
    assemble.check_shape("R", given["R"], directions, "3 * hidden", "hidden")
    hidden = given["R"].size(2)
    assemble.check_shape("R", given["R"], directions, 3 * hidden, hidden)
    assemble.check_shape("W", given["W"], directions, 3 * hidden, "input")
    if attributes.get("hidden_size", hidden) != hidden:
        raise ValueError(f"hidden_size is {attributes['hidden_size']}, but R is that of {hidden}")
    weights = []
    for d in range(directions):
        bias_ih = bias_hh = None
        if "B" in given:
            assemble.check_shape("B", given["B"], directions, 6 * hidden)
            bias_ih, bias_hh = map(assemble.reorder_zrn_to_rzn, given["B"][d].chunk(2))
        weights.append(
            (assemble.reorder_zrn_to_rzn(given["W"][d]), assemble.reorder_zrn_to_rzn(given["R"][d]), bias_ih, bias_hh)
        )
    return assemble.build_gru(
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
