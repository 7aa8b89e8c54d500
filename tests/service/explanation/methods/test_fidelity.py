"""Deletion and insertion curves, on games whose areas are known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from service.explanation.methods.fidelity import MAX_STEPS, area, curves


def areas(weights_M: NDArray[np.float64], gives_M: NDArray[np.float64]) -> tuple[float, float]:
    """Return both areas of an additive game, in the order of the given weights."""
    deletion_SM, insertion_SM = curves(weights_M)
    return area(deletion_SM, (deletion_SM @ gives_M).tolist()), area(insertion_SM, (insertion_SM @ gives_M).tolist())


def test_the_curves_go_in_the_order_of_the_weights() -> None:
    """Deletion goes from all features to none, insertion from none to all; ties keep the order of the text."""
    deletion_SM, insertion_SM = curves(np.array([0.1, 0.5, -0.2, 0.5]))
    assert deletion_SM.astype(int).tolist() == [[1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(insertion_SM, ~deletion_SM)


def test_areas_are_those_of_the_curves() -> None:
    """If one feature has all the weight, both curves change completely in the first step."""
    gives_M = np.array([0.0, 0.0, 1.0, 0.0])
    assert areas(gives_M, gives_M) == (pytest.approx(1 / 8), pytest.approx(7 / 8))
    assert areas(-gives_M, gives_M) == (pytest.approx(7 / 8), pytest.approx(1 / 8))
    assert areas(np.ones(1), np.ones(1)) == (pytest.approx(0.5), pytest.approx(0.5))


def test_the_right_order_is_the_best() -> None:
    """No other order deletes or inserts faster."""
    draw = np.random.default_rng(0)
    gives_M = draw.normal(size=12)
    best = areas(gives_M, gives_M)
    for _ in range(100):
        deletion, insertion = areas(draw.normal(size=12), gives_M)
        assert deletion >= best[0]
        assert insertion <= best[1]


def test_a_curve_of_many_features_has_few_steps() -> None:
    """Several features change at a time, and the last step reaches all of them."""
    deletion_SM, insertion_SM = curves(np.random.default_rng(0).normal(size=500))
    assert deletion_SM.shape == insertion_SM.shape == (MAX_STEPS + 1, 500)
    assert deletion_SM[0].all()
    assert not deletion_SM[-1].any()
    assert np.diff(deletion_SM.sum(axis=1)).min() >= -16
