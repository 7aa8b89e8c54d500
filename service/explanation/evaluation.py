"""Evaluates the value function of an explanation: the score of the answer as a function of the kept features.

Shapes: S samples, M features, K values of one answer.
"""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import EngineFailed
from service.explanation.methods.features import Patches, Words
from service.models.repository import ServedModel
from service.scheduling.admission import ItemResult
from service.tasks.explainable import ValueFunction


class EvaluationCache:
    """Evaluates the value function with the model at low priority, each sample once."""

    def __init__(
        self,
        model: ServedModel,
        features: Words | Patches,
        function: ValueFunction,
        piece_rows: int,
        deadline_s: float,
    ) -> None:
        """Start empty.

        Args:
            model: model that answers.
            features: features of the input.
            function: value function of the input.
            piece_rows: samples that are submitted together.
            deadline_s: deadline on `time.monotonic()`'s clock.
        """
        self._model, self._features, self._function = model, features, function
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
            HeedError: raised by `submit_low` of the batcher.
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
        return [self._function.item_of(self._features.part(kept_M)) for kept_M in piece]
