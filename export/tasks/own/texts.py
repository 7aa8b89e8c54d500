"""Conversion of text classifiers that were trained on data of one's own: source, measured rows, and their card.

    run folder ──> saved model (`hugging_face/`), data read again ──> `export.conversion.classifier`

The rows are those of the run's record: the reporting split is measured, both held-out splits are compared with PyTorch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.conversion.comparison.requirements import MIN_COMPARED, ConversionRefused, Precision
from export.conversion.golden_texts import made_up_sentences
from export.conversion.model_source import provenance_of, text_source_of_run
from export.conversion.text_source import TextClassifierSource
from export.data.own.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from export.data.own.texts import rebuild_texts
from export.data.text_classification import LabelledTexts, TextClassificationData
from export.markdown import table
from export.training.fine_tuning.measuring import measure_split
from export.training.fine_tuning.saved_model import HUGGING_FACE, read_task_document
from export.training.fine_tuning.settings import MINILM
from export.training.quality import MAX_ACCURACY_LOSS
from service.tasks.classification import ClassifierSettings
from service.tasks.text.tokenization import Pair, Text

MAX_COMPARED = 2_000  # held-out texts, one at a time in PyTorch
MAX_COUNTED = 50  # labels whose rows the card counts
ROWS_OF_A_SMALL_SET = 2  # a precision may cost so many rows where half a point is less than that
# The figure of each problem whose loss by a lossy precision is limited.
JUDGED_BY = {SINGLE_LABEL: "accuracy", MULTI_LABEL: "f1_micro", REGRESSION: "r2"}
NAMES = {"accuracy": "accuracy", "f1_micro": "F1 over all decisions", "r2": "R^2"}


@dataclass(frozen=True)
class OwnSplit:
    """The reporting split of a run, as the conversion takes it: texts or pairs, and how results are judged."""

    split: LabelledTexts
    data: TextClassificationData
    document: Mapping[str, Any]  # `task.json`

    @property
    def inputs(self) -> list[Text]:
        """Texts, or pairs of texts."""
        return texts_of(self.split)

    @property
    def labels(self) -> list[Any]:
        """The labels, by the problem."""
        return self.split.labels

    def quality(self, results: Sequence[NDArray[np.float32]]) -> dict[str, Any]:
        """Measure logits with intervals, and each label."""
        return measure_split(np.stack(results), self.split, self.data, self.document).quality


def texts_of(split: LabelledTexts) -> list[Text]:
    """Return the inputs as the served task takes them."""
    if split.pairs is None:
        return list(split.texts)
    return [Pair(*both) for both in zip(split.texts, split.pairs, strict=True)]


def source_of_own_run(run_dir: Path, result: Mapping[str, Any], data: TextClassificationData) -> TextClassifierSource:
    """Load the saved model of a run, or the network of this repository that it trained.

    Raises:
        ValueError: the network cannot be served.
    """
    folder = run_dir / HUGGING_FACE
    if not folder.is_dir():
        return text_source_of_run(run_dir)
    from export.conversion.text_checkpoint import (
        classifier_of_hugging_face,  # imports transformers, which takes seconds
    )

    source = classifier_of_hugging_face(str(folder))
    kept = {name: source.provenance[name] for name in ("model_type", "transformers")}
    settings, unit = None, 1.0
    if data.problem != SINGLE_LABEL:
        settings = ClassifierSettings(problem=data.problem, thresholds=read_task_document(folder).get("thresholds"))  # type: ignore[arg-type] # checked by the data
    if data.problem == REGRESSION:
        unit = max(1.0, float(np.std(data.train.labels)), abs(float(np.mean(data.train.labels))) / 100)
    return replace(source, settings=settings, output_unit=unit, provenance=provenance_of(result) | kept)


def conversion_of_own_run(run_dir: Path, result: Mapping[str, Any]) -> tuple[TextClassifierSource, dict[str, Any]]:
    """Return source and further arguments of `convert` for a run on data of one's own.

    Raises:
        ValueError: the data is gone or has changed, or the network cannot be served.
    """
    data = rebuild_texts(result["data_document"])
    source = source_of_own_run(run_dir, result, data)
    measured = OwnSplit(data.reported, data, read_task_document(run_dir / HUGGING_FACE))
    held_out = measured.inputs if data.test is None else [*measured.inputs, *texts_of(data.validation)]
    compared = held_out[:MAX_COMPARED]
    return source, {
        "compare_on": [*compared, *made_up_sentences(max(0, MIN_COMPARED - len(compared)))],
        "labelled": measured,
        "split": data.reported_name,
        "about": about_data(result),
        "halved": data.problem == SINGLE_LABEL,
    }


def about_data(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what manifest and card say of the data, and of what was fitted after training."""
    document = result["data_document"]
    sources = document["files"].values()
    files = [f"{each['name']} ({each['rows']:,} rows, sha256 {each['sha256']})" for each in sources]
    rows = [f"{split} {record['rows']:,}" for split, record in document["splits"].items()]
    licence = document["licence"]
    if result["config"].get("start_from") == MINILM:
        licence = f"data: {licence}; MiniLM: Apache-2.0"
    about = {"licence": licence, "data_files": "; ".join(files), "rows": ", ".join(rows)}
    counts = document["splits"]["train"].get("labels") or {}
    if 0 < len(counts) <= MAX_COUNTED:
        about["training_rows_by_label"] = ", ".join(f"{label} {count:,}" for label, count in counts.items())
    about["problem"] = document["problem"]["kind"]
    if fitted := result.get("temperature"):
        before, after = result["calibration_error_before_temperature"], _calibration_error(result["quality"])
        about["temperature"] = (
            f"{fitted['temperature']:.3f}, fitted on the validation split and part of the weights; calibration error on"
            f" the {result['measured_on']} split {before:.4f} before, {after:.4f} after"
        )
    return about


def _calibration_error(quality: Mapping[str, Any]) -> float:
    return float(quality.get("expected_calibration_error", quality.get("calibration_error", float("nan"))))


def loss_of_own(measured: Mapping[str, Any], before: Mapping[str, Any], precision: Precision) -> dict[str, Any]:
    """Return what a precision costs, in the figure of the problem.

    Half a point is allowed, or two rows of a small split; the card has the interval of the figure.

    Raises:
        ConversionRefused: it costs more.
    """
    name = next(each for each in JUDGED_BY.values() if each in measured)
    loss, allowed = (
        before[name] - measured[name],
        max(MAX_ACCURACY_LOSS, ROWS_OF_A_SMALL_SET / measured["num_examples"]),
    )
    if not loss <= allowed:
        raise ConversionRefused(
            f"{precision} loses {100 * loss:.2f} points of {NAMES[name]} ({100 * before[name]:.2f} % to"
            f" {100 * measured[name]:.2f} %), allowed are {100 * allowed:.1f} on {measured['num_examples']} rows"
        )
    key = "before_quantization" if precision == "int8" else "in_float32"
    return {f"{name}_{key}": before[name], f"{name}_loss": loss}


def card_of_quality(split: str, measured: Mapping[str, Any]) -> list[str]:
    """Write the card's lines on a split: each figure with its 95 % interval, and the table of labels."""
    lines = [f"On the {split} split, n = {measured['num_examples']:,}, with the graph of this folder:", ""]
    figures = {
        "accuracy": "accuracy",
        "subset_accuracy": "texts whose labels are all right",
        "f1_micro": "F1 over all decisions",
        "f1_macro": "F1, mean over the labels",
        "mean_absolute_error": "mean absolute error",
        "root_mean_squared_error": "root mean squared error",
        "r2": "R^2, share of the variance explained",
        "pearson": "Pearson's correlation",
        "spearman": "Spearman's correlation",
    }
    intervals = measured.get("intervals", {})
    for name, noun in figures.items():
        if measured.get(name) is not None:
            low, high = measured.get(f"{name}_interval") or intervals.get(name) or (None, None)
            interval = "" if low is None or high is None else f" (95 % interval {low:.4f} to {high:.4f})"
            lines.append(f"- {noun}: {measured[name]:.4f}{interval}")
    if not np.isnan(error := _calibration_error(measured)):
        lines.append(f"- expected calibration error: {error:.4f}")
    if rows := measured.get("labels"):
        lines += ["", "Each label:", *table(("label", "precision", "recall", "F1", "rows"), map(_label_row, rows))]
    return [*lines, ""]


def _label_row(of_label: Mapping[str, Any]) -> list[str]:
    figures = [of_label[name] for name in ("precision", "recall", "f1")]
    return [
        of_label["label"].replace("|", "\\|"),
        *("none" if figure is None else f"{figure:.3f}" for figure in figures),
        f"{of_label['num_true']:,}",
    ]
