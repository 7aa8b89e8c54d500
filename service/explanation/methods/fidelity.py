"""Fidelity of an explanation: the score while features are deleted or inserted in the order of their weights.

Deletion and insertion areas of Petsiuk et al. 2018 (RISE, arXiv 1806.07421): if the weights are right, the score falls
early while features are deleted and rises early while they are inserted. A small deletion area and a large insertion
area are good.

Shapes: S samples, M features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Steps of a curve. With more features several change at a time, because each step is an evaluation of the model.
MAX_STEPS = 32


@dataclass(frozen=True, slots=True)
class Fidelity:
    """The fidelity and the cost of an explanation.

    `completeness_gap` is the distance between the sum of the weights and the difference in score that they should
    explain; None for a method that promises no such sum. `evaluations` counts the inputs that were evaluated, including
    those of the curves.
    """

    deletion_area: float
    insertion_area: float
    completeness_gap: float | None
    evaluations: int
    seed: int
    seconds: float


def curves(weights_M: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the features kept at each step of the deletion and of the insertion curve, bool [S, M] each."""
    M = len(weights_M)
    rank_M = np.empty(M, dtype=np.int64)
    rank_M[np.argsort(-weights_M, kind="stable")] = np.arange(M)
    steps = min(M, MAX_STEPS)
    count_S1 = (np.arange(steps + 1) * M // steps)[:, None]
    return rank_M >= count_S1, rank_M < count_S1


def area(kept_SM: NDArray[np.bool_], scores: Sequence[float]) -> float:
    """Return the area under a curve by the trapezoidal rule, over the fraction of features deleted or inserted."""
    fraction_S = np.abs(kept_SM.mean(axis=1) - kept_SM[0].mean())
    return float(np.trapezoid(np.asarray(scores), fraction_S))
