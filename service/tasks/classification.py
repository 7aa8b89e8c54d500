"""Logits to labels and scores: the postprocessing of every classifier.

Shapes: B rows of an engine call, n inputs of a request, C classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.tasks.explainable import ValueFunction, class_number
from service.tasks.hub_messages import LabelScore, labelled_scores
from service.tasks.stored_task import Example, TaskError, Tolerance
from service.tasks.task import DEFAULT_ANSWER, AnswerOptions, ScoreFunction
from service.tensors import Arrays, TensorSpec, bytes_array

# What the logits are, by the names of Hugging Face's `config.json`: scores of classes of which one is right, scores of
# classes of which any number is right, or numbers.
Problem = Literal["single_label_classification", "multi_label_classification", "regression"]


class ClassifierSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`task.json` of a classifier.

    Attributes:
        problem: what the logits are.
        function: how logits become scores where a request does not say; None: as the problem asks.
        thresholds: of a multi-label classifier: the lowest score of each class that predicts it.
    """

    problem: Problem = "single_label_classification"
    function: ScoreFunction | None = None
    thresholds: list[float] | None = None

    def score_function(self) -> ScoreFunction:
        """Return how logits become scores, as the pipelines of `transformers` choose it."""
        if self.function is not None:
            return self.function
        functions: Mapping[Problem, ScoreFunction] = {
            "single_label_classification": "softmax",
            "multi_label_classification": "sigmoid",
            "regression": "none",
        }
        return functions[self.problem]


SINGLE_LABEL = ClassifierSettings()


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer for one input: classes and scores, highest score first.

    `predicted` says of each class whether its score reaches its threshold; None where the model has no thresholds.
    """

    labels: list[str]
    scores: list[float]
    predicted: list[bool] | None = None


class Classifier:
    """The outputs and the postprocessing that all classification tasks share."""

    elements_are_rows: ClassVar[bool] = True
    decodes: ClassVar[bool] = False
    hub_answer: ClassVar[Any] = list[LabelScore]
    golden_searches: ClassVar[Sequence[str]] = ("",)
    attention_outputs: ClassVar[Mapping[str, str]] = {"encoder": "attention"}

    def __init__(self, labels: Sequence[str], settings: ClassifierSettings = SINGLE_LABEL) -> None:
        """Set up.

        Args:
            labels: names of the classes, in the order of their numbers; of a regression, names of the numbers.
            settings: what the logits are.

        Raises:
            TaskError: the thresholds do not fit the classes.
        """
        self.labels = list(labels)
        self._label_bytes = [label.encode() for label in self.labels]
        self.settings, self._function = settings, settings.score_function()
        self._thresholds = settings.thresholds
        if self._thresholds is not None and len(self._thresholds) != len(self.labels):
            raise TaskError(f"{len(self._thresholds)} thresholds in task.json for {len(self.labels)} labels")
        if settings.problem == "regression":
            self.outputs: tuple[TensorSpec, ...] = (
                TensorSpec("values", "FP32", (-1, len(self.labels)), labels=tuple(self.labels)),
            )
            return
        self.outputs = (
            TensorSpec("label", "BYTES", (-1,), ranked_by="probabilities"),
            TensorSpec("score", "FP32", (-1,), ranked_by="probabilities"),
            TensorSpec("probabilities", "FP32", (-1, len(self.labels)), labels=tuple(self.labels)),
        )
        if self._thresholds is not None:
            self.outputs += (TensorSpec("predicted", "BOOL", (-1, len(self.labels))),)

    def max_inputs(self, max_request_rows: int) -> int:
        """Return the limit on rows: each text or image is one."""
        return max_request_rows

    def split_batch(self, outputs: Arrays, items: Sequence[Any]) -> list[NDArray[np.float32]]:
        """Split the outputs of a call into the logits of each item, float32 [C]."""
        return list(outputs["logits"])

    def finish(self, result: NDArray[np.float32], options: AnswerOptions = DEFAULT_ANSWER) -> Classification:
        """Convert logits, float32 [C], to the best classes, highest score first."""
        scores = scores_of(result.tolist(), options.function or self._function)
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[: options.top_k]
        predicted = None
        if self._thresholds is not None:
            # The thresholds were fitted on the model's own scores, whatever scores the request asks for.
            own = scores_of(result.tolist(), self._function)
            predicted = [own[number] >= self._thresholds[number] for number in order]
        return Classification(
            [self.labels[number] for number in order], [scores[number] for number in order], predicted
        )

    def probability(self, logits_C: NDArray[np.float32], number: int) -> float:
        """Return the score of one class: its probability, or the number of a regression."""
        return scores_of(logits_C.tolist(), self._function)[number]

    def to_tensors(self, results: Sequence[NDArray[np.float32]]) -> Arrays:
        """Make the output tensors of n results, as the metadata describes them."""
        if self.settings.problem == "regression":
            return {"values": np.array(results, dtype=np.float32)}
        # Plain floats here too: most requests have one input.
        probabilities = [scores_of(logits_C.tolist(), self._function) for logits_C in results]
        highest = [max(scores) for scores in probabilities]
        best = [scores.index(score) for scores, score in zip(probabilities, highest, strict=True)]
        tensors = {
            "label": bytes_array([self._label_bytes[number] for number in best]),
            "score": np.array(highest, dtype=np.float32),
            "probabilities": np.array(probabilities, dtype=np.float32),
        }
        if self._thresholds is not None:
            tensors["predicted"] = np.array(probabilities) >= np.array(self._thresholds)
        return tensors

    def check_example(self, example: Example) -> None:
        """Check that a golden example has a logit for each class.

        Raises:
            TaskError: the number of logits is wrong.
        """
        if (num_logits := len(example.outputs.get("logits", []))) != len(self.labels):
            raise TaskError(f"{num_logits} logits, but {len(self.labels)} labels in manifest.json")

    def golden_difference(
        self, example: Example, result: NDArray[np.float32], tolerance: Tolerance, search: str = ""
    ) -> float:
        """Return the largest absolute difference of logits, float32 [C], from the golden ones.

        Raises:
            TaskError: it exceeds the tolerance, or the label is another one.
        """
        golden_C, allowed = np.array(example.outputs["logits"]), tolerance.max_abs_logit_difference
        if result.shape != golden_C.shape:
            raise TaskError(f"logits of shape {result.shape}, not {golden_C.shape}")
        off_by = float(np.abs(result - golden_C).max())
        if not off_by <= allowed:
            raise TaskError(f"logits differ by {off_by:.3g}, the manifest allows {allowed:g}")
        if tolerance.labels_must_agree and result.argmax() != golden_C.argmax():
            raise TaskError("another label")
        return off_by

    def hub_document(self, answer: Classification) -> list[dict[str, object]]:
        """Make the task API's answer for one input."""
        return labelled_scores(answer.labels, answer.scores, answer.predicted)

    def target_of(self, given: Any, target: str, name: str) -> int:
        """Return the number of the class that a request names."""
        return class_number(self.labels, target, name)

    def class_value_function(
        self,
        result: NDArray[np.float32],
        target: int | None,
        item_of: Callable[[Any], Any],
        row: Callable[[int], Arrays],
    ) -> ValueFunction:
        """Return the score of a class as a function of the part of the input that is kept.

        Args:
            result: logits of the whole input, float32 [C].
            target: number of the class; None: the predicted one.
            item_of: makes an item of a part of the input.
            row: makes the explanation graph's input from the class.
        """
        number = int(result.argmax()) if target is None else target

        def values_of(logits_C: NDArray[np.float32]) -> list[float]:
            return [self.probability(logits_C, number)]

        return ValueFunction(
            item_of,
            values_of,
            fraction_of=lambda values_K: float(values_K[0]),
            whole=values_of(result),
            target=self.labels[number],
            row=lambda: row(number),
        )


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
