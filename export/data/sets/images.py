"""Reads described data sets of labelled images."""

from typing import Any

import numpy as np

from export.data.image_classification import ImageClassificationData, LabelledImages
from export.data.sets.description import DataSet, data_set
from export.task_table import IMAGE_CLASSIFICATION


def load_image_set(key: str) -> ImageClassificationData:
    """Load the data set with this key, such as "cifar10".

    Raises:
        ValueError: there is no such data set.
        FileNotFoundError: its files are missing.
    """
    return read_images(data_set(key, IMAGE_CLASSIFICATION))


def read_images(described: DataSet) -> ImageClassificationData:
    """Read a described data set; the validation split is the end of the training split."""
    splits = described.read()
    image, label = described.columns["image"], described.columns["label"]

    def read(split: Any) -> LabelledImages:
        pixels = np.stack([np.asarray(picture.convert("RGB")) for picture in split[image]])
        return LabelledImages(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), np.array(split[label]))

    whole = read(splits[described.splits["train"]])
    cut = len(whole) - described.validation_rows
    train, validation = (
        LabelledImages(whole.pixels_NCHW[part], whole.labels_N[part]) for part in (slice(None, cut), slice(cut, None))
    )
    names = described.labels or list(splits[described.splits["train"]].features[label].names)
    return ImageClassificationData(described.name, names, train, validation, read(splits[described.splits["test"]]))
