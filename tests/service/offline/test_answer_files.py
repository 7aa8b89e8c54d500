"""Columns and files of answers."""

import csv
import json
from io import StringIO
from pathlib import Path

import pytest

from service.offline.answer_files import AnswerColumns, AnswerFile, form_of, writer_of
from service.offline.rows import FileRefused, Row
from service.tasks.hub_messages import LabelScore, TranslatedText

SCORES = [{"label": "a", "score": 0.75}, {"label": "b", "score": 0.25}]


@pytest.mark.parametrize(
    ("answer", "top_k", "document", "expected"),
    [
        (list[LabelScore], None, SCORES, {"predicted_label": "a", "predicted_score": 0.75}),
        (
            list[LabelScore],
            3,
            SCORES,
            {
                "predicted_label": "a",
                "predicted_score": 0.75,
                "predicted_label_2": "b",
                "predicted_score_2": 0.25,
                "predicted_label_3": "",
                "predicted_score_3": "",
            },
        ),
        (TranslatedText, None, {"translation_text": "Hund"}, {"predicted_translation_text": "Hund"}),
        (list[float], None, [0.5, 1.0], {"predicted": "[0.5,1.0]"}),
    ],
)
def test_the_columns_follow_the_form_of_the_answer(
    answer: object, top_k: int | None, document: object, expected: dict[str, object]
) -> None:
    """What has no columns of its own is JSON."""
    columns = AnswerColumns(answer, top_k)
    assert dict(zip(columns.names, columns.cells(document), strict=True)) == expected


def test_several_predicted_labels_stand_in_one_field() -> None:
    """They are those that reach their thresholds, as training reads them; with `--top-k` each has its own columns."""
    document = [
        {"label": name, "score": score, "predicted": score > 0.5}
        for name, score in zip("abc", (0.9, 0.8, 0.1), strict=True)
    ]
    assert AnswerColumns(list[LabelScore], None).cells(document) == ["a|b", "0.9|0.8"]
    assert AnswerColumns(list[LabelScore], None).cells(document[2:]) == ["", ""]
    assert AnswerColumns(list[LabelScore], 2).cells(document) == ["a", 0.9, "b", 0.8]


def test_each_number_of_a_regression_has_columns() -> None:
    """No number is lost, though the task API sorts them."""
    columns = AnswerColumns(list[LabelScore], None, num_values=2)
    assert columns.names == ["predicted_label", "predicted_score", "predicted_label_2", "predicted_score_2"]
    assert columns.cells(SCORES) == ["a", 0.75, "b", 0.25]


def test_csv_and_json_lines_hold_row_answer_and_problem() -> None:
    """Separators and quotes survive."""
    columns = AnswerColumns(list[LabelScore], None)
    rows = [(Row("line 2", {"id": "1", "text": 'a,"b"'}), SCORES, None), (Row("line 3", {"id": "2"}), None, "empty")]
    for form in (".csv", ".jsonl"):
        file = StringIO()
        writer = writer_of(form, file, ["id", "text"], columns)
        writer.begin()
        for row, document, problem in rows:
            writer.write(row, document, problem)
        lines = file.getvalue().splitlines()
        if form == ".csv":
            names = ["id", "text", "predicted_label", "predicted_score", "prediction_error"]
            assert list(csv.reader(lines)) == [names, ["1", 'a,"b"', "a", "0.75", ""], ["2", "", "", "", "empty"]]
        else:
            first, second = map(json.loads, lines)
            assert first == {"id": "1", "text": 'a,"b"', "predicted": SCORES, "prediction_error": None}
            assert second == {"id": "2", "predicted": None, "prediction_error": "empty"}


def test_columns_of_the_answers_are_not_overwritten() -> None:
    """The file, or a row of JSONL, has one of this name."""
    columns = AnswerColumns(list[LabelScore], None)
    with pytest.raises(FileRefused, match="the file has columns of the answers already: predicted_label; rename"):
        writer_of(".csv", StringIO(), ["text", "predicted_label"], columns)
    writer = writer_of(".jsonl", StringIO(), None, columns)
    with pytest.raises(FileRefused, match="line 7 has columns of the answers already: predicted;"):
        writer.write(Row("line 7", {"predicted": 1}), SCORES, None)


def test_an_unfinished_file_has_another_name(tmp_path: Path) -> None:
    """The old answers stay until the new ones are whole."""
    out = tmp_path / "out.csv"
    out.write_text("old")
    answers = AnswerFile(out)
    with pytest.raises(UnicodeEncodeError), answers:
        answers.file.write("new\ud800")
    assert (out.read_text(), (tmp_path / "out.csv.partial").read_text()) == ("old", "")
    assert answers.path == tmp_path / "out.csv.partial"
    with AnswerFile(out) as answers:
        answers.file.write("whole")
    assert (out.read_text(), [path.name for path in tmp_path.iterdir()]) == ("whole", ["out.csv"])


def test_the_form_is_that_of_the_input_unless_a_file_says_otherwise(tmp_path: Path) -> None:
    """Rows of JSONL may differ, which CSV cannot hold."""
    assert form_of(None, Path("a.tsv"), has_columns=True) == ".tsv"
    assert form_of(None, Path("images"), has_columns=True) == ".csv"
    assert form_of(None, Path("a.jsonl"), has_columns=False) == ".jsonl"
    assert form_of(tmp_path / "out.jsonl", Path("a.csv"), has_columns=True) == ".jsonl"
    with pytest.raises(FileRefused, match="ends in one of .csv, .tsv, .jsonl"):
        form_of(tmp_path / "out.xlsx", Path("a.csv"), has_columns=True)
    with pytest.raises(FileRefused, match="may have different fields"):
        form_of(tmp_path / "out.csv", Path("a.jsonl"), has_columns=False)
