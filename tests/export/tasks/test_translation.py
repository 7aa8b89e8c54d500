"""Sentence pairs of one's own: from two files to a run, and from a table to a served translation."""

import json
from pathlib import Path

import pytest

from tests.conftest import running_server
from tests.export.tasks.own.conftest import answered, export, here, train

__all__ = ["here"]  # a fixture

SHAPE = ["model.d_model=32", "model.num_layers=1", "model.num_decoder_layers=1", "model.d_ff=64"]
TINY_PAIRS = ["--set", "vocab_size=400", "model.max_tokens=24", *SHAPE]


def test_two_files_become_a_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Languages are in the record, BLEU has its interval, pairs that are too long are left out and counted."""
    rows = [line.split("\t") for line in (here / "phrases.en-de.tsv").read_text().splitlines()[1:]]
    rows += [[f"rain {number} " * 30, f"Regen {number} " * 30] for number in range(20)]
    for name, column in (("a.en", 0), ("a.de", 1)):
        (here / name).write_text("\n".join(row[column].strip() for row in rows) + "\n")
    words = ["--task", "translation", "--data", "a.en", "--data-target", "a.de", "--target-language", "nds"]
    status, said, errors = train(*words, *TINY_PAIRS, "epochs=1", capsys=capsys)
    assert status == 0, errors
    result = json.loads((here / "runs/a/result.json").read_text())
    trained = result["data_document"]["splits"]["train"]["rows"]
    assert f" of {trained} train pairs have more than 24 tokens: left out" in said
    assert result["num_training_examples"] < trained
    assert (result["source_language"], result["target_language"], result["measured_on"]) == ("en", "nds", "a")
    assert "transformers has no class" in result["hugging_face"]
    assert "bleu_confidence" in result["quality"]["a"]["beam 5"]
    words[-1:] = ["de", "--name", "none", "--set", "model.max_tokens=2", "vocab_size=300"]
    status, _, errors = train(*words, capsys=capsys)
    assert (status, "at most 2 tokens; --set model.max_tokens=N" in errors) == (1, True)


@pytest.mark.slow
def test_a_table_of_pairs_becomes_a_served_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is converted on its own held-out pairs and further sentences; the server translates."""
    words = ["--task", "translation", "--data", "phrases.en-de.tsv", "--name", "phrases", *TINY_PAIRS, "epochs=30"]
    status, _, errors = train(*words, capsys=capsys)
    assert status == 0, errors
    status, _, errors = export("convert", "phrases", "--model-store", "store", capsys=capsys)
    assert status == 0, errors
    manifest = json.loads((here / "store/phrases/1/manifest.json").read_text())
    assert manifest["quality"]["phrases.en-de"]["greedy"]["num_examples"] == 15
    assert manifest["provenance"]["rows"] == "train 70, validation 15, test 15"
    with running_server(here / "store") as server:
        assert answered(server.http, "phrases", "Where is the station?")[0]["translation_text"]
