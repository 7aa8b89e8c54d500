"""Entities of one's own: from a CoNLL file to a served answer, from JSONL with spans, and from a saved encoder."""

import json
from pathlib import Path

import pytest
from transformers import pipeline

from export.data.own.entities import EntityRequest, load_entities
from tests.conftest import running_server
from tests.export.tasks.own.conftest import answered, export, train
from tests.export.training.fine_tuning.conftest import save_encoder

ENTITIES = ["--task", "token-classification"]
TINY_ENTITIES = ["--set", "model.d_model=64", "model.num_layers=1", "model.d_ff=128", "model.vocab_size=600"]


def test_a_conll_file_becomes_a_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is learned is measured by whole entities on the split that chose nothing, also with the converted graph."""
    words = [*ENTITIES, "--data", "news.conll", "--start-from", "scratch", *TINY_ENTITIES, "epochs=20"]
    status, said, errors = train(*words, capsys=capsys)
    assert status == 0, errors
    assert "3 labels" in said and "recipe entities-scratch-few-rows" in said
    result = json.loads((here / "runs/news/result.json").read_text())
    quality = result["quality"]
    assert (result["measured_on"], result["labels"]) == ("test", ["LOC", "ORG", "PER"])
    assert quality["f1_micro"] > 0.8
    assert quality["f1_micro_interval"][0] < quality["f1_micro"]
    assert result["temperature"]["chosen_on"] == "validation"

    status, _, errors = export("convert", "news", "--model-store", "store", capsys=capsys)
    assert status == 0, errors
    manifest = json.loads((here / "store/news/1/manifest.json").read_text())
    assert manifest["quality"]["test"]["f1_micro"] == pytest.approx(quality["f1_micro"])
    assert manifest["quality"]["test"]["labels"] == quality["labels"]
    assert "F1 over all entities" in (here / "store/news/1/README.md").read_text()
    with running_server(here / "store") as server:
        found = [answered(server.http, "news", text) for text in _held_out(here)]
    ours = [{(each["start"], each["end"], each["entity_group"]) for each in entities} for entities in found]
    true = load_entities(EntityRequest(train=str(here / "news.conll"))).reported.entities
    right = sum(len(a & set(b)) for a, b in zip(ours, true, strict=True))
    total = sum(len(a) + len(b) for a, b in zip(ours, true, strict=True))
    assert 2 * right / total == pytest.approx(quality["f1_micro"])
    theirs = pipeline("token-classification", str(here / "runs/news/hugging_face"), aggregation_strategy="simple")(
        _held_out(here)
    )
    assert ours == [{(each["start"], each["end"], each["entity_group"]) for each in entities} for entities in theirs]


def _held_out(here: Path) -> list[str]:
    return load_entities(EntityRequest(train=str(here / "news.conll"))).reported.texts


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_a_saved_encoder_is_trained_on_spans(family: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSONL with spans in characters; long texts are windows; int8 is judged by F1; a stopped run resumes."""
    save_encoder(family, here / "encoder")
    data = load_entities(EntityRequest(train=str(here / "news.conll")))
    rows = [
        {
            "text": " ".join([text] * copies),
            "entities": [
                {"start": each.start + shift, "end": each.end + shift, "label": each.label}
                for shift in range(0, (len(text) + 1) * copies, len(text) + 1)
                for each in entities
            ],
        }
        for number, (text, entities) in enumerate(zip(data.train.texts, data.train.entities, strict=True))
        for copies in [1 + number % 5 * 3]
    ]
    (here / "spans.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    words = [*ENTITIES, "--data", "spans.jsonl", "--start-from", "encoder", "--set", "epochs=6", "learning_rate=0.003"]
    assert "the time is up" in train(*words, "--time-budget", "0.001s", capsys=capsys)[1]
    status, said, errors = train(*words, capsys=capsys)
    assert status == 0, errors
    assert "resuming" in said and "recipe entities-encoder-few-rows" in said
    words = ["convert", "spans", "--model-store", "store"]
    status, _, errors = export(*words, capsys=capsys)
    assert status == 0, errors
    result = json.loads((here / "runs/spans/result.json").read_text())
    manifest = json.loads((here / "store/spans/1/manifest.json").read_text())
    assert manifest["quality"]["test"]["f1_micro"] == pytest.approx(result["quality"]["f1_micro"], nan_ok=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--label-column", "l"], "--label-column is not for token-classification"),
        (["--recipe", "text-scratch"], "the recipe text-scratch is for text-classification, not for token"),
        (["--tag-column", "5"], "news.conll"),
        (["--start-from", "none"], "none has no config.json"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(
    words: list[str], expected: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is trained."""
    status, _, errors = train(*ENTITIES, "--data", "news.conll", *words, capsys=capsys)
    assert (status, expected in errors, errors.count("\n")) == (1, True, 1), errors
