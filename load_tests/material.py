"""Inputs of the load tests: sentences and images of data sets where they are at hand, else a few of our own.

Drawn images are clouds of colours: they cost as much as any image, but have no right answer.
"""

import os
import random
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

OWN = Path(__file__).parent / "sentences.tsv"
OWN_PAIRS = Path(__file__).parent / "pairs.tsv"
CIFAR10_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Translations:
    """English texts with their German translations, and where they come from."""

    source: str
    texts: list[str]
    references: list[str]


@dataclass(frozen=True)
class Images:
    """Image files with the names of what they show, if anything, and where they come from."""

    source: str
    files: list[bytes]
    labels: list[str]  # empty: unknown


@dataclass(frozen=True)
class Sentences:
    """Texts with their true labels, and where they come from."""

    source: str
    texts: list[str]
    labels: list[str]


def load_sentences() -> Sentences:
    """Load the sentences of `$HEED_DATASETS/sst2`, or the ones beside this file."""
    parquet = _parquet("sst2", "validation")
    if not parquet:
        rows = [line.split("\t") for line in OWN.read_text().splitlines() if line]
        return Sentences(
            "load_tests/sentences.tsv",
            [text for _, text in rows],
            [label for label, _ in rows],
        )
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(parquet)
    names = ("NEGATIVE", "POSITIVE")
    texts = [text.strip() for text in table["sentence"].to_pylist()]
    return Sentences(
        "SST-2 validation",
        texts,
        [names[label] for label in table["label"].to_pylist()],
    )


def load_translations() -> Translations:
    """Load the captions of `$HEED_DATASETS/multi30k`'s test split, or the pairs beside this file."""
    parquet = _parquet("multi30k", "test")
    if not parquet:
        rows = [line.split("\t") for line in OWN_PAIRS.read_text().splitlines() if line]
        return Translations("load_tests/pairs.tsv", [english for english, _ in rows], [german for _, german in rows])
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(parquet)
    return Translations("Multi30k test2016", table["en"].to_pylist(), table["de"].to_pylist())


def load_images(count: int = 2000) -> Images:
    """Load the first files of `$HEED_DATASETS/cifar10`'s test split, or draw clouds."""
    parquet = _parquet("cifar10", "test")
    if not parquet:
        return Images("clouds of colours, drawn", [_clouds(seed) for seed in range(min(count, 200))], [])
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(parquet).slice(0, count)
    files = [image["bytes"] for image in table["img"].to_pylist()]
    return Images("CIFAR-10 test", files, [CIFAR10_LABELS[label] for label in table["label"].to_pylist()])


def _clouds(seed: int) -> bytes:
    """Draw a PNG of the size of CIFAR-10's images; a seed always gives the same one."""
    colours = Image.frombytes("RGB", (5, 5), random.Random(seed).randbytes(5 * 5 * 3))
    file = BytesIO()
    colours.resize((32, 32), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def _parquet(data_set: str, split: str) -> list[Path]:
    root = os.environ.get("HEED_DATASETS")
    return sorted(Path(root, data_set, "data").glob(f"{split}-*.parquet")) if root else []
