"""Conversion of text classifiers that were trained on data of one's own: source, measured rows, and their card.

    run folder ──> saved model (`hugging_face/`), data read again ──> `export.conversion.classifier`

The rows are those of the run's record: the reporting split is measured, both held-out splits are compared with PyTorch.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from export.conversion.comparison.requirements import MIN_COMPARED
from export.conversion.golden_texts import made_up_sentences
from export.conversion.model_source import provenance_of, text_source_of_run
from export.conversion.text_source import TextClassifierSource
from export.data.own.labels import REGRESSION, SINGLE_LABEL
from export.data.own.texts import rebuild_texts
from export.data.text_classification import LabelledTexts, TextClassificationData
from export.tasks.own.quality import OwnSplit, about_data
from export.training.fine_tuning.saved_model import HUGGING_FACE, read_task_document
from service.tasks.text.tokenization import Pair, Text

MAX_COMPARED = 2_000  # held-out texts, one at a time in PyTorch


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
    unit = 1.0
    if data.problem == REGRESSION:
        unit = max(1.0, float(np.std(data.train.labels)), abs(float(np.mean(data.train.labels))) / 100)
    return replace(source, output_unit=unit, provenance=provenance_of(result) | kept)


def conversion_of_own_run(run_dir: Path, result: Mapping[str, Any]) -> tuple[TextClassifierSource, dict[str, Any]]:
    """Return source and further arguments of `convert` for a run on data of one's own.

    Raises:
        ValueError: the data is gone or has changed, or the network cannot be served.
    """
    data = rebuild_texts(result["data_document"])
    source = source_of_own_run(run_dir, result, data)
    measured = OwnSplit(texts_of(data.reported), data.reported, data, read_task_document(run_dir / HUGGING_FACE))
    held_out = measured.inputs if data.test is None else [*measured.inputs, *texts_of(data.validation)]
    compared = held_out[:MAX_COMPARED]
    return source, {
        "compare_on": [*compared, *made_up_sentences(max(0, MIN_COMPARED - len(compared)))],
        "labelled": measured,
        "split": data.reported_name,
        "about": about_data(result),
        "halved": data.problem == SINGLE_LABEL,
    }
