"""Tensors that hold the number of each row, and how a row finds itself by it.

Exporters write `x[arange(batch), ...]` so. A row's number depends on its place in the call, so what is computed from it
does too, but for one use: to look up what belongs to the same row.
"""

from collections.abc import Sequence
from dataclasses import replace

from service.models.row_independence.operation import Operation, positive_axis
from service.models.row_independence.sizes import BATCH, ONE
from service.models.row_independence.values import NotProved, Numbering, Value

_ARRANGING = {"Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_INT32, _INT64 = 6, 7


def has_numbers(values: Sequence[Value | None]) -> bool:
    """Whether any value depends on the place of its row."""
    return any(value is not None and value.numbering is not Numbering.NONE for value in values)


def is_own_row(operation: Operation) -> bool:
    """Whether each row looks up what is its own, by its number."""
    if operation.node.op_type not in {"Gather", "GatherND"}:
        return False
    data, indices = operation.input(0), operation.input(1)
    if data.numbering is not Numbering.NONE or data.axis != 0 or operation.shape(0)[0] != BATCH:
        return False
    if operation.node.op_type == "Gather":
        return operation.int_attribute("axis", 0) == 0 and indices.numbering is Numbering.ALL
    shape = operation.shape(1)
    is_first = indices.numbering is Numbering.FIRST or (indices.numbering is Numbering.ALL and shape[-1] == ONE)
    return is_first and indices.axis != len(shape) - 1 and operation.int_attribute("batch_dims", 0) == 0


def looked_up(operation: Operation) -> list[Value]:
    """What the rows find there."""
    shape, of_indices = operation.shape(0), operation.shape(1)
    if operation.node.op_type == "Gather":
        return [Value((*of_indices, *shape[1:]), operation.input(1).axis)]
    depth = of_indices[-1].known
    if depth is None:
        raise NotProved("has indices of unknown length")
    return [Value((*of_indices[:-1], *shape[depth:]), operation.input(1).axis)]


def numbering_of(operation: Operation) -> Numbering:
    """What the results hold of the rows' numbers, where an input has some."""
    node = operation.node
    if node.op_type in {"Shape", "Size"}:
        return Numbering.NONE
    first, others = operation.input(0), operation.inputs[1:]
    if first.numbering is not Numbering.ALL or has_numbers(others):
        return Numbering.MIXED
    if node.op_type in _ARRANGING:
        return Numbering.ALL
    if node.op_type == "Cast" and operation.int_attribute("to", 0) in {_INT32, _INT64}:
        return Numbering.ALL
    if node.op_type == "Concat":
        shape = operation.shape(0)
        is_last = positive_axis(operation.int_attribute("axis", 1), len(shape)) == len(shape) - 1
        return Numbering.FIRST if is_last and shape[-1] == ONE else Numbering.MIXED
    return Numbering.MIXED


def numbered(results: Sequence[Value], numbering: Numbering) -> list[Value]:
    """The results with what they hold of the rows' numbers."""
    return [replace(value, numbering=numbering) for value in results]
