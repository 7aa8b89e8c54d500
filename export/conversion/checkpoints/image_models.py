"""Loads image models of Hugging Face and of timm as sources for conversion.

Shapes: B images, C classes or channels, H height, W width.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForImageClassification

from export.conversion.checkpoints.image_processors import check_same_pixels, load_processor, served_processor
from export.conversion.checkpoints.reading import (
    CONFIG,
    LoadRefused,
    check_single_label,
    labels_of,
    load_weights,
    provenance_of_loaded,
    read_config,
    read_object,
)
from export.conversion.checkpoints.timm import is_timm, rewrite_timm
from export.conversion.families.images import IMAGE_FAMILIES, ImageFamily
from export.conversion.model_source import ImageClassifierSource
from export.conversion.text_checkpoint import check_computes


def image_source_of(name_or_path: str) -> ImageClassifierSource:
    """Load an image classifier of Hugging Face or of timm from a saved folder or a hub id.

    Raises:
        LoadRefused: not a complete single-label image classifier of a known family, or unknown preprocessing.
    """
    return _source_of_timm(name_or_path) if is_timm(name_or_path) else _source_of_hugging_face(name_or_path)


def _source_of_timm(name_or_path: str) -> ImageClassifierSource:
    document = read_object(name_or_path, CONFIG)
    with tempfile.TemporaryDirectory() as temporary:
        preprocessor = rewrite_timm(name_or_path, Path(temporary), with_head=True)
        model, _ = load_weights(AutoModelForImageClassification, temporary, attn_implementation="eager")
    config = model.config
    check_single_label({}, config.num_labels)
    family = IMAGE_FAMILIES[config.model_type]
    source = ImageClassifierSource(
        module=ImageLogits(model),
        labels=[config.id2label[number] for number in range(config.num_labels)],
        image_size=image_size_of(config, family, preprocessor),
        model_type=config.model_type,
        loaded_preprocessor=preprocessor,
        not_quantized_because=family.not_quantized_because,
        provenance=provenance_of_loaded(name_or_path, model) | {"timm_architecture": document["architecture"]},
    )
    check_computes(source)
    return source


def _source_of_hugging_face(name_or_path: str) -> ImageClassifierSource:
    document = read_config(name_or_path, IMAGE_FAMILIES)
    labels_of(document, 0)
    model, said = load_weights(AutoModelForImageClassification, name_or_path, attn_implementation="eager")
    config = model.config
    check_single_label(document, config.num_labels)
    family = IMAGE_FAMILIES[config.model_type]
    processor = load_processor(name_or_path, config.model_type)
    preprocessor = served_processor(processor)
    source = ImageClassifierSource(
        module=ImageLogits(model),
        labels=labels_of(document, config.num_labels),
        image_size=image_size_of(config, family, preprocessor),
        model_type=config.model_type,
        loaded_preprocessor=preprocessor,
        not_quantized_because=family.not_quantized_because,
        provenance=provenance_of_loaded(name_or_path, model) | said,
    )
    check_same_pixels(source.task, processor)
    check_computes(source)
    return source


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
