"""Operators that arrange elements: shapes, views, pieces. Here most graphs say what they take for the batch."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from service.models.row_independence.operation import Operation, Rule, positive_axis
from service.models.row_independence.operators.elementwise import broadcast_values
from service.models.row_independence.sizes import BATCH, ONE, Size, derived, first_of, product
from service.models.row_independence.values import (
    MAX_CONTENT,
    NotProved,
    Numbering,
    Shape,
    Value,
    ints,
    of_array,
    of_content,
)

_WHOLE = 10**9  # exporters write an end beyond all sizes, from here on


def of_shape(shape: Sequence[Size]) -> Value:
    """A tensor of a computed shape in which all rows are alike.

    Raises:
        NotProved: the shape depends on the batch size otherwise than by a block for each row.
    """
    axes = [axis for axis, size in enumerate(shape) if not size.is_batch_free]
    if not axes:
        return Value(tuple(shape))
    if len(axes) > 1 or not shape[axes[0]].is_batch_multiple:
        raise NotProved(f"makes the shape ({', '.join(map(str, shape))}), in which rows have no place of their own")
    return Value(tuple(shape), axes[0])


def elements(operation: Operation, value: Value) -> list[Size] | None:
    """The numbers of a short vector, unknown ones by name; None where not even its length is known.

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
    """A vector that becomes a shape."""
    sizes = elements(operation, value)
    if sizes is None:
        return None
    return tuple(each if each.is_dimension or not each.is_batch_free else operation.fresh() for each in sizes)


def reshape(operation: Operation) -> list[Value]:
    """Another shape for the same elements in the same order."""
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
                raise NotProved(f"may put parts of several rows together: {others} need not divide the size of a row")
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
    """Two dimensions of many."""
    value, shape = operation.input(0).without_content(), operation.shape(0)
    axis = operation.int_attribute("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return [_reshaped(operation, value, [product(shape[:axis]), product(shape[axis:])])]


def shape_of(operation: Operation) -> list[Value]:
    """The dimensions as elements."""
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
    """The number of elements."""
    shape = operation.input(0).shape
    content = np.empty((), object)
    content[()] = operation.unknown() if shape is None else product(shape)
    return [of_content(content)]


def squeeze(operation: Operation) -> list[Value]:
    """Dimensions of 1 taken out."""
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
    """Dimensions of 1 put in."""
    value, shape = operation.input(0), operation.shape(0)
    axes = operation.axes(1) or []
    rank = len(shape) + len(axes)
    new = {positive_axis(axis, rank) for axis in axes}
    old = [axis for axis in range(rank) if axis not in new]
    places = dict(zip(old, shape, strict=True))
    content = None if value.content is None else np.expand_dims(value.content, tuple(new))
    moved = None if value.axis is None else old[value.axis]
    return [Value(tuple(places.get(axis, ONE) for axis in range(rank)), moved, content)]


def transpose(operation: Operation) -> list[Value]:
    """Axes in another order."""
    value, shape = operation.input(0), operation.shape(0)
    order = operation.ints_attribute("perm") or list(range(len(shape)))[::-1]
    if sorted(order) != list(range(len(shape))):
        raise NotProved("orders other axes than there are")
    content = None if value.content is None else value.content.transpose(order)
    moved = None if value.axis is None else order.index(value.axis)
    return [Value(tuple(shape[axis] for axis in order), moved, content)]


def concat(operation: Operation) -> list[Value]:
    """Tensors one after another, along another axis than the batch."""
    values = operation.given()
    axis = operation.int_attribute("axis", 1)
    if any(value.content is not None for value in values) and all(
        value.axis is None and value.rank == 1 for value in values
    ):
        parts = [elements(operation, value) if value.content is None else list(value.content) for value in values]
        if None not in parts and sum(len(part or ()) for part in parts) <= MAX_CONTENT:
            content = np.empty(sum(len(part or ()) for part in parts), object)
            content[:] = [each for part in parts for each in part or ()]
            return [of_content(content)]
    values = [value.without_content() for value in values]
    shapes = [value.shape for value in values]
    if None in shapes:
        if any(value.axis is not None for value in values):
            raise NotProved("joins rows with a tensor of unknown rank")
        return [Value(None)]
    rank = len(shapes[0] or ())
    axis = positive_axis(axis, rank)
    places = {value.axis for value in values}
    if len(places) > 1:
        raise NotProved("joins rows with a tensor that has none")
    place = places.pop()
    if place == axis:
        raise NotProved("joins tensors along the batch axis")
    joined = list(shapes[0] or ())
    for shape in shapes[1:]:
        if len(shape or ()) != rank or (place is not None and (shape or ())[place] != joined[place]):
            raise NotProved("joins different numbers of rows")
        for each in range(rank):
            if each == axis:
                joined[axis] = _plus(joined[axis], (shape or ())[axis])
            elif joined[each].known is None:
                joined[each] = (shape or ())[each]
    return [Value(tuple(joined), place)]


def _plus(left: Size, right: Size) -> Size:
    if left.known is not None and right.known is not None:
        return Size(left.known + right.known)
    if left.names == right.names:
        return Size(left.factor + right.factor, left.names)
    first, second = sorted((str(left), str(right)))
    return derived(f"{first}+{second}", left, right)


def split(operation: Operation) -> list[Value]:
    """Parts along another axis than the batch."""
    value, shape = operation.input(0), operation.shape(0)
    axis = positive_axis(operation.int_attribute("axis", 0), len(shape))
    if axis == value.axis:
        raise NotProved("divides the batch axis")
    count = len(operation.node.outputs)
    given = operation.optional(1)
    sizes = ints(given) if given is not None else operation.ints_attribute("split")
    whole = shape[axis].known
    if sizes is None and given is None and whole is not None:
        piece = -(-whole // count)
        sizes = [min(piece, whole - piece * number) for number in range(count)]
    if given is not None:
        operation.fixed(1)
    if value.content is not None and sizes is not None:
        return [of_content(part) for part in np.split(value.content, np.cumsum(sizes)[:-1], axis)]
    value = value.without_content()
    parts = [operation.fresh() for _ in range(count)] if sizes is None else [Size(size) for size in sizes]
    return [Value((*shape[:axis], part, *shape[axis + 1 :]), value.axis) for part in parts]


def slice_of(operation: Operation) -> list[Value]:
    """A range of other axes than the batch, or all of it."""
    value, shape = operation.input(0), operation.shape(0)
    if operation.version < 10:
        starts = [Size(each) for each in operation.ints_attribute("starts") or []]
        ends = [Size(each) for each in operation.ints_attribute("ends") or []]
        axes = operation.ints_attribute("axes") or list(range(len(starts)))
        steps = [ONE] * len(axes)
    else:
        first, last = elements(operation, operation.input(1)), elements(operation, operation.input(2))
        if first is None or last is None:
            raise NotProved("cuts at places of which not even the number is known")
        starts, ends = first, last
        given = operation.axes(3) if operation.optional(3) is not None else None
        axes = given if given is not None else list(range(len(starts)))
        strides = operation.optional(4)
        by_step = None if strides is None else elements(operation, strides)
        steps = by_step if by_step is not None else [ONE] * len(axes)
    sizes, cuts = list(shape), [slice(None)] * len(shape)
    exact = value.content is not None
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        place = positive_axis(axis, len(shape))
        if _is_whole(shape[place], start, end, step):
            continue
        if place == value.axis:
            raise NotProved("cuts pieces out of the batch axis")
        bounds = [start.known, end.known, step.known]
        if None in bounds:
            exact = False
        cuts[place] = slice(*bounds)
        sizes[place] = _cut(operation, shape[place], start, end, step)
    if exact and value.content is not None:
        return [of_content(value.content[tuple(cuts)])]
    return [Value(tuple(sizes), value.without_content().axis)]


def _is_whole(size: Size, start: Size, end: Size, step: Size) -> bool:
    return start.known == 0 and step.known == 1 and (end == size or (end.known or 0) >= _WHOLE)


def _cut(operation: Operation, size: Size, start: Size, end: Size, step: Size) -> Size:
    if not all(each.is_batch_free for each in (start, end, step)):
        raise NotProved("cuts at places that depend on the number of rows")
    bounds = (start.known, end.known, step.known)
    if size.known is not None and bounds[0] is not None and bounds[1] is not None and bounds[2]:
        return Size(len(range(*slice(*bounds).indices(size.known))))
    if start.known == 0 and step.known == 1 and end.known is None and end == size:
        return size
    if start.known == 0 and step.known == 1 and end.is_dimension:
        return first_of(size, end)
    return derived(f"{size}[{start}:{end}:{step}]", size, start, end, step)


def gather(operation: Operation) -> list[Value]:
    """Slices of a tensor by number."""
    data, indices = operation.input(0), operation.input(1)
    shape, of_indices = operation.shape(0), operation.shape(1)
    axis = positive_axis(operation.int_attribute("axis", 0), len(shape))
    sizes = (*shape[:axis], *of_indices, *shape[axis + 1 :])
    wanted = ints(indices)
    if data.content is not None and wanted is not None:
        picked = np.empty(tuple(size.known or 0 for size in sizes), object)
        picked[...] = np.take(data.content, np.reshape(wanted, [size.known or 0 for size in of_indices]), axis)
        return [of_content(picked)]
    data, indices = data.without_content(), indices.without_content()
    if data.axis is None:
        return [Value(sizes, None if indices.axis is None else axis + indices.axis)]
    if indices.axis is not None:
        raise NotProved("looks rows up by numbers from rows")
    if data.axis == axis:
        raise NotProved("picks rows by number")
    return [Value(sizes, data.axis if data.axis < axis else data.axis + len(of_indices) - 1)]


def expand(operation: Operation) -> list[Value]:
    """Repeated to a shape."""
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
    """Repeated along axes."""
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
    """One number, in a computed shape."""
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
    """Numbers in steps: as many as there are rows give each row its number."""
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
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "Range": number_range,
    "Reshape": reshape,
    "Shape": shape_of,
    "Size": size_of,
    "Slice": slice_of,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
