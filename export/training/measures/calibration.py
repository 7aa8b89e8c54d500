"""Temperature scaling (Guo et al. 2017, arXiv 1706.04599): one number that divides all logits, and its diagram.

Shapes: B examples, C classes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.markdown import pyplot_without_a_screen
from export.training.measures.labels import binary_calibration_error, sigmoid
from export.training.quality import expected_calibration_error, softmax
from export.whole_files import save_figure

MAX_TEMPERATURE = 20.0  # 1 / MAX_TEMPERATURE is the lowest
TOLERANCE = 1e-6  # of the logarithm of the temperature
NUM_BINS = 10  # of the diagram


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature, and the loss and calibration error on the split that it was fitted on."""

    temperature: float
    num_examples: int
    loss_before: float  # mean negative log-likelihood
    loss_after: float
    calibration_error_before: float
    calibration_error_after: float
    reason: str | None = None  # why the temperature is 1, if no other one was found

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


def fit_temperature(logits_BC: NDArray[np.float32], labels: NDArray[Any]) -> Temperature:
    """Fit the temperature that gives the lowest negative log-likelihood, by golden section; nothing is random.

    Args:
        logits_BC: logits of the split that chooses.
        labels: class numbers, int64 [B], for softmax; or sets of labels, bool [B, C], for sigmoids.

    Returns:
        The temperature. It is 1 where the likelihood has no maximum between the limits, as with a split on which every
        answer is right: there the best temperature would be 0, and every answer certain.
    """
    several = labels.ndim == 2
    loss_of = _binary_loss if several else _class_loss
    logits = logits_BC.astype(np.float64)

    def loss(log_temperature: float) -> float:
        return loss_of(logits / math.exp(log_temperature), labels)

    limit = math.log(MAX_TEMPERATURE)
    best = _golden_section(loss, -limit, limit)
    before, reason = loss(0.0), None
    if limit - abs(best) < 1e-3:
        best, reason = 0.0, f"the likelihood has no maximum between 1/{MAX_TEMPERATURE:g} and {MAX_TEMPERATURE:g}"
    elif loss(best) >= before:
        best, reason = 0.0, "no other temperature has a lower loss"

    def error(temperature: float) -> float:
        scaled = (logits / temperature).astype(np.float32)
        if several:
            return binary_calibration_error(sigmoid(scaled), labels)
        return expected_calibration_error(softmax(scaled), labels)

    temperature = math.exp(best)
    return Temperature(temperature, len(labels), before, loss(best), error(1.0), error(temperature), reason)


def _class_loss(logits_BC: NDArray[np.float64], labels_B: NDArray[np.int64]) -> float:
    shifted_BC = logits_BC - logits_BC.max(axis=1, keepdims=True)
    log_sums_B = np.log(np.exp(shifted_BC).sum(axis=1))
    return float((log_sums_B - shifted_BC[np.arange(len(labels_B)), labels_B]).mean())


def _binary_loss(logits_BC: NDArray[np.float64], labels_BC: NDArray[np.bool_]) -> float:
    return float((np.logaddexp(0, logits_BC) - logits_BC * labels_BC).mean())


def _golden_section(function: Callable[[float], float], low: float, high: float) -> float:
    """Find the minimum of a function with one minimum; the loss is convex in 1 / temperature."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > TOLERANCE:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right)
    return (low + high) / 2


def reliability(confidence_N: NDArray[Any], right_N: NDArray[Any]) -> list[dict[str, float]]:
    """Count predictions and right ones in equal-width bins of confidence; empty bins are left out.

    Args:
        confidence_N: the probability of the predicted class, or of each label where there are several, [N].
        right_N: whether the prediction is right, or the label is true, bool [N].
    """
    bin_N = np.minimum((confidence_N * NUM_BINS).astype(int), NUM_BINS - 1)
    return [
        {
            "low": float(number / NUM_BINS),
            "high": float((number + 1) / NUM_BINS),
            "count": int((bin_N == number).sum()),
            "confidence": float(confidence_N[bin_N == number].mean()),
            "accuracy": float(right_N[bin_N == number].mean()),
        }
        for number in np.unique(bin_N)
    ]


def draw_reliability(curves: Mapping[str, list[dict[str, float]]], path: Path) -> None:
    """Draw the accuracy of each bin over its confidence, one curve a name, and how many predictions each bin has."""
    pyplot = pyplot_without_a_screen()
    figure, (upper, lower) = pyplot.subplots(
        2, 1, figsize=(5, 6), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    upper.plot([0, 1], [0, 1], linestyle="--", color="grey", label="perfect calibration")
    width = 1 / NUM_BINS / max(1, len(curves))
    for number, (name, bins) in enumerate(curves.items()):
        upper.plot([each["confidence"] for each in bins], [each["accuracy"] for each in bins], marker="o", label=name)
        lower.bar(
            [each["low"] + (number + 0.5) * width for each in bins], [each["count"] for each in bins], width, label=name
        )
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    upper.legend()
    lower.set(xlabel="confidence", ylabel="predictions")
    save_figure(figure, path, dpi=120)
    pyplot.close(figure)
