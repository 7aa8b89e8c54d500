"""Trains an encoder of `transformers` on texts of one's own with entities, from the data to a run folder.

    texts ──> windows as served, tags ──> `trainer` ──> best weights ──> temperature (choosing split) ──> saved
                                                                saved ──> measured (reporting split)

The run folder is that of `export.training.fine_tuning.run`.
"""

import copy
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForTokenClassification, AutoTokenizer

from export.data.token_classification import TokenClassificationData
from export.data.tokenizers import train_word_pieces
from export.finished_runs import is_finished
from export.task_table import TOKEN_CLASSIFICATION
from export.training.fine_tuning.entities.settings import EntityTrainConfig
from export.training.fine_tuning.entities.task import (
    EntityTask,
    TokenClassifier,
    entities_of,
    labelled_tokens,
    predict_items,
    rows_of_split,
    served_task,
)
from export.training.fine_tuning.measuring import Measured, reliability_figures
from export.training.fine_tuning.run import CURVES, PROFILE, plot_curves
from export.training.fine_tuning.saved_model import HUGGING_FACE, fold_temperature, read_task_document, save_model
from export.training.fine_tuning.starting_point import StartingPoint, encoder_start, reading
from export.training.fine_tuning.task import freeze_embeddings, layer_rates
from export.training.measures.calibration import fit_temperature
from export.training.measures.entities import entity_quality
from export.training.quality import expected_calibration_error, softmax
from export.training.run_folder import end_run, read_weights
from export.training.trainer import WEIGHTS, Trainer, this_device
from export.whole_files import write_text

STRATEGY = "aggregation_strategy"  # in `task.json`: how tokens become the entities that were measured


def fine_tune_entities(
    data: TokenClassificationData,
    config: EntityTrainConfig,
    run_dir: Path,
    console: Console,
    time_budget_s: float = math.inf,
    command: str = "",
) -> bool:
    """Train or resume; arguments are those of `fine_tune`.

    Returns:
        whether the run is finished.

    Raises:
        ValueError: `run_dir` holds a run with another configuration, or the start is not an encoder of a known family.
        FileNotFoundError: MiniLM is not installed.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if is_finished(run_dir):
        return True
    device = this_device()
    torch.manual_seed(config.seed)
    start = entity_start(data, config)
    model = TokenClassifier(start.model, start.max_tokens)
    if config.freeze_embeddings:
        freeze_embeddings(model)
    console.print(f"tokenizing {len(data.train):,} training texts")
    task = EntityTask(data, config, start, device)
    rates = layer_rates(config.layer_decay, model)
    trainer = Trainer(task, model, copy.deepcopy(model), config, run_dir, device, lr_scale=rates)
    trainer.resume(console)
    if not trainer.fit(console, time_budget_s):
        return False
    finish(trainer, task, command, console)
    return True


def entity_start(data: TokenClassificationData, config: EntityTrainConfig) -> StartingPoint:
    """Build or load tokenizer and network, with a head for the tags; errors are those of `encoder_start`."""
    tags = data.tag_names
    about = {
        "num_labels": len(tags),
        "id2label": dict(enumerate(tags)),
        "label2id": {tag: number for number, tag in enumerate(tags)},
    }
    return encoder_start(config, about, AutoModelForTokenClassification, partial(train_word_pieces, data.train.texts))


def finish(trainer: Trainer, task: EntityTask, command: str, console: Console) -> None:
    """Fit the temperature, save the kept weights, measure them, and write the record."""
    run_dir, data, model = trainer.run_dir, task.data, trainer.model
    console.print("fitting and measuring the best weights")
    assert isinstance(model, TokenClassifier)
    model.load_state_dict(read_weights(run_dir))
    chosen = predict_items(model, task.served, task.validation_items, trainer.device)
    temperature = fit_temperature(*labelled_tokens(chosen, data.validation, data.tag_names))
    before = _tokens_measured(model, task, trainer.device)
    fold_temperature(model.model, temperature.temperature)
    save_model(model.model, task.tokenizer, run_dir / HUGGING_FACE, {STRATEGY: task.strategy})
    plot_curves(trainer.history, "F1 of entities", run_dir / CURVES)
    measured = measure_entities(run_dir, data, trainer.device, before)
    measured["temperature"] = {"chosen_on": "validation"} | temperature.as_dict()
    about = {
        "task": TOKEN_CLASSIFICATION,
        "network": model.config.model_type,
        "data": data.name,
        "num_training_examples": len(data.train),
        "labels": data.label_names,
        "tags": data.tag_names,
        "bf16": task.autocast_bf16,
        "data_document": data.document,
    }
    end_run(trainer, command=command, about=about, measured=measured, console=console)
    (run_dir / WEIGHTS).unlink(missing_ok=True)  # those of the saved model are the ones that were measured


def _tokens_measured(model: TokenClassifier, task: EntityTask, device: torch.device) -> Measured:
    items = rows_of_split(task.served, task.data.reported, task.strategy)
    return _measured_tags(predict_items(model, task.served, items, device), task.data)


def _measured_tags(results: list[Any], data: TokenClassificationData) -> Measured:
    """Judge the tags of all tokens of the reporting split: how reliable their probabilities are."""
    logits_NC, tags_N = labelled_tokens(results, data.reported, data.tag_names)
    error = expected_calibration_error(softmax(logits_NC), tags_N)
    confidence_N, right_N = softmax(logits_NC).max(axis=1), logits_NC.argmax(axis=1) == tags_N
    return Measured({"expected_calibration_error": error}, confidence_N, right_N)


def measure_entities(
    run_dir: Path, data: TokenClassificationData, device: torch.device, before: Measured | None = None
) -> dict[str, Any]:
    """Measure a run's saved model on the reporting split, and draw how reliable the probabilities of its tags are.

    Args:
        run_dir: the run folder.
        data: the data set of the run.
        device: the device that computes.
        before: the tags before the temperature, for the diagram.
    """
    folder, split = run_dir / HUGGING_FACE, data.reported
    with reading(folder):
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        model = TokenClassifier(
            AutoModelForTokenClassification.from_pretrained(str(folder)), tokenizer.model_max_length
        )
    served = served_task(tokenizer, data.tag_names, tokenizer.model_max_length)
    strategy = read_task_document(folder)[STRATEGY]
    results = predict_items(model.to(device), served, rows_of_split(served, split, strategy), device)
    found = entities_of(served, results)
    tags = _measured_tags(results, data)
    quality = entity_quality(found, split.entities, data.label_names).as_dict() | tags.quality | {STRATEGY: strategy}
    figures: dict[str, Any] = {"measured_on": data.reported_name, "quality": quality}
    figures |= reliability_figures(tags, before, run_dir)
    answered = Measured({}, tags.confidence_N, answered=[entity.label for entities in found for entity in entities])
    unknown = tokenizer.unk_token_id
    ids = [[number for part in result.item.parts for number in part.ids] for result in results]
    document = answered.profile(
        lengths=[len(each) for each in ids],
        unknown_fractions=None if unknown is None else [each.count(unknown) / len(each) for each in ids],
    )
    write_text(run_dir / PROFILE, json.dumps(document, indent=2) + "\n")
    return figures
