"""Reads tables: CSV, TSV, JSONL and Parquet files, and data sets of the hub. Rows keep their places for messages."""

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet

from export.data.hub import source_of
from export.data.own.refusals import DataRefused, closest, first_line, listed
from export.data.own.text_files import lines_of, read_bytes, read_text

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+)?", re.ASCII)  # owner/name:configuration
MAX_FIELD_CHARACTERS = 100_000_000  # the default of the csv module, 131,072, is less than a long document


@dataclass(frozen=True)
class Table:
    """Columns of equal length with the place of each row; None stands for a missing value."""

    name: str
    columns: Mapping[str, Sequence[Any]]
    row_numbers: Sequence[int]  # from 1
    unit: str  # what row_numbers count: "line" or "row"
    record: dict[str, Any]  # see FileRecord.as_dict
    licence: str | None = None

    def __len__(self) -> int:
        return len(self.row_numbers)

    def place(self, row: int, column: str | None = None) -> str:
        """Name a row, and a column, for a message."""
        place = f"{self.name}, {self.unit} {self.row_numbers[row]}"
        return place if column is None else f"{place}, column {column!r}"

    def column(self, name: str) -> Sequence[Any]:
        """Return a column's values.

        Raises:
            DataRefused: there is no such column; the sentence lists those there are, the closest first.
        """
        if name not in self.columns:
            raise DataRefused(f"{self.name} has no column {name!r}; its columns are {closest(name, self.columns)}")
        return self.columns[name]


def is_hub_id(source: str) -> bool:
    """Return whether a source names a data set of the hub, or of HEED_DATASETS, and no file or folder."""
    path = Path(source)
    return not path.exists() and path.suffix.lower() not in READERS and HUB_ID.fullmatch(source) is not None


def read_table(path: Path, wanted: Sequence[str]) -> Table:
    """Read a file by the ending of its name.

    Args:
        path: a file that ends in .csv, .tsv, .jsonl or .parquet.
        wanted: the columns that will be asked for. If they are numbers, and not in the first line of a CSV or TSV file,
            then that file has no header: its columns are named 1, 2, 3 ...

    Raises:
        DataRefused: the file cannot be read; the sentence names the file and the line.
    """
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise DataRefused(f"{path}: the name of a table ends in {', '.join(READERS)}, not in {path.suffix!r}")
    return read(path, wanted)


def read_hub(source: str) -> dict[str, Table]:
    """Read all splits of a data set of the hub (`owner/name` or `owner/name:configuration`) or of a local folder.

    Raises:
        DataRefused: the library cannot load it; the sentence has the library's reason.
        FileNotFoundError: HEED_DATASETS is set, but lacks the folder with the name's last part.
    """
    hub_id, _, configuration = source.partition(":") if not Path(source).exists() else (source, "", "")
    where = hub_id if Path(hub_id).exists() else source_of(hub_id, hub_id.rpartition("/")[2])
    try:
        splits = datasets.load_dataset(where, configuration or None)
    except Exception as error:  # the library raises its own errors, those of the network, and those of each format
        raise DataRefused(f"the data set {source} cannot be loaded: {first_line(error)}") from error
    return {name: _hub_table(f"{source}, split {name}", split) for name, split in splits.items()}


def _hub_table(name: str, split: Any) -> Table:
    columns: dict[str, Sequence[Any]] = {}
    for column, feature in split.features.items():
        if isinstance(feature, datasets.Image):
            split = split.cast_column(column, datasets.Image(decode=False))
        values = split[column][:]
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, datasets.ClassLabel):
            values = [_class_names(inner, value) for value in values]
        columns[column] = values
    licence = split.info.license or None
    return Table(name, columns, range(1, len(split) + 1), "row", {"name": name, "rows": len(split)}, licence)


def _class_names(feature: Any, value: Any) -> Any:
    if isinstance(value, list):
        return [_class_names(feature, each) for each in value]
    # GLUE and others write -1 for a label that is not published.
    return None if value is None or value < 0 else feature.int2str(value)


def _delimited(path: Path, wanted: Sequence[str]) -> Table:
    text, record = read_text(path)
    first = lines_of(text)[0]
    tabs = path.suffix.lower() == ".tsv"
    # Spreadsheets write semicolons where the comma is the decimal sign.
    delimiter = "\t" if tabs else ";" if ";" in first and "," not in first else ","
    quoted = True
    try:
        rows, numbers = _rows(path, text, delimiter, quoted=True)
        if tabs and len({len(row) for row in rows}) > 1:
            raise DataRefused("")
    except DataRefused:
        if not tabs:
            raise
        # Many TSV files have no quoting: their quotation marks are part of the text.
        quoted = False
        rows, numbers = _rows(path, text, delimiter, quoted=False)
    header = [name.strip() for name in rows[0]]
    if wanted and all(name.isdigit() for name in wanted) and not set(wanted) <= set(header):
        header = [str(number) for number in range(1, len(header) + 1)]
    else:
        rows, numbers = rows[1:], numbers[1:]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataRefused(f"{path}, line 1: the header has {listed(map(repr, twice))} more than once")
    for row, number in zip(rows, numbers, strict=True):
        if len(row) != len(header):
            raise DataRefused(
                f"{path}, line {number}: the row has {len(row)} fields, but the file has {len(header)} columns"
                f" ({listed(map(repr, header))}); text with {_NAMES[delimiter]} in it is put in quotation marks"
            )
    if not rows:
        raise DataRefused(f"{path} has a header, but no rows")
    columns = {name: [row[number] for row in rows] for number, name in enumerate(header)}
    facts = record.as_dict(len(rows), delimiter=delimiter, quoted=quoted)
    return Table(str(path), columns, numbers, "line", facts)


_NAMES = {"\t": "a tab", ";": "a semicolon", ",": "a comma"}


def _rows(path: Path, text: str, delimiter: str, *, quoted: bool) -> tuple[list[list[str]], list[int]]:
    """Parse rows with the number of the line that each begins at; lines without any character are left out."""
    rows, numbers, begin = [], [], 1
    before = csv.field_size_limit(MAX_FIELD_CHARACTERS)
    try:
        reader = csv.reader(
            io.StringIO(text, newline=""),
            delimiter=delimiter,
            strict=True,
            quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        )
        for row in reader:
            if row:
                rows.append(row)
                numbers.append(begin)
            begin = reader.line_num + 1
    except csv.Error as error:
        raise DataRefused(
            f"{path}, line {begin}: the row that begins here cannot be read ({error}); a quotation mark inside a quoted"
            ' field is written twice ("")'
        ) from error
    finally:
        csv.field_size_limit(before)
    return rows, numbers


def _jsonl(path: Path, wanted: Sequence[str]) -> Table:
    text, record = read_text(path)
    rows, numbers = [], []
    for number, line in enumerate(lines_of(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataRefused(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataRefused(f"{path}, line {number}: each line is a JSON object, not {line.strip()[:40]}")
        rows.append(row)
        numbers.append(number)
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    return Table(str(path), columns, numbers, "line", record.as_dict(len(rows)))


def _parquet(path: Path, wanted: Sequence[str]) -> Table:
    content, record = read_bytes(path)
    try:
        table = pyarrow.parquet.read_table(io.BytesIO(content))
    except pyarrow.ArrowException as error:
        raise DataRefused(f"{path} is not a Parquet file: {first_line(error)}") from error
    if not table.num_rows:
        raise DataRefused(f"{path} has no rows")
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return Table(str(path), columns, range(1, table.num_rows + 1), "row", record.as_dict(table.num_rows))


READERS: dict[str, Callable[[Path, Sequence[str]], Table]] = {
    ".csv": _delimited,
    ".tsv": _delimited,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
