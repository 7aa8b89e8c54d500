"""Fillings of gaps are those of the pipeline of `transformers`."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from export.tasks.text.fill_mask import masked_language_model_of_hugging_face
from service.tasks.text.fill_mask import MaskedText
from tests.export.tasks.text.small_checkpoints import KINDS, answers_of, save_checkpoint

TEXTS = ["A {} film, isn't it?", "São Paulo and {} are {}, 東京!", "The plot makes no {}."]


@pytest.mark.parametrize("kind", KINDS)
def test_fillings_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    """One gap and several, fewer fillings, and targets that are tokens or only begin with one."""
    folder = save_checkpoint(kind, AutoModelForMaskedLM, tmp_path / "mine")
    mask = AutoTokenizer.from_pretrained(folder).mask_token
    texts = [text.replace("{}", mask) for text in TEXTS]
    source: Any = masked_language_model_of_hugging_face(str(folder))
    asking = pipeline("fill-mask", model=str(folder))
    for options in ({}, {"top_k": 2}, {"targets": ["film", "wonderfully", "dull", "film"], "top_k": 9}):
        more: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in options.items()}
        answers = answers_of(source, [MaskedText(text, **more) for text in texts])
        for answer, theirs in zip(answers, asking(texts, **options), strict=True):
            gaps = theirs if isinstance(theirs[0], list) else [theirs]
            assert len(answer) == len(gaps)
            for fillings, expected in zip(answer, gaps, strict=True):
                assert [each.score for each in fillings] == pytest.approx(
                    [each["score"] for each in expected], abs=1e-4
                )
                for ours, other in zip(fillings, expected, strict=True):
                    assert (ours.token, ours.token_str, ours.sequence) == (
                        other["token"], other["token_str"], other["sequence"]
                    )  # fmt: skip
