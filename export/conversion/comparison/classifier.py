"""Compares a converted classifier with PyTorch on the same inputs.

Shapes: B rows, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.conversion.comparison.requirements import ConversionRefused, Precision
from export.conversion.model_source import Labelled, Source
from export.onnx_graphs.passes import cpu_session
from export.training.quality import MAX_ACCURACY_LOSS, classification_quality

MAX_LOGIT_DIFFERENCE = 1e-4  # of ONNX and TorchScript in float32 to PyTorch


@dataclass(frozen=True)
class Comparison:
    """The differences between converted outputs and PyTorch's on the same inputs."""

    num_examples: int
    max_abs_logit_difference: float
    labels_changed: int


def onnx_logits(source: Source, path: Path, inputs: Sequence[Any], batch_size: int = 32) -> NDArray[np.float32]:
    """Compute the graph's logits in padded batches, in the given order; float32 [B, C]."""
    session = cpu_session(path)
    parts = []
    for first in range(0, len(inputs), batch_size):
        items = [source.item(given) for given in inputs[first : first + batch_size]]
        parts.append(session.run(["logits"], source.task.collate(items))[0])
    return np.concatenate(parts)


def compare(logits_BC: NDArray[np.float32], reference_BC: NDArray[np.float32]) -> Comparison:
    """Compare converted logits with PyTorch's."""
    return Comparison(
        num_examples=len(logits_BC),
        max_abs_logit_difference=float(np.abs(logits_BC - reference_BC).max()),
        labels_changed=int((logits_BC.argmax(axis=1) != reference_BC.argmax(axis=1)).sum()),
    )


def require_equal(comparison: Comparison, what: str) -> None:
    """Refuse a float32 graph that differs from PyTorch by more than rounding.

    Raises:
        ConversionRefused: the logits differ too much, or a label changes.
    """
    if not comparison.max_abs_logit_difference <= MAX_LOGIT_DIFFERENCE or comparison.labels_changed:
        raise ConversionRefused(
            f"{what} is not PyTorch's model: logits differ by up to {comparison.max_abs_logit_difference:.3g} (allowed:"
            f" {MAX_LOGIT_DIFFERENCE:g}), {comparison.labels_changed} of {comparison.num_examples} labels change"
        )


def measure_quality(
    source: Source,
    path: Path,
    labelled: Labelled,
    precision: Precision,
    split: str,
) -> dict[str, Any]:
    """Measure the graph on labelled inputs, and in lossy precisions refuse a loss of accuracy beyond the limit.

    Raises:
        ConversionRefused: the precision loses more than half a point of accuracy.
    """
    labels_B = np.array(labelled.labels)
    measured = classification_quality(onnx_logits(source, path, labelled.inputs), labels_B)
    quality: dict[str, Any] = {split: measured.as_dict()}
    if precision != "float32":
        before = classification_quality(source.logits(source.module, labelled.inputs), labels_B)
        loss = before.accuracy - measured.accuracy
        quality |= {
            "accuracy_before_quantization" if precision == "int8" else "accuracy_in_float32": before.accuracy,
            "accuracy_loss": loss,
        }
        if loss > MAX_ACCURACY_LOSS:
            raise ConversionRefused(
                f"{precision} loses {100 * loss:.2f} points of accuracy ({100 * before.accuracy:.2f} % to"
                f" {100 * measured.accuracy:.2f} %), allowed are {100 * MAX_ACCURACY_LOSS:.1f}"
            )
    return quality
