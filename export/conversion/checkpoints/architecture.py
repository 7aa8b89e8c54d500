"""Tells the task of a Hugging Face checkpoint from its files."""

from typing import Any

from export.conversion.checkpoints.onnx_folder import split_graph
from export.conversion.checkpoints.reading import CONFIG, LoadRefused, path_of, read_checked_config
from export.conversion.checkpoints.sentence_transformers import MODULES
from export.conversion.checkpoints.timm import has_timm_classifier, is_timm_config
from export.conversion.families.images import IMAGE_FAMILIES
from export.task_table import (
    FEATURE_EXTRACTION,
    IMAGE_CLASSIFICATION,
    IMAGE_FEATURE_EXTRACTION,
    SUMMARIZATION,
    TASK_OF_ENDING,
    TASKS,
    TEXT2TEXT_GENERATION,
    TEXT_RANKING,
)

CROSS_ENCODER = "sentence_transformers"  # a field of `config.json` that sentence-transformers writes


def task_of_checkpoint(source: str) -> str:
    """Return the task of a checkpoint: by the layers of sentence-transformers, else by its architecture.

    Raises:
        LoadRefused: the checkpoint is not complete, or its architecture does not tell a task.
    """
    name_or_path, _ = split_graph(source)
    config = read_checked_config(name_or_path)
    if path_of(name_or_path, MODULES) is not None:
        return FEATURE_EXTRACTION
    return task_of_config(config)


def task_of_config(config: dict[str, Any]) -> str:
    """Return the task that the contents of `config.json` tell.

    Raises:
        LoadRefused: they tell none.
    """
    if is_timm_config(config):
        return IMAGE_CLASSIFICATION if has_timm_classifier(config) else IMAGE_FEATURE_EXTRACTION
    named = config.get("architectures")
    if CROSS_ENCODER in config and any("ForSequenceClassification" in str(each) for each in named or []):
        return TEXT_RANKING
    for architecture in named if isinstance(named, list) else []:
        for ending, task in TASK_OF_ENDING.items():
            if str(architecture).endswith(ending):
                params = config.get("task_specific_params")
                if task == TEXT2TEXT_GENERATION and isinstance(params, dict) and list(params) == [SUMMARIZATION]:
                    return SUMMARIZATION  # the only task that the checkpoint has settings for
                images = task == FEATURE_EXTRACTION and config.get("model_type") in IMAGE_FAMILIES
                return IMAGE_FEATURE_EXTRACTION if images else task
    found = ", ".join(map(str, named)) if isinstance(named, list) and named else "none"
    raise LoadRefused(
        f"{CONFIG}: architectures ({found}) does not tell the task; give it with --task: {', '.join(TASKS)}"
    )
