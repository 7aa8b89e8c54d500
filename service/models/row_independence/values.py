"""What is known about a tensor while its graph is traced."""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.models.row_independence.sizes import ONE, Size

Shape = tuple[Size, ...]
MAX_CONTENT = 256  # elements of a tensor that are followed one by one: shapes, axes and the like are short


class NotProved(Exception):
    """Tracing ends here; the message says why, for the node that is traced."""


class Numbering(Enum):
    """What a tensor holds of the number that each row has in a call."""

    NONE = "nothing"
    ALL = "each element is the number of its row times `block`"
    WITHIN = "each element is that, plus a number from 0 to below `block`"
    FIRST = "each first element along the last axis is the number of its row, the others do not depend on it"
    MIXED = "elements depend on it somehow"


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor as the tracing sees it.

    Attributes:
        shape: its dimensions; None where not even the rank is known.
        axis: the axis that holds the rows, in blocks of equal size, one block for each row in their order; None where
            no element depends on any row.
        content: the elements (Size, float or bool) where they are known, in an array of the same shape. They may
            depend on the batch size: such a value has no `axis`, and is more than a constant.
        numbering: how the elements depend on the place of their row in the call.
        block: what the number of a row is multiplied by.
        below: all elements are whole numbers from 0 to below this; None where that is not known.
    """

    shape: Shape | None
    axis: int | None = None
    content: NDArray[Any] | None = None
    numbering: Numbering = Numbering.NONE
    block: Size = ONE
    below: Size | None = None

    @property
    def is_fixed(self) -> bool:
        """Whether the value is the same in whatever company: neither rows nor their number have any influence."""
        return self.axis is None and not self.counts_rows

    @property
    def counts_rows(self) -> bool:
        """Whether an element or a dimension depends on the batch size though no row is in it."""
        if self.content is not None and any(
            isinstance(element, Size) and not element.is_batch_free for element in self.content.flat
        ):
            return True
        return self.axis is None and any(not size.is_batch_free for size in self.shape or ())

    @property
    def rank(self) -> int | None:
        """The number of dimensions."""
        return None if self.shape is None else len(self.shape)

    @property
    def rows_in_block(self) -> Size:
        """How much of `axis` belongs to one row."""
        if self.shape is None or self.axis is None:
            raise NotProved("has no rows")
        return self.shape[self.axis].per_row

    def without_content(self) -> "Value":
        """The value when its elements are not followed any further."""
        if self.counts_rows:
            raise NotProved("uses the number of rows")
        return replace(self, content=None, below=None)


UNKNOWN = Value(None)


def of_content(elements: NDArray[Any]) -> Value:
    """A value with known elements."""
    return Value(tuple(Size(size) for size in elements.shape), None, elements)


def of_array(array: NDArray[Any]) -> Value:
    """A constant."""
    if array.size > MAX_CONTENT or array.dtype.kind not in "biuf":
        return Value(tuple(Size(size) for size in array.shape))
    elements = np.empty(array.shape, object)
    for index, element in np.ndenumerate(array):
        elements[index] = Size(int(element)) if array.dtype.kind in "iu" else element.item()
    return of_content(elements)


def known_int(element: Any) -> int | None:
    """The number of an element that is known."""
    return element.known if isinstance(element, Size) else None


def ints(value: Value | None) -> list[int] | None:
    """The elements as numbers, where all are known."""
    if value is None or value.content is None:
        return None
    numbers = [known_int(element) for element in value.content.flat]
    return None if None in numbers else [number for number in numbers if number is not None]
