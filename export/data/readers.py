"""The data sets, read through `datasets` from the hub or from the folder that HEED_DATASETS names."""

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SST2_HUB_ID = "stanfordnlp/sst2"
CIFAR10_HUB_ID = "uoft-cs/cifar10"
MULTI30K_HUB_ID = "bentrevett/multi30k"
SST2, CIFAR10 = "SST-2", "CIFAR-10"  # names of data sets, as run folders record them
MULTI30K_LICENCE = "Multi30k: CC BY-NC-SA 4.0, not for commercial use"
TATOEBA_LICENCE = "Tatoeba: CC BY 2.0 FR (www.manythings.org/anki and tatoeba.org)"
NUM_VALIDATION_IMAGES = 5_000  # kept back from CIFAR-10's training split, which has no validation split of its own


@dataclass(frozen=True)
class LabelledTexts:
    """One split: texts and their class numbers, in the data set's order."""

    texts: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def inputs(self) -> list[str]:
        """What a client would send."""
        return self.texts


@dataclass(frozen=True)
class TextClassificationData:
    """A data set for text classification, with the names of its classes by number."""

    name: str
    label_names: list[str]
    train: LabelledTexts
    validation: LabelledTexts


@dataclass(frozen=True)
class ParallelTexts:
    """One split: sentences and their translations."""

    source: list[str]
    target: list[str]

    def __len__(self) -> int:
        return len(self.source)

    def __add__(self, other: "ParallelTexts") -> "ParallelTexts":
        return ParallelTexts(self.source + other.source, self.target + other.target)


@dataclass(frozen=True)
class TranslationData:
    """A data set for translation; `test` has a split for each of its sources, by name."""

    name: str
    licence: str
    source_language: str
    target_language: str
    train: ParallelTexts
    validation: ParallelTexts
    test: dict[str, ParallelTexts]


def source_of(hub_id: str, folder: str) -> str:
    """Where a data set is read from: `$HEED_DATASETS/<folder>` when that is set, else the hub.

    Raises:
        FileNotFoundError: HEED_DATASETS is set, but has no such folder; a silent download would be a surprise.
    """
    root = os.environ.get("HEED_DATASETS")
    if not root:
        return hub_id
    path = Path(root) / folder
    if not path.is_dir():
        raise FileNotFoundError(f"HEED_DATASETS is set to {root}, but there is no folder {path}")
    return str(path)


def load_everyday() -> LabelledTexts:
    """Sentences in everyday spelling and case, written and labelled for this repository; 1 is positive."""
    path = Path(__file__).parents[2] / "tests" / "data" / "everyday_sentiment.tsv"
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return LabelledTexts([text for _, text in rows], [int(label == "POSITIVE") for label, _ in rows])


def load_sst2() -> TextClassificationData:
    """SST-2 in its GLUE form: 67,349 phrases and sentences to train on, 872 whole sentences to validate.

    The test split is left out: GLUE keeps its labels back.
    """
    splits = datasets.load_dataset(source_of(SST2_HUB_ID, "sst2"))

    def read(split: str) -> LabelledTexts:
        return LabelledTexts(
            [text.strip() for text in splits[split]["sentence"]],
            list(splits[split]["label"]),
        )

    names = [name.upper() for name in splits["train"].features["label"].names]
    return TextClassificationData(SST2, names, read("train"), read("validation"))


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
    """The same images as files: "PNG" keeps every level, "JPEG" with `quality` does not."""
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
    """CIFAR-10 (Krizhevsky 2009): 45,000 images to train on, 5,000 more to choose by, 10,000 to test."""
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


def load_multi30k() -> TranslationData:
    """Multi30k, English to German, raw text (Elliott et al. 2016): 29,000 captions to train on; `test` is test2016."""
    splits = datasets.load_dataset(source_of(MULTI30K_HUB_ID, "multi30k"))
    train, validation, test = (_pairs(splits[name]) for name in ("train", "validation", "test"))
    return TranslationData("Multi30k", MULTI30K_LICENCE, "en", "de", train, validation, {"Multi30k": test})


def load_multi30k_and_tatoeba() -> TranslationData:
    """Multi30k and the sentence pairs of Tatoeba together.

    Raises:
        FileNotFoundError: HEED_DATASETS is not set: these splits of Tatoeba are on no hub.
    """
    if not os.environ.get("HEED_DATASETS"):
        raise FileNotFoundError("set HEED_DATASETS to the folder with tatoeba-en-de: its splits are on no hub")
    captions = load_multi30k()
    splits = datasets.load_dataset(source_of("", "tatoeba-en-de"))
    train, validation, test = (_pairs(splits[name]) for name in ("train", "validation", "test"))
    return TranslationData(
        "Tatoeba and Multi30k",
        f"{MULTI30K_LICENCE}; {TATOEBA_LICENCE}",
        "en",
        "de",
        train + captions.train,
        validation + captions.validation,
        captions.test | {"Tatoeba": test},
    )


def _pairs(split: Any) -> ParallelTexts:
    return ParallelTexts([text.strip() for text in split["en"]], [text.strip() for text in split["de"]])
