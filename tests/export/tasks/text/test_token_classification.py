"""Entities of small random models are those of `transformers`, for each strategy and kind of tokenizer."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForTokenClassification, pipeline

from export.tasks.text.token_classification import token_classifier_of_hugging_face
from service.tasks.text.token_classification import EntityText
from tests.export.tasks.text.small_checkpoints import KINDS, answers_of, labelled, save_checkpoint

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TEXTS = [
    "Ada Lovelace lived in London.",
    "In São Paulo, 東京 and  Zürich \U0001f600 it's warm — isn't it? Ada's dog (Rex) says so.",
    "A wonderful film.\nNot bad at all: well-known, 3.5 of 5!",
]
LONG = " ".join(TEXTS * 4)


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of each family."""
    path = tmp_path_factory.mktemp("tokens") / "mine"
    return save_checkpoint(request.param, AutoModelForTokenClassification, path, **labelled(LABELS))


def close(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Compare the documents of entities."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.pop("score") == pytest.approx(float(theirs.pop("score")), abs=1e-4)
        assert ours == {name: value for name, value in theirs.items() if value is not None}


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_entities_are_those_of_transformers(folder: Path) -> None:
    """Every strategy, several sentences, other scripts, labels to ignore; long texts by strides."""
    source = token_classifier_of_hugging_face(str(folder))
    asking = pipeline("token-classification", model=str(folder))
    task: Any = source.served
    for strategy in ("none", "simple", "first", "average", "max"):
        expected = asking(TEXTS, aggregation_strategy=strategy)
        given = [EntityText(text, strategy) for text in TEXTS]
        for answer, theirs in zip(answers_of(source, given, truncate=True), expected, strict=True):
            close(task.hub_document(answer), theirs)
    only: Any = asking(TEXTS[0], aggregation_strategy="simple", ignore_labels=["PER"])
    (answer,) = answers_of(source, [EntityText(TEXTS[0], "simple", frozenset({"PER"}))])
    close(task.hub_document(answer), only)
    for strategy in ("simple", "average"):
        striding = pipeline("token-classification", model=str(folder), aggregation_strategy=strategy, stride=7)
        (answer,) = answers_of(source, [EntityText(LONG, strategy, stride=7)])  # type: ignore[arg-type]
        close(task.hub_document(answer), striding(LONG))
