"""Quality figures of cases computed by hand."""

import numpy as np
import pytest

from export.training.quality import (
    classification_quality,
    expected_calibration_error,
    translation_quality,
    with_confidence,
)


def test_figures_of_a_small_case() -> None:
    """Three of four answers are right."""
    logits = np.array([[2, 0], [0, 2], [2, 0], [2, 0]], np.float32)
    quality = classification_quality(logits, np.array([0, 1, 0, 1]))
    assert quality.accuracy == 0.75
    assert quality.confusion_matrix == [[2, 0], [1, 1]]
    assert quality.f1_macro == pytest.approx((0.8 + 2 / 3) / 2)
    assert quality.accuracy_standard_error == pytest.approx((0.75 * 0.25 / 4) ** 0.5)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    """At 90 % confidence it is 0.4 with half of the answers right, and 0 with nine of ten right."""
    sure = np.tile([0.9, 0.1], (10, 1))
    assert expected_calibration_error(sure, np.array([0] * 5 + [1] * 5)) == pytest.approx(0.4)
    assert expected_calibration_error(sure, np.array([0] * 9 + [1])) == pytest.approx(0.0)


def test_both_kinds_of_bleu_and_their_intervals() -> None:
    """Only one counts case; fewer sentences give wider intervals."""
    reference = "Zwei kleine Kinder spielen heute im tiefen Schnee ."
    texts = [reference, reference.lower(), "Ein Hund läuft durch einen grünen Park ."] * 40
    many, few = (translation_quality(texts[:count], [reference] * count) for count in (120, 12))
    assert 0 < many.bleu < many.bleu_lower_tokenised < 100
    assert 0 < many.bleu_confidence < few.bleu_confidence
    assert 0 < many.chrf_confidence < few.chrf_confidence
    assert with_confidence(many.as_dict(), "bleu") == f"{many.bleu:.2f} ± {many.bleu_confidence:.2f}"
