"""The function that an explanation evaluates: from the features that are kept to the score of the answer.

Shapes: S samples, M features, K values of one answer.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import EngineFailed
from service.explanation.methods.features import Patches, Words
from service.explanation.planning import ExplanationPlan
from service.models.explanation_graph import Explainable, image_row, text_row, translation_row
from service.models.repository import ServedModel
from service.scheduling.admission import ItemResult
from service.tasks.image_classification import Pixels
from service.tasks.text_classification import TextClassification, Tokens
from service.tasks.translation import Translation
from service.tasks.translation_search import Sentence
from service.tensors import Arrays


class ValueFunction(NamedTuple):
    """The value function of a cooperative game whose players are the features of one input."""

    item_of: Callable[[NDArray[np.bool_]], Any]  # features that are kept [M], to an item for the batcher
    values_of: Callable[[Any], Sequence[float]]  # result of an item, to K values that sum to the score
    fraction_of: Callable[[NDArray[np.float64]], float]  # K values, to a number between 0 and 1 for the curves
    whole: Sequence[float] | None  # values of the complete input, where the answer has them already
    target: str  # the class or the translation that is explained
    row: Callable[[], Arrays]  # the input as the explanation graph takes it
    target_ids: Sequence[int] = ()  # tokens of a translation


def value_function_of(task: Explainable, plan: ExplanationPlan, item: Any, answer: Any) -> ValueFunction:
    """Return the value function of an input.

    Args:
        task: task of the model.
        plan: features of the input, and the class that the request names.
        item: the input as the batcher got it.
        answer: result of the batcher for it.
    """
    if isinstance(task, Translation):
        return _translation_function(task, plan, item, answer)
    features, number = plan.features, int(answer.argmax()) if plan.target is None else plan.target

    def item_of(kept_M: NDArray[np.bool_]) -> Tokens | Pixels:
        if isinstance(features, Patches):
            return Pixels(features.pixels_of(kept_M))
        assert isinstance(task, TextClassification)
        return task.part(features.ids_of(kept_M))

    def values_of(logits_C: NDArray[np.float32]) -> list[float]:
        return [task.probability(logits_C, number)]

    def row() -> Arrays:
        return image_row(item.pixels_CHW, number) if isinstance(features, Patches) else text_row(item.ids, number)

    return ValueFunction(
        item_of, values_of, lambda values_K: float(values_K[0]), values_of(answer), task.labels[number], row
    )


def _translation_function(task: Translation, plan: ExplanationPlan, item: Any, answer: Any) -> ValueFunction:
    """Return the log probabilities of a translation's tokens as a function of the source words that are kept."""
    features = plan.features
    assert isinstance(features, Words)
    assert isinstance(answer, Sentence)
    target_ids = task.tokens_of(answer)
    return ValueFunction(
        item_of=lambda kept_M: task.forced(features.ids_of(kept_M), target_ids),
        values_of=lambda forced: forced.log_probabilities,
        # Geometric mean of the tokens' probabilities, because the probability of a whole translation is close to 0.
        fraction_of=lambda values_K: math.exp(values_K.mean()),
        whole=None,
        target=task.postprocess(answer).text,
        row=lambda: translation_row(item.ids, target_ids),
        target_ids=target_ids,
    )


class EvaluationCache:
    """Evaluates the value function with the model at low priority, each sample once."""

    def __init__(self, model: ServedModel, function: ValueFunction, piece_rows: int, deadline_s: float) -> None:
        """Start empty.

        Args:
            model: model that answers.
            function: value function of the input.
            piece_rows: samples that are submitted together.
            deadline_s: on `time.monotonic()`'s clock.
        """
        self._model, self._function = model, function
        self._piece_rows, self._deadline_s = piece_rows, deadline_s
        self.known: dict[bytes, NDArray[np.float64]] = {}
        self.done: list[ItemResult] = []

    def add(self, kept_M: NDArray[np.bool_], values: Sequence[float]) -> None:
        """Store the values of a sample.

        Raises:
            EngineFailed: a value is not finite.
        """
        if not all(map(math.isfinite, values)):
            raise EngineFailed("the model gives no finite score to a part of this input")
        self.known[kept_M.tobytes()] = np.array(values, dtype=np.float64)

    async def values(self, kept_SM: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the values of samples, float64 [S, K].

        Args:
            kept_SM: features that each sample keeps, bool [S, M].

        Raises:
            HeedError: as `submit_low` of the batchers.
        """
        missing = {key: kept_M for kept_M in kept_SM if (key := kept_M.tobytes()) not in self.known}
        asking = list(missing.values())
        for first in range(0, len(asking), self._piece_rows):
            piece = asking[first : first + self._piece_rows]
            items = await asyncio.to_thread(self._items, piece)
            done = await self._model.batcher.submit_low(items, self._deadline_s)
            self.done += done
            for kept_M, entry in zip(piece, done, strict=True):
                self.add(kept_M, self._function.values_of(entry.result))
        return np.stack([self.known[kept_M.tobytes()] for kept_M in kept_SM])

    def _items(self, piece: Sequence[NDArray[np.bool_]]) -> list[Any]:
        return [self._function.item_of(kept_M) for kept_M in piece]
