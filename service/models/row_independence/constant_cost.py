"""Decides whether the work of a call follows from the shapes of its inputs alone.

If it does, calls of the same shapes cost the same, so one measurement predicts the next call.
"""

from collections.abc import Collection, Mapping, Sequence

from service.models.row_independence.axis_tracing import RULES, in_order
from service.models.row_independence.onnx_graph import Graph, Model, Node

# Indices of the inputs whose values decide the size of the result.
_SIZES: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "DFT": (1, 2),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
# Operators of which all input values decide the size of the result or the work.
_BY_VALUES = {
    *("Compress", "NonMaxSuppression", "NonZero", "Unique"),
    *("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer", "Tokenizer"),
}
_NOT_FOLLOWED = {"SequenceMap", "DictVectorizer", "CastMap", "FlexAttention"}
_KNOWN = {domain: rules.keys() - _NOT_FOLLOWED for domain, rules in RULES.items()}
_MAX_DEPTH = 32
_MAX_LOOP_PASSES = 100


class _DependsOnValues(Exception):
    """The work of a call depends on a value."""


def has_constant_cost(model: Model, overridable: Collection[str] = ()) -> bool:
    """Decide whether all shapes and the work of a call follow from the shapes of its inputs.

    Args:
        model: the model.
        overridable: initializers that a request may set.
    """
    graph = model.graph
    from_values = {name for name in graph.inputs if name not in graph.constants or name in overridable}
    try:
        _follow(model, graph.nodes, from_values, depth=0)
    except (_DependsOnValues, LookupError, RecursionError):
        return False
    return True


def _follow(model: Model, nodes: Sequence[Node], from_values: set[str], depth: int) -> None:
    """Add to `from_values` the names of the outputs that depend on them."""
    for node in in_order(nodes, [name for each in nodes for name in each.outputs]):
        if (node.domain, node.op_type, node.overload) in model.functions:
            results = _function(model, node, from_values, depth)
        elif node.domain == "" and node.op_type in {"If", "Loop", "Scan"}:
            results = _control_flow(model, node, from_values, depth)
        else:
            results = _operator(node, from_values)
        from_values.difference_update(node.outputs)
        from_values.update(name for name in results if name)


def _operator(node: Node, from_values: set[str]) -> set[str]:
    if node.domain == "" and node.op_type == "Constant":
        return set()
    if node.op_type not in _KNOWN.get(node.domain, ()):
        raise _DependsOnValues
    deciding = range(len(node.inputs)) if node.op_type in _BY_VALUES else _SIZES.get(node.op_type, ())
    if node.op_type.startswith("Reduce"):
        deciding = (1,)
    if any(index < len(node.inputs) and node.inputs[index] in from_values for index in deciding):
        raise _DependsOnValues
    if node.op_type in {"Shape", "Size"} or from_values.isdisjoint(node.inputs):
        return set()
    return set(node.outputs)


def _function(model: Model, node: Node, from_values: set[str], depth: int) -> set[str]:
    if depth > _MAX_DEPTH:
        raise _DependsOnValues
    function = model.functions[node.domain, node.op_type, node.overload]
    inner = {name for name, given in zip(function.inputs, node.inputs, strict=False) if given in from_values}
    _follow(model, function.nodes, inner, depth + 1)
    return {name for name, result in zip(node.outputs, function.outputs, strict=False) if result in inner}


def _control_flow(model: Model, node: Node, from_values: set[str], depth: int) -> set[str]:
    if depth > _MAX_DEPTH:
        raise _DependsOnValues
    if node.op_type == "If":
        if node.inputs[0] in from_values:
            raise _DependsOnValues
        branches: Mapping[str, Graph] = node.attributes
        results = set()
        for name in ("then_branch", "else_branch"):
            inner = set(from_values)
            _follow(model, branches[name].nodes, inner, depth + 1)
            results |= {
                out for out, result in zip(node.outputs, branches[name].outputs, strict=False) if result in inner
            }
        return results
    body: Graph = node.attributes["body"]
    is_loop = node.op_type == "Loop"
    if is_loop and not from_values.isdisjoint(node.inputs[:2]):
        raise _DependsOnValues
    # State of a Loop or Scan: inputs of the body that take its outputs in the next pass.
    formals = list(body.inputs)
    given = dict(zip(formals, node.inputs, strict=False))
    ahead = {name for name, actual in given.items() if actual in from_values}
    states = formals[1:] if is_loop else formals
    for _ in range(_MAX_LOOP_PASSES):
        inner = (from_values - set(formals)) | ahead
        _follow(model, body.nodes, inner, depth + 1)
        if is_loop and body.outputs[0] in inner:
            raise _DependsOnValues
        again = {name for name, result in zip(states, body.outputs, strict=False) if result in inner}
        if again <= ahead:
            made = body.outputs[1:] if is_loop else body.outputs
            return {out for out, result in zip(node.outputs, made, strict=False) if result in inner}
        ahead |= again
    raise _DependsOnValues
