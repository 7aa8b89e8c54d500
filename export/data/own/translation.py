"""Parallel texts of one's own: a table with two columns, or two files whose lines belong together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from export.data.own.documents import check_same_splits, write_document
from export.data.own.refusals import DataRefused
from export.data.own.sources import Request, licence_of, name_of, read_sources
from export.data.own.splits import TEST, TRAIN, VALIDATION, arrange, digest, normalised
from export.data.own.tables import Table
from export.data.own.text_files import lines_of, read_text
from export.data.translation import ParallelTexts, TranslationData
from export.task_table import TRANSLATION

MAX_HELD_OUT_PAIRS = 2_000  # as many as the test sets of WMT; every one is translated with beam search
SPLITS = (TRAIN, VALIDATION, TEST)


@dataclass(frozen=True, kw_only=True)
class TranslationRequest(Request):
    """A request for parallel texts. The columns have the names of the languages where none are given.

    Where `train_target` is given, `train` is a file with a sentence a line, and `train_target` has their translations.
    So it is with the other splits.
    """

    source_language: str = "en"
    target_language: str = "de"
    source_column: str | None = None
    target_column: str | None = None
    train_target: str | None = None
    validation_target: str | None = None
    test_target: str | None = None

    PATHS: ClassVar[tuple[str, ...]] = (*SPLITS, *(f"{name}_target" for name in SPLITS))

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        return [self.source_column or self.source_language, self.target_column or self.target_language]


def load_pairs(request: TranslationRequest) -> TranslationData:
    """Read parallel texts, split them, and record where they come from.

    All pairs with the same source text go to one split; several translations of one text are counted.

    Raises:
        DataRefused: the data cannot be used; one sentence with file, row and column.
    """
    tables, files = _read(request)
    rows = {name: _pairs(table, request.columns, request.skip_bad_rows) for name, table in tables.items()}
    pairs = {name: each for name, (each, _) in rows.items()}
    whole = len(pairs[TRAIN])
    arrangement = arrange(
        {name: [normalised(text) for text in each.source] for name, each in pairs.items()},
        {name: [frozenset([normalised(text)]) for text in each.target] for name, each in pairs.items()},
        request.seed,
        strata=[frozenset()] * whole,
        max_rows=MAX_HELD_OUT_PAIRS,
    )
    parts = {name: _chosen(pairs[arrangement.sources[name]], arrangement.rows[name]) for name in SPLITS}
    for name in (TRAIN, VALIDATION):
        if not len(parts[name]):
            raise DataRefused(f"{tables[TRAIN].name}: {whole} pairs are too few to keep any for {name}")
    licence = licence_of(request, tables)
    document = write_document(
        task=TRANSLATION,
        request=request.as_dict(),
        files=files,
        labels=[],
        licence=licence,
        arrangement=arrangement,
        splits={name: _record(part) for name, part in parts.items() if len(part)},
        counts={"skipped_rows": sum(skipped for _, skipped in rows.values())},
    )
    name = name_of(request)
    return TranslationData(
        name,
        licence,
        request.source_language,
        request.target_language,
        parts[TRAIN],
        parts[VALIDATION],
        {name: parts[TEST]} if len(parts[TEST]) else {},
        document,
    )


def rebuild_pairs(document: Mapping[str, Any], folder: Path | None = None) -> TranslationData:
    """Read the same splits again from the document that `load_pairs` gave them.

    Args:
        document: the record of the first time.
        folder: where the files lie now, if they were moved.

    Raises:
        DataRefused: a file is gone or has changed, or a data set of the hub has other rows now.
    """
    data = load_pairs(TranslationRequest.of_document(document, folder))
    check_same_splits(document, data.document or {})
    return replace(data, document=dict(document))


def _read(request: TranslationRequest) -> tuple[dict[str, Table], dict[str, dict[str, Any]]]:
    """Read the tables of the splits, and the records of all files."""
    aligned: dict[str, Table] = {}
    files: dict[str, dict[str, Any]] = {}
    for name, source in request.sources.items():
        target = getattr(request, f"{name}_target")
        if target is not None:
            aligned[name], records = _aligned(Path(source), Path(target), request.columns)
            files |= {name: records[0], f"{name}_target": records[1]}
    others = {name: source for name, source in request.sources.items() if name not in aligned}
    tables = {name: table for name, table in read_sources(others, request.columns).items() if name not in aligned}
    return tables | aligned, {name: table.record for name, table in tables.items()} | files


def _aligned(source: Path, target: Path, columns: Sequence[str]) -> tuple[Table, list[dict[str, Any]]]:
    texts, records = zip(*(read_text(path) for path in (source, target)), strict=True)
    lines = [lines_of(text) for text in texts]
    if len(lines[0]) != len(lines[1]):
        raise DataRefused(
            f"{source} has {len(lines[0])} lines and {target} has {len(lines[1])}: each line needs its translation on"
            " the line with the same number"
        )
    numbers = range(1, len(lines[0]) + 1)
    table = Table(f"{source} and {target}", dict(zip(columns, lines, strict=True)), numbers, "line", {})
    return table, [record.as_dict(len(lines[0])) for record in records]


def _pairs(table: Table, columns: Sequence[str], skip: bool) -> tuple[ParallelTexts, int]:
    values = [table.column(column) for column in columns]
    used = []
    for row in range(len(table)):
        for column, texts in zip(columns, values, strict=True):
            if texts[row] is not None and not isinstance(texts[row], str):
                raise DataRefused(f"{table.place(row, column)}: {texts[row]!r} is not a text")
        empty = [column for column, texts in zip(columns, values, strict=True) if not (texts[row] or "").strip()]
        if empty and not skip:
            raise DataRefused(
                f"{table.place(row, empty[0])}: the text is empty; fill it in, remove the row, or skip bad rows"
            )
        if not empty:
            used.append(row)
    if not used:
        raise DataRefused(f"{table.name}: no row has both texts")
    source, target = ([texts[row].strip() for row in used] for texts in values)
    return ParallelTexts(source, target), len(table) - len(used)


def _chosen(pairs: ParallelTexts, rows: Sequence[int]) -> ParallelTexts:
    return ParallelTexts([pairs.source[row] for row in rows], [pairs.target[row] for row in rows])


def _record(part: ParallelTexts) -> dict[str, Any]:
    return {"rows": len(part), "sha256": digest([part.source, part.target]), "labels": {}}
