"""Measures of regression beside scikit-learn and scipy."""

import json

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from export.training.measures.regression import regression_quality

RNG = np.random.default_rng(2)


def test_figures_are_those_of_scikit_learn_and_scipy() -> None:
    """Rounded targets have ties, as ratings do."""
    targets = RNG.normal(5, 2, 120).round()
    predicted = targets + RNG.normal(0, 1, 120)
    quality = regression_quality(predicted, targets)
    assert quality.mean_absolute_error == pytest.approx(mean_absolute_error(targets, predicted))
    assert quality.root_mean_squared_error == pytest.approx(root_mean_squared_error(targets, predicted))
    assert quality.pearson == pytest.approx(pearsonr(predicted, targets)[0])
    assert quality.spearman == pytest.approx(spearmanr(predicted, targets)[0])
    assert quality.r2 == pytest.approx(r2_score(targets, predicted))
    for name, (low, high) in quality.intervals.items():
        assert low < getattr(quality, name) < high


def test_constant_predictions_have_no_correlation() -> None:
    """The errors are still there."""
    written = regression_quality(np.full(6, 2.0), np.arange(6.0)).as_dict()
    assert (
        written["pearson"] is None and written["spearman"] is None and written["intervals"]["pearson"] == [None, None]
    )
    assert written["mean_absolute_error"] == pytest.approx(1.5)
    assert json.dumps(written, allow_nan=False)
