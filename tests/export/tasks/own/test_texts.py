"""Conversion of runs on data of one's own: rows, figures, cards, and the served answers."""

import json
import shutil
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from export.__main__ import main
from export.conversion.comparison.requirements import MIN_COMPARED, ConversionRefused
from export.data.text_classification import LabelledTexts
from export.tasks.own.quality import card_of_quality, loss_of_own
from export.tasks.own.texts import conversion_of_own_run, texts_of
from service.tasks.text.tokenization import Pair
from tests.conftest import ROOT, made_once, running_server

OWN = ROOT / "tests" / "data" / "own"
COLUMNS = {"tickets": "label", "hotel_reviews": "labels", "urgency": "urgency", "pairs": "label"}
TINY = ["--set", "epochs=8", "model.d_model=32", "model.num_layers=1", "model.d_ff=64", "model.vocab_size=400"]
# A tiny classifier is so unsure that int8 changes many of its answers, and is refused.
PRECISIONS = {"tickets": "float32", "hotel_reviews": "float32", "urgency": "int8", "pairs": "float32"}


def run_export(*words: str) -> int:
    """Run a command of `python -m export` in this process."""
    before = sys.argv
    sys.argv = ["export", *words]
    try:
        return main()
    finally:
        sys.argv = before


@pytest.fixture(scope="session", params=COLUMNS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of each small data set; pairs are made of the tickets and their words' number."""
    name = request.param

    def train(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if name == "pairs":
            lines = (OWN / "tickets.csv").read_text().splitlines()
            rows = [line.rpartition(",") for line in lines[1:]]
            made = [f"{text},a text of {len(text.split())} words,{label}" for text, _, label in rows]
            (folder / "pairs.csv").write_text("\n".join(["text,about,label", *made]) + "\n")
        else:
            shutil.copy(OWN / f"{name}.csv", folder)
        pair = ["--text-pair-column", "about"] if name == "pairs" else []
        words = [
            "--data",
            str(folder / f"{name}.csv"),
            "--label-column",
            COLUMNS[name],
            *pair,
            "--start-from",
            "scratch",
        ]
        assert run_export(
            *("train", "--task", "text-classification", "--run-dir", str(folder / name)), *words, *TINY
        ) == 0  # fmt: skip

    return made_once(tmp_path_factory, f"own-{name}", train) / name


def test_the_rows_of_the_record_are_compared_and_measured(finished: Path) -> None:
    """The source answers as the run did on the same rows; made-up texts fill up small sets."""
    result = json.loads((finished / "result.json").read_text())
    source, options = conversion_of_own_run(finished, result)
    measured = options["labelled"]
    assert (options["split"], len(measured.inputs), len(options["compare_on"])) == (
        "test",
        result["quality"]["num_examples"],
        MIN_COMPARED,
    )
    assert options["compare_on"][: len(measured.inputs)] == measured.inputs
    assert isinstance(measured.inputs[0], Pair) == (finished.name == "pairs")
    quality = measured.quality(source.outputs(source.module, measured.inputs))
    judged = {"hotel_reviews": "f1_micro", "urgency": "r2"}.get(finished.name, "accuracy")
    assert quality[judged] == pytest.approx(result["quality"][judged], abs=1e-4)
    assert source.labels == result["labels"]
    problem = None if source.settings is None else source.settings.problem
    assert problem == {"hotel_reviews": "multi_label_classification", "urgency": "regression"}.get(finished.name)
    assert "SST-2" not in json.dumps(options["about"])
    assert options["about"]["licence"] == "not stated"
    assert f"{finished.name}.csv (" in options["about"]["data_files"]


def test_a_file_that_has_changed_is_refused(finished: Path, tmp_path: Path) -> None:
    """The held-out rows would be others; the sentence names the file."""
    result = json.loads((finished / "result.json").read_text())
    path = tmp_path / "changed.csv"
    path.write_text("text,label\nothers,rows\n")
    result["data_document"]["files"]["train"]["path"] = str(path)
    with pytest.raises(ValueError, match="changed.csv has changed"):
        conversion_of_own_run(finished, result)


def test_a_finished_run_is_measured_again(finished: Path, tmp_path: Path) -> None:
    """The figures are the same, and what was fitted stays in the record."""
    folder = Path(shutil.copytree(finished, tmp_path / finished.name))
    before = json.loads((folder / "result.json").read_text())
    assert run_export("measure", finished.name, "--run-dir", str(folder)) == 0
    after = json.loads((folder / "result.json").read_text())
    assert after["quality"] == before["quality"]
    assert after.get("temperature") == before.get("temperature")


@pytest.mark.slow
def test_the_served_model_answers_with_its_own_labels(finished: Path, tmp_path: Path) -> None:
    """From the run to answers over HTTP: scores are those of `transformers` on the saved model."""
    precision = PRECISIONS[finished.name]
    words = ["--run-dir", str(finished), "--name", "mine", "--precision", precision]
    assert run_export("convert", finished.name, *words, "--model-store", str(tmp_path / "store")) == 0
    folder = tmp_path / "store/mine/1"
    manifest, card = json.loads((folder / "manifest.json").read_text()), (folder / "README.md").read_text()
    result = json.loads((finished / "result.json").read_text())
    assert manifest["labels"] == result["labels"]
    assert "95 % interval" in card and "licence: not stated" in card and "SST-2" not in card
    assert ("| label | precision |" in card) == (finished.name != "urgency")
    _, options = conversion_of_own_run(finished, result)
    given = options["labelled"].inputs[0]
    inputs = {"text": given.first, "text_pair": given.second} if isinstance(given, Pair) else given
    with running_server(tmp_path / "store") as server:
        body = json.dumps({"inputs": inputs, "parameters": {"top_k": 10}}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{server.http}/models/mine", body), timeout=10) as response:
            answer = json.load(response)
    served = answer[0] if isinstance(answer[0], list) else answer
    scores = {entry["label"]: entry["score"] for entry in served}
    logits = logits_of_transformers(finished, given)
    if finished.name == "hotel_reviews":
        expected = 1 / (1 + np.exp(-logits))
    else:
        expected = logits if finished.name == "urgency" else np.exp(logits) / np.exp(logits).sum()
    for label, score in zip(result["labels"], expected, strict=True):
        assert scores[label] == pytest.approx(score, abs=1e-4 if precision == "float32" else 0.3)


def logits_of_transformers(run_dir: Path, given: str | Pair) -> np.ndarray:
    """Compute logits [C] of the saved model."""
    model = AutoModelForSequenceClassification.from_pretrained(run_dir / "hugging_face").eval()
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "hugging_face")
    texts = tuple(given) if isinstance(given, Pair) else (given,)
    with torch.inference_mode():
        logits_C: np.ndarray = model(**tokenizer(*texts, truncation=True, return_tensors="pt")).logits[0].numpy()
    return logits_C


@pytest.mark.parametrize(
    ("before", "after", "rows", "allowed"),
    [
        ({"accuracy": 0.9}, {"accuracy": 0.896}, 1000, True),
        ({"accuracy": 0.9}, {"accuracy": 0.89}, 1000, False),
        ({"accuracy": 0.9}, {"accuracy": 0.8}, 20, True),  # two rows of twenty
        ({"accuracy": 0.9}, {"accuracy": 0.75}, 20, False),
        ({"f1_micro": 0.9}, {"f1_micro": 0.95}, 20, True),
        ({"r2": 0.9}, {"r2": 0.8}, 1000, False),
    ],
)
def test_a_precision_may_cost_half_a_point_or_two_rows(
    before: Mapping[str, float], after: Mapping[str, float], rows: int, allowed: bool
) -> None:
    """The figure is the problem's; the manifest gets what was before and what was lost."""
    measured: dict[str, Any] = {**after, "num_examples": rows}
    if not allowed:
        with pytest.raises(ConversionRefused, match=f"int8 loses .* on {rows} rows"):
            loss_of_own(measured, before, "int8")
        return
    (name,) = before
    found = loss_of_own(measured, before, "int8")
    assert found == {
        f"{name}_before_quantization": before[name],
        f"{name}_loss": pytest.approx(before[name] - after[name]),
    }


def test_the_card_has_intervals_and_says_where_nothing_was_predicted() -> None:
    """A label without predictions has no precision; a name with a bar does not break the table."""
    labels = [{"label": "a|b", "precision": None, "recall": 0.0, "f1": 0.0, "num_true": 3}]
    measured = {"num_examples": 3, "accuracy": 0.5, "accuracy_interval": [0.1, 0.9], "labels": labels}
    lines = card_of_quality("test", measured)
    assert "- accuracy: 0.5000 (95 % interval 0.1000 to 0.9000)" in lines
    assert "| a\\|b | none | 0.000 | 0.000 | 3 |" in lines


def test_pairs_become_the_inputs_of_the_served_task() -> None:
    """Single texts stay texts."""
    assert texts_of(LabelledTexts(["a"], [0], ["b"])) == [Pair("a", "b")]
    assert texts_of(LabelledTexts(["a"], [0])) == ["a"]
