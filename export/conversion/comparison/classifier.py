"""Compares a converted encoder with PyTorch on the same inputs.

Shapes: B rows, C classes, D elements of a vector.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.conversion.comparison.requirements import ConversionRefused
from export.conversion.model_source import Source
from export.onnx_graphs.passes import cpu_session
from service.tasks.embedding import unit_vectors

MAX_LOGIT_DIFFERENCE = 1e-4  # of ONNX and TorchScript in float32 to PyTorch


@dataclass(frozen=True)
class Comparison:
    """The differences between converted outputs and PyTorch's on the same inputs."""

    num_examples: int
    max_abs_logit_difference: float  # of vectors: of an element, after scaling to length 1
    labels_changed: int
    min_cosine: float | None = None  # of vectors: between the two of an input, the lowest

    @property
    def noun(self) -> str:
        """What is compared, for messages."""
        return "logits" if self.min_cosine is None else "vectors"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that apply, for the manifest."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def onnx_outputs(source: Source, path: Path, inputs: Sequence[Any], batch_size: int = 32) -> list[NDArray[np.float32]]:
    """Compute the result of each input with the graph, in padded batches."""
    session, name = cpu_session(path), source.output_name
    # Texts of similar length share a batch, for padding costs time; few are of equal length, so it is still tested.
    lengths = [len(given) if isinstance(given, str) else 0 for given in inputs]
    order = sorted(range(len(inputs)), key=lengths.__getitem__)
    results: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(inputs)
    for first in range(0, len(inputs), batch_size):
        numbers = order[first : first + batch_size]
        batch = [source.item(inputs[number]) for number in numbers]
        (computed,) = session.run([name], source.task.collate(batch))
        for number, result in zip(numbers, source.task.split_batch({name: computed}, batch), strict=True):
            results[number] = result
    return results


def compare(found: Sequence[NDArray[np.float32]], expected: Sequence[NDArray[np.float32]]) -> Comparison:
    """Compare converted logits with PyTorch's: of each input [C], or [T, C] where each token has a class."""
    changed = sum(bool((a.argmax(-1) != b.argmax(-1)).any()) for a, b in zip(found, expected, strict=True))
    return Comparison(len(found), _largest_difference(found, expected), changed)


def compare_vectors(found: Sequence[NDArray[np.float32]], expected: Sequence[NDArray[np.float32]]) -> Comparison:
    """Compare converted vectors with PyTorch's, after scaling both to length 1; of each input [D]."""
    found_BD, expected_BD = unit_vectors(np.stack(found)), unit_vectors(np.stack(expected))
    cosine = float(np.einsum("bd,bd->b", found_BD, expected_BD).min())
    return Comparison(len(found), _largest_difference(found_BD, expected_BD), 0, cosine)


def _largest_difference(found: Iterable[NDArray[np.float32]], expected: Iterable[NDArray[np.float32]]) -> float:
    # A NaN is the largest of all numbers.
    return float(np.max([np.abs(a - b).max() for a, b in zip(found, expected, strict=True)]))


def require_equal(comparison: Comparison, what: str, unit: float = 1.0) -> None:
    """Refuse a float32 graph that differs from PyTorch by more than rounding, in the unit of its output.

    Raises:
        ConversionRefused: the logits differ too much, or a label changes.
    """
    allowed = MAX_LOGIT_DIFFERENCE * unit
    if not comparison.max_abs_logit_difference <= allowed or comparison.labels_changed:
        raise ConversionRefused(
            f"{what} is not PyTorch's model: {comparison.noun} differ by up to"
            f" {comparison.max_abs_logit_difference:.3g} (allowed: {allowed:g}),"
            f" {comparison.labels_changed} of {comparison.num_examples} labels change"
        )
