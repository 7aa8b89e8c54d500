"""The three problems of labelled texts: targets, loss and score of training.

Shapes: B texts, N texts of a split, C labels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor
from torch.nn import functional

from export.data.own.labels import MULTI_LABEL, REGRESSION
from export.training.fine_tuning.measuring import LabelledData
from export.training.quality import classification_quality

MAX_PRESENCE_WEIGHT = 20.0
CLOSE = 0.5  # standard deviations; a prediction that is nearer to its target counts as right in the progress


class LossSettings(Protocol):
    """The settings of training that a loss depends on."""

    @property
    def label_smoothing(self) -> float:
        """The fraction of the target that all classes share."""

    @property
    def class_weights(self) -> str:
        """`balanced` or `none`."""


class Objective(ABC):
    """Targets, loss and score of one problem."""

    @abstractmethod
    def targets(self, labels: Sequence[Any]) -> Tensor:
        """Turn labels into the targets of the loss; the first dimension is that of the labels."""

    @abstractmethod
    def loss(self, logits_BC: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean loss of a batch; 0-dim."""

    @abstractmethod
    def correct(self, logits_BC: Tensor, targets: Tensor) -> Tensor:
        """Tell which decisions are right, for the progress; bool, of any shape."""

    @abstractmethod
    def score(self, logits_NC: NDArray[np.float32], labels: Sequence[Any]) -> dict[str, float]:
        """Judge logits of the choosing split; `score` is higher where they are better."""


class SingleLabel(Objective):
    """One label of many: cross entropy; the score is accuracy, or F1 where classes are weighted."""

    def __init__(self, labels: Sequence[int], num_labels: int, config: LossSettings, device: torch.device) -> None:
        self._smoothing, self._weight_C = config.label_smoothing, None
        self._balanced = config.class_weights == "balanced"
        if self._balanced:
            counts_C = torch.bincount(torch.tensor(labels), minlength=num_labels)
            self._weight_C = (len(labels) / (num_labels * counts_C.clamp(min=1))).float().to(device)

    def targets(self, labels: Sequence[int]) -> Tensor:
        """Class numbers, int64 [B]."""
        return torch.tensor(labels)

    def loss(self, logits_BC: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy, weighted by class."""
        return functional.cross_entropy(logits_BC, targets, self._weight_C, label_smoothing=self._smoothing)

    def correct(self, logits_BC: Tensor, targets: Tensor) -> Tensor:
        """The likeliest class is the label; [B]."""
        return logits_BC.argmax(-1) == targets

    def score(self, logits_NC: NDArray[np.float32], labels: Sequence[int]) -> dict[str, float]:
        """Accuracy, F1 and calibration error."""
        quality = classification_quality(logits_NC, np.array(labels))
        return {
            "score": quality.f1_macro if self._balanced else quality.accuracy,
            "calibration_error": quality.expected_calibration_error,
        }


class MultiLabel(Objective):
    """Any number of labels: binary cross entropy of each; the score is micro-averaged precision, without thresholds."""

    def __init__(
        self, labels: Sequence[Sequence[int]], num_labels: int, config: LossSettings, device: torch.device
    ) -> None:
        self._num_labels, self._weight_C = num_labels, None
        if config.class_weights == "balanced":
            counts_C = self.targets(labels).sum(0)
            weight_C = (len(labels) - counts_C) / counts_C.clamp(min=1)
            self._weight_C = weight_C.clamp(min=1.0, max=MAX_PRESENCE_WEIGHT).to(device)

    def targets(self, labels: Sequence[Sequence[int]]) -> Tensor:
        """1 for each label that a text has, float32 [B, C]."""
        targets_BC = torch.zeros(len(labels), self._num_labels)
        for row, numbers in enumerate(labels):
            targets_BC[row, list(numbers)] = 1.0
        return targets_BC

    def loss(self, logits_BC: Tensor, targets: Tensor) -> Tensor:
        """Binary cross entropy with logits."""
        return functional.binary_cross_entropy_with_logits(logits_BC, targets, pos_weight=self._weight_C)

    def correct(self, logits_BC: Tensor, targets: Tensor) -> Tensor:
        """A label is given exactly where its probability is above one half; [B, C]."""
        return (logits_BC > 0) == targets.bool()

    def score(self, logits_NC: NDArray[np.float32], labels: Sequence[Sequence[int]]) -> dict[str, float]:
        """Average precision over all decisions, and F1 at one half."""
        targets_NC = self.targets(labels).numpy()
        precision = average_precision_score(targets_NC, logits_NC, average="micro") if targets_NC.any() else 0.0
        f1 = f1_score(targets_NC, logits_NC > 0, average="micro", zero_division=0.0)
        return {"score": float(precision), "f1_at_half": float(f1)}


class Regression(Objective):
    """A number: mean squared error on standardised targets; the score is the share of variance explained (R^2)."""

    def __init__(self, labels: Sequence[float]) -> None:
        self.mean, self.scale = float(np.mean(labels)), float(np.std(labels)) or 1.0

    def targets(self, labels: Sequence[float]) -> Tensor:
        """Standardised targets, float32 [B]."""
        return torch.tensor([(label - self.mean) / self.scale for label in labels], dtype=torch.float32)

    def loss(self, logits_BC: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error."""
        return functional.mse_loss(logits_BC[:, 0], targets)

    def correct(self, logits_BC: Tensor, targets: Tensor) -> Tensor:
        """The prediction is within `CLOSE` of the target; [B]."""
        return (logits_BC[:, 0] - targets).abs() < CLOSE

    def score(self, logits_NC: NDArray[np.float32], labels: Sequence[float]) -> dict[str, float]:
        """R^2 and the mean absolute error, in the unit of the labels."""
        targets_N, predicted_N = np.array(labels), logits_NC[:, 0] * self.scale + self.mean
        residual = float(np.square(predicted_N - targets_N).mean())
        error = float(np.abs(predicted_N - targets_N).mean())
        return {"score": 1 - residual / (float(targets_N.var()) or 1.0), "mean_absolute_error": error}


def objective_of(data: LabelledData, config: LossSettings, device: torch.device) -> Objective:
    """Build the objective of the data's problem from its training labels."""
    if data.problem == REGRESSION:
        return Regression(data.train.labels)
    kind = MultiLabel if data.problem == MULTI_LABEL else SingleLabel
    return kind(data.train.labels, len(data.label_names), config, device)
