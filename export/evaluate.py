"""What a classifier's predictions are worth: accuracy, F1, confusion matrix, calibration error."""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score


@dataclass(frozen=True)
class ClassificationQuality:
    """Measured on `num_examples` labelled examples; shares lie between 0 and 1."""

    num_examples: int
    accuracy: float
    accuracy_standard_error: float
    f1_macro: float
    confusion_matrix: list[list[int]]  # rows: true class, columns: predicted class
    expected_calibration_error: float

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def classification_quality(logits_BC: NDArray[np.float32], labels_B: NDArray[np.int64]) -> ClassificationQuality:
    """Judge logits against true labels."""
    probabilities_BC = softmax(logits_BC)
    predicted_B = logits_BC.argmax(axis=1)
    accuracy = float(accuracy_score(labels_B, predicted_B))
    return ClassificationQuality(
        num_examples=len(labels_B),
        accuracy=accuracy,
        accuracy_standard_error=float(np.sqrt(accuracy * (1 - accuracy) / len(labels_B))),
        f1_macro=float(f1_score(labels_B, predicted_B, average="macro")),
        confusion_matrix=confusion_matrix(labels_B, predicted_B, labels=range(logits_BC.shape[1])).tolist(),
        expected_calibration_error=expected_calibration_error(probabilities_BC, labels_B),
    )


def softmax(logits_BC: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities along the last axis."""
    shifted = np.exp(logits_BC - logits_BC.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def expected_calibration_error(
    probabilities_BC: NDArray[np.float32],
    labels_B: NDArray[np.int64],
    num_bins: int = 15,
) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence.

    Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599), equation 3.
    """
    confidence_B = probabilities_BC.max(axis=1)
    correct_B = probabilities_BC.argmax(axis=1) == labels_B
    bin_B = np.minimum((confidence_B * num_bins).astype(int), num_bins - 1)
    gaps = [
        (bin_B == number).mean() * abs(confidence_B[bin_B == number].mean() - correct_B[bin_B == number].mean())
        for number in np.unique(bin_B)
    ]
    return float(sum(gaps))
