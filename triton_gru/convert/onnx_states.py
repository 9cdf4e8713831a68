"""Checks of a GRU node's initial_h and sequence_lens, whose values the user of the converted GRU has to pass.

If the model computes one of these values, the user may not know the value. Then the results would be wrong.

In these checks, ``value_names`` maps an input of the node, such as "X", to the name of its value in the graph.
"""

from .onnx_constants import Constants, Scope, Source, get_label, list_moved_inputs

_RECURRENT = ("GRU", "LSTM", "RNN")


def check_initial_h(value_names: dict[str, str], scope: Scope, constants: Constants) -> None:
    """Raise ValueError unless initial_h is absent, zero, or a state that the user of the converted GRU knows.

    The user knows inputs of a graph and outputs of recurrent nodes. Nodes between these and the GRU node may only move
    elements.
    """
    if "initial_h" not in value_names:
        return
    for origin in constants.find_origins("initial_h", value_names["initial_h"], scope):
        if not isinstance(origin, Source):
            if origin.any():
                raise ValueError(
                    "initial_h is a constant other than zero: clear this input of the node, and pass its value as hx"
                )
        elif not origin.is_input and origin.operator not in _RECURRENT:
            reason = _computed_reason("initial_h", origin, constants)
            raise ValueError(f"{reason}: clear this input of the node, and pass its value as hx")


def check_sequence_lens(value_names: dict[str, str], time_dim: int, scope: Scope, constants: Constants) -> None:
    """Raise ValueError unless sequence_lens is absent, the whole length of X, or comes from inputs of a graph.

    The user of the converted GRU knows inputs of a graph. ``time_dim`` is the dimension of X that counts steps.
    """
    if "sequence_lens" not in value_names or _is_whole_length(value_names, time_dim, scope, constants):
        return
    steps = _find_declared_size(value_names.get("X", ""), time_dim, scope)
    for origin in constants.find_origins("sequence_lens", value_names["sequence_lens"], scope):
        if not isinstance(origin, Source):
            if steps is None or (origin != steps).any():
                length = "unknown" if steps is None else steps
                raise ValueError(
                    f"sequence_lens has the constants {origin.ravel().tolist()}, and the length of X is {length}: "
                    "clear this input of the node, and pass its value as lengths"
                )
        elif not origin.is_input:
            reason = _computed_reason("sequence_lens", origin, constants)
            raise ValueError(f"{reason}: clear this input of the node, and pass its value as lengths")


def _computed_reason(input_label: str, origin: Source, constants: Constants) -> str:
    """Return which node computes the input ``input_label`` of the GRU node, and why its outputs are not constant."""
    output = next(filter(None, origin.proto.output))
    reason = constants.nonconstant_reason(output, origin.scope)
    return f"{input_label} is computed by {origin.proto.op_type} {get_label(origin.proto)!r}, {reason}"


def _find_declared_size(name: str, dimension: int, scope: Scope) -> int | None:
    """Return the declared size of a dimension of a value, or None if it is not declared or not a number."""
    sizes = scope.types[name].tensor_type.shape.dim if name in scope.types else []
    return sizes[dimension].dim_value or None if dimension < len(sizes) else None


def _is_whole_length(value_names: dict[str, str], time_dim: int, scope: Scope, constants: Constants) -> bool:
    """Return whether every element of sequence_lens is known to be the length of X, taken from X's shape.

    To find out, the nodes between X's shape and sequence_lens are run on the numbers of dimensions, not their sizes. If
    all elements of the result are ``time_dim``, then sequence_lens has the size of this dimension.
    """
    import numpy as np

    name, movers = value_names["sequence_lens"], []
    source = scope.sources.get(name)
    while source is not None and len(moved_names := list_moved_inputs(source)) == 1:
        movers.append((source, name))  # a node that moves elements, and the output that is followed
        name, source = moved_names[0], source.scope.sources.get(moved_names[0])
    is_shape_of_X = (
        source is not None
        and source.operator == "Shape"
        and source.proto.input[0] == value_names.get("X")
        and source.scope.sources.get(value_names["X"]) is scope.sources.get(value_names["X"])
    )
    if not is_shape_of_X:
        return False
    bounds = {attribute.name: attribute.i for attribute in source.proto.attribute}
    dimensions = np.arange(3)[bounds.get("start", 0) : bounds.get("end", 3)]  # X has three dimensions
    for mover, output in reversed(movers):
        parameters = [parameter for parameter in mover.get_required_names() if parameter != name]
        is_decided = (dimensions == time_dim).all()  # Moving the elements cannot change them any more.
        if is_decided or any(constants.nonconstant_reason(parameter, mover.scope) for parameter in parameters):
            break
        for parameter in parameters:
            constants.evaluate("sequence_lens", parameter, mover.scope)
        dimensions, name = constants.evaluate_node("sequence_lens", mover, {name: dimensions})[output], output
    return dimensions.size > 0 and bool((dimensions == time_dim).all())
