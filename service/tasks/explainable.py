"""The protocol of a task whose answers can be explained.

Shapes: M features, K values of one answer.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray
from PIL.Image import Image

from service.errors import InvalidRequest
from service.tasks.images.image_file import DecodingMemory
from service.tasks.stored_task import Example, StoredTask
from service.tensors import Arrays


class TextParts(NamedTuple):
    """An input that is explained by its words.

    Attributes:
        text: the text.
        ids: its tokens, as `item_of` of the value function takes those that are kept.
        spans: characters of each token, (start, end); None for a special token.
        names: the tokenizer's name of each token.
    """

    text: str
    ids: list[int]
    spans: Sequence[tuple[int, int] | None]
    names: Sequence[str]


class ImageParts(NamedTuple):
    """An input that is explained by its patches.

    Attributes:
        pixels_CHW: the image as the graph takes it.
        picture: makes the image that people see, from the longest side in pixels.
    """

    pixels_CHW: NDArray[Any]
    picture: Callable[[int], Image]


class ValueFunction(NamedTuple):
    """The value function of a cooperative game whose players are the features of one input.

    Attributes:
        item_of: from the part of the input that is kept (ids or pixels) to an item for the batcher.
        values_of: from the result of an item to K values that sum to the score.
        fraction_of: from K values [K] to a number between 0 and 1 for the curves.
        whole: values of the complete input, where the answer has them already.
        target: the class or the translation that is explained.
        row: the input as the explanation graph takes it.
        target_pieces: text of each token of a translation; None for a classifier.
    """

    item_of: Callable[[Any], Any]
    values_of: Callable[[Any], Sequence[float]]
    fraction_of: Callable[[NDArray[Any]], float]
    whole: Sequence[float] | None
    target: str
    row: Callable[[], Arrays]
    target_pieces: Callable[[], list[str]] | None = None


class Explainable(StoredTask[Any], Protocol):
    """A task whose answers can be explained."""

    def parts(
        self, given: Any, item: Any, *, truncate: bool, field: str, max_image_pixels: int, memory: DecodingMemory | None
    ) -> TextParts | ImageParts:
        """Split an input into the parts that can be taken away; may be called in any thread.

        Args:
            given: the input, a text or a file.
            item: the same as it was prepared.
            truncate: whether it may have been cut.
            field: name of the input in error messages.
            max_image_pixels: as for `prepare`.
            memory: as for `prepare`.

        Raises:
            InvalidRequest: the input cannot be read.
        """

    def target_of(self, given: Any, target: str, name: str) -> Any:
        """Return what `value_function` takes for the target that a request names.

        Args:
            given: the input.
            target: the target's name.
            name: the model, for messages: "model 'm'".

        Raises:
            InvalidRequest: the model, or this input, has no such target.
        """

    def value_function(self, item: Any, result: Any, target: Any) -> ValueFunction:
        """Return the function that an explanation of one answer evaluates.

        Args:
            item: the input as the batcher got it.
            result: what was computed for it.
            target: what is explained, as `target_of` returns it; None: the predicted class, the best answer, or the
                translation.
        """

    def golden_row(self, item: Any, example: Example, target: int | None) -> Arrays:
        """Make the explanation graph's input for a golden example.

        Args:
            item: the example as it was prepared.
            example: the golden example.
            target: number of the explained class; None for a translation.
        """


def class_number(labels: Sequence[str], target: str, name: str) -> int:
    """Return the number of the class that a request names as the target of an explanation.

    Args:
        labels: names of the classes.
        target: the target's name.
        name: the model, for messages: "model 'm'".

    Raises:
        InvalidRequest: there is no such class.
    """
    if target not in labels:
        raise InvalidRequest(f"target {target!r} is not a class of {name}; it has {', '.join(labels)}")
    return labels.index(target)


def refuse_target(self: Any, given: Any, target: str, name: str) -> None:
    """Refuse a target: `target_of` of a task whose answers have no classes.

    Raises:
        InvalidRequest: always.
    """
    raise InvalidRequest(f"target is the class of a classifier; an explanation of a {self.name} takes none")
