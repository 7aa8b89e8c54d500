"""Augmentation of training texts for distillation."""

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from export.data.text_augmentation import NUM_NEIGHBOURS, augment_texts, neighbours_of

TEXTS = [f"one{number} two{number} three{number} four{number}" for number in range(500)]


def test_fractions_of_zero_change_nothing() -> None:
    """Equal generators give equal texts."""
    assert augment_texts(TEXTS, np.random.default_rng(1), drop_fraction=0.0, join_fraction=0.0) == TEXTS
    fractions = {"drop_fraction": 0.3, "join_fraction": 0.3}
    first, second = (augment_texts(TEXTS, np.random.default_rng(1), **fractions) for _ in range(2))
    assert first == second != TEXTS


def test_the_fractions_are_kept() -> None:
    """A third of the words is dropped, half of the texts is joined, and no text is empty."""
    dropped = augment_texts(TEXTS, np.random.default_rng(2), drop_fraction=1 / 3, join_fraction=0.0)
    assert 0.6 < sum(len(text.split()) for text in dropped) / 2000 < 0.73
    joined = augment_texts(TEXTS, np.random.default_rng(2), drop_fraction=0.0, join_fraction=0.5)
    assert 0.4 < sum(len(text.split()) == 8 for text in joined) / 500 < 0.6
    assert all(text.startswith(before) for text, before in zip(joined, TEXTS, strict=True))
    assert all(augment_texts(TEXTS, np.random.default_rng(2), drop_fraction=1.0, join_fraction=0.0))


def test_words_are_replaced_only_by_their_neighbours() -> None:
    """A quarter of the words that have neighbours is replaced; the others stay."""
    neighbours = {f"two{number}": ["zwei", "deux"] for number in range(500)}
    changed = augment_texts(
        TEXTS,
        np.random.default_rng(3),
        drop_fraction=0.0,
        join_fraction=0.0,
        replace_fraction=0.25,
        neighbours=neighbours,
    )
    replaced = 0
    for text, before in zip(changed, TEXTS, strict=True):
        (one, two, *rest), (one_before, two_before, *rest_before) = text.split(), before.split()
        assert (one, rest) == (one_before, rest_before)
        assert two in ("zwei", "deux", two_before)
        replaced += two != two_before
    assert 0.18 < replaced / 500 < 0.32


def test_neighbours_have_similar_vectors() -> None:
    """The words lie in two directions.

    A word's neighbours share its direction, and never include itself or a word that is no candidate.
    """
    words = [f"left{number}" for number in range(20)] + [f"right{number}" for number in range(20)]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="left0"))
    generator = torch.Generator().manual_seed(0)
    vectors_VD = torch.cat([torch.tensor([[1.0, 0.0]]).repeat(20, 1), torch.tensor([[0.0, 3.0]]).repeat(20, 1)])
    vectors_VD = vectors_VD + 0.1 * torch.rand(40, 2, generator=generator)
    found = neighbours_of(["left1", "right7", "unknown"], words, tokenizer, vectors_VD)
    assert found.keys() == {"left1", "right7"}
    for word, direction in (("left1", "left"), ("right7", "right")):
        assert len(found[word]) == NUM_NEIGHBOURS
        assert word not in found[word]
        assert all(other.startswith(direction) for other in found[word])
    few = [f"left{number}" for number in range(18)]
    assert set(neighbours_of(["left1"], few, tokenizer, vectors_VD)["left1"]) <= set(few)
    assert neighbours_of(["left1"], few[:3], tokenizer, vectors_VD) == {}
