"""Tables of every format, and the sentences about those that cannot be read."""

import csv
import io
import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.data.own.refusals import DataRefused
from export.data.own.tables import is_hub_id, read_hub, read_table

CSV = 'id,text,label\r\n1,"two\nlines, a comma and ""quotes""",a\r\n\r\n2,plain,b\r\n'


def table_file(tmp_path: Path, name: str, content: str) -> Path:
    """Write a file."""
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")
    return path


def test_csv_with_quoted_line_ends_names_the_line_that_a_row_begins_at(tmp_path: Path) -> None:
    """Windows line ends and an empty line stand in it too."""
    table = read_table(table_file(tmp_path, "a.csv", CSV), ["text", "label"])
    assert table.column("text") == ['two\nlines, a comma and "quotes"', "plain"]
    assert table.row_numbers == [2, 5]
    assert table.place(1, "text").endswith("a.csv, line 5, column 'text'")
    assert table.record["rows"] == 2 and table.record["delimiter"] == ","


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.csv", "text;label\nEs kostet 3,50;a\n", ["Es kostet 3,50"]),
        ("a.tsv", 'text\tlabel\n"a\ttab"\ta\n', ["a\ttab"]),
        ("a.tsv", 'text\tlabel\n"Yes" she said\ta\nsay ""\tb\n', ['"Yes" she said', 'say ""']),
        ("a.tsv", 'text\tlabel\n"Never closed\ta\nnext\tb\n', ['"Never closed', "next"]),
        ("a.jsonl", '{"text": "\u2028x", "label": 1}\n\n{"label": 2, "text": "y"}\n', ["\u2028x", "y"]),
    ],
)
def test_usual_forms_of_text_tables(tmp_path: Path, name: str, content: str, texts: list[str]) -> None:
    """Semicolons of spreadsheets, TSV with and without quoting, and lines of JSON."""
    assert read_table(table_file(tmp_path, name, content), ["text"]).column("text") == texts


def test_column_numbers_stand_for_a_file_without_header(tmp_path: Path) -> None:
    """Unless the header has these names."""
    path = table_file(tmp_path, "a.tsv", "POSITIVE\tGood.\nNEGATIVE\tBad.\n")
    assert read_table(path, ["2", "1"]).column("2") == ["Good.", "Bad."]
    named = table_file(tmp_path, "b.csv", "1,2\nx,y\n")
    assert read_table(named, ["2", "1"]).column("2") == ["y"]


def test_parquet_keeps_lists_and_numbers(tmp_path: Path) -> None:
    """Rows are counted, for there are no lines."""
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x", None], "label": [["a", "b"], []]}), path)
    table = read_table(path, ["text"])
    assert table.column("label") == [["a", "b"], []] and table.column("text") == ["x", None]
    assert table.place(1).endswith("a.parquet, row 2")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1, max_size=5),
    ending=st.sampled_from([".csv", ".tsv", ".jsonl"]),
    line_end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_any_text_comes_back_as_it_was_written(
    tmp_path: Path, texts: list[str], ending: str, line_end: str, encoding: str
) -> None:
    """Written by Python's own modules, with line ends, quotation marks and separators in it."""
    buffer = io.StringIO(newline="")
    if ending == ".jsonl":
        buffer.writelines(json.dumps({"text": text, "n": 1}, ensure_ascii=False) + line_end for text in texts)
    else:
        # The module leaves a carriage return unquoted where lines end otherwise.
        quoting = csv.QUOTE_ALL if "\r" in "".join(texts) else csv.QUOTE_MINIMAL
        delimiter = "\t" if ending == ".tsv" else ","
        writer = csv.writer(buffer, delimiter=delimiter, lineterminator=line_end, quoting=quoting)
        writer.writerows([("text", "n"), *((text, 1) for text in texts)])
    path = tmp_path / f"a{ending}"
    path.write_bytes(buffer.getvalue().encode(encoding))
    assert read_table(path, ["text"]).column("text") == texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\nx,a\ny\n", "a.csv, line 3: the row has 1 fields, but the file has 2 columns"),
        ("a.csv", "text,label\nx,y,a\n", "a.csv, line 2: the row has 3 fields, .* text with a comma in it"),
        ("a.csv", 'text,label\nx,a\n"never,closed\nz,a\n', "a.csv, line 3: the row that begins here cannot be read"),
        ("a.csv", 'text,label\n"x"y,a\n', "a.csv, line 2: the row that begins here cannot be read"),
        ("a.csv", "text,label\n", "a.csv has a header, but no rows"),
        ("a.csv", "text,text\nx,y\n", "a.csv, line 1: the header has 'text' more than once"),
        ("a.tsv", "text\tlabel\nx\ta\tb\n", "a.tsv, line 2: the row has 3 fields, .* text with a tab in it"),
        ("a.jsonl", '{"text": "x"}\n{"text": }\n', "a.jsonl, line 2 is not JSON: Expecting value"),
        ("a.jsonl", '["x"]\n', "a.jsonl, line 1: each line is a JSON object, not"),
        ("a.parquet", "text", "a.parquet is not a Parquet file"),
        ("a.xlsx", "x", r"ends in .csv, .tsv, .jsonl, .parquet, not in '.xlsx'"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    """Each with one sentence."""
    with pytest.raises(DataRefused, match=message) as refused:
        read_table(table_file(tmp_path, name, content), ["text", "label"])
    assert "\n" not in str(refused.value)


def test_a_missing_column_is_answered_with_the_closest_names(tmp_path: Path) -> None:
    """The most likely one first."""
    with pytest.raises(DataRefused, match="has no column 'labels'; its columns are 'label', "):
        read_table(table_file(tmp_path, "a.csv", CSV), ["text"]).column("labels")


def test_a_folder_of_the_datasets_library_has_its_splits_and_class_names(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-1 stands for a label that is not published."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    for split, labels in {"train": [1, 0], "test": [-1]}.items():
        rows = datasets.Dataset.from_dict({"text": ["x"] * len(labels), "label": labels}, features=features)
        rows.to_parquet(tmp_path / f"{split}.parquet")
    splits = read_hub(str(tmp_path))
    assert splits["train"].column("label") == ["yes", "no"] and splits["test"].column("label") == [None]
    assert splits["train"].place(0).endswith("split train, row 1")


def test_what_the_library_cannot_load_is_refused_in_one_line(tmp_path: Path) -> None:
    """The library's own reason stands in it."""
    with pytest.raises(DataRefused, match="cannot be loaded") as refused:
        read_hub(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_names_of_the_hub_are_told_from_files(tmp_path: Path) -> None:
    """A name that ends like a table is a file, also where there is none."""
    assert is_hub_id("stanfordnlp/sst2") and is_hub_id("nyu-mll/glue:cola") and is_hub_id("imdb")
    assert not is_hub_id("missing.csv") and not is_hub_id("some/folder/with/parts") and not is_hub_id(str(tmp_path))


def test_numbers_of_json_stay_numbers(tmp_path: Path) -> None:
    """A missing key is a missing value."""
    lines = [{"text": "x", "score": 0.5}, {"text": "y"}]
    path = table_file(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)))
    assert read_table(path, ["text"]).column("score") == [0.5, None]
