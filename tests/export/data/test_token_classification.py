"""Tags of words and spans of texts are two forms of one thing."""

import pytest

from export.data.token_classification import (
    Entity,
    LabelledEntities,
    TokenClassificationData,
    bio_tags,
    entities_of_tags,
)

WORDS = [(0, 4), (5, 8), (9, 14), (15, 20), (21, 23)]


@pytest.mark.parametrize(
    "tags",
    [
        ["B-PER", "I-PER", "O", "B-LOC", "B-LOC"],  # BIO
        ["I-PER", "I-PER", "O", "I-LOC", "B-LOC"],  # IOB1
        ["B-PER", "E-PER", "O", "S-LOC", "S-LOC"],  # BIOES
        ["B-PER", "L-PER", "O", "U-LOC", "U-LOC"],  # BILOU
    ],
)
def test_every_scheme_says_the_same_entities(tags: list[str]) -> None:
    """And BIO is written from them."""
    entities = entities_of_tags(tags, WORDS)
    assert entities == [Entity(0, 8, "PER"), Entity(15, 20, "LOC"), Entity(21, 23, "LOC")]
    assert bio_tags(WORDS, entities) == ["B-PER", "I-PER", "O", "B-LOC", "B-LOC"]


def test_a_tag_inside_that_continues_nothing_begins_an_entity() -> None:
    """As CoNLL's scorer has it; a model may answer so."""
    tags = ["I-LOC", "I-PER", "I-PER", "O", "E-LOC"]
    assert entities_of_tags(tags, WORDS) == [Entity(0, 4, "LOC"), Entity(5, 14, "PER"), Entity(21, 23, "LOC")]
    assert entities_of_tags(["O"] * 5, WORDS) == []


def test_labels_with_hyphens_are_whole() -> None:
    """Only the first hyphen separates the prefix."""
    assert entities_of_tags(["B-work-of-art", *["O"] * 4], WORDS) == [Entity(0, 4, "work-of-art")]


def test_tokens_that_overlap_an_entity_are_tagged() -> None:
    """Tokens of a model are shorter or longer than words."""
    assert bio_tags([(0, 2), (2, 6), (6, 12)], [Entity(0, 4, "PER")]) == ["B-PER", "I-PER", "O"]


def test_classes_are_counted_from_o() -> None:
    """Two for each label."""
    part = LabelledEntities(["x"], [[(0, 1)]], [[]])
    assert TokenClassificationData("a", ["LOC", "PER"], part, part).tag_names == [
        "O",
        "B-LOC",
        "I-LOC",
        "B-PER",
        "I-PER",
    ]
    assert part.inputs == ["x"] and len(part) == 1
