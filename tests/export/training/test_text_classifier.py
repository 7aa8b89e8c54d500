"""Training of text classifiers: learning, stopping, reproducibility."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from torch.nn.functional import kl_div

from export.data.text_classification import LabelledTexts
from export.networks.text_baselines import BiLstmConfig
from export.training import run_folder
from export.training import text_classifier as training
from export.training.distillation import distance_of_tokens, judge
from export.training.text_classifier import measure, train_text_classifier
from export.training.text_starting_point import starting_point
from tests.export.conftest import toy_config, toy_data


def test_a_small_transformer_learns_a_small_task(toy_run: Path) -> None:
    """Accuracy is far above chance after three epochs, and the record has it."""
    result = json.loads((toy_run / "result.json").read_text())
    assert result["quality"]["accuracy"] > 0.9
    assert result["quality"]["num_examples"] == 600
    for field in ("command", "commit", "hardware", "training_s", "torch", "history", "num_parameters"):
        assert result[field], field
    assert measure(toy_run, toy_data(), torch.device("cpu")) == {"quality": result["quality"]}
    assert (toy_run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not (toy_run / "checkpoint.pt").exists()


class Interrupted(Exception):
    """Stands for a machine that fails."""


def test_an_interrupted_run_resumes_to_the_same_result(toy_run: Path, tmp_path: Path, quiet: Console) -> None:
    """Interrupted in its third epoch and started again, it ends with bit-identical weights."""
    run_dir = tmp_path / "stopped"

    class Stopping(Console):
        def print(self, *objects: object, **options: object) -> None:
            if "epoch 2 of" in str(objects):
                raise Interrupted

    with pytest.raises(Interrupted):
        train_text_classifier(toy_data(), toy_config(), run_dir, Stopping(quiet=True))
    assert (run_dir / "checkpoint.pt").exists()
    with pytest.raises(ValueError, match="a run with other settings"):
        train_text_classifier(toy_data(), toy_config(seed=2), run_dir, quiet)
    train_text_classifier(toy_data(), toy_config(), run_dir, quiet)
    unbroken, resumed = load_file(toy_run / "model.safetensors"), load_file(run_dir / "model.safetensors")
    assert all((unbroken[name] == resumed[name]).all() for name in unbroken)


def test_a_run_with_time_budgets_gives_the_same_weights(toy_run: Path, tmp_path: Path, quiet: Console) -> None:
    """The clock stops it within epochs again and again; dropout and batches continue from their state."""
    run_dir, slices = tmp_path / "sliced", 1
    while not train_text_classifier(toy_data(), toy_config(), run_dir, quiet, time_budget_s=0.03):
        assert not (run_dir / "result.json").exists()
        slices += 1
    assert slices > 1
    unbroken, sliced = load_file(toy_run / "model.safetensors"), load_file(run_dir / "model.safetensors")
    assert all((unbroken[name] == sliced[name]).all() for name in unbroken)


def test_a_student_learns_its_teachers_answers(toy_run: Path, tmp_path: Path, quiet: Console) -> None:
    """With every label wrong it still learns the right answers, because it learns only from the teacher's logits."""
    data = toy_data()
    wrong = LabelledTexts(data.train.texts, [1 - label for label in data.train.labels])
    (tmp_path / "teacher").symlink_to(toy_run)
    student = tmp_path / "student"
    assert train_text_classifier(
        replace(data, train=wrong),
        toy_config(teacher="teacher", token_dropout=0.1, join_share=0.3, replace_share=0.1),
        student,
        quiet,
    )
    assert json.loads((student / "result.json").read_text())["quality"]["accuracy"] > 0.8
    with pytest.raises(FileNotFoundError, match="train it first"):
        train_text_classifier(data, toy_config(teacher="nobody"), tmp_path / "other", quiet)


@pytest.mark.slow
def test_a_student_learns_token_vectors(toy_run: Path, tmp_path: Path, quiet: Console) -> None:
    """It comes closer to its teacher's vectors than one that learns only logits; other networks are refused."""
    data, distances = toy_data(), {}
    wanted = toy_config(teacher="teacher", token_vectors_weight=1.0, epochs=8, learning_rate=1e-2)
    (tmp_path / "teacher").symlink_to(toy_run)
    for weight in (0.0, 1.0):
        config = replace(wanted, token_vectors_weight=weight)
        run_dir = tmp_path / f"student-{weight}"
        train_text_classifier(data, config, run_dir, quiet)
        task = training.TextTrainingTask(data, wanted, starting_point(data, wanted), torch.device("cpu"))
        task.learn_from(toy_run)
        assert task.teacher is not None
        batch = training.pad(task.validation_ids, torch.device("cpu"))
        vectors_BTE = training.load_run_model(run_dir).token_vectors(*batch)
        distances[weight] = distance_of_tokens(vectors_BTE, judge(task.teacher, *batch).vectors_BTE, batch[1]).item()
        assert json.loads((run_dir / "result.json").read_text())["quality"]["accuracy"] > 0.8
    assert distances[1.0] < 0.5 * distances[0.0]
    for model, complaint in (
        (replace(wanted.model, d_model=64), "the student is wider"),
        (BiLstmConfig(vocab_size=400, num_labels=2, max_tokens=128), "both networks must be Transformers"),
    ):
        with pytest.raises(ValueError, match=complaint):
            train_text_classifier(data, replace(wanted, model=model), tmp_path / complaint.replace(" ", "-"), quiet)


def test_large_weights_are_kept_in_parts(toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part is small enough to copy; read together they are the same network."""
    shutil.copytree(toy_run, tmp_path / "run")
    expected = measure(toy_run, toy_data(), torch.device("cpu"))
    monkeypatch.setattr(run_folder, "MAX_FILE_BYTES", 10_000)
    run_folder.halve_weights(tmp_path / "run")
    parts = sorted((tmp_path / "run").glob("model.safetensors*"))
    assert len(parts) > 3
    assert all(part.suffix != ".safetensors" and part.stat().st_size <= 10_000 for part in parts)
    assert measure(tmp_path / "run", toy_data(), torch.device("cpu")) == expected
    run_folder.halve_weights(tmp_path / "run")  # stopped before the record was written, it is done once more
    assert sorted((tmp_path / "run").glob("model.safetensors*")) == parts


def test_a_fraction_of_the_training_data_is_used() -> None:
    """A tenth is chosen in the old order, another one with another seed; impossible fractions are refused."""
    examples = toy_data().train
    tenth = training.fraction_of(examples, 0.1, seed=1)
    assert len(tenth) == round(0.1 * len(examples))
    places = [examples.texts.index(text) for text in tenth.texts]
    assert places == sorted(places)
    assert tenth.texts != training.fraction_of(examples, 0.1, seed=2).texts
    assert training.fraction_of(examples, 1.0, seed=1) == examples
    for fraction in (0.0, -0.1, 1.1):
        with pytest.raises(ValueError, match="train_share"):
            training.fraction_of(examples, fraction, seed=1)


def test_early_stop_keeps_the_best_epoch(tmp_path: Path, quiet: Console) -> None:
    """With a learning rate that is far too high the run ends long before its last epoch."""
    run_dir = tmp_path / "ruined"
    train_text_classifier(toy_data(), toy_config(epochs=40, patience=1, learning_rate=3.0), run_dir, quiet)
    result = json.loads((run_dir / "result.json").read_text())
    assert len(result["history"]) < 40
    best = max(entry["score"] for entry in result["history"])
    assert result["history"][result["best_epoch"] - 1]["score"] == best
    assert result["quality"]["accuracy"] == best


@pytest.mark.slow
def test_frozen_embeddings_stay_and_lower_layers_learn_less(toy_run: Path, tmp_path: Path, quiet: Console) -> None:
    """From equal random weights, word vectors stay, and the lower layer changes less than without the decay."""
    start = load_file(toy_run / "model.safetensors")
    torch.manual_seed(toy_config().seed)
    random = training.build_network(starting_point(toy_data(), toy_config()).config).state_dict()
    moved = {}
    for decay in (1.0, 0.1):
        config = toy_config(layer_decay=decay, freeze_embeddings=True)
        train_text_classifier(toy_data(), config, tmp_path / f"{decay}", quiet)
        weights = load_file(tmp_path / f"{decay}" / "model.safetensors")
        assert (weights["embedding.weight"] == random["embedding.weight"].half().numpy()).all()
        assert not (start["embedding.weight"] == weights["embedding.weight"]).all()
        name = "layers.0.feed_forward.up.weight"
        moved[decay] = float(abs(weights[name] - random[name].numpy()).mean())
    assert 0 < moved[0.1] < 0.5 * moved[1.0]


@pytest.mark.slow
def test_r_drop_reduces_the_effect_of_dropout(tmp_path: Path, quiet: Console) -> None:
    """With dropout on, two answers to a text lie closer together than after training without R-Drop."""
    data, apart = toy_data(), {}
    for weight in (0.0, 5.0):
        config = toy_config(r_drop=weight, epochs=4)
        config = replace(config, model=replace(config.model, dropout=0.5))
        train_text_classifier(data, config, tmp_path / f"{weight}", quiet)
        model = training.load_run_model(tmp_path / f"{weight}").train()
        tokenizer = Tokenizer.from_file(str(tmp_path / f"{weight}/tokenizer.json"))
        batch = training.pad(training.encode(tokenizer, data.validation, 64), torch.device("cpu"))
        torch.manual_seed(0)
        with torch.no_grad():
            apart[weight] = training.divergence(model(*batch), model(*batch)).item()
    assert apart[5.0] < 0.5 * apart[0.0]


@pytest.mark.parametrize(
    "changes", [{"replace_share": 0.1}, {"token_vectors_weight": 1.0}, {"teacher": "teacher", "r_drop": 1.0}], ids=str
)
def test_settings_without_effect_are_refused(changes: dict[str, object], tmp_path: Path, quiet: Console) -> None:
    """They are refused before anything is written."""
    with pytest.raises(ValueError, match="there is no teacher|learns from no labels"):
        train_text_classifier(toy_data(), toy_config(**changes), tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()


def test_divergence_is_the_mean_of_both_directions() -> None:
    """Equal logits have none; others have the mean of torch's two directions."""
    one_BC, other_BC = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(1))
    assert training.divergence(one_BC, one_BC + 1).item() == pytest.approx(0, abs=1e-6)
    one, other = one_BC.log_softmax(-1), other_BC.log_softmax(-1)
    there, back = (kl_div(*two, reduction="batchmean", log_target=True) for two in ((one, other), (other, one)))
    assert training.divergence(one_BC, other_BC).item() == pytest.approx((there + back).item() / 2, rel=1e-5)


def test_another_shape_for_pre_trained_weights_is_refused() -> None:
    """It is refused before any weights are read."""
    config = toy_config(start_from="minilm")
    with pytest.raises(ValueError, match=r"start_from=minilm brings its own shape: only model.dropout"):
        starting_point(toy_data(), config)


def test_the_first_of_equally_good_epochs_is_kept(tmp_path: Path, quiet: Console) -> None:
    """Two sentences that are always right give equal scores; the record belongs to the kept weights."""
    data = toy_data()
    easy = LabelledTexts(["A wonderful, clever story.", "A dull, pointless story."], [1, 0])
    train_text_classifier(replace(data, validation=easy), toy_config(), tmp_path / "easy", quiet)
    result = json.loads((tmp_path / "easy/result.json").read_text())
    best, last = result["history"][result["best_epoch"] - 1], result["history"][-1]
    assert best["score"] == last["score"] == 1.0
    measured = result["quality"]["expected_calibration_error"]
    assert abs(measured - best["calibration_error"]) < abs(measured - last["calibration_error"])


def test_batches_hold_every_text_once_with_similar_lengths() -> None:
    """An epoch is a permutation; lengths within a batch hardly differ."""
    import numpy as np

    rng = np.random.default_rng(1)
    texts = [np.zeros(length, dtype=np.int64) for length in rng.integers(1, 60, size=1000)]
    batches = training.batches_of_similar_length(texts, 32, rng)
    assert sorted(np.concatenate(batches)) == list(range(1000))
    padding = sum(
        max(len(texts[i]) for i in batch) * len(batch) - sum(len(texts[i]) for i in batch) for batch in batches
    )
    assert padding < 0.1 * sum(len(text) for text in texts)
