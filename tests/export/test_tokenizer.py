"""The tokenizer: both spellings, any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from export.golden_texts import made_up_sentences
from export.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer([*made_up_sentences(300), "do n't", "it 's"], 600, 64)


@pytest.mark.parametrize(
    ("treebank", "everyday"),
    [
        ("it 's good , is n't it ?", "It's good, isn't it?"),
        ("-lrb- a film -rrb-", "(a film)"),
        ("`` great ''", '"great"'),
        ("a  film .", "A film."),
        ("don\u2019t", "don't"),
        ("\ufb01lm", "film"),
    ],
)
def test_treebank_and_everyday_spelling_have_the_same_tokens(treebank: str, everyday: str) -> None:
    """So that a model trained on one serves the other."""
    assert TOKENIZER.encode(treebank).ids == TOKENIZER.encode(everyday).ids


@given(st.text(min_size=1, max_size=60))
def test_any_text_has_tokens(text: str) -> None:
    """No unknown token, and [CLS] first."""
    encoding = TOKENIZER.encode(text)
    assert encoding.tokens[0] == "[CLS]"
    assert all(0 <= number < TOKENIZER.get_vocab_size() for number in encoding.ids)


def test_it_survives_its_file() -> None:
    """The service reads what training wrote."""
    text = "A clever story, sadly far too long."
    assert Tokenizer.from_str(TOKENIZER.to_str()).encode(text).ids == TOKENIZER.encode(text).ids
