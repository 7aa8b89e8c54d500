"""Operators that compute shapes or change the shape of a tensor. Most graphs state here which axis is the batch."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from service.models.row_independence.operation import Operation, Rule, positive_axis
from service.models.row_independence.operators.elementwise import broadcast_values
from service.models.row_independence.sizes import BATCH, ONE, Size, product
from service.models.row_independence.values import (
    MAX_CONTENT,
    NotProved,
    Numbering,
    Shape,
    Value,
    of_array,
    of_content,
)


def of_shape(shape: Sequence[Size]) -> Value:
    """Make a tensor of a computed shape in which all rows are equal.

    Raises:
        NotProved: the shape depends on the batch size, but not by one block for each row.
    """
    axes = [axis for axis, size in enumerate(shape) if not size.is_batch_free]
    if not axes:
        return Value(tuple(shape))
    if len(axes) > 1 or not shape[axes[0]].is_batch_multiple:
        raise NotProved(f"makes the shape ({', '.join(map(str, shape))}), in which rows have no place of their own")
    return Value(tuple(shape), axes[0])


def elements(operation: Operation, value: Value) -> list[Size] | None:
    """Return the elements of a short vector, unknown ones by name; None if its length is unknown.

    Raises:
        NotProved: they depend on rows.
    """
    if value.axis is not None:
        raise NotProved("takes a shape from rows")
    if value.content is not None:
        return [each if isinstance(each, Size) else operation.unknown(each) for each in value.content.flat]
    length = product(value.shape).known if value.shape is not None else None
    if length is None or length > MAX_CONTENT:
        return None
    return [operation.unknown() for _ in range(length)]


def dimensions(operation: Operation, value: Value) -> Shape | None:
    """Return the elements of a vector that is used as a shape; None if its length is unknown."""
    sizes = elements(operation, value)
    if sizes is None:
        return None
    return tuple(each if each.is_dimension or not each.is_batch_free else operation.fresh() for each in sizes)


def reshape(operation: Operation) -> list[Value]:
    """Trace Reshape."""
    value = operation.input(0)
    target = elements(operation, operation.input(1))
    if target is None:
        operation.fixed(0)
        return [Value(None)]
    if value.content is not None:
        exact = [each.known for each in target]
        if None not in exact:
            zeros = [value.content.shape[axis] if size == 0 else size for axis, size in enumerate(exact)]
            return [of_content(value.content.reshape([size or 0 for size in zeros]))]
        value = value.without_content()
    if value.shape is None:
        if any(not each.is_batch_free for each in target):
            raise NotProved("gives the rows a tensor of unknown rank")
        return [Value(operation.fresh_shape(len(target)))]
    if not operation.int_attribute("allowzero", 0):
        target = [
            value.shape[axis] if size.known == 0 and axis < len(value.shape) else size
            for axis, size in enumerate(target)
        ]
    return [_reshaped(operation, value, target)]


def _reshaped(operation: Operation, value: Value, target: list[Size]) -> Value:
    shape = value.shape or ()
    if any(not size.is_dimension and size.known != -1 and axis == value.axis for axis, size in enumerate(target)):
        raise NotProved("takes the size of the batch axis from an unknown number")
    inferred = [axis for axis, size in enumerate(target) if size.known == -1]
    if inferred:
        others = product([size for size in target if size.known != -1])
        missing = product(shape).over(others)
        if missing is None:
            if value.axis is not None and others.is_batch_free:
                raise NotProved(f"may mix parts of several rows: {others} need not divide the size of a row")
            missing = operation.fresh()
        target[inferred[0]] = missing
    if value.axis is None:
        if any(not size.is_batch_free for size in target):
            raise NotProved("divides a tensor that is no batch into rows")
        return Value(tuple(size if size.is_dimension else operation.fresh() for size in target))
    moved = of_shape([size if size.is_dimension or not size.is_batch_free else operation.fresh() for size in target])
    if moved.axis is None:
        raise NotProved("has a result of fixed size, whatever the number of rows")
    if product(shape[: value.axis]) != product((moved.shape or ())[: moved.axis]):
        raise NotProved("merges the batch axis with one before it")
    return moved


def flatten(operation: Operation) -> list[Value]:
    """Trace Flatten to two dimensions."""
    value, shape = operation.input(0).without_content(), operation.shape(0)
    axis = operation.int_attribute("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return [_reshaped(operation, value, [product(shape[:axis]), product(shape[axis:])])]


def shape_of(operation: Operation) -> list[Value]:
    """Trace Shape: the dimensions become elements."""
    shape = operation.input(0).shape
    if shape is None:
        return [Value((operation.fresh(),))]
    rank, start = len(shape), operation.int_attribute("start", 0)
    end = operation.int_attribute("end", rank)
    sizes = shape[slice(start, end)]
    content = np.empty(len(sizes), object)
    content[:] = list(sizes)
    return [of_content(content)]


def size_of(operation: Operation) -> list[Value]:
    """Trace Size: the number of elements."""
    shape = operation.input(0).shape
    content = np.empty((), object)
    content[()] = operation.unknown() if shape is None else product(shape)
    return [of_content(content)]


def squeeze(operation: Operation) -> list[Value]:
    """Trace Squeeze: dimensions of 1 are removed."""
    value, shape = operation.input(0), operation.shape(0)
    axes = operation.axes(1)
    if axes is None:
        if any(size.known is None for size in shape):
            raise NotProved("takes out every dimension of 1, and the number of rows may be 1")
        axes = [axis for axis, size in enumerate(shape) if size.known == 1]
    gone = {positive_axis(axis, len(shape)) for axis in axes}
    if value.axis in gone:
        raise NotProved("takes out the batch axis")
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    content = None if value.content is None else value.content.reshape([value.content.shape[axis] for axis in kept])
    moved = None if value.axis is None else kept.index(value.axis)
    return [Value(tuple(shape[axis] for axis in kept), moved, content)]


def unsqueeze(operation: Operation) -> list[Value]:
    """Trace Unsqueeze: dimensions of 1 are inserted."""
    value, shape = operation.input(0), operation.shape(0)
    axes = operation.axes(1) or []
    rank = len(shape) + len(axes)
    new = {positive_axis(axis, rank) for axis in axes}
    old = [axis for axis in range(rank) if axis not in new]
    places = dict(zip(old, shape, strict=True))
    content = None if value.content is None else np.expand_dims(value.content, tuple(new))
    moved = None if value.axis is None else old[value.axis]
    return [Value(tuple(places.get(axis, ONE) for axis in range(rank)), moved, content)]


def expand(operation: Operation) -> list[Value]:
    """Trace Expand: a tensor is broadcast to a shape."""
    value = operation.input(0)
    target = dimensions(operation, operation.input(1))
    if target is None:
        operation.fixed(0)
        return [Value(None)]
    exact = [size.known for size in target]
    if value.content is not None and None not in exact:
        joined = np.broadcast_shapes(value.content.shape, [size or 0 for size in exact])
        if np.prod(joined) <= MAX_CONTENT:
            return [of_content(np.broadcast_to(value.content, joined))]
    return [broadcast_values([value.without_content(), of_shape(target)])]


def tile(operation: Operation) -> list[Value]:
    """Trace Tile: a tensor is repeated along axes."""
    value = operation.input(0).without_content()
    repeats = elements(operation, operation.input(1))
    if repeats is None or value.shape is None:
        operation.fixed(0, 1)
        return [Value(None)]
    if value.axis is not None and repeats[value.axis].known != 1:
        raise NotProved("repeats the batch")
    sizes = [
        size.times(times) if times.is_dimension or not times.is_batch_free else operation.fresh()
        for size, times in zip(value.shape, repeats, strict=True)
    ]
    return [of_shape(sizes)]


def constant_of_shape(operation: Operation) -> list[Value]:
    """Trace ConstantOfShape: one number in a computed shape."""
    sizes = dimensions(operation, operation.input(0))
    if sizes is None:
        return [Value(None)]
    filled = of_shape(sizes)
    exact = [size.known for size in sizes]
    constant = operation.tensor_attribute("value")
    array = np.zeros(1, np.float32) if constant is None else constant.array
    if array is not None and None not in exact and product(sizes).factor <= MAX_CONTENT:
        return [of_array(np.broadcast_to(array.reshape(()), [size or 0 for size in exact]))]
    return [filled]


def number_range(operation: Operation) -> list[Value]:
    """Trace Range; a range of as many numbers as rows gives each row its number."""
    values = [operation.input(index) for index in range(3)]
    bounds = [None if value.content is None else value.content.reshape(-1)[0] for value in values]
    if bounds == [Size(0), BATCH, ONE]:
        return [Value((BATCH,), 0, None, Numbering.ALL)]
    if any(not value.is_fixed for value in values):
        raise NotProved("counts the rows")
    exact = [each.known for each in bounds if isinstance(each, Size)]
    if len(exact) == 3 and None not in exact and exact[2]:
        numbers = range(*[each or 0 for each in exact])
        below = Size(len(numbers)) if numbers.start == 0 and numbers.step == 1 else None
        if len(numbers) <= MAX_CONTENT:
            return [replace(of_array(np.array(numbers, np.int64)), below=below)]
        return [Value((Size(len(numbers)),), below=below)]
    start, limit, step = bounds
    if isinstance(limit, Size) and limit.is_dimension and start == Size(0) and step == ONE:
        return [Value((limit,), below=limit)]
    return [Value((operation.fresh(),))]


RULES: dict[str, Rule] = {
    "ConstantOfShape": constant_of_shape,
    "Expand": expand,
    "Flatten": flatten,
    "Range": number_range,
    "Reshape": reshape,
    "Shape": shape_of,
    "Size": size_of,
    "Squeeze": squeeze,
    "Tile": tile,
    "Unsqueeze": unsqueeze,
}
