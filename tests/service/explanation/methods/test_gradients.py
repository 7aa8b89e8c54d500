"""Integrated gradients, on functions whose integrals are known."""

import numpy as np
import pytest

from service.explanation.methods.gradients import MAX_STEPS, MIN_STEPS, integrate_gradients, quadrature


@pytest.mark.parametrize("count", [MIN_STEPS, MAX_STEPS])
def test_attributions_sum_to_the_change_of_the_function(count: int) -> None:
    """Checked on a smooth function of two tokens, with gradients written out."""
    places_N, weights_N = quadrature(count)
    assert places_N.shape == weights_N.shape == (count,)
    assert 0 < places_N.min() < places_N.max() < 1
    assert weights_N.sum() == pytest.approx(1)
    x, y = 1.5, -0.75  # f = x^3 y + exp(y), on the straight way from (0, 0)
    at_x, at_y = places_N * x, places_N * y
    attribution_NT = np.stack([3 * at_x**2 * at_y * x, (at_x**3 + np.exp(at_y)) * y], axis=1).astype(np.float32)
    shares_T = integrate_gradients(attribution_NT, weights_N)
    assert shares_T.sum() == pytest.approx(x**3 * y + np.exp(y) - 1, abs=1e-5)
    assert shares_T[0] == pytest.approx(3 * x**3 * y / 4, abs=1e-5)
