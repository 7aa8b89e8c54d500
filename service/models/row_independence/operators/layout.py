"""Operators that reorder, join, cut and pick parts of tensors."""

import numpy as np

from service.models.row_independence.operation import Operation, Rule, positive_axis
from service.models.row_independence.operators.shapes import elements
from service.models.row_independence.sizes import ONE, Size, derived, first_of
from service.models.row_independence.values import MAX_CONTENT, NotProved, Value, ints, of_content

_WHOLE = 10**9  # exporters write an end of at least this for "to the end of the axis"


def transpose(operation: Operation) -> list[Value]:
    """Trace Transpose."""
    value, shape = operation.input(0), operation.shape(0)
    order = operation.ints_attribute("perm") or list(range(len(shape)))[::-1]
    if sorted(order) != list(range(len(shape))):
        raise NotProved("orders other axes than there are")
    content = None if value.content is None else value.content.transpose(order)
    moved = None if value.axis is None else order.index(value.axis)
    return [Value(tuple(shape[axis] for axis in order), moved, content)]


def concat(operation: Operation) -> list[Value]:
    """Trace Concat along another axis than the batch."""
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
        raise NotProved("concatenates rows with a tensor without rows")
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
    """Trace Split along another axis than the batch."""
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
    """Trace Slice: a range of other axes than the batch, or the whole batch."""
    value, shape = operation.input(0), operation.shape(0)
    if operation.version < 10:
        starts = [Size(each) for each in operation.ints_attribute("starts") or []]
        ends = [Size(each) for each in operation.ints_attribute("ends") or []]
        axes = operation.ints_attribute("axes") or list(range(len(starts)))
        steps = [ONE] * len(axes)
    else:
        first, last = elements(operation, operation.input(1)), elements(operation, operation.input(2))
        if first is None or last is None:
            raise NotProved("splits at an unknown number of places")
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
            raise NotProved("slices the batch axis")
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
        raise NotProved("splits at places that depend on the number of rows")
    bounds = (start.known, end.known, step.known)
    if size.known is not None and bounds[0] is not None and bounds[1] is not None and bounds[2]:
        return Size(len(range(*slice(*bounds).indices(size.known))))
    if start.known == 0 and step.known == 1 and end.known is None and end == size:
        return size
    if start.known == 0 and step.known == 1 and end.is_dimension:
        return first_of(size, end)
    return derived(f"{size}[{start}:{end}:{step}]", size, start, end, step)


def gather(operation: Operation) -> list[Value]:
    """Trace Gather: slices of a tensor by index."""
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
        raise NotProved("looks rows up by indices that depend on rows")
    if data.axis == axis:
        raise NotProved("selects rows by index")
    return [Value(sizes, data.axis if data.axis < axis else data.axis + len(of_indices) - 1)]


RULES: dict[str, Rule] = {
    "Concat": concat,
    "Gather": gather,
    "Slice": slice_of,
    "Split": split,
    "Transpose": transpose,
}
