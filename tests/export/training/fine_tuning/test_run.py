"""Fine-tuning from the data to the run folder: three problems, pairs, resuming, and what is saved and recorded."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from export.data.text_classification import TextClassificationData
from export.training.fine_tuning.run import fine_tune, measure
from export.training.fine_tuning.saved_model import HUGGING_FACE, load_model
from export.training.fine_tuning.task import encode, predict
from tests.conftest import made_once
from tests.export.training.fine_tuning.conftest import config_of, data_of

QUIET = Console(quiet=True)
PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")


@pytest.fixture(scope="session", params=PROBLEMS)
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TextClassificationData]:
    """A finished run of each problem, from random weights."""
    data = data_of(request.param, num_rows=360)
    config = config_of(epochs=12, patience=12)
    return made_once(
        tmp_path_factory, f"fine-tuned-{request.param}", lambda run_dir: fine_tune(data, config, run_dir, QUIET)
    ), data


def answers_of_transformers(run_dir: Path, data: TextClassificationData) -> np.ndarray:
    """Compute the logits of the test split as anybody would who has only `transformers` and the folder."""
    model = AutoModelForSequenceClassification.from_pretrained(run_dir / HUGGING_FACE).eval()
    tokenizer = AutoTokenizer.from_pretrained(run_dir / HUGGING_FACE)
    assert data.test is not None
    pairs = data.test.pairs or [None] * len(data.test)
    with torch.inference_mode():
        rows = [
            model(**tokenizer(text, pair, truncation=True, return_tensors="pt")).logits[0].numpy()
            for text, pair in zip(data.test.texts, pairs, strict=True)
        ]
    return np.stack(rows)


def test_what_is_learned_is_measured_on_the_split_that_chose_nothing(
    finished: tuple[Path, TextClassificationData],
) -> None:
    """Each problem is solved far above chance; the record has intervals, and the file's answers give its figures."""
    run_dir, data = finished
    result = json.loads((run_dir / "result.json").read_text())
    quality = result["quality"]
    assert (result["measured_on"], quality["num_examples"], result["problem"]) == ("test", 60, data.problem)
    assert (result["data"], result["data_document"], result["labels"]) == ("toy.csv", data.document, data.label_names)
    logits_NC = answers_of_transformers(run_dir, data)
    assert data.test is not None
    labels = data.test.labels
    if data.problem == "regression":
        assert quality["r2"] > 0.5
        assert quality["mean_absolute_error"] == pytest.approx(np.abs(logits_NC[:, 0] - labels).mean(), abs=1e-3)
        assert quality["intervals"]["r2"][0] < quality["r2"] < quality["intervals"]["r2"][1]
        assert "temperature" not in result
        return
    name = "f1_micro" if data.problem == "multi_label_classification" else "accuracy"
    assert quality[name] > 0.75
    assert quality[f"{name}_interval"][0] < quality[name] <= quality[f"{name}_interval"][1]
    assert [each["label"] for each in quality["labels"]] == data.label_names
    if name == "accuracy":
        assert quality[name] == pytest.approx((logits_NC.argmax(1) == labels).mean())
    else:
        wanted = np.array([[number in each for number in range(3)] for each in labels])
        given = (
            1 / (1 + np.exp(-logits_NC)) >= json.loads((run_dir / HUGGING_FACE / "task.json").read_text())["thresholds"]
        )
        assert quality[name] == pytest.approx(2 * (wanted & given).sum() / (wanted.sum() + given.sum()))
    fitted = result["temperature"]
    assert fitted["chosen_on"] == "validation" and fitted["num_examples"] == 60
    assert fitted["loss_after"] <= fitted["loss_before"]
    assert result["calibration_error_before_temperature"] >= 0


def test_the_folder_is_complete_and_small(finished: tuple[Path, TextClassificationData]) -> None:
    """Nothing of the training is left but the record; labels and problem stand in the configuration."""
    run_dir, data = finished
    expected = {"curves.png", "hugging_face", "profile.json", "result.json"}
    expected |= set() if data.problem == "regression" else {"reliability.png"}
    assert {path.name for path in run_dir.iterdir()} == expected
    config = json.loads((run_dir / HUGGING_FACE / "config.json").read_text())
    assert list(config["id2label"].values()) == data.label_names
    assert (config["problem_type"], config["dtype"]) == (data.problem, "float32")
    profile = json.loads((run_dir / "profile.json").read_text())
    assert profile["num_examples"] == 60
    assert ("score" if data.problem == "regression" else "confidence") in profile


def test_the_saved_model_is_the_measured_one(finished: tuple[Path, TextClassificationData]) -> None:
    """Padded batches here equal single texts in `transformers`; measuring again gives the same figures."""
    run_dir, data = finished
    model, tokenizer = load_model(run_dir / HUGGING_FACE)
    assert data.test is not None
    logits_NC = predict(model, encode(tokenizer, data.test), tokenizer, torch.device("cpu"))
    np.testing.assert_allclose(logits_NC, answers_of_transformers(run_dir, data), rtol=1e-4, atol=1e-4)
    again = measure(run_dir, data, torch.device("cpu"))
    assert again["quality"] == json.loads((run_dir / "result.json").read_text())["quality"]


def test_a_stopped_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """Sliced by the clock, with dropout and dropped tokens; other settings are refused."""
    data, config = data_of("single_label_classification"), config_of(token_dropout=0.2)
    fine_tune(data, config, tmp_path / "whole", QUIET)
    slices = 1
    while not fine_tune(data, config, tmp_path / "sliced", QUIET, time_budget_s=0.02):
        slices += 1
        if slices == 2:
            with pytest.raises(ValueError, match="a run with other settings"):
                fine_tune(data, dataclasses.replace(config, seed=2), tmp_path / "sliced", QUIET)
    assert slices > 1
    whole, sliced = (load_model(tmp_path / name / HUGGING_FACE)[0].state_dict() for name in ("whole", "sliced"))
    assert all(torch.equal(whole[name], sliced[name]) for name in whole)


def test_pairs_are_read_with_both_texts(tmp_path: Path) -> None:
    """The second text alone decides the label, and it is learned; `transformers` gives the same answers."""
    data = data_of("single_label_classification", pairs=True, num_rows=360)

    def decided(split: str) -> object:
        part = getattr(data, split)
        seconds = ["yes indeed" if label else "no never" for label in part.labels]
        return dataclasses.replace(part, texts=["the same text"] * len(part), pairs=seconds)

    data = dataclasses.replace(data, **{split: decided(split) for split in ("train", "validation", "test")})
    fine_tune(data, config_of(epochs=4), tmp_path / "run", QUIET)
    assert data.test is not None
    assert (answers_of_transformers(tmp_path / "run", data).argmax(1) == data.test.labels).all()
