"""Symbolic sizes: products of a number and of names, one of which is the batch size."""

import re
from collections import Counter
from dataclasses import dataclass

BATCH_NAME = "batch"
# Prefix of names that may be negative, because they stand for results of arithmetic and not for dimensions.
SIGNED = "~"


@dataclass(frozen=True, slots=True)
class Size:
    """The product of `factor` and `names`: a dimension of a tensor, or a number computed from dimensions.

    Names other than the batch stand for numbers that depend on the shape of a row alone.
    """

    factor: int
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A readable text that is unique for each size: reasons and the names of derived sizes are built from it."""
        if not self.names:
            return str(self.factor)
        return "*".join([*([] if self.factor == 1 else [str(self.factor)]), *self.names])

    @property
    def known(self) -> int | None:
        """The number; None if the size has names."""
        return None if self.names else self.factor

    @property
    def is_batch_free(self) -> bool:
        """Whether the size is independent of the number of rows."""
        return not any(name.startswith(BATCH_NAME) for name in self.names)

    @property
    def is_batch_multiple(self) -> bool:
        """Whether this is the batch size times a batch-free factor that is at least 1."""
        return (
            self.factor > 0
            and self.names.count(BATCH_NAME) == 1
            and not any(name.startswith((BATCH_NAME, SIGNED)) for name in self.names if name != BATCH_NAME)
        )

    @property
    def per_row(self) -> "Size":
        """The size divided by the batch size."""
        names = list(self.names)
        names.remove(BATCH_NAME)
        return Size(self.factor, tuple(names))

    @property
    def is_dimension(self) -> bool:
        """Whether the size cannot be negative."""
        return self.factor >= 0 and not any(name.startswith(SIGNED) for name in self.names)

    def times(self, other: "Size") -> "Size":
        """Return the product."""
        factor = self.factor * other.factor
        return Size(factor, tuple(sorted(self.names + other.names)) if factor else ())

    def over(self, other: "Size") -> "Size | None":
        """Return the quotient if it is certainly an integer, else None."""
        if other.factor == 0 or self.factor % other.factor:
            return None
        rest = Counter(self.names)
        rest.subtract(Counter(other.names))
        if any(count < 0 for count in rest.values()):
            return None
        return Size(self.factor // other.factor, tuple(sorted(rest.elements())))


ONE = Size(1)
BATCH = Size(1, (BATCH_NAME,))
# A number that depends on the batch size in a way that is not traced.
ENTANGLED = Size(1, (BATCH_NAME + "?",))


def product(sizes: "tuple[Size, ...] | list[Size]") -> Size:
    """Return the product of all sizes."""
    whole = ONE
    for size in sizes:
        whole = whole.times(size)
    return whole


def derived(expression: str, *sizes: Size, signed: bool = False) -> Size:
    """Make a size that is some function of others.

    Args:
        expression: names the function and all its arguments, so that equal expressions are equal numbers.
        sizes: the sizes that it depends on.
        signed: the result may be negative.
    """
    if not all(size.is_batch_free for size in sizes):
        return ENTANGLED
    return Size(1, ((SIGNED if signed else "") + f"({expression})",))


def add(left: Size, right: Size, *, dimension: bool = False) -> Size:
    """Return the sum; `dimension` says that it cannot be negative."""
    if left.names == right.names or 0 in (left.factor, right.factor):
        names = left.names if left.factor else right.names
        factor = left.factor + right.factor
        return Size(factor, names if factor else ())
    first, second = sorted((str(left), str(right)))
    both = left.is_dimension and right.is_dimension
    return derived(f"{first}+{second}", left, right, signed=not (dimension or both))


def first_of(size: Size, number: Size) -> Size:
    """Return the size of a slice of the first `number` of `size` elements."""
    return derived(f"first {number} of {size}", size, number)


def broadcast(left: Size, right: Size) -> Size:
    """Return the broadcast of two dimensions without the batch.

    A known number other than 1 wins, because the other can only be equal or 1.
    """
    for one, other in ((left, right), (right, left)):
        # The first `one` elements of a table: fewer only if the table is too short, and then they are not 1.
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
