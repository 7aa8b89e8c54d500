"""`heed predict` as a process and in this one, without a server and with one."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from onnx import TensorProto, helper

from service.offline.command import main
from tests.conftest import ROOT, START_S, Server, write_onnx

TEXTS = ["A wonderful film.", "A dreadful film.", "", "Two hours, wasted."] * 300
STORE = ["--model-store", str(ROOT / "model_store")]


@pytest.fixture(autouse=True)
def log() -> Iterator[None]:
    """Undo the command's settings of the log, which are meant for a process of its own."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Write a file of 1,200 rows, a quarter of which are empty."""
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *enumerate(TEXTS)])
    return tmp_path / "texts.csv"


def predict(*arguments: object) -> int:
    """Run the command in this process, with a cache beside the file; return its exit status."""
    cache = next(Path(str(each)).parent for each in arguments if Path(str(each)).is_absolute()) / "cache"
    return main([*map(str, arguments), *STORE, "--cache", str(cache)])


def test_a_file_is_answered_row_by_row(texts: Path, tmp_path: Path) -> None:
    """Each row has a line, in order; torch and training are not imported; the exit status says that rows failed."""
    out = tmp_path / "out.csv"
    report = "import atexit, sys; atexit.register(lambda: print({'torch', 'export'} & set(sys.modules)));"
    script = f"{report} import heed; sys.exit(heed.main())"
    command = [sys.executable, "-c", script, "predict", "sentiment-small", str(texts), "--out", str(out), *STORE]
    run = subprocess.run(
        [*command, "--cache", str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=START_S,
        check=False,
    )
    assert (run.returncode, run.stdout) == (1, "set()\n"), run.stderr
    assert run.stderr.splitlines()[-1].startswith("1,200 rows, 300 without an answer, ")
    assert run.stderr.splitlines()[-1].endswith(f" rows/s in {out}; the first: line 4 is empty")
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["text"]) for row in rows] == [(str(number), text) for number, text in enumerate(TEXTS)]
    for number, row in enumerate(rows):
        if row["text"]:
            label = "POSITIVE" if "wonderful" in row["text"] else "NEGATIVE"
            assert (row["predicted_label"], row["prediction_error"]) == (label, "")
        else:
            assert (row["predicted_label"], row["prediction_error"]) == ("", f"line {number + 2} is empty")


def test_a_server_answers_the_same(texts: Path, tmp_path: Path, committed_server: Server) -> None:
    """Both kinds of model give the same lines; `--keep-going` makes failed rows no failure."""
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    options = ["sentiment-small", texts, "--top-k", "1", "--keep-going", "--out"]
    assert predict(*options, here) == 0
    assert predict(*options, there, "--url", committed_server.http) == 0
    ours, theirs = (list(map(json.loads, path.read_text().splitlines())) for path in (here, there))
    assert len(ours) == len(theirs) == len(TEXTS)
    for one, other in zip(ours, theirs, strict=True):
        assert (one["id"], one["text"]) == (other["id"], other["text"])
        if one["predicted"] is None:
            assert (one["prediction_error"], other["prediction_error"]) == (
                f"line {int(one['id']) + 2} is empty",
                f"line {int(one['id']) + 2}: the server answered 400: inputs is empty",
            )
        else:
            ((label, score), (their_label, their_score)) = (each["predicted"][0].values() for each in (one, other))
            assert (label, score) == (their_label, pytest.approx(their_score, abs=1e-5))


def test_long_texts_are_cut_only_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without it the row says how long it is."""
    (tmp_path / "long.txt").write_text("good " * 400)
    assert predict("sentiment-small", tmp_path / "long.txt") == 1
    assert "the model takes at most" in capsys.readouterr().out
    assert predict("sentiment-small", tmp_path / "long.txt", "--truncate") == 0
    assert ",POSITIVE," in capsys.readouterr().out


def test_pairs_are_read_from_two_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], committed_server: Server
) -> None:
    """Both texts count: each kind of model refuses an empty second one, and answers the others alike."""
    (tmp_path / "pairs.tsv").write_text("a\tb\nA wonderful film.\tIt is not.\nA wonderful film.\t\n")
    answers = []
    for server in ([], ["--url", committed_server.http]):
        options = ["--column", "a", "--pair-column", "b", *server]
        assert predict("sentiment-small", tmp_path / "pairs.tsv", *options) == 1
        first, second = capsys.readouterr().out.splitlines()[1:]
        assert "is empty" in second
        answers.append(first.split("\t")[:3])
    assert answers[0] == answers[1]


def test_images_are_answered_from_a_folder_and_from_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], committed_server: Server
) -> None:
    """Paths start from the file's folder; a missing one is a row without an answer."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "ship.jpg").write_bytes((ROOT / "docs/ship.jpg").read_bytes())
    assert predict("cifar10-vit", images) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("ship.jpg,ship,")
    (tmp_path / "list.csv").write_text("path\nimages/ship.jpg\nimages/none.jpg\n")
    for server in ([], ["--url", committed_server.http]):
        assert predict("cifar10-vit", tmp_path / "list.csv", *server) == 1
        first, second = capsys.readouterr().out.splitlines()[1:]
        assert first.startswith("images/ship.jpg,ship,")
        assert second == "images/none.jpg,,,line 3: images/none.jpg: No such file or directory"


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("sentimet", [], "there is no model 'sentimet' in .*; models: sentiment, "),
        ("sentiment-small", ["--column", "txt"], "has no column 'txt'; it has text, id"),
        ("cifar10-vit", ["--column", "text", "--pair-column", "id"], "does not take pairs of texts"),
        ("translation-en-de", ["--top-k", "2"], "does not take these parameters: parameter 'top_k' is 2"),
        ("sentiment-small", ["--url", "http://127.0.0.1:1"], "http://127.0.0.1:1 does not answer: .*refused"),
        ("sentiment-small", ["--url", "ftp://x"], "is not a server's address"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_first_row(
    model: str, options: list[str], said: str, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit status is 2, and nothing is written."""
    assert predict(model, texts, *options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (sentence,) = captured.err.splitlines()
    assert sentence.startswith("heed predict: ")
    assert re.search(said, sentence)


def test_a_file_of_answers_that_cannot_be_written_is_said(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So is a bare graph, which has no task."""
    assert predict("sentiment-small", texts, "--out", tmp_path / "nowhere/out.csv") == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence == f"heed predict: No such file or directory: {tmp_path}/nowhere/out.csv.partial"
    floats = (TensorProto.FLOAT, ["rows", 3])
    write_onnx(tmp_path / "double", [helper.make_node("Add", ["x", "x"], ["y"])], {"x": floats}, {"y": floats})
    assert predict(tmp_path / "double", texts) == 2
    assert "model 'double' has no task API" in capsys.readouterr().err


def test_the_file_that_is_read_is_not_written(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The input is as before."""
    before = texts.read_bytes()
    assert predict("sentiment-small", texts, "--out", texts) == 2
    assert "is the file that is read" in capsys.readouterr().err
    assert texts.read_bytes() == before
