"""Text ranking: cross-encoders, which answer a query and a text with a score, from Hugging Face."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from export.conversion.golden_texts import GOLDEN_TEXTS
from export.task_table import TEXT_RANKING
from export.tasks.task import Target
from export.tasks.text.agreement import AgreementTask
from export.tasks.text.rows_source import RawInput, RowsSource, rows_source_of_hugging_face, served_arguments
from service.tasks.task import ScoreFunction
from service.tasks.text.ranking import RankingSettings
from service.tasks.text.ranking import TextRanking as Served
from service.tasks.text.tokenization import TEXT_PAIR, Pair

# The function of a cross-encoder by the end of its class's name in PyTorch, as sentence-transformers saves it.
FUNCTIONS: Mapping[str, ScoreFunction] = {"Identity": "none", "Sigmoid": "sigmoid", "Softmax": "softmax"}
# Where `config.json` names it, in the order of sentence-transformers' versions, the newest first.
KEYS = ("activation_fn", "sbert_ce_default_activation_function")
MAX_PAIRS = 15  # golden ones


def cross_encoder_of_hugging_face(name_or_path: str) -> RowsSource:
    """Load a cross-encoder.

    Raises:
        LoadRefused: not a complete model of this task, or a function that is not offered.
    """
    from transformers import AutoModelForSequenceClassification

    from export.conversion.checkpoints.reading import LoadRefused, labels_of
    from export.conversion.text_checkpoint import Positional, read_text_checkpoint

    checkpoint = read_text_checkpoint(name_or_path, AutoModelForSequenceClassification)
    labels = labels_of(checkpoint.document, checkpoint.model.config.num_labels)
    settings = RankingSettings(function_of(checkpoint.document, len(labels)))
    arguments = served_arguments(checkpoint)
    try:
        served = Served(**arguments, labels=labels, settings=settings)
    except ValueError as error:
        raise LoadRefused(str(error)) from error
    pairs = [Pair(*both) for both in zip(GOLDEN_TEXTS[1:], GOLDEN_TEXTS, strict=False)]
    fitting = [pair for pair in pairs if not served.preprocess(pair, truncate=True, field="text").truncated]
    return rows_source_of_hugging_face(
        checkpoint,
        Positional,
        served,
        labels=labels,
        settings=settings,
        width=len(labels),
        golden=[RawInput({"text": pair.first, TEXT_PAIR: pair.second}, pair) for pair in fitting[:MAX_PAIRS]],
    )


def function_of(document: Mapping[str, Any], num_labels: int) -> ScoreFunction:
    """Return how logits become scores, as the `CrossEncoder` of sentence-transformers reads `config.json`.

    Raises:
        LoadRefused: the function is not offered.
    """
    from export.conversion.checkpoints.reading import LoadRefused

    inner = document.get("sentence_transformers")
    places = (inner if isinstance(inner, dict) else {}, document)
    given = next((place[key] for place in places for key in KEYS if place.get(key)), None)
    if given is None:
        return "sigmoid" if num_labels == 1 else "none"
    function = FUNCTIONS.get(str(given).rsplit(".", 1)[-1])
    if function is None:
        raise LoadRefused(
            f"config.json: the function of the scores is {given!r}; {', '.join(FUNCTIONS)} of PyTorch are offered"
        )
    return function


class TextRanking(AgreementTask):
    """Cross-encoders."""

    name = TEXT_RANKING
    score_name, answers_name = "score", "classes of pairs"

    def made_up(self, texts: Sequence[str]) -> list[Any]:
        """Put each text behind the one before it."""
        return [Pair(*pair) for pair in zip([texts[-1], *texts], texts, strict=False)]

    def load(self, source: str, validate_on: str | None, target: Target, console: Console) -> None:
        """Convert a cross-encoder."""
        self.write(cross_encoder_of_hugging_face(source), target, console)


TASK = TextRanking()
