"""Labelled texts of one's own, from files to splits and back from their document."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest

from export.data.own.refusals import DataRefused
from export.data.own.texts import TextRequest, load_texts, rebuild_texts
from tests.conftest import ROOT

OWN = ROOT / "tests" / "data" / "own"
LETTERS = "abcdefghijklmnopqrst"


def csv_file(path: Path, rows: Sequence[Sequence[Any]], header: Sequence[str] = ("text", "label")) -> str:
    """Write a file and return its path."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def plain(count: int = 20) -> list[tuple[str, str]]:
    """Make rows with two labels."""
    return [(f"text {LETTERS[number]}", "ab"[number % 2]) for number in range(count)]


def test_support_tickets_with_seven_labels() -> None:
    """The labels are as written; every split has every label."""
    data = load_texts(TextRequest(train=str(OWN / "tickets.csv"), licence="CC0-1.0"))
    assert data.name == "tickets" and data.problem == "single_label_classification"
    assert data.label_names == [
        "account", "billing", "delivery", "praise", "product question", "returns", "technical problem"
    ]  # fmt: skip
    assert data.test is not None and data.document is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (104, 23, 23)
    for part in (data.train, data.validation, data.test):
        assert set(part.labels) == set(range(7)) and part.inputs == part.texts
    with (OWN / "tickets.csv").open(newline="") as file:
        written = dict(list(csv.reader(file))[1:])
    assert all(
        written[text] == data.label_names[label] for text, label in zip(data.test.texts, data.test.labels, strict=True)
    )
    assert data.document["licence"] == "CC0-1.0" and data.document["notes"] == []
    assert data.document["splits"]["train"]["labels"]["billing"] == 20


def test_reviews_with_several_labels() -> None:
    """Rows without any label are rows."""
    data = load_texts(TextRequest(train=str(OWN / "hotel_reviews.csv"), label_column="labels"))
    assert data.problem == "multi_label_classification"
    assert data.label_names == ["cleanliness", "food", "location", "price", "staff"]
    every = data.train.labels + data.validation.labels + (data.test.labels if data.test else [])
    assert [] in every and len(every) == 120 and all(labels == sorted(labels) for labels in every)


def test_a_regression() -> None:
    """The output has the column's name."""
    data = load_texts(TextRequest(train=str(OWN / "urgency.csv"), label_column="urgency"))
    assert data.problem == "regression" and data.label_names == ["urgency"]
    assert all(isinstance(label, float) and 0 <= label <= 10 for label in data.train.labels)
    assert data.test is not None and max(data.test.labels) - min(data.test.labels) > 5


@pytest.mark.parametrize(
    ("name", "column"), [("tickets.csv", "label"), ("hotel_reviews.csv", "labels"), ("urgency.csv", "urgency")]
)
def test_the_same_splits_come_back_from_the_document(name: str, column: str) -> None:
    """After a way through JSON."""
    data = load_texts(TextRequest(train=str(OWN / name), label_column=column, seed=5))
    assert rebuild_texts(json.loads(json.dumps(data.document))) == data
    assert load_texts(TextRequest(train=str(OWN / name), label_column=column, seed=6)).test != data.test


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    """Held-out rows would mix with training rows."""
    path = csv_file(tmp_path / "a.csv", plain())
    document = load_texts(TextRequest(train=path)).document
    assert document is not None
    csv_file(tmp_path / "a.csv", [*plain(), ("one more", "a")])
    with pytest.raises(DataRefused, match=r"a.csv has changed since the splits were made"):
        rebuild_texts(document)


def test_pairs_are_inputs_with_two_texts(tmp_path: Path) -> None:
    """As the task API takes them."""
    rows = [(f"question {letter}", f"answer {letter}", "yes" if letter < "k" else "no") for letter in LETTERS]
    path = csv_file(tmp_path / "a.csv", rows, ("question", "answer", "label"))
    data = load_texts(TextRequest(train=path, text_column="question", text_pair_column="answer"))
    text = data.train.texts[0]
    assert data.train.inputs[0] == {"text": text, "text_pair": text.replace("question", "answer")}


def test_given_files_are_the_splits_and_their_rows_leave_training(tmp_path: Path) -> None:
    """The counts are said in a note."""
    train = csv_file(tmp_path / "train.csv", plain())
    validation = csv_file(tmp_path / "v.csv", [("TEXT  a", "a"), ("text y", "b")])
    test = csv_file(tmp_path / "t.csv", [("text b", "b"), ("text z", "a"), ("text y", "b")])
    data = load_texts(TextRequest(train=train, validation=validation, test=test))
    assert data.document is not None and data.test is not None
    assert data.validation.texts == ["TEXT  a"] and data.test.texts == ["text b", "text z", "text y"]
    assert len(data.train) == 18 and not {"text a", "text b"} & set(data.train.texts)
    assert "training rows that were removed because a test row has the same input: 1" in data.document["notes"]
    assert "validation rows that were removed because a test row has the same input: 1" in data.document["notes"]
    assert rebuild_texts(data.document) == data


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("", "a"), r"a.csv, line 22, column 'text': the text is empty; fill it in"),
        (("  ", "a"), r"a.csv, line 22, column 'text': the text is empty"),
        (("x", ""), r"a.csv, line 22, column 'label': the label is empty"),
    ],
)
def test_empty_cells_are_refused_or_skipped_and_counted(tmp_path: Path, row: tuple[str, str], message: str) -> None:
    """By choice."""
    path = csv_file(tmp_path / "a.csv", [*plain(), row])
    with pytest.raises(DataRefused, match=message):
        load_texts(TextRequest(train=path))
    data = load_texts(TextRequest(train=path, skip_bad_rows=True))
    assert data.document is not None and data.document["counts"]["skipped_rows"] == 1
    assert data.document["notes"] == ["rows that were skipped because the input or the label is missing: 1"]


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (plain(), {"label_column": "lable"}, "has no column 'lable'; its columns are 'label', 'text'"),
        (plain(), {"problem": "regression"}, "line 2, column 'label': 'a' is not a number"),
        (plain(), {"problem": "ranking"}, "the problem 'ranking' is unknown; it is one of single_label_class"),
        ([("x", "a"), ("y", "a")], {}, "every row has the label 'a'"),
        ([("x", "a"), ("y", "b")], {}, "2 rows are too few to keep any for validation"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(
    tmp_path: Path, rows: list[tuple[str, str]], changes: dict[str, Any], message: str
) -> None:
    """Each in a sentence."""
    path = csv_file(tmp_path / "a.csv", rows)
    with pytest.raises(DataRefused, match=message):
        load_texts(TextRequest(train=path, **changes))


def test_texts_of_json_are_texts(tmp_path: Path) -> None:
    """A number is none."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "label": 0}\n{"text": 5, "label": 1}\n')
    with pytest.raises(DataRefused, match=r"a.jsonl, line 2, column 'text': 5 is not a text"):
        load_texts(TextRequest(train=str(path)))


def test_a_problem_can_be_asked_for(tmp_path: Path) -> None:
    """Stars from 1 to 5 are labels, unless they are numbers."""
    path = csv_file(tmp_path / "a.csv", [(f"text {n}", n % 5 + 1) for n in range(40)])
    stars = load_texts(TextRequest(train=path))
    assert stars.label_names == ["1", "2", "3", "4", "5"] and stars.document is not None
    assert "5 different whole numbers: they are taken as labels" in stars.document["problem"]["reason"]
    assert set(load_texts(TextRequest(train=path, problem="regression")).train.labels) == {1.0, 2.0, 3.0, 4.0, 5.0}


def test_small_sets_rare_labels_and_copies_are_taken_and_said(tmp_path: Path) -> None:
    """A label with one row is only for training."""
    rows = [*plain(8), ("only", "c"), ("Text A", "a"), ("text  b", "a")]
    data = load_texts(TextRequest(train=csv_file(tmp_path / "a.csv", rows)))
    assert data.document is not None and "only" in data.train.texts
    assert data.document["counts"] == {"duplicate_rows": 2, "contradictory_inputs": 1, "skipped_rows": 0}
    assert "inputs that occur several times with different answers: 1" in data.document["notes"]
    assert any("the test split has no row of 'c' (1 in all)" in note for note in data.document["notes"])
    tiny = load_texts(TextRequest(train=csv_file(tmp_path / "b.csv", [("x", "a"), ("y", "a"), ("z", "b"), ("w", "b")])))
    assert tiny.test is None and len(tiny.validation) == 2 and rebuild_texts(tiny.document or {}) == tiny


def test_a_test_split_without_labels_is_left_out(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As GLUE has them; a note says so, and training rows make the test split."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setenv("HEED_DATASETS", str(tmp_path))
    (tmp_path / "toys").mkdir()
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    for split, labels in {"train": [0, 1] * 10, "test": [-1] * 4}.items():
        texts = [f"{split} {number}" for number in range(len(labels))]
        rows = datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)
        rows.to_parquet(tmp_path / "toys" / f"{split}.parquet")
    data = load_texts(TextRequest(train="someone/toys"))
    assert data.label_names == ["no", "yes"] and data.document is not None and data.test is not None
    assert data.document["notes"] == [
        "someone/toys, split test has no labels and is left out; a test split is made of training rows"
    ]
    assert all(text.startswith("train") for text in data.test.texts)
    assert rebuild_texts(data.document) == data


def test_a_thousand_labels(tmp_path: Path) -> None:
    """Each with four rows."""
    rows = [(f"text {n}", f"label {n % 1000:04d}") for n in range(4000)]
    data = load_texts(TextRequest(train=csv_file(tmp_path / "a.csv", rows)))
    assert len(data.label_names) == 1000 and data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (2000, 1000, 1000)
