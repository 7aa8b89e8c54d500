"""The families of image models that can be loaded, by `model_type` of `config.json`.

Each is compared with `transformers` in the tests, over sizes of images and of batches.
"""

from dataclasses import dataclass
from typing import Literal

# Measured on one thread of a CPU: the network of `cifar10-cnn` takes 0.95 ms an image in float32, 1.03 in int8 (4.8
# with signed weights). A vision transformer's linear maps gain: 1.07 ms instead of 1.74 for `cifar10-vit`.
NO_INT8_CONVOLUTIONS = "the network is made of convolutions, which are no faster so; convert it in float32"


@dataclass(frozen=True, kw_only=True)
class ImageFamily:
    """What conversion has to know about a family.

    Attributes:
        title: the family's name, for people.
        image_size: size of the images that the network takes: that of `config.json`, or any size, so that the image
            processor's counts. Networks of the second kind have no positions, or interpolate them.
        embedding: vector of an image, in the names of `transformers`: `pooler_output`, which the network always
            computes; or `pooler_output` where the checkpoint has weights for it, and else the first token of
            `last_hidden_state` (CLS).
        embedding_is: how that vector comes about, for model cards and the documentation.
        not_quantized_because: why int8 does not suit the family, or None where it does.
    """

    title: str
    image_size: Literal["of config.json", "any"]
    embedding: Literal["pooler_output", "pooler_output or CLS"] = "pooler_output"
    embedding_is: str
    not_quantized_because: str | None = None


CLS_OR_POOLER = "the class token after the last layer normalisation; through the pooler if the checkpoint has one"
MEAN_OF_CELLS = "the mean of all cells of the last feature map"

IMAGE_FAMILIES = {
    "vit": ImageFamily(
        title="ViT", image_size="of config.json", embedding="pooler_output or CLS", embedding_is=CLS_OR_POOLER
    ),
    "deit": ImageFamily(
        title="DeiT", image_size="of config.json", embedding="pooler_output or CLS", embedding_is=CLS_OR_POOLER
    ),
    "beit": ImageFamily(
        title="BEiT",
        image_size="of config.json",
        embedding_is="the normalised mean of the patches, or the class token where use_mean_pooling is false",
    ),
    "dinov2": ImageFamily(
        title="DINOv2", image_size="any", embedding_is="the class token after the last layer normalisation"
    ),
    "dinov2_with_registers": ImageFamily(
        title="DINOv2 with registers",
        image_size="any",
        embedding_is="the class token after the last layer normalisation",
    ),
    "swin": ImageFamily(
        title="Swin", image_size="any", embedding_is="the mean of the patches after the last layer normalisation"
    ),
    "swinv2": ImageFamily(
        title="Swin V2", image_size="any", embedding_is="the mean of the patches after the last layer normalisation"
    ),
    "convnext": ImageFamily(title="ConvNeXT", image_size="any", embedding_is=f"{MEAN_OF_CELLS}, normalised"),
    "convnextv2": ImageFamily(title="ConvNeXT V2", image_size="any", embedding_is=f"{MEAN_OF_CELLS}, normalised"),
    "resnet": ImageFamily(
        title="ResNet",
        image_size="any",
        embedding_is=MEAN_OF_CELLS,
        not_quantized_because=NO_INT8_CONVOLUTIONS,
    ),
    "regnet": ImageFamily(
        title="RegNet",
        image_size="any",
        embedding_is=MEAN_OF_CELLS,
        not_quantized_because=NO_INT8_CONVOLUTIONS,
    ),
    "mobilenet_v2": ImageFamily(
        title="MobileNet V2",
        image_size="any",
        embedding_is=MEAN_OF_CELLS,
        not_quantized_because=NO_INT8_CONVOLUTIONS,
    ),
}
