"""Finds the tables of a data set: files for training, validation and test, or the splits of a data set of the hub.

Their record tells whether they are the same later.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from export.data.own.refusals import DataRefused, listed
from export.data.own.splits import TEST, TRAIN, VALIDATION, digest
from export.data.own.tables import Table, is_hub_id, read_hub, read_table

DOCUMENT_FORMAT = 1
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
    skip_empty: bool = False  # leave out rows without a text or a label, and count them, instead of a refusal
    licence: str | None = None

    @property
    def sources(self) -> dict[str, str]:
        """The given sources by split."""
        given = {TRAIN: self.train, VALIDATION: self.validation, TEST: self.test}
        return {name: source for name, source in given.items() if source is not None}

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, with absolute paths."""
        return asdict(self) | {
            name: str(Path(source).resolve()) if Path(source).exists() else source
            for name, source in self.sources.items()
        }

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
        return replace(request, **{name: found[name] for name in request.sources if name in found})


def check_unchanged(path: Path, sha256: str) -> None:
    """Compare a file with the sum that was recorded.

    Raises:
        DataRefused: the file is gone or has changed.
    """
    if not path.is_file():
        raise DataRefused(f"{path}: the file that the splits were made of is gone")
    with path.open("rb") as file:
        now = hashlib.file_digest(file, "sha256").hexdigest()
    if now != sha256:
        raise DataRefused(
            f"{path} has changed since the splits were made (its sha256 was {sha256[:12]}..., now it is {now[:12]}...):"
            " the held-out rows would no longer be the same"
        )


def read_sources(request: Request, columns: Sequence[str]) -> dict[str, Table]:
    """Read the tables of a request by split.

    A data set of the hub as training source also gives the validation and test splits that it has and that the request
    does not name.

    Raises:
        DataRefused: a source cannot be read, or lacks the split.
    """
    tables: dict[str, Table] = {}
    for name, source in request.sources.items():
        if Path(source).is_dir() or is_hub_id(source):
            splits = read_hub(source)
            wanted = HUB_NAMES if name == TRAIN else {name: (*HUB_NAMES[name], *splits)}
            for split, names in wanted.items():
                for each in names:
                    if each in splits and split not in tables:
                        tables[split] = _with_digest(splits[each], columns)
            if name not in tables:
                raise DataRefused(f"the data set {source} has no split {name!r}; it has {listed(map(repr, splits))}")
        else:
            tables[name] = read_table(Path(source), columns)
    return tables


def _with_digest(table: Table, columns: Sequence[str]) -> Table:
    # The hub has no file of its own for a split, so the rows themselves are what is recorded.
    rows = list(zip(*(table.column(column) for column in columns), strict=True))
    return replace(table, record=table.record | {"sha256": digest([[str(value) for value in row] for row in rows])})


def licence_of(request: Request, tables: Mapping[str, Table]) -> str:
    """Return the licence as the request or the hub gives it, or NOT_STATED."""
    return request.licence or tables[TRAIN].licence or NOT_STATED


def check_same_splits(document: Mapping[str, Any], rebuilt: Mapping[str, Any]) -> None:
    """Compare rebuilt splits with a document.

    Raises:
        DataRefused: a source or a split differs.
    """
    for part in ("files", "splits"):
        for name, before in document[part].items():
            now = rebuilt[part].get(name, {})
            if now.get("sha256") != before["sha256"]:
                raise DataRefused(
                    f"the {name} {'source' if part == 'files' else 'split'} has other rows than when its document was"
                    f" written ({now.get('rows')} rows now, {before['rows']} then)"
                )
