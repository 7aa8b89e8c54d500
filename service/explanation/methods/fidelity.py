"""Whether an explanation holds: what the model says while the features go, or come, in the order of their weights.

Deletion and insertion areas of Petsiuk et al. 2018 (RISE, arXiv 1806.07421): without the features that matter the score
falls early, so a small deletion area is good; with them alone it is there early, so a large insertion area is good.

Shapes: S samples, M features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Steps of a curve; with more features several go at a time, for each step is an evaluation of the model.
MAX_STEPS = 32


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What an explanation is worth, and what it took.

    `completeness_gap` is how far the sum of the weights lies from the difference that they are to explain; None of a
    method that promises no such sum. `evaluations` counts the inputs that the model was asked, the curves' included.
    """

    deletion_area: float
    insertion_area: float
    completeness_gap: float | None
    evaluations: int
    seed: int
    seconds: float


def curves(weights_M: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """What is kept at each step of the two curves, from all or nothing to nothing or all; [S, M] each."""
    M = len(weights_M)
    rank_M = np.empty(M, dtype=np.int64)
    rank_M[np.argsort(-weights_M, kind="stable")] = np.arange(M)
    steps = min(M, MAX_STEPS)
    count_S1 = (np.arange(steps + 1) * M // steps)[:, None]
    return rank_M >= count_S1, rank_M < count_S1


def area(kept_SM: NDArray[np.bool_], scores: Sequence[float]) -> float:
    """The mean score along a curve, by trapezoids over the share of features that have gone or come."""
    share_S = np.abs(kept_SM.mean(axis=1) - kept_SM[0].mean())
    return float(np.trapezoid(np.asarray(scores), share_S))
