"""The steps of integrated gradients (Sundararajan, Taly and Yan 2017, arXiv 1703.01365).

    steps ──> places between the baseline (no word at all) and the input ──> the graph ──> shared out

Shapes: N steps, T tokens.
"""

import numpy as np
from numpy.typing import NDArray

# As many as leave a small gap on the committed models (golden.explain.json of each has it for 32 and 128), and no more
# than are worth their time.
MIN_STEPS, DEFAULT_STEPS, MAX_STEPS = 64, 64, 128


def steps(count: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Places between 0 and 1 and their weights, which sum to one: those of Gauss and Legendre, [N] each.

    They are exact for polynomials of a degree below twice their number.
    """
    places_N, weights_N = np.polynomial.legendre.leggauss(count)
    return ((places_N + 1) / 2).astype(np.float32), weights_N / 2


def shared_out(attribution_NT: NDArray[np.float32], weights_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each token adds to the answer, [T]: the integral over the gradients at each place, times its way there."""
    shares_T: NDArray[np.float64] = weights_N @ attribution_NT.astype(np.float64)
    return shares_T
