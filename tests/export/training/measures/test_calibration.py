"""Temperatures of logits whose right temperature is known."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import minimize_scalar

from export.training.measures.calibration import draw_reliability, fit_temperature, reliability
from export.training.measures.labels import sigmoid
from export.training.quality import softmax

RNG = np.random.default_rng(3)


def test_the_factor_that_was_put_on_calibrated_logits_is_found() -> None:
    """Labels are drawn from the probabilities, then the logits are made three times too sure."""
    logits = RNG.normal(size=(20_000, 5)).astype(np.float32) * 2
    labels = (softmax(logits).cumsum(axis=1) < RNG.random((20_000, 1))).sum(axis=1).clip(max=4)
    fitted = fit_temperature(3 * logits, labels)
    assert fitted.temperature == pytest.approx(3.0, rel=0.03)
    assert fitted.loss_after < fitted.loss_before
    assert fitted.calibration_error_after < 0.02 and fitted.calibration_error_before > 0.1
    assert fitted.reason is None
    assert fitted == fit_temperature(3 * logits, labels)


def test_the_minimum_is_that_of_another_optimiser() -> None:
    """For several labels at once, with sigmoids."""
    logits = RNG.normal(size=(300, 4)).astype(np.float32)
    labels = RNG.random((300, 4)) < sigmoid(logits / 2)
    fitted = fit_temperature(logits, labels)

    def loss(temperature: float) -> float:
        probabilities = sigmoid(logits / temperature)
        return float(-np.log(np.where(labels, probabilities, 1 - probabilities)).mean())

    assert fitted.temperature == pytest.approx(minimize_scalar(loss, bounds=(0.1, 10), method="bounded").x, rel=1e-3)
    assert fitted.loss_after == pytest.approx(loss(fitted.temperature))


def test_without_an_error_the_temperature_stays_1() -> None:
    """Its likelihood grows without end towards temperature 0; chance would decide."""
    fitted = fit_temperature(np.eye(3, dtype=np.float32), np.arange(3))
    assert fitted.temperature == 1.0 and "no maximum" in str(fitted.reason)
    assert fitted.loss_after == fitted.loss_before


def test_reliability_counts_bins() -> None:
    """A confidence of 1 belongs to the last bin."""
    assert reliability(np.array([0.55, 0.58, 1.0]), np.array([True, False, True])) == [
        {"low": 0.5, "high": 0.6, "count": 2, "confidence": pytest.approx(0.565), "accuracy": 0.5},
        {"low": 0.9, "high": 1.0, "count": 1, "confidence": 1.0, "accuracy": 1.0},
    ]


def test_the_diagram_is_a_file(tmp_path: Path) -> None:
    """Both curves are drawn: the picture with two differs from that with one."""
    bins = reliability(RNG.random(50), RNG.random(50) < 0.5)
    shifted = [each | {"accuracy": each["accuracy"] / 2} for each in bins]
    draw_reliability({"before": bins}, tmp_path / "one.png")
    draw_reliability({"before": bins, "after": shifted}, tmp_path / "two.png")
    one, two = (np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("one.png", "two.png"))
    assert one.shape == two.shape and (one != two).any()
