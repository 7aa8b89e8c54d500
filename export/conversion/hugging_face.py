"""Loads Hugging Face image classifiers as sources for conversion: ViT and DeiT."""

from collections.abc import Mapping
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
)
from export.conversion.model_source import ImageClassifierSource
from export.conversion.text_checkpoint import check_computes

IMAGE_MODEL_TYPES = ("vit", "deit")


def image_source_of_hugging_face(name_or_path: str) -> ImageClassifierSource:
    """Load an image classifier from a saved folder or a hub id.

    Raises:
        LoadRefused: not a complete single-label image classifier of a known family, or unknown preprocessing.
    """
    document = read_config(name_or_path, IMAGE_MODEL_TYPES)
    labels_of(document, 0)
    model, said = load_weights(AutoModelForImageClassification, name_or_path, attn_implementation="eager")
    config = model.config
    check_single_label(document, config.num_labels)
    processor = load_processor(name_or_path, config.model_type)
    preprocessor = served_processor(processor)
    _check_image_size(config, preprocessor)
    source = ImageClassifierSource(
        module=_ImageLogits(model),
        labels=labels_of(document, config.num_labels),
        image_size=config.image_size,
        model_type=config.model_type,
        loaded_preprocessor=preprocessor,
        provenance=provenance_of_loaded(name_or_path, model) | said,
    )
    check_same_pixels(source.task, processor)
    check_computes(source)
    return source


def _check_image_size(config: Any, preprocessor: Mapping[str, Any]) -> None:
    if not isinstance(config.image_size, int) or config.num_channels != 3:
        raise LoadRefused(
            f"{CONFIG}: image_size {config.image_size} with num_channels {config.num_channels}; only square images of 3"
            " channels are offered"
        )
    size = preprocessor["crop_size"] if preprocessor["do_center_crop"] else preprocessor["size"]
    if (size["height"], size["width"]) != (config.image_size, config.image_size):
        raise LoadRefused(
            f"the image processor prepares {size['height']} x {size['width']} pixels, the model takes"
            f" {config.image_size} x {config.image_size}"
        )


class _ImageLogits(nn.Module):
    """A Hugging Face image classifier that returns only its logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Classify pixels, float32 [B, 3, H, W]; return logits [B, C]."""
        logits: Tensor = self.model(pixel_values=pixel_values).logits
        return logits
