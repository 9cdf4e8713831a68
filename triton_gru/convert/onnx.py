"""Conversion of GRU nodes of ONNX models. `from_onnx` imports onnx when it is called."""

import os
from typing import Any

from ..modules import GRU
from . import assemble
from .onnx_constants import DOMAINS, Constants, Scope, get_label, iterate_nodes, iterate_scoped_nodes
from .onnx_states import check_initial_h, check_sequence_lens

_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h")  # of a GRU node, in ONNX's order
ATTRIBUTES = {
    "activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "layout",
    "linear_before_reset",
}  # fmt: skip


def from_onnx(model: Any, node_name: str | None = None) -> GRU:
    r"""Convert one GRU node of an ONNX model to a GRU.

        gru = triton_gru.convert.from_onnx("model.onnx", "encoder")

    The node may be in the graph, in the body of an If, Loop or Scan, or in a function of the model.

    The formula (https://onnx.ai/onnx/operators/onnx__GRU.html, opsets 7 to 22):

    .. math::
        z = \sigma(W_z x + R_z h + W_{bz} + R_{bz}) \qquad
        r = \sigma(W_r x + R_r h + W_{br} + R_{br}) \qquad
        h' = (1 - z) \odot \tilde h + z \odot h \\
        \tilde h = \tanh(W_h x + R_h (r \odot h) + R_{bh} + W_{bh}) \text{ if linear_before_reset = 0, else }
        \tanh(W_h x + r \odot (R_h h + R_{bh}) + W_{bh})

    Shapes, with D directions, and the gates in the order z, r, h:
        W: [D, 3H, I].
        R: [D, 3H, H].
        B: [D, 6H]: W_b, then R_b. Optional.

    dtypes: float16, bfloat16, float32 or float64, the same for all weights. The GRU keeps it.

    Weights must be constant: initializers, or computed from constants. `onnx.reference.ReferenceEvaluator` runs the
    operators that compute them. An initializer that is also an input of the model counts as constant.

    sequence_lens and initial_h: pass them yourself, as ``lengths`` and ``hx``. The model may contain an initial_h of
    zeros, and a sequence_lens that is the whole length of X. Any other sequence_lens must come from inputs of a graph.
    Any other initial_h must come from inputs of a graph, or from outputs of recurrent nodes. Nodes between these and
    the GRU node may move elements (Reshape, Slice, Concat, ...), but not compute.

    Args:
        model: a path, or an `onnx.ModelProto`. For a path, external data is read, too.
        node_name: name of the node, or of one of its outputs. Needed if the model has several GRU nodes. A node of a
            function has the name that `onnx.inliner` gives it.

    Returns:
        One layer in `eval()`, with these options:

        - ``reset_after=False`` for linear_before_reset = 0, which is ONNX's default.
        - ``bidirectional=True`` for direction = "bidirectional", and ``reverse=True`` for direction = "reverse".
        - ``batch_first=True`` for layout = 1.

        ONNX's Y and Y_h follow from ``output, h_n``. ``hx`` is [D, B, H] in both layouts.

        - layout = 0: Y [T, D, B, H] is ``output.unflatten(2, (D, H)).transpose(1, 2)``, and Y_h [D, B, H] is ``h_n``.
        - layout = 1: Y [B, T, D, H] is ``output.unflatten(2, (D, H))``, and Y_h [B, D, H] is ``h_n.transpose(0, 1)``.

    Raises:
        ImportError: onnx is not installed.
        ValueError: the model has no GRU node, not exactly one GRU node of the name ``node_name``, or several GRU nodes
            without a ``node_name``.
        ValueError: the node has clip, activation_alpha or activation_beta, or activations other than Sigmoid and Tanh.
        ValueError: an attribute, the direction or the domain is unknown, or the opset is before 7.
        ValueError: W or R is missing, weights are not constant, or onnx's evaluator cannot compute them.
        ValueError: onnx cannot inline the model's functions.
        ValueError: shapes, hidden_size and direction do not fit each other.
        ValueError: initial_h or sequence_lens is a constant or computed, other than the above. Remedy: clear this input
            of the node, and pass its value yourself.
        TypeError: ``model`` is neither a path nor a ModelProto, the dtypes of the weights differ, or a dtype is not one
            of the above.
        Exception: `onnx.load` raises it for the path.
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
    node, scope = _find_node(model.graph, node_name)
    try:
        return _convert_node(node, scope, {opset.domain: opset.version for opset in model.opset_import})
    except ValueError as error:
        raise ValueError(f"GRU node {get_label(node)!r}: {error}") from error


def _inline(model: Any) -> Any:
    """Return the model with its functions inlined: each node that calls a function becomes the function's body.

    Raise ValueError if onnx cannot inline them. The given model is not changed.
    """
    import onnx
    from onnx.inliner import inline_local_functions

    completed = onnx.ModelProto()
    completed.CopyFrom(model)
    # The inliner ignores the defaults of a function's attributes, so add them to the nodes.
    defaults = {
        (function.domain, function.name, function.overload): function.attribute_proto for function in model.functions
    }
    for node in (node for graph in (completed.graph, *completed.functions) for node in iterate_nodes(graph)):
        set_names = {attribute.name for attribute in node.attribute}
        node_defaults = defaults.get((node.domain, node.op_type, node.overload), [])
        node.attribute.extend(attribute for attribute in node_defaults if attribute.name not in set_names)
    try:
        return inline_local_functions(completed, convert_version=True)
    except Exception as error:  # onnx raises many kinds
        names = ", ".join(f"{function.domain}.{function.name}" for function in model.functions)
        raise ValueError(f"onnx cannot inline the functions of this model, {names}: {error}") from error


def _find_node(graph: Any, name: str | None) -> tuple[Any, Scope]:
    """Return the GRU node of this name and its scope. Without a name, return the only GRU node.

    Raise ValueError unless there is exactly one such node.
    """
    grus = [(node, scope) for node, scope in iterate_scoped_nodes(graph) if node.op_type == "GRU"]
    if not grus:
        raise ValueError("this model has no GRU node")
    matches = [(node, scope) for node, scope in grus if name is None or name in (node.name, *node.output)]
    if len(matches) != 1:
        labels = ", ".join(repr(get_label(node)) for node, _ in grus)
        number = "several GRU nodes" if name is None else f"{len(matches)} GRU nodes of the name {name!r}"
        raise ValueError(f"this model has {number}: pass node_name, one of {labels}")
    return matches[0]


def _convert_node(node: Any, scope: Scope, opsets: dict[str, int]) -> GRU:
    """Return the GRU of a GRU node. ``opsets`` has the opset of each domain. Raise ValueError as `from_onnx`."""
    import onnx

    if node.domain not in DOMAINS:
        raise ValueError(f"its domain is {node.domain!r}, not ONNX's")
    opset = opsets.get("", opsets.get("ai.onnx", 0))  # ONNX's domain has two names
    if opset < 7:  # Older opsets define GRU differently. It has the attribute output_sequence there.
        raise ValueError(f"opset {opset} is too old: convert the model to opset 7 or later with onnx.version_converter")
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    direction = attributes.get("direction", b"forward").decode()
    directions = {"forward": 1, "reverse": 1, "bidirectional": 2}.get(direction)
    if directions is None:
        raise ValueError(f"direction is {direction!r}, expected 'forward', 'reverse' or 'bidirectional'")
    _check_attributes(attributes, directions)

    constants = Constants({**opsets, "": opset})
    batch_first = attributes.get("layout", 0) == 1
    # An input of the node, such as "W" -> the name of its value in the graph. Absent inputs are left out.
    value_names = {label: name for label, name in zip(_INPUTS, node.input) if name}
    check_initial_h(value_names, scope, constants)
    check_sequence_lens(value_names, 1 if batch_first else 0, scope, constants)
    if missing := [label for label in "WR" if label not in value_names]:
        raise ValueError(f"it has no input {', '.join(missing)}")
    weight_labels = [label for label in "WRB" if label in value_names]
    tensors = assemble.convert_to_tensors(
        {label: constants.evaluate(label, value_names[label], scope) for label in weight_labels}
    )
    assemble.check_shape("R", tensors["R"], directions, "3 * hidden", "hidden")  # R has a hidden size to read
    hidden = tensors["R"].size(2)
    assemble.check_shape("R", tensors["R"], directions, 3 * hidden, hidden)
    assemble.check_shape("W", tensors["W"], directions, 3 * hidden, "input")
    if attributes.get("hidden_size", hidden) != hidden:
        raise ValueError(f"hidden_size is {attributes['hidden_size']}, but R has the shape for {hidden}")
    weights = []
    for index in range(directions):
        weight_ih, weight_hh = map(assemble.reorder_zrn_to_rzn, (tensors["W"][index], tensors["R"][index]))
        bias_ih = bias_hh = None
        if "B" in tensors:
            assemble.check_shape("B", tensors["B"], directions, 6 * hidden)
            bias_ih, bias_hh = map(assemble.reorder_zrn_to_rzn, tensors["B"][index].chunk(2))
        weights.append((weight_ih, weight_hh, bias_ih, bias_hh))
    return assemble.build_gru(
        weights,
        reset_after=attributes.get("linear_before_reset", 0) != 0,
        reverse=direction == "reverse",
        batch_first=batch_first,
    )


def _check_attributes(attributes: dict[str, Any], directions: int) -> None:
    """Raise ValueError if a GRU node has attributes that cannot be converted."""
    if unknown := sorted(set(attributes) - ATTRIBUTES):
        raise ValueError(f"unknown attributes {', '.join(unknown)}")
    if unsupported := sorted(name for name in ("clip", "activation_alpha", "activation_beta") if name in attributes):
        raise ValueError(f"{', '.join(unsupported)} cannot be converted")
    activations = [name.decode() for name in attributes.get("activations", [])]
    if activations and [name.lower() for name in activations] != ["sigmoid", "tanh"] * directions:
        raise ValueError(
            f"activations are {', '.join(activations)}: only Sigmoid, Tanh in each direction can be converted"
        )
