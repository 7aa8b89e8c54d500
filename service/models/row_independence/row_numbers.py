"""Follows tensors that hold row numbers, which a graph uses to look up elements of the same row.

Exporters write `x[arange(batch), ...]`, or, if all rows of `x` lie on one axis, `x[arange(batch) * length + n]` with
0 <= n < length. A row's number depends on its position in the call, and so does what is computed from it. The only
exception is a look-up of elements that belong to the same row.
"""

from collections.abc import Sequence
from dataclasses import replace

from service.models.row_independence.operation import Operation, positive_axis
from service.models.row_independence.sizes import ONE, Size
from service.models.row_independence.values import NotProved, Numbering, Value

_ARRANGING = {"Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_COUNTING = {"ArgMax", "ArgMin", "Range"}  # their rules set `below` themselves
_INT32, _INT64 = 6, 7


def has_numbers(values: Sequence[Value | None]) -> bool:
    """Whether any value depends on the position of its row."""
    return any(value is not None and value.numbering is not Numbering.NONE for value in values)


def is_own_row(operation: Operation) -> bool:
    """Whether each row looks up elements of its own, by its number."""
    if operation.node.op_type not in {"Gather", "GatherND"}:
        return False
    data, indices = operation.input(0), operation.input(1)
    if data.numbering is not Numbering.NONE or data.axis != 0:
        return False
    if operation.node.op_type == "Gather":
        is_own = indices.numbering in {Numbering.ALL, Numbering.WITHIN} and indices.block == data.rows_in_block
        return operation.int_attribute("axis", 0) == 0 and is_own
    shape = operation.shape(1)
    is_first = indices.numbering is Numbering.FIRST or (indices.numbering is Numbering.ALL and shape[-1] == ONE)
    is_own = is_first and indices.block == data.rows_in_block == ONE
    return is_own and indices.axis != len(shape) - 1 and operation.int_attribute("batch_dims", 0) == 0


def looked_up(operation: Operation) -> list[Value]:
    """Return the result of such a look-up.

    Raises:
        NotProved: its shape is not known.
    """
    shape, of_indices = operation.shape(0), operation.shape(1)
    if operation.node.op_type == "Gather":
        return [Value((*of_indices, *shape[1:]), operation.input(1).axis)]
    depth = of_indices[-1].known
    if depth is None:
        raise NotProved("has indices of unknown length")
    return [Value((*of_indices[:-1], *shape[depth:]), operation.input(1).axis)]


def numbered(operation: Operation, results: Sequence[Value]) -> list[Value]:
    """Set how the results depend on row numbers, for an operator that has such an input."""
    numbering, block = _numbering_of(operation)
    return [replace(value, numbering=numbering, block=block) for value in results]


def _numbering_of(operation: Operation) -> tuple[Numbering, Size]:
    op_type = operation.node.op_type if operation.node.domain == "" else ""
    if op_type in {"Shape", "Size"}:
        return Numbering.NONE, ONE
    if op_type in {"Add", "Mul"}:
        return _arithmetic(operation)
    first = operation.input(0)
    if not has_numbers(operation.inputs[1:]):
        if first.numbering in {Numbering.ALL, Numbering.WITHIN} and _keeps_elements(operation):
            return first.numbering, first.block
        if op_type == "Concat" and first.numbering is Numbering.ALL and first.block == ONE:
            shape = operation.shape(0)
            is_last = positive_axis(operation.int_attribute("axis", 1), len(shape)) == len(shape) - 1
            return Numbering.FIRST if is_last and shape[-1] == ONE else Numbering.MIXED, ONE
    return Numbering.MIXED, ONE


def _arithmetic(operation: Operation) -> tuple[Numbering, Size]:
    """Recognise a row's number times the length of a block, and that plus a position within the block."""
    number, other = operation.input(0), operation.input(1)
    if number.numbering is Numbering.NONE:
        number, other = other, number
    if number.numbering is not Numbering.ALL or other.numbering is not Numbering.NONE:
        return Numbering.MIXED, ONE
    if operation.node.op_type == "Add":
        return (Numbering.WITHIN, number.block) if other.below == number.block else (Numbering.MIXED, ONE)
    factors = set() if other.content is None else set(other.content.flat)
    if len(factors) == 1:
        (factor,) = factors
        if isinstance(factor, Size) and factor.is_dimension and factor.is_batch_free:
            return Numbering.ALL, number.block.times(factor)
    return Numbering.MIXED, ONE


def bounded(operation: Operation, results: Sequence[Value]) -> list[Value]:
    """Set the upper bound of the results' elements where it is known."""
    if operation.node.domain == "" and operation.node.op_type in _COUNTING:
        return list(results)
    below = operation.input(0).below if operation.inputs and _keeps_elements(operation) else None
    return [replace(value, below=below) if value.below != below else value for value in results]


def _keeps_elements(operation: Operation) -> bool:
    """Whether each element of the result is an element of the first input."""
    if operation.node.domain != "":
        return False
    if operation.node.op_type == "Cast":
        return operation.int_attribute("to", 0) in {_INT32, _INT64}
    return operation.node.op_type in _ARRANGING
