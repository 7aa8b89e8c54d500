"""Labelled texts of one's own: one label of many, any number of labels, or a number; single texts or pairs."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.data.own.documents import check_same_splits, write_document
from export.data.own.labels import (
    MULTI_LABEL,
    PROBLEMS,
    REGRESSION,
    check_known,
    check_labels_differ,
    counts_by_label,
    find_problem,
    lacks_label,
    names_of,
    read_labels,
)
from export.data.own.refusals import DataRefused
from export.data.own.sources import Request, licence_of, name_of, read_sources
from export.data.own.splits import (
    TEST,
    TRAIN,
    VALIDATION,
    arrange,
    digest,
    normalised,
    quantile_strata,
)
from export.data.own.tables import Table
from export.data.text_classification import LabelledTexts, TextClassificationData
from export.task_table import TEXT_CLASSIFICATION


@dataclass(frozen=True, kw_only=True)
class TextRequest(Request):
    """A request for labelled texts; `problem` is found from the labels where it is None."""

    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str = "label"
    problem: str | None = None

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        pair = [self.text_pair_column] if self.text_pair_column else []
        return [self.text_column, *pair, self.label_column]


@dataclass(frozen=True)
class _Rows:
    """The rows of one source that are used."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[Any]  # names, lists of names, or numbers
    places: list[int]  # row numbers in the table
    skipped: int

    @property
    def keys(self) -> list[str]:
        pairs = self.pairs if self.pairs is not None else [""] * len(self.texts)
        return [normalised(text, pair) for text, pair in zip(self.texts, pairs, strict=True)]


def load_texts(request: TextRequest) -> TextClassificationData:
    """Read labelled texts, split them, and record where they come from.

    Raises:
        DataRefused: the data cannot be used; one sentence with file, row and column.
    """
    if request.problem is not None and request.problem not in PROBLEMS:
        raise DataRefused(f"the problem {request.problem!r} is unknown; it is one of {', '.join(PROBLEMS)}")
    tables = read_sources(request.sources, request.columns)
    notes = _leave_out_unlabelled_test(tables, request)
    problem = find_problem(tables[TRAIN].column(request.label_column), request.label_column)
    kind, reason = (request.problem, "it was asked for") if request.problem else (problem.kind, problem.reason)
    request = replace(request, problem=kind)
    rows = {name: _read_rows(table, request, kind) for name, table in tables.items()}
    names = _label_names(rows[TRAIN], kind, request)
    check_labels_differ(rows[TRAIN].labels, kind, tables[TRAIN].name)
    if kind != REGRESSION:
        for name in set(rows) - {TRAIN}:
            sets = [each if kind == MULTI_LABEL else [each] for each in rows[name].labels]
            check_known(tables[name], request.label_column, rows[name].places, sets, set(names))
    arrangement = arrange(
        {name: each.keys for name, each in rows.items()},
        {name: _label_sets(each.labels, kind) for name, each in rows.items()},
        request.seed,
        several=kind == MULTI_LABEL,
        strata=quantile_strata(rows[TRAIN].labels) if kind == REGRESSION else None,
    )
    numbers = {name: number for number, name in enumerate(names)}
    parts = {name: _part(rows[arrangement.sources[name]], arrangement.rows[name], numbers, kind) for name in _NAMES}
    for name in (TRAIN, VALIDATION):
        if not len(parts[name]):
            raise DataRefused(
                f"{tables[TRAIN].name}: {len(rows[TRAIN].texts)} rows are too few to keep any for {name}; at least two"
                " different texts of one label are needed"
            )
    document = write_document(
        task=TEXT_CLASSIFICATION,
        request=request.as_dict(),
        files={name: table.record for name, table in tables.items()},
        labels=names,
        licence=licence_of(request, tables),
        arrangement=arrangement,
        splits={name: _record(part, names, kind) for name, part in parts.items() if len(part)},
        counts={"skipped_rows": sum(each.skipped for each in rows.values())},
        notes=notes,
    )
    document["problem"] = {"kind": kind, "reason": reason}
    test = parts[TEST] if len(parts[TEST]) else None
    return TextClassificationData(name_of(request), names, parts[TRAIN], parts[VALIDATION], kind, test, document)


_NAMES = (TRAIN, VALIDATION, TEST)


def rebuild_texts(document: Mapping[str, Any], folder: Path | None = None) -> TextClassificationData:
    """Read the same splits again from the document that `load_texts` gave them.

    Args:
        document: the record of the first time.
        folder: where the files lie now, if they were moved.

    Raises:
        DataRefused: a file is gone or has changed, or a data set of the hub has other rows now.
    """
    data = load_texts(TextRequest.of_document(document, folder))
    check_same_splits(document, data.document or {})
    return replace(data, document=dict(document))


def _leave_out_unlabelled_test(tables: dict[str, Table], request: TextRequest) -> list[str]:
    """Remove a test split of the hub whose labels are not published."""
    if (
        TEST in tables
        and request.test is None
        and all(label is None for label in tables[TEST].column(request.label_column))
    ):
        name = tables.pop(TEST).name
        return [f"{name} has no labels and is left out; a test split is made of training rows"]
    return []


def _read_rows(table: Table, request: TextRequest, kind: str) -> _Rows:
    text_columns = request.columns[:-1]
    values = [table.column(column) for column in text_columns]
    labels = table.column(request.label_column)
    bad: list[tuple[int, str, str]] = []  # row, column, what it lacks
    used = []
    for row in range(len(table)):
        lacking = [
            (row, column, "text")
            for column, texts in zip(text_columns, values, strict=True)
            if texts[row] is None or not str(texts[row]).strip()
        ]
        if lacks_label(labels[row], kind):
            lacking.append((row, request.label_column, "label"))
        bad += lacking[:1]
        if not lacking:
            used.append(row)
    if bad and not request.skip_bad_rows:
        row, column, what = bad[0]
        more = f" ({len(bad)} rows of the file lack a text or a label)" if len(bad) > 1 else ""
        raise DataRefused(
            f"{table.place(row, column)}: the {what} is empty{more}; fill it in, remove the row, or skip empty rows"
        )
    if not used:
        raise DataRefused(f"{table.name}: no row has a text and a label")
    for column, texts in zip(text_columns, values, strict=True):
        for row in used:
            if not isinstance(texts[row], str):
                raise DataRefused(f"{table.place(row, column)}: {texts[row]!r} is not a text")
    columns = [[texts[row] for row in used] for texts in values]
    read = read_labels(table, request.label_column, used, kind)
    return _Rows(columns[0], columns[1] if len(columns) > 1 else None, list(read), used, len(bad))


def _label_names(train: _Rows, kind: str, request: TextRequest) -> list[str]:
    if kind == REGRESSION:
        return [request.label_column]
    return names_of([name for each in train.labels for name in (each if kind == MULTI_LABEL else [each])])


def _label_sets(labels: Sequence[Any], kind: str) -> list[frozenset[Hashable]]:
    return [frozenset(each if kind == MULTI_LABEL else [each]) for each in labels]


def _part(rows: _Rows, chosen: Sequence[int], numbers: Mapping[str, int], kind: str) -> LabelledTexts:
    def label(written: Any) -> Any:
        if kind == REGRESSION:
            return written
        return sorted(numbers[name] for name in written) if kind == MULTI_LABEL else numbers[written]

    pairs = None if rows.pairs is None else [rows.pairs[row] for row in chosen]
    return LabelledTexts([rows.texts[row] for row in chosen], [label(rows.labels[row]) for row in chosen], pairs)


def _record(part: LabelledTexts, names: Sequence[str], kind: str) -> dict[str, Any]:
    return {
        "rows": len(part),
        "sha256": digest([part.texts, part.pairs, part.labels]),
        "labels": counts_by_label(names, part.labels, kind),
    }
