"""Texts are tokenized within limits of tokens and characters."""

import threading
import time

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from service.errors import InvalidRequest
from service.tasks.text.tokenization import CHARACTERS_PER_TOKEN, TextEncoder
from tests.conftest import ROOT


def encoder_of(max_tokens: int) -> TextEncoder:
    """Make an encoder that knows two words and an unknown token."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "good": 1, "film": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return TextEncoder(tokenizer.to_str(), max_tokens)


def test_texts_become_ids_in_their_order() -> None:
    """This holds for any number of texts."""
    encoded = encoder_of(3).encode(["good film", "film"], truncate=False, field="text[{}]")
    assert encoded == [([1, 2], False), ([2], False)]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["good", " \n"], r"text\[1\] is empty"),
        (["good", "good " * 4], r"text\[1\] has 4 tokens, the model takes at most 3; shorten it"),
        (["x" * (3 * CHARACTERS_PER_TOKEN + 1)], r"text\[0\] has 97 characters, .* at most 96 \(3 tokens\)"),
    ],
)
def test_texts_beyond_a_limit_are_refused_by_their_index(texts: list[str], expected: str) -> None:
    """Empty texts and texts with too many tokens or characters are refused."""
    with pytest.raises(InvalidRequest, match=expected):
        encoder_of(3).encode(texts, truncate=False, field="text[{}]")


def test_a_text_that_leaves_nothing_to_read_is_refused() -> None:
    """A text that becomes only special tokens is refused, or it would get an arbitrary answer."""
    encoder = TextEncoder((ROOT / "model_store/sentiment-small/1/tokenizer.json").read_text(), 8)
    for text in ("\u200b", "\x00", "\u0301"):
        with pytest.raises(InvalidRequest, match=r"text\[1\] has no character that the model can read"):
            encoder.encode(["good", text], truncate=False, field="text[{}]")
    late = " " * 8 * CHARACTERS_PER_TOKEN + "good"
    with pytest.raises(InvalidRequest, match="inputs has no character in its first 256 characters, all that is left"):
        encoder.encode([late], truncate=True, field="inputs")


def test_texts_are_cut_to_both_limits_only_if_asked() -> None:
    """Texts are cut to the limits of characters and tokens, and only those are marked as truncated."""
    texts = ["good", "good " * 4, "film" + " " * 3 * CHARACTERS_PER_TOKEN + "good"]
    encoded = encoder_of(3).encode(texts, truncate=True, field="text")
    assert encoded == [([1], False), ([1, 1, 1], True), ([2], True)]


def test_other_threads_run_while_texts_are_tokenized() -> None:
    """Other threads never wait half as long as the tokenization takes."""
    encoder = encoder_of(100_000)
    tokenizing = threading.Thread(
        target=encoder.encode, args=(["good film " * 40_000],), kwargs={"truncate": False, "field": "text"}
    )
    longest_s, started_s = 0.0, time.perf_counter()
    tokenizing.start()
    turn_s = started_s
    while tokenizing.is_alive():
        longest_s, turn_s = max(longest_s, time.perf_counter() - turn_s), time.perf_counter()
    assert longest_s < 0.5 * (time.perf_counter() - started_s)


def test_spans_are_where_the_tokens_stand() -> None:
    """Each id has a span, in whole and in truncated texts; special tokens have none."""
    encoder = encoder_of(3)
    assert encoder.spans("good  film", truncate=False) == [(0, 4), (6, 10)]
    assert encoder.spans("film film film good", truncate=True) == [(0, 4), (5, 9), (10, 14)]
    committed = TextEncoder((ROOT / "model_store/sentiment-small/1/tokenizer.json").read_text(), 512)
    text = "I don't like it."
    (encoded,) = committed.encode([text], truncate=False, field="text")
    spans = committed.spans(text, truncate=False)
    assert len(spans) == len(encoded.ids)
    assert spans[0] is spans[-1] is None
    assert [text[span[0] : span[1]] for span in spans if span] == ["I", "don", "'", "t", "like", "it", "."]
