"""Sentence pairs of one's own: from two files to a run, and to a served translation."""

import json
from pathlib import Path

import pytest

from tests.conftest import running_server
from tests.export.tasks.own.conftest import export, train
from tests.export.tasks.own.test_images import answered

PAIRS = ["--task", "translation", "--data", "phrases.en-de.tsv"]
LANGUAGES = ["--source-language", "en", "--target-language", "de"]
SHAPE = ["model.d_model=32", "model.num_layers=1", "model.num_decoder_layers=1", "model.d_ff=64"]
TINY_PAIRS = ["--set", "vocab_size=400", "model.max_tokens=24", *SHAPE]


def test_two_files_become_a_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Languages are in the record, BLEU has its interval, long pairs are left out and counted."""
    rows = [line.split("\t") for line in (here / "phrases.en-de.tsv").read_text().splitlines()[1:]]
    rows.append(["rain " * 40, "Regen " * 40])
    for name, column in (("a.en", 0), ("a.de", 1)):
        (here / name).write_text("\n".join(row[column] for row in rows) + "\n")
    words = ["--task", "translation", "--data", "a.en", "--data-target", "a.de", *LANGUAGES]
    status, said, errors = train(*words, *TINY_PAIRS, "epochs=1", capsys=capsys)
    assert status == 0, errors
    result = json.loads((here / "runs/a/result.json").read_text())
    assert "recipe pairs-few: " in said and "training pairs are fewer than 10,000" in said
    splits = result["data_document"]["splits"]
    left_out = [name for name in ("train", "validation") if f"1 of {splits[name]['rows']} {name} pairs have" in said]
    assert len(left_out) == 1 or splits["test"]["rows"] != 15
    assert (result["source_language"], result["target_language"], result["measured_on"]) == ("en", "de", "test")
    assert result["config"]["data"] == ""
    assert "transformers has no class" in result["hugging_face"]
    assert "bleu_confidence" in result["quality"]["test"]["beam 5"]
    assert not (here / "runs/a/hugging_face").exists()


@pytest.mark.slow
def test_a_table_of_pairs_becomes_a_served_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Converted on its own held-out pairs and further sentences; the server translates."""
    status, _, errors = train(*PAIRS, *LANGUAGES, *TINY_PAIRS, "epochs=30", capsys=capsys)
    assert status == 0, errors
    name = "phrases.en-de"
    status, _, errors = export("convert", name, "--model-store", "store", "--name", "phrases", capsys=capsys)
    assert status == 0, errors
    manifest = json.loads((here / "store/phrases/1/manifest.json").read_text())
    assert manifest["quality"]["test"]["greedy"]["num_examples"] == 15
    assert manifest["provenance"]["rows"] == "train 70, validation 15, test 15"
    with running_server(here / "store") as server:
        found = answered(server.http, "phrases", "Where is the station?")
    assert found[0]["translation_text"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "translation needs --source-language: a code such as en or de"),
        ([*LANGUAGES, "--start-from", "marian"], "--start-from marian: translation models are trained from scratch"),
        ([*LANGUAGES, "--label-column", "l"], "--label-column is not for translation"),
        ([*LANGUAGES, "--set", "model.max_tokens=2", "vocab_size=300"], "at most 2 tokens; --set model.max_tokens=N"),
        (["--source-language", "fr", "--target-language", "de"], "fr"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(
    words: list[str], expected: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is trained."""
    status, _, errors = train(*PAIRS, *words, capsys=capsys)
    assert (status, expected in errors, errors.count("\n")) == (1, True, 1), errors
    assert not list((here / "runs").glob("*/result.json"))
