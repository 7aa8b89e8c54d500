"""Thresholds of a classifier with any number of labels, fitted on the split that chooses.

Shapes: B examples, C classes.
"""

import numpy as np
from numpy.typing import NDArray

DEFAULT_THRESHOLD = 0.5
MIN_SUPPORT = 5  # true examples of a label; with fewer, the best threshold says more about chance than about the label


def fit_thresholds(probabilities_BC: NDArray[np.float64], labels_BC: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Find each label's threshold with the highest F1 on these examples, float64 [C].

    A threshold lies half-way between two neighbouring probabilities, so that the last bits of an engine change nothing.
    Of several with the same F1 the one closest to 0.5 is taken, and of two as close the lower one. A label with fewer
    than MIN_SUPPORT true examples keeps 0.5.
    """
    return np.array(
        [
            _best(probabilities_B, labels_B) if labels_B.sum() >= MIN_SUPPORT else DEFAULT_THRESHOLD
            for probabilities_B, labels_B in zip(probabilities_BC.T, labels_BC.astype(bool).T, strict=True)
        ]
    )


def _best(probabilities_B: NDArray[np.float64], labels_B: NDArray[np.bool_]) -> float:
    order = np.argsort(-probabilities_B, kind="stable")
    sorted_B, right_B = probabilities_B[order], np.cumsum(labels_B[order])
    lower_B = np.append(sorted_B[1:], 0.0)
    # A cut is possible only where the next probability is lower; the last cut predicts the label for every example.
    cuts = np.flatnonzero(sorted_B > lower_B)
    if not len(cuts):
        return DEFAULT_THRESHOLD
    f1 = 2 * right_B[cuts] / (cuts + 1 + labels_B.sum())
    candidates = (sorted_B[cuts] + lower_B[cuts]) / 2
    # 0.5 itself stands for every threshold of its gap.
    inside = (lower_B[cuts] < DEFAULT_THRESHOLD) & (sorted_B[cuts] >= DEFAULT_THRESHOLD)
    candidates = np.where(inside, DEFAULT_THRESHOLD, candidates)
    best = candidates[np.isclose(f1, f1.max(), rtol=1e-12, atol=0)]
    return float(min(best, key=lambda each: (abs(each - DEFAULT_THRESHOLD), each)))
