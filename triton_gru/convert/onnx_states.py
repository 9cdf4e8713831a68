"""Checks of a GRU node's initial_h and sequence_lens. The caller of a converted GRU passes both.

If the model itself computes one of them, the caller may not know its value. Then the results of the GRU would be wrong.
"""

from .onnx_constants import Constants, Scope, Source, label, moved_inputs

_RECURRENT = ("GRU", "LSTM", "RNN")


def check_initial_h(inputs: dict[str, str], scope: Scope, constants: Constants) -> None:
    """Raise ValueError unless initial_h is zero, or a state that the caller knows.

    The caller knows inputs of the graph and outputs of recurrent nodes. Nodes between may only move elements.
    """
    if "initial_h" not in inputs:
        return
    for origin in constants.find_origins("initial_h", inputs["initial_h"], scope):
        if not isinstance(origin, Source):
            if origin.any():
                raise ValueError(
                    "initial_h is a constant other than zero: clear this input of the node, and pass its value as hx"
                )
        elif not origin.is_input and origin.operator not in _RECURRENT:
            reason = _computed_reason("initial_h", origin, constants)
            raise ValueError(f"{reason}: clear this input of the node, and pass its value as hx")


def check_sequence_lens(inputs: dict[str, str], time: int, scope: Scope, constants: Constants) -> None:
    """Raise ValueError unless sequence_lens is the whole length of X, or lengths that the caller knows.

    The caller knows inputs of the graph. ``time`` is the dimension of X that counts steps.
    """
    if "sequence_lens" not in inputs or _is_whole_length(inputs, time, scope, constants):
        return
    steps = _declared_size(inputs.get("X", ""), time, scope)
    for origin in constants.find_origins("sequence_lens", inputs["sequence_lens"], scope):
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


def _computed_reason(what: str, origin: Source, constants: Constants) -> str:
    reason = constants.nonconstant_reason(next(filter(None, origin.proto.output)), origin.scope)
    return f"{what} is computed by {origin.proto.op_type} {label(origin.proto)!r}, {reason}"


def _declared_size(name: str, dimension: int, scope: Scope) -> int | None:
    """Return a size in the declared shape of a value, or None if it is not a number."""
    sizes = scope.types[name].tensor_type.shape.dim if name in scope.types else []
    return sizes[dimension].dim_value or None if dimension < len(sizes) else None


def _is_whole_length(inputs: dict[str, str], time: int, scope: Scope, constants: Constants) -> bool:
    """Return whether every element of sequence_lens is the length of X, taken from X's shape.

    To find out, the nodes between X's shape and sequence_lens are run on dimension numbers instead of sizes.
    """
    import numpy as np

    name, movers = inputs["sequence_lens"], []
    source = scope.sources.get(name)
    while source is not None and len(moved := moved_inputs(source)) == 1:
        movers.append((source, name))
        name, source = moved[0], source.scope.sources.get(moved[0])
    is_shape_of_X = (
        source is not None
        and source.operator == "Shape"
        and source.proto.input[0] == inputs.get("X")
        and source.scope.sources.get(inputs["X"]) is scope.sources.get(inputs["X"])
    )
    if not is_shape_of_X:
        return False
    bounds = {attribute.name: attribute.i for attribute in source.proto.attribute}
    dimensions = np.arange(3)[bounds.get("start", 0) : bounds.get("end", 3)]
    for mover, output in reversed(movers):
        others = [other for other in mover.get_required_names() if other != name]
        if (dimensions == time).all() or any(constants.nonconstant_reason(other, mover.scope) for other in others):
            break
        for other in others:
            constants.evaluate("sequence_lens", other, mover.scope)
        dimensions, name = constants.run("sequence_lens", mover, {name: dimensions})[output], output
    return dimensions.size > 0 and bool((dimensions == time).all())
