"""Trains an image network of `transformers` on labelled images of one's own, from the data to a run folder.

    images ──> prepared as served, bytes in memory ──> `trainer` ──> best weights ──> temperature, thresholds ──> saved
                                                                              saved ──> measured (reporting split)

The run folder is that of `export.training.fine_tuning.run`.
"""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from transformers import AutoModelForImageClassification

from export.data.own.images import ImageFilesData
from export.data.own.labels import MULTI_LABEL
from export.finished_runs import is_finished
from export.task_table import IMAGE_CLASSIFICATION
from export.training.fine_tuning.images.settings import ImageFineTuneConfig
from export.training.fine_tuning.images.starting_point import ImagePreparation, image_start
from export.training.fine_tuning.images.task import ImageNetwork, OwnImageTask, predict_images
from export.training.fine_tuning.measuring import chosen_temperature, measure_split, reliability_figures
from export.training.fine_tuning.run import CURVES, PROFILE, plot_curves
from export.training.fine_tuning.saved_model import HUGGING_FACE, fold_temperature, read_task_document, save_model
from export.training.fine_tuning.starting_point import reading
from export.training.fine_tuning.task import layer_rates
from export.training.measures.labels import sets_as_matrix, sigmoid
from export.training.measures.thresholds import fit_thresholds
from export.training.run_folder import end_run, read_weights
from export.training.trainer import WEIGHTS, Trainer, this_device
from export.whole_files import write_text


def fine_tune_images(
    data: ImageFilesData,
    config: ImageFineTuneConfig,
    loaded: ImagePreparation | None,
    run_dir: Path,
    console: Console,
    time_budget_s: float = math.inf,
    command: str = "",
) -> bool:
    """Train or resume; `loaded` is that of `image_start`, other arguments are those of `fine_tune`.

    Returns:
        whether the run is finished.

    Raises:
        ValueError: `run_dir` holds a run with another configuration, or the start is no whole network.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if is_finished(run_dir):
        return True
    device = this_device()
    torch.manual_seed(config.seed)
    start = image_start(data, config, loaded)
    model = ImageNetwork(start.model, start.preparation.settings)
    height, width = start.preparation.settings.pixels
    console.print(f"decoding {len(data.train) + len(data.validation):,} images to {height} x {width} pixels")
    task = OwnImageTask(data, config, start.preparation, device)
    rates = layer_rates(config.layer_decay, model)
    trainer = Trainer(task, model, copy.deepcopy(model), config, run_dir, device, lr_scale=rates)
    trainer.resume(console)
    if not trainer.fit(console, time_budget_s):
        return False
    finish(trainer, task, command, console)
    return True


def finish(trainer: Trainer, task: OwnImageTask, command: str, console: Console) -> None:
    """Fit temperature and thresholds, save the kept weights, measure them, and write the record."""
    run_dir, data, model = trainer.run_dir, task.data, trainer.model
    console.print("fitting and measuring the best weights")
    assert isinstance(model, ImageNetwork)
    model.load_state_dict(read_weights(run_dir))
    temperature = chosen_temperature(task.predict(model, task.validation_pixels), data.validation, data)
    before_NK = task.predict(model, data.reported.prepared(task.preparation.settings))
    fold_temperature(model.model, temperature.temperature)
    document: dict[str, Any] = {"problem": data.problem}
    if data.problem == MULTI_LABEL:
        wanted_NK = sets_as_matrix(data.validation.labels, len(data.label_names))
        probabilities_NK = sigmoid(task.predict(model, task.validation_pixels))
        document["thresholds"] = [round(float(each), 6) for each in fit_thresholds(probabilities_NK, wanted_NK)]
    save_model(model.model, task.preparation.processor, run_dir / HUGGING_FACE, document)
    plot_curves(trainer.history, "average precision" if task.several else "accuracy", run_dir / CURVES)
    measured = measure_images(run_dir, data, task.preparation, trainer.device, before_NK)
    measured["temperature"] = {"chosen_on": "validation"} | temperature.as_dict()
    about = {
        "task": IMAGE_CLASSIFICATION,
        "network": model.config.model_type,
        "data": data.name,
        "problem": data.problem,
        "num_training_examples": len(data.train),
        "labels": data.label_names,
        "image_size": model.config.image_size,
        "bf16": task.autocast_bf16,
        "data_document": data.document,
    }
    end_run(trainer, command=command, about=about, measured=measured, console=console)
    (run_dir / WEIGHTS).unlink(missing_ok=True)  # those of the saved model are the ones that were measured


def measure_images(
    run_dir: Path,
    data: ImageFilesData,
    preparation: ImagePreparation,
    device: torch.device,
    before_NK: NDArray[np.float32] | None = None,
) -> dict[str, Any]:
    """Measure a run's saved model on the reporting split, and draw how reliable its probabilities are.

    Args:
        run_dir: the run folder.
        data: the data set of the run.
        preparation: how the images of the saved model are prepared.
        device: the device that computes.
        before_NK: logits of the same split before the temperature, for the diagram.
    """
    folder, split = run_dir / HUGGING_FACE, data.reported
    with reading(folder):
        model = ImageNetwork(AutoModelForImageClassification.from_pretrained(str(folder)), preparation.settings)
    document = read_task_document(folder)
    logits_NK = predict_images(model.to(device), split.prepared(preparation.settings), device)
    measured = measure_split(logits_NK, split, data, document)
    before = None if before_NK is None else measure_split(before_NK, split, data, document)
    figures: dict[str, Any] = {"measured_on": data.reported_name, "quality": measured.quality}
    figures |= reliability_figures(measured, before, run_dir)
    about = measured.profile() | {"num_examples": len(split)}
    write_text(run_dir / PROFILE, json.dumps(about, indent=2) + "\n")
    return figures
