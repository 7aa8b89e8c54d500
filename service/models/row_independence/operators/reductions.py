"""Operators that combine elements along axes, which keep rows apart if the batch axis is not among them."""

from dataclasses import replace

import numpy as np

from service.models.row_independence.operation import Operation, Rule, positive_axis
from service.models.row_independence.operators.shapes import elements
from service.models.row_independence.sizes import ONE, Size, product
from service.models.row_independence.values import NotProved, Shape, Value, of_content


def reduced(shape: Shape, place: int | None, axes: set[int], *, keep: bool) -> Value:
    """Compute the shape after axes were reduced.

    Raises:
        NotProved: the batch axis is one of them.
    """
    if place in axes:
        raise NotProved("reduces over the batch axis")
    if keep:
        return Value(tuple(ONE if axis in axes else size for axis, size in enumerate(shape)), place)
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    return Value(tuple(shape[axis] for axis in kept), None if place is None else kept.index(place))


def reduce(operation: Operation) -> list[Value]:
    """Trace ReduceSum, ReduceMean and the other reductions over axes."""
    value, shape = operation.input(0), operation.shape(0)
    axes = operation.axes(1)
    if not axes and operation.int_attribute("noop_with_empty_axes", 0):
        return [value.without_content()]
    gone = {positive_axis(axis, len(shape)) for axis in axes} if axes else set(range(len(shape)))
    keep = bool(operation.int_attribute("keepdims", 1))
    if value.content is not None and operation.node.op_type == "ReduceProd" and value.rank == 1:
        content = np.empty((1,) if keep else (), object)
        content[...] = product([each if isinstance(each, Size) else operation.unknown(each) for each in value.content])
        return [of_content(content)]
    return [reduced(shape, value.without_content().axis, gone, keep=keep)]


def arg_extreme(operation: Operation) -> list[Value]:
    """Trace ArgMax and ArgMin along an axis."""
    value, shape = operation.input(0).without_content(), operation.shape(0)
    axis = positive_axis(operation.int_attribute("axis", 0), len(shape))
    place = reduced(shape, value.axis, {axis}, keep=bool(operation.int_attribute("keepdims", 1)))
    return [replace(place, below=shape[axis])]


def along_axis(operation: Operation) -> list[Value]:
    """Trace an operator that keeps the shape and combines all elements along an axis."""
    value, shape = operation.input(0).without_content(), operation.shape(0)
    if positive_axis(operation.int_attribute("axis", -1), len(shape)) == value.axis:
        raise NotProved("normalises along the batch axis")
    return [value]


def softmax(operation: Operation) -> list[Value]:
    """Trace Softmax, LogSoftmax and Hardmax along an axis; before version 13 along that axis and all after it."""
    if operation.version >= 13:
        return along_axis(operation)
    value, shape = operation.input(0).without_content(), operation.shape(0)
    axis = operation.int_attribute("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    if value.axis is not None and value.axis >= axis:
        raise NotProved("normalises along the batch axis")
    return [value]


def cumulative(operation: Operation) -> list[Value]:
    """Trace CumSum and CumProd along an axis."""
    value, shape = operation.input(0).without_content(), operation.shape(0)
    axes = operation.axes(1) or [0]
    if positive_axis(axes[0], len(shape)) == value.axis:
        raise NotProved("accumulates along the batch axis")
    return [value]


def top_k(operation: Operation) -> list[Value]:
    """Trace TopK along an axis."""
    value, shape = operation.input(0).without_content(), operation.shape(0)
    axis = positive_axis(operation.int_attribute("axis", -1), len(shape))
    if axis == value.axis:
        raise NotProved("sorts along the batch axis")
    if operation.version < 10:
        count = Size(operation.int_attribute("k", 0))
    else:
        sizes = elements(operation, operation.input(1))
        if sizes is None or not sizes[0].is_batch_free:
            raise NotProved("takes a number of elements that is not known")
        count = sizes[0] if sizes[0].is_dimension else operation.fresh()
    return [Value((*shape[:axis], count, *shape[axis + 1 :]), value.axis)] * 2


_REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]

RULES: dict[str, Rule] = {
    **{f"Reduce{name}": reduce for name in _REDUCTIONS},
    "ArgMax": arg_extreme,
    "ArgMin": arg_extreme,
    "CumProd": cumulative,
    "CumSum": cumulative,
    "Hardmax": softmax,
    "LogSoftmax": softmax,
    "LpNormalization": along_axis,
    "Softmax": softmax,
    "TopK": top_k,
}
