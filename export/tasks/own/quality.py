"""Quality of models of one's own: how it is measured, which loss a precision may cause, and what the card says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.conversion.comparison.requirements import ConversionRefused, Precision
from export.data.own.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from export.markdown import table
from export.tasks.own.training import about_files
from export.training.fine_tuning.measuring import LabelledData, LabelledSplit, measure_split
from export.training.fine_tuning.settings import MINILM
from export.training.quality import MAX_ACCURACY_LOSS
from model_store.folder import Manifest

MAX_COUNTED = 50  # labels whose rows the card counts
MAX_LABELS_OF_CARD = 100  # labels whose precision and recall the card has; the manifest has them all
ROWS_OF_A_SMALL_SET = 2  # a precision may cost so many rows where half a point is less than that
# The figure of each problem whose loss by a lossy precision is limited.
JUDGED_BY = {SINGLE_LABEL: "accuracy", MULTI_LABEL: "f1_micro", REGRESSION: "r2"}
NAMES = {"accuracy": "accuracy", "f1_micro": "F1 over all decisions or entities", "r2": "R^2"}


@dataclass(frozen=True)
class OwnSplit:
    """The reporting split of a run, as the conversion takes it: inputs, and how results are judged."""

    inputs: list[Any]  # as a client would send them
    split: LabelledSplit
    data: LabelledData
    document: Mapping[str, Any]  # `task.json`

    @property
    def labels(self) -> list[Any]:
        """The labels, by the problem."""
        return [*self.split.labels]

    def quality(self, results: Sequence[NDArray[np.float32]]) -> dict[str, Any]:
        """Measure logits with intervals, and each label."""
        return measure_split(np.stack(results), self.split, self.data, self.document).quality


def is_own(measured: Any) -> bool:
    """Tell whether figures of a manifest are those of a model of one's own."""
    return isinstance(measured, dict) and ("labels" in measured or "r2" in measured)


def about_data(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what manifest and card say of the data, and of what was fitted after training."""
    document = result["data_document"]
    about = about_files(document)
    if result["config"].get("start_from") == MINILM:
        about["licence"] = f"data: {about['licence']}; MiniLM: Apache-2.0"
    counts = document["splits"]["train"].get("labels") or {}
    if 0 < len(counts) <= MAX_COUNTED:
        about["training_rows_by_label"] = ", ".join(f"{label} {count:,}" for label, count in counts.items())
    if "problem" in document:
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
    loss = before[name] - measured[name]
    allowed = max(MAX_ACCURACY_LOSS, ROWS_OF_A_SMALL_SET / measured["num_examples"])
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
        "subset_accuracy": "inputs whose labels are all right",
        "whole_texts": "texts whose entities are all right",
        "f1_micro": "F1 over all entities (start, end and label)" if "whole_texts" in measured else NAMES["f1_micro"],
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
    if labels := measured.get("labels"):
        shown = sorted(labels, key=lambda each: -each["num_true"])[:MAX_LABELS_OF_CARD]
        noun = "Each label:" if len(labels) <= MAX_LABELS_OF_CARD else f"The {len(shown)} labels with the most rows:"
        rows = [_label_row(each) for each in labels if len(labels) <= MAX_LABELS_OF_CARD or each in shown]
        lines += ["", noun, *table(("label", "precision", "recall", "F1", "rows"), rows)]
    return [*lines, ""]


def own_quality_lines(manifest: Manifest) -> list[str]:
    """Write the card's part on quality: each measured split, and what the precision costs."""
    own = {split: measured for split, measured in manifest.quality.items() if is_own(measured)}
    lines = [line for split, measured in own.items() for line in card_of_quality(split, measured)]
    by = "quantization" if manifest.precision == "int8" else manifest.precision
    lost = [
        f"- {NAMES[name]} lost by {by}: {100 * manifest.quality[f'{name}_loss']:.2f} points"
        for name in NAMES
        if f"{name}_loss" in manifest.quality
    ]
    return [*lines, "Compared with the model before conversion:", "", *lost]


def _label_row(of_label: Mapping[str, Any]) -> list[str]:
    figures = [of_label[name] for name in ("precision", "recall", "f1")]
    return [
        of_label["label"].replace("|", "\\|"),
        *("none" if figure is None else f"{figure:.3f}" for figure in figures),
        f"{of_label['num_true']:,}",
    ]
