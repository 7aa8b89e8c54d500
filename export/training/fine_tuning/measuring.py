"""Measures logits on labelled texts or images, whatever the problem.

Shapes: N examples, C labels, K decisions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from export.data.own.labels import MULTI_LABEL, REGRESSION
from export.training.measures.calibration import Temperature, draw_reliability, fit_temperature, reliability
from export.training.measures.labels import multi_label_quality, sets_as_matrix, sigmoid, single_label_quality
from export.training.measures.profile import profile
from export.training.measures.regression import regression_quality
from export.training.quality import classification_quality, softmax

RELIABILITY = "reliability.png"  # in the run folder


class LabelledSplit(Protocol):
    """A split with labels, by the problem."""

    @property
    def labels(self) -> Sequence[Any]:
        """A class number each, a list of them, or a number."""


class LabelledData(Protocol):
    """A labelled data set of one's own."""

    @property
    def problem(self) -> str:
        """One label of many, several labels, or a number."""

    @property
    def label_names(self) -> list[str]:
        """The labels by number."""

    @property
    def train(self) -> LabelledSplit:
        """The rows that teach."""


@dataclass(frozen=True)
class Measured:
    """What was measured on one split.

    Attributes:
        quality: the figures, for JSON.
        confidence_N: the probability of the answer, or of each label where there may be several; None for numbers.
        right_N: whether the answer is right, or the label is true; None for numbers.
        answered: the answered labels, or None for numbers.
        scores_N: the answered numbers, or None for labels.
    """

    quality: dict[str, Any]
    confidence_N: NDArray[Any] | None = None
    right_N: NDArray[Any] | None = None
    answered: list[str] | None = None
    scores_N: NDArray[Any] | None = None

    @property
    def calibration_error(self) -> float:
        """The calibration error of a classifier, of one label or of several."""
        names = ("expected_calibration_error", "calibration_error")
        return float(next(self.quality[name] for name in names if name in self.quality))

    def profile(self, **inputs: Any) -> dict[str, Any]:
        """Return histograms of the answers and of the inputs."""
        return profile(labels=self.answered, confidences=self.confidence_N, scores=self.scores_N, **inputs)


def measure_split(
    logits_NC: NDArray[np.float32], split: LabelledSplit, data: LabelledData, document: Mapping[str, Any]
) -> Measured:
    """Judge logits by the problem of the data; `document` has the thresholds of several labels (`task.json`)."""
    names = data.label_names
    if data.problem == REGRESSION:
        scores_N = logits_NC[:, 0]
        return Measured(regression_quality(scores_N, np.array(split.labels)).as_dict(), scores_N=scores_N)
    if data.problem == MULTI_LABEL:
        wanted_NC, thresholds_C = sets_as_matrix(split.labels, len(names)), np.array(document["thresholds"])
        probabilities_NC = sigmoid(logits_NC)
        answered = [names[label] for row_C in probabilities_NC >= thresholds_C for label in np.flatnonzero(row_C)]
        quality = multi_label_quality(logits_NC, wanted_NC, names, thresholds_C).as_dict()
        return Measured(quality, probabilities_NC.ravel(), wanted_NC.ravel(), answered)
    labels_N, predicted_N = np.array(split.labels), logits_NC.argmax(axis=1)
    # The fields of the built-in runs' records, for tables and pictures that show both.
    quality = classification_quality(logits_NC, labels_N).as_dict()
    quality |= single_label_quality(logits_NC, labels_N, names).as_dict()
    return Measured(
        quality, softmax(logits_NC).max(axis=1), predicted_N == labels_N, [names[label] for label in predicted_N]
    )


def chosen_temperature(logits_NC: NDArray[np.float32], split: LabelledSplit, data: LabelledData) -> Temperature:
    """Fit the temperature on the choosing split."""
    several = data.problem == MULTI_LABEL
    wanted = sets_as_matrix(split.labels, len(data.label_names)) if several else np.array(split.labels)
    return fit_temperature(logits_NC, wanted)


def reliability_figures(measured: Measured, before: Measured | None, run_dir: Path) -> dict[str, Any]:
    """Draw how reliable the probabilities are, and return the figures of it; nothing for numbers.

    Args:
        measured: what was measured with the saved weights.
        before: what was measured before the temperature, or None.
        run_dir: the run folder, which gets the diagram.
    """
    if measured.confidence_N is None or measured.right_N is None:
        return {}
    figures: dict[str, Any] = {}
    curves = {}
    if before is not None:
        figures["calibration_error_before_temperature"] = before.calibration_error
        assert before.confidence_N is not None and before.right_N is not None
        curves["before the temperature"] = reliability(before.confidence_N, before.right_N)
    figures["reliability"] = curves["as saved"] = reliability(measured.confidence_N, measured.right_N)
    draw_reliability(curves, run_dir / RELIABILITY)
    return figures
