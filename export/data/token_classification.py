"""Texts with labelled spans, such as names of people and places, and the tags of their words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

OUTSIDE, BEGIN, INSIDE = "O", "B-", "I-"

Word = tuple[int, int]  # begin and end in characters of the text; the end is not part of it


class Entity(NamedTuple):
    """A labelled span, in characters of its text; `end` is the first character behind it."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class LabelledEntities:
    """One split: texts, their words, and their entities, in the data set's order.

    The words of a text follow one another, and an entity begins and ends where a word does.
    """

    texts: list[str]
    words: list[list[Word]]
    entities: list[list[Entity]]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def inputs(self) -> list[str]:
        """The texts as a client would send them."""
        return self.texts


@dataclass(frozen=True)
class TokenClassificationData:
    """A data set for token classification; `label_names` are the kinds of entities.

    `validation` chooses epochs and seeds, `test` chooses nothing. `document` records where the data comes from, so that
    `rebuild_entities` (export/data/own/entities.py) reads the same splits again.
    """

    name: str
    label_names: list[str]
    train: LabelledEntities
    validation: LabelledEntities
    test: LabelledEntities | None = None
    document: dict[str, Any] | None = None

    @property
    def reported(self) -> LabelledEntities:
        """The split that figures are reported on: the test split, if there is one."""
        return self.validation if self.test is None else self.test

    @property
    def reported_name(self) -> str:
        """The name of the split that figures are reported on."""
        return "validation" if self.test is None else "test"

    @property
    def tag_names(self) -> list[str]:
        """The classes of a token by number: O, then B- and I- of each label (BIO, also called IOB2)."""
        return [OUTSIDE, *(prefix + label for label in self.label_names for prefix in (BEGIN, INSIDE))]


def bio_tags(words: Sequence[Word], entities: Sequence[Entity]) -> list[str]:
    """Return the BIO tag of each word, or of each token by its characters; it is tagged if it overlaps an entity."""
    tags = []
    last: Entity | None = None
    for start, end in words:
        found = next((each for each in entities if each.start < end and start < each.end), None)
        if found is None:
            tags.append(OUTSIDE)
        else:
            tags.append((INSIDE if found == last else BEGIN) + found.label)
        last = found
    return tags


def entities_of_tags(tags: Sequence[str], words: Sequence[Word]) -> list[Entity]:
    """Return the entities that tags say, by the rules of CoNLL's own scorer (`conlleval`).

    IOB1, IOB2 (BIO), BIOES and BILOU are read alike: an entity begins at B-, S- or U-, or at I-, E- or L- that does not
    continue an entity of the same label; it ends after E-, L-, S- or U-, or where the next word does not continue it.
    """
    entities: list[Entity] = []
    open_label: str | None = None
    for tag, (start, end) in zip(tags, words, strict=True):
        prefix, _, label = tag.partition("-")
        if tag == OUTSIDE:
            open_label = None
            continue
        if prefix in "IEL" and label == open_label:
            entities[-1] = entities[-1]._replace(end=end)
        else:
            entities.append(Entity(start, end, label))
        open_label = None if prefix in "ELSU" else label
    return entities
