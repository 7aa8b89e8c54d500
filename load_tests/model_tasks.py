"""What is sent to models of one kind, how their answers are read, and what the answers are worth.

Requests and answers are those of the Hugging Face task API, which every target (`targets.py`) takes.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from load_tests.material import load_images, load_sentences, load_translations


class Answer(NamedTuple):
    """An answer beside the one that was expected."""

    given: str
    expected: str


class ModelTask(Protocol):
    """A kind of model."""

    name: str
    source: str  # where the inputs come from
    inputs: Sequence[Any]
    expected: Sequence[str]  # of each input; empty where nobody has labelled them
    content_type: str

    def body(self, given: Any) -> bytes:
        """The body of a request."""

    def answer(self, document: Any) -> str:
        """What was answered."""

    def quality(self, answers: Sequence[Answer]) -> dict[str, float]:
        """What the answers were worth."""


class TextClassification:
    """Sentences to labels."""

    name = "text-classification"
    content_type = "application/json"

    def __init__(self) -> None:
        sentences = load_sentences()
        self.source, self.inputs, self.expected = sentences.source, sentences.texts, sentences.labels

    def body(self, given: str) -> bytes:
        """One text."""
        return json.dumps({"inputs": given}).encode()

    def answer(self, document: Any) -> str:
        """The best label."""
        return str(document[0][0]["label"])

    def quality(self, answers: Sequence[Answer]) -> dict[str, float]:
        """The share of right labels."""
        return {"accuracy": share_of_right(answers)}


class ImageClassification:
    """Image files to labels."""

    name = "image-classification"
    content_type = "image/png"

    def __init__(self) -> None:
        images = load_images()
        self.source, self.inputs, self.expected = images.source, images.files, images.labels

    def body(self, given: bytes) -> bytes:
        """The file itself."""
        return given

    def answer(self, document: Any) -> str:
        """The best label."""
        return str(document[0]["label"])

    def quality(self, answers: Sequence[Answer]) -> dict[str, float]:
        """The share of right labels."""
        return {"accuracy": share_of_right(answers)}


class Translation:
    """English sentences to German ones, by greedy search."""

    name = "translation"
    content_type = "application/json"

    def __init__(self) -> None:
        pairs = load_translations()
        self.source, self.inputs, self.expected = pairs.source, pairs.texts, pairs.references

    def body(self, given: str) -> bytes:
        """One text."""
        return json.dumps({"inputs": given}).encode()

    def answer(self, document: Any) -> str:
        """The translation."""
        return str(document[0]["translation_text"])

    def quality(self, answers: Sequence[Answer]) -> dict[str, float]:
        """BLEU and chrF of all answers together (sacreBLEU, cased and detokenised)."""
        import sacrebleu

        given, expected = [answer.given for answer in answers], [[answer.expected for answer in answers]]
        return {
            "bleu": sacrebleu.corpus_bleu(given, expected).score if given else 0.0,
            "chrf": sacrebleu.corpus_chrf(given, expected).score if given else 0.0,
        }


def share_of_right(answers: Sequence[Answer]) -> float:
    """Of all answers."""
    return sum(answer.given == answer.expected for answer in answers) / max(1, len(answers))


TASKS: dict[str, type[ModelTask]] = {kind.name: kind for kind in (TextClassification, ImageClassification, Translation)}
