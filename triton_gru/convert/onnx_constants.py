"""Values in ONNX graphs. onnx's evaluator computes constant values; other values are traced to their origins."""

from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

DOMAINS = ("", "ai.onnx")
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
# Operators that only move elements: their outputs contain elements of the first input, or of those in _MOVED_INPUTS.
_MOVES = {
    "Cast", "CastLike", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape",
    "ScatterND", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
_MOVED_INPUTS = {"Concat": slice(None), "ScatterND": slice(0, None, 2)}

# onnx's evaluator computes these operators wrongly, without an error. For example, a Loop without a condition runs no
# iteration, and recurrent nodes use the default activations.
_MISCOMPUTED = {"GRU", "LSTM", "Loop", "RNN", "Scan"}
# Operator -> first opset for which the evaluator is right. It ignores the different definitions of older opsets.
_COMPUTED_SINCE = {"Hardmax": 13, "LogSoftmax": 13, "Resize": 11, "RoiAlign": 16, "Softmax": 13}


@dataclass
class Scope:
    """The names that the nodes of a graph can use. Each name has a source, and may have a declared type."""

    sources: ChainMap = field(default_factory=ChainMap)
    types: ChainMap = field(default_factory=ChainMap)


@dataclass(eq=False)
class Source:
    """The source of a value: an initializer, a graph's input, or a node. ``scope`` has the names that it can use."""

    proto: Any
    scope: Scope

    @property
    def is_node(self) -> bool:
        return hasattr(self.proto, "op_type")

    @property
    def is_input(self) -> bool:
        return hasattr(self.proto, "type")

    @property
    def operator(self) -> str:
        """Return the name of the node's operator, or '' if the source is not a node of ONNX's domain."""
        return self.proto.op_type if self.is_node and self.proto.domain in DOMAINS else ""

    def get_required_names(self) -> list[str]:
        """Return the names of the values that a node is computed from."""
        return _used_names(self.proto) if self.is_node else []


def label(node: Any) -> str:
    """Return a node's name, or its first output if it has none."""
    return node.name or next(filter(None, node.output), "")


def walk(graph: Any, outside: Scope | None = None) -> Iterator[tuple[Any, Scope]]:
    """Yield every node of a graph and of the bodies of its nodes, with the node's scope."""
    scope = Scope() if outside is None else Scope(outside.sources.new_child(), outside.types.new_child())
    inputs = {proto.name: Source(proto, scope) for proto in graph.input}
    initializers = {proto.name: Source(proto, scope) for proto in graph.initializer}
    initializers |= {proto.values.name: Source(proto, scope) for proto in graph.sparse_initializer}
    # In a model, an initializer is the default of the input with its name. In a body, the input always has a value.
    scope.sources.update(inputs | initializers if outside is None else initializers | inputs)
    for node in graph.node:
        scope.sources.update(dict.fromkeys(node.output, Source(node, scope)))
    scope.types.update({proto.name: proto.type for proto in (*graph.input, *graph.value_info)})
    for node in graph.node:
        yield node, scope
        for body in _bodies(node):
            yield from walk(body, scope)


def _bodies(node: Any) -> list[Any]:
    # An attribute without a graph yields an empty graph, which has no nodes.
    return [body for attribute in node.attribute for body in (attribute.g, *attribute.graphs)]


def iterate_nodes(graph: Any) -> Iterator[Any]:
    """Yield every node of a graph or a function, and of the bodies of its nodes."""
    for node in graph.node:
        yield node
        for body in _bodies(node):
            yield from iterate_nodes(body)


def _used_names(node: Any) -> list[str]:
    """Return the names of a node's inputs, and the names that its bodies use from outside."""
    names = [name for name in node.input if name]
    for body in _bodies(node):
        inside = {proto.name for proto in (*body.input, *body.initializer)}
        inside |= {proto.values.name for proto in body.sparse_initializer}
        inside |= {name for child in body.node for name in child.output}
        used = [name for child in body.node for name in _used_names(child)]
        names += [name for name in (*used, *(proto.name for proto in body.output)) if name not in inside]
    return list(dict.fromkeys(names))


class Constants:
    """The constants of a model. `onnx.reference.ReferenceEvaluator` computes each of them once."""

    def __init__(self, opsets: dict[str, int]):
        self._opsets = opsets
        self._reasons: dict[Source, str] = {}
        self._values: dict[Source, dict[str, Any]] = {}

    def nonconstant_reason(self, name: str, scope: Scope) -> str:
        """Return why a value is not constant, or ''."""
        if name not in scope.sources:
            return f"nothing in the model computes {name!r}"
        for source in _sort_sources(scope.sources[name], self._reasons):
            self._reasons[source] = self._source_reason(source)
        return self._reasons[scope.sources[name]]

    def _source_reason(self, source: Source) -> str:
        """Return why a source is not constant, or ''. The reasons of the sources it needs are known."""
        if not source.is_node:
            return f"it comes from the input {source.proto.name!r}" if source.is_input else ""
        for node in (source.proto, *(child for body in _bodies(source.proto) for child in iterate_nodes(body))):
            if _is_random(node):
                return f"{node.op_type} {label(node)!r} draws random numbers"
        for name in source.get_required_names():
            required = source.scope.sources.get(name)
            if required is None:
                return f"nothing in the model computes {name!r}"
            if reason := self._reasons.get(required, "a cycle"):
                return reason
        return ""

    def evaluate(self, what: str, name: str, scope: Scope) -> Any:
        """Return the constant value of ``name`` as an array. ``what`` names the GRU node's input in errors.

        Raises:
            ValueError: the value is not constant, or onnx's evaluator cannot compute it.
        """
        if reason := self.nonconstant_reason(name, scope):
            raise ValueError(f"{what} is not constant: {reason}")
        for source in _sort_sources(scope.sources[name], self._values):
            self._values[source] = self.run(what, source, {}) if source.is_node else _read_initializer(source.proto)
        return self._values[scope.sources[name]][name]

    def run(self, what: str, source: Source, given: dict[str, Any]) -> dict[str, Any]:
        """Return the outputs of a node. Its inputs are in ``given``, or are constants that have been evaluated.

        Raises:
            ValueError: onnx's evaluator cannot compute the outputs, or would compute them wrongly.
        """
        import onnx
        from onnx.reference import ReferenceEvaluator

        for attribute in source.proto.attribute:
            if attribute.type == onnx.AttributeProto.SPARSE_TENSOR and source.operator == "Constant":
                return {source.proto.output[0]: _make_dense(attribute.sparse_tensor)}
        outputs = [name for name in source.proto.output if name]
        graph = onnx.GraphProto(node=[source.proto], output=[onnx.ValueInfoProto(name=name) for name in outputs])
        for node in iterate_nodes(graph):
            # The evaluator knows ONNX's domain by the name "" only.
            node.domain = "" if node.domain in DOMAINS else node.domain
            if node.op_type in _MISCOMPUTED or self._opsets[""] < _COMPUTED_SINCE.get(node.op_type, 0):
                raise ValueError(
                    f"{what} cannot be computed: onnx's evaluator computes {node.op_type} {label(node)!r} wrongly in "
                    f"opset {self._opsets['']}"
                )
        feed = {
            name: given[name] if name in given else self._values[source.scope.sources[name]][name]
            for name in source.get_required_names()
        }
        try:
            return dict(zip(outputs, ReferenceEvaluator(graph, opsets=self._opsets).run(None, feed)))
        except Exception as error:  # the evaluator raises many kinds
            node = f"{source.proto.op_type} {label(source.proto)!r}"
            raise ValueError(f"{what} cannot be computed: onnx's evaluator refuses {node}: {error}") from error

    def find_origins(self, what: str, name: str, scope: Scope) -> Iterator[Any]:
        """Yield the origins of a value's elements, by following operators that only move elements.

        An origin is the array of a constant, or the `Source` of a value that is not constant.
        """
        pending, seen = [(name, scope)], set()
        while pending:
            name, scope = pending.pop()
            source = scope.sources.get(name)
            if (name, source) in seen:
                continue
            seen.add((name, source))
            if source is None or not self.nonconstant_reason(name, scope):
                yield self.evaluate(what, name, scope)
            elif source.operator == "ConstantOfShape":
                yield _fill_value(source.proto)
            elif moved := moved_inputs(source):
                pending += [(moved_name, source.scope) for moved_name in moved]
            else:
                yield source


def moved_inputs(source: Source) -> list[str]:
    """Return the inputs whose elements a node moves. The list is empty if the node also computes."""
    if source.operator not in _MOVES:
        return []
    if any(attribute.name == "reduction" and attribute.s != b"none" for attribute in source.proto.attribute):
        return []
    return list(source.proto.input[_MOVED_INPUTS.get(source.operator, slice(1))])


def _sort_sources(source: Source, done: dict) -> Iterator[Source]:
    """Yield ``source`` and the sources that it needs, each after those it needs itself.

    Sources in ``done`` are left out. The caller adds each yielded source to ``done``.
    """
    stack, entered = [source], set()
    while stack:
        top = stack[-1]
        if top in done or top in entered:
            stack.pop()
            if top not in done:
                yield top
        else:
            entered.add(top)
            required = [top.scope.sources.get(name) for name in top.get_required_names()]
            stack += [need for need in required if need is not None and need not in done and need not in entered]


def _is_random(node: Any) -> bool:
    # The third input of Dropout turns it on.
    return node.domain in DOMAINS and (node.op_type in _RANDOM or (node.op_type == "Dropout" and any(node.input[2:])))


def _fill_value(node: Any) -> Any:
    """Return the value that a ConstantOfShape repeats."""
    import numpy as np
    import onnx

    return next((onnx.numpy_helper.to_array(attribute.t) for attribute in node.attribute), np.zeros(1, np.float32))


def _read_initializer(proto: Any) -> dict[str, Any]:
    """Return the name of an initializer and its array."""
    import onnx

    if isinstance(proto, onnx.SparseTensorProto):
        return {proto.values.name: _make_dense(proto)}
    return {proto.name: onnx.numpy_helper.to_array(proto)}


def _make_dense(sparse: Any) -> Any:
    """Return the dense array of a SparseTensorProto."""
    import numpy as np
    import onnx

    values, indices = (onnx.numpy_helper.to_array(proto) for proto in (sparse.values, sparse.indices))
    array = np.zeros(tuple(sparse.dims), values.dtype)
    array[tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, array.shape)] = values
    return array
