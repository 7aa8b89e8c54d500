"""Scores of labels that a request brings are those of the pipeline of `transformers`."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification, pipeline

from export.conversion.checkpoints.reading import LoadRefused
from export.tasks.text.zero_shot_classification import entailment_model_of_hugging_face
from service.tasks.text.zero_shot import LabelledText
from tests.export.tasks.text.small_checkpoints import answers_of, labelled, save_checkpoint

TEXTS = ["My phone is broken, sadly.", "São Paulo, 東京 \U0001f600", "The plot makes no sense. " * 12]
LABELS = ["urgent", "not urgent", "phone", "Zürich"]
TEMPLATE = "It is {}, isn't it?"


@pytest.mark.parametrize(
    ("kind", "classes"),
    [
        ("bert", ["contradiction", "neutral", "entailment"]),
        ("roberta", ["ENTAILMENT", "not_entailment"]),
        ("xlm-roberta", ["no", "entail"]),
    ],
)
def test_scores_are_those_of_transformers(kind: str, classes: list[str], tmp_path: Path) -> None:
    """One label of many, several labels, one label alone, and a template; a long text is cut, no label is."""
    folder = save_checkpoint(kind, AutoModelForSequenceClassification, tmp_path / "mine", **labelled(classes))
    asking = pipeline("zero-shot-classification", model=str(folder))
    source = entailment_model_of_hugging_face(str(folder))
    cases: list[dict[str, Any]] = [
        {"candidate_labels": LABELS},
        {"candidate_labels": LABELS, "multi_label": True, "hypothesis_template": TEMPLATE},
        {"candidate_labels": ["phone"]},
    ]
    for case in cases:
        more = {"template": case["hypothesis_template"]} if "hypothesis_template" in case else {}
        given = [
            LabelledText(text, case["candidate_labels"], multi_label=case.get("multi_label", False), **more)
            for text in TEXTS
        ]
        answers = answers_of(source, given, truncate=True)
        for answer, theirs in zip(answers, asking(TEXTS, **case), strict=True):
            assert answer.labels == theirs["labels"]
            assert answer.scores == pytest.approx(theirs["scores"], abs=1e-4)


def test_a_classifier_without_entailment_is_refused(tmp_path: Path) -> None:
    """The message names the classes."""
    folder = save_checkpoint(
        "bert", AutoModelForSequenceClassification, tmp_path / "mine", **labelled(["bad", "mixed", "good"])
    )
    with pytest.raises(LoadRefused, match="the classes are bad, mixed, good; zero-shot classification needs one"):
        entailment_model_of_hugging_face(str(folder))
