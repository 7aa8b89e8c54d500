"""Saves a trained encoder in Hugging Face form, as `transformers` loads it without further code, and loads it again.

    hugging_face/   config.json (labels, problem), tokenizer.json, tokenizer_config.json, weights (large ones in shards)

Weights are stored in float16, and `config.json` says float32: `from_pretrained` then computes in float32 with the
rounded weights, as everything here does. Weights that float16 cannot hold, and those of the head, stay in float32.

What was fitted after training is folded into the head, so that it needs no further code either: the temperature of a
classifier, and the scale of the targets of a regression.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from export.training.fine_tuning.starting_point import reading
from export.training.fine_tuning.task import SequenceClassifier
from export.training.run_folder import MAX_FILE_BYTES
from export.whole_files import write_bytes, write_text

HUGGING_FACE = "hugging_face"  # folder in the run folder
TASK_DOCUMENT = "task.json"  # problem and thresholds, which `config.json` has no place for
MAX_FLOAT16 = 65504.0


def head_of(model: Any) -> nn.Linear:
    """Return the last linear map of a classifier of `transformers`: of sequences, tokens or images.

    Raises:
        ValueError: the network has none in the places that the known families have.
    """
    classifier = model.classifier
    if isinstance(classifier, nn.Sequential):  # of convolutional networks
        classifier = classifier[-1]
    head = classifier if isinstance(classifier, nn.Linear) else getattr(classifier, "out_proj", None)
    if not isinstance(head, nn.Linear):
        raise ValueError(f"a {model.config.model_type} has no linear head")  # noqa: TRY004, a network that is not offered
    return head


@torch.no_grad()
def fold_temperature(model: Any, temperature: float) -> None:
    """Divide all logits of a classifier by the temperature (Guo et al. 2017, arXiv 1706.04599), in its head."""
    head = head_of(model)
    head.weight.div_(temperature)
    head.bias.div_(temperature)


@torch.no_grad()
def fold_scale(model: Any, mean: float, scale: float) -> None:
    """Let a regression that was trained on standardised targets answer in their own unit."""
    head = head_of(model)
    head.weight.mul_(scale)
    head.bias.mul_(scale).add_(mean)


def save_model(model: Any, tokenizer: Any, folder: Path, task_document: dict[str, Any]) -> None:
    """Write the folder; one that was there before is replaced.

    Args:
        model: the classifier.
        tokenizer: its fast tokenizer, or its image processor.
        folder: the folder to write.
        task_document: the contents of `task.json`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.config.dtype = torch.float32
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    head = {id(weight) for weight in head_of(model).parameters()}
    # Running statistics of batch normalisation are divided by, so they stay exact too.
    kept = {name for name, weight in model.named_parameters() if id(weight) in head}
    kept |= {name for name, _ in model.named_buffers()}
    weights = {
        name: (weight if name in kept else _halved(weight)).contiguous() for name, weight in model.state_dict().items()
    }
    shards = split_torch_state_dict_into_shards(
        weights, max_shard_size=MAX_FILE_BYTES, filename_pattern="model{suffix}.safetensors"
    )
    for name, members in shards.filename_to_tensors.items():
        write_bytes(folder / name, save({each: weights[each].cpu() for each in members}, {"format": "pt"}))
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
    write_text(folder / TASK_DOCUMENT, json.dumps(task_document, indent=2) + "\n")


def _halved(weight: Tensor) -> Tensor:
    if not weight.is_floating_point() or float(weight.abs().max()) > MAX_FLOAT16:
        return weight
    return weight.half()


def load_model(folder: Path) -> tuple[SequenceClassifier, Any]:
    """Load network, in float32 and ready to predict, and tokenizer of a saved folder."""
    with reading(folder):
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        model = AutoModelForSequenceClassification.from_pretrained(str(folder))
    return SequenceClassifier(model, tokenizer.model_max_length).eval(), tokenizer


def read_task_document(folder: Path) -> dict[str, Any]:
    """Read `task.json` of a saved folder; empty where there is none."""
    path = folder / TASK_DOCUMENT
    document: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return document
