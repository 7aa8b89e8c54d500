"""Parallel texts of one's own, from files to splits and back from their document."""

import json
from pathlib import Path
from typing import Any

import pytest

from export.data.own.refusals import DataRefused
from export.data.own.translation import MAX_HELD_OUT_PAIRS, TranslationRequest, load_pairs, rebuild_pairs
from tests.conftest import ROOT

PHRASES = str(ROOT / "tests" / "data" / "own" / "phrases.en-de.tsv")


def lines(path: Path, texts: list[str]) -> str:
    """Write a file with a text a line and return its path."""
    path.write_text("".join(f"{text}\n" for text in texts))
    return str(path)


def test_a_table_with_the_languages_as_columns() -> None:
    """The same splits come back from the document."""
    data = load_pairs(TranslationRequest(train=PHRASES, licence="CC0-1.0"))
    assert (data.source_language, data.target_language, data.licence) == ("en", "de", "CC0-1.0")
    assert (len(data.train), len(data.validation), len(data.test["phrases.en-de"])) == (70, 15, 15)
    assert ("Good morning.", "Guten Morgen.") in list(
        zip(
            data.train.source + data.validation.source + data.test["phrases.en-de"].source,
            data.train.target + data.validation.target + data.test["phrases.en-de"].target,
            strict=True,
        )
    )
    assert rebuild_pairs(json.loads(json.dumps(data.document))) == data


def test_two_files_with_aligned_lines(tmp_path: Path) -> None:
    """Both are recorded; a change of either is refused."""
    source = lines(tmp_path / "a.en", [f"line {number}" for number in range(20)])
    target = lines(tmp_path / "a.de", [f"Zeile {number}" for number in range(20)])
    data = load_pairs(TranslationRequest(train=source, train_target=target))
    pairs = zip(data.train.source, data.train.target, strict=True)
    assert all(text.split()[1] == translation.split()[1] for text, translation in pairs)
    assert data.document is not None and set(data.document["files"]) == {"train", "train_target"}
    assert rebuild_pairs(data.document) == data
    lines(tmp_path / "a.de", [f"Zeile {number}" for number in reversed(range(20))])
    with pytest.raises(DataRefused, match=r"a.de has changed since the splits were made"):
        rebuild_pairs(data.document)


def test_unequal_numbers_of_lines_are_said(tmp_path: Path) -> None:
    """Nothing is cut."""
    source, target = lines(tmp_path / "a.en", ["x", "y", "z"]), lines(tmp_path / "a.de", ["x", "y"])
    with pytest.raises(DataRefused, match=r"a.en has 3 lines and .*a.de has 2: each line needs its translation"):
        load_pairs(TranslationRequest(train=source, train_target=target))


def test_tables_and_aligned_files_go_together(tmp_path: Path) -> None:
    """Here a table to train on and two files to test with, of which one sentence is also in the table."""
    source = lines(tmp_path / "t.en", ["Good morning.", "An unknown sentence."])
    target = lines(tmp_path / "t.de", ["Guten Morgen.", "Ein unbekannter Satz."])
    data = load_pairs(TranslationRequest(train=PHRASES, test=source, test_target=target))
    assert data.test["phrases.en-de"].source == ["Good morning.", "An unknown sentence."]
    assert "Good morning." not in data.train.source + data.validation.source
    assert data.document is not None and data.document["counts"]["train_rows_also_in_test"] == 1
    assert rebuild_pairs(data.document) == data


def test_columns_have_names_or_numbers(tmp_path: Path) -> None:
    """Many collections have no header."""
    path = lines(tmp_path / "a.tsv", [f"{number}\tZeile {number}\tline {number}" for number in range(9)])
    data = load_pairs(TranslationRequest(train=path, source_column="3", target_column="2"))
    assert data.train.source[0].startswith("line") and data.train.target[0].startswith("Zeile")
    with pytest.raises(DataRefused, match="has no column 'en'"):
        load_pairs(TranslationRequest(train=path))


def test_several_translations_of_a_text_stay_together(tmp_path: Path) -> None:
    """They are counted, not refused."""
    rows = [{"en": f"line {number // 2}", "de": f"Zeile {number}"} for number in range(40)]
    path = lines(tmp_path / "a.jsonl", [json.dumps(row) for row in rows])
    data = load_pairs(TranslationRequest(train=path))
    assert data.document is not None and data.document["counts"]["contradictory_inputs"] == 20
    assert not set(data.train.source) & set(data.validation.source)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"en": "x", "de": " "}, "line 10, column 'de': the text is empty"),
        ({"de": "x"}, "line 10, column 'en': the text is empty"),
        ({"en": 5, "de": "x"}, "line 10, column 'en': 5 is not a text"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    """By file, line and column."""
    rows = [{"en": f"line {number}", "de": f"Zeile {number}"} for number in range(9)]
    path = lines(tmp_path / "a.jsonl", [json.dumps(each) for each in [*rows, row]])
    with pytest.raises(DataRefused, match=message):
        load_pairs(TranslationRequest(train=path))


def test_empty_lines_can_be_skipped(tmp_path: Path) -> None:
    """With a count."""
    source = lines(tmp_path / "a.en", ["a", "", *"bcdefgh"])
    target = lines(tmp_path / "a.de", ["A", "", *"BCDEFGH"])
    data = load_pairs(TranslationRequest(train=source, train_target=target, skip_bad_rows=True))
    assert data.document is not None and data.document["counts"]["skipped_rows"] == 1


def test_held_out_pairs_have_a_limit_and_few_pairs_are_refused(tmp_path: Path) -> None:
    """Every held-out sentence is translated with beam search."""
    many = 8 * MAX_HELD_OUT_PAIRS
    path = lines(tmp_path / "a.tsv", ["en\tde", *(f"line {number}\tZeile {number}" for number in range(many))])
    assert len(load_pairs(TranslationRequest(train=path)).validation) == MAX_HELD_OUT_PAIRS
    with pytest.raises(DataRefused, match="1 pairs are too few to keep any for validation"):
        load_pairs(TranslationRequest(train=lines(tmp_path / "b.tsv", ["en\tde", "x\ty"])))
