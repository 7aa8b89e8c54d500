"""Sources of a data set, and the record by which they are found again."""

import shutil
from pathlib import Path

import datasets
import pytest

from export.data.own.refusals import DataRefused
from export.data.own.sources import NOT_STATED, Request, licence_of, read_sources
from export.data.own.splits import TEST, TRAIN, VALIDATION
from tests.conftest import ROOT

TICKETS = ROOT / "tests" / "data" / "own" / "tickets.csv"


def document_of(request: Request) -> dict[str, object]:
    """Record a request as a task does."""
    tables = read_sources(request.sources, ["text", "label"])
    files = {name: table.record for name, table in tables.items()}
    return {"format": 1, "request": request.as_dict(), "files": files, "splits": {}}


def test_a_request_is_rebuilt_from_its_document_also_after_a_move(tmp_path: Path) -> None:
    """The name of the file and its sum are enough."""
    shutil.copy(TICKETS, tmp_path)
    document = document_of(Request(train=str(tmp_path / "tickets.csv"), seed=3))
    assert Request.of_document(document, None) == Request(train=str(tmp_path / "tickets.csv"), seed=3)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "tickets.csv").rename(moved / "tickets.csv")
    assert Request.of_document(document, moved).train == str(moved / "tickets.csv")
    with pytest.raises(DataRefused, match=r"tickets.csv: the file that the splits were made of is gone"):
        Request.of_document(document, None)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    """One more row is another data set."""
    path = Path(shutil.copy(TICKETS, tmp_path))
    document = document_of(Request(train=str(path)))
    assert Request.of_document(document, None).train == str(path)
    with path.open("a") as file:
        file.write("One more.,billing\n")
    with pytest.raises(DataRefused, match=r"tickets.csv has changed since the splits were made \(its sha256 was"):
        Request.of_document(document, None)


def test_documents_of_another_format_are_refused() -> None:
    """Both numbers are said."""
    with pytest.raises(DataRefused, match="format 2; this program reads 1"):
        Request.of_document({"format": 2}, None)


def test_a_data_set_gives_the_splits_that_it_has(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HEED_DATASETS is looked at as the built-in data sets do; a file can stand in for a split."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setenv("HEED_DATASETS", str(tmp_path))
    for split, texts in {"train": ["a", "b"], "validation": ["c"]}.items():
        rows = datasets.Dataset.from_dict({"text": texts, "label": ["x"] * len(texts)})
        (tmp_path / "toys").mkdir(exist_ok=True)
        rows.to_parquet(tmp_path / "toys" / f"{split}.parquet")
    tables = read_sources({TRAIN: "someone/toys", TEST: str(TICKETS)}, ["text", "label"])
    assert {name: len(table) for name, table in tables.items()} == {TRAIN: 2, VALIDATION: 1, TEST: 150}
    assert len(tables[TRAIN].record["sha256"]) == 64 and "path" not in tables[TRAIN].record
    assert len(read_sources({TRAIN: str(TICKETS), TEST: "someone/toys"}, ["text"])[TEST]) == 2
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read_sources({TRAIN: "someone/other"}, ["text"])


def test_the_licence_is_the_given_one_or_not_stated() -> None:
    """Nothing is guessed."""
    tables = read_sources({TRAIN: str(TICKETS)}, ["text"])
    assert licence_of(Request(train=str(TICKETS)), tables) == NOT_STATED
    assert licence_of(Request(train=str(TICKETS), licence="CC0-1.0"), tables) == "CC0-1.0"
