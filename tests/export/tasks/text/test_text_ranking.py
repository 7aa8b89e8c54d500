"""Scores of small random cross-encoders are those of `transformers`, by the function that the checkpoint names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from export.conversion.checkpoints.architecture import task_of_checkpoint
from export.conversion.checkpoints.reading import LoadRefused
from export.tasks.text.text_ranking import cross_encoder_of_hugging_face, function_of
from service.tasks.text.ranking import ranked
from service.tasks.text.tokenization import Pair
from tests.export.tasks.text.small_checkpoints import KINDS, answers_of, save_checkpoint

QUERY = "Where did Ada live?"
PASSAGES = ["In London.", "A wonderful film, São Paulo 東京", "The plot makes no sense", "dull " * 60]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    """A sigmoid of the only logit; a long text is cut, longest first."""
    folder = save_checkpoint(
        kind,
        AutoModelForSequenceClassification,
        tmp_path / "mine",
        num_labels=1,
        sentence_transformers={"version": "5"},
    )
    assert task_of_checkpoint(str(folder)) == "text-ranking"
    model, tokenizer = (each.from_pretrained(folder) for each in (AutoModelForSequenceClassification, AutoTokenizer))
    fed = tokenizer(
        [QUERY] * len(PASSAGES), PASSAGES, truncation=True, max_length=40, padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        expected = torch.sigmoid(model.eval()(**fed).logits[:, 0]).numpy()
    assert np.ptp(expected) > 0.01
    answers = answers_of(
        cross_encoder_of_hugging_face(str(folder)), [Pair(QUERY, each) for each in PASSAGES], truncate=True
    )
    document: Any = ranked(answers, PASSAGES, top_k=3)
    assert [each["index"] for each in document] == np.argsort(-expected)[:3].tolist()
    for each in document:
        assert each["score"] == pytest.approx(expected[each["index"]], abs=1e-4)
        assert each["text"] == PASSAGES[each["index"]]


def test_the_function_of_the_checkpoint_is_honoured() -> None:
    """As sentence-transformers reads it, old names included; another function is refused."""
    assert function_of({}, 1) == "sigmoid"
    assert function_of({}, 3) == "none"
    named = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
    assert function_of(named, 1) == "none"
    assert function_of({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}, 2) == "sigmoid"
    with pytest.raises(LoadRefused, match="'my.Own'; Identity, Sigmoid, Softmax of PyTorch are offered"):
        function_of({"sentence_transformers": {"activation_fn": "my.Own"}}, 1)
