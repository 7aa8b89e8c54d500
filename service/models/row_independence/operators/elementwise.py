"""Elementwise operators, and their results for known elements."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from service.models.row_independence.operation import Operation, Rule
from service.models.row_independence.sizes import ONE, Size, add, broadcast, derived
from service.models.row_independence.values import MAX_CONTENT, NotProved, Value, of_content

_FLOAT_TYPES = {1, 10, 11, 16}
_INT_TYPES = {2, 3, 4, 5, 6, 7, 12, 13}
_BOOL = 9


def broadcast_values(values: Sequence[Value]) -> Value:
    """Compute the shape and the rows of an elementwise result.

    Raises:
        NotProved: rows would meet other rows, or a dimension that fits one batch size alone.
    """
    if any(value.shape is None for value in values):
        if any(value.axis is not None for value in values):
            raise NotProved("combines rows with a tensor of unknown rank")
        return Value(None)
    shapes = [value.shape or () for value in values]
    rank = max(map(len, shapes))
    places = {
        rank - len(shape) + value.axis for value, shape in zip(values, shapes, strict=True) if value.axis is not None
    }
    if len(places) > 1:
        raise NotProved("combines each row with all others")
    place = places.pop() if places else None
    merged: list[Size] = []
    for axis in range(rank):
        size = ONE
        for value, shape in zip(values, shapes, strict=True):
            own = axis - rank + len(shape)
            if own < 0:
                continue
            if axis == place:
                size = _beside_rows(size, shape[own], is_rows=value.axis == own)
            else:
                size = broadcast(size, shape[own])
        merged.append(size)
    return Value(tuple(merged), place)


def _beside_rows(size: Size, other: Size, *, is_rows: bool) -> Size:
    """Broadcast the batch axis with another size, which may be valid for one number of rows only."""
    if is_rows:
        if size.is_batch_multiple and size != other:
            raise NotProved(f"combines {size} with {other} along the batch axis")
        return other
    if other.known != 1:
        raise NotProved(f"combines rows along the batch axis with a dimension of {other}")
    return size


def elementwise(operation: Operation) -> list[Value]:
    """Trace an elementwise operator of several tensors."""
    if operation.version < 7 and "broadcast" in operation.node.attributes:
        raise NotProved("aligns axes as before version 7")
    values = operation.given()
    known = content(operation, values)
    if known is not None:
        return [known]
    return [broadcast_values([value.without_content() for value in values])]


def unary(operation: Operation) -> list[Value]:
    """Trace an elementwise operator of one tensor; further inputs are settings that all rows share."""
    operation.fixed(*range(1, len(operation.inputs)))
    values = operation.given()
    known = content(operation, values[:1]) if len(values) == 1 else None
    return [known or values[0].without_content()] * max(1, len(operation.node.outputs))


def cast(operation: Operation) -> list[Value]:
    """Trace Cast; symbolic sizes are lost when they become fractions."""
    value = operation.input(0)
    if value.content is None:
        return [value]
    kind = operation.int_attribute("to", 0)
    elements = np.empty(value.content.shape, object)
    for index, element in np.ndenumerate(value.content):
        elements[index] = _cast(operation, element, kind)
    return [of_content(elements)]


def _cast(operation: Operation, element: Any, kind: int) -> Any:
    exact = element.known if isinstance(element, Size) else element
    if kind in _INT_TYPES:
        if exact is None:
            return element
        return Size(int(exact)) if math.isfinite(exact) else operation.unknown(element)
    if exact is not None and kind in _FLOAT_TYPES:
        return float(exact)
    if exact is not None and kind == _BOOL:
        return bool(exact)
    return operation.unknown(element)


def cast_like(operation: Operation) -> list[Value]:
    """Trace CastLike: only the type of the second tensor matters."""
    return [operation.input(0).without_content()]


def content(operation: Operation, values: Sequence[Value]) -> Value | None:
    """Compute the result's elements if those of all inputs are known."""
    compute = _CONTENT.get(operation.node.op_type)
    arrays = [value.content for value in values if value.content is not None]
    if compute is None or len(arrays) < len(values):
        return None
    try:
        joined = np.broadcast_arrays(*arrays)
    except ValueError:
        raise NotProved("combines shapes that do not fit") from None
    if joined[0].size > MAX_CONTENT:
        return None
    elements = np.empty(joined[0].shape, object)
    for index in np.ndindex(elements.shape):
        arguments = [array[index] for array in joined]
        result = compute(operation, arguments)
        elements[index] = operation.unknown(*arguments) if result is None else result
    return of_content(elements)


def _sum(operation: Operation, arguments: list[Any]) -> Any:
    left, right = arguments
    if isinstance(left, Size) and isinstance(right, Size):
        return add(left, right)
    return left + right if _are_floats(left, right) else None


def _difference(operation: Operation, arguments: list[Any]) -> Any:
    left, right = arguments
    if isinstance(left, Size) and isinstance(right, Size):
        return add(left, Size(-right.factor, right.names))
    return left - right if _are_floats(left, right) else None


def _product(operation: Operation, arguments: list[Any]) -> Any:
    left, right = arguments
    if isinstance(left, Size) and isinstance(right, Size):
        return left.times(right)
    return left * right if _are_floats(left, right) else None


def _quotient(operation: Operation, arguments: list[Any]) -> Any:
    left, right = arguments
    if isinstance(left, Size) and isinstance(right, Size):
        exact = left.over(right)
        if exact is not None:
            return exact
        if left.known is not None and right.known:
            quotient = abs(left.known) // abs(right.known)  # truncated, as integer division is in C++
            return Size(quotient if left.known * right.known >= 0 else -quotient)
        both = left.is_dimension and right.is_dimension
        return derived(f"{left}/{right}", left, right, signed=not both)
    return left / right if _are_floats(left, right) and right else None


def _remainder(operation: Operation, arguments: list[Any]) -> Any:
    left, right = arguments
    if isinstance(left, Size) and isinstance(right, Size) and left.is_dimension and right.is_dimension:
        if left.known is not None and right.known:
            return Size(left.known % right.known)
        return Size(0) if left.over(right) is not None else derived(f"{left}%{right}", left, right)
    return None


def _opposite(operation: Operation, arguments: list[Any]) -> Any:
    (value,) = arguments
    return Size(-value.factor, value.names) if isinstance(value, Size) else -value


def _extreme(choose: Callable[[Sequence[Any]], Any]) -> Callable[[Operation, list[Any]], Any]:
    def chosen(operation: Operation, arguments: list[Any]) -> Any:
        numbers = [_number(argument) for argument in arguments]
        if None in numbers:
            return arguments[0] if len(set(arguments)) == 1 else None
        return arguments[numbers.index(choose(numbers))]

    return chosen


def _equal(operation: Operation, arguments: list[Any]) -> Any:
    left, right = arguments
    if _number(left) is not None and _number(right) is not None:
        return _number(left) == _number(right)
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Size) and one.is_dimension and (_number(other) or 0) < 0:
            return False
    same = left == right and isinstance(left, Size) and left.is_dimension
    return True if same else None


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Operation, list[Any]], Any]:
    def ordered(operation: Operation, arguments: list[Any]) -> Any:
        left, right = map(_number, arguments)
        return None if left is None or right is None else compare(left, right)

    return ordered


def _where(operation: Operation, arguments: list[Any]) -> Any:
    condition, if_true, if_false = arguments
    if isinstance(condition, bool):
        return if_true if condition else if_false
    return if_true if if_true == if_false else operation.unknown(*arguments)


def _logical(combine: Callable[..., bool]) -> Callable[[Operation, list[Any]], Any]:
    def combined(operation: Operation, arguments: list[Any]) -> Any:
        return combine(*arguments) if all(isinstance(argument, bool) for argument in arguments) else None

    return combined


def _rounded(to_whole: Callable[[float], int]) -> Callable[[Operation, list[Any]], Any]:
    def rounded(operation: Operation, arguments: list[Any]) -> Any:
        (value,) = arguments
        return float(to_whole(value)) if isinstance(value, float) and math.isfinite(value) else None

    return rounded


def _are_floats(*arguments: Any) -> bool:
    return all(isinstance(argument, float) for argument in arguments)


def _number(element: Any) -> Any:
    return element.known if isinstance(element, Size) else element


_CONTENT: dict[str, Callable[[Operation, list[Any]], Any]] = {
    "Identity": lambda _, arguments: arguments[0],
    "Add": _sum,
    "Sub": _difference,
    "Mul": _product,
    "Div": _quotient,
    "Mod": _remainder,
    "Neg": _opposite,
    "Abs": lambda _, arguments: arguments[0] if isinstance(arguments[0], Size) and arguments[0].is_dimension else None,
    "Max": _extreme(max),
    "Min": _extreme(min),
    "Equal": _equal,
    "Greater": _ordered(lambda left, right: left > right),
    "Less": _ordered(lambda left, right: left < right),
    "GreaterOrEqual": _ordered(lambda left, right: left >= right),
    "LessOrEqual": _ordered(lambda left, right: left <= right),
    "And": _logical(lambda left, right: left and right),
    "Or": _logical(lambda left, right: left or right),
    "Not": _logical(lambda value: not value),
    "Where": _where,
    "Floor": _rounded(math.floor),
    "Ceil": _rounded(math.ceil),
}

_UNARY = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitCast", "BitwiseNot", "Ceil", "Celu"),
    *("Clip", "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity"),
    *("IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu"),
    *("Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh"),
    *("ThresholdedRelu", "RegexFullMatch"),
)
_BROADCAST = (
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater"),
    *("GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "PRelu"),
    *("StringConcat", "Sub", "Sum", "Where", "Xor"),
)

RULES: dict[str, Rule] = {
    **dict.fromkeys(_UNARY, unary),
    **dict.fromkeys(_BROADCAST, elementwise),
    "Cast": cast,
    "CastLike": cast_like,
}
