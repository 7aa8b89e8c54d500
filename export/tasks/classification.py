"""The parts that the tasks of text and image classification share.

Shapes: B rows, C classes.
"""

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from export.conversion.classifier import convert
from export.conversion.comparison.explanation import Arrays, ExplainGraph, Row, classifier_difference
from export.conversion.comparison.requirements import MIN_COMPARED, ConversionRefused, Precision
from export.conversion.float16 import measure_classifier
from export.conversion.model_folder.task import ExplainedTask, OneGraphTask, Preprocessing
from export.conversion.model_source import Labelled, Source
from export.conversion.sensitivity.company_search import Answer, Found, SearchEffort, search_company
from export.data.sets.description import DataSet, data_set_named, data_sets
from export.onnx_graphs.explanation_modules import Explained
from export.onnx_graphs.passes import cpu_session
from export.tasks.own.quality import OwnSplit, is_own, loss_of_own, own_quality_lines
from export.tasks.task import C, Target, TrainedTask
from export.training.quality import MAX_ACCURACY_LOSS, classification_quality, softmax
from model_store.folder import GRAPH, GoldenExample, HalfPrecision, Manifest


class ClassificationTask(OneGraphTask[Labelled], ExplainedTask[Labelled], TrainedTask[Labelled, C], Generic[C]):
    """A task whose answers are classes."""

    score_name, answers_name = "probability", "labels"

    @abstractmethod
    def source_of_run(self, run_dir: Path) -> Source:
        """Load a finished run as a source for conversion."""

    @abstractmethod
    def measured_inputs(self, described: DataSet) -> dict[str, Any]:
        """Load the inputs to compare with PyTorch and to measure on, as arguments of `convert`."""

    @abstractmethod
    def made_up_inputs(self, count: int) -> Sequence[Any]:
        """Generate inputs to compare with PyTorch when no data set is available."""

    @abstractmethod
    def material(self, known: Collection[Any]) -> Mapping[str, Labelled] | None:
        """Load the labelled split that models of the store are measured on."""

    @abstractmethod
    def preprocessing(self, folder: Path, manifest: Manifest) -> Preprocessing:
        """Build the preprocessing of a model folder."""

    @abstractmethod
    def invented_inputs(self, folder: Path) -> Sequence[Any]:
        """Generate inputs of unusual content, to share engine calls with."""

    @abstractmethod
    def input_feeds(self, folder: Path, manifest: Manifest, example: GoldenExample) -> Arrays:
        """Turn the input of a golden example into inputs of the graph that explains."""

    def known_data(self, run_dir: Path, result: Mapping[str, Any]) -> DataSet:
        """Return the data set that a run was trained on.

        Raises:
            ValueError: it is unknown.
        """
        described = data_set_named(result["data"], self.name)
        if described is None:
            raise ValueError(
                f"{run_dir} was trained on {result['data']!r}, an unknown data set: there is nothing to measure it on"
            )
        return described

    def known_among(self, names: Collection[Any]) -> DataSet | None:
        """Return the data set that one of the names is of; None if there is none."""
        return next((each for each in data_sets(self.name) if each.name in names), None)

    def convert(self, run_dir: Path, target: Target, console: Console) -> None:
        """Convert a finished run, compared and measured on its own data set where that is known."""
        source, inputs = self.source_of_run(run_dir), dict[str, Any]()
        data, licences = source.provenance["data"], []
        if described := data_set_named(data, self.name):
            inputs = self.measured_inputs(described)
            licences.append(described.licence)
        else:
            console.print(f"the run was trained on {data!r}, an unknown data set: its quality is not measured")
            inputs = {"compare_on": self.made_up_inputs(MIN_COMPARED), "labelled": None}
        if source.provenance.get("start_from") in ("minilm", "minilm-words"):
            licences.append("MiniLM: Apache-2.0")
        about = {"licence": "; ".join(licences)} if licences else {}
        self.write_model(source, target, console, about=about, **inputs)

    def write_model(self, source: Source, target: Target, console: Console, **options: Any) -> None:
        """Convert a source; `options` are further arguments of `convert`."""
        convert(
            source,
            self,
            name=target.name,
            store=target.store,
            precision=target.precision,
            console=console,
            **options,
        )

    def quality(
        self,
        results: Sequence[NDArray[np.float32]],
        split: Labelled,
        expected: Callable[[], Sequence[NDArray[np.float32]]],
    ) -> dict[str, Any]:
        """Measure accuracy, F1 and calibration; data of one's own by its problem."""
        if isinstance(split, OwnSplit):
            return split.quality(results)
        return classification_quality(np.stack(results), np.array(split.labels)).as_dict()

    def check_loss(
        self, measured: Mapping[str, Any], before: Mapping[str, Any], precision: Precision
    ) -> dict[str, Any]:
        """Compute the loss of accuracy, or in the figure of the problem, and refuse one beyond half a point."""
        if is_own(measured):
            return loss_of_own(measured, before, precision)
        loss = before["accuracy"] - measured["accuracy"]
        if loss > MAX_ACCURACY_LOSS:
            raise ConversionRefused(
                f"{precision} loses {100 * loss:.2f} points of accuracy ({100 * before['accuracy']:.2f} % to"
                f" {100 * measured['accuracy']:.2f} %), allowed are {100 * MAX_ACCURACY_LOSS:.1f}"
            )
        key = "accuracy_before_quantization" if precision == "int8" else "accuracy_in_float32"
        return {key: before["accuracy"], "accuracy_loss": loss}

    def quality_lines(self, manifest: Manifest) -> list[str]:
        """Write accuracy, F1, calibration and confusion matrix of each split, and the loss of accuracy.

        Figures of a model of one's own have intervals, and each label.
        """
        if any(map(is_own, manifest.quality.values())):
            return own_quality_lines(manifest)
        lines = []
        if "validation" in manifest.quality and "best_epoch" in manifest.provenance:
            lines += ["The validation split also chose the epoch, so the figures measured on it are optimistic.", ""]
        splits = {
            name: measured
            for name, measured in manifest.quality.items()
            if isinstance(measured, dict) and "confusion_matrix" in measured
        }
        for split, measured in splits.items():
            lines += [
                f"On {f'the {split} split' if split in {'validation', 'test'} else split},"
                f" n = {measured['num_examples']}, with the graph of this folder:",
                "",
                f"- accuracy {100 * measured['accuracy']:.2f} % (standard error"
                f" {100 * measured['accuracy_standard_error']:.2f})",
                f"- F1, mean over the classes: {measured['f1_macro']:.4f}",
                f"- expected calibration error: {measured['expected_calibration_error']:.4f}",
                f"- confusion matrix (rows: true class): {measured['confusion_matrix']}",
                "",
            ]
        if not splits:
            lines += ["Its accuracy was not measured, because no labelled data was available.", ""]
        lines += ["Compared with the model before conversion:", ""]
        if "accuracy_loss" in manifest.quality:
            by = "quantization" if manifest.precision == "int8" else manifest.precision
            lines.append(f"- accuracy lost by {by}: {100 * manifest.quality['accuracy_loss']:.2f} points")
        return lines

    def golden_feeds(self, folder: Path, manifest: Manifest, example: GoldenExample) -> Arrays:
        """Explain the answered class."""
        target = np.array(np.argmax(example.outputs["logits"]))
        return {"target": target} | self.input_feeds(folder, manifest, example)

    def served_difference(self, folder: Path, network: Explained, graph: ExplainGraph, rows: Sequence[Row]) -> float:
        """Return the largest difference of a logit."""
        return classifier_difference(folder, graph, rows)

    def measure_float16(
        self, folder: Path, manifest: Manifest, golden: Sequence[GoldenExample], measured_on: Mapping[str, Labelled]
    ) -> HalfPrecision:
        """Measure accuracy with the float16 graph."""
        return measure_classifier(folder, manifest, golden, measured_on, self.preprocessing(folder, manifest))

    def float16_lines(self, split: str, measured: Mapping[str, Any], precision: str) -> list[str]:
        """Write the accuracy of the float16 graph and of the served one."""
        before = measured[f"accuracy_in_{precision}"]
        return [
            f"- {split}, n = {measured['num_examples']}: accuracy {100 * measured['accuracy']:.2f} % instead of"
            f" {100 * before:.2f} %, {measured['labels_changed']} labels change; logits differ by at most"
            f" {measured['max_abs_logit_difference_to_float32']:.2g} from those of the same weights in float32"
        ]

    def scores_of_folder(
        self, folder: Path, manifest: Manifest
    ) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """Return the function from logits [B, C] to scores [B, C]."""
        return softmax

    def search_company(
        self, folder: Path, manifest: Manifest, inputs: Sequence[Any]
    ) -> tuple[SearchEffort, list[Found]]:
        """Measure changes of probabilities."""
        preprocessing, session, effort = (
            self.preprocessing(folder, manifest),
            cpu_session(folder / GRAPH),
            SearchEffort(),
        )

        scores = self.scores_of_folder(folder, manifest)

        def answer(items: Sequence[Any]) -> list[Answer]:
            scores_BC = scores(session.run(["logits"], preprocessing.collate(items))[0])
            return [Answer((int(np.argmax(row_C)),), tuple(row_C.tolist())) for row_C in scores_BC]

        items, invented = (
            [preprocessing.item(given) for given in each] for each in (inputs, self.invented_inputs(folder))
        )
        return effort, [search_company(answer, items, invented, attrgetter("length"), effort)]
