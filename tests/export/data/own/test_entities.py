"""Texts with entities of one's own, from files to splits and back from their document."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from export.data.own.entities import EntityRequest, load_entities, rebuild_entities, words_of
from export.data.own.refusals import DataRefused
from export.data.token_classification import Entity, bio_tags
from tests.conftest import ROOT

NEWS = str(ROOT / "tests" / "data" / "own" / "news.conll")


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write a file and return its path."""
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def spans(count: int = 12) -> list[dict[str, Any]]:
    """Make rows with one entity each."""
    places = ["Oslo", "Bremen", "Graz", "Lyon"]
    rows = [(f"Line {number} ends in {places[number % 4]}.", places[number % 4]) for number in range(count)]
    return [
        {"text": text, "entities": [{"start": text.index(name), "end": len(text) - 1, "label": "LOC"}]}
        for text, name in rows
    ]


def test_news_in_conll() -> None:
    """Every split has every label; the same splits come back from the document."""
    data = load_entities(EntityRequest(train=NEWS))
    assert data.name == "news" and data.label_names == ["LOC", "ORG", "PER"]
    assert data.test is not None and data.document is not None
    assert len(data.train) + len(data.validation) + len(data.test) == 90
    for part in data.document["splits"].values():
        assert all(count >= 3 for count in part["labels"].values())
    assert data.document["files"]["train"]["tag_scheme"] == "BIO"
    assert rebuild_entities(json.loads(json.dumps(data.document))).test == data.test


def test_spans_in_characters(tmp_path: Path) -> None:
    """Words follow from the text; lists of three values are entities too."""
    rows = [*spans(), {"text": "Nothing here.", "entities": []}, {"text": "To Oslo!", "entities": [[3, 7, "LOC"]]}]
    data = load_entities(EntityRequest(train=jsonl(tmp_path / "a.jsonl", rows)))
    every = [
        (text, words, entities)
        for part in (data.train, data.validation, data.test)
        if part is not None
        for text, words, entities in zip(part.texts, part.words, part.entities, strict=True)
    ]
    text, words, entities = next(each for each in every if each[0] == "To Oslo!")
    assert [text[slice(*word)] for word in words] == ["To", "Oslo", "!"]
    assert bio_tags(words, entities) == ["O", "B-LOC", "O"]
    assert sum(not entities for _, _, entities in every) == 1 and len(every) == 14


def test_tokens_and_tags_of_parquet(tmp_path: Path) -> None:
    """As many data sets of the hub have them."""
    path = tmp_path / "a.parquet"
    tokens = [["Anna", "lives", "in", f"Place{number}"] for number in range(10)]
    pyarrow.parquet.write_table(
        pyarrow.table({"tokens": tokens, "ner_tags": [["B-PER", "O", "O", "B-LOC"]] * 10}), path
    )
    data = load_entities(EntityRequest(train=str(path), tags_column="ner_tags"))
    assert data.train.entities[0][0] == Entity(0, 4, "PER") and data.label_names == ["LOC", "PER"]


def test_a_file_for_each_split_of_any_format(tmp_path: Path) -> None:
    """A CoNLL file to train on and spans to test with."""
    test = jsonl(tmp_path / "t.jsonl", spans(4))
    data = load_entities(EntityRequest(train=NEWS, test=test))
    assert data.test is not None and data.test.texts == [row["text"] for row in spans(4)]
    assert rebuild_entities(data.document or {}) == data
    wrong = [{"text": "On Monday", "entities": [[3, 9, "DATE"]]}]
    with pytest.raises(DataRefused, match=r"v.jsonl, line 1: no training text has the label 'DATE'; the labels are"):
        load_entities(EntityRequest(train=NEWS, validation=jsonl(tmp_path / "v.jsonl", wrong)))


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        ([{"start": 0, "end": 99, "label": "X"}], "X from 0 to 99 is empty or lies outside .* has 10 characters"),
        ([{"start": 3, "end": 3, "label": "X"}], "X from 3 to 3 is empty"),
        ([{"start": -1, "end": 3, "label": "X"}], "X from -1 to 3 is empty or lies outside"),
        ([[0, 5, "X"], [4, 7, "Y"]], "X from 0 to 5 and Y from 4 to 7 overlap"),
        ([[3, 4, "X"]], "X from 3 to 4 has nothing but spaces"),
        ([{"start": "0", "end": 3, "label": "X"}], "an entity has start and end in characters and a label"),
        ([{"start": 0, "end": 3}], "an entity has start and end in characters and a label"),
        ([[0, 3, ""]], "an entity has start and end in characters and a label"),
        ("none", "a list of objects with start, end and label is needed"),
    ],
)
def test_spans_that_cannot_be_are_refused_with_their_row(tmp_path: Path, entities: Any, message: str) -> None:
    """The thirteenth line has them."""
    path = jsonl(tmp_path / "a.jsonl", [*spans(), {"text": "One two ab", "entities": entities}])
    with pytest.raises(DataRefused, match=f"a.jsonl, line 13, column 'entities': .*{message}"):
        load_entities(EntityRequest(train=path))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "line 2: there are 2 tokens, but 1 tags"),
        ({"tokens": ["a"], "tags": ["LOC"]}, "line 2, column 'tags': 'LOC' is no tag"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, "line 2, column 'tokens': a list of texts is needed"),
        ({"tokens": ["a"], "tags": [0]}, "line 2, column 'tags': a list of texts is needed"),
        ({"tokens": [], "tags": []}, "line 2, column 'tokens': the value is empty"),
    ],
)
def test_tags_that_do_not_fit_are_refused_with_their_row(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    """The first line is good."""
    path = jsonl(tmp_path / "a.jsonl", [{"tokens": ["Oslo"], "tags": ["B-LOC"]}, row])
    with pytest.raises(DataRefused, match=message):
        load_entities(EntityRequest(train=path))


def test_spans_beside_words_are_taken_and_counted(tmp_path: Path) -> None:
    """Spaces at an end are no part of an entity; a compound can hold one."""
    rows = [
        *spans(),
        {"text": "From Oslo ", "entities": [[4, 10, "LOC"]]},
        {"text": "Oslofjord", "entities": [[0, 4, "LOC"]]},
    ]
    data = load_entities(EntityRequest(train=jsonl(tmp_path / "a.jsonl", rows)))
    assert data.document is not None
    assert data.document["counts"]["entities_trimmed"] == data.document["counts"]["entities_that_cut_words"] == 1
    assert "entities that begin or end inside a word: 1" in data.document["notes"]
    assert words_of("Oslofjord!", [Entity(0, 4, "LOC")]) == [(0, 4), (4, 9), (9, 10)]


def test_empty_rows_are_refused_or_skipped_and_counted(tmp_path: Path) -> None:
    """A row without entities has an empty list, not null."""
    path = jsonl(tmp_path / "a.jsonl", [*spans(), {"text": "x"}, {"text": " ", "entities": []}])
    with pytest.raises(DataRefused, match="line 13, column 'entities': the value is empty"):
        load_entities(EntityRequest(train=path))
    data = load_entities(EntityRequest(train=path, skip_bad_rows=True))
    assert data.document is not None and data.document["counts"]["skipped_rows"] == 2


def test_without_entities_there_is_nothing_to_learn(tmp_path: Path) -> None:
    """Nor with one text."""
    with pytest.raises(DataRefused, match="no text has an entity"):
        load_entities(EntityRequest(train=jsonl(tmp_path / "a.jsonl", [{"text": "x", "entities": []}])))
    with pytest.raises(DataRefused, match="1 texts are too few"):
        load_entities(EntityRequest(train=jsonl(tmp_path / "b.jsonl", spans(1))))
