"""Values in ONNX graphs: which are constant and what onnx's evaluator computes for them, and where others come from."""

from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

DOMAINS = ("", "ai.onnx")
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
# Operators whose outputs have no other elements than the first input, or the inputs in _MOVED_INPUTS.
_MOVES = {
    "Cast", "CastLike", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape",
    "ScatterND", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
_MOVED_INPUTS = {"Concat": slice(None), "ScatterND": slice(0, None, 2)}

# onnx's evaluator computes these otherwise than ONNX specifies, and says nothing: a Loop without a condition makes no
# turn, recurrent nodes have the default activations. Of older opsets it does not know what differs.
_MISCOMPUTED = {"GRU", "LSTM", "Loop", "RNN", "Scan"}
_COMPUTED_SINCE = {"Hardmax": 13, "LogSoftmax": 13, "Resize": 11, "RoiAlign": 16, "Softmax": 13}


@dataclass
class Scope:
    """The names that the nodes of a graph can use: the source and the declared type of each."""

    sources: ChainMap = field(default_factory=ChainMap)
    types: ChainMap = field(default_factory=ChainMap)


@dataclass(eq=False)
class Source:
    """An initializer, a graph's input, or a node with its scope."""

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
        """The name of the node's operator, '' if the source is no node or its domain is not ONNX's."""
        return self.proto.op_type if self.is_node and self.proto.domain in DOMAINS else ""

    def get_required_names(self) -> list[str]:
        """Return the names that must be known to compute a node."""
        return _used_by(self.proto) if self.is_node else []


def label(node: Any) -> str:
    """Return a node's name, or its first output if it has none."""
    return node.name or next(filter(None, node.output), "")


def walk(graph: Any, outside: Scope | None = None) -> Iterator[tuple[Any, Scope]]:
    """Yield every node of a graph and of the bodies of its nodes, with the node's scope."""
    scope = Scope() if outside is None else Scope(outside.sources.new_child(), outside.types.new_child())
    inputs = {each.name: Source(each, scope) for each in graph.input}
    initializers = {each.name: Source(each, scope) for each in graph.initializer}
    initializers |= {each.values.name: Source(each, scope) for each in graph.sparse_initializer}
    # An initializer is the default of a model's input. A body's inputs are always given.
    scope.sources.update(inputs | initializers if outside is None else initializers | inputs)
    for node in graph.node:
        scope.sources.update(dict.fromkeys(node.output, Source(node, scope)))
    scope.types.update({each.name: each.type for each in (*graph.input, *graph.value_info)})
    for node in graph.node:
        yield node, scope
        for body in _bodies(node):
            yield from walk(body, scope)


def _bodies(node: Any) -> list[Any]:
    # A field that is not set is an empty graph.
    return [body for attribute in node.attribute for body in (attribute.g, *attribute.graphs)]


def iterate_nodes(graph: Any) -> Iterator[Any]:
    """Yield every node of a graph or a function, and of the bodies of its nodes."""
    for node in graph.node:
        yield node
        for body in _bodies(node):
            yield from iterate_nodes(body)


def _used_by(node: Any) -> list[str]:
    """Return the names of a node's inputs, and those that its bodies take from outside."""
    names = [name for name in node.input if name]
    for body in _bodies(node):
        inside = {each.name for each in (*body.input, *body.initializer)}
        inside |= {each.values.name for each in body.sparse_initializer}
        inside |= {name for each in body.node for name in each.output}
        used = [name for each in body.node for name in _used_by(each)]
        names += [name for name in (*used, *(each.name for each in body.output)) if name not in inside]
    return list(dict.fromkeys(names))


class Constants:
    """The constants of a model, each computed once, by `onnx.reference.ReferenceEvaluator`."""

    def __init__(self, opsets: dict[str, int]):
        self._opsets = opsets
        self._reasons: dict[Source, str] = {}
        self._values: dict[Source, dict[str, Any]] = {}

    def nonconstant_reason(self, name: str, scope: Scope) -> str:
        """Return why a value is not constant, '' if it is."""
        if name not in scope.sources:
            return f"nothing in the model makes {name!r}"
        for source in _in_order(scope.sources[name], self._reasons):
            self._reasons[source] = self._reason(source)
        return self._reasons[scope.sources[name]]

    def _reason(self, source: Source) -> str:
        if not source.is_node:
            return f"it comes from the input {source.proto.name!r}" if source.is_input else ""
        for node in (source.proto, *(each for body in _bodies(source.proto) for each in iterate_nodes(body))):
            if _is_random(node):
                return f"{node.op_type} {label(node)!r} draws random numbers"
        for name in source.get_required_names():
            need = source.scope.sources.get(name)
            if reason := f"nothing in the model makes {name!r}" if need is None else self._reasons.get(need, "a cycle"):
                return reason
        return ""

    def evaluate(self, what: str, name: str, scope: Scope) -> Any:
        """Return the array that is always the value of ``name``, the node's input ``what``.

        Raises:
            ValueError: the value is not constant, or onnx's evaluator cannot compute it.
        """
        if reason := self.nonconstant_reason(name, scope):
            raise ValueError(f"{what} is not constant: {reason}")
        for source in _in_order(scope.sources[name], self._values):
            self._values[source] = self.run(what, source, {}) if source.is_node else _initializer(source.proto)
        return self._values[scope.sources[name]][name]

    def run(self, what: str, source: Source, given: dict[str, Any]) -> dict[str, Any]:
        """Return the outputs of a node. Its inputs are ``given``, or are constants.

        Raises:
            ValueError: onnx's evaluator cannot compute them, or would do so otherwise than ONNX specifies.
        """
        import onnx
        from onnx.reference import ReferenceEvaluator

        for attribute in source.proto.attribute:
            if attribute.type == onnx.AttributeProto.SPARSE_TENSOR and source.operator == "Constant":
                return {source.proto.output[0]: _dense(attribute.sparse_tensor)}
        outputs = [name for name in source.proto.output if name]
        graph = onnx.GraphProto(node=[source.proto], output=[onnx.ValueInfoProto(name=name) for name in outputs])
        for node in iterate_nodes(graph):
            # The evaluator knows ONNX's domain by this name only.
            node.domain = "" if node.domain in DOMAINS else node.domain
            if node.op_type in _MISCOMPUTED or self._opsets[""] < _COMPUTED_SINCE.get(node.op_type, 0):
                raise ValueError(
                    f"{what} cannot be computed: onnx's evaluator computes {node.op_type} {label(node)!r} otherwise "
                    f"than ONNX specifies in opset {self._opsets['']}"
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
        """Yield where the elements of a value come from, through operators that only move them.

        An origin is the array of a constant, or the `Source` of a value that is not constant.
        """
        names, seen = [(name, scope)], set()
        while names:
            name, scope = names.pop()
            source = scope.sources.get(name)
            if (name, source) in seen:
                continue
            seen.add((name, source))
            if source is None or not self.nonconstant_reason(name, scope):
                yield self.evaluate(what, name, scope)
            elif source.operator == "ConstantOfShape":
                yield _fill_value(source.proto)
            elif moved := moved_inputs(source):
                names += [(each, source.scope) for each in moved]
            else:
                yield source


def moved_inputs(source: Source) -> list[str]:
    """Return the inputs whose elements a node moves, none if it does more than to move them."""
    if source.operator not in _MOVES:
        return []
    if any(each.name == "reduction" and each.s != b"none" for each in source.proto.attribute):
        return []
    return list(source.proto.input[_MOVED_INPUTS.get(source.operator, slice(1))])


def _in_order(source: Source, done: dict) -> Iterator[Source]:
    """Yield a source after all that it is computed of, without those that the caller has put in ``done``."""
    stack, entered = [source], set()
    while stack:
        top = stack[-1]
        if top in done or top in entered:
            stack.pop()
            if top not in done:
                yield top
        else:
            entered.add(top)
            needs = [top.scope.sources.get(name) for name in top.get_required_names()]
            stack += [each for each in needs if each is not None and each not in done and each not in entered]


def _is_random(node: Any) -> bool:
    # The third input of Dropout turns it on.
    return node.domain in DOMAINS and (node.op_type in _RANDOM or (node.op_type == "Dropout" and any(node.input[2:])))


def _fill_value(node: Any) -> Any:
    """Return the value that a ConstantOfShape repeats."""
    import numpy as np
    import onnx

    return next((onnx.numpy_helper.to_array(each.t) for each in node.attribute), np.zeros(1, np.float32))


def _initializer(proto: Any) -> dict[str, Any]:
    import onnx

    if isinstance(proto, onnx.SparseTensorProto):
        return {proto.values.name: _dense(proto)}
    return {proto.name: onnx.numpy_helper.to_array(proto)}


def _dense(sparse: Any) -> Any:
    """Return the array of a SparseTensorProto."""
    import numpy as np
    import onnx

    values, indices = (onnx.numpy_helper.to_array(each) for each in (sparse.values, sparse.indices))
    array = np.zeros(tuple(sparse.dims), values.dtype)
    array[tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, array.shape)] = values
    return array
