"""Starting points of training on images: a small network with random weights, or one in Hugging Face form."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from transformers import AutoModelForImageClassification, ResNetConfig, ViTConfig

from export.data.own.images import ImageFilesData
from export.training.fine_tuning.images.settings import ImageFineTuneConfig, ImageShape, side_for
from export.training.fine_tuning.settings import SCRATCH
from export.training.fine_tuning.starting_point import about_labels, reading, require_whole
from export.whole_files import write_text
from model_store.folder import PREPROCESSOR
from service.tasks.images.preprocessing import PreprocessorConfig

RANDOM_WEIGHTS = ("resnet", "vit")


class ImagePreparation(NamedTuple):
    """How images are prepared: the image processor to save with the network, and its settings as the service reads it.

    `processor` has `save_pretrained`, as the image processors of `transformers` have it.
    """

    processor: Any
    settings: PreprocessorConfig


class ImageStart(NamedTuple):
    """Network and preparation of images at the start."""

    model: Any
    preparation: ImagePreparation


class PlainProcessor:
    """The image processor of a network from scratch: images of any size are stretched to a square."""

    def __init__(self, side: int) -> None:
        self.document = {
            "image_processor_type": "ViTImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": side, "width": side},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        }

    def save_pretrained(self, folder: Path) -> None:
        """Write `preprocessor_config.json`, as `transformers` does."""
        write_text(folder / PREPROCESSOR, json.dumps(self.document, indent=2) + "\n")


def image_start(data: ImageFilesData, config: ImageFineTuneConfig, loaded: ImagePreparation | None) -> ImageStart:
    """Build or load a network with a head for the labels of the data.

    Args:
        data: the data.
        config: the settings of training.
        loaded: how the images of the network in `config.start_from` are prepared; None for a start from scratch.

    Raises:
        ValueError: the folder has no whole network, or the shape cannot be built.
    """
    about = about_labels(data)
    if loaded is None:
        side = config.model.image_size or side_for(data.document["image_sizes"])
        processor = PlainProcessor(side)
        preparation = ImagePreparation(processor, msgspec.convert(processor.document, PreprocessorConfig))
        return ImageStart(_from_scratch(config.model, side, about), preparation)
    assert config.start_from != SCRATCH
    with reading(Path(config.start_from)):
        model, info = AutoModelForImageClassification.from_pretrained(
            config.start_from,
            output_loading_info=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            dtype="float32",
            **about,
        )
    require_whole(Path(config.start_from), info)
    return ImageStart(model, loaded)


def _from_scratch(shape: ImageShape, side: int, about: dict[str, Any]) -> Any:
    if shape.model_type == "resnet":
        described: Any = ResNetConfig(
            embedding_size=shape.width,
            hidden_sizes=[shape.width * 2**stage for stage in range(shape.num_stages)],
            depths=[shape.blocks_per_stage] * shape.num_stages,
            layer_type="basic",
            **about,
        )
    elif shape.model_type == "vit":
        if side % shape.patch_size:
            raise ValueError(f"images of {side} pixels are not a whole number of patches of {shape.patch_size}")
        described = ViTConfig(
            image_size=side,
            patch_size=shape.patch_size,
            hidden_size=shape.d_model,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            intermediate_size=shape.d_ff,
            hidden_dropout_prob=shape.dropout,
            attention_probs_dropout_prob=shape.dropout,
            **about,
        )
    else:
        raise ValueError(f"model_type {shape.model_type!r} cannot be built; there are {', '.join(RANDOM_WEIGHTS)}")
    return AutoModelForImageClassification.from_config(described)
