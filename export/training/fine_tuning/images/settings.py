"""Settings of training an image network of `transformers`; `export/recipes/images-*.toml` has the recipes."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from export.training.fine_tuning.settings import SCRATCH
from export.training.trainer import TrainerConfig

FEW_IMAGES = 5_000  # with fewer training images, a smaller network is trained for more epochs
# The side of the images that a network from scratch takes, in pixels, where no setting says it.
MIN_SIDE, MAX_SIDE, SIDE_STEP = 16, 64, 8


@dataclass(frozen=True, kw_only=True)
class ImageShape:
    """Shape of an image network from random weights. A start with weights brings its own shape.

    `resnet` (He et al. 2016, arXiv 1512.03385) learns from few images; `vit` (Dosovitskiy et al. 2021, arXiv
    2010.11929) needs more, and its attention can be shown.
    """

    model_type: str = "resnet"
    image_size: int = 0  # side of the images in pixels; 0: the middle size of the data, between 16 and 64
    width: int = 32  # of a resnet: channels of the first stage, each next stage has twice as many
    num_stages: int = 3
    blocks_per_stage: int = 2
    patch_size: int = 4  # of a vit, as the following ones
    d_model: int = 128
    num_layers: int = 4
    num_heads: int = 4
    d_ff: int = 256
    dropout: float = 0.0
    num_labels: int = 2

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built.

        Raises:
            ValueError: the width is not a multiple of the heads.
        """
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}")


@dataclass(frozen=True, kw_only=True)
class ImageFineTuneConfig(TrainerConfig):
    """How an image network of `transformers` is trained on labelled images."""

    epochs: int = 20
    patience: int = 20
    learning_rate: float = 1e-3
    batch_size: int = 32
    label_smoothing: float = 0.1  # for one label of many
    # "scratch": random weights; else the folder of an image model in Hugging Face form.
    start_from: str = SCRATCH
    class_weights: Literal["none", "balanced"] = "none"  # see FineTuneConfig
    layer_decay: float = 1.0  # see FineTuneConfig
    crop_share: float = 0.125  # fraction of the side that an image may be shifted by, the edge mirrored
    flip: bool = True  # mirror half of the images; false where left and right mean something, as in text
    cutout_share: float = 0.0  # side of a blanked square as a fraction of the image's side
    mix: float = 0.0  # fraction of the batches that are mixed with CutMix
    jpeg: float = 0.0  # fraction of the images that are compressed as JPEG
    model: ImageShape = dataclasses.field(default_factory=ImageShape)


def side_for(image_sizes: Mapping[str, Any]) -> int:
    """Choose the side of the images for a network from scratch, by the sizes in the data's record."""
    middle = max(image_sizes["median"])
    return int(min(MAX_SIDE, max(MIN_SIDE, round(middle / SIDE_STEP) * SIDE_STEP)))


def shape_of_images(config: Any, image_size: int) -> ImageShape:
    """Read the shape of a loaded network; what its family does not have stays 0."""

    def number(*names: str) -> int:
        found = next((value for name in names if isinstance(value := getattr(config, name, None), int)), 0)
        return int(found)

    widths, depths = getattr(config, "hidden_sizes", None) or [0], getattr(config, "depths", None) or [0]
    return ImageShape(
        model_type=config.model_type,
        image_size=image_size,
        width=widths[0],
        num_stages=len(depths) if depths[0] else 0,
        blocks_per_stage=depths[0],
        patch_size=number("patch_size"),
        d_model=number("hidden_size"),
        num_layers=number("num_hidden_layers"),
        num_heads=number("num_attention_heads") or 1,
        d_ff=number("intermediate_size"),
        dropout=float(getattr(config, "hidden_dropout_prob", 0.0)),
        num_labels=config.num_labels,
    )


def recipe_for(num_images: int, start_from: str) -> tuple[str, str]:
    """Choose the name of a recipe by the number of training images and the given start, and say why."""
    few = num_images < FEW_IMAGES
    why = f"{num_images:,} training images are {'fewer than' if few else 'at least'} {FEW_IMAGES:,}"
    if start_from not in ("", SCRATCH):
        return "images-encoder", "--start-from names a network with weights"
    if not start_from:
        why += "; from scratch, because --start-from names no network"
    return f"images-scratch{'-few' if few else ''}", why
