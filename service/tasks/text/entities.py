"""Scores of tokens to entities: the strategies of `transformers`' TokenClassificationPipeline, version 5.

    scores of tokens ── none ──> the label of each token
                     ── simple ──────────────────────────────────────────> neighbours with one label
                     ── first, average, max ──> one label for each word ──> neighbours with one label

A word is what the tokenizer of the model makes of it. WordPiece marks the tokens that continue a word; for other
tokenizers a word begins behind a space.

Shapes: T tokens, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Strategy = Literal["none", "simple", "first", "average", "max"]


@dataclass(frozen=True, slots=True)
class Entity:
    """A token, or a group of tokens with one label.

    Attributes:
        label: the label; of a group without the prefix B- or I-.
        score: its probability, or the mean of the tokens' or words' probabilities.
        word: the text that the tokens stand for.
        start: its first character.
        end: the character after its last.
        index: place of the token in the ids of the text; None for a group.
    """

    label: str
    score: float
    word: str
    start: int
    end: int
    index: int | None = None

    def document(self) -> dict[str, Any]:
        """Return the entity as the task API writes it."""
        if self.index is not None:
            kind: dict[str, Any] = {"entity": self.label, "score": self.score, "index": self.index}
        else:
            kind = {"entity_group": self.label, "score": self.score}
        return kind | {"word": self.word, "start": self.start, "end": self.end}


class TokenScores(NamedTuple):
    """A token with its scores.

    Attributes:
        word: the tokenizer's name of the token; the text itself for an unknown token.
        scores_C: probabilities of the classes.
        start: its first character.
        end: the character after its last.
        place: its place in the ids of the text.
        continues: whether it belongs to the word of the token before it.
    """

    word: str
    scores_C: NDArray[np.float32]
    start: int
    end: int
    place: int
    continues: bool


class _Labelled(NamedTuple):
    """A token or word with the label that its scores give it."""

    label: str
    score: float
    word: str
    start: int
    end: int
    place: int


class _TokenizerModel(msgspec.Struct):
    unk_token: str | None = None
    unk_id: int | None = None


class _TokenizerFile(msgspec.Struct):
    model: _TokenizerModel


class EntityGrouping:
    """Groups the tokens of a text into entities."""

    def __init__(self, tokenizer: Tokenizer, tokenizer_json: str, labels: Sequence[str]) -> None:
        """Set up.

        Args:
            tokenizer: the model's tokenizer.
            tokenizer_json: contents of its `tokenizer.json`.
            labels: names of the classes, in the order of their numbers.
        """
        self._tokenizer, self._labels = tokenizer, list(labels)
        model: Any = tokenizer.model
        self._marks_words = bool(getattr(model, "continuing_subword_prefix", None))
        named = msgspec.json.decode(tokenizer_json, type=_TokenizerFile).model
        # Models of SentencePiece have the number of the unknown token, others its name.
        self._unknown_id = named.unk_id if named.unk_token is None else tokenizer.token_to_id(named.unk_token)

    def tokens(
        self,
        text: str,
        ids: Sequence[int],
        spans: Sequence[tuple[int, int]],
        probabilities_TC: NDArray[np.float32],
        first_index: int,
    ) -> list[TokenScores]:
        """Put together what is known of the tokens of a text or window, without special ones.

        Args:
            text: the whole text.
            ids: ids of the tokens.
            spans: characters of each token.
            probabilities_TC: probabilities of the classes.
            first_index: place of the first token in the ids of the text.
        """
        found = []
        for number, (token, (start, end)) in enumerate(zip(ids, spans, strict=True)):
            word, written = str(self._tokenizer.id_to_token(token)), text[start:end]
            if self._marks_words:
                continues = len(word) != len(written)
            else:
                continues = start > 0 and " " not in text[start - 1 : start + 1]
            if token == self._unknown_id:
                word, continues = written, False
            found.append(TokenScores(word, probabilities_TC[number], start, end, first_index + number, continues))
        return found

    def group(self, tokens: Sequence[TokenScores], strategy: Strategy) -> list[Entity]:
        """Make entities of the tokens of a text or window."""
        if strategy == "none":
            return [Entity(*each) for each in map(self._labelled, tokens)]
        if strategy == "simple":
            return self._groups([*map(self._labelled, tokens)])
        words: list[list[TokenScores]] = []
        for token in tokens:
            if words and token.continues:
                words[-1].append(token)
            else:
                words.append([token])
        return self._groups([self._word(word, strategy) for word in words])

    def _labelled(self, token: TokenScores) -> _Labelled:
        number = int(token.scores_C.argmax())
        return _Labelled(
            self._labels[number], float(token.scores_C[number]), token.word, token.start, token.end, token.place
        )

    def _word(self, tokens: Sequence[TokenScores], strategy: Strategy) -> _Labelled:
        """Give the tokens of a word one label."""
        if strategy == "first":
            scores_C = tokens[0].scores_C
        elif strategy == "max":
            scores_C = max(tokens, key=lambda token: float(token.scores_C.max())).scores_C
        else:
            scores_C = np.stack([token.scores_C for token in tokens]).mean(axis=0)
        number = int(scores_C.argmax())
        word = self._written([token.word for token in tokens])
        return _Labelled(
            self._labels[number], float(scores_C[number]), word, tokens[0].start, tokens[-1].end, tokens[0].place
        )

    def _groups(self, labelled: Sequence[_Labelled]) -> list[Entity]:
        """Join neighbours of one label; a label with the prefix B- begins a new group."""
        groups: list[list[_Labelled]] = []
        for each in labelled:
            begins, name = _prefix_and_name(each.label)
            if groups and not begins and name == _prefix_and_name(groups[-1][-1].label)[1]:
                groups[-1].append(each)
            else:
                groups.append([each])
        return [
            Entity(
                group[0].label.split("-", 1)[-1],
                sum(each.score for each in group) / len(group),
                self._written([each.word for each in group]),
                group[0].start,
                group[-1].end,
            )
            for group in groups
        ]

    def _written(self, names: list[str]) -> str:
        """Return the text that tokens stand for."""
        decoder: Any = self._tokenizer.decoder
        return " ".join(names) if decoder is None else str(decoder.decode(names))


def _prefix_and_name(label: str) -> tuple[bool, str]:
    """Return whether a label begins an entity, and its name without B- or I-."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def without_overlaps(entities: Sequence[Entity]) -> list[Entity]:
    """Keep of entities that overlap, because two windows have both, the longest and then the likeliest one."""
    kept: list[Entity] = []
    for entity in sorted(entities, key=attrgetter("start")):
        if not kept or not kept[-1].start <= entity.start < kept[-1].end:
            kept.append(entity)
            continue
        length, other = entity.end - entity.start, kept[-1].end - kept[-1].start
        if length > other or (length == other and entity.score > kept[-1].score):
            kept[-1] = entity
    return kept
