"""Quality figures against hand-made cases."""

import numpy as np
import pytest

from export.evaluate import classification_quality, expected_calibration_error


def test_figures_of_a_small_case() -> None:
    """Three of four right."""
    logits = np.array([[2, 0], [0, 2], [2, 0], [2, 0]], np.float32)
    quality = classification_quality(logits, np.array([0, 1, 0, 1]))
    assert quality.accuracy == 0.75
    assert quality.confusion_matrix == [[2, 0], [1, 1]]
    assert quality.f1_macro == pytest.approx((0.8 + 2 / 3) / 2)
    assert quality.accuracy_standard_error == pytest.approx((0.75 * 0.25 / 4) ** 0.5)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    """Always 90 % sure and right in half of the cases: 0.4; right in nine of ten: 0."""
    sure = np.tile([0.9, 0.1], (10, 1))
    assert expected_calibration_error(sure, np.array([0] * 5 + [1] * 5)) == pytest.approx(0.4)
    assert expected_calibration_error(sure, np.array([0] * 9 + [1])) == pytest.approx(0.0)
