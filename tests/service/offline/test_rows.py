"""Rows of every kind of file, and what is refused."""

from pathlib import Path

import pytest

from service.offline.rows import Columns, FileRefused, Row, open_rows

DEFAULT = Columns()


def rows_of(path: Path, content: bytes | str, columns: Columns = DEFAULT, encoding: str = "utf-8") -> list[Row]:
    """Write a file, and read its rows."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(open_rows(path, columns, encoding).rows)


def test_csv_has_places_quotes_and_several_lines_in_a_field(tmp_path: Path) -> None:
    """A byte order mark is no part of the first column, and empty lines are no rows."""
    rows = rows_of(tmp_path / "a.csv", '\ufeffid,text\r\n1,"two\nlines, quoted"\r\n\r\n2,fine\r\n')
    assert rows == [
        Row("line 2", {"id": "1", "text": "two\nlines, quoted"}, "two\nlines, quoted"),
        Row("line 5", {"id": "2", "text": "fine"}, "fine"),
    ]


def test_pairs_come_from_two_columns(tmp_path: Path) -> None:
    """Both are named."""
    (row,) = rows_of(tmp_path / "a.tsv", "q\ta\nwhy\tbecause\n", Columns("q", "a"))
    assert (row.given, row.pair) == ("why", "because")


def test_the_number_of_fields_must_be_that_of_the_header(tmp_path: Path) -> None:
    """The row keeps its place, and its text is in the file of answers or in the sentence."""
    few, many, good = rows_of(tmp_path / "a.csv", "text,b\nx\nx,y,z\nfine,1\n")
    assert few.problem == "line 2 has 1 fields, the header names 2 columns"
    assert many.problem == "line 3 has 3 fields, the header names 2 columns; beyond the header: ['z']"
    assert many.columns == {"text": "x", "b": "y"}
    assert good.problem is None


def test_a_long_field_is_read(tmp_path: Path) -> None:
    """The limit of Python's module would be 128 KiB."""
    (row,) = rows_of(tmp_path / "a.csv", "text\n" + "x" * 300_000 + "\n")
    assert len(row.given) == 300_000


def test_json_lines_may_differ(tmp_path: Path) -> None:
    """A line that is no object, and one without the column, keep their places."""
    lines = '{"text": "a", "n": 1}\n\nnot json\n{"other": 2}\n{"text": 3}\n'
    first, broken, without, number = rows_of(tmp_path / "a.jsonl", lines, Columns("text"))
    assert first == Row("line 1", {"text": "a", "n": 1}, "a")
    assert (broken.columns, str(broken.problem)[:27]) == ({"line": "not json"}, "line 3 is not a JSON object")
    assert without.problem == "line 4: column 'text' is missing"
    assert number.problem == "line 5: column 'text' is int 3, not a text"


def test_lines_of_text_are_rows(tmp_path: Path) -> None:
    """Empty ones too, so that answers and lines have the same numbers."""
    assert [row.given for row in rows_of(tmp_path / "a.txt", "one\r\n\ntwo")] == ["one", "", "two"]
    (row,) = rows_of(tmp_path / "b.txt", "é\n".encode("latin-1"), encoding="latin-1")
    assert row.given == "é"


def test_parquet_is_read_in_batches(tmp_path: Path) -> None:
    """Values keep their types."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"id": range(3000), "text": ["a"] * 2999 + [None]}), tmp_path / "a.parquet")
    rows = list(open_rows(tmp_path / "a.parquet", DEFAULT).rows)
    assert (len(rows), rows[5].columns) == (3000, {"id": 5, "text": "a"})
    assert rows[-1].problem == "row 3000: column 'text' is missing"
    (tmp_path / "b.parquet").write_bytes(b"text")
    with pytest.raises(FileRefused, match="is not Parquet"):
        open_rows(tmp_path / "b.parquet", DEFAULT)


def test_images_of_a_folder_are_sorted_by_path(tmp_path: Path) -> None:
    """Other files are counted."""
    for name in ("b.png", "a/c.JPG", "notes.md", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    file = open_rows(tmp_path, DEFAULT)
    assert [row.given for row in file.rows] == ["a/c.JPG", "b.png"]
    assert file.holds_images
    assert "1 files are left out" in str(file.remark)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileRefused, match="has no image files"):
        open_rows(tmp_path / "empty", DEFAULT)


@pytest.mark.parametrize(
    ("name", "content", "columns", "said"),
    [
        ("a.xlsx", b"x", DEFAULT, "ends in one of .csv, .tsv, .jsonl, .txt, .parquet, or is a folder of images"),
        ("a.csv", b"", DEFAULT, "is empty; its first line names the columns"),
        ("a.jsonl", b"\n", DEFAULT, "is empty; it has one JSON object a line"),
        ("a.jsonl", b"[1]\n", DEFAULT, "line 1 is not a JSON object"),
        ("a.csv", b"text,text\na,b\n", DEFAULT, "several columns of the name 'text'"),
        ("a.csv", b"a,b\n1,2\n", DEFAULT, "has the columns a, b; say with --column"),
        ("a.csv", b"id,text\n1,2\n", Columns("txt"), "has no column 'txt'; it has text, id"),
        ("a.csv", b"id,text\n1,2\n", Columns("text", "b"), "has no column 'b'"),
        ("a.csv", b"text\n\xe9\n", DEFAULT, "is not utf-8: .* --encoding, such as latin-1"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(
    name: str, content: bytes, columns: Columns, said: str, tmp_path: Path
) -> None:
    """The sentence names the file and what is taken."""
    with pytest.raises(FileRefused, match=said):
        rows_of(tmp_path / name, content, columns)


def test_an_unknown_encoding_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    """Both before the first row."""
    with pytest.raises(FileRefused, match="No such file"):
        open_rows(tmp_path / "a.csv", DEFAULT)
    with pytest.raises(FileRefused, match="--encoding 'utf-88'"):
        rows_of(tmp_path / "a.csv", "text\n", encoding="utf-88")
