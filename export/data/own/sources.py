"""Finds the tables of a data set: files for training, validation and test, or the splits of a data set of the hub.

Their record tells whether they are the same later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from export.data.own.documents import DOCUMENT_FORMAT, check_unchanged
from export.data.own.refusals import DataRefused, listed
from export.data.own.splits import TEST, TRAIN, VALIDATION, digest
from export.data.own.tables import Table, is_hub_id, read_hub, read_table

NOT_STATED = "not stated"
# The names that data sets of the hub give their splits.
HUB_NAMES = {TRAIN: ("train",), VALIDATION: ("validation", "valid", "val", "dev"), TEST: ("test",)}


@dataclass(frozen=True, kw_only=True)
class Request:
    """Where a data set lies, and how it is split. Tasks add the names of their columns.

    A source is a file, a data set of the hub (`owner/name` or `owner/name:configuration`), or a folder that the
    `datasets` library reads.
    """

    train: str
    validation: str | None = None
    test: str | None = None
    seed: int = 0
    skip_bad_rows: bool = False  # leave out rows without an input or a label, and count them, instead of a refusal
    licence: str | None = None

    PATHS: ClassVar[tuple[str, ...]] = (TRAIN, VALIDATION, TEST)  # the fields that may be paths

    @property
    def sources(self) -> dict[str, str]:
        """The given sources by split."""
        given = {TRAIN: self.train, VALIDATION: self.validation, TEST: self.test}
        return {name: source for name, source in given.items() if source is not None}

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, with absolute paths."""
        fields = asdict(self)
        found = {name: Path(fields[name]) for name in self.PATHS if fields[name] and Path(fields[name]).exists()}
        return fields | {name: str(path.resolve()) for name, path in found.items()}

    @classmethod
    def of_document(cls, document: Mapping[str, Any], folder: Path | None) -> Self:
        """Return the request that a document records, with the files looked for in `folder` if one is given.

        Raises:
            DataRefused: a file is gone or has changed, or the document is of another format.
        """
        if document.get("format") != DOCUMENT_FORMAT:
            raise DataRefused(
                f"the data's document has format {document.get('format')!r}; this program reads {DOCUMENT_FORMAT}"
            )
        request = cls(**document["request"])
        found: dict[str, Any] = {}
        for name, record in document["files"].items():
            if "path" not in record:
                continue
            path = folder / record["name"] if folder else Path(record["path"])
            check_unchanged(path, record["sha256"])
            found[name] = str(path)
        return replace(request, **found)


def read_sources(sources: Mapping[str, str], columns: Sequence[str]) -> dict[str, Table]:
    """Read the tables of a data set by split.

    A data set of the hub as training source also gives the validation and test splits that it has and that have no
    source of their own.

    Raises:
        DataRefused: a source cannot be read, or lacks the split.
    """
    tables: dict[str, Table] = {}
    for name, source in sources.items():
        if not Path(source).is_dir() and not is_hub_id(source):
            tables[name] = read_table(Path(source), columns)
            continue
        splits = read_hub(source)
        if name == TRAIN:
            wanted = {split: names for split, names in HUB_NAMES.items() if split == TRAIN or split not in sources}
        else:
            wanted = {name: (*HUB_NAMES[name], *splits)}  # the only split of a data set may have any name
        for split, names in wanted.items():
            found = [each for each in names if each in splits]
            if found:
                tables[split] = _with_digest(splits[found[0]], columns)
            elif split == name:
                raise DataRefused(f"the data set {source} has no split {name!r}; it has {listed(map(repr, splits))}")
    return tables


def _with_digest(table: Table, columns: Sequence[str]) -> Table:
    # The hub has no file of its own for a split, so the rows themselves are what is recorded.
    rows = list(zip(*(table.column(column) for column in columns or table.columns), strict=True))
    return replace(table, record=table.record | {"sha256": digest([[str(value) for value in row] for row in rows])})


def licence_of(request: Request, tables: Mapping[str, Table]) -> str:
    """Return the licence as the request or the hub gives it, or NOT_STATED."""
    return request.licence or tables[TRAIN].licence or NOT_STATED


def name_of(request: Request) -> str:
    """Return a name for the data set: that of its training file without the ending, or the name on the hub."""
    path = Path(request.train)
    return path.stem if path.is_file() else path.resolve().name if path.is_dir() else request.train
