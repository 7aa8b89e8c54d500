"""Values of traced tensors: shape, batch axis and known elements."""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.models.row_independence.sizes import ONE, Size

Shape = tuple[Size, ...]
MAX_CONTENT = 256  # elements of a tensor that are followed one by one: shapes, axes and the like are short


class NotProved(Exception):
    """The proof fails at the node that is traced; the message says why."""


class Numbering(Enum):
    """Dependence of a tensor's elements on the position of their row in the call."""

    NONE = "nothing"
    ALL = "each element is the number of its row times `block`"
    WITHIN = "each element is that, plus a number from 0 to below `block`"
    FIRST = "each first element along the last axis is the number of its row, the others do not depend on it"
    MIXED = "elements depend on it somehow"


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor as the tracing sees it.

    Attributes:
        shape: its dimensions; None if the rank is unknown.
        axis: the axis that holds the rows, as equal blocks in the order of the rows; None if no element depends on a
            row.
        content: the elements (Size, float or bool) if they are known, in an array of the same shape. They may depend
            on the batch size; such a value has no `axis` and still is not constant.
        numbering: how the elements depend on the position of their row in the call.
        block: the factor by which the number of a row is multiplied.
        below: an exclusive upper bound where all elements are integers from 0 on; None if there is none.
    """

    shape: Shape | None
    axis: int | None = None
    content: NDArray[Any] | None = None
    numbering: Numbering = Numbering.NONE
    block: Size = ONE
    below: Size | None = None

    @property
    def is_fixed(self) -> bool:
        """Whether the value depends neither on rows nor on their number."""
        return self.axis is None and not self.counts_rows

    @property
    def counts_rows(self) -> bool:
        """Whether an element or a dimension depends on the batch size although the tensor holds no rows."""
        if self.content is not None and any(
            isinstance(element, Size) and not element.is_batch_free for element in self.content.flat
        ):
            return True
        return self.axis is None and any(not size.is_batch_free for size in self.shape or ())

    @property
    def rank(self) -> int | None:
        """The number of dimensions; None if it is unknown."""
        return None if self.shape is None else len(self.shape)

    @property
    def rows_in_block(self) -> Size:
        """The number of elements along `axis` that belong to one row.

        Raises:
            NotProved: the tensor has no rows.
        """
        if self.shape is None or self.axis is None:
            raise NotProved("has no rows")
        return self.shape[self.axis].per_row

    def without_content(self) -> "Value":
        """Return the value without its known elements.

        Raises:
            NotProved: they depend on the number of rows.
        """
        if self.counts_rows:
            raise NotProved("uses the number of rows")
        return replace(self, content=None, below=None)


UNKNOWN = Value(None)


def of_content(elements: NDArray[Any]) -> Value:
    """Make a value with known elements."""
    return Value(tuple(Size(size) for size in elements.shape), None, elements)


def of_array(array: NDArray[Any]) -> Value:
    """Make the value of a constant; the elements of a long one are not kept."""
    if array.size > MAX_CONTENT or array.dtype.kind not in "biuf":
        return Value(tuple(Size(size) for size in array.shape))
    elements = np.empty(array.shape, object)
    for index, element in np.ndenumerate(array):
        elements[index] = Size(int(element)) if array.dtype.kind in "iu" else element.item()
    return of_content(elements)


def known_int(element: Any) -> int | None:
    """Return the number of an element, or None if it is not known."""
    return element.known if isinstance(element, Size) else None


def ints(value: Value | None) -> list[int] | None:
    """Return the elements as numbers, or None if some are not known."""
    if value is None or value.content is None:
        return None
    numbers = [known_int(element) for element in value.content.flat]
    return None if None in numbers else [number for number in numbers if number is not None]
