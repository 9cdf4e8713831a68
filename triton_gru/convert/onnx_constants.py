"""Values in ONNX graphs. onnx's evaluator computes constant values; other values are traced to their origins."""

from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

DOMAINS = ("", "ai.onnx")
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
# Operators that only move, repeat or cast elements. The outputs contain elements of the operator's first input, or of
# the inputs that _MOVED_INPUTS selects.
_MOVES = {
    "Cast", "CastLike", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape",
    "ScatterND", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
_MOVED_INPUTS = {"Concat": slice(None), "ScatterND": slice(0, None, 2)}

# onnx's evaluator computes these operators wrongly, without an error. For example, a Loop without a condition runs no
# iteration, and recurrent nodes use the default activations.
_MISCOMPUTED = {"GRU", "LSTM", "Loop", "RNN", "Scan"}
# Operator -> first opset for which the evaluator is right. Older opsets define the operator differently, which the
# evaluator ignores.
_COMPUTED_SINCE = {"Hardmax": 13, "LogSoftmax": 13, "Resize": 11, "RoiAlign": 16, "Softmax": 13}


@dataclass
class Scope:
    """The names that the nodes of a graph can use, those of outer graphs included.

    Attributes:
        sources: by name, the `Source` of the value.
        types: by name, the value's declared type, if it has one.
    """

    sources: ChainMap = field(default_factory=ChainMap)
    types: ChainMap = field(default_factory=ChainMap)


@dataclass(eq=False)
class Source:
    """The source of a value: an initializer, a graph's input, or a node.

    Attributes:
        proto: onnx's message of the initializer, input or node.
        scope: the names that a node can use.
    """

    proto: Any
    scope: Scope

    @property
    def is_node(self) -> bool:
        """Return whether the source is a node, by a field that only nodes have."""
        return hasattr(self.proto, "op_type")

    @property
    def is_input(self) -> bool:
        """Return whether the source is an input of a graph, by a field that only inputs have."""
        return hasattr(self.proto, "type")

    @property
    def operator(self) -> str:
        """Return the name of the node's operator, or '' if the source is not a node of ONNX's domain."""
        return self.proto.op_type if self.is_node and self.proto.domain in DOMAINS else ""

    def get_required_names(self) -> list[str]:
        """Return the names of the values that a node needs. Initializers and inputs need none."""
        return _list_used_names(self.proto) if self.is_node else []


def get_label(node: Any) -> str:
    """Return a node's name for errors, or the name of its first output if the node has no name."""
    return node.name or next(filter(None, node.output), "")


def iterate_scoped_nodes(graph: Any, outer_scope: Scope | None = None) -> Iterator[tuple[Any, Scope]]:
    """Yield every node of a graph and of the bodies of its nodes, with the node's scope.

    ``outer_scope`` is the scope of the node that has ``graph`` as its body, or None for the graph of a model.
    """
    is_body = outer_scope is not None
    scope = Scope(outer_scope.sources.new_child(), outer_scope.types.new_child()) if is_body else Scope()
    inputs = {proto.name: Source(proto, scope) for proto in graph.input}
    initializers = {proto.name: Source(proto, scope) for proto in graph.initializer}
    initializers |= {proto.values.name: Source(proto, scope) for proto in graph.sparse_initializer}
    # An input and an initializer may have the same name. In a body, the input is the source, because it always has a
    # value. In a model, the initializer is the source: it is the input's default value, and counts as constant.
    scope.sources.update(initializers | inputs if is_body else inputs | initializers)
    for node in graph.node:
        scope.sources.update(dict.fromkeys(node.output, Source(node, scope)))
    scope.types.update({proto.name: proto.type for proto in (*graph.input, *graph.value_info)})
    for node in graph.node:
        yield node, scope
        for body in _list_bodies(node):
            yield from iterate_scoped_nodes(body, outer_scope=scope)


def _list_bodies(node: Any) -> list[Any]:
    """Return the graphs in a node's attributes, such as the branches of an If."""
    # An attribute without a graph yields an empty graph, which has no nodes.
    return [body for attribute in node.attribute for body in (attribute.g, *attribute.graphs)]


def iterate_nodes(graph: Any) -> Iterator[Any]:
    """Yield every node of a graph or a function, and of the bodies of its nodes."""
    for node in graph.node:
        yield node
        for body in _list_bodies(node):
            yield from iterate_nodes(body)


def _list_used_names(node: Any) -> list[str]:
    """Return the names of a node's inputs, and the names from outside that its bodies use, each once."""
    names = [name for name in node.input if name]
    for body in _list_bodies(node):
        defined_names = {proto.name for proto in (*body.input, *body.initializer)}
        defined_names |= {proto.values.name for proto in body.sparse_initializer}
        defined_names |= {name for child in body.node for name in child.output}
        used_names = [name for child in body.node for name in _list_used_names(child)]
        used_names += [proto.name for proto in body.output]
        names += [name for name in used_names if name not in defined_names]
    return list(dict.fromkeys(names))


class Constants:
    """The constants of a model. `onnx.reference.ReferenceEvaluator` computes each constant once.

    ``opsets`` has the version of each domain. In errors, ``input_label`` names the GRU node's input that needs the
    value: "W", for example.
    """

    def __init__(self, opsets: dict[str, int]):
        self._opsets = opsets
        self._reasons: dict[Source, str] = {}  # why the source is not constant, or ''
        self._values: dict[Source, dict[str, Any]] = {}  # by source, the array of each of its outputs

    def nonconstant_reason(self, name: str, scope: Scope) -> str:
        """Return why the value ``name`` is not constant, or ''."""
        if name not in scope.sources:
            return f"nothing in the model computes {name!r}"
        for source in _sort_sources(scope.sources[name], self._reasons):
            self._reasons[source] = self._nonconstant_source_reason(source)
        return self._reasons[scope.sources[name]]

    def _nonconstant_source_reason(self, source: Source) -> str:
        """Return why a source is not constant, or ''. `_reasons` must have the reasons of all sources that it needs."""
        if not source.is_node:
            return f"it comes from the input {source.proto.name!r}" if source.is_input else ""
        for node in (source.proto, *(child for body in _list_bodies(source.proto) for child in iterate_nodes(body))):
            if _is_random(node):
                return f"{node.op_type} {get_label(node)!r} draws random numbers"
        for name in source.get_required_names():
            required = source.scope.sources.get(name)
            if required is None:
                return f"nothing in the model computes {name!r}"
            # Only in a cycle of nodes is the reason of a required source still missing.
            if reason := self._reasons.get(required, "it depends on itself"):
                return reason
        return ""

    def evaluate(self, input_label: str, name: str, scope: Scope) -> Any:
        """Return the value ``name``, which must be constant, as an array.

        Raises:
            ValueError: the value is not constant, or onnx's evaluator cannot compute it.
        """
        if reason := self.nonconstant_reason(name, scope):
            raise ValueError(f"{input_label} is not constant: {reason}")
        for source in _sort_sources(scope.sources[name], self._values):
            is_node = source.is_node
            self._values[source] = (
                self.evaluate_node(input_label, source, {}) if is_node else _read_initializer(source.proto)
            )
        return self._values[scope.sources[name]][name]

    def evaluate_node(self, input_label: str, source: Source, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the outputs of ``source``, which is a node, by name.

        ``inputs`` are arrays by name. An input that ``inputs`` lacks must be a constant that was evaluated.

        Raises:
            ValueError: onnx's evaluator cannot compute the outputs, or would compute them wrongly.
        """
        import onnx
        from onnx.reference import ReferenceEvaluator

        # onnx's evaluator would return an object of another class for a sparse constant.
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
                    f"{input_label} cannot be computed: onnx's evaluator computes {node.op_type} {get_label(node)!r} "
                    f"wrongly in opset {self._opsets['']}"
                )
        feed = {
            name: inputs[name] if name in inputs else self._values[source.scope.sources[name]][name]
            for name in source.get_required_names()
        }
        try:
            return dict(zip(outputs, ReferenceEvaluator(graph, opsets=self._opsets).run(None, feed)))
        except Exception as error:  # the evaluator raises many kinds
            node = f"{source.proto.op_type} {get_label(source.proto)!r}"
            raise ValueError(f"{input_label} cannot be computed: onnx's evaluator refuses {node}: {error}") from error

    def find_origins(self, input_label: str, name: str, scope: Scope) -> Iterator[Any]:
        """Yield the origins of the elements of the value ``name``.

        To find an origin, operators that only move elements are followed back to their inputs. An origin is the array
        of a constant, or the `Source` of a value that is not constant. Exception: the origin of a ConstantOfShape is an
        array of one element, even if the shape is not constant.

        Raises:
            ValueError: nothing in the model computes a value, or onnx's evaluator cannot compute a constant.
        """
        pending, seen = [(name, scope)], set()
        while pending:
            name, scope = pending.pop()
            source = scope.sources.get(name)
            if (name, source) in seen:
                continue
            seen.add((name, source))
            if source is None or not self.nonconstant_reason(name, scope):
                yield self.evaluate(input_label, name, scope)
            elif source.operator == "ConstantOfShape":
                yield _read_fill_value(source.proto)
            elif moved_names := list_moved_inputs(source):
                pending += [(moved_name, source.scope) for moved_name in moved_names]
            else:
                yield source


def list_moved_inputs(source: Source) -> list[str]:
    """Return the names of the inputs whose elements the node ``source`` passes on: moved, repeated or cast.

    The list is empty for any other source.
    """
    if source.operator not in _MOVES:
        return []
    # With `reduction`, ScatterND combines elements.
    if any(attribute.name == "reduction" and attribute.s != b"none" for attribute in source.proto.attribute):
        return []
    return list(source.proto.input[_MOVED_INPUTS.get(source.operator, slice(1))])


def _sort_sources(source: Source, done: dict) -> Iterator[Source]:
    """Yield ``source`` and all sources that it needs. Every source comes after the sources that it needs.

    Sources in ``done`` are left out. The caller must add a yielded source to ``done`` before it asks for the next one,
    because the search reads ``done``. The search does not recurse: a long graph would exceed Python's limit.
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
            stack += [item for item in required if item is not None and item not in done and item not in entered]


def _is_random(node: Any) -> bool:
    """Return whether the outputs of a node may be random, as those of a Dropout with a third input (training_mode)."""
    return node.domain in DOMAINS and (node.op_type in _RANDOM or (node.op_type == "Dropout" and any(node.input[2:])))


def _read_fill_value(node: Any) -> Any:
    """Return the value that a ConstantOfShape repeats, as an array of one element. ONNX's default is 0."""
    import numpy as np
    import onnx

    return next((onnx.numpy_helper.to_array(attribute.t) for attribute in node.attribute), np.zeros(1, np.float32))


def _read_initializer(proto: Any) -> dict[str, Any]:
    """Return a dict of one entry: the name of an initializer and its array."""
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
    # Indices are rows of coordinates, or numbers of elements in row-major order.
    array[tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, array.shape)] = values
    return array
