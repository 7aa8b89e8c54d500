"""Vectors of a graph to the answers of a request: the postprocessing of every task whose answer is a vector.

Shapes: n inputs of a request, D elements of a vector.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.tasks.stored_task import Example, TaskError, Tolerance
from service.tasks.task import DEFAULT_ANSWER, AnswerOptions
from service.tensors import Arrays, TensorSpec

MIN_NORM = 1e-12  # below it a vector has no direction; the bound of `torch.nn.functional.normalize`


class Embedder:
    """The output and the postprocessing that all tasks share whose answer is a vector."""

    hub_answer: ClassVar[Any] = list[float]
    elements_are_rows: ClassVar[bool] = True
    decodes: ClassVar[bool] = False
    golden_searches: ClassVar[Sequence[str]] = ("",)
    attention_outputs: ClassVar[Mapping[str, str]] = {}
    labels: Sequence[str] = ()

    def __init__(self, *, dimensions: int, normalize: bool) -> None:
        """Set up.

        Args:
            dimensions: elements of a vector.
            normalize: whether vectors are scaled to length 1 where a request does not say.
        """
        self._dimensions, self._normalize = dimensions, normalize
        self.outputs = (TensorSpec("embedding", "FP32", (-1, dimensions)),)

    def max_inputs(self, max_request_rows: int) -> int:
        """Return the limit on rows: each text or image is one."""
        return max_request_rows

    def split_batch(self, outputs: Arrays, items: Sequence[Any]) -> list[NDArray[np.float32]]:
        """Split the outputs of a call into the pooled vector of each item, float32 [D]."""
        return list(outputs["embedding"])

    def finish(self, result: NDArray[np.float32], options: AnswerOptions = DEFAULT_ANSWER) -> NDArray[np.float32]:
        """Return the vector as a request wants it, float32 [D] or shorter."""
        vector_D: NDArray[np.float32] = self.vectors([result], options)[0]
        return vector_D

    def vectors(self, results: Sequence[NDArray[np.float32]], options: AnswerOptions) -> NDArray[np.float32]:
        """Cut and normalise the pooled vectors of n inputs, float32 [n, D] or narrower.

        A shorter vector is the beginning of the whole one (Kusupati et al. 2022, "Matryoshka Representation Learning",
        arXiv 2205.13147), which is normalised after the cut.
        """
        vectors_nD = np.stack(results)
        if options.dimensions is not None:
            vectors_nD = vectors_nD[:, : options.dimensions]
        normalize = self._normalize if options.normalize is None else options.normalize
        return unit_vectors(vectors_nD) if normalize else vectors_nD

    def to_tensors(self, results: Sequence[NDArray[np.float32]]) -> Arrays:
        """Make the output tensor of n results."""
        return {"embedding": self.vectors(results, DEFAULT_ANSWER)}

    def check_dimensions(self, dimensions: int | None) -> int | None:
        """Return the number of elements that a request asks for.

        Raises:
            InvalidRequest: the vectors have fewer.
        """
        if dimensions is not None and not 1 <= dimensions <= self._dimensions:
            raise InvalidRequest(f"dimensions is {dimensions}; the model's vectors have {self._dimensions} elements")
        return dimensions

    def hub_document(self, answer: NDArray[np.float32]) -> Any:
        """Make the task API's answer for one input: a vector, or the similarity of two inputs."""
        numbers: list[float] | float = answer.tolist()
        return numbers

    def check_example(self, example: Example) -> None:
        """Check that a golden example has a vector of the model's width.

        Raises:
            TaskError: it has another width.
        """
        if (width := len(example.outputs.get("embedding", []))) != self._dimensions:
            raise TaskError(f"a vector of {width} elements, but dimensions is {self._dimensions} in task.json")

    def golden_difference(
        self, example: Example, result: NDArray[np.float32], tolerance: Tolerance, search: str = ""
    ) -> float:
        """Return the largest absolute difference of an element of the vector, scaled to length 1, from the golden one.

        Raises:
            TaskError: it exceeds the tolerance, or the vector has another width.
        """
        golden_D = np.array(example.outputs["embedding"], dtype=np.float32)
        if result.shape != golden_D.shape:
            raise TaskError(f"a vector of shape {result.shape}, not {golden_D.shape}")
        difference = unit_vectors(result[None]) - unit_vectors(golden_D[None])
        off_by, allowed = float(np.abs(difference).max()), tolerance.max_abs_logit_difference
        if not off_by <= allowed:
            raise TaskError(f"vectors differ by {off_by:.3g}, the manifest allows {allowed:g}")
        return off_by


def unit_vectors(vectors_nD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale vectors to length 1; float32 [n, D]."""
    norms_n1 = np.sqrt(np.einsum("nd,nd->n", vectors_nD, vectors_nD))[:, None]
    units_nD: NDArray[np.float32] = vectors_nD / np.maximum(norms_n1, MIN_NORM)
    return units_nD
