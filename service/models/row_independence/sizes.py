"""Symbolic sizes: products of a number and of names, one of which is the batch size."""

import re
from collections import Counter
from dataclasses import dataclass

BATCH_NAME = "batch"
# Names that begin so may be negative: they stand for results of arithmetic, not for dimensions.
SIGNED = "~"


@dataclass(frozen=True, slots=True)
class Size:
    """The product of `factor` and `names`. A dimension of a tensor, or a number computed from dimensions.

    Names other than the batch stand for numbers that the shape of a row alone decides.
    """

    factor: int
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Readable in reasons, and unique for each size: names of derived sizes are built from it."""
        if not self.names:
            return str(self.factor)
        return "*".join([*([] if self.factor == 1 else [str(self.factor)]), *self.names])

    @property
    def known(self) -> int | None:
        """The number, where no name is left."""
        return None if self.names else self.factor

    @property
    def is_batch_free(self) -> bool:
        """Whether the number of rows has no influence."""
        return not any(name.startswith(BATCH_NAME) for name in self.names)

    @property
    def is_batch_multiple(self) -> bool:
        """Whether this is the batch size times something that is batch-free, at least 1 for each row."""
        return (
            self.factor > 0
            and self.names.count(BATCH_NAME) == 1
            and not any(name.startswith((BATCH_NAME, SIGNED)) for name in self.names if name != BATCH_NAME)
        )

    @property
    def per_row(self) -> "Size":
        """The factor beside the batch size."""
        names = list(self.names)
        names.remove(BATCH_NAME)
        return Size(self.factor, tuple(names))

    @property
    def is_dimension(self) -> bool:
        """Whether this cannot be negative."""
        return self.factor >= 0 and not any(name.startswith(SIGNED) for name in self.names)

    def times(self, other: "Size") -> "Size":
        """The product."""
        factor = self.factor * other.factor
        return Size(factor, tuple(sorted(self.names + other.names)) if factor else ())

    def over(self, other: "Size") -> "Size | None":
        """The quotient where it is certainly a whole number, else None."""
        if other.factor == 0 or self.factor % other.factor:
            return None
        rest = Counter(self.names)
        rest.subtract(Counter(other.names))
        if any(count < 0 for count in rest.values()):
            return None
        return Size(self.factor // other.factor, tuple(sorted(rest.elements())))


ONE = Size(1)
BATCH = Size(1, (BATCH_NAME,))
# A number that depends on the batch size in a way that is not followed any further.
ENTANGLED = Size(1, (BATCH_NAME + "?",))


def product(sizes: "tuple[Size, ...] | list[Size]") -> Size:
    """The product of all."""
    whole = ONE
    for size in sizes:
        whole = whole.times(size)
    return whole


def derived(expression: str, *sizes: Size, signed: bool = False) -> Size:
    """A size that is some function of others.

    Args:
        expression: names the function and all its arguments, so that equal expressions are equal numbers.
        sizes: what it depends on.
        signed: it may be negative.
    """
    if not all(size.is_batch_free for size in sizes):
        return ENTANGLED
    return Size(1, ((SIGNED if signed else "") + f"({expression})",))


def add(left: Size, right: Size, *, dimension: bool = False) -> Size:
    """The sum; `dimension` says that it cannot be negative."""
    if left.names == right.names or 0 in (left.factor, right.factor):
        names = left.names if left.factor else right.names
        factor = left.factor + right.factor
        return Size(factor, names if factor else ())
    first, second = sorted((str(left), str(right)))
    both = left.is_dimension and right.is_dimension
    return derived(f"{first}+{second}", left, right, signed=not (dimension or both))


def first_of(size: Size, number: Size) -> Size:
    """The size of what is left where the first `number` of `size` elements are taken."""
    return derived(f"first {number} of {size}", size, number)


def broadcast(left: Size, right: Size) -> Size:
    """What two dimensions that are broadcast give; for dimensions without the batch.

    A known number other than 1 wins: the other can only be equal or 1.
    """
    for one, other in ((left, right), (right, left)):
        # As many elements of a table as `one`: fewer only where the table is too short, and then not 1 beside it.
        if len(other.names) == 1 and re.fullmatch(rf"\(first {re.escape(str(one))} of [1-9]\d*\)", other.names[0]):
            return one
    if left == right or right.known == 1:
        return left
    if left.known == 1 or right.known is not None:
        return right
    if left.known is not None:
        return left
    first, second = sorted((str(left), str(right)))
    return derived(f"{first}|{second}", left, right)
