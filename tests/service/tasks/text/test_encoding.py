"""Texts and pairs become batches of ids, without a model."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from service.errors import InvalidRequest
from service.tasks.stored_task import TaskError
from service.tasks.text.classification import TextClassification
from service.tasks.text.encoding import Tokens
from service.tasks.text.tokenization import Pair
from service.tensors import bytes_array

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "good", "bad", "film", "very"]


def make_task(pair: str | None = "[CLS] $A [SEP] $B:1 [SEP]:1") -> TextClassification:
    """Make a task with four words and at most eight tokens; `pair` is the template of pairs."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("[CLS]", 1), ("[SEP]", 2)]
    template = {"pair": pair} if pair else {}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=special, **template
    )
    graph_inputs = ["input_ids", "attention_mask", "token_type_ids"]
    return TextClassification(
        tokenizer.to_str(), labels=["NO", "YES"], max_tokens=8, pad_id=0, graph_inputs=graph_inputs
    )


def test_texts_and_pairs_share_a_batch_in_their_order() -> None:
    """Token types are 1 for the second text of a pair, and 0 for all else."""
    task = make_task()
    texts = ["good", Pair("bad film", "very good"), Pair("good", "bad"), "very bad"]
    items = task.preprocess_all(texts, truncate=False, field="text[{}]")
    feeds = task.collate(items)
    assert feeds["input_ids"].tolist() == [
        [1, 4, 2, 0, 0, 0, 0],
        [1, 5, 6, 2, 7, 4, 2],
        [1, 4, 2, 5, 2, 0, 0],
        [1, 7, 5, 2, 0, 0, 0],
    ]
    assert feeds["token_type_ids"].tolist() == [[0] * 7, [0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0], [0] * 7]
    assert feeds["attention_mask"].sum(axis=1).tolist() == [3, 7, 5, 4]


@pytest.mark.parametrize(
    ("pair", "why"),
    [
        (Pair("", "good"), r"the first text of text\[4\] is empty"),
        (Pair("good", " "), r"the second text of text\[4\] is empty"),
        (Pair("very very good film", "bad film"), r"text\[4\] has 9 tokens, the model takes at most 8"),
        (Pair("x" * 200, "y" * 100), r"text\[4\] has 300 characters, the model takes at most 256"),
    ],
)
def test_a_wrong_pair_is_refused_by_its_number(pair: Pair, why: str) -> None:
    """The message names the limit."""
    with pytest.raises(InvalidRequest, match=why):
        make_task().preprocess_all(["good"] * 4 + [pair], truncate=False, field="text[{}]")


def test_the_longer_text_of_a_pair_is_cut() -> None:
    """Only on request; the item says so."""
    item = make_task().preprocess(Pair("very very good film", "bad film"), truncate=True, field="text")
    assert (item.ids, item.truncated) == ([1, 7, 7, 4, 2, 5, 6, 2], True)


def test_pairs_need_a_separator() -> None:
    """A tokenizer without a template for pairs would make one text of both."""
    task = make_task(pair=None)
    assert task.optional_inputs == ()
    with pytest.raises(InvalidRequest, match=r"text\[0\] is a pair of texts; the model takes single texts"):
        task.preprocess_all([Pair("good", "bad")], truncate=False, field="text[{}]")


def test_tensors_of_pairs_have_equal_lengths() -> None:
    """The second tensor is optional."""
    task = make_task()
    text, pair = bytes_array([b"good", b"bad"]), bytes_array([b"film", b"very"])
    assert task.read({"text": text}) == ["good", "bad"]
    assert task.read({"text": text, "text_pair": pair}) == [Pair("good", "film"), Pair("bad", "very")]
    with pytest.raises(InvalidRequest, match="text has 2 elements, text_pair has 1"):
        task.read({"text": text, "text_pair": pair[:1]})
    with pytest.raises(InvalidRequest, match=r"text_pair\[0\] is not UTF-8"):
        task.read({"text": text[:1], "text_pair": bytes_array([b"\xff"])})


class Golden:
    """A golden example of a pair."""

    def __init__(self, type_ids: list[int]) -> None:
        self.outputs = {"logits": [0.0, 0.0]}
        self.inputs = {"text": "good", "text_pair": "bad"}
        self.tensors: dict[str, list[int] | str] = {"input_ids": [1, 4, 2, 5, 2], "token_type_ids": type_ids}


def test_the_types_of_a_golden_pair_must_agree() -> None:
    """Types are part of what the network was trained with."""
    task = make_task()
    assert task.golden_item(Golden([0, 0, 0, 1, 1])) == Tokens([1, 4, 2, 5, 2], False, [0, 0, 0, 1, 1])
    with pytest.raises(TaskError, match="other token types"):
        task.golden_item(Golden([0, 0, 0, 0, 0]))


def test_a_graph_without_types_gets_none() -> None:
    """RoBERTa and DistilBERT have no such input."""
    task = TextClassification(
        make_task().encoder.tokenizer.to_str(),
        labels=["NO", "YES"],
        max_tokens=8,
        pad_id=0,
        graph_inputs=["input_ids", "attention_mask"],
    )
    feeds = task.collate([task.preprocess(Pair("good", "bad"), truncate=False, field="text")])
    assert list(feeds) == ["input_ids", "attention_mask"]
    assert all(array.dtype == np.int64 for array in feeds.values())
