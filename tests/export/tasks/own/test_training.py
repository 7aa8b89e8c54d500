"""`train --data`: from files to a run folder by the command line, and what it refuses."""

import json
from pathlib import Path

import pytest

from tests.export.tasks.own.conftest import TINY, export, train
from tests.export.training.fine_tuning.conftest import save_encoder


def test_a_csv_becomes_a_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows, problem and recipe are said; the record has the document; the same command finds it finished."""
    words = ["--task", "text-classification", "--data", "tickets.csv", "--start-from", "scratch", "--licence", "mine"]
    status, said, errors = train(*words, "--name", "tickets", *TINY, capsys=capsys)
    assert status == 0, errors
    assert "tickets: 7 labels, train 104, validation 23, test 23 rows; single_label_classification, because" in said
    assert "recipe text-scratch-few-rows: 104 training rows are fewer than 2,000" in said
    result = json.loads((here / "runs/tickets/result.json").read_text())
    document = result["data_document"]
    assert document == json.loads((here / "runs/tickets/data.json").read_text())
    assert document["licence"] == "mine"
    assert len(document["files"]["train"]["sha256"]) == 64
    assert sum(document["splits"]["test"]["labels"].values()) == result["quality"]["num_examples"] == 23
    assert (result["config"]["epochs"], result["config"]["model"]["d_model"], len(result["labels"])) == (1, 32, 7)
    assert result["command"].startswith("python -m export train --task text-classification --data tickets.csv")
    assert "has a finished run" in train(*words, "--name", "tickets", *TINY, capsys=capsys)[1]


def test_several_labels_and_numbers_are_found_by_themselves(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file's stem names the run; class weights are an option."""
    words = ["--task", "text-classification", *("--start-from", "scratch")]
    several = ["--data", "hotel_reviews.csv", "--label-column", "labels", "--class-weights", "balanced"]
    assert train(*words, *several, *TINY, capsys=capsys)[0] == 0
    result = json.loads((here / "runs/hotel_reviews/result.json").read_text())
    assert (result["problem"], result["config"]["class_weights"]) == ("multi_label_classification", "balanced")
    assert train(*words, "--data", "urgency.csv", "--label-column", "urgency", *TINY, capsys=capsys)[0] == 0
    assert json.loads((here / "runs/urgency/result.json").read_text())["problem"] == "regression"


def test_a_recipe_of_ones_own_trains_a_network_of_this_repository(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Baselines are compared on the same held-out rows; they take single texts with one label only."""
    (here / "cnn.toml").write_text(
        'task = "text-classification"\nnetwork = "kim-cnn"\n[training]\nepochs = 1\n[model]\nvocab_size = 400\n'
    )
    words = ["--task", "text-classification", "--recipe", "cnn.toml"]
    assert train(*words, "--data", "tickets.csv", "--name", "cnn", capsys=capsys)[0] == 0
    result = json.loads((here / "runs/cnn/result.json").read_text())
    assert (result["network"], result["quality"]["num_examples"]) == ("kim-cnn", 23)
    assert len(result["quality"]["labels"]) == 7
    assert result["temperature"]["chosen_on"] == "validation" and result["temperature"]["temperature"] > 0
    status, _, errors = train(*words, "--data", "urgency.csv", "--label-column", "urgency", capsys=capsys)
    assert (status, "single texts with one label each, not regression" in errors) == (1, True)


def test_a_folder_is_fine_tuned(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe for encoders is taken; the network's own shape is in the record."""
    save_encoder("distilbert", here / "encoder")
    words = ["--task", "text-classification", "--data", "tickets.csv", "--start-from", "encoder", "--set", "epochs=1"]
    status, said, errors = train(*words, capsys=capsys)
    assert status == 0, errors
    assert "recipe text-encoder-few-rows" in said
    result = json.loads((here / "runs/tickets/result.json").read_text())
    assert (result["network"], result["config"]["start_from"]) == ("distilbert", "encoder")


def test_sentence_pairs_become_a_translation_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table and two aligned files give the same rows; the test pairs are measured, also again."""
    tiny = [
        "--set",
        "epochs=1",
        "model.d_model=32",
        "model.d_ff=32",
        "model.num_layers=1",
        "model.num_decoder_layers=1",
    ]
    words = ["--task", "translation", *tiny, "vocab_size=400", "subword_dropout=0"]
    status, said, errors = train(*words, "--data", "phrases.en-de.tsv", "--name", "phrases", capsys=capsys)
    assert status == 0, errors
    assert "recipe pairs-few-rows: 70 training pairs are fewer than 50,000" in said
    result = json.loads((here / "runs/phrases/result.json").read_text())
    assert result["data_document"]["splits"].keys() == {"train", "validation", "test"}
    assert result["config"]["data"] == ""
    (quality,) = result["quality"].values()
    assert quality["greedy"]["num_examples"] == result["data_document"]["splits"]["test"]["rows"]
    assert export("measure", "phrases", capsys=capsys)[0] == 0
    rows = [line.split("\t") for line in (here / "phrases.en-de.tsv").read_text().splitlines()[1:]]
    for column, name in enumerate(("sources.txt", "targets.txt")):
        (here / name).write_text("".join(f"{row[column]}\n" for row in rows))
    aligned = ["--data", "sources.txt", "--data-target", "targets.txt", "--time-budget", "0.001s"]
    assert "train 70, validation" in train(*words, *aligned, "--name", "aligned", capsys=capsys)[1]


def test_an_unfinished_run_goes_on_with_the_same_rows_only(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed file is refused; the same one is resumed."""
    words = ["--task", "text-classification", "--data", "tickets.csv", "--start-from", "scratch", *TINY]
    assert "the time is up" in train(*words, "--time-budget", "0.001s", capsys=capsys)[1]
    text = (here / "tickets.csv").read_text()
    (here / "tickets.csv").write_text(text + "One more question,billing\n")
    status, _, errors = train(*words, capsys=capsys)
    assert (status, "runs/tickets was begun with other data" in errors) == (1, True)
    (here / "tickets.csv").write_text(text)
    assert "resuming" in train(*words, capsys=capsys)[1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "give the name of a recipe, or --recipe FILE, or --task and --data"),
        (["sentiment", "--recipe", "my.toml"], "give the name of a recipe, or --recipe FILE"),
        (["sentiment", "--label-column", "l"], "--label-column is for data of your own: add --data"),
        (["sentiment", "--data", "tickets.csv"], "the recipe sentiment has its own data; with --data, name a recipe"),
        (["text-scratch"], "the recipe text-scratch is for data of one's own: add --task text-classification"),
        (["--data", "tickets.csv"], "--data needs --task"),
        (
            ["--data", "tickets.csv", "--task", "feature-extraction"],
            "are not trained here",
        ),
        (
            ["--data", "tickets.csv", "--task", "translation", "--label-column", "label"],
            "--label-column is not for translation; it takes --data-target, ",
        ),
        (
            ["--data", "phrases.en-de.tsv", "--task", "translation", "--start-from", "minilm"],
            "--start-from minilm: translation networks start from scratch",
        ),
        (["--data", "none.csv", "--task", "text-classification"], "none.csv"),
        (["--data", "urgency.csv", "--task", "text-classification"], "label"),
        (
            ["--data", "tickets.csv", "--task", "text-classification", "--recipe", "cifar10-vit"],
            "the recipe cifar10-vit is for image-classification, not for text-classification",
        ),
        (
            ["--data", "tickets.csv", "--task", "text-classification", "--recipe", "text-encoder"],
            "the recipe needs a start: --start-from takes minilm, scratch or a folder",
        ),
        (
            ["--data", "tickets.csv", "--task", "text-classification", "--name", "my tickets"],
            "--name 'my tickets': a run's name may have letters",
        ),
    ],
)
def test_a_wrong_command_is_refused_in_a_sentence(
    words: list[str], expected: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is trained; the sentence says what is wrong."""
    status, _, errors = train(*words, capsys=capsys)
    assert status == 1
    assert expected in errors
    assert errors.count("\n") == 1
    assert not list((here / "runs").glob("*/result.json"))
