"""The record of a data set, and what is compared with it."""

from pathlib import Path

import pytest

from export.data.own.documents import check_same_splits, check_unchanged, notes_of, write_document
from export.data.own.refusals import DataRefused
from export.data.own.splits import TEST, TRAIN, VALIDATION, Arrangement


def test_the_record_names_sources_splits_counts_and_notes() -> None:
    """Rare labels are noted from the counts by label."""
    arrangement = Arrangement({}, {TRAIN: TRAIN, VALIDATION: TRAIN, TEST: TEST}, {"duplicate_rows": 2})
    document = write_document(
        task="text-classification",
        request={"train": "a.csv"},
        files={TRAIN: {"name": "a.csv"}},
        labels=["a", "b"],
        licence="not stated",
        arrangement=arrangement,
        splits={
            TRAIN: {"rows": 3, "sha256": "x", "labels": {"a": 2, "b": 1}},
            VALIDATION: {"rows": 1, "sha256": "y", "labels": {"a": 1, "b": 0}},
        },
        counts={"skipped_rows": 0},
        notes=["first"],
    )
    assert document["splits"]["validation"]["made_of"] == "train"
    assert document["counts"] == {"duplicate_rows": 2, "skipped_rows": 0}
    assert document["notes"][0] == "first" and document["notes"][1].endswith(": 2")
    assert "the validation split has no row of 'b'" in document["notes"][2] and len(document["notes"]) == 3


def test_counts_of_zero_need_no_sentence() -> None:
    """The others have one each."""
    assert notes_of({"duplicate_rows": 0, "skipped_rows": 3}) == [
        "rows that were skipped because the input or the label is missing: 3"
    ]


def test_files_are_compared_by_their_sum(tmp_path: Path) -> None:
    """The sum of an empty file is well known."""
    path = tmp_path / "a.csv"
    path.touch()
    check_unchanged(path, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    path.write_text("text")
    with pytest.raises(
        DataRefused, match=r"a.csv has changed since the splits were made \(its sha256 was e3b0c44298fc"
    ):
        check_unchanged(path, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")


def test_splits_that_differ_from_their_document_are_refused() -> None:
    """As when a data set of the hub has changed."""
    before = {"files": {TRAIN: {"sha256": "a", "rows": 5}}, "splits": {TEST: {"sha256": "b", "rows": 2}}}
    check_same_splits(before, before)
    with pytest.raises(DataRefused, match=r"the train source has other rows .* \(6 rows now, 5 then\)"):
        check_same_splits(before, before | {"files": {TRAIN: {"sha256": "c", "rows": 6}}})
    with pytest.raises(DataRefused, match="the test split has other rows"):
        check_same_splits(before, before | {"splits": {}})
