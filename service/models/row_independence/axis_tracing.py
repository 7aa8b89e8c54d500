"""Follows the rows of a batch through a graph, operator by operator."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np

from service.models.row_independence import row_numbers
from service.models.row_independence.onnx_graph import Constant, DeclaredShape, Function, Graph, Model, Node, Reference
from service.models.row_independence.operation import Operation, Rule, positive_axis
from service.models.row_independence.operators import (
    classical,
    elementwise,
    fused,
    layout,
    mixing,
    networks,
    products,
    reductions,
    selection,
    shapes,
)
from service.models.row_independence.sizes import BATCH, Size
from service.models.row_independence.values import NotProved, Shape, Value, of_array

MIN_STANDARD_VERSION = 6  # in older operator sets sizes were attributes, and operators had other meanings
_MAX_FUNCTION_DEPTH = 32
_MAX_LOOP_PASSES = 8
RULES: dict[str, Mapping[str, Rule]] = {
    "": {
        **elementwise.RULES,
        **shapes.RULES,
        **layout.RULES,
        **reductions.RULES,
        **products.RULES,
        **networks.RULES,
        **selection.RULES,
        **fused.STANDARD_RULES,
        **mixing.refusals(mixing.STANDARD | mixing.NEVER),
    },
    "ai.onnx.ml": {**classical.RULES, **mixing.refusals(mixing.CLASSICAL)},
    "com.microsoft": {**fused.RULES, **mixing.refusals(mixing.FUSED)},
}


class Tracing:
    """Traces the batch axis through a model once."""

    def __init__(self, model: Model) -> None:
        """Set up for a model."""
        self._model = model
        self._numbers = count()
        self._named: dict[str, Size] = {}
        self._depth = 0

    def outputs(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Trace the model from its inputs to its outputs.

        Raises:
            NotProved: rows may depend on each other; says where.
        """
        graph = self._model.graph
        values: dict[str, Value] = {name: _constant(each) for name, each in graph.constants.items()} | dict(inputs)
        self._run(graph.nodes, values, graph.outputs, self._model.versions)
        missing = [name for name in graph.outputs if name not in values]
        if missing:
            raise NotProved(f"output {missing[0]!r} is computed by no node")
        return {name: values[name] for name in graph.outputs}

    def fresh(self) -> Size:
        """Make a dimension that is unknown but independent of the batch size."""
        return Operation(_NOTHING, 0, (), self._numbers).fresh()

    def dimension(self, size: int | str | None) -> Size:
        """Translate a declared dimension of a batched input, other than the batch; equal names are equal sizes."""
        if isinstance(size, int):
            return Size(size)
        return self.fresh() if size is None else self._named.setdefault(size, self.fresh())

    def _run(
        self, nodes: Sequence[Node], values: dict[str, Value], wanted: Sequence[str], versions: Mapping[str, int]
    ) -> None:
        """Trace the nodes that `wanted` depends on, and add their outputs to `values`."""
        for node in in_order(nodes, wanted):
            try:
                results = self._trace(node, values, versions)
            except NotProved as reason:
                text = str(reason)
                raise NotProved(text if text.startswith(_NAMED) else f"{_NAMED}{node.label} {text}") from None
            except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
                raise NotProved(f"{_NAMED}{node.label} cannot be followed: {error!r}") from None
            values.update((name, value) for name, value in zip(node.outputs, results, strict=False) if name)

    def _trace(self, node: Node, values: Mapping[str, Value], versions: Mapping[str, int]) -> Sequence[Value]:
        inputs = [values[name] if name else None for name in node.inputs]
        function = self._model.functions.get((node.domain, node.op_type, node.overload))
        if function is not None:
            return self._call(node, function, inputs)
        if node.domain == "" and node.op_type in _CONTROL_FLOW:
            if row_numbers.has_numbers([values.get(name) for name in _reads(node)]):
                raise NotProved("uses the numbers of the rows")
            return _CONTROL_FLOW[node.op_type](self, node, inputs, values, versions)
        if node.domain == "" and node.op_type == "Constant":
            return [_constant_node(node)]
        if node.domain == "" and versions.get("", 0) < MIN_STANDARD_VERSION:
            raise NotProved(f"is of operator set {versions.get('', 0)}, below {MIN_STANDARD_VERSION}")
        rule = RULES.get(node.domain, {}).get(node.op_type)
        if rule is None:
            raise NotProved("is not known to compute each row alone")
        operation = Operation(node, versions.get(node.domain, 1), inputs, self._numbers)
        fixed = all(value is None or value.is_fixed for value in inputs)
        if node.domain == "" and row_numbers.has_numbers(inputs) and row_numbers.is_own_row(operation):
            return row_numbers.looked_up(operation)
        try:
            results = list(rule(operation))
        except (NotProved, ArithmeticError, LookupError, TypeError, ValueError):
            if not fixed or node.op_type in _NEVER:
                raise
            results = [Value(None)] * len(node.outputs)
        if len(results) < len([name for name in node.outputs if name]):
            raise NotProved("has more outputs than are supported")
        results = row_numbers.bounded(operation, results)
        if row_numbers.has_numbers(inputs):
            return row_numbers.numbered(operation, results)
        return results

    def _call(self, node: Node, function: Function, inputs: Sequence[Value | None]) -> Sequence[Value]:
        """Trace the body of a model-local function in place of its call."""
        if self._depth >= _MAX_FUNCTION_DEPTH:
            raise NotProved("calls itself")
        attributes = function.defaults | node.attributes
        nodes = [_bound(each, attributes) for each in function.nodes]
        values = {
            name: value for name, value in zip(function.inputs, inputs, strict=False) if value is not None and name
        }
        nodes = [_without(each, set(function.inputs) - values.keys()) for each in nodes]
        self._depth += 1
        try:
            self._run(nodes, values, function.outputs, self._model.versions | function.versions)
        finally:
            self._depth -= 1
        return [values[name] for name in function.outputs]

    def _body(
        self, graph: Graph, given: Sequence[Value], outer: Mapping[str, Value], versions: Mapping[str, int]
    ) -> list[Value]:
        """Trace a subgraph, which may read the values around it."""
        values = dict(outer) | {name: _constant(each) for name, each in graph.constants.items()}
        values |= dict(zip(graph.inputs, given, strict=False))
        self._run(graph.nodes, values, graph.outputs, versions)
        results = [values[name] for name in graph.outputs]
        if row_numbers.has_numbers(results):
            raise NotProved("uses the numbers of the rows")
        return results

    def branch(
        self,
        node: Node,
        inputs: Sequence[Value | None],
        outer: Mapping[str, Value],
        versions: Mapping[str, int],
    ) -> list[Value]:
        """Trace an If; all rows must share its condition."""
        condition = inputs[0]
        if condition is None or not condition.is_fixed:
            raise NotProved("branches on rows or on their number")
        known = None if condition.content is None else condition.content.reshape(-1)[0]
        if isinstance(known, bool):
            return self._body(node.attributes["then_branch" if known else "else_branch"], (), outer, versions)
        one = self._body(node.attributes["then_branch"], (), outer, versions)
        other = self._body(node.attributes["else_branch"], (), outer, versions)
        return [self._either(left, right) for left, right in zip(one, other, strict=True)]

    def loop(
        self,
        node: Node,
        inputs: Sequence[Value | None],
        outer: Mapping[str, Value],
        versions: Mapping[str, int],
    ) -> list[Value]:
        """Trace a Loop; all rows must share its number of passes."""
        if any(value is not None and not value.is_fixed for value in inputs[:2]):
            raise NotProved("loops as often as rows or their number say")
        states = [self._state(value) for value in inputs[2:]]
        body: Graph = node.attributes["body"]
        for _ in range(_MAX_LOOP_PASSES):
            results = self._body(body, [Value(()), Value(()), *states], outer, versions)
            if not results[0].is_fixed:
                raise NotProved("loops as often as rows say")
            after = [self._either(*pair) for pair in zip(states, results[1 : 1 + len(states)], strict=True)]
            if all(_same(*pair) for pair in zip(states, after, strict=True)):
                rounds = self.fresh()
                return [*after, *[_stacked(each, 0, rounds) for each in results[1 + len(states) :]]]
            states = after
        raise NotProved("changes its state in a way that is not supported")

    def scan(
        self,
        node: Node,
        inputs: Sequence[Value | None],
        outer: Mapping[str, Value],
        versions: Mapping[str, int],
    ) -> list[Value]:
        """Trace a Scan; it must step along another axis than the batch."""
        if versions.get("", 0) < 9:
            raise NotProved("scans along the batch, as before version 9")
        num_scanned = int(node.attributes["num_scan_inputs"])
        body: Graph = node.attributes["body"]
        states = [self._state(value) for value in inputs[: len(inputs) - num_scanned]]
        scanned, length = [], self.fresh()
        axes = node.attributes.get("scan_input_axes") or [0] * num_scanned
        for value, axis in zip(inputs[len(states) :], axes, strict=True):
            if value is None or value.shape is None:
                raise NotProved("scans a tensor of unknown rank")
            place = positive_axis(axis, len(value.shape))
            if value.axis == place:
                raise NotProved("iterates over the rows")
            length = value.shape[place]
            scanned.append(_sliced(value.without_content(), place))
        for _ in range(_MAX_LOOP_PASSES):
            results = self._body(body, [*states, *scanned], outer, versions)
            after = [self._either(*pair) for pair in zip(states, results[: len(states)], strict=True)]
            if all(_same(*pair) for pair in zip(states, after, strict=True)):
                stacks = results[len(states) :]
                ends = node.attributes.get("scan_output_axes") or [0] * len(stacks)
                return [*after, *[_stacked(each, end, length) for each, end in zip(stacks, ends, strict=True)]]
            states = after
        raise NotProved("changes its state in a way that is not supported")

    def _state(self, value: Value | None) -> Value:
        if value is None:
            raise NotProved("has a state that is left out")
        return value.without_content()

    def _either(self, one: Value, other: Value) -> Value:
        """Combine two values into one that describes both."""
        one, other = one.without_content(), other.without_content()
        if one.axis != other.axis:
            raise NotProved("has rows in one case and none in the other")
        if one.shape is None or other.shape is None or len(one.shape) != len(other.shape):
            if one.axis is not None:
                raise NotProved("has rows of different ranks")
            return Value(None)
        if one.axis is not None and one.shape[one.axis] != other.shape[one.axis]:
            raise NotProved("has different numbers of rows")
        pairs = zip(one.shape, other.shape, strict=True)
        return Value(tuple(left if left == right else self.fresh() for left, right in pairs), one.axis)


_NAMED = "\0"  # prefix of a reason that already names its node
_NOTHING = Node("", "", "", "", (), (), {})
_CONTROL_FLOW = {"If": Tracing.branch, "Loop": Tracing.loop, "Scan": Tracing.scan}
_NEVER = {"Dropout", *mixing.NEVER, *mixing.CLASSICAL}


def reason_of(error: NotProved) -> str:
    """Return the reason as a sentence for people."""
    return str(error).removeprefix(_NAMED)


def batch_of(shape: DeclaredShape, tracing: Tracing, axis: int = 0) -> Value:
    """Make the value of an input whose rows lie along an axis."""
    sizes: Shape = tuple(BATCH if place == axis else tracing.dimension(size) for place, size in enumerate(shape))
    return Value(sizes, axis)


def shared_of(shape: DeclaredShape | None, tracing: Tracing) -> Value:
    """Make the value of an input that is the same for all rows of a call."""
    if shape is None:
        return Value(None)
    return Value(tuple(Size(size) if isinstance(size, int) else tracing.fresh() for size in shape))


def _same(one: Value, other: Value) -> bool:
    if (one.shape is None) != (other.shape is None) or one.axis != other.axis:
        return False
    return one.shape == other.shape


def _stacked(value: Value, axis: int, length: Size) -> Value:
    value = value.without_content()
    if value.shape is None:
        return Value(None)
    place = positive_axis(axis, len(value.shape) + 1)
    moved = None if value.axis is None else value.axis + (place <= value.axis)
    return Value((*value.shape[:place], length, *value.shape[place:]), moved)


def _sliced(value: Value, axis: int) -> Value:
    shape = value.shape or ()
    moved = None if value.axis is None else value.axis - (axis < value.axis)
    return Value((*shape[:axis], *shape[axis + 1 :]), moved)


def in_order(nodes: Sequence[Node], wanted: Sequence[str]) -> list[Node]:
    """Sort the nodes that `wanted` depends on topologically, because files need not have them in order."""
    makers = {name: node for node in nodes for name in node.outputs if name}
    ordered: dict[int, Node] = {}
    begun: set[int] = set()
    stack = [(makers[name], False) for name in reversed(wanted) if name in makers]
    while stack:
        node, is_ready = stack.pop()
        if is_ready:
            ordered[id(node)] = node
        elif id(node) not in begun:
            begun.add(id(node))
            stack.append((node, True))
            stack.extend((makers[name], False) for name in sorted(_reads(node)) if name in makers)
    return list(ordered.values())


def _reads(node: Node) -> set[str]:
    """Return the names of all values that a node reads, including those that its subgraphs read."""
    names = {name for name in node.inputs if name}
    for graph in node.subgraphs():
        names.update(graph.outputs)
        for inner in graph.nodes:
            names |= _reads(inner)
    return names


def _constant(constant: Constant) -> Value:
    if constant.array is None:
        return Value(tuple(Size(size) for size in constant.shape))
    return of_array(constant.array)


def _constant_node(node: Node) -> Value:
    for name, value in node.attributes.items():
        if isinstance(value, Constant):
            return _constant(value)
        if name in {"value_int", "value_ints"}:
            return of_array(np.array(value, np.int64))
        if name in {"value_float", "value_floats"}:
            return of_array(np.array(value, np.float32))
        if name == "value_string":
            return Value(())
        if name == "value_strings":
            return Value((Size(len(value)),))
    raise NotProved("holds a constant of an unsupported kind")


def _bound(node: Node, attributes: Mapping[str, Any]) -> Node:
    """Bind a node of a function to the attributes of the call."""
    if not node.attributes:
        return node
    bound = {}
    for name, value in node.attributes.items():
        if isinstance(value, Reference):
            if value.name in attributes:
                bound[name] = attributes[value.name]
        elif isinstance(value, Graph):
            inner = tuple(_bound(each, attributes) for each in value.nodes)
            bound[name] = replace(value, nodes=inner)
        else:
            bound[name] = value
    return replace(node, attributes=bound)


def _without(node: Node, absent: set[str]) -> Node:
    """Remove those inputs of a function's node that the call leaves out."""
    if absent.isdisjoint(node.inputs):
        return node
    return replace(node, inputs=tuple("" if name in absent else name for name in node.inputs))
