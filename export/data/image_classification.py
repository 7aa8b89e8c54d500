"""Labelled images, and images encoded as the files that clients send."""

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


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
