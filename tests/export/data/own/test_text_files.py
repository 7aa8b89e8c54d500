"""Encodings and line ends of text files."""

import hashlib
from pathlib import Path

import pytest

from export.data.own.refusals import DataRefused
from export.data.own.text_files import lines_of, read_text


@pytest.mark.parametrize(
    ("encoding", "recorded"), [("utf-8", "utf-8"), ("utf-8-sig", "utf-8-sig"), ("utf-16", "utf-16")]
)
def test_unicode_is_read_with_and_without_a_mark(tmp_path: Path, encoding: str, recorded: str) -> None:
    """UTF-16 is what spreadsheets call Unicode text; the mark is no part of the text."""
    path = tmp_path / "a.txt"
    path.write_bytes("Grüße\r\nß".encode(encoding))
    text, record = read_text(path)
    assert text == "Grüße\r\nß"
    assert record.as_dict(2) == {
        "name": "a.txt",
        "path": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "rows": 2,
        "encoding": recorded,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ab\nGrüße\n".encode("cp1252"), r"a.txt, line 2: byte 3 of the line \(0xFC\) is not UTF-8"),
        (b"\xef\xbb\xbfab\n\xc3\xbcb\xe9", r"a.txt, line 2: byte 4 of the line \(0xE9\) is not UTF-8;"),
        ("ab\ncd".encode("utf-16-le"), "a.txt, line 1: byte 2 of the file is 0, as in binary files and in UTF-16"),
        (b"\xff\xfea\x00b", "a.txt, line 1: byte 3 of the line .* is not UTF-16"),
        (b"", "a.txt is empty"),
        (b" \n\n", "a.txt has no text in it"),
    ],
)
def test_what_is_no_unicode_text_is_refused_with_its_place(tmp_path: Path, content: bytes, message: str) -> None:
    """One sentence, which says what to do."""
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DataRefused, match=message):
        read_text(path)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    """Both by name."""
    with pytest.raises(DataRefused, match=r"b.txt: there is no such file"):
        read_text(tmp_path / "b.txt")
    with pytest.raises(DataRefused, match="is a folder"):
        read_text(tmp_path)


def test_only_line_ends_split_lines() -> None:
    """U+2028 and form feeds stand inside texts."""
    assert lines_of("a\u2028b\x0cc\r\nd\n\ne") == ["a\u2028b\x0cc", "d", "", "e"]
    assert lines_of("a\n") == ["a"]
