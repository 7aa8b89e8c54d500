"""An operator of a traced graph, as the rules see it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from service.models.row_independence.onnx_graph import Constant, Node
from service.models.row_independence.sizes import ENTANGLED, Size, derived
from service.models.row_independence.values import NotProved, Shape, Value, ints

# Computes the outputs of an operator from its inputs; raises NotProved if rows may depend on each other.
Rule = Callable[["Operation"], Sequence[Value]]


@dataclass(frozen=True)
class Operation:
    """An operator and what is known about its inputs.

    Attributes:
        node: the operator.
        version: version of its operator set.
        inputs: values of the inputs; None for an optional one that is left out.
        numbers: counter that makes names of unknown sizes unique.
    """

    node: Node
    version: int
    inputs: Sequence[Value | None]
    numbers: "count[int]"

    def input(self, index: int) -> Value:
        """Return a required input.

        Raises:
            NotProved: it is left out.
        """
        value = self.optional(index)
        if value is None:
            raise NotProved(f"has no input {index}")
        return value

    def optional(self, index: int) -> Value | None:
        """Return an input, or None if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def shape(self, index: int) -> Shape:
        """Return the dimensions of an input.

        Raises:
            NotProved: its rank is not known.
        """
        shape = self.input(index).shape
        if shape is None:
            raise NotProved("has an input of unknown rank")
        return shape

    def given(self) -> list[Value]:
        """Return the inputs that are not left out."""
        return [value for value in self.inputs if value is not None]

    def fixed(self, *indices: int) -> None:
        """Refuse inputs that must not depend on rows.

        Raises:
            NotProved: one does.
        """
        for index in indices:
            value = self.optional(index)
            if value is not None and not value.is_fixed:
                raise NotProved(f"takes input {index}, which all rows share, from rows")

    def int_attribute(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        value = self.node.attributes.get(name, default)
        return int(value)

    def ints_attribute(self, name: str) -> list[int] | None:
        """Return an attribute that is a list of integers, or None if it is missing."""
        value = self.node.attributes.get(name)
        return None if value is None else [int(each) for each in value]

    def text_attribute(self, name: str, default: str) -> str:
        """Return a string attribute."""
        value = self.node.attributes.get(name)
        return default if value is None else value.decode()

    def tensor_attribute(self, name: str) -> Constant | None:
        """Return a tensor attribute, or None if it is missing."""
        value = self.node.attributes.get(name)
        return value if isinstance(value, Constant) else None

    def axes(self, index: int | None, name: str = "axes") -> list[int] | None:
        """Return axes from an input, or from an attribute if there is no such input; None if there is neither.

        Raises:
            NotProved: they are computed and not known.
        """
        value = None if index is None else self.optional(index)
        if value is None:
            return self.ints_attribute(name)
        axes = ints(value)
        if axes is None:
            raise NotProved("has axes that are not known")
        return axes

    def fresh(self) -> Size:
        """Make a dimension that is unknown but independent of the batch size."""
        return derived(f"size#{next(self.numbers)}")

    def fresh_shape(self, rank: int) -> Shape:
        """Make a shape of unknown dimensions that are independent of the batch size."""
        return tuple(self.fresh() for _ in range(rank))

    def unknown(self, *elements: Any) -> Size:
        """Make the result of an unknown function of the elements."""
        if any(isinstance(element, Size) and not element.is_batch_free for element in elements):
            return ENTANGLED
        return derived(f"number#{next(self.numbers)}", signed=True)


def positive_axis(axis: int, rank: int) -> int:
    """Count an axis from the front.

    Raises:
        NotProved: there is no such axis.
    """
    if not -rank <= axis < rank:
        raise NotProved(f"has axis {axis} for {rank} dimensions")
    return axis % rank
