"""Tasks of models: their inputs, how answers are read, and how the answers are judged.

Requests and answers are those of the Hugging Face task API, which every target (`targets.py`) takes.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from load_tests.material import load_images, load_sentences, load_translations


class Answer(NamedTuple):
    """An answer and the one that was expected."""

    given: str
    expected: str


class ModelTask(Protocol):
    """The inputs, the requests and the measure of one task."""

    name: str
    source: str  # where the inputs come from
    inputs: Sequence[Any]
    expected: Sequence[str]  # of each input; empty where nobody has labelled them
    content_type: str

    def body(self, given: Any) -> bytes:
        """Return the body of a request."""

    def answer(self, document: Any) -> str:
        """Read the answer out of a response."""

    def quality(self, answers: Sequence[Answer]) -> dict[str, float]:
        """Return the measures of the task over all answers."""


class TextClassification(ModelTask):
    """Classification of sentences."""

    name = "text-classification"
    content_type = "application/json"

    def __init__(self) -> None:
        sentences = load_sentences()
        self.source, self.inputs, self.expected = sentences.source, sentences.texts, sentences.labels

    def body(self, given: str) -> bytes:
        """Return the body of a request with one text."""
        return json.dumps({"inputs": given}).encode()

    def answer(self, document: Any) -> str:
        """Return the best label."""
        return str(document[0][0]["label"])

    def quality(self, answers: Sequence[Answer]) -> dict[str, float]:
        """Return the fraction of right labels."""
        return {"accuracy": share_of_right(answers)}


class ImageClassification(ModelTask):
    """Classification of image files."""

    name = "image-classification"
    content_type = "image/png"

    def __init__(self) -> None:
        images = load_images()
        self.source, self.inputs, self.expected = images.source, images.files, images.labels

    def body(self, given: bytes) -> bytes:
        """Return the file itself."""
        return given

    def answer(self, document: Any) -> str:
        """Return the best label."""
        return str(document[0]["label"])

    def quality(self, answers: Sequence[Answer]) -> dict[str, float]:
        """Return the fraction of right labels."""
        return {"accuracy": share_of_right(answers)}


class Translation(ModelTask):
    """Translation of English sentences to German, by greedy search."""

    name = "translation"
    content_type = "application/json"

    def __init__(self) -> None:
        pairs = load_translations()
        self.source, self.inputs, self.expected = pairs.source, pairs.texts, pairs.references

    def body(self, given: str) -> bytes:
        """Return the body of a request with one text."""
        return json.dumps({"inputs": given}).encode()

    def answer(self, document: Any) -> str:
        """Return the translation."""
        return str(document[0]["translation_text"])

    def quality(self, answers: Sequence[Answer]) -> dict[str, float]:
        """Return BLEU and chrF of all answers together (sacreBLEU, cased and detokenised)."""
        import sacrebleu

        given, expected = [answer.given for answer in answers], [[answer.expected for answer in answers]]
        return {
            "bleu": sacrebleu.corpus_bleu(given, expected).score if given else 0.0,
            "chrf": sacrebleu.corpus_chrf(given, expected).score if given else 0.0,
        }


def share_of_right(answers: Sequence[Answer]) -> float:
    """Return the fraction of right answers."""
    return sum(answer.given == answer.expected for answer in answers) / max(1, len(answers))


TASKS: dict[str, type[ModelTask]] = {kind.name: kind for kind in (TextClassification, ImageClassification, Translation)}
