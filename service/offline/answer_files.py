"""Writes answers beside the columns of their rows: CSV, TSV or JSONL.

In CSV the answer has columns of its own, which depend on the task: `predicted_label` and `predicted_score` of a
classifier, with `--top-k` also `predicted_label_2` and so on, `predicted_translation_text` of a translation, else
`predicted` with JSON. Several labels that reach their thresholds stand in one field, as `a|b`. In JSONL `predicted` is
the answer of the task API. `prediction_error` says why a row has none.
"""

import csv
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

import msgspec

from service.offline.rows import FileRefused, Row
from service.tasks.hub_messages import LabelScore

PREDICTED, ERROR = "predicted", "prediction_error"
PARTIAL = ".partial"  # ends the name of a file that is not finished
DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSONL = ".jsonl"
LABEL_COLUMNS = ("label", "score")
SEPARATOR = "|"  # between the labels of one row, as in files of training


class AnswerColumns:
    """The columns of a task's answers in CSV."""

    def __init__(self, hub_answer: Any, top_k: int | None, num_values: int = 1) -> None:
        """Derive the columns from the form of an answer.

        Args:
            hub_answer: message of the task API's answer to one input.
            top_k: number of classes in an answer; None: the predicted ones.
            num_values: numbers of a regression, each with columns of its own; 1 for other models.
        """
        self._fields: tuple[str, ...] = ()
        self._ranks, self._joins = 0, top_k is None
        if hub_answer == list[LabelScore]:
            self._fields, self._ranks = LABEL_COLUMNS, top_k or num_values
        elif isinstance(hub_answer, type) and issubclass(hub_answer, msgspec.Struct):
            self._fields = hub_answer.__struct_fields__

    @property
    def names(self) -> list[str]:
        """The names of the columns, in order."""
        if not self._fields:
            return [PREDICTED]
        suffixes = ["", *(f"_{rank}" for rank in range(2, self._ranks + 1))]
        return [f"{PREDICTED}_{name}{suffix}" for suffix in suffixes for name in self._fields]

    def cells(self, document: Any) -> list[Any]:
        """Return the values of the columns for an answer; empty where it has fewer classes than there are columns."""
        if not self._fields:
            return [msgspec.json.encode(document).decode()]
        if self._ranks and self._joins and document and "predicted" in document[0]:
            predicted = [each for each in document if each["predicted"]]
            return [SEPARATOR.join(str(each[name]) for each in predicted) for name in self._fields]
        ranked = document[: self._ranks] if self._ranks else [document]
        values = [each.get(name, "") for each in ranked for name in self._fields]
        return values + [""] * (len(self.names) - len(values))


class Writer(Protocol):
    """Writes the rows of one form."""

    def begin(self) -> None:
        """Write what comes before the first row."""

    def write(self, row: Row, document: Any, problem: str | None) -> None:
        """Write a row with its answer, or with the problem that it has instead."""


class DelimitedWriter:
    """Writes CSV (RFC 4180, with line feeds) or TSV."""

    def __init__(self, file: TextIO, delimiter: str, columns: Sequence[str], answers: AnswerColumns) -> None:
        self._columns, self._answers = columns, answers
        self._writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")

    def begin(self) -> None:
        """Write the header."""
        self._writer.writerow([*self._columns, *self._answers.names, ERROR])

    def write(self, row: Row, document: Any, problem: str | None) -> None:
        """Write one row."""
        given = [row.columns.get(name, "") for name in self._columns]
        cells = self._answers.cells(document) if problem is None else [""] * len(self._answers.names)
        self._writer.writerow([*given, *cells, problem or ""])


class JsonLinesWriter:
    """Writes one JSON object a line; `predicted` or `prediction_error` is null."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def begin(self) -> None:
        """Write nothing: there is no header."""

    def write(self, row: Row, document: Any, problem: str | None) -> None:
        """Write one row.

        Raises:
            FileRefused: a value of the row has no form in JSON, or a field has the name of the answer's.
        """
        check_columns([*row.columns], (PREDICTED, ERROR), row.place)
        given: Mapping[str, Any] = {**row.columns, PREDICTED: document, ERROR: problem}
        try:
            self._file.write(msgspec.json.encode(given).decode() + "\n")
        except (TypeError, ValueError) as error:
            raise FileRefused(f"{row.place} cannot be written as JSON: {error}") from error


class AnswerFile:
    """The file of the answers: it has another name until it is whole, and keeps that if it never is.

    Attributes:
        path: where the lines are now; None for standard output.
    """

    def __init__(self, out: Path | None) -> None:
        """Write to `out`; None: to standard output."""
        # A pipe or a device cannot be renamed.
        self._final = out if out is not None and (out.is_file() or not out.exists()) else None
        self.path = out if self._final is None else self._final.with_name(self._final.name + PARTIAL)

    def __enter__(self) -> Self:
        """Open the file.

        Raises:
            OSError: it cannot be written.
        """
        self.file: TextIO = sys.stdout
        if self.path is not None:
            self.file = self.path.open("w", encoding="utf-8", newline="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the file, and give it its name if the block was not left by an error."""
        self.file.flush()
        if self.path is None:
            return
        self.file.close()
        if kind is None and self._final is not None:
            os.replace(self.path, self._final)  # noqa: PTH105, the path keeps its name in messages
            self.path = self._final


def form_of(out: Path | None, source: Path, has_columns: bool) -> str:
    """Return the form of the answers: the ending of their file; on standard output that of the input.

    Args:
        out: file of the answers; None: standard output.
        source: file of the rows.
        has_columns: whether all rows have the same columns.

    Raises:
        FileRefused: the ending is unknown, or CSV is asked for where each row has columns of its own.
    """
    default = source.suffix.lower() if source.suffix.lower() in {*DELIMITERS, JSONL} else ".csv"
    form = default if out is None or (out.exists() and not out.is_file()) else out.suffix.lower()
    if form not in {*DELIMITERS, JSONL}:
        raise FileRefused(f"--out {out}: a file of answers ends in one of {', '.join([*DELIMITERS, JSONL])}")
    if form != JSONL and not has_columns:
        raise FileRefused(f"--out {out}: the rows of {source} may have different fields; their answers are {JSONL}")
    return form


def check_columns(columns: Sequence[str], added: Sequence[str], whose: str) -> None:
    """Refuse a file or a row that has columns of the answers already.

    Raises:
        FileRefused: names the columns.
    """
    if taken := [name for name in added if name in columns]:
        raise FileRefused(f"{whose} has columns of the answers already: {', '.join(taken)}; rename or remove them")


def writer_of(form: str, file: TextIO, columns: Sequence[str] | None, answers: AnswerColumns) -> Writer:
    """Return the writer of a form, for rows with these columns.

    Raises:
        FileRefused: a column has the name of the answer's.
    """
    if form == JSONL or columns is None:
        return JsonLinesWriter(file)
    check_columns(columns, [*answers.names, ERROR], "the file")
    return DelimitedWriter(file, DELIMITERS[form], columns, answers)
