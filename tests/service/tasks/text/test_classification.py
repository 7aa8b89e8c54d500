"""Texts become ids and logits become labels, without a model."""

import math

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from service.errors import InvalidRequest
from service.tasks.classification import scores_of
from service.tasks.task import AnswerOptions
from service.tasks.text.classification import TextClassification
from service.tasks.text.tokenization import Pair
from tests.service.tasks.text.small_tokenizer import ARGUMENTS, small_tokenizer


@pytest.fixture
def task() -> TextClassification:
    """Make a task with four words, begin and end marks, and at most five tokens."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "good", "bad", "film", "very"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    graph_inputs = ["input_ids", "attention_mask", "token_type_ids"]
    return TextClassification(
        tokenizer.to_str(), labels=["NO", "YES"], max_tokens=5, pad_id=0, graph_inputs=graph_inputs
    )


def test_a_text_within_the_limit_is_whole(task: TextClassification) -> None:
    """A text becomes its tokens with the marks around them."""
    tokens = task.preprocess("very good film", truncate=False, field="text")
    assert (tokens.ids, tokens.truncated, tokens.length) == ([1, 7, 4, 6, 2], False, 5)


def test_a_text_beyond_the_limit_is_refused_or_truncated(task: TextClassification) -> None:
    """A long text is cut only on request, marked as truncated, and keeps its end mark."""
    with pytest.raises(InvalidRequest, match="inputs has 6 tokens, the model takes at most 5"):
        task.preprocess("very very good film", truncate=False, field="inputs")
    tokens = task.preprocess("very very good film", truncate=True, field="inputs")
    assert (tokens.ids, tokens.truncated) == ([1, 7, 7, 4, 2], True)


def test_rows_are_padded_to_the_longest_and_masked(task: TextClassification) -> None:
    """The feeds are ids, mask and segment ids, int64."""
    items = [task.preprocess(text, truncate=False, field="text") for text in ("good", "very bad film")]
    feeds = task.collate(items)
    assert feeds["input_ids"].tolist() == [[1, 4, 2, 0, 0], [1, 7, 5, 6, 2]]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert feeds["token_type_ids"].tolist() == [[0] * 5] * 2
    assert {array.dtype for array in feeds.values()} == {np.dtype(np.int64)}


def test_scores_are_ordered_and_named(task: TextClassification) -> None:
    """The answer has as many classes as requested, most probable first."""
    answer = task.finish(np.array([1.0, 3.0], np.float32))
    assert answer.labels == ["YES", "NO"]
    assert answer.scores == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))])
    assert task.finish(np.array([1.0, 3.0], np.float32), AnswerOptions(top_k=1)).labels == ["YES"]


@pytest.mark.parametrize("logits", [[-95.0, -5.0], [1000.0, -1000.0], [0.0, 0.0], [-1e30, 1e30]])
def test_scores_stay_finite_for_extreme_logits(logits: list[float]) -> None:
    """Extreme logits give no overflow or NaN, and softmax sums to one."""
    softmax, sigmoid = scores_of(logits, "softmax"), scores_of(logits, "sigmoid")
    assert math.fsum(softmax) == pytest.approx(1.0)
    assert all(0.0 <= score <= 1.0 for score in softmax + sigmoid)
    assert scores_of(logits, "none") == logits


def test_a_pair_is_explained_by_the_words_of_both_texts() -> None:
    """Characters count over both texts; a part keeps the type of each of its tokens."""
    task = TextClassification(small_tokenizer().to_str(), labels=["NO", "YES"], **ARGUMENTS)
    pair = Pair("ada lived", "in london")
    item = task.preprocess(pair, truncate=False, field="text")
    parts = task.parts(pair, item, truncate=False, field="text", max_image_pixels=1, memory=None)
    words = [parts.text[slice(*span)] for span in parts.spans if span is not None]
    assert words == ["ada", "lived", "in", "london"]
    function = task.value_function(item, np.array([0, 1], np.float32), None)
    part = function.item_of([place for place in parts.ids if place not in (1, 5)])
    assert part.type_ids == [0, 0, 0, 1, 1]
    assert task.encoder.names(part.ids) == ["[CLS]", "lived", "[SEP]", "in", "[SEP]"]
    assert function.item_of([]).ids == [task.pad_id]
