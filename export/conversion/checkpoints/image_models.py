"""Loads image models of Hugging Face and of timm as sources for conversion.

Shapes: B images, C classes or channels, D elements of a vector, H height, W width.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageClassification

from export.conversion.checkpoints.image_processors import check_same_pixels, load_processor, served_processor
from export.conversion.checkpoints.reading import (
    CONFIG,
    LoadRefused,
    labels_of,
    load_weights,
    provenance_of_loaded,
    read_config,
    read_object,
    reading,
)
from export.conversion.checkpoints.timm import is_timm, rewrite_timm
from export.conversion.families.images import IMAGE_FAMILIES, ImageFamily
from export.conversion.model_source import ImageClassifierSource, ImageEmbeddingSource
from export.conversion.text_checkpoint import check_computes, classifier_settings, saved_settings
from service.tasks.images.image_feature_extraction import ImageEmbeddingSettings

# The end of the error for a checkpoint that lacks a pooler, and nothing else.
NO_POOLER = "2 weights are missing from the checkpoint: pooler.dense.bias, pooler.dense.weight"


def image_source_of(name_or_path: str) -> ImageClassifierSource:
    """Load an image classifier of Hugging Face or of timm from a saved folder or a hub id.

    Raises:
        LoadRefused: not a complete image classifier of a known family, or unknown preprocessing.
    """
    loaded = _load(name_or_path, AutoModelForImageClassification)
    config = loaded.model.config
    source = ImageClassifierSource(
        module=ImageLogits(loaded.model),
        labels=labels_of(loaded.document, config.num_labels),
        settings=saved_settings(name_or_path) or classifier_settings(loaded.document, config.num_labels),
        **loaded.arguments,
    )
    _check(source, loaded)
    return source


def image_embedding_of(name_or_path: str) -> ImageEmbeddingSource:
    """Load the backbone of an image model of Hugging Face or of timm, whose answer is a vector.

    Raises:
        LoadRefused: not a complete image model of a known family, or unknown preprocessing.
    """
    loaded = _load(name_or_path, AutoModel)
    module = ImageEmbedding(loaded.model)
    side = loaded.arguments["image_size"]
    with torch.inference_mode(), reading("PyTorch cannot compute the loaded network"):
        dimensions = module(torch.zeros(1, 3, side, side)).shape[-1]
    embedding = {"embedding_is": IMAGE_FAMILIES[loaded.model.config.model_type].embedding_is}
    source = ImageEmbeddingSource(
        module=module,
        settings=ImageEmbeddingSettings(dimensions=dimensions),
        **loaded.arguments | {"provenance": loaded.arguments["provenance"] | embedding},
    )
    _check(source, loaded)
    return source


@dataclass(frozen=True)
class _Loaded:
    """A checkpoint that was read whole.

    Attributes:
        document: the contents of `config.json`.
        model: the network of `transformers`.
        processor: the checkpoint's own image processor; None where the checkpoint only describes one.
        arguments: arguments of every source of this checkpoint, all but its network.
    """

    document: dict[str, Any]
    model: Any
    processor: Any
    arguments: dict[str, Any]


def _load(name_or_path: str, auto_class: Any) -> _Loaded:
    if is_timm(name_or_path):
        return _load_timm(name_or_path, auto_class)
    document = read_config(name_or_path, IMAGE_FAMILIES)
    labels_of(document, 0)
    model, said = _load_network(auto_class, name_or_path, IMAGE_FAMILIES[document["model_type"]])
    processor = load_processor(name_or_path, model.config.model_type)
    arguments = _arguments(name_or_path, model, served_processor(processor), said)
    return _Loaded(document, model, processor, arguments)


def _load_timm(name_or_path: str, auto_class: Any) -> _Loaded:
    with_head = auto_class is AutoModelForImageClassification
    with tempfile.TemporaryDirectory() as temporary:
        preprocessor = rewrite_timm(name_or_path, Path(temporary), with_head)
        document = read_object(temporary, CONFIG)
        model, _ = _load_network(auto_class, temporary, IMAGE_FAMILIES[document["model_type"]])
    said = {"timm_architecture": read_object(name_or_path, CONFIG)["architecture"]}
    return _Loaded(document, model, None, _arguments(name_or_path, model, preprocessor, said))


def _load_network(auto_class: Any, name_or_path: str, family: ImageFamily) -> tuple[Any, dict[str, Any]]:
    """Load the network, with its pooler if it is a backbone and the checkpoint has weights for one."""
    options = {"attn_implementation": "eager"}
    if auto_class is AutoModelForImageClassification or family.embedding == "pooler_output":
        return load_weights(auto_class, name_or_path, **options)
    try:
        return load_weights(auto_class, name_or_path, **options)
    except LoadRefused as error:
        if not str(error).endswith(NO_POOLER):
            raise
        return load_weights(auto_class, name_or_path, add_pooling_layer=False, **options)


def _arguments(name_or_path: str, model: Any, preprocessor: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    family = IMAGE_FAMILIES[model.config.model_type]
    return {
        "image_size": image_size_of(model.config, family, preprocessor),
        "model_type": model.config.model_type,
        "loaded_preprocessor": preprocessor,
        "not_quantized_because": family.not_quantized_because,
        "provenance": provenance_of_loaded(name_or_path, model) | said,
    }


def _check(source: ImageClassifierSource | ImageEmbeddingSource, loaded: _Loaded) -> None:
    if loaded.processor is not None:
        check_same_pixels(source.task, loaded.processor)
    check_computes(source)


def image_size_of(config: Any, family: ImageFamily, preprocessor: Mapping[str, Any]) -> int:
    """Return the length of the sides of the images that the network will be given.

    Args:
        config: the configuration of a network of `transformers`.
        family: the network's family.
        preprocessor: the image processor in the form that the service reads.

    Raises:
        LoadRefused: the images are not square or have other than 3 channels, or the network takes another size.
    """
    size = preprocessor["crop_size"] if preprocessor["do_center_crop"] else preprocessor["size"]
    if config.num_channels != 3:
        raise LoadRefused(f"{CONFIG}: num_channels {config.num_channels}; only images of 3 channels are offered")
    if size["height"] != size["width"]:
        raise LoadRefused(
            f"the image processor prepares {size['height']} x {size['width']} pixels; only square images are offered"
        )
    if family.image_size == "of config.json":
        sizes = config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size] * 2
        if list(sizes) != [size["height"], size["width"]]:
            raise LoadRefused(
                f"the image processor prepares {size['height']} x {size['width']} pixels, the model takes"
                f" {' x '.join(map(str, sizes))} (image_size of {CONFIG})"
            )
    return int(size["height"])


class ImageLogits(nn.Module):
    """A Hugging Face image classifier that returns only its logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Classify pixels, float32 [B, 3, H, W]; return logits [B, C]."""
        logits: Tensor = self.model(pixel_values=pixel_values).logits
        return logits


class ImageEmbedding(nn.Module):
    """A backbone of Hugging Face that returns the vector of each image."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embed pixels, float32 [B, 3, H, W]; return vectors [B, D]."""
        found = self.model(pixel_values=pixel_values)
        if found.pooler_output is None:
            class_token_BD: Tensor = found.last_hidden_state[:, 0]
            return class_token_BD
        # Networks of convolutions keep two axes of length 1.
        vectors_BD: Tensor = found.pooler_output.flatten(1)
        return vectors_BD
