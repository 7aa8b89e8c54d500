"""Words with their tokens, patches of an image, and inputs without some of them."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from service.explanation.methods.features import Patches, Words, words_of
from tests.conftest import ROOT


def words_in(text: str, model: str = "sentiment-small") -> tuple[Words, Tokenizer]:
    """Return the words of a text with the tokens of a committed model's tokenizer."""
    tokenizer = Tokenizer.from_file(str(ROOT / "model_store" / model / "1/tokenizer.json"))
    encoding = tokenizer.encode(text)
    special = encoding.special_tokens_mask
    spans = [None if mask else span for span, mask in zip(encoding.offsets, special, strict=True)]
    return Words(text, encoding.ids, spans), tokenizer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A fine film.", ["A", "fine", "film", "."]),
        ("I don't -- well-known!?", ["I", "don't", "--", "well-known", "!?"]),
        ("3.5 of 1,000, (yes)", ["3.5", "of", "1,000", ",", "(", "yes", ")"]),
        ("\u6771\u4eac is big", ["\u6771", "\u4eac", "is", "big"]),
        ("\u0939\u093f\u0928\u094d\u0926\u0940 \u0939\u0948", ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u0939\u0948"]),
        ("  two\n\nlines ", ["two", "lines"]),
        ("", []),
    ],
)
def test_words_and_marks_stand_apart(text: str, expected: list[str]) -> None:
    """Words are found in any script, with their character offsets."""
    found = list(words_of(text))
    assert [word.text for word in found] == expected
    assert [text[word.start : word.end] for word in found] == expected


@pytest.mark.parametrize("model", ["sentiment", "sentiment-small", "translation-en-de"])
def test_a_word_takes_all_its_tokens_with_it(model: str) -> None:
    """Without some words the ids are those of the other words; special tokens stay."""
    text = "I don't like the caf\u00e9's dreadful-ish film."
    words, tokenizer = words_in(text, model)
    assert [word.text for word in words.words] == [
        "I",
        "don't",
        "like",
        "the",
        "caf\u00e9's",
        "dreadful-ish",
        "film",
        ".",
    ]
    everything = np.ones(words.num_features, dtype=bool)
    assert words.part(everything) == tokenizer.encode(text).ids
    assert words.part(~everything) == tokenizer.encode("").ids
    for number, rest in ((1, "I like the caf\u00e9's dreadful-ish film."), (5, "I don't like the caf\u00e9's film.")):
        kept = everything.copy()
        kept[number] = False
        assert words.part(kept) == tokenizer.encode(rest).ids


def test_what_a_token_holds_together_is_one_feature() -> None:
    """A token across two words joins them; truncated words are dropped; a token of spaces belongs to the next word."""
    text = "one, two three"
    spans = [None, (0, 4), (4, 5), (5, 8)]
    words = Words(text, [9, 1, 2, 3], spans)
    assert [(word.text, word.start, word.end) for word in words.words] == [("one,", 0, 4), ("two", 5, 8)]
    assert words.part(np.array([True, False])) == [9, 1]
    assert words.part(np.array([False, True])) == [9, 2, 3]


@pytest.mark.parametrize("size", [(32, 32), (30, 17), (5, 40)])
def test_a_patch_becomes_the_mean_colour_and_nothing_else_changes(size: tuple[int, int]) -> None:
    """The patches partition an image of any size."""
    pixels_CHW = np.random.default_rng(0).normal(size=(3, *size)).astype(np.float32)
    patches = Patches(pixels_CHW)
    everything = np.ones(patches.num_features, dtype=bool)
    np.testing.assert_array_equal(patches.part(everything), pixels_CHW)
    mean_C = pixels_CHW.mean(axis=(1, 2))
    np.testing.assert_array_equal(patches.part(~everything), np.broadcast_to(mean_C[:, None, None], (3, *size)))
    changed_HW = np.zeros(size, dtype=int)
    for number in range(patches.num_features):
        kept = everything.copy()
        kept[number] = False
        changed_HW += (patches.part(kept) != pixels_CHW).any(axis=0)
    assert (changed_HW == 1).all()
