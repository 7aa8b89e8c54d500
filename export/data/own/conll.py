"""Reads CoNLL files: a word and its tag a line, an empty line between sentences."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.data.own.refusals import DataRefused
from export.data.own.text_files import lines_of, read_text
from export.data.token_classification import OUTSIDE, Entity, Word, entities_of_tags

SUFFIXES = (".conll", ".iob", ".iob2", ".bio", ".txt")
TAG = re.compile(r"O|[BIESLU]-\S.*")
DOCUMENT_START = "-DOCSTART-"  # CoNLL-2003's line between documents
COMMENT = re.compile(r"# \S+ ?=|# (newdoc|newpar)")  # CoNLL-U's lines about a sentence


@dataclass(frozen=True)
class Sentence:
    """A tagged sentence: its words are joined with spaces to its text."""

    row: int  # the line of the file that it begins at
    text: str
    words: list[Word]
    entities: list[Entity]


def read_conll(
    path: Path, token_column: int = 1, tag_column: int | None = None
) -> tuple[list[Sentence], dict[str, Any]]:
    """Read the sentences of a file, and its record with the scheme that its tags have.

    Args:
        path: the file. Columns are separated by tabs, or by spaces in files without tabs.
        token_column: the number of the column with the words, from 1.
        tag_column: the number of the column with the tags, from 1; the last one if None.

    Raises:
        DataRefused: a line has another number of columns than the first, or its tag is none.
    """
    text, record = read_text(path)
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    every: list[list[str]] = []
    begin, width, separator = 0, None, "\t" if "\t" in text else None
    for number, line in enumerate([*lines_of(text), ""], 1):
        fields = line.rstrip().split(separator)
        if not line.strip() or fields[0] == DOCUMENT_START:
            if words:
                sentences.append(sentence_of(begin, words, tags))
                every.append(tags)
                words, tags = [], []
            continue
        if not words and COMMENT.match(line):
            continue
        width = width or len(fields)
        _check_columns(path, number, fields, width, token_column, tag_column)
        tag = fields[(tag_column or width) - 1].strip()
        if not TAG.fullmatch(tag):
            raise DataRefused(
                f"{path}, line {number}, column {tag_column or width}: {tag!r} is no tag; a tag is O, or B-, I-,"
                " E-, S-, L- or U- with a label behind it"
            )
        begin = begin if words else number
        words.append(fields[token_column - 1].strip())
        tags.append(tag)
    if not sentences:
        raise DataRefused(f"{path} has no sentences")
    return sentences, record.as_dict(len(sentences), tag_scheme=scheme_of(every))


def _check_columns(
    path: Path, number: int, fields: Sequence[str], width: int, token_column: int, tag_column: int | None
) -> None:
    if len(fields) != width:
        raise DataRefused(f"{path}, line {number} has {len(fields)} columns, but the lines before have {width}")
    if width < 2:
        raise DataRefused(f"{path}, line {number} has one column; a word and its tag are needed")
    for column in (token_column, tag_column or width):
        if not 1 <= column <= width:
            raise DataRefused(f"{path}, line {number} has {width} columns, so there is no column {column}")
    if not fields[token_column - 1].strip():
        raise DataRefused(f"{path}, line {number}, column {token_column}: the word is empty")


def sentence_of(row: int, words: Sequence[str], tags: Sequence[str]) -> Sentence:
    """Join words to a text, and turn their tags into entities."""
    places, begin = [], 0
    for word in words:
        places.append((begin, begin + len(word)))
        begin += len(word) + 1
    return Sentence(row, " ".join(words), places, entities_of_tags(tags, places))


def scheme_of(sentences: Sequence[Sequence[str]]) -> str:
    """Return the name of the scheme that the tags of a file follow: BIO, IOB1, BIOES or BILOU."""
    prefixes = {tag[0] for tags in sentences for tag in tags if tag != OUTSIDE}
    if prefixes & set("LU"):
        return "BILOU"
    if prefixes & set("ES"):
        return "BIOES"
    for tags in sentences:
        for before, tag in zip([OUTSIDE, *tags], tags, strict=False):
            if tag.startswith("I-") and (before == OUTSIDE or before[2:] != tag[2:]):
                return "IOB1"  # in BIO, an entity begins with B- only
    return "BIO"
