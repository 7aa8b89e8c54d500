"""Measures of regression: errors, correlations and the share of variance that is explained, with intervals.

Shapes: B examples.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from export.training.measures.intervals import Interval, bootstrap_intervals, json_able


@dataclass(frozen=True)
class RegressionQuality:
    """Quality of predicted numbers. Intervals are at 95 % by bootstrap; a correlation with a constant is NaN."""

    num_examples: int
    mean_absolute_error: float
    root_mean_squared_error: float
    pearson: float
    spearman: float
    r2: float  # 1 - squared errors / squared distances from the mean
    intervals: Mapping[str, Interval]  # by the names of the fields above

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return dict(json_able(asdict(self)))


def regression_quality(predicted_B: NDArray[Any], targets_B: NDArray[Any]) -> RegressionQuality:
    """Judge predicted numbers, [B], against true ones, [B]."""
    predicted, targets = predicted_B.astype(np.float64), targets_B.astype(np.float64)

    def measure(rows: NDArray[np.int64]) -> dict[str, float]:
        return _figures(predicted[rows], targets[rows])

    figures = _figures(predicted, targets)
    return RegressionQuality(len(targets), **figures, intervals=bootstrap_intervals(measure, len(targets)))


def _figures(predicted_B: NDArray[np.float64], targets_B: NDArray[np.float64]) -> dict[str, float]:
    errors_B = predicted_B - targets_B
    variance = float(((targets_B - targets_B.mean()) ** 2).sum())
    return {
        "mean_absolute_error": float(np.abs(errors_B).mean()),
        "root_mean_squared_error": float(np.sqrt((errors_B**2).mean())),
        "pearson": correlation(predicted_B, targets_B),
        "spearman": correlation(rankdata(predicted_B), rankdata(targets_B)),
        "r2": 1 - float((errors_B**2).sum()) / variance if variance > 0 else float("nan"),
    }


def correlation(first_B: NDArray[np.float64], second_B: NDArray[np.float64]) -> float:
    """Compute Pearson's correlation; NaN if one side is constant."""
    first, second = first_B - first_B.mean(), second_B - second_B.mean()
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum() / scale) if scale > 0 else float("nan")
