"""Reads the rows of a file one by one: CSV, TSV, JSONL, Parquet, lines of text, or a folder of images.

A row that cannot be read becomes a row with a problem, so that each line of the file has a line in the answers. A file
that cannot be read at all is refused.
"""

import csv
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from service.sources.kinds import closest

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
TEXT_COLUMN, PATH_COLUMN, LINE_COLUMN = "text", "path", "line"
MAX_SHOWN = 80  # characters of a value in a message
PARQUET_ROWS = 1024  # rows in memory at once


class FileRefused(ValueError):
    """A file that cannot be answered; the message says why."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file.

    Attributes:
        place: its place in the file, for messages: "line 3" in a file of lines, "row 3" in
            others, from 1 on; the path of an image in a folder.
        columns: its values by column, as they are written beside the answer.
        given: the input: a text, or the path of an image.
        pair: the second text of a pair; None: there is none.
        problem: why the row cannot be answered; None if it can be.
    """

    place: str
    columns: Mapping[str, Any]
    given: str = ""
    pair: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class RowFile:
    """A file whose rows are read while they are iterated.

    Attributes:
        columns: names of the columns, in order; None where each row has its own (JSONL).
        rows: the rows, in order; may be iterated once. Raises `FileRefused` where the file cannot be read further.
        folder: the folder that paths of images start from.
        holds_images: whether the file is a folder of images.
        remark: something unusual that its owner should know; None if there is nothing.
    """

    columns: Sequence[str] | None
    rows: Iterator[Row]
    folder: Path
    holds_images: bool = False
    remark: str | None = None


@dataclass(frozen=True)
class Columns:
    """The columns of a file that hold the inputs.

    Attributes:
        text: column of the input; None: `text`, `path`, or the only column.
        pair: column of the second text of a pair; None: inputs are single texts.
    """

    text: str | None = None
    pair: str | None = None

    def chosen(self, path: Path, known: Sequence[str]) -> str:
        """Return the column of the input.

        Raises:
            FileRefused: the file has no such column; lists those that it has.
        """
        for name in (self.text, self.pair):
            if name is not None and name not in known:
                raise FileRefused(f"{path} has no column {name!r}; it has {closest(name, known, len(known))}")
        if self.text is not None:
            return self.text
        for name in (TEXT_COLUMN, PATH_COLUMN):
            if name in known:
                return name
        if len(known) == 1:
            return known[0]
        raise FileRefused(f"{path} has the columns {', '.join(known)}; say with --column which of them is the input")

    def row(self, place: str, values: Mapping[str, Any], name: str, problem: str | None = None) -> Row:
        """Make a row of its values; a value that is not a text is a problem."""
        given, pair = values.get(name), values.get(self.pair) if self.pair else None
        for column, value in ((name, given), (self.pair, pair)):
            if problem is None and column is not None and not isinstance(value, str):
                found = "missing" if value is None else f"{type(value).__name__} {str(value)[:MAX_SHOWN]}, not a text"
                problem = f"{place}: column {column!r} is {found}"
        if problem is not None:
            return Row(place, values, problem=problem)
        assert isinstance(given, str)
        return Row(place, values, given, pair)


def open_rows(path: Path, columns: Columns, encoding: str = "utf-8") -> RowFile:
    """Open a file or a folder of images.

    Args:
        path: the file; its ending says how it is read.
        columns: the columns with the inputs.
        encoding: encoding of a file of text.

    Raises:
        FileRefused: it is not there, has an unknown ending, is empty, or lacks a column.
    """
    if path.is_dir():
        return _images(path)
    readers: dict[str, Callable[[Path, Columns, str], RowFile]] = {
        ".csv": _delimited,
        ".tsv": _delimited,
        ".jsonl": _json_lines,
        ".txt": _lines,
        ".parquet": _parquet,
    }
    if path.suffix.lower() not in readers:
        kinds = ", ".join(readers)
        raise FileRefused(f"{path}: a file to answer ends in one of {kinds}, or is a folder of images")
    try:
        return readers[path.suffix.lower()](path, columns, encoding)
    except OSError as error:
        raise FileRefused(f"{path}: {error.strerror}") from error
    except LookupError:
        raise FileRefused(f"--encoding {encoding!r}: Python knows no encoding of this name") from None


def _text_lines(path: Path, encoding: str) -> Iterator[str]:
    """Yield the lines of a file with their ends; a byte order mark of UTF-8 is not part of the text.

    Raises:
        FileRefused: the bytes are not in this encoding, or cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig" if encoding == "utf-8" else encoding, newline="") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise FileRefused(
            f"{path} is not {encoding}: {error.reason}; name its encoding with --encoding, such as latin-1"
        ) from error
    except OSError as error:
        raise FileRefused(f"{path}: {error.strerror}") from error


def _delimited(path: Path, columns: Columns, encoding: str) -> RowFile:
    """Read CSV (RFC 4180) or TSV, whose first line names the columns."""
    csv.field_size_limit(2**31 - 1)  # a text may be long; the limit of the module is 128 KiB
    reader = csv.reader(_text_lines(path, encoding), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    names = next(_strict(path, reader), None)
    if not names:
        raise FileRefused(f"{path} is empty; its first line names the columns")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise FileRefused(f"{path} has several columns of the name {', '.join(map(repr, twice))}")
    name = columns.chosen(path, names)

    def rows() -> Iterator[Row]:
        place = f"line {reader.line_num + 1}"
        for values in _strict(path, reader):
            if values:  # csv gives no fields for an empty line
                problem = _miscounted(names, values, place)
                yield columns.row(place, dict(zip(names, values, strict=False)), name, problem)
            place = f"line {reader.line_num + 1}"

    return RowFile(names, rows(), path.parent)


def _strict(path: Path, reader: Any) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise FileRefused(f"{path}, line {reader.line_num}: {error}") from error


def _miscounted(names: Sequence[str], values: Sequence[str], place: str) -> str | None:
    """Say that a row has too many or too few fields; None if it has as many as the header."""
    if len(values) == len(names):
        return None
    more = f"; beyond the header: {values[len(names) :]!r}" if len(values) > len(names) else ""
    return f"{place} has {len(values)} fields, the header names {len(names)} columns{more}"


def _json_lines(path: Path, columns: Columns, encoding: str) -> RowFile:
    """Read one JSON object a line; the column is chosen from those of the first object."""
    lines = _text_lines(path, encoding)
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    first = next(numbered, None)
    if first is None:
        raise FileRefused(f"{path} is empty; it has one JSON object a line")
    parsed = _parsed(*first)
    if isinstance(parsed, str):
        raise FileRefused(f"{path}: {parsed}")
    name = columns.chosen(path, list(parsed))

    def rows() -> Iterator[Row]:
        for number, line in itertools.chain([first], numbered):
            values = _parsed(number, line)
            if isinstance(values, str):
                yield Row(f"line {number}", {LINE_COLUMN: line.rstrip("\r\n")}, problem=values)
            else:
                yield columns.row(f"line {number}", values, name)

    return RowFile(None, rows(), path.parent)


def _parsed(number: int, line: str) -> dict[str, Any] | str:
    """Return the object of a line, or why it is none."""
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        return f"line {number} is not a JSON object: {error}"


def _lines(path: Path, columns: Columns, encoding: str) -> RowFile:
    """Read one text a line, into the column `text`."""
    name = columns.chosen(path, [TEXT_COLUMN])
    lines = enumerate(_text_lines(path, encoding), 1)
    rows = (columns.row(f"line {number}", {TEXT_COLUMN: line.rstrip("\r\n")}, name) for number, line in lines)
    return RowFile([TEXT_COLUMN], rows, path.parent)


def _parquet(path: Path, columns: Columns, encoding: str) -> RowFile:
    """Read Parquet, where the package pyarrow is installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise FileRefused(
            f"{path}: Parquet needs the package 'pyarrow', which is not installed for {sys.executable}:"
            " `pip install pyarrow` installs it"
        ) from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise FileRefused(f"{path} is not Parquet: {error}") from error
    names = list(file.schema_arrow.names)
    name = columns.chosen(path, names)

    def rows() -> Iterator[Row]:
        batches: Iterable[Any] = file.iter_batches(PARQUET_ROWS)
        values = (each for batch in batches for each in batch.to_pylist())
        for number, each in enumerate(values, 1):
            yield columns.row(f"row {number}", each, name)

    return RowFile(names, rows(), path.parent)


def _images(folder: Path) -> RowFile:
    """List the image files of a folder and of the folders in it, by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise FileRefused(f"{folder} has no image files ({', '.join(IMAGE_SUFFIXES)})")
    others = len(files) - len(images)
    remark = f"{folder}: {others} files are left out, whose names do not end like an image's" if others else None
    paths = (path.relative_to(folder).as_posix() for path in images)
    rows = (Row(path, {PATH_COLUMN: path}, path) for path in paths)
    return RowFile([PATH_COLUMN], rows, folder, holds_images=True, remark=remark)
