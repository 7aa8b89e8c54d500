"""Trains an encoder of `transformers` on labelled texts of one's own, from the data to a run folder.

    texts ──> tokenizer ──> `trainer` ──> best weights ──> temperature, thresholds (choosing split) ──> saved
                                                              saved ──> measured (reporting split)

The choosing split (`validation`) chooses epoch, temperature and thresholds; the reporting split (`test`) chooses
nothing. The run folder holds `hugging_face/` (`saved_model`), `result.json` (what was measured, and how), `curves.png`,
`reliability.png`, `profile.json` (what the reporting split looked like, to recognise drift later), and `checkpoint.pt`
while the run is unfinished.
"""

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from export.data.own.labels import MULTI_LABEL, REGRESSION
from export.data.text_classification import TextClassificationData
from export.finished_runs import is_finished
from export.markdown import pyplot_without_a_screen
from export.task_table import TEXT_CLASSIFICATION
from export.training.fine_tuning.measuring import Measured, chosen_temperature, measure_split, reliability_figures
from export.training.fine_tuning.objectives import Regression
from export.training.fine_tuning.saved_model import (
    HUGGING_FACE,
    fold_scale,
    fold_temperature,
    load_model,
    read_task_document,
    save_model,
)
from export.training.fine_tuning.settings import FineTuneConfig
from export.training.fine_tuning.starting_point import starting_point
from export.training.fine_tuning.task import (
    FineTuningTask,
    SequenceClassifier,
    encode,
    freeze_embeddings,
    layer_rates,
    predict,
)
from export.training.measures.labels import sets_as_matrix, sigmoid
from export.training.measures.thresholds import fit_thresholds
from export.training.run_folder import end_run, read_weights
from export.training.text_classifier import fraction_of
from export.training.trainer import WEIGHTS, Trainer, this_device
from export.whole_files import save_figure, write_text

CURVES, PROFILE = "curves.png", "profile.json"
SCORES = {
    MULTI_LABEL: "average precision",
    REGRESSION: "R^2",
}  # the score of each problem; accuracy or F1 for the others


def fine_tune(
    data: TextClassificationData,
    config: FineTuneConfig,
    run_dir: Path,
    console: Console,
    time_budget_s: float = math.inf,
    command: str = "",
) -> bool:
    """Train or resume; arguments are those of `export.training.text_classifier.train_text_classifier`.

    Returns:
        whether the run is finished.

    Raises:
        ValueError: `run_dir` holds a run with another configuration, or the start is not an encoder of a known family.
        FileNotFoundError: MiniLM is not installed.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if is_finished(run_dir):
        return True
    data = dataclasses.replace(data, train=fraction_of(data.train, config.train_share, config.seed))
    device = this_device()
    torch.manual_seed(config.seed)
    start = starting_point(data, config)
    model = SequenceClassifier(start.model, start.max_tokens)
    if config.freeze_embeddings:
        freeze_embeddings(model)
    console.print(f"tokenizing {len(data.train):,} training texts")
    task = FineTuningTask(data, config, start, device)
    trainer = Trainer(
        task,
        model,
        copy.deepcopy(model),
        config,
        run_dir,
        device,
        lr_scale=layer_rates(config.layer_decay, model),
    )
    trainer.resume(console)
    if not trainer.fit(console, time_budget_s):
        return False
    finish(trainer, task, command, console)
    return True


def finish(trainer: Trainer, task: FineTuningTask, command: str, console: Console) -> None:
    """Fit what is fitted after training, save the kept weights, measure them, and write the record."""
    run_dir, data, model = trainer.run_dir, task.data, trainer.model
    console.print("fitting and measuring the best weights")
    assert isinstance(model, SequenceClassifier)
    model.load_state_dict(read_weights(run_dir))
    folder = run_dir / HUGGING_FACE
    temperature = None
    if isinstance(task.objective, Regression):
        fold_scale(model.model, task.objective.mean, task.objective.scale)
    else:
        logits_NC = predict(model, task.validation_rows, task.tokenizer, trainer.device)
        temperature = chosen_temperature(logits_NC, data.validation, data)
    before_NC = predict(model, *_reported(task), trainer.device)
    if temperature is not None:
        fold_temperature(model.model, temperature.temperature)
    document: dict[str, Any] = {"problem": data.problem}
    if data.problem == MULTI_LABEL:
        logits_NC = predict(model, task.validation_rows, task.tokenizer, trainer.device)
        wanted_NC = sets_as_matrix(data.validation.labels, len(data.label_names))
        document["thresholds"] = [round(float(each), 6) for each in fit_thresholds(sigmoid(logits_NC), wanted_NC)]
    save_model(model.model, task.tokenizer, folder, document)
    plot_curves(trainer.history, SCORES.get(data.problem, "accuracy"), run_dir / CURVES)
    measured = measure(run_dir, data, trainer.device, before_NC)
    if temperature is not None:
        measured["temperature"] = {"chosen_on": "validation"} | temperature.as_dict()
    about = {
        "task": TEXT_CLASSIFICATION,
        "network": model.config.model_type,
        "data": data.name,
        "problem": data.problem,
        "num_training_examples": len(data.train),
        "labels": data.label_names,
        "bf16": task.autocast_bf16,
        "data_document": data.document,
    }
    end_run(trainer, command=command, about=about, measured=measured, console=console)
    (run_dir / WEIGHTS).unlink(missing_ok=True)  # those of the saved model are the ones that were measured


def _reported(task: FineTuningTask) -> tuple[list[NDArray[np.int64]], Any]:
    return encode(task.tokenizer, task.data.reported), task.tokenizer


def measure(
    run_dir: Path, data: TextClassificationData, device: torch.device, before_NC: NDArray[np.float32] | None = None
) -> dict[str, Any]:
    """Measure a run's saved model on the reporting split, and draw how reliable its probabilities are.

    Args:
        run_dir: the run folder.
        data: the data set of the run.
        device: the device that computes.
        before_NC: logits of the same split before the temperature, for the diagram.
    """
    model, tokenizer = load_model(run_dir / HUGGING_FACE)
    document = read_task_document(run_dir / HUGGING_FACE)
    split = data.reported
    rows = encode(tokenizer, split)
    measured = measure_split(predict(model.to(device), rows, tokenizer, device), split, data, document)
    figures: dict[str, Any] = {"measured_on": data.reported_name, "quality": measured.quality}
    before = None if before_NC is None else measure_split(before_NC, split, data, document)
    figures |= reliability_figures(measured, before, run_dir)
    write_profile(run_dir / PROFILE, rows, tokenizer, measured)
    return figures


def write_profile(path: Path, rows: list[NDArray[np.int64]], tokenizer: Any, measured: Measured) -> None:
    """Write histograms of what was measured: lengths, unknown pieces, answers and their confidence."""
    unknown = tokenizer.unk_token_id
    document = measured.profile(
        lengths=[row.shape[1] for row in rows],
        unknown_fractions=None if unknown is None else [float((row[0] == unknown).mean()) for row in rows],
    )
    write_text(path, json.dumps(document, indent=2) + "\n")


def plot_curves(history: list[dict[str, float]], score: str, path: Path) -> None:
    """Plot the score of the choosing split and the right decisions in training, and the training loss, by epoch."""
    pyplot = pyplot_without_a_screen()
    epochs = range(1, len(history) + 1)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(epochs, [entry["train_accuracy"] for entry in history], label="train: right decisions (with dropout)")
    left.plot(epochs, [entry["score"] for entry in history], label=f"validation: {score}")
    left.set(xlabel="epoch")
    left.legend()
    right.plot(epochs, [entry["train_loss"] for entry in history])
    right.set(xlabel="epoch", ylabel="training loss")
    save_figure(figure, path, dpi=110)
    pyplot.close(figure)
