"""The parts that the tasks of text and image embeddings share.

Shapes: B rows, D elements of a vector.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from export.conversion.comparison.classifier import Comparison, compare_vectors
from export.conversion.comparison.requirements import ConversionRefused, Precision
from export.conversion.float16 import HalfPrecisionRefused, float16_outputs
from export.conversion.model_folder.task import OneGraphTask, Preprocessing, Split
from export.conversion.sensitivity.company_search import Answer, Found, SearchEffort, search_company
from export.onnx_graphs.passes import cpu_session
from export.tasks.task import ExportTask
from export.training.quality import MIN_FLOAT16_TOLERANCE, twice
from model_store.folder import GRAPH, NOT_COMPARED, GoldenExample, HalfPrecision, Manifest, Tolerance
from service.tasks.embedding import unit_vectors

MIN_MEAN_COSINE = 0.99  # of int8 and float16 to float32, over the measured inputs
S = TypeVar("S", bound=Split)


class EmbeddingTask(OneGraphTask[S], ExportTask[S]):
    """A task whose answers are vectors; PyTorch's vectors are the expected ones, so that no labels are needed."""

    needs_labels = False
    score_name, answers_name = "element of a vector of length 1", "vectors"

    @abstractmethod
    def preprocessing(self, folder: Path, manifest: Manifest) -> Preprocessing:
        """Build the preprocessing of a model folder."""

    @abstractmethod
    def invented_inputs(self, folder: Path) -> Sequence[Any]:
        """Generate inputs of unusual content, to share engine calls with."""

    def compare(self, found: Sequence[NDArray[np.float32]], expected: Sequence[NDArray[np.float32]]) -> Comparison:
        """Compare vectors after scaling them to length 1."""
        return compare_vectors(found, expected)

    def quality(
        self,
        results: Sequence[NDArray[np.float32]],
        split: S,
        expected: Callable[[], Sequence[NDArray[np.float32]]],
    ) -> dict[str, Any]:
        """Measure the cosines to PyTorch's vectors."""
        return quality_of_cosines(cosines(results, expected()))

    def check_loss(
        self, measured: Mapping[str, Any], before: Mapping[str, Any], precision: Precision
    ) -> dict[str, Any]:
        """Refuse vectors that have turned away from PyTorch's."""
        if not measured["mean_cosine"] >= MIN_MEAN_COSINE:
            raise ConversionRefused(
                f"{precision} turns the vectors: their mean cosine with PyTorch's is {measured['mean_cosine']:.4f}, at"
                f" least {MIN_MEAN_COSINE} is needed"
            )
        return {}

    def quality_lines(self, manifest: Manifest) -> list[str]:
        """Write the cosines of each split."""
        lines = []
        whose = "the given graph's" if NOT_COMPARED in manifest.quality else "PyTorch's"
        for split, measured in manifest.quality.items():
            if isinstance(measured, dict) and "mean_cosine" in measured:
                lines += [
                    f"On {split}, n = {measured['num_examples']}, with the graph of this folder: mean cosine with"
                    f" {whose} vectors {measured['mean_cosine']:.6f}, lowest {measured['min_cosine']:.6f}.",
                    "",
                ]
        return [*lines, "Compared with the model before conversion:", ""]

    def measure_float16(
        self, folder: Path, manifest: Manifest, golden: Sequence[GoldenExample], measured_on: Mapping[str, S]
    ) -> HalfPrecision:
        """Measure the cosines of the float16 graph's vectors with those of the same weights in float32."""
        preprocessing = self.preprocessing(folder, manifest)
        worst, quality = 0.0, dict[str, Any]()
        for split, measured in measured_on.items():
            items = [preprocessing.item(given) for given in measured.inputs]
            half, whole = float16_outputs(folder, manifest.outputs[0].name, items, preprocessing.collate)
            if not np.isfinite(np.stack(half)).all():
                raise HalfPrecisionRefused("its values overflow half precision")
            found = compare_vectors(half, whole)
            quality[split] = quality_of_cosines(cosines(half, whole))
            worst = max(worst, found.max_abs_logit_difference)
            if not quality[split]["mean_cosine"] >= MIN_MEAN_COSINE:
                raise HalfPrecisionRefused(f"the mean cosine with float32 is {quality[split]['mean_cosine']:.4f}")
        tolerance = manifest.tolerance.max_abs_logit_difference
        return HalfPrecision(Tolerance(max(twice(worst + tolerance), MIN_FLOAT16_TOLERANCE), False), quality)

    def float16_lines(self, split: str, measured: Mapping[str, Any], precision: str) -> list[str]:
        """Write the cosines of the float16 graph."""
        return [
            f"- {split}, n = {measured['num_examples']}: mean cosine with the same weights in float32"
            f" {measured['mean_cosine']:.6f}, lowest {measured['min_cosine']:.6f}"
        ]

    def search_company(
        self, folder: Path, manifest: Manifest, inputs: Sequence[Any]
    ) -> tuple[SearchEffort, list[Found]]:
        """Measure changes of the elements of vectors."""
        preprocessing = self.preprocessing(folder, manifest)
        session, effort = cpu_session(folder / GRAPH), SearchEffort()

        def answer(items: Sequence[Any]) -> list[Answer]:
            vectors_BD = unit_vectors(session.run([manifest.outputs[0].name], preprocessing.collate(items))[0])
            return [Answer((), tuple(vector_D.tolist())) for vector_D in vectors_BD]

        items, invented = (
            [preprocessing.item(given) for given in each] for each in (inputs, self.invented_inputs(folder))
        )
        return effort, [search_company(answer, items, invented, attrgetter("length"), effort)]


def cosines(found: Sequence[NDArray[np.float32]], expected: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Compute the cosine between the two vectors of each input; float32 [B]."""
    product_B: NDArray[np.float32] = np.einsum(
        "bd,bd->b", unit_vectors(np.stack(found)), unit_vectors(np.stack(expected))
    )
    return product_B


def quality_of_cosines(cosines_B: NDArray[np.float32]) -> dict[str, Any]:
    """Return the manifest's figures of cosines with PyTorch's vectors."""
    return {
        "num_examples": len(cosines_B),
        "mean_cosine": float(cosines_B.mean()),
        "min_cosine": float(cosines_B.min()),
    }
