"""Measures of classifiers: each label's precision, recall and F1, and the figures of one label of many or several.

Shapes: B examples, C classes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.training.measures.intervals import Interval, bootstrap_intervals, json_able, wilson_interval
from export.training.quality import expected_calibration_error, softmax

MAX_LABELS_OF_CONFUSION = 100  # a matrix of more is too large for a record


@dataclass(frozen=True)
class LabelQuality:
    """Precision, recall and F1 of one label, with the counts that they come from; NaN where a count is 0."""

    label: str
    precision: float
    recall: float
    f1: float
    num_true: int
    num_predicted: int
    num_right: int


@dataclass(frozen=True)
class SingleLabelQuality:
    """Quality of a classifier that chooses one label of many; intervals are at 95 %."""

    num_examples: int
    accuracy: float
    accuracy_interval: Interval  # Wilson
    f1_macro: float  # over the labels that occur among true or predicted ones
    f1_macro_interval: Interval  # bootstrap
    expected_calibration_error: float
    confusion_matrix: list[list[int]] | None  # rows: true class, columns: predicted class
    labels: list[LabelQuality]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return dict(json_able(asdict(self)))


@dataclass(frozen=True)
class MultiLabelQuality:
    """Quality of a classifier that chooses any number of labels; intervals are at 95 %."""

    num_examples: int
    f1_micro: float
    f1_micro_interval: Interval  # bootstrap
    f1_macro: float  # over the labels that occur among true or predicted ones
    f1_macro_interval: Interval  # bootstrap
    subset_accuracy: float  # examples whose set of labels is right as a whole
    subset_accuracy_interval: Interval  # Wilson
    calibration_error: float  # of each label's probability; see `binary_calibration_error`
    thresholds: list[float]
    labels: list[LabelQuality]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return dict(json_able(asdict(self)))


def single_label_quality(
    logits_BC: NDArray[np.float32], labels_B: NDArray[np.int64], names: Sequence[str]
) -> SingleLabelQuality:
    """Judge logits against true class numbers."""
    predicted_B, C = logits_BC.argmax(axis=1), len(names)
    right_B = predicted_B == labels_B

    def counts(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        hits = labels_B[rows][right_B[rows]]
        return tuple(np.bincount(each, minlength=C) for each in (hits, labels_B[rows], predicted_B[rows]))  # type: ignore[return-value]

    def measure(rows: NDArray[np.int64]) -> dict[str, float]:
        return {"f1_macro": _f1_macro(*counts(rows))}

    everything = np.arange(len(labels_B))
    confusion = None
    if C <= MAX_LABELS_OF_CONFUSION:
        confusion = np.bincount(labels_B * C + predicted_B, minlength=C * C).reshape(C, C).tolist()
    return SingleLabelQuality(
        num_examples=len(labels_B),
        accuracy=float(right_B.mean()),
        accuracy_interval=wilson_interval(int(right_B.sum()), len(labels_B)),
        f1_macro=measure(everything)["f1_macro"],
        f1_macro_interval=bootstrap_intervals(measure, len(labels_B))["f1_macro"],
        expected_calibration_error=expected_calibration_error(softmax(logits_BC), labels_B),
        confusion_matrix=confusion,
        labels=quality_by_label(names, *counts(everything)),
    )


def multi_label_quality(
    logits_BC: NDArray[np.float32],
    labels_BC: NDArray[np.bool_],
    names: Sequence[str],
    thresholds_C: NDArray[np.float64],
) -> MultiLabelQuality:
    """Judge logits against true sets of labels; a label is predicted where its probability reaches its threshold."""
    probabilities_BC = sigmoid(logits_BC)
    predicted_BC = probabilities_BC >= thresholds_C
    wanted_BC = labels_BC.astype(bool)
    tables = [each.astype(np.float32) for each in (wanted_BC & predicted_BC, wanted_BC, predicted_BC)]

    def measure(rows: NDArray[np.int64]) -> dict[str, float]:
        weights_B = np.bincount(rows, minlength=len(wanted_BC)).astype(np.float32)
        counts = [weights_B @ table for table in tables]
        micro = f1_of(*(each.sum(keepdims=True) for each in counts))
        return {"f1_micro": float(micro[0]), "f1_macro": _f1_macro(*counts)}

    figures = measure(np.arange(len(wanted_BC)))
    intervals = bootstrap_intervals(measure, len(wanted_BC))
    exact_B = (predicted_BC == wanted_BC).all(axis=1)
    return MultiLabelQuality(
        num_examples=len(wanted_BC),
        f1_micro=figures["f1_micro"],
        f1_micro_interval=intervals["f1_micro"],
        f1_macro=figures["f1_macro"],
        f1_macro_interval=intervals["f1_macro"],
        subset_accuracy=float(exact_B.mean()),
        subset_accuracy_interval=wilson_interval(int(exact_B.sum()), len(exact_B)),
        calibration_error=binary_calibration_error(probabilities_BC, wanted_BC),
        thresholds=[float(each) for each in thresholds_C],
        labels=quality_by_label(names, *(table.sum(axis=0).astype(np.int64) for table in tables)),
    )


def sets_as_matrix(labels: Sequence[Sequence[int]], num_labels: int) -> NDArray[np.bool_]:
    """Write sets of class numbers as a matrix, bool [B, C]."""
    matrix_BC = np.zeros((len(labels), num_labels), bool)
    for row, numbers in enumerate(labels):
        matrix_BC[row, list(numbers)] = True
    return matrix_BC


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Compute probabilities of independent labels, without overflow."""
    probabilities: NDArray[np.float64] = 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))
    return probabilities


def binary_calibration_error(
    probabilities_BC: NDArray[np.float64], labels_BC: NDArray[np.bool_], num_bins: int = 15
) -> float:
    """Compute the mean gap between each label's probability and its frequency, over equal-width bins of probability."""
    probabilities, happened = probabilities_BC.ravel(), labels_BC.ravel()
    bins = np.minimum((probabilities * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    gaps = np.bincount(bins, probabilities - happened, minlength=num_bins)
    return float(np.abs(gaps).sum() / counts.sum())


def quality_by_label(
    names: Sequence[str], right_C: NDArray[Any], true_C: NDArray[Any], predicted_C: NDArray[Any]
) -> list[LabelQuality]:
    """Compute each label's figures from the counts of right, true and predicted ones."""
    f1_C = f1_of(right_C, true_C, predicted_C)
    precision_C, recall_C = _fraction(right_C, predicted_C), _fraction(right_C, true_C)
    return [
        LabelQuality(
            name, float(precision), float(recall), float(f1), int(true_C[c]), int(predicted_C[c]), int(right_C[c])
        )
        for c, (name, precision, recall, f1) in enumerate(zip(names, precision_C, recall_C, f1_C, strict=True))
    ]


def f1_of(right: NDArray[Any], true: NDArray[Any], predicted: NDArray[Any]) -> NDArray[np.float64]:
    """Compute F1 from counts; NaN where nothing is true or predicted."""
    return _fraction(2 * right, true + predicted)


def _fraction(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    fractions: NDArray[np.float64] = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole != 0)
    return fractions


def _f1_macro(right_C: NDArray[Any], true_C: NDArray[Any], predicted_C: NDArray[Any]) -> float:
    f1_C = f1_of(right_C, true_C, predicted_C)
    defined = f1_C[~np.isnan(f1_C)]
    return float(defined.mean()) if len(defined) else float("nan")
