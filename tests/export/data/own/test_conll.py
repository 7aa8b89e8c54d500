"""CoNLL files of several kinds."""

from pathlib import Path

import pytest

from export.data.own.conll import read_conll, scheme_of
from export.data.own.refusals import DataRefused
from export.data.token_classification import Entity
from tests.conftest import ROOT


def conll_file(tmp_path: Path, content: str) -> Path:
    """Write a file."""
    path = tmp_path / "a.conll"
    path.write_text(content, encoding="utf-8", newline="")
    return path


def test_columns_of_conll_2003(tmp_path: Path) -> None:
    """Four columns, IOB1, lines between documents, and Windows line ends."""
    path = conll_file(
        tmp_path,
        "-DOCSTART- -X- O O\r\n\r\nEU NNP I-NP I-ORG\r\nrejects VBZ I-VP O\r\n"
        "New NNP I-NP I-LOC\r\nYork NNP I-NP I-LOC\r\n\r\n\r\nPeter NNP I-NP I-PER\r\n",
    )
    sentences, record = read_conll(path)
    assert [sentence.text for sentence in sentences] == ["EU rejects New York", "Peter"]
    assert sentences[0].entities == [Entity(0, 2, "ORG"), Entity(11, 19, "LOC")]
    assert [sentence.row for sentence in sentences] == [3, 9]
    assert record["tag_scheme"] == "IOB1" and record["rows"] == 2
    chunks, _ = read_conll(path, tag_column=3)
    assert chunks[0].entities[0] == Entity(0, 2, "NP")


def test_tabs_keep_spaces_in_words_and_comments_are_left_out(tmp_path: Path) -> None:
    """A word that is # is a word."""
    path = conll_file(tmp_path, "# text = 10 000 #\n1\t10 000\tB-QTY\n2\t#\tO\n")
    sentences, _ = read_conll(path, token_column=2)
    assert sentences[0].text == "10 000 #" and sentences[0].entities == [Entity(0, 6, "QTY")]
    hash_first, _ = read_conll(conll_file(tmp_path, "# O\n1 O\n"))
    assert hash_first[0].text == "# 1"


def test_the_committed_file() -> None:
    """It is BIO."""
    sentences, record = read_conll(ROOT / "tests" / "data" / "own" / "news.conll")
    assert len(sentences) == 90 and record["tag_scheme"] == "BIO"
    assert {entity.label for each in sentences for entity in each.entities} == {"LOC", "ORG", "PER"}
    assert sentences[0].text[slice(*sentences[0].entities[0][:2])] == "Peter van Dijk"


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("EU B-ORG\nrejects\n", {}, "a.conll, line 2 has 1 columns, but the lines before have 2"),
        ("EU ORG\n", {}, "a.conll, line 1, column 2: 'ORG' is no tag; a tag is O, or B-"),
        ("EU X-ORG\n", {}, "'X-ORG' is no tag"),
        ("EU\n", {}, "a.conll, line 1 has one column; a word and its tag are needed"),
        ("EU B-ORG\n", {"tag_column": 4}, "a.conll, line 1 has 2 columns, so there is no column 4"),
        ("\t\n \tO\n", {}, "a.conll, line 2, column 1: the word is empty"),
        ("-DOCSTART- O\n", {}, "a.conll has no sentences"),
    ],
)
def test_lines_that_cannot_be_read_are_named(
    tmp_path: Path, content: str, options: dict[str, int], message: str
) -> None:
    """By file and number."""
    with pytest.raises(DataRefused, match=message):
        read_conll(conll_file(tmp_path, content), **options)


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        (["B-A", "I-A", "O", "B-A"], "BIO"),
        (["I-A", "B-A"], "IOB1"),
        (["B-A", "I-B"], "IOB1"),
        (["S-A"], "BIOES"),
        (["U-A"], "BILOU"),
    ],
)
def test_the_scheme_follows_from_the_prefixes(tags: list[str], scheme: str) -> None:
    """An entity that begins with I- is none of BIO's."""
    assert scheme_of([["O"], tags]) == scheme
