"""Logits to labels and scores: the postprocessing of every classifier.

Shapes: B rows of an engine call, C classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.tensors import Arrays, TensorSpec, bytes_array

# How logits become scores, by the names of the Hugging Face task API.
ScoreFunction = Literal["softmax", "sigmoid", "none"]


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer for one input: classes and scores, most probable first."""

    labels: list[str]
    scores: list[float]


class Classifier:
    """The outputs and the postprocessing that all classification tasks share."""

    def __init__(self, labels: Sequence[str]) -> None:
        """Set up for classes with these names, in the order of their numbers."""
        self.labels = list(labels)
        self._label_bytes = [label.encode() for label in self.labels]
        self.outputs = (
            TensorSpec("label", "BYTES", (-1,)),
            TensorSpec("score", "FP32", (-1,)),
            TensorSpec("probabilities", "FP32", (-1, len(self.labels))),
        )

    def split_batch(self, outputs: Arrays, items: Sequence[Any]) -> list[NDArray[np.float32]]:
        """Split the outputs of a call into the logits of each item, float32 [C]."""
        return list(outputs["logits"])

    def postprocess(
        self,
        logits_C: NDArray[np.float32],
        function: ScoreFunction = "softmax",
        top_k: int | None = None,
    ) -> Classification:
        """Convert logits to the `top_k` best classes (all, if None), most probable first."""
        scores = scores_of(logits_C.tolist(), function)
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:top_k]
        return Classification(
            [self.labels[number] for number in order],
            [scores[number] for number in order],
        )

    def probability(self, logits_C: NDArray[np.float32], number: int) -> float:
        """Return the probability of one class."""
        return scores_of(logits_C.tolist(), "softmax")[number]

    def tensors(self, logits: Sequence[NDArray[np.float32]]) -> Arrays:
        """Make the output tensors of n results, as the metadata describes them."""
        # Plain floats here too: most requests have one input.
        probabilities = [scores_of(logits_C.tolist(), "softmax") for logits_C in logits]
        highest = [max(scores) for scores in probabilities]
        best = [scores.index(score) for scores, score in zip(probabilities, highest, strict=True)]
        return {
            "label": bytes_array([self._label_bytes[number] for number in best]),
            "score": np.array(highest, dtype=np.float32),
            "probabilities": np.array(probabilities, dtype=np.float32),
        }


def scores_of(logits: list[float], function: ScoreFunction) -> list[float]:
    """Convert logits to scores, with plain floats because for a handful of classes they are faster than arrays."""
    if function == "none":
        return logits
    if function == "sigmoid":
        # The two forms keep exp() from overflowing for either sign.
        return [
            1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit)) for logit in logits
        ]
    highest = max(logits)
    weights = [math.exp(logit - highest) for logit in logits]
    total = math.fsum(weights)
    return [weight / total for weight in weights]
