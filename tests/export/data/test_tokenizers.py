"""Trained tokenizers read both spellings and any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from export.conversion.golden_texts import made_up_sentences
from export.data.tokenizers import train_tokenizer, with_everyday_spelling

TOKENIZER = train_tokenizer([*made_up_sentences(300), "do n't", "it 's"], 600)


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
    """A model trained on one spelling therefore serves the other."""
    assert TOKENIZER.encode(treebank).ids == TOKENIZER.encode(everyday).ids


def test_a_pre_trained_tokenizer_reads_treebank_text_in_everyday_spelling() -> None:
    """It gives its own words for what the treebank spells differently."""
    words = ["[UNK]", "don", "'", "t", "(", "film", ")", "!"]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    assert tokenizer.encode("do n't").tokens == ["[UNK]", "[UNK]", "'", "t"]
    tokenizer = with_everyday_spelling(tokenizer)
    assert tokenizer.encode("do n't -lrb- film -rrb- !").tokens == ["don", "'", "t", "(", "film", ")", "!"]
    assert tokenizer.encode("Don\u2019t (film)!").tokens == ["don", "'", "t", "(", "film", ")", "!"]


@given(st.text(min_size=1, max_size=60))
def test_any_text_has_tokens(text: str) -> None:
    """There is no unknown token, and [CLS] comes first."""
    encoding = TOKENIZER.encode(text)
    assert encoding.tokens[0] == "[CLS]"
    assert all(0 <= number < TOKENIZER.get_vocab_size() for number in encoding.ids)


def test_a_saved_tokenizer_loads_unchanged() -> None:
    """The service reads what training wrote."""
    text = "A clever story, sadly far too long."
    assert Tokenizer.from_str(TOKENIZER.to_str()).encode(text).ids == TOKENIZER.encode(text).ids
