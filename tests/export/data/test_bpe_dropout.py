"""BPE-dropout changes the pieces of words, reproducibly, and never the words."""

import numpy as np

from export.conversion.golden_texts import GOLDEN_TEXTS, made_up_sentences
from export.data.bpe_dropout import SubwordDropout
from export.data.tokenizers import train_translation_tokenizer
from export.networks.translation import EOS_ID

TEXTS = [*made_up_sentences(200), *GOLDEN_TEXTS, "Öl,  ß und ☃"]
TOKENIZER = train_translation_tokenizer(TEXTS, 500)


def test_without_dropout_the_pieces_are_the_tokenizers() -> None:
    """Every merge is made, in the order of ranks."""
    dropout = SubwordDropout(TOKENIZER, TEXTS, 0.0, end_id=EOS_ID, seed=1)
    assert dropout.encode(np.random.default_rng(1)) == [encoding.ids for encoding in TOKENIZER.encode_batch(TEXTS)]


def test_dropout_changes_pieces_but_not_the_text() -> None:
    """There are more pieces, because merges are skipped; equal seeds give equal ones, another epoch gives others."""
    plain = [encoding.ids for encoding in TOKENIZER.encode_batch(TEXTS)]
    dropout = SubwordDropout(TOKENIZER, TEXTS, 0.1, end_id=EOS_ID, seed=1)
    first = dropout.encode(np.random.default_rng(1))
    assert [TOKENIZER.decode(ids) for ids in first] == [TOKENIZER.decode(ids) for ids in plain]
    assert 1.02 < sum(map(len, first)) / sum(map(len, plain)) < 1.5
    assert dropout.encode(np.random.default_rng(2)) != first
    again = SubwordDropout(TOKENIZER, TEXTS, 0.1, end_id=EOS_ID, seed=1)
    assert again.encode(np.random.default_rng(1)) == first
