"""Token classification: encoders of texts that label each token, from Hugging Face."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from rich.console import Console

from export.conversion.golden_texts import GOLDEN_TEXTS, made_up_sentences
from export.conversion.rows_source import RawInput, RowsSource, TokenLogits
from export.task_table import TOKEN_CLASSIFICATION
from export.tasks.task import Target
from export.tasks.text.agreement import AgreementTask
from service.tasks.text.token_classification import EntityText
from service.tasks.text.token_classification import TokenClassification as Served


def token_classifier_of_hugging_face(name_or_path: str) -> RowsSource:
    """Load a model that labels tokens.

    Raises:
        LoadRefused: not a complete model of this task.
    """
    from transformers import AutoModelForTokenClassification

    from export.conversion.checkpoints.reading import labels_of
    from export.conversion.text_checkpoint import (
        read_text_checkpoint,
        rows_source_of_hugging_face,
        served_arguments,
    )

    checkpoint = read_text_checkpoint(name_or_path, AutoModelForTokenClassification)
    labels = labels_of(checkpoint.document, checkpoint.model.config.num_labels)
    served = Served(**served_arguments(checkpoint), labels=labels)
    # A long text is cut into windows.
    texts = [*GOLDEN_TEXTS, " ".join(made_up_sentences(served.max_length // 8 + 2))]
    return rows_source_of_hugging_face(
        checkpoint,
        partial(TokenLogits, outputs=["logits"]),
        served,
        labels=labels,
        width=len(labels),
        golden=[RawInput({"text": text}, EntityText(text)) for text in texts],
    )


class TokenClassification(AgreementTask):
    """Encoders that label tokens."""

    name = TOKEN_CLASSIFICATION
    answers_name = "labels of tokens"

    def made_up(self, texts: Sequence[str]) -> list[Any]:
        """Ask for the entities of texts."""
        return [EntityText(text) for text in texts]

    def load(self, source: str, validate_on: str | None, target: Target, console: Console) -> None:
        """Convert a model that labels tokens."""
        self.write(token_classifier_of_hugging_face(source), target, console)


TASK = TokenClassification()
