"""Integrated gradients (Sundararajan, Taly and Yan 2017, arXiv 1703.01365).

    quadrature ──> alphas between the baseline (no word at all) and the input ──> graph ──> integrate_gradients

Shapes: N steps, T tokens.
"""

import numpy as np
from numpy.typing import NDArray

# Enough steps for a small completeness gap on the committed models; more steps cost more time than they gain accuracy.
# The golden.explain.json of each model has the gap for 32 and for 128 steps.
MIN_STEPS, DEFAULT_STEPS, MAX_STEPS = 64, 64, 128


def quadrature(count: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the nodes (float32 [N]) and weights (float64 [N]) of Gauss-Legendre quadrature between 0 and 1.

    It is exact for polynomials of a degree below 2 N. The weights sum to one.
    """
    places_N, weights_N = np.polynomial.legendre.leggauss(count)
    return ((places_N + 1) / 2).astype(np.float32), weights_N / 2


def integrate_gradients(attribution_NT: NDArray[np.float32], weights_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what each token adds to the answer, float64 [T]: the integral of gradient times input along the path."""
    weights_T: NDArray[np.float64] = weights_N @ attribution_NT.astype(np.float64)
    return weights_T
