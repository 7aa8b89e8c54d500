"""Labelled images: CIFAR-10, and images encoded as the files that clients send."""

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.data.hub import source_of

CIFAR10_HUB_ID = "uoft-cs/cifar10"
CIFAR10 = "CIFAR-10"  # the name that run folders record
NUM_VALIDATION_IMAGES = 5_000  # kept back from CIFAR-10's training split, which has no validation split of its own


@dataclass(frozen=True)
class LabelledImages:
    """Pixels, uint8 [N, 3, H, W], and class numbers, int64 [N]."""

    pixels_NCHW: NDArray[np.uint8]
    labels_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels_N)


@dataclass(frozen=True)
class EncodedImages:
    """Images as a client would send them, and their class numbers."""

    inputs: list[bytes]
    labels: list[int]


def encoded(images: LabelledImages, file_format: str, **options: Any) -> EncodedImages:
    """Encode images as files: "PNG" is lossless, "JPEG" with `quality` is not."""
    files = []
    for pixels_CHW in images.pixels_NCHW:
        buffer = BytesIO()
        Image.fromarray(pixels_CHW.transpose(1, 2, 0)).save(buffer, file_format, **options)
        files.append(buffer.getvalue())
    return EncodedImages(files, images.labels_N.tolist())


@dataclass(frozen=True)
class ImageClassificationData:
    """A data set for image classification, with the names of its classes by number."""

    name: str
    label_names: list[str]
    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages


def load_cifar10() -> ImageClassificationData:
    """Load CIFAR-10 (Krizhevsky 2009): 45,000 images to train on, 5,000 more to choose by, 10,000 to test."""
    splits = datasets.load_dataset(source_of(CIFAR10_HUB_ID, "cifar10"))

    def read(split: Any) -> LabelledImages:
        pixels = np.stack([np.asarray(image.convert("RGB")) for image in split["img"]])
        return LabelledImages(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), np.array(split["label"]))

    whole = read(splits["train"])
    # The images come in random order, so the last ones are as good a sample as any.
    train, validation = (
        LabelledImages(whole.pixels_NCHW[part], whole.labels_N[part])
        for part in (slice(None, -NUM_VALIDATION_IMAGES), slice(-NUM_VALIDATION_IMAGES, None))
    )
    names = list(splits["train"].features["label"].names)
    return ImageClassificationData(CIFAR10, names, train, validation, read(splits["test"]))
