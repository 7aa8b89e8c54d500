"""Thresholds beside a search over all of them."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from export.training.measures.thresholds import DEFAULT_THRESHOLD, MIN_SUPPORT, fit_thresholds

RNG = np.random.default_rng(6)


def test_no_other_threshold_has_a_higher_f1() -> None:
    """Probabilities that are all too low need a low threshold."""
    labels = RNG.random((200, 3)) < np.array([0.5, 0.2, 0.1])
    probabilities = np.clip(RNG.normal(0.2, 0.08, (200, 3)) + 0.15 * labels, 0.001, 0.999)
    thresholds = fit_thresholds(probabilities, labels)
    for column, threshold in enumerate(thresholds):
        best = f1_score(labels[:, column], probabilities[:, column] >= threshold)
        others = [f1_score(labels[:, column], probabilities[:, column] >= each) for each in np.linspace(0, 0.9, 400)]
        assert best >= max(others) - 1e-12
        assert best > f1_score(labels[:, column], probabilities[:, column] >= 0.5)


def test_equal_f1_takes_the_threshold_closest_to_a_half() -> None:
    """Where 0.5 separates all examples, it stays."""
    labels = np.array([[True]] * 5 + [[False]] * 5)
    assert fit_thresholds(np.where(labels, 0.9, 0.45), labels) == [0.5]
    assert fit_thresholds(np.where(labels, 0.4, 0.2), labels) == pytest.approx([0.3])


def test_rare_labels_keep_a_half() -> None:
    """With one example fewer than the floor, nothing is fitted."""
    labels = np.array([[True]] * (MIN_SUPPORT - 1) + [[False]] * 20)
    probabilities = np.where(labels, 0.3, 0.1)
    assert fit_thresholds(probabilities, labels) == [DEFAULT_THRESHOLD]
    assert fit_thresholds(np.vstack([probabilities, [[0.3]]]), np.vstack([labels, [[True]]])) == pytest.approx([0.2])


def test_equal_probabilities_give_one_cut() -> None:
    """Predicting the label for all examples or for none are the only choices."""
    labels = np.array([[True]] * 6 + [[False]] * 2)
    assert fit_thresholds(np.full((8, 1), 0.3), labels) == pytest.approx([0.15])
