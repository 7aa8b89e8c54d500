"""The record of a data set of one's own: where it comes from, how it was split, and whether it is still the same."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.data.own.refusals import DataRefused
from export.data.own.splits import Arrangement, rare_label_notes

DOCUMENT_FORMAT = 1


def write_document(
    *,
    task: str,
    request: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Any]],
    labels: Sequence[str],
    licence: str,
    arrangement: Arrangement,
    splits: Mapping[str, Mapping[str, Any]],
    counts: Mapping[str, int],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the record of a data set, for JSON.

    Args:
        task: the task that the data is for.
        request: the fields of the request, with what was found of what it left open.
        files: the record of each source; see `FileRecord.as_dict`.
        labels: the names of the classes by number.
        licence: the licence as given, or NOT_STATED.
        arrangement: the rows of each split.
        splits: for each split that has rows their number (`rows`), their sha256, and the rows of each label (`labels`).
        counts: counts beside those of the arrangement, such as skipped rows.
        notes: further sentences.
    """
    every = {**arrangement.facts, **counts}
    by_label = {name: part["labels"] for name, part in splits.items()}
    return {
        "format": DOCUMENT_FORMAT,
        "task": task,
        "request": dict(request),
        "files": {name: dict(record) for name, record in files.items()},
        "licence": licence,
        "labels": list(labels),
        "splits": {name: {"made_of": arrangement.sources[name], **part} for name, part in splits.items()},
        "counts": every,
        "notes": [*notes, *notes_of(every), *rare_label_notes(by_label)],
    }


def notes_of(counts: Mapping[str, int]) -> list[str]:
    """Return a sentence for each count that is not zero."""
    sentences = {
        "duplicate_rows": "rows with the input of another row, case and spaces aside (all copies are in one split)",
        "contradictory_inputs": "inputs that occur several times with different answers",
        "skipped_rows": "rows that were skipped because the input or the label is missing",
        "train_rows_also_in_test": "training rows that were removed because a test row has the same input",
        "validation_rows_also_in_test": "validation rows that were removed because a test row has the same input",
        "train_rows_also_in_validation": "training rows that were removed because a validation row has the same input",
        "entities_that_cut_words": "entities that begin or end inside a word",
        "entities_trimmed": "entities whose spaces at an end were left out",
        "files_of_other_kinds": "files that were left out because their names are not those of images",
    }
    return [f"{sentences[name]}: {count}" for name, count in counts.items() if count]


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
