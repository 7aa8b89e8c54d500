"""Texts with entities of one's own: CoNLL files, and tables with spans in characters or with tokens and tags."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from export.data.own.conll import SUFFIXES, TAG, Sentence, read_conll, sentence_of
from export.data.own.documents import check_same_splits, write_document
from export.data.own.refusals import DataRefused, closest
from export.data.own.sources import NOT_STATED, Request, name_of, read_sources
from export.data.own.splits import TEST, TRAIN, VALIDATION, arrange, digest, normalised
from export.data.own.tables import Table
from export.data.token_classification import Entity, LabelledEntities, TokenClassificationData, Word
from export.task_table import TOKEN_CLASSIFICATION

SPLITS = (TRAIN, VALIDATION, TEST)
WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, kw_only=True)
class EntityRequest(Request):
    """A request for texts with entities.

    A CoNLL file has the columns `token_column` and `tag_column`, by number. A table has either the columns
    `text_column` and `entities_column` (a list of objects with start, end and label), or `tokens_column` and
    `tags_column` (lists of equal length).
    """

    token_column: int = 1
    tag_column: int | None = None  # the last one
    text_column: str = "text"
    entities_column: str = "entities"
    tokens_column: str = "tokens"
    tags_column: str = "tags"


@dataclass(frozen=True)
class _Source:
    name: str
    unit: str
    sentences: list[Sentence]
    record: dict[str, Any]
    licence: str | None
    counts: dict[str, int]


def load_entities(request: EntityRequest) -> TokenClassificationData:
    """Read texts with entities, split them by the labels in each text, and record where they come from.

    Raises:
        DataRefused: the data cannot be used; one sentence with file and row.
    """
    sources = _read(request)
    names = sorted({entity.label for each in sources[TRAIN].sentences for entity in each.entities})
    if not names:
        raise DataRefused(f"{sources[TRAIN].name}: no text has an entity")
    for name in set(sources) - {TRAIN}:
        _check_known(sources[name], names)
    arrangement = arrange(
        {name: [normalised(each.text) for each in source.sentences] for name, source in sources.items()},
        {name: [frozenset(each.entities) for each in source.sentences] for name, source in sources.items()},
        request.seed,
        several=True,
        strata=[frozenset(entity.label for entity in each.entities) for each in sources[TRAIN].sentences],
    )
    parts = {name: _part(sources[arrangement.sources[name]].sentences, arrangement.rows[name]) for name in SPLITS}
    for name in (TRAIN, VALIDATION):
        if not len(parts[name]):
            count = len(sources[TRAIN].sentences)
            raise DataRefused(f"{sources[TRAIN].name}: {count} texts are too few to keep any for {name}")
    counts: dict[str, int] = {}
    for source in sources.values():
        counts |= {name: counts.get(name, 0) + count for name, count in source.counts.items()}
    document = write_document(
        task=TOKEN_CLASSIFICATION,
        request=request.as_dict(),
        files={name: source.record for name, source in sources.items()},
        labels=names,
        licence=request.licence or sources[TRAIN].licence or NOT_STATED,
        arrangement=arrangement,
        splits={name: _record(part, names) for name, part in parts.items() if len(part)},
        counts=counts,
    )
    test = parts[TEST] if len(parts[TEST]) else None
    return TokenClassificationData(name_of(request), names, parts[TRAIN], parts[VALIDATION], test, document)


def rebuild_entities(document: Mapping[str, Any], folder: Path | None = None) -> TokenClassificationData:
    """Read the same splits again from the document that `load_entities` gave them.

    Args:
        document: the record of the first time.
        folder: where the files lie now, if they were moved.

    Raises:
        DataRefused: a file is gone or has changed, or a data set of the hub has other rows now.
    """
    data = load_entities(EntityRequest.of_document(document, folder))
    check_same_splits(document, data.document or {})
    return replace(data, document=dict(document))


def _read(request: EntityRequest) -> dict[str, _Source]:
    sources = {}
    tables = {name: source for name, source in request.sources.items() if not source.lower().endswith(SUFFIXES)}
    for name, path in request.sources.items():
        if name not in tables:
            sentences, record = read_conll(Path(path), request.token_column, request.tag_column)
            sources[name] = _Source(path, "line", sentences, record, None, {})
    found = read_sources(tables, [])
    return sources | {name: _of_table(table, request) for name, table in found.items() if name not in sources}


def _of_table(table: Table, request: EntityRequest) -> _Source:
    counts = {"skipped_rows": 0, "entities_that_cut_words": 0, "entities_trimmed": 0}
    by_tags = request.tokens_column in table.columns and request.entities_column not in table.columns
    first, second = (
        (request.tokens_column, request.tags_column) if by_tags else (request.text_column, request.entities_column)
    )
    inputs, answers = table.column(first), table.column(second)
    sentences = []
    for row in range(len(table)):
        if not inputs[row] or answers[row] is None or (not by_tags and not str(inputs[row]).strip()):
            if not request.skip_bad_rows:
                raise DataRefused(
                    f"{table.place(row, second if inputs[row] else first)}: the value is empty; fill it in, remove the"
                    " row, or skip bad rows"
                )
            counts["skipped_rows"] += 1
        elif by_tags:
            sentences.append(_tagged(table, row, inputs[row], answers[row], request))
        else:
            sentences.append(_with_spans(table, row, inputs[row], answers[row], request, counts))
    if not sentences:
        raise DataRefused(f"{table.name}: no row has a text and its entities")
    return _Source(table.name, table.unit, sentences, table.record, table.licence, counts)


def _tagged(table: Table, row: int, tokens: Any, tags: Any, request: EntityRequest) -> Sentence:
    for column, values in ((request.tokens_column, tokens), (request.tags_column, tags)):
        if not isinstance(values, list) or not all(isinstance(each, str) and each.strip() for each in values):
            raise DataRefused(f"{table.place(row, column)}: a list of texts is needed, not {str(values)[:60]}")
    if len(tokens) != len(tags):
        raise DataRefused(f"{table.place(row)}: there are {len(tokens)} tokens, but {len(tags)} tags")
    for tag in tags:
        if not TAG.fullmatch(tag):
            raise DataRefused(
                f"{table.place(row, request.tags_column)}: {tag!r} is no tag; a tag is O, or B-, I-, E-, S-, L- or U-"
                " with a label behind it"
            )
    return sentence_of(table.row_numbers[row], tokens, tags)


def _with_spans(
    table: Table, row: int, text: Any, spans: Any, request: EntityRequest, counts: dict[str, int]
) -> Sentence:
    place = table.place(row, request.entities_column)
    if not isinstance(text, str):
        raise DataRefused(f"{table.place(row, request.text_column)}: {text!r} is not a text")
    if not isinstance(spans, list):
        raise DataRefused(f"{place}: a list of objects with start, end and label is needed, not {str(spans)[:60]}")
    entities = sorted(_entity(place, text, span, counts) for span in spans)
    for before, after in pairwise(entities):
        if after.start < before.end:
            raise DataRefused(
                f"{place}: {before.label} from {before.start} to {before.end} and {after.label} from {after.start} to"
                f" {after.end} overlap; a character belongs to one entity at most"
            )
    words = words_of(text, entities)
    whole = {edge for match in WORD.finditer(text) for edge in match.span()}
    counts["entities_that_cut_words"] += sum(not {each.start, each.end} <= whole for each in entities)
    return Sentence(table.row_numbers[row], text, words, entities)


def _entity(place: str, text: str, span: Any, counts: dict[str, int]) -> Entity:
    try:
        start, end, label = (span["start"], span["end"], span["label"]) if isinstance(span, dict) else span
        numbers = all(isinstance(each, int) and not isinstance(each, bool) for each in (start, end))
    except (KeyError, TypeError, ValueError):
        numbers = False
    if not numbers or not isinstance(label, str) or not label.strip():
        raise DataRefused(f"{place}: an entity has start and end in characters and a label, but this is {span!r}")
    if not 0 <= start < end <= len(text):
        raise DataRefused(
            f"{place}: {label} from {start} to {end} is empty or lies outside of the text, which has {len(text)}"
            " characters; end is the first character behind the entity"
        )
    inner = text[start:end].strip()
    if not inner:
        raise DataRefused(f"{place}: {label} from {start} to {end} has nothing but spaces")
    begin = text.index(inner, start)
    counts["entities_trimmed"] += len(inner) < end - start
    return Entity(begin, begin + len(inner), label.strip())


def words_of(text: str, entities: Sequence[Entity]) -> list[Word]:
    """Split a text at spaces, around punctuation, and where an entity begins or ends inside a word."""
    edges = {edge for each in entities for edge in (each.start, each.end)}
    words = []
    for match in WORD.finditer(text):
        cuts = sorted({*match.span(), *(edge for edge in edges if match.start() < edge < match.end())})
        words += list(pairwise(cuts))
    return words


def _check_known(source: _Source, names: Sequence[str]) -> None:
    for sentence in source.sentences:
        for entity in sentence.entities:
            if entity.label not in names:
                raise DataRefused(
                    f"{source.name}, {source.unit} {sentence.row}: no training text has the label {entity.label!r}; the"
                    f" labels are {closest(entity.label, names)}"
                )


def _part(sentences: Sequence[Sentence], rows: Sequence[int]) -> LabelledEntities:
    chosen = [sentences[row] for row in rows]
    return LabelledEntities(
        [each.text for each in chosen], [each.words for each in chosen], [each.entities for each in chosen]
    )


def _record(part: LabelledEntities, names: Sequence[str]) -> dict[str, Any]:
    counts = dict.fromkeys(names, 0)
    for entities in part.entities:
        for entity in entities:
            counts[entity.label] += 1
    return {"rows": len(part), "sha256": digest([part.texts, part.entities]), "labels": counts}
