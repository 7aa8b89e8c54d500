"""Zero-shot classification: entailment models, which score labels that a request brings, from Hugging Face."""

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from export.conversion.golden_texts import GOLDEN_TEXTS
from export.task_table import ZERO_SHOT_CLASSIFICATION
from export.tasks.task import Target
from export.tasks.text.agreement import AgreementTask
from export.tasks.text.rows_source import RawInput, RowsSource, rows_source_of_hugging_face, served_arguments
from service.tasks.text.zero_shot import LabelledText
from service.tasks.text.zero_shot import ZeroShotClassification as Served

LABELS = ("praise", "complaint")
MAX_GOLDEN = 15


def entailment_model_of_hugging_face(name_or_path: str) -> RowsSource:
    """Load a classifier of pairs that has a class for entailment.

    Raises:
        LoadRefused: not a complete model of this task.
    """
    from transformers import AutoModelForSequenceClassification

    from export.conversion.checkpoints.reading import LoadRefused, labels_of
    from export.conversion.text_checkpoint import Positional, read_text_checkpoint

    checkpoint = read_text_checkpoint(name_or_path, AutoModelForSequenceClassification)
    labels = labels_of(checkpoint.document, checkpoint.model.config.num_labels)
    try:
        served = Served(**served_arguments(checkpoint), labels=labels)
    except ValueError as error:
        raise LoadRefused(str(error)) from error
    given = [LabelledText(text, LABELS) for text in GOLDEN_TEXTS]
    fitting = [
        each for each in given if not served.rows_of(each, truncate=True, field="the input", max_rows=2).truncated
    ]
    return rows_source_of_hugging_face(
        checkpoint,
        Positional,
        served,
        labels=labels,
        width=len(labels),
        golden=[
            RawInput({"text": each.text, "candidate_labels": json.dumps(each.labels)}, each)
            for each in fitting[:MAX_GOLDEN]
        ],
    )


class ZeroShotClassification(AgreementTask):
    """Entailment models that score labels of a request."""

    name = ZERO_SHOT_CLASSIFICATION
    answers_name = "classes of a text with a label"

    def made_up(self, texts: Sequence[str]) -> list[Any]:
        """Give each text two labels."""
        return [LabelledText(text, LABELS) for text in texts]

    def load(self, source: str, validate_on: str | None, target: Target, console: Console) -> None:
        """Convert an entailment model."""
        self.write(entailment_model_of_hugging_face(source), target, console)


TASK = ZeroShotClassification()
