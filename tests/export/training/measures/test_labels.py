"""Measures of classifiers beside scikit-learn, and cases computed by hand."""

import json

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

from export.training.measures.labels import (
    binary_calibration_error,
    multi_label_quality,
    sets_as_matrix,
    sigmoid,
    single_label_quality,
)

RNG = np.random.default_rng(4)


def test_one_label_of_many_is_judged_as_by_scikit_learn() -> None:
    """Each label's figures, the mean of F1 and the confusion matrix."""
    labels, logits = RNG.integers(4, size=200), RNG.normal(size=(200, 4)).astype(np.float32)
    logits[np.arange(200), labels] += 1.0
    predicted = logits.argmax(axis=1)
    quality = single_label_quality(logits, labels, ["a", "b", "c", "d"])
    expected = precision_recall_fscore_support(labels, predicted)
    for number, label in enumerate(quality.labels):
        assert (label.precision, label.recall, label.f1, label.num_true) == pytest.approx(
            tuple(figure[number] for figure in expected)
        )
        assert label.num_predicted == (predicted == number).sum()
        assert label.num_right == ((predicted == number) & (labels == number)).sum()
    assert quality.f1_macro == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert quality.confusion_matrix == confusion_matrix(labels, predicted).tolist()
    assert quality.accuracy == (predicted == labels).mean()
    assert quality.accuracy_interval[0] < quality.accuracy < quality.accuracy_interval[1]
    assert quality.f1_macro_interval[0] < quality.f1_macro < quality.f1_macro_interval[1]


def test_labels_that_never_occur_have_no_figures_and_do_not_count() -> None:
    """JSON has null for them."""
    logits = np.array([[2, 0, 0], [0, 2, 0], [2, 0, 0]], np.float32)
    quality = single_label_quality(logits, np.array([0, 1, 1]), ["a", "b", "c"])
    assert quality.f1_macro == pytest.approx(2 / 3)
    written = json.loads(json.dumps(quality.as_dict(), allow_nan=False))
    assert written["labels"][2] == {
        "label": "c", "precision": None, "recall": None, "f1": None, "num_true": 0, "num_predicted": 0, "num_right": 0
    }  # fmt: skip
    assert len(written["accuracy_interval"]) == 2


def test_a_matrix_of_a_thousand_labels_is_not_written() -> None:
    """It would have a million cells."""
    quality = single_label_quality(np.eye(1000, dtype=np.float32), np.arange(1000), [str(n) for n in range(1000)])
    assert quality.confusion_matrix is None and len(quality.labels) == 1000 and quality.accuracy == 1.0


def test_several_labels_are_judged_as_by_scikit_learn() -> None:
    """Thresholds differ by label."""
    labels, logits = RNG.random((150, 3)) < 0.4, RNG.normal(size=(150, 3)).astype(np.float32)
    logits += 2 * labels
    thresholds = np.array([0.5, 0.7, 0.3])
    predicted = sigmoid(logits) >= thresholds
    quality = multi_label_quality(logits, labels, ["a", "b", "c"], thresholds)
    assert quality.f1_micro == pytest.approx(f1_score(labels, predicted, average="micro"))
    assert quality.f1_macro == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert quality.subset_accuracy == (predicted == labels).all(axis=1).mean()
    assert quality.f1_micro_interval[0] < quality.f1_micro < quality.f1_micro_interval[1]
    assert quality.subset_accuracy_interval[0] < quality.subset_accuracy < quality.subset_accuracy_interval[1]
    assert [label.f1 for label in quality.labels] == pytest.approx(f1_score(labels, predicted, average=None))
    assert quality.as_dict()["thresholds"] == [0.5, 0.7, 0.3]


def test_sets_become_rows() -> None:
    """The empty set is a row without any label."""
    assert sets_as_matrix([[0, 2], [], [1]], 3).tolist() == [[True, False, True], [False] * 3, [False, True, False]]


def test_sigmoid_does_not_overflow() -> None:
    """Warnings are errors in these tests."""
    assert sigmoid(np.array([-1e4, 0, 1e4], np.float32)).tolist() == [0.0, 0.5, 1.0]


def test_binary_calibration_error_is_the_gap_between_probability_and_frequency() -> None:
    """Three of ten where 0.9 was said."""
    happened = np.array([[True]] * 3 + [[False]] * 7)
    assert binary_calibration_error(np.full((10, 1), 0.9), happened) == pytest.approx(0.6)
    assert binary_calibration_error(np.full((10, 1), 0.3), happened) == pytest.approx(0.0)
